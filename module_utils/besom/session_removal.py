# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing a session whole: its metadata goes into a trash first, then its blobs; only then anything is gone.

Whoever lists the store sees a session with its metadata and all blobs, or none of its metadata. What a
crash leaves is told from sessions by the metadata in the trash: see sessions.py.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from typing import Callable

from .entry_removal import EntryHand, EntryRemover, Row
from .inventory import OLDEST, Inventory, Pending
from .locks import LockTable
from .root import Root
from .run import Run
from .sessions import JSON, PUT_BACK, is_ours, look, names_of, parts_now
from .shutdown import Shutdown
from .tree import CHANGED, Blocked, Cursor, Removal, empty, hold, in_range, put_back, refusal
from .units import printable
from .workers import shared_numbers

_FULL = (errno.ENOSPC, errno.EDQUOT)
# So many directories of a session are held by flock; of the others /proc/locks tells who holds them.
_HELD = 64
# Sessions at a time: one at a time is moved aside, so of more some would but wait for that.
_MOST = 4
Names = Sequence[tuple[str, bool]]
# Device and inode, of a file mtime (ns) and size as well; nothing where there is none.
Ident = tuple[int, ...]


class SessionRemover(EntryRemover):
    """Removes sessions whole. lru: one that was used since counts as changed."""

    def __init__(
        self, found: Inventory, lru: bool, listed: Collection[str], run: Run, total: Callable[[], int]
    ) -> None:
        super().__init__(found, listed, run, total, min(run.effort.workers, _MOST))
        self.lru, self.listing = lru, _Listing(found.listed)

    def work_of(self, row: Row) -> int:
        # Each name is looked at, moved, verified and removed.
        return 4 * (row.name.count("/") + 1)

    def hire(self, done: memoryview[int], shutdown: Shutdown, parent: int) -> EntryHand:
        return _Hand(self, done, shutdown, parent)


class _Listing:
    """The names in a store: those that were read, until anybody but this run changes any; then those now.

    All of it is for who has the turn of the remover.
    """

    def __init__(self, listed: int) -> None:
        """listed: the mtime (ns) of the store's directory when it was read."""
        # For all processes: that of the last listing, and how many there were after the reading.
        self._known = shared_numbers(2)
        self._known[0] = in_range(listed)
        self._listings, self._parts = 0, dict[str, list[str]]()

    def differ(self, cursor: Cursor, id_: str, parts: Sequence[str]) -> bool:
        """Whether a session in the store that cursor stands in has other names by now than were read."""
        now, known = _mtime(cursor), self._known
        if now != known[0]:
            # In this order, so that who is killed in between hides nothing.
            known[1] += 1
            known[0] = now
        if self._listings != known[1]:
            self._parts, self._listings = parts_now(cursor), known[1]
        return self._listings > 0 and sorted(self._parts.get(id_, ())) != sorted(parts)

    def stands(self, cursor: Cursor) -> bool:
        """Whether nobody but this run has changed the store since it was asked whether names differ."""
        return self._known[0] == _mtime(cursor)

    def forget(self) -> None:
        """List them anew the next time."""
        self._known[0] = OLDEST

    def changed(self, cursor: Cursor) -> None:
        """It was this run that has changed some."""
        self._known[0] = _mtime(cursor)


def _mtime(cursor: Cursor) -> int:
    return in_range(os.fstat(cursor.fd).st_mtime_ns)


