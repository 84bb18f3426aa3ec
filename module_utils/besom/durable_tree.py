# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Durable publication of directories, whole, and the removal of what killed writers left behind.

A tree is filled as .temp-<name>-<16 hex>, locked with flock, brought to the disk and then renamed; where
there is a tree already, the two are exchanged in one step (renameat2(2), RENAME_EXCHANGE).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import sys
import time
from calendar import timegm
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, Callable

from .durable import (
    Retries,
    check_name,
    failed,
    is_inode,
    lock_temp,
    patiently,
    remove_part,
    sync_directory,
    umask,
)
from .errors import BesomError, UsageError
from .locks import FlockUnsupported, LockTable, prove_flock, try_flock
from .mounts import mount_of
from .own_names import ORPHAN, TREE
from .report import Report
from .root import Root, open_directory
from .run import Run
from .tree import SWAP, TRASH, Blocked, Cursor, Removal, finish_trash, measure, remove_tree, walk
from .units import printable
from .walk import components

_OLD = re.compile(r"\.besom-old-(.+)-\d{8}T\d{6}\.\d{6}", re.DOTALL)
AROUND = len(".besom-swap-") + len("-0123456789abcdef-01234567")
_ATTEMPTS = 100

_RENAME_EXCHANGE = 2  # linux/fs.h
# What says that there is no exchange here: an old kernel, a file system without it, a sandbox.
_NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)

# So many files are synced one by one; for more, one syncfs is cheaper than an fsync each.
_FEW = 64
# syncfs tells of what could not be written since Linux 5.8 (syncfs(2)), and on these it waits for the
# disk. On FUSE it may do nothing.
_SYNCFS_SINCE = (5, 8)
_SYNCFS_ON = ("btrfs", "ext3", "ext4", "xfs")


_Patient = Callable[[Callable[[], Any]], Any]


def old_name(name: str, now: int, after: str = "") -> str:
    """The name that a tree gets when another takes its place; now in ns since the epoch.

    after: the newest such name there is. Of a clock that was put back comes a later one all the same, since
    the names tell which version is the oldest.
    """
    made = _stamped(name, now)
    if made > after:
        return made
    stamp, _dot, micro = after[-len("20260228T120000.000000") :].partition(".")
    seconds = timegm(time.strptime(stamp, "%Y%m%dT%H%M%S"))
    return _stamped(name, seconds * 10**9 + (int(micro) + 1) * 1000)


