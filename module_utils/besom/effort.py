# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How hard a run may press its host: how much at a time, how fast, behind whose I/O."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable

from .errors import UsageError
from .shutdown import Shutdown
from .units import parse_count, printable

MOST_WORKERS = 16
# A class in the upper bits, then a level from 0 to 7; of best-effort the lowest, ioprio_set(2).
_PRIORITY = {"best-effort": (2 << 13) + 7, "idle": 3 << 13}
# ioprio_set and ioprio_get; they have no function in libc (syscalls(2); asm-generic for all newer machines).
_CALLS = {
    "x86_64": (251, 252),
    "aarch64": (30, 31),
    "riscv64": (30, 31),
    "loongarch64": (30, 31),
    "ppc64le": (273, 274),
    "s390x": (282, 283),
}
_SLICE_S = 0.02


@dataclass(frozen=True)
class Effort:
    """workers: entries that are read or removed at a time, at most; they are as many as pay.

    max_rate: entries a second, by one alone then; 0: no limit. io_class: one of policy.IO_CLASSES; empty:
    no change.
    """

    workers: int = MOST_WORKERS
    max_rate: int = 0
    io_class: str = ""


def read_effort(values: Any, where: str = "") -> Effort:
    """An effort from a mapping with the fields of one; None counts as not given. Raises UsageError."""
    from .policy import read_mapping

    values = read_mapping(values, where, tuple(EFFORT_READERS))
    given = {key: read for key, read in EFFORT_READERS.items() if values.get(key) is not None}
    return Effort(**{key: read(values[key], where + key) for key, read in given.items()})


def _workers(value: Any, name: str) -> int:
    if value == "auto":
        return MOST_WORKERS
    try:
        count = parse_count(value, name)
    except UsageError:
        raise UsageError(f"{name}: '{printable(str(value))}' is neither auto nor a count.") from None
    if count > 64:
        raise UsageError(f"{name}: {count} are too many; give 64 or less.")
    return count


def _io_class(value: Any, name: str) -> str:
    if value not in _PRIORITY:
        raise UsageError(f"{name}: '{printable(str(value))}' is not one of {', '.join(_PRIORITY)}.")
    return str(value)


EFFORT_READERS: dict[str, Callable[[Any, str], Any]] = {
    "workers": _workers,
    "max_rate": parse_count,
    "io_class": _io_class,
}


class Rate:
    """At most so many entries a second; 0: as many as can be."""

    def __init__(self, most: int) -> None:
        self.limited = most > 0
        self._pause_s = 1 / most if most else 0.0
        self._next = 0.0

    def wait(self, shutdown: Shutdown) -> None:
        """Return when the next entry may go, or at a shutdown."""
        if not self.limited:
            return
        turn = max(self._next, time.monotonic())
        self._next = turn + self._pause_s
        while not shutdown.signum and (left := turn - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE_S))


@contextmanager
def io_class(name: str) -> Iterator[None]:
    """Let this thread, and what it forks, do their I/O in that class (ionice(1)); empty: no change.

    Only a scheduler that knows classes heeds them (bfq, mq-deadline). Where the number of the system call
    is not known, or the kernel refuses, nothing changes.
    """
    calls = _CALLS.get(os.uname().machine) if name else None
    if calls is None or sys.maxsize < 2**32:
        yield
        return
    # Dear to import, and for this only.
    import ctypes

    put, get = calls
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    before = syscall(get, 1, 0)
    syscall(put, 1, 0, _PRIORITY[name])
    try:
        yield
    finally:
        if before >= 0:
            syscall(put, 1, 0, before)
