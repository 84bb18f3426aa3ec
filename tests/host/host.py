"""A host of its own below a directory: stores, a configuration, and the daemon that keeps house there."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import yaml
from inotify_simple import INotify, flags

from besom_host.state import StateDir

BESOM = [sys.executable, "-m", "besom_host"]
DAY = 86400
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Done:
    """What a command came to; values is its one JSON object."""

    status: int
    values: dict[str, Any]
    stderr: str

    def __getitem__(self, key: str) -> Any:
        return self.values[key]


class Process(subprocess.Popen[Any]):
    """A program that a failing test does not wait for: Popen waits for ever when its block is left."""

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is not None:
            self.kill()
        super().__exit__(kind, value, trace)


class Host:
    """Its daemon, if one was started, is gone when the test is over (see the fixture host)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_dir = path / "state"
        self.store = path / "gems"
        self.store.mkdir()
        self.file = path / "besom.yml"
        self.env: dict[str, str] = {}
        self.processes: list[subprocess.Popen[bytes]] = []
        self.configure()

    def configure(self, **changes: Any) -> None:
        """Write the configuration: one store of at most three files; changes replace whole keys."""
        gems = {"name": "gems", "path": str(self.store), "layout": "files", "max_entries": 3}
        daemon = {"state_dir": str(self.state_dir), **changes.pop("daemon", {})}
        values = {"stores": [gems], "daemon": daemon, **changes}
        self.file.write_text(
            yaml.safe_dump({key: value for key, value in values.items() if value is not None})
        )

    def fill(self, count: int, store: Path | None = None) -> None:
        """So many files, the first the oldest, all of them days old."""
        for number in range(count):
            path = (store or self.store) / f"{number:05}.gem"
            path.write_bytes(b"x")
            when = time.time() - 10 * DAY + number
            os.utime(path, (when, when))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.store.iterdir())

    def command(self, *words: object) -> list[str]:
        return [*BESOM, "--config", str(self.file), *map(str, words)]

    def environment(self) -> dict[str, str]:
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("BESOM_", "NOTIFY_"))}
        return {**clean, **self.env}

    def besom(self, *words: object) -> Done:
        """Run a command with --json to its end."""
        done = subprocess.run(
            [*self.command(*words), "--json"],
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, json.loads(done.stdout or "{}"), done.stderr)

    def popen(self, *words: object, **options: Any) -> Process:
        """Begin a command; it is killed when the test is over."""
        process = Process(self.command(*words), env=self.environment(), stdin=subprocess.DEVNULL, **options)
        self.processes.append(process)
        return process

    def daemon(self, *words: object) -> Done:
        return self.besom("daemon", *words)

    def start(self) -> int:
        """Start the daemon and wait for its first run; gives its pid."""
        started = self.daemon("start")
        assert started.status == 0, started.stderr
        assert self.daemon("wait", "--timeout", "60s").status == 0
        return int(started["pid"])

    def until(self, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until the daemon's status is as wanted, woken by what happens in its state directory."""
        deadline = time.monotonic() + PATIENCE_S
        self.state_dir.mkdir(exist_ok=True)
        with INotify() as news:
            news.add_watch(self.state_dir, flags.MOVED_TO | flags.CREATE)
            while True:
                values = StateDir(str(self.state_dir)).observe().to_dict()
                if reached(values):
                    return values
                left = deadline - time.monotonic()
                assert left > 0, values
                news.read(timeout=int(left * 1000))

    def daemon_pid(self) -> int:
        """The pid of a daemon that runs."""
        return int((self.state_dir / "daemon.pid").read_text().split()[0])

    @property
    def log(self) -> str:
        path = self.state_dir / "daemon.log"
        return path.read_text() if path.exists() else ""

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate(timeout=PATIENCE_S)
        with contextlib.suppress(OSError, ValueError):
            pid = self.daemon_pid()
            if str(self.file).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
                await_exit(pid)


def await_exit(pid: int) -> None:
    """Return once the process is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], PATIENCE_S)[0], f"pid {pid} does not end"
    finally:
        os.close(fd)