def _stamped(name: str, moment: int) -> str:
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(moment // 10**9))
    return f".besom-old-{name}-{stamp}.{moment % 10**9 // 1000:06}"


def is_old(entry: str, name: str) -> bool:
    """Whether that is the name of an old version of the tree name."""
    match = _OLD.fullmatch(entry)
    return match is not None and match[1] == name


class TreeDraft:
    """A directory that is being filled and that nobody uses yet: fd, open and locked.

    name: the temp's own name in the root; path: where it is to be published, for messages.
    """

    def __init__(self, root: Root, target: str, name: str, fd: int, retries: Retries) -> None:
        self.fd = fd
        self.name = name
        self.path = os.path.join(root.path, target)
        self._root = root
        self._target = target
        self._retries = retries
        self._sealed = self._done = False
        # What is to be removed at the end: the temp, later on the tree that it has replaced.
        self._left = name

    def seal(self, mode: int | None = None, uid: int | None = None, gid: int | None = None) -> None:
        """Bring all of it to the disk, and give the directory its owner and mode (0777 less the umask).

        A failed sync is final: the temp is gone. Raises NoSpace, BesomError.
        """
        self._require_mine()
        try:
            _sync_tree(self._root, self.name, self.fd)
        except OSError as error:
            self.discard()
            raise failed(self.path, "brought to the disk", error) from error
        try:
            # Only now: whoever is given the tree may come in, and the walk is over.
            if uid is not None or gid is not None:
                os.fchown(self.fd, -1 if uid is None else uid, -1 if gid is None else gid)
            os.fchmod(self.fd, 0o777 & ~umask() if mode is None else mode)
        except OSError as error:
            raise failed(self.path, "given its owner and mode", error) from error
        try:
            sync_directory(self.fd, self.path)
        except BesomError:
            self.discard()
            raise
        self._sealed = True

    def commit(
        self,
        aside: str | None = None,
        deadline: float | None = None,
        pause: Callable[[float], None] = time.sleep,
    ) -> bool:
        """Put the tree in its place, durably when this returns; whether it has replaced another.

        The one that it replaces gets the name aside, in the same directory; without that it is removed
        when the draft is closed. Seals it first if that was not done; deadline and pause as in
        `durable.patiently`. To be called under the writer lock. Raises NoSpace, BesomError; then all is
        as it was, unless the sync of the directory is what failed.
        """
        if not self._sealed:
            self.seal()
        self._require_mine()
        if aside is not None:
            check_name(self._root.fd, aside, own=True)
            if _stat(self._root.fd, aside):
                raise BesomError(f"{printable(os.path.join(self._root.path, aside))} is there already.")
        old = _stat(self._root.fd, self._target)
        if old is None:
            patiently(
                lambda: self._rename(self.name, self._target), self.path, self._retries, deadline, pause
            )
            self._left = ""
        elif stat.S_ISDIR(old.st_mode):
            swap = f".besom-swap-{self._target}-{old.st_ino:x}-{os.urandom(4).hex()}"
            self._replace(
                aside, swap, lambda rename: patiently(rename, self.path, self._retries, deadline, pause)
            )
        else:
            raise BesomError(f"{printable(self.path)} is not a directory; move it away, and run this again.")
        self._done = True
        try:
            sync_directory(self._root.fd, self._root.path)
        except BesomError:
            # Who knows which of the two a power cut would leave: neither goes.
            self._left = ""
            raise
        return old is not None

    def _replace(self, aside: str | None, swap: str, patient: _Patient) -> None:
        """Put the temp in the place of the tree that is there, and that one aside.

        Whenever a crash comes between, remove_orphans tells by the name swap which of the two has it.
        """
        if aside is None:
            if not patient(lambda: _exchange(self._root.fd, self.name, self._target)):
                self._swap(None, swap, patient)
            return
        patient(lambda: self._rename(self.name, swap))
        try:
            exchanged = patient(lambda: _exchange(self._root.fd, swap, self._target))
            if exchanged:
                try:
                    patient(lambda: self._rename(swap, aside))
                except BaseException:
                    _exchange(self._root.fd, swap, self._target)
                    raise
            else:
                patient(lambda: self._rename(swap, self.name))
        except BaseException:
            # Whatever failed, the old tree must not be taken for a temp.
            if is_inode(self._root.fd, swap, self.fd):
                self._rename(swap, self.name)
            raise
        if not exchanged:
            self._swap(aside, swap, patient)
        self._left = ""

    def _swap(self, aside: str | None, swap: str, patient: _Patient) -> None:
        """The same in several steps; remove_orphans puts the old tree back if a crash comes between them."""
        patient(lambda: self._rename(self._target, swap))
        try:
            patient(lambda: self._rename(self.name, self._target))
            try:
                if aside is not None:
                    patient(lambda: self._rename(swap, aside))
            except BaseException:
                self._rename(self._target, self.name)
                raise
        except BaseException:
            self._rename(swap, self._target)
            raise
        self._left = swap

    def discard(self) -> None:
        """Remove the temp, unless it is published or the name is another's by now. Raises nothing.

        What cannot be removed is left to remove_orphans, which says why.
        """
        if not self._done:
            self._done = True
            self._remove_left(self.fd)

    def close(self) -> None:
        """Discard it unless it is published, remove what it has replaced, and let go of the lock."""
        if self.fd < 0:
            return
        self.discard()
        with suppress(OSError):
            if self._left:
                old = open_directory(self._left, self._root.fd)
                try:
                    if lock_temp(old):
                        self._remove_left(old)
                finally:
                    os.close(old)
        with suppress(OSError):
            # A child that was forked meanwhile shares the lock; it must not hold it on.
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)
        self.fd = -1

    def _remove_left(self, held: int) -> None:
        if is_inode(self._root.fd, self._left, held):
            with suppress(OSError):
                _remove(Cursor(self._root), self._left, held)
        self._left = ""

    def __enter__(self) -> TreeDraft:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _require_mine(self) -> None:
        if self._done:
            raise BesomError(f"{printable(self.path)} was published or discarded before; begin a new one.")
        if not is_inode(self._root.fd, self.name, self.fd):
            raise BesomError(
                f"{printable(self.path)} is not published: somebody has moved or removed its temp; "
                "run this again."
            )

    def _rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._root.fd, dst_dir_fd=self._root.fd)


@contextmanager
def tree_draft(root: Root, name: str, retries: Retries | None = None) -> Iterator[TreeDraft]:
    """A new draft of the directory name in root, to be filled through its fd; discarded unless committed.

    It has mode 0700 until it is sealed. Where flock is refused it is not locked, and nobody removes it
    as an orphan either. Raises UsageError for a name that is none, NoSpace, BesomError.
    """
    check_name(root.fd, name, AROUND)
    temp, fd = _new_temp(root, os.path.join(root.path, name), name)
    with TreeDraft(root, name, temp, fd, Retries() if retries is None else retries) as one:
        yield one


