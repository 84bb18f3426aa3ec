"""bench/daemon: what the prune daemon costs while idle, and how soon it answers, against its bars."""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from contests import BESOM, TOP
from forest import plant

RESULTS = TOP / "bench/RESULTS-daemon.md"
IDLE_S = 5.0
PATIENCE_S = 120.0


class Host:
    """A daemon with one store in a directory of its own."""

    def __init__(self, base: Path) -> None:
        self.base, self.store, self.state = base, base / "store", base / "state"
        self.config = base / "besom.json"  # YAML as well
        self.store.mkdir()
        self.configure({"max_age": "1000d"}, "30s")

    def configure(self, limits: dict[str, str], drain_timeout: str) -> None:
        store = {"name": "store", "path": str(self.store), "layout": "files", **limits}
        daemon = {"state_dir": str(self.state), "interval": "24h", "drain_timeout": drain_timeout}
        self.config.write_text(json.dumps({"stores": [store], "daemon": daemon}))

    def command(self, *words: str) -> list[str]:
        return [BESOM, "--config", str(self.config), "daemon", *words]

    def besom(self, *words: str) -> float:
        """Run a command of the daemon; gives the seconds that it took."""
        began = time.perf_counter()
        subprocess.run(self.command(*words), stdout=subprocess.DEVNULL, check=True, timeout=PATIENCE_S)
        return time.perf_counter() - began

    @property
    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "status.json").read_text()))

    @property
    def pid(self) -> int:
        return int((self.state / "daemon.pid").read_text().split()[0])

    @contextmanager
    def daemon(self) -> Iterator[int]:
        """A daemon whose first run is over; gives its pid."""
        self.besom("start")
        try:
            self.besom("wait")
            yield self.pid
        finally:
            subprocess.run(self.command("stop", "--force"), stdout=subprocess.DEVNULL, check=False)


def gone(pid: int) -> float:
    """The time at which the process has ended."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return time.perf_counter()
    select.select([fd], [], [], PATIENCE_S)
    ended = time.perf_counter()
    os.close(fd)
    return ended


def field(pid: int, name: str) -> float:
    """A figure in KiB of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(name))


def ticks(pid: int) -> int:
    """User and system time of a process so far, in clock ticks."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[11]) + int(words[12])


def idle(host: Host) -> dict[str, float]:
    with host.daemon() as pid:
        before = ticks(pid)
        time.sleep(IDLE_S)
        used = (ticks(pid) - before) / os.sysconf("SC_CLK_TCK")
        return {"memory while idle": field(pid, "VmRSS") / 1024, "CPU while idle": used / IDLE_S * 100}


def answers(host: Host) -> dict[str, float]:
    """How long trigger takes, and how long after the daemon's end wait and stop return."""
    with host.daemon() as pid:
        trigger = host.besom("trigger")
        host.besom("wait")
        hold = subprocess.Popen(["flock", host.store, "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1)
        assert hold.stdout
        hold.stdout.readline()
        host.besom("trigger")
        waiting = subprocess.Popen(host.command("wait"), stdout=-1, stderr=-1)
        # Once it sleeps in poll(2), it has nothing left to do but to wait.
        while waiting.poll() is None and "poll" not in Path(f"/proc/{waiting.pid}/wchan").read_text():
            pass
        os.kill(pid, signal.SIGKILL)
        ended = gone(pid)
        waiting.communicate(timeout=PATIENCE_S)
        wait = time.perf_counter() - ended
        hold.communicate()
    with host.daemon() as pid:
        stopping = subprocess.Popen(host.command("stop"), stdout=-1)
        ended = gone(pid)
        stopping.communicate(timeout=PATIENCE_S)
        stop = time.perf_counter() - ended
    return {"trigger": trigger * 1000, "wait, after the end": wait * 1000, "stop, after the end": stop * 1000}


def in_the_middle(host: Host, files: int) -> dict[str, float]:
    """SIGTERM in the middle of a prune of so many files."""
    host.store.rmdir()
    plant(host.store, files, time.time_ns() // 1000)
    os.sync()
    host.configure({"max_entries": "1"}, "0")
    folders = [path for path in host.store.rglob("*") if path.is_dir()]
    daemon = subprocess.Popen(host.command("run"), stdout=-1, stderr=-1)
    try:
        # A directory that is gone tells that the removal is under way.
        while all(folder.exists() for folder in folders[:50]) and daemon.poll() is None:
            pass
        began = time.perf_counter()
        daemon.send_signal(signal.SIGTERM)
        took = gone(daemon.pid) - began
        daemon.communicate(timeout=PATIENCE_S)
    finally:
        daemon.kill()
    if host.status["last_run"]["outcome"] != "interrupted":
        raise SystemExit("bench/daemon: the prune was over before the signal; take more --files")
    with host.daemon():
        left = sum(path.is_file() for path in host.store.rglob("*"))
    if left != 1:
        raise SystemExit(f"bench/daemon: the next run left {left} files")
    return {f"SIGTERM in a prune of {files:,} files": took * 1000}


ROWS = {
    "memory while idle": ("MiB", 40.0),
    "CPU while idle": ("%", 0.0),
    "trigger": ("ms", 1000.0),
    "wait, after the end": ("ms", 100.0),
    "stop, after the end": ("ms", 100.0),
    "SIGTERM": ("ms", 200.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/daemon", description=__doc__)
    parser.add_argument("--files", type=int, default=200_000, metavar="N", help="to prune (default 200000)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of the quick ones (default 5)")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name} as well")
    options = parser.parse_args()
    samples: dict[str, list[float]] = {}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="besom-bench-", dir=TOP / ".cache") as name:
        for turn in range(options.rounds):
            base = Path(name) / str(turn)
            base.mkdir()
            host = Host(base)
            for figures in (idle(host) if turn == 0 else {}, answers(host)):
                for key, value in figures.items():
                    samples.setdefault(key, []).append(value)
        for key, value in in_the_middle(host, options.files).items():
            samples[key] = [value]
    lines = ["| what | median | min to max | bar |", "|---|---|---|---|"]
    for key, values in samples.items():
        unit, bar = next(row for start, row in ROWS.items() if key.startswith(start))
        met = "met" if median(values) <= bar else "MISSED"
        spread = f"{min(values):.1f} to {max(values):.1f}"
        lines.append(f"| {key} | {median(values):.1f} {unit} | {spread} | <= {bar:g} {unit} {met} |")
    text = "\n".join(lines)
    print(text)
    if options.record:
        head = "# What the prune daemon costs, and how soon it answers\n\nWritten by `bench/daemon --record`"
        when = time.strftime("%Y-%m-%d", time.gmtime())
        RESULTS.write_text(f"{head} on {when}; load before {load:.1f}, {os.cpu_count()} cores.\n\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