class _Hand(EntryHand):
    """Removes sessions through one trash."""

    def __init__(
        self, remover: SessionRemover, done: memoryview[int], shutdown: Shutdown, parent: int
    ) -> None:
        super().__init__(remover, done, shutdown, parent)
        self._lru, self._listing, self._turn = remover.lru, remover.listing, remover.turn
        self._trash = ""
        self._lock = -1

    def remove(self, row: Row) -> Removal:
        id_, *parts = row.name.split("/")
        names, cursor = names_of(id_, parts), self.cursor
        path = cursor.path(id_)
        try:
            with ExitStack() as stack:
                for name in [name for name, is_dir in names if is_dir][:_HELD]:
                    self._hold(stack, name)
                idents = _identify(cursor, names)
                found, seen, _st = look(cursor, names, LockTable(), thorough=True)
                if seen != row.size or (self._lru and found.used > row.key):
                    return Removal(blocked=Blocked(path, CHANGED))
                with self._turn:
                    if self._listing.differ(cursor, id_, parts):
                        return Removal(blocked=Blocked(path, CHANGED))
                    if found.blocked:
                        return Removal(blocked=found.blocked)
                    moved = self._move(names)
                whole = len(moved) == len(names)
                if not whole and self._back_if_changed(moved, names, idents):
                    return Removal(blocked=Blocked(path, CHANGED))
                if not moved:
                    # On a full disk one blob goes where it is; that may make room for the trash.
                    removal = _remove_names(cursor, names[-1:], path, found.freed, idents)
                    if removal.blocked:
                        return removal
                    names = names[:-1]
                    with self._turn:
                        moved = self._move(names)
                    if self._back_if_changed(moved, names, idents):
                        return Removal(blocked=Blocked(path, CHANGED))
                if not whole:
                    # What the disk had no room for in the trash goes where it is, the metadata last.
                    removal = _remove_names(cursor, names[len(moved) :], path, found.freed, idents)
                    if removal.blocked or not moved:
                        self.close()
                        return removal
                    try:
                        self._enter()
                    except OSError:
                        self.close()
                        raise
                else:
                    blocked = self._verify(moved, row.size, path)
                    if blocked:
                        return Removal(blocked=blocked)
                removal = _remove_names(cursor, moved, path, found.freed)
                cursor.rise(0)
                if removal.blocked:
                    # What is left is for the next run to finish, and not for the sessions that follow.
                    self.close()
                return removal
        except OSError as error:
            return refusal(path, error)
        finally:
            cursor.rise(0)

    def close(self) -> None:
        """Remove the trash, if nothing is left in it."""
        super().close()
        if self._trash:
            with self._turn, suppress(OSError):
                known = self._listing.stands(self.cursor)
                os.rmdir(self._trash, dir_fd=self.cursor.fd)
                if known:
                    self._listing.changed(self.cursor)
            self._trash = ""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _hold(self, stack: ExitStack, name: str) -> None:
        """Hold flock on directory name as long as the stack lasts. Raises OSError when another does."""
        self.cursor.enter(name)
        stack.callback(os.close, hold(self.cursor))
        self.cursor.rise(0)

    def _move(self, names: Names) -> Names:
        """Move names into the trash; returns those that the disk had room for there. Raises OSError."""
        cursor = self.cursor
        known = self._listing.stands(cursor)
        self._listing.forget()
        if self._lock >= 0 and not os.fstat(self._lock).st_nlink:
            self.close()  # somebody cleans up empty directories
        for count, (name, _is_dir) in enumerate(names):
            try:
                if not self._trash:
                    self._make_trash()
                os.rename(name, name, src_dir_fd=cursor.fd, dst_dir_fd=self._lock)
            except OSError as error:
                if error.errno in _FULL:
                    return names[:count]
                self._put_back(names[:count])
                raise
        if known:
            self._listing.changed(cursor)
        return names

    def _back_if_changed(self, moved: Names, names: Names, idents: dict[str, Ident]) -> bool:
        """Put moved back if a name, of these in the trash or those beside it, is not what it was."""
        left = names[len(moved) :]
        if not _changed(self._lock, moved, idents) and not _changed(self.cursor.fd, left, idents):
            return False
        self._put_back(moved)
        self.close()
        return True

    def _verify(self, names: Names, planned: int, path: str) -> Blocked | None:
        """Enter the trash that names are in, and stay there; or put them back and say why. Raises OSError."""
        cursor = self.cursor
        try:
            self._enter()
            found, seen, _st = look(cursor, names, LockTable())
            if seen == planned and not found.blocked:
                return None
            cursor.rise(0)
            self._put_back(names)
            return found.blocked or Blocked(path, CHANGED)
        except OSError:
            cursor.rise(0)
            self._put_back(names)
            self.close()
            raise

    def _enter(self) -> None:
        """Step into the trash. Raises OSError when another directory has its name by now."""
        self.cursor.enter(self._trash)
        st = os.fstat(self._lock)
        if self.cursor.ident != (st.st_dev, st.st_ino):
            raise OSError(errno.ESTALE, "its trash was replaced")

    def _make_trash(self) -> None:
        cursor, name = self.cursor, f".besom-trash-{os.urandom(8).hex()}-sessions"
        os.mkdir(name, 0o700, dir_fd=cursor.fd)
        try:
            cursor.enter(name)
            try:
                # Where flock does not work, nobody else can take it for trash left by a crash either.
                self._lock = hold(cursor)
            except OSError:
                self._lock = os.dup(cursor.fd)
            self._trash = name
        except OSError:
            cursor.rise(0)
            with suppress(OSError):
                os.rmdir(name, dir_fd=cursor.fd)
            raise
        finally:
            cursor.rise(0)

    def _put_back(self, names: Names) -> None:
        """Move names back out of the trash. Raises OSError for what cannot be."""
        trash = self._trash
        try:
            with self._turn:
                restore(self._lock, self.cursor.fd, names)
        except OSError as error:
            self.close()  # the next session is not to lie beside what stays
            raise OSError(error.errno, f"{error.strerror}; some of it is still in {trash}") from error