def _new_temp(root: Root, path: str, name: str) -> tuple[str, int]:
    """The name of a new temp and a descriptor of it, locked."""
    for _attempt in range(_ATTEMPTS):
        temp = f".temp-{name}-{os.urandom(8).hex()}"
        try:
            os.mkdir(temp, 0o700, dir_fd=root.fd)
        except OSError as error:
            raise failed(path, "written", error) from error
        fd = -1
        try:
            fd = open_directory(temp, root.fd)
            # For an instant it was an orphan: whoever took it for one holds it, or has removed it.
            if lock_temp(fd) and is_inode(root.fd, temp, fd):
                return temp, fd
        except FileNotFoundError:
            continue
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            with suppress(OSError):
                os.rmdir(temp, dir_fd=root.fd)
            raise failed(path, "written", error) from error
        os.close(fd)
    raise BesomError(f"{printable(path)} cannot be written: its temps are removed as soon as they are made.")


def remove_orphans(
    root: Root, run: Run, directories: Iterable[str] = (), spare: Collection[str] = ()
) -> Report:
    """Remove the temps of besom's own naming whose writers are dead, however young; or say what would go.

    It looks into root and those directories (relative to it) that are there. spare: temps to leave
    alone, as paths relative to root (those that a download is to go on with). A replacement that a crash
    has cut is put right: the old tree gets its name back, if nothing has it, or becomes an old version;
    trash is finished. To be called under the writer lock.
    """
    began = time.monotonic()
    report, cursor, table = Report("hygiene", root.path, dry_run=run.dry_run), Cursor(root), LockTable()
    for directory in dict.fromkeys(["", *directories]):
        if ".." in components(directory):
            raise UsageError(
                f"{printable(directory)} leads out of {printable(root.path)}; leave out the `..`."
            )
        try:
            for part in components(directory)[::-1]:
                cursor.enter(part)
            names = _temps_in(cursor.fd)
        except OSError as error:
            names = []
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                report.kept.add(cursor.path(), f"not looked through: {error.strerror}")
        depth = cursor.depth
        for name, is_dir in names:
            if run.shutdown.requested:
                report.interrupted = True
                break
            if os.path.join(directory, name) in spare:
                continue
            try:
                _tidy(cursor, name, is_dir, table, report, run.now())
            except FileNotFoundError:
                continue
            except OSError as error:
                report.failures.add(cursor.path(name), f"cannot be removed: {error.strerror}")
            finally:
                cursor.rise(depth)
        cursor.rise(0)
    report.duration_s = time.monotonic() - began
    return report


def _temps_in(fd: int) -> list[tuple[str, bool]]:
    """The names that besom gives its temps, and whether each is a directory, sorted."""
    # Opened anew: btrfs lists a directory as it was when it was opened.
    fresh = open_directory(".", fd)
    try:
        with os.scandir(fresh) as entries:
            names = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    finally:
        os.close(fresh)
    return [
        (name, is_dir)
        for name, is_dir in names
        if any(kind.fullmatch(name) for kind in ((TREE, TRASH, SWAP) if is_dir else (ORPHAN,)))
    ]


def _tidy(cursor: Cursor, name: str, is_dir: bool, table: LockTable, report: Report, now: int) -> None:
    """Remove one temp, if it is an orphan, or name what a replacement has left, and note it.

    Raises OSError.
    """
    path, swap = cursor.path(name), SWAP.fullmatch(name)
    if swap and (done := _meant(cursor, name, swap[1], int(swap[2], 16), now)):
        better, reason, said = done
        if not better:
            report.anomalies.add(path, reason)
            return
        report.planned.add(1, 0)
        report.victims.add(path, reason, kind="tree", bytes=0)
        if not report.dry_run:
            os.rename(name, better, src_dir_fd=cursor.fd, dst_dir_fd=cursor.fd)
            os.fsync(cursor.fd)
            report.removed.add(1, 0)
            report.warnings.append(
                f"The replacement of {printable(cursor.path(swap[1]))} was cut off; {said}."
            )
        return
    would = (_look_at_tree if is_dir else _look_at_file)(cursor, name, table)
    if would.blocked:
        _note(would, would.blocked, report)
        return
    report.planned.add(1, would.freed)
    report.victims.add(path, "left by a killed writer", kind="tree" if is_dir else "file", bytes=would.freed)
    if report.dry_run:
        return
    removal = (_remove_tree if is_dir else _remove_file)(cursor, name)
    if removal.blocked:
        report.victims.discard(path)
        _note(removal, removal.blocked, report)
    else:
        report.removed.add(1, removal.freed)


def _meant(cursor: Cursor, name: str, target: str, inode: int, now: int) -> tuple[str, str, str] | None:
    """What the tree that a cut replacement of target left as name is to be called, why, and in words.

    No new name where nobody can tell; None for the new tree that was never put in its place.
    """
    there, here = _stat(cursor.fd, target), os.stat(name, dir_fd=cursor.fd, follow_symlinks=False)
    if there is None:
        return target, "goes back: its replacement was cut off", "the old one is back"
    if here.st_ino == inode:
        old = old_name(target, now)
        return (
            old,
            "becomes an old version: it was replaced",
            f"the new one is there, the old one is {printable(old)}",
        )
    if there.st_ino == inode:
        return None
    # Some file systems number anew at each mount.
    return (
        "",
        f"may be an old version of {printable(target)}, or a new one; look, and remove or rename it",
        "",
    )


