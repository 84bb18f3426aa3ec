"""The daemon's state directory: who is the daemon, how it is, and which runs were asked for.

daemon.pid is locked for a daemon's life and never unlinked; status.json is replaced whole, so a
reader needs no lock; trigger counts the runs that were asked for.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, Any, Callable

from besom.errors import BesomError, NoSpace, UsageError
from besom.units import printable

from .process import Process

STOPPED, STARTING, IDLE, RUNNING, DRAINING = "stopped", "starting", "idle", "running", "draining"
# A look at the lock by status holds it for an instant.
_PATIENCE_S = 1.0


def import_portalocker() -> Any:
    """The package portalocker, which brings redis along where that is installed: 100 ms to import."""
    import tempfile

    # It looks for a temporary directory as it is imported; a full disk and a sandbox have none.
    tempfile.tempdir = tempfile.tempdir or "/tmp"  # noqa: S108
    import portalocker

    return portalocker


class AlreadyRuns(BesomError):
    """Another daemon has the state directory."""


@dataclass
class Status:
    """How the daemon is. Times are seconds since the epoch.

    in_flight: {operation, path, since} of what is at work; last_run: {began, ended, outcome,
    removed_entries, freed_bytes, messages}; answered: the last request that a run has answered; runs and
    reloads: how many have been completed; reload_error: why the last reload changed nothing;
    stop_timeout: seconds in which it has finished when it is told to stop.
    """

    state: str = STOPPED
    process: Process | None = None
    since: float | None = None
    config: str = ""
    last_run: dict[str, Any] | None = None
    next_run: float | None = None
    in_flight: list[dict[str, Any]] = field(default_factory=list)
    answered: int = 0
    runs: int = 0
    reloads: int = 0
    reload_error: str = ""
    stop_timeout: float = 30.0
    warnings: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process else None

    @property
    def alive(self) -> bool:
        return self.state != STOPPED

    def to_dict(self) -> dict[str, Any]:
        """What `besom daemon status --json` shows."""
        return {
            "state": self.state,
            "pid": self.pid,
            "since": self.since,
            "last_run": self.last_run,
            "next_run": self.next_run,
            "in_flight": self.in_flight,
            "runs": self.runs,
            "config": printable(self.config),
            "warnings": self.warnings,
        }

    def what_runs(self) -> str:
        """What is in flight, in words."""
        if not self.in_flight:
            return f"it is {self.state}"
        now = time.time()
        words = [
            f"{one['operation']} of {one['path']} for {max(0, round(now - one['since']))}s"
            for one in self.in_flight
        ]
        return "still running: " + ", ".join(words)


class StateDir:
    """The state directory at path."""

    def __init__(self, path: str) -> None:
        self.path = path

    def _at(self, name: str) -> str:
        return os.path.join(self.path, name)

    def prepare(self) -> None:
        """Make the directory. Raises UsageError when it is not this user's alone to write."""
        try:
            os.makedirs(self.path, mode=0o755, exist_ok=True)
            st = os.lstat(self.path)
        except OSError as error:
            raise UsageError(
                f"The state directory {printable(self.path)} cannot be made: {error.strerror}; "
                "set daemon.state_dir or BESOM_STATE_DIR."
            ) from error
        if not stat.S_ISDIR(st.st_mode) or st.st_uid != os.geteuid() or st.st_mode & 0o022:
            raise UsageError(
                f"The state directory {printable(self.path)} must be a directory that only its user can "
                "write, and that user must be the one who runs this; set daemon.state_dir or BESOM_STATE_DIR."
            )

    def _open(self, name: str, flags: int, mode: int = 0o600) -> int:
        # Whoever can open a file can lock it: what is locked is not for others to read.
        return os.open(self._at(name), flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)

    def acquire(self, name: str = "daemon.pid") -> IO[str]:
        """Become the daemon: the file, locked while it is open. Raises AlreadyRuns, NoSpace, BesomError."""
        self.prepare()
        try:
            file = os.fdopen(self._open(name, os.O_RDWR | os.O_CREAT), "r+", encoding="utf-8")
        except OSError as error:
            kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else BesomError
            raise kind(
                f"{printable(self._at(name))} cannot be opened: {error.strerror}; mend that, or set "
                "daemon.state_dir or BESOM_STATE_DIR. besom prune and besom sweep do without it."
            ) from error
        os.fchmod(file.fileno(), 0o600)
        portalocker = import_portalocker()
        flags = portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING

        def attempt() -> bool:
            try:
                portalocker.lock(file, flags)
            except portalocker.LockException:
                return False
            return True

        if not patiently(attempt):
            pid = file.read(20).split("\n")[0]
            file.close()
            who = f", pid {pid}" if pid.isdigit() else ""
            raise AlreadyRuns(f"Another besom already runs in {printable(self.path)}{who}.")
        # Written after it is won: the content is never another's (CVE-2025-68146). Over what is there, which
        # needs no room; a full disk that has none keeps nobody from making some: what counts is the lock.
        content = f"{os.getpid()}\n{Process.current().token}\n".encode()
        with suppress(OSError):
            os.pwrite(file.fileno(), content, 0)
            os.ftruncate(file.fileno(), len(content))
        # A worker that outlives its daemon must not hold its place.
        # Weakly: Python 3.9.2 (Debian 11) crashes at its exit over a file that it still holds for this.
        reference, owner = weakref.ref(file), os.getpid()
        os.register_at_fork(after_in_child=lambda: _close_descriptor(reference(), owner))
        return file

    def is_held(self, name: str = "daemon.pid") -> bool | None:
        """Whether a process has the lock, None where this user may not ask; asking disturbs nobody."""
        try:
            fd = self._open(name, os.O_RDONLY)
        except PermissionError:
            return None
        except OSError:
            return False
        with os.fdopen(fd) as file:
            return not _try_lock(file, fcntl.LOCK_SH)

    def observe(self) -> Status:
        """How the daemon is, whatever became of the one that wrote the files."""
        status, held = self._read(), self.is_held()
        told = status.process is not None and status.process.runs
        if held is False or (held is None and not told):
            status.state, status.process, status.since = STOPPED, None, None
            status.next_run, status.in_flight, status.reload_error = None, [], ""
            return status
        found = status.process if held is None else self._holder()
        if told and status.process == found:
            return status
        # It has won its place, and has not told of itself yet.
        found = found if found is not None and found.runs else None
        return Status(STARTING, found, last_run=status.last_run, answered=status.answered)

    def _holder(self) -> Process | None:
        try:
            with os.fdopen(self._open("daemon.pid", os.O_RDONLY)) as file:
                pid, token = file.read(200).split("\n")[:2]
            return Process(int(pid), token)
        except (OSError, ValueError):
            return None

    def _read(self) -> Status:
        try:
            with os.fdopen(self._open("status.json", os.O_RDONLY), encoding="utf-8") as file:
                values = json.load(file)
            process = values.pop("process")
            status = Status(**values, process=Process(**process) if process else None)
            return status if _is_sound(status) else Status()
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return Status()

    def write(self, status: Status) -> None:
        """Replace status.json, which only the holder of the lock does. Raises OSError."""
        temp = self._at(".status.json.new")
        values = {**vars(status), "process": vars(status.process) if status.process else None}
        fd = self._open(".status.json.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            json.dump(values, file)
        os.rename(temp, self._at("status.json"))

    def asked(self) -> int:
        """How many runs were asked for so far."""
        try:
            with os.fdopen(self._open("trigger", os.O_RDONLY)) as file:
                return max(0, int(file.read(20) or "0"))
        except (OSError, ValueError):
            return 0

    def ask(self) -> int:
        """Ask for one more run; returns its number. Raises BesomError where that cannot be written."""
        try:
            with os.fdopen(self._open("trigger", os.O_RDWR | os.O_CREAT), "r+") as file:
                if not patiently(lambda: _try_lock(file, fcntl.LOCK_EX)):
                    raise BesomError(f"{printable(self._at('trigger'))} stays locked by another program.")
                number = self.asked() + 1
                # One write of a fixed width: a reader sees the old number or the new one.
                file.write(f"{number:020}")
                file.flush()
                return number
        except OSError as error:
            raise BesomError(
                f"A run cannot be asked for in {printable(self.path)}: {error.strerror}; "
                "run this as the daemon's user."
            ) from error


def _is_sound(status: Any) -> bool:
    """Whether the values are of the kinds that they should be, whoever has written them."""
    last, works, process = status.last_run, status.in_flight, status.process
    return (
        status.state in (STOPPED, STARTING, IDLE, RUNNING, DRAINING)
        and (process is None or (_are_counts(process.pid) and _are_texts(process.token)))
        and all(time_ is None or _are_times(time_) for time_ in (status.since, status.next_run))
        and _are_times(status.stop_timeout)
        and status.stop_timeout >= 0
        and _are_counts(status.answered, status.runs, status.reloads)
        and isinstance(status.config, str)
        and isinstance(status.warnings, list)
        and _are_texts(status.reload_error, *status.warnings)
        and (last is None or _is_last_run(last))
        and isinstance(works, list)
        and all(_is_work(one) for one in works)
    )


def _is_last_run(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and values.keys() == {"began", "ended", "outcome", "removed_entries", "freed_bytes", "messages"}
        and _are_times(values["began"], values["ended"])
        and _are_counts(values["removed_entries"], values["freed_bytes"])
        and isinstance(values["messages"], list)
        and _are_texts(values["outcome"], *values["messages"])
    )


def _is_work(values: Any) -> bool:
    return (
        isinstance(values, dict)
        and values.keys() == {"operation", "path", "since"}
        and _are_texts(values["operation"], values["path"])
        and _are_times(values["since"])
    )


def _are_counts(*values: Any) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _are_times(*values: Any) -> bool:
    # Seconds since the epoch, or before it where the clock is that wrong; infinities and NaN are none.
    return all(type(value) in (int, float) and -(2**40) < value < 2**40 for value in values)


def _are_texts(*values: Any) -> bool:
    # A line each: they are shown on terminals.
    return all(isinstance(value, str) and value.isprintable() for value in values)


def _close_descriptor(file: IO[str] | None, owner: int) -> None:
    # A child's own child may have the number in use for something else.
    if file is not None and not file.closed and os.getppid() == owner:
        os.close(file.fileno())


def patiently(attempt: Callable[[], bool], seconds: float = _PATIENCE_S) -> bool:
    """Attempt to lock; False when another process has the lock for so long, by default a look or two."""
    deadline = time.monotonic() + seconds
    while not attempt():
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def _try_lock(file: IO[str], operation: int) -> bool:
    """Ask for the lock that portalocker takes by default, flock(2), without the time of its import."""
    try:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