def restore(source: int, target: int, names: Iterable[tuple[str, bool]]) -> None:
    """Move names from directory source to target, the metadata last and only if nothing else is left.

    Nothing there is replaced. Raises the first OSError at the end.
    """
    failed: OSError | None = None
    for name, is_dir in sorted(names, key=lambda one: one[0].endswith(JSON)):
        if failed and name.endswith(JSON):
            break
        try:
            put_back(source, name, target, name, is_dir)
        except FileNotFoundError:
            pass
        except OSError as error:
            failed = failed or error
    if failed:
        raise failed


def _identify(cursor: Cursor, names: Names) -> dict[str, Ident]:
    """What each of the names in the directory that cursor stands in is; a mount is not looked at."""
    return {
        name: () if name in cursor.mounted and cursor.is_mount(name) else _ident(name, is_dir, cursor.fd)
        for name, is_dir in names
    }


def _ident(name: str, is_dir: bool, fd: int) -> Ident:
    try:
        st = os.lstat(name, dir_fd=fd)
    except FileNotFoundError:
        return ()
    return (st.st_dev, st.st_ino) if is_dir else (st.st_dev, st.st_ino, st.st_mtime_ns, st.st_size)


def _changed(fd: int, names: Names, idents: dict[str, Ident]) -> bool:
    """Whether any of the names in directory fd is not what it was."""
    return any(_ident(name, is_dir, fd) != idents[name] for name, is_dir in names)


def _remove_names(
    cursor: Cursor, names: Names, path: str, freed: int, idents: dict[str, Ident] | None = None
) -> Removal:
    """Remove names from the directory that cursor stands in, the metadata last.

    idents: what they were, where they are in no trash; what is anything else by now stays.
    """
    unfinished = "trash that cannot be finished" if idents is None else "its removal cannot be finished"
    for name, is_dir in reversed(names):
        try:
            was = idents[name] if idents is not None else ()
            if idents is not None and _ident(name, is_dir, cursor.fd) != was:
                raise OSError(errno.ESTALE, "was replaced")
            if is_dir:
                removal = empty(cursor, name, path, 0, (was[0], was[1]) if was else None)
                if removal.blocked:
                    return removal
            else:
                os.unlink(name, dir_fd=cursor.fd)
        except FileNotFoundError:
            pass
        except OSError as error:
            reason = f"{unfinished}: {printable(name)}: {error.strerror}"
            return Removal(blocked=Blocked(path, reason, anomaly=True), failed=True)
    return Removal(freed=freed)


def finish_sessions(root: Root, cursor: Cursor, trash: str, pending: Pending) -> Removal:
    """Finish the removal that a crash has cut off: what of it is still beside its trash, then the trash.

    If anything newer is beside it, or comes meanwhile, all is put back instead. If what is pending is
    otherwise not what it was, all stays.
    """
    path = cursor.path(trash)
    lock = -1
    try:
        cursor.enter(trash)
        lock, ident = hold(cursor), cursor.ident
        cursor.rise(0)
        if not is_ours(root, lock):
            return Removal(blocked=Blocked(path, CHANGED))
        idents = _identify(cursor, pending.names)
        found, seen, _st = look(cursor, pending.names, LockTable(), thorough=True)
        if pending.back or found.changed >= pending.moment or _anew(cursor, pending):
            return _undo(cursor, trash, lock)
        inside, _seen, _st = look(cursor, [(trash, True)], LockTable())
        found.merge(inside)
        if seen != pending.print or found.blocked:
            return Removal(blocked=found.blocked or Blocked(path, CHANGED))
        left: Names = ()
        for count, (name, _is_dir) in enumerate(pending.names):
            try:
                os.rename(name, name, src_dir_fd=cursor.fd, dst_dir_fd=lock)
            except OSError as error:
                if error.errno not in _FULL:
                    raise
                left = pending.names[count:]
                break
        if _anew(cursor, pending) or _changed(cursor.fd, left, idents):
            return _undo(cursor, trash, lock)
        removal = _remove_names(cursor, left, path, found.freed, idents)
        return removal if removal.blocked else empty(cursor, trash, path, found.freed, ident)
    except OSError as error:
        return refusal(path, error)
    finally:
        if lock >= 0:
            os.close(lock)
        cursor.rise(0)


def _anew(cursor: Cursor, pending: Pending) -> bool:
    """Whether new metadata of what is pending has appeared."""
    for id_ in pending.ids:
        with suppress(FileNotFoundError):
            os.lstat(id_ + JSON, dir_fd=cursor.fd)
            return True
    return False


def _undo(cursor: Cursor, trash: str, fd: int) -> Removal:
    """Put back all that is in the trash open as fd. Raises OSError."""
    os.lseek(fd, 0, os.SEEK_SET)
    with os.scandir(fd) as entries:
        names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    restore(fd, cursor.fd, names)
    with suppress(OSError):
        os.rmdir(trash, dir_fd=cursor.fd)
    return Removal(blocked=Blocked(cursor.path(trash), PUT_BACK))