def _note(removal: Removal, blocked: Blocked, report: Report) -> None:
    noted = report.failures if removal.failed else report.anomalies if blocked.anomaly else report.kept
    noted.add(blocked.path, blocked.reason)


def _look_at_tree(cursor: Cursor, name: str, table: LockTable) -> Removal:
    """What its removal would come to, as far as that can be seen without a lock."""
    cursor.enter(name)
    found = measure(cursor, table)
    cursor.rise(cursor.depth - 1)
    return Removal(found.freed, found.blocked)


def _look_at_file(cursor: Cursor, name: str, table: LockTable) -> Removal:
    st = os.stat(name, dir_fd=cursor.fd, follow_symlinks=False)
    if not stat.S_ISREG(st.st_mode):
        return Removal(blocked=Blocked(cursor.path(name), "is neither a directory nor a regular file"))
    holder = table.holder(st.st_dev, st.st_ino)
    if holder:
        return Removal(blocked=Blocked(cursor.path(name), f"in use: locked by {holder}"))
    return Removal(st.st_blocks * 512 if st.st_nlink == 1 else 0)


def _remove_file(cursor: Cursor, name: str) -> Removal:
    freed = remove_part(cursor.fd, name)
    return _unknown(cursor, name) if freed is None else Removal(freed)


def _remove_tree(cursor: Cursor, name: str) -> Removal:
    if TRASH.fullmatch(name):
        return finish_trash(cursor, name)
    fd = open_directory(name, cursor.fd)
    try:
        if try_flock(fd):
            prove_flock(fd)
            return _remove(cursor, name, fd)
    except FlockUnsupported:
        pass
    finally:
        os.close(fd)
    return _unknown(cursor, name)


def _unknown(cursor: Cursor, name: str) -> Removal:
    return Removal(blocked=Blocked(cursor.path(name), "in use, as far as locks can tell here"))


def _remove(cursor: Cursor, name: str, held: int) -> Removal:
    """Remove the directory name, whose lock (if there are locks) the descriptor held has. Raises OSError."""
    cursor.enter(name)
    found = measure(cursor, LockTable(b""))
    cursor.rise(cursor.depth - 1)
    return remove_tree(cursor, name, found.identity, held)


def _stat(directory_fd: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _sync_tree(root: Root, name: str, fd: int) -> None:
    """Bring the tree name, open as fd since before it was filled, to the disk. Raises OSError."""
    cursor, files = Cursor(root), 0
    few = _FEW if _syncfs_is_sound(fd) else sys.maxsize

    def scan() -> list[str]:
        nonlocal files
        subdirs = []
        with os.scandir(cursor.fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    subdirs.append(entry.name)
                elif entry.is_file(follow_symlinks=False):
                    files += 1
                    if files > few:
                        return []
                    _sync_file(entry.name, cursor.fd)
        os.fsync(cursor.fd)
        return subdirs

    def refused(_name: str, error: OSError) -> None:
        raise error

    try:
        cursor.enter(name)
        walk(cursor, scan, refused=refused)
    finally:
        cursor.rise(0)
    if files > few:
        # Errors since fd was opened are told, so those of all the tree's files.
        _call("syncfs", fd)


def _sync_file(name: str, directory_fd: int) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _syncfs_is_sound(fd: int) -> bool:
    """Whether one syncfs stands for an fsync of each file: see _SYNCFS_SINCE."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    if not release or (int(release[1]), int(release[2])) < _SYNCFS_SINCE or not hasattr(_libc(), "syncfs"):
        return False
    mount = mount_of(fd)
    return mount is not None and mount.fstype in _SYNCFS_ON


def _exchange(directory_fd: int, one: str, other: str) -> bool:
    """Exchange two names of a directory in one step; False where that does not exist. Raises OSError."""
    try:
        _call("renameat2", directory_fd, os.fsencode(one), directory_fd, os.fsencode(other), _RENAME_EXCHANGE)
    except OSError as error:
        if error.errno in _NO_EXCHANGE:
            return False
        raise
    return True


def _call(function: str, *arguments: int | bytes) -> None:
    """Call what Python has no name for. Raises OSError, ENOSYS where the C library has none either."""
    call = getattr(_libc(), function, None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(*arguments):
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@cache
def _libc() -> Any:
    """The C library, or None: a Python may have no ctypes."""
    try:
        import ctypes

        return ctypes.CDLL(None, use_errno=True)
    except (ImportError, OSError):
        return None
