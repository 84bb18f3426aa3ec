"""Running one command: what it took, and how much memory it held at most."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# GNU time does the wait4. Were it done here, the peak of a small program would be that of this Python,
# whose memory a child is charged with until its exec.
TIME = "/usr/bin/time"


class CommandFailed(Exception):
    """The command ended with another status than 0."""


@dataclass(frozen=True)
class Sample:
    """One run: seconds of wall and of CPU (user + sys), and its peak memory; None where it was not looked at.

    The peak is the largest resident set of any one process, or (together) the most that all of them
    held at one time, what they share counted once.
    """

    wall: float | None = None
    cpu: float | None = None
    peak_kib: float | None = None


def measure(argv: Sequence[str], scratch: Path, env: Mapping[str, str], together: bool = False) -> Sample:
    """Run argv to its end. Whatever ends this process first ends the whole group of the command.

    together: look at the memory of all its processes every 20 ms, which costs it some time.
    """
    figures, log = scratch / "time", scratch / "log"
    with log.open("wb") as output:
        started = time.perf_counter()
        child = subprocess.Popen(
            [TIME, "-q", "-f", "%U %S %M", "-o", figures, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=scratch,
            env=env,
            start_new_session=True,
        )
        try:
            seen = _watch(child) if together else 0
            status = child.wait()
        finally:
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        wall = time.perf_counter() - started
    if status:
        tail = log.read_bytes()[-2000:].decode(errors="replace").strip()
        raise CommandFailed(f"{' '.join(argv)} ended with status {status}: {tail}")
    user, system, peak = figures.read_text().split()
    return Sample(round(wall, 5), round(float(user) + float(system), 2), max(int(peak), seen))


def _watch(child: subprocess.Popen[bytes]) -> int:
    """The most KiB that the session of child holds at one time, until it ends."""
    most = 0
    while child.poll() is None:
        most = max(
            most, sum(_held(pid) for pid in os.listdir("/proc") if pid.isdecimal() and _in(pid, child.pid))
        )
        time.sleep(0.02)
    return most


def _in(pid: str, session: int) -> bool:
    try:
        return os.getsid(int(pid)) == session
    except ProcessLookupError:
        return False


def _held(pid: str) -> int:
    """KiB of memory of a process, each page divided by how many share it; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
