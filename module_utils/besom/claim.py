# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A place in a store, and the claim on it that keeps two refreshes of one file from each other."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Callable

from .durable import Draft, Retries, adopt, draft, failed, list_parts, parts_of, remove_part
from .errors import BesomError, LockHeld
from .locks import POLL_S, FlockUnsupported, holder_of, try_flock
from .mounts import mnt_id
from .root import Root, open_directory
from .units import format_duration, printable


@contextmanager
def directory_in(root: Root, path: str, make: bool = False) -> Iterator[int]:
    """A descriptor of the directory at path, relative to root; follows no symlink, enters no other mount.

    make: make what is missing, durably. Raises FileNotFoundError without it, BesomError.
    """
    fd = _descend(root, path, make) if path else open_directory(".", root.fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _descend(root: Root, path: str, make: bool) -> int:
    shown = os.path.join(root.path, path)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root.fd)
    try:
        for name in path.split("/"):
            step = _enter(here, name, shown, make)
            os.close(here)
            here = step
            if mnt_id(here) != root.mnt_id:
                raise BesomError(
                    f"{printable(shown)} leads into another mount; name that as a store of its own."
                )
        return open_directory(".", here)
    finally:
        os.close(here)


def _enter(here: int, name: str, shown: str, make: bool) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        try:
            return os.open(name, flags, dir_fd=here)
        except FileNotFoundError:
            if not make:
                raise
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=here)
        fd = open_directory(".", here)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        return os.open(name, flags, dir_fd=here)
    except NotADirectoryError:
        raise BesomError(
            f"{printable(shown)} leads through {printable(name)}, which is not a directory; remove it."
        ) from None
    except FileNotFoundError:
        raise
    except OSError as error:
        raise failed(shown, "entered", error) from error


@contextmanager
def file_in(directory_fd: int, path: str, name: str) -> Iterator[tuple[int, os.stat_result]]:
    """A descriptor of the regular file name in an open directory, for reading, and its stat.

    path is that of the directory, for messages. Raises FileNotFoundError, BesomError for what is no
    regular file.
    """
    # Only then for reading: what a device or a FIFO does when it is opened, nobody wants.
    there = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        st = os.fstat(there)
        if not stat.S_ISREG(st.st_mode):
            shown = printable(os.path.join(path, name))
            raise BesomError(f"{shown} is there and is no regular file; remove it, or choose another dest.")
        fd = os.open(f"/proc/self/fd/{there}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(there)
    try:
        yield fd, st
    finally:
        os.close(fd)


@contextmanager
def claim(
    directory_fd: int,
    path: str,
    name: str,
    retries: Retries,
    timeout: float,
    option: str,
    waiting: Callable[[str], None],
    pause: Callable[[float], None],
    names: Callable[[int], list[str]] = list_parts,
) -> Iterator[tuple[Draft, bool]]:
    """The one draft for name in an open directory that is at work, and whether another was waited for.

    It may be an orphan that is to be gone on with. Each looks for the others only after it has a
    draft of its own, so of two at least one sees the other: then that with the larger name makes way,
    and nobody begins while another is seen. pause waits, and may raise to end it; names lists the temps
    in the directory, not before it is called. Raises LockHeld after timeout seconds, naming the holder
    and option.
    """
    began = time.monotonic()
    waited = False
    with ExitStack() as stack:
        mine: Draft | None = None
        while True:
            if mine is None:
                mine = stack.enter_context(draft(directory_fd, path, name, retries))
            others = [part for part in parts_of(directory_fd, name, names(directory_fd)) if part != mine.name]
            orphans = (adopt(directory_fd, path, part, name, retries) for part in others)
            orphan = next(filter(None, orphans), None) if others and _is_blank(mine) else None
            if orphan is not None:
                mine.close()
                mine = stack.enter_context(orphan)
                continue
            busy = [part for part in others if is_locked(directory_fd, part)]
            if not busy:
                for part in others:
                    # A second orphan is no use to anybody.
                    with suppress(OSError):
                        remove_part(directory_fd, part)
                yield mine, waited
                return
            if min(busy) < mine.name:
                mine.close()
                mine = None
            if not waited:
                waited = True
                waiting(_sentence(directory_fd, path, name, busy[0], "Waiting for"))
            while any(is_locked(directory_fd, part) for part in busy):
                past = time.monotonic() - began
                if past >= timeout:
                    text = _sentence(directory_fd, path, name, busy[0], "")
                    took = format_duration(round(past, 1))
                    raise LockHeld(f"{text}; waited {took}. Let it finish, or raise {option}.")
                pause(min(POLL_S, timeout - past))


class Listings:
    """The temps in directories, listed once for all the threads that ask while a listing is at work.

    Who asks gets a listing that was begun after that: one that is at work already may have missed
    what the asker has made.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._of: dict[tuple[int, int], _Listing] = {}

    def __call__(self, directory_fd: int) -> list[str]:
        st = os.fstat(directory_fd)
        with self._guard:
            mine = self._of.setdefault((st.st_dev, st.st_ino), _Listing())
        return mine.newer(directory_fd)


class _Listing:
    def __init__(self) -> None:
        self._one = threading.Lock()
        self._begun = self._done = 0
        self._names: list[str] = []

    def newer(self, directory_fd: int) -> list[str]:
        # Only who has _one counts on, so that this number is of a listing that was begun before now.
        before = self._begun
        with self._one:
            if self._done <= before:
                self._begun += 1
                self._names = list_parts(directory_fd)
                self._done = self._begun
            return self._names


def _is_blank(mine: Draft) -> bool:
    return os.fstat(mine.fd).st_size == 0


def is_locked(directory_fd: int, part: str) -> bool:
    """Whether somebody writes to part."""
    try:
        fd = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    except OSError:
        return False
    try:
        return not try_flock(fd)
    except FlockUnsupported:
        return False
    finally:
        os.close(fd)


def _sentence(directory_fd: int, path: str, name: str, part: str, waiting: str) -> str:
    who = "another refresh of it"
    with suppress(OSError):
        fd = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        try:
            who = str(holder_of(fd))
        finally:
            os.close(fd)
    target = printable(os.path.join(path, name))
    return f"{waiting} {target}, refreshed by {who}." if waiting else f"{target} is being refreshed by {who}"
