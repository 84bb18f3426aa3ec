"""A process of its own that does some work, under strace if that is to kill, stop or fail it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Callable

import pytest

from besom.errors import BesomError

from ..host.conftest import need

# Whatever changes a file system, or a lock; those that a machine does not have are left out (`?`).
CHANGING = (
    *("open", "openat", "creat", "mkdir", "mkdirat", "write", "pwrite64", "writev", "ftruncate"),
    *("chmod", "fchmod", "fchmodat", "fchown", "fchownat", "fsync", "fdatasync", "syncfs", "flock"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir", "symlink", "symlinkat", "link"),
    *("linkat", "utimensat", "setxattr", "fsetxattr", "copy_file_range"),
)
_CALL = re.compile(r"(\w+)\(")

Call = tuple[str, int]


class Child:
    """Runs work once go() is called. said: what of BesomError it raised; it is killed by close()."""

    def __init__(self, work: Callable[[], None]) -> None:
        gate, self._gate = os.pipe()
        self._said, saying = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            status = 70
            try:
                os.read(gate, 1)
                work()
                status = 0
            except BesomError as error:
                os.write(saying, str(error).encode())
                status = error.status
            except BaseException as error:  # noqa: BLE001 - it must never return into pytest
                os.write(saying, repr(error).encode())
            finally:
                os._exit(status)
        os.close(gate)
        os.close(saying)
        self._strace: subprocess.Popen[str] | None = None
        self._ended = False

    def trace(self, log: Path, *inject: str) -> None:
        """Attach strace, which writes log and injects these faults (strace(1), --inject)."""
        names = ",".join(f"?{name}" for name in CHANGING)
        command = [need("strace"), "-p", str(self.pid), "-o", str(log), "-e", f"trace={names}"]
        for one in inject:
            command += ["-e", f"inject={one}"]
        self._strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self._strace.stderr
        line = self._strace.stderr.readline()
        if "attached" not in line:
            pytest.skip(f"strace cannot attach here: {line.strip()}")

    def go(self) -> None:
        # No end of file: children that were made later have this end as well.
        os.write(self._gate, b".")

    def wait(self, stopped: bool = False) -> int:
        """Its exit status, or minus the signal that ended it, or (stopped) has stopped it."""
        _pid, status = os.waitpid(self.pid, os.WUNTRACED if stopped else 0)
        if os.WIFSTOPPED(status):
            return -os.WSTOPSIG(status)
        self._ended = True
        return os.waitstatus_to_exitcode(status)

    def said(self) -> str:
        return os.read(self._said, 10_000).decode()

    def close(self) -> None:
        if not self._ended:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self._ended = True
        if self._strace:
            self._strace.communicate(timeout=60)
            self._strace = None
        for fd in (self._gate, self._said):
            with suppress(OSError):
                os.close(fd)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def calls_of(work: Callable[[], None], log: Path) -> list[Call]:
    """Each call that changes something, as work makes them: its name, and the how manieth of that name."""
    with Child(work) as child:
        child.trace(log)
        child.go()
        status = child.wait()
        assert status == 0, child.said()
    return calls_in(log)


def calls_in(log: Path) -> list[Call]:
    """The calls that changed something in a log of strace."""
    seen: dict[str, int] = {}
    calls = []
    for line in log.read_text().splitlines():
        match = _CALL.match(line)
        if match:
            name = match[1]
            seen[name] = seen.get(name, 0) + 1
            if name not in ("open", "openat") or "O_CREAT" in line:
                calls.append((name, seen[name]))
    return calls
