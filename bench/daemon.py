"""Contests around the daemon and the start of the command: how soon they answer, and what they hold."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from contest import Bar, Contender, Contest
from ground import BESOM, TOP, Ground, Unfit
from stopwatch import Sample

IDLE_S = 5.0
PATIENCE_S = 300.0


class Host:
    """A configuration with one store, and perhaps a daemon, in a directory of its own."""

    def __init__(self, ground: Ground, base: Path) -> None:
        self.ground, self.store, self.state = ground, base / "store", base / "state"
        self.config = base / "besom.json"  # YAML as well
        self.store.mkdir(parents=True)
        self.configure({"max_age": "1000d"})

    def configure(
        self, limits: dict[str, str], drain_timeout: str = "30s", store: Path | None = None
    ) -> None:
        entry = {"name": "store", "path": str(store or self.store), "layout": "files", **limits}
        daemon = {"state_dir": str(self.state), "interval": "24h", "drain_timeout": drain_timeout}
        self.config.write_text(json.dumps({"stores": [entry], "daemon": daemon}))

    def command(self, *words: str) -> list[str]:
        return [BESOM, "--config", str(self.config), *words]

    def popen(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self.command(*words), env=self.ground.env, stdout=-1, stderr=-1)

    @property
    def status(self) -> dict[str, Any]:
        return dict(json.loads((self.state / "status.json").read_text()))

    @property
    def pid(self) -> int:
        return int((self.state / "daemon.pid").read_text().split()[0])

    @contextmanager
    def daemon(self) -> Iterator[int]:
        """A daemon whose first run is over; gives its pid."""
        self.ground.measure(self.command("daemon", "start"))
        try:
            self.ground.measure(self.command("daemon", "wait"))
            yield self.pid
        finally:
            self.ground.measure(self.command("daemon", "stop", "--force"))

    def cycle(self) -> Sample:
        """One more run of the daemon, which removes nothing."""
        before = ticks(self.pid)
        self.ground.measure(self.command("daemon", "trigger"))
        self.ground.measure(self.command("daemon", "wait"))
        last = self.status["last_run"]
        if (last["outcome"], last["removed_entries"]) != ("done", 0):
            raise Unfit(f"the daemon's run was to remove nothing, and came to {last}")
        return Sample(last["ended"] - last["began"], ticks(self.pid) - before, field(self.pid, "VmHWM"))

    def stopped_in_the_middle(self, tree: Path) -> Sample:
        """How long a daemon that removes nearly all of a tree takes to be gone after SIGTERM."""
        self.configure({"max_entries": "1"}, "0", tree)
        folders = [folder for folder in tree.glob("*/*") if folder.is_dir()][:50]
        daemon = self.popen("daemon", "run")
        try:
            # A directory with fewer entries, or none, tells that the removal is under way.
            before = [_entries(folder) for folder in folders]
            while daemon.poll() is None and [_entries(folder) for folder in folders] == before:
                pass
            began = time.perf_counter()
            daemon.send_signal(signal.SIGTERM)
            took = gone(daemon.pid) - began
            daemon.communicate(timeout=PATIENCE_S)
        finally:
            daemon.kill()
        if self.status["last_run"]["outcome"] != "interrupted":
            raise Unfit("the prune was over before the signal; take more --files")
        with self.daemon():
            left = sum(path.is_file() for path in tree.rglob("*"))
        if left != 1:
            raise Unfit(f"the run after the drain left {left} files, not one")
        return Sample(took)


def _entries(folder: Path) -> int:
    try:
        return len(os.listdir(folder))
    except FileNotFoundError:
        return 0


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


def ticks(pid: int) -> float:
    """User and system time of a process so far, in seconds."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def daemon(ground: Ground) -> Iterator[Contest]:
    """How long after the daemon's end `wait` and `stop` return, and what it holds while idle."""

    def idle() -> Sample:
        with ground.directory() as base, Host(ground, base / "host").daemon() as pid:
            before = ticks(pid)
            time.sleep(0.5 if ground.quick else IDLE_S)
            return Sample(cpu=ticks(pid) - before, peak_kib=field(pid, "VmRSS"))

    def wait() -> Sample:
        with ground.directory() as base:
            host = Host(ground, base / "host")
            with host.daemon() as pid:
                hold = subprocess.Popen(
                    ["flock", host.store, "sh", "-c", "echo; exec cat"], stdin=-1, stdout=-1
                )
                assert hold.stdout
                hold.stdout.readline()
                ground.measure(host.command("daemon", "trigger"))
                waiting = host.popen("daemon", "wait")
                # Once it sleeps in poll(2), it has nothing left to do but to wait.
                while waiting.poll() is None and "poll" not in Path(f"/proc/{waiting.pid}/wchan").read_text():
                    pass
                os.kill(pid, signal.SIGKILL)
                ended = gone(pid)
                waiting.communicate(timeout=PATIENCE_S)
                took = time.perf_counter() - ended
                hold.communicate()
        return Sample(took)

    def stop() -> Sample:
        with ground.directory() as base:
            host = Host(ground, base / "host")
            with host.daemon() as pid:
                stopping = host.popen("daemon", "stop")
                ended = gone(pid)
                stopping.communicate(timeout=PATIENCE_S)
                took = time.perf_counter() - ended
        return Sample(took)

    yield Contest(
        "daemon",
        "The daemon: after its end, and while idle",
        [
            Contender("wait returns", wait, (Bar("ms", 100),)),
            Contender("stop returns", stop, (Bar("ms", 100),)),
            Contender(f"idle for {IDLE_S:g} s", idle, (Bar("MiB", 40),)),
        ],
        compared="",
    )


def startup(ground: Ground) -> Iterator[Contest]:
    """The command as a process, of the checkout, and as the one file that the role puts on hosts."""
    one_file = str(ground.scratch / "besom.pyz")
    subprocess.run([sys.executable, TOP / "scripts/build-zipapp", "--output", one_file], check=True)
    with ground.directory() as base:
        host, other = Host(ground, base / "host"), Host(ground, base / "other")
        trigger = host.command("daemon", "trigger")
        cron = ["env", f"BESOM_COMMAND={BESOM}", str(ground.besom / "scripts/cron-prune")]

        def command(name: str, argv: list[str], *bars: Bar) -> Contender:
            return Contender(name, lambda: ground.measure(argv), bars)

        with host.daemon():
            yield Contest(
                "startup",
                "Start-up: each a process of its own",
                [
                    command("besom --help", [BESOM, "--help"]),
                    command("besom daemon trigger", trigger, Bar("ms", 150)),
                    command(
                        "besom daemon trigger, as one file",
                        [sys.executable, "-IS", one_file, *trigger[1:]],
                        Bar("ms", 150),
                    ),
                    command("cron-prune, nothing to do", [*cron, "--config", str(other.config)]),
                    command("python -c pass", [sys.executable, "-c", "pass"]),
                ],
                rounds=1 if ground.quick else 15,
            )
