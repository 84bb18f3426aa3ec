# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing a session whole: its metadata goes into a trash first, then its blobs; only then anything is gone.

Whoever lists the store sees a session with its metadata and all blobs, or none of its metadata. What a
crash leaves is told from sessions by the metadata in the trash: see sessions.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress

from .locks import LockTable
from .sessions import SESSIONS_TRASH, look, names_of
from .tree import CHANGED, Blocked, Cursor, Removal, empty, finish_trash, hold, refusal
from .units import printable

_FULL = (errno.ENOSPC, errno.EDQUOT)
Names = Sequence[tuple[str, bool]]


class SessionRemover:
    """Removes sessions from the store that cursor stands in, through one trash. Close it at the end."""

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._trash = ""
        self._lock = -1

    def remove(self, row: str, planned: int, used: int | None = None) -> Removal:
        """Remove one session; nothing is raised, see Removal.

        row: its name in an inventory; planned: the print that the plan saw; used: the latest time (ns) at
        which it was used, where that matters.
        """
        id_, *parts = row.split("/")
        names, cursor = names_of(id_, parts), self._cursor
        path = cursor.path(id_)
        try:
            with ExitStack() as stack:
                for name, is_dir in names:
                    if is_dir:
                        self._hold(stack, name)
                found, seen, _st = look(cursor, names, LockTable(), thorough=True)
                if seen != planned or (used is not None and found.used > used):
                    return Removal(blocked=Blocked(path, CHANGED))
                if found.blocked:
                    return Removal(blocked=found.blocked)
                left = self._move(names)
                if not left:
                    cursor.enter(self._trash)
                    found, seen, _st = look(cursor, names, LockTable())
                    cursor.rise(0)
                    if seen != planned or found.blocked:
                        self._put_back(names)
                        return Removal(blocked=found.blocked or Blocked(path, CHANGED))
                # What a full disk had no room for in the trash goes where it is, while that can be finished.
                removal = _remove_names(cursor, left, path, found.freed)
                if removal.blocked or len(left) == len(names):
                    return removal
                return self._empty(names[: len(names) - len(left)], path, found.freed)
        except OSError as error:
            return refusal(path, error)
        finally:
            cursor.rise(0)

    def close(self) -> None:
        """Remove the trash, if nothing is left in it."""
        if self._trash:
            with suppress(OSError):
                os.rmdir(self._trash, dir_fd=self._cursor.fd)
            self._trash = ""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _hold(self, stack: ExitStack, name: str) -> None:
        """Hold flock on directory name as long as the stack lasts. Raises OSError when another does."""
        self._cursor.enter(name)
        stack.callback(os.close, hold(self._cursor))
        self._cursor.rise(0)

    def _move(self, names: Names) -> Names:
        """Move names into the trash; returns those that a full disk has no room for there. Raises OSError."""
        cursor = self._cursor
        for count, (name, _is_dir) in enumerate(names):
            try:
                if not self._trash:
                    self._make_trash()
                os.rename(name, name, src_dir_fd=cursor.fd, dst_dir_fd=self._lock)
            except OSError as error:
                if error.errno in _FULL:
                    return names[count:]
                self._put_back(names[:count])
                raise
        return ()

    def _make_trash(self) -> None:
        name = f".besom-trash-{os.urandom(8).hex()}{SESSIONS_TRASH}"
        os.mkdir(name, 0o700, dir_fd=self._cursor.fd)
        self._trash = name
        self._cursor.enter(name)
        try:
            # Where flock does not work, nobody else can take it for trash left by a crash either.
            self._lock = hold(self._cursor)
        except OSError:
            self._lock = os.dup(self._cursor.fd)
        self._cursor.rise(0)

    def _put_back(self, names: Names) -> None:
        """Move names back out of the trash, the metadata last, and over nothing that has come meanwhile."""
        for name, is_dir in reversed(names):
            with suppress(FileNotFoundError):
                put_back(self._lock, self._cursor.fd, name, is_dir)

    def _empty(self, names: Names, path: str, freed: int) -> Removal:
        """Remove names from the trash."""
        self._cursor.enter(self._trash)
        removal = _remove_names(self._cursor, names, path, freed)
        self._cursor.rise(0)
        if removal.blocked:
            # What is left is for the next run to finish, and not for the sessions that follow.
            self.close()
        return removal


def put_back(source: int, target: int, name: str, is_dir: bool) -> None:
    """Move name from directory source to directory target, or beside what is there now. Raises OSError."""
    beside = os.fsdecode(os.fsencode(name)[:200]) + f".besom-kept-{os.urandom(8).hex()}"
    for back in (name, beside):
        try:
            if is_dir:
                # Fails on all but an empty directory.
                os.rename(name, back, src_dir_fd=source, dst_dir_fd=target)
                return
            os.link(name, back, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                continue
            if is_dir:
                raise
            # No hard links here.
            with suppress(FileNotFoundError):
                os.lstat(name, dir_fd=target)
                back = beside
            os.rename(name, back, src_dir_fd=source, dst_dir_fd=target)
            return
        os.unlink(name, dir_fd=source)
        return


def _remove_names(cursor: Cursor, names: Names, path: str, freed: int) -> Removal:
    """Remove names from the directory that cursor stands in, the metadata last."""
    for name, is_dir in reversed(names):
        if is_dir:
            removal = empty(cursor, name, path, 0)
            if removal.blocked:
                return removal
            continue
        try:
            os.unlink(name, dir_fd=cursor.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            reason = f"trash that cannot be finished: {printable(name)}: {error.strerror}"
            return Removal(blocked=Blocked(path, reason, anomaly=True), failed=True)
    return Removal(freed=freed)


def finish_sessions(cursor: Cursor, trash: str, pending: Names, planned: int) -> Removal:
    """Finish the removal that a crash has cut off: what of it is still beside its trash, then the trash.

    planned: the print of what is pending; if it is not that any more, all stays.
    """
    path = cursor.path(trash)
    try:
        found, seen, _st = look(cursor, pending, LockTable(), thorough=True)
        if seen != planned or found.blocked:
            return Removal(blocked=found.blocked or Blocked(path, CHANGED))
        cursor.enter(trash)
        fd = os.dup(cursor.fd)
        cursor.rise(0)
        try:
            for name, _is_dir in pending:
                os.rename(name, name, src_dir_fd=cursor.fd, dst_dir_fd=fd)
        finally:
            os.close(fd)
    except OSError as error:
        return refusal(path, error)
    finally:
        cursor.rise(0)
    return finish_trash(cursor, trash)
