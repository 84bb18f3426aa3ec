# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Walking, measuring and removing trees as root in directories that others can write.

Every step is relative to an open directory and never follows a symlink (CVE-2017-18925,
CVE-2022-21658); walks are iterative, so no depth overflows anything (CVE-2021-3997), with a bounded
number of open descriptors; no other mount is entered, or touched where that could hang.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Callable

from .locks import FlockUnsupported, LockTable, holder_of, try_flock
from .mounts import mnt_id, names_mounted_on
from .root import Root, open_directory
from .units import printable

# By inode (device, number) with several links: [names of it in a tree, links in all, bytes].
Shared = dict[tuple[int, int], list[int]]

TRASH = re.compile(r"\.besom-trash-[0-9a-f]{16}")
# What is in one of these, and what is still beside it, is one removal: only sessions.py can tell.
SESSIONS_TRASH = re.compile(r"\.besom-trash-[0-9a-f]{16}-sessions")
FOR_SESSIONS = "the trash of a prune of sessions; prune this store with layout sessions to finish it"
# A tree that is replaced, or the one that replaces it, on its way; the first digits are the inode of the
# old one, which tells the two from each other after a crash.
SWAP = re.compile(r"\.besom-swap-(.+)-([0-9a-f]{1,16})-[0-9a-f]{8}", re.DOTALL)
CHANGED = "changed_since_plan"

# linux/fs.h; the value of _IOR('f', 1, long) where long has 64 bits, and where it has 32.
_FS_IOC_GETFLAGS = 0x80086601 if array.array("l").itemsize == 8 else 0x80046601
_IMMUTABLE, _APPEND = 0x10, 0x20
_CAP_FOWNER = 1 << 3  # linux/capability.h
_OPEN_AT_ONCE = 16
_RESCANS = 3


# Times in ns as columns of 64 bits hold them, with a value to spare at both ends: 1677 to 2262.
EARLIEST, LATEST = -(2**63) + 1, 2**63 - 2


def in_range(ns: int) -> int:
    """A time, or the nearest that a table can hold; file systems go further, and anybody may set one."""
    return min(max(ns, EARLIEST), LATEST)


class MountPoint(OSError):
    """The name is a mount point: never entered, never removed."""


class Moved(OSError):
    """A directory was moved away during the walk; the cursor stands at the nearest ancestor still open."""


@dataclass
class _Frame:
    name: str
    fd: int
    ident: tuple[int, int]


class Cursor:
    """A place in the tree below root, held as open descriptors: the root's and the last sixteen.

    A parent whose descriptor was closed is found again by `..`, and only if it is the same inode.
    """

    def __init__(self, root: Root) -> None:
        self._root = root
        # btrfs lists a directory as it was when it was opened or rewound, not as it is.
        os.lseek(root.fd, 0, os.SEEK_SET)
        self._frames = [_Frame("", root.fd, root.ident)]
        # Files can be mount points too; those names are looked at with O_PATH before any stat.
        self.mounted = names_mounted_on(root.mnt_id)

    @property
    def fd(self) -> int:
        return self._frames[-1].fd

    @property
    def ident(self) -> tuple[int, int]:
        return self._frames[-1].ident

    @property
    def way(self) -> list[tuple[int, int]]:
        """Device and inode of each directory from just below the root down to this one."""
        return [frame.ident for frame in self._frames[1:]]

    @property
    def depth(self) -> int:
        return len(self._frames) - 1

    @property
    def name(self) -> str:
        return self._frames[-1].name

    def path(self, name: str = "") -> str:
        """Where name would be, from the root's own path on."""
        parts = [frame.name for frame in self._frames[1:]]
        return os.path.join(self._root.path, *parts, *([name] if name else []))

    def enter(self, name: str) -> None:
        """Step into directory name. Raises MountPoint, or OSError (ELOOP and ENOTDIR for what is none)."""
        step = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            if mnt_id(step) != self._root.mnt_id:
                raise MountPoint(errno.EXDEV, "is a mount point", name)
            fd = open_directory(".", step)
        finally:
            os.close(step)
        st = os.fstat(fd)
        self._frames.append(_Frame(name, fd, (st.st_dev, st.st_ino)))
        spare = len(self._frames) - 1 - _OPEN_AT_ONCE
        if spare > 0:
            self._close(self._frames[spare])

    def leave(self) -> str:
        """Step back to the parent; returns the name that was left. Raises Moved."""
        child = self._frames.pop()
        parent = self._frames[-1]
        try:
            if parent.fd < 0 and not self._reopen(parent, child.fd):
                while self.fd < 0:
                    self._frames.pop()
                raise Moved(errno.ESTALE, "was moved away during the walk", child.name)
        finally:
            self._close(child)
        return child.name

    def rise(self, depth: int) -> None:
        """Leave until the cursor stands no deeper than depth."""
        while self.depth > depth:
            with suppress(Moved):
                self.leave()

    def is_mount(self, name: str) -> bool:
        """Whether name, directory or file, is a mount point; False when it is gone."""
        try:
            step = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError:
            return False
        try:
            return mnt_id(step) != self._root.mnt_id
        finally:
            os.close(step)

    def _reopen(self, parent: _Frame, child: int) -> bool:
        try:
            fd = open_directory("..", child)
        except OSError:
            return False
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != parent.ident or mnt_id(fd) != self._root.mnt_id:
            os.close(fd)
            return False
        parent.fd = fd
        return True

    def _close(self, frame: _Frame) -> None:
        if frame.fd >= 0 and frame.fd != self._root.fd:
            os.close(frame.fd)
            frame.fd = -1


def walk(
    cursor: Cursor,
    scan: Callable[[], list[str]],
    left: Callable[[str], None] = lambda name: None,
    refused: Callable[[str, OSError], None] = lambda name, error: None,
) -> None:
    """Walk depth first from where cursor stands, and come back to it.

    scan() reads the directory that cursor stands in and returns the subdirectories to enter, last one
    first; left(name) is called in the parent after each; refused(name, error) for each that could not
    be entered (MountPoint, Moved or another OSError).
    """
    start = cursor.depth
    todo = [scan()]
    while todo:
        if todo[-1]:
            name = todo[-1].pop()
            try:
                cursor.enter(name)
            except OSError as error:
                refused(name, error)
                continue
            try:
                todo.append(scan())
            except OSError as error:
                refused("", error)
                todo.append([])
        else:
            todo.pop()
            if not todo:
                return
            try:
                left(cursor.leave())
            except Moved as error:
                refused(str(error.filename), error)
                del todo[max(cursor.depth - start, 0) + 1 :]
                if cursor.depth < start:
                    raise


def flags_forbid(fd: int) -> str:
    """Why the attributes of what is open (chattr(1)) forbid its removal; empty if they do not."""
    try:
        raw = fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8))
    except OSError:
        return ""  # this file system has no such attributes
    flags = int.from_bytes(raw[:4], "little") | int.from_bytes(raw[4:], "little")
    if flags & _IMMUTABLE:
        return "immutable"
    return "append-only" if flags & _APPEND else ""


def file_forbids(name: str, dir_fd: int) -> str:
    """The same for a regular file, which is opened only for that; empty when it cannot be opened."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return ""
    try:
        return flags_forbid(fd)
    finally:
        os.close(fd)


def is_directory(name: str, dir_fd: int) -> bool:
    """Whether a name is a directory, without asking a file system that may hang. Raises OSError."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(name, flags, dir_fd=dir_fd))
    try:
        os.close(os.open(name, flags | os.O_DIRECTORY, dir_fd=dir_fd))
    except NotADirectoryError:
        return False
    return True


def can_write(fd: int) -> bool:
    """Whether this process may remove names from an open directory, as far as modes and mounts tell."""
    return os.access(".", os.W_OK | os.X_OK, dir_fd=fd, effective_ids=True)


def sticky_forbids(directory: os.stat_result, st: os.stat_result) -> bool:
    """Whether a sticky directory keeps this user from removing the file with st (inode(7))."""
    uid = os.geteuid()
    return (
        bool(directory.st_mode & stat.S_ISVTX)
        and uid not in (directory.st_uid, st.st_uid)
        and not (uid == 0 and _has_fowner(os.getpid()))
    )


@lru_cache(maxsize=1)
def _has_fowner(_pid: int) -> bool:
    """Whether this process has CAP_FOWNER, which root in a container may lack (capabilities(7))."""
    try:
        with open("/proc/self/status", "rb") as stream:
            match = re.search(rb"^CapEff:\s*([0-9a-f]+)", stream.read(), re.MULTILINE)
    except OSError:
        match = None
    return match is None or bool(int(match[1], 16) & _CAP_FOWNER)


@dataclass(frozen=True)
class Blocked:
    """Why an entry stays. anomaly: somebody has to look at it; else it is in use, or a mount."""

    path: str
    reason: str
    anomaly: bool = False


@dataclass
class Sums:
    """What one directory comes to, without those below it.

    usage: bytes of the inodes with one link; entries; oldest, newest: keys (ns); low, high: the inode
    numbers of all that was looked at, its own among them; shared: device, inode and bytes of each name of
    an inode with several links; strange: something is on another device; refused: why something could not be
    looked at; settled: all this stays as long as mtime and ctime of the directory do, but for locks.
    """

    own: os.stat_result
    usage: int = 0
    entries: int = 0
    oldest: int = LATEST + 1
    newest: int = EARLIEST - 1
    low: int = 0
    high: int = 0
    shared: list[tuple[int, int, int]] = field(default_factory=list)
    strange: bool = False
    refused: OSError | None = None
    settled: bool = False


@dataclass
class Measure:
    """A tree as one walk found it, its own directory included.

    newest is the newest mtime, used the newest mtime or file atime, and changed the newest ctime
    anywhere, in ns; count the inodes seen by name; bytes the allocated bytes, each inode once; freed
    what its removal gives back; shared maps each inode with other links to [names inside, links, bytes].
    blocked says why the tree cannot go whole, the first reason found.
    """

    newest: int = EARLIEST
    used: int = EARLIEST
    changed: int = EARLIEST
    count: int = 0
    bytes: int = 0
    freed: int = 0
    inode: int = 0
    device: int = 0
    shared: Shared = field(default_factory=dict)
    blocked: Blocked | None = None

    @property
    def identity(self) -> tuple[int, int]:
        return (self.newest, self.count)

    def block(self, path: str, reason: str, anomaly: bool = True) -> None:
        """Note why it cannot go; the first reason stands."""
        self.blocked = self.blocked or Blocked(path, reason, anomaly)

    def add(self, st: os.stat_result, is_dir: bool = False, read: bool = True) -> None:
        """Count one inode by one of its names; read: its atime tells of use, unless it is a directory."""
        self.count += 1
        self.newest = max(self.newest, in_range(st.st_mtime_ns))
        self.changed = max(self.changed, in_range(st.st_ctime_ns))
        used = st.st_mtime_ns if is_dir or not read else max(st.st_mtime_ns, st.st_atime_ns)
        self.used = max(self.used, in_range(used))
        size = st.st_blocks * 512
        if st.st_nlink > 1 and not is_dir:
            self._add_link((st.st_dev, st.st_ino), 1, st.st_nlink, size)
        else:
            self.bytes += size
            self.freed += size

    def merge(self, other: Measure) -> None:
        """Count what another measure, of other names, has counted."""
        self.count += other.count
        self.newest, self.used = max(self.newest, other.newest), max(self.used, other.used)
        self.changed = max(self.changed, other.changed)
        self.bytes, self.freed = self.bytes + other.bytes, self.freed + other.freed
        self.blocked = self.blocked or other.blocked
        for ident, (names, links, size) in other.shared.items():
            # Counted anew, with the names that are here.
            self.bytes -= size
            self.freed -= size if names >= links else 0
            self._add_link(ident, names, links, size)

    def _add_link(self, ident: tuple[int, int], names: int, links: int, size: int) -> None:
        link = self.shared.setdefault(ident, [0, links, size])
        self.bytes += 0 if link[0] else size
        self.freed += size if link[0] < link[1] <= link[0] + names else 0
        link[0] += names


def measure(
    cursor: Cursor,
    table: LockTable,
    thorough: bool = False,
    note: Callable[[Cursor, Sums], None] | None = None,
) -> Measure:
    """Measure the tree that cursor stands in, and look through it for what forbids its removal.

    table names what is locked. thorough also opens each file to see its immutable and append-only
    attributes. note is told of each directory that was read. Never raises for what it finds inside: that is
    in blocked.
    """
    found = Measure()

    def block(name: str, reason: str, anomaly: bool = True) -> None:
        found.block(cursor.path(name), reason, anomaly)

    def count(name: str, st: os.stat_result, is_dir: bool) -> None:
        found.add(st, is_dir)
        if st.st_ino in table.inodes:
            holder = table.holder(st.st_dev, st.st_ino)
            if holder:
                block(name, f"in use: locked by {holder}", anomaly=False)

    def scan() -> list[str]:
        fd = cursor.fd
        own = os.fstat(fd)
        if not found.count:
            found.device, found.inode = own.st_dev, own.st_ino
        count("", own, True)
        flags = flags_forbid(fd)
        if flags:
            block("", f"is {flags}")
        writable = can_write(fd)
        subdirs = []
        sums = Sums(own, low=own.st_ino, high=own.st_ino, settled=True)
        with os.scandir(fd) as entries:
            for entry in entries:
                name = entry.name
                if not writable:
                    block("", "cannot be written")
                # d_type answers this without touching what may be a mount.
                if entry.is_dir(follow_symlinks=False):
                    subdirs.append(name)
                    continue
                if name in cursor.mounted and cursor.is_mount(name):
                    block(name, "is a mount point", anomaly=False)
                    continue
                try:
                    st = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                count(name, st, False)
                sums.low, sums.high = min(sums.low, st.st_ino), max(sums.high, st.st_ino)
                if sticky_forbids(own, st):
                    block(name, "belongs to another user, in a sticky directory")
                if thorough and stat.S_ISREG(st.st_mode):
                    forbids = file_forbids(name, fd)
                    if forbids:
                        block(name, f"is {forbids}")
        if note is not None:
            note(cursor, sums)
        return subdirs

    def refused(name: str, error: OSError) -> None:
        if isinstance(error, MountPoint):
            block(name, "is a mount point", anomaly=False)
        elif error.errno != errno.ENOENT:
            block(name, f"cannot be read: {error.strerror}")

    try:
        walk(cursor, scan, refused=refused)
    except OSError as error:
        block("", f"cannot be read: {error.strerror}")
    return found


@dataclass(frozen=True)
class Removal:
    """What became of one tree: removed whole, freed bytes; or blocked, and then nothing of it is gone.

    failed: an error, not a rule, is what blocked it.
    """

    freed: int = 0
    blocked: Blocked | None = None
    failed: bool = False


def remove_tree(cursor: Cursor, name: str, planned: tuple[int, int], held: int = -1) -> Removal:
    """Remove directory name, whole, from the directory that cursor stands in.

    planned is Measure.identity as the plan saw it; held a descriptor of the directory by which the
    caller has its lock already, if so. Holding flock on it all the way, the tree is looked
    through, renamed to trash beside itself, verified once more, renamed back on a mismatch, and only
    then removed; no reader ever sees half of it. Nothing is raised: see Removal.
    """
    depth = cursor.depth
    path = cursor.path(name)
    lock = -1
    try:
        cursor.enter(name)
        lock = hold(cursor) if held < 0 else os.dup(held)
        found = measure(cursor, LockTable(), thorough=True)
        if found.identity != planned:
            return Removal(blocked=Blocked(path, CHANGED))
        if found.blocked:
            return Removal(blocked=found.blocked)
        cursor.rise(depth)
        locked = os.fstat(lock)
        ident = (locked.st_dev, locked.st_ino)
        trash = f".besom-trash-{os.urandom(8).hex()}"
        try:
            os.rename(name, trash, src_dir_fd=cursor.fd, dst_dir_fd=cursor.fd)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # A full disk has no room for one more name: then, and only then, it goes where it is.
            trash = name
        found = _verify(cursor, trash, ident)
        if found.identity == planned and not found.blocked:
            return empty(cursor, trash, path, found.freed, ident)
        if trash == name:
            return Removal(blocked=found.blocked or Blocked(path, CHANGED))
        back = put_back(cursor.fd, trash, cursor.fd, name, is_directory(trash, cursor.fd))
        return Removal(blocked=found.blocked or Blocked(cursor.path(back), CHANGED))
    except OSError as error:
        return refusal(path, error)
    finally:
        if lock >= 0:
            os.close(lock)
        cursor.rise(depth)


def has_trash(root: Root) -> bool:
    """Whether a crash, or another besom at work, has left trash in the directory open as root."""
    os.lseek(root.fd, 0, os.SEEK_SET)
    with os.scandir(root.fd) as names:
        return any(TRASH.fullmatch(one.name) or SESSIONS_TRASH.fullmatch(one.name) for one in names)


def _verify(cursor: Cursor, trash: str, ident: tuple[int, int]) -> Measure:
    """What is to go now, measured once more; as nothing when it is not the directory ident any more."""
    depth = cursor.depth
    try:
        cursor.enter(trash)
        return measure(cursor, LockTable()) if cursor.ident == ident else Measure()
    except OSError:
        # A symlink or a file was put in its place just before it was moved: that is put back as well.
        return Measure()
    finally:
        cursor.rise(depth)


def finish_trash(cursor: Cursor, trash: str) -> Removal:
    """Remove trash that a crash left behind, unless another besom is at work on it."""
    depth = cursor.depth
    lock = -1
    try:
        cursor.enter(trash)
        lock = hold(cursor)
        found, ident = measure(cursor, LockTable()), cursor.ident
        cursor.rise(depth)
        return empty(cursor, trash, cursor.path(trash), found.freed, ident)
    except OSError as error:
        return refusal(cursor.path(trash), error)
    finally:
        if lock >= 0:
            os.close(lock)
        cursor.rise(depth)


class _InUse(OSError):
    """Somebody holds flock on the tree, or nobody can tell."""


def hold(cursor: Cursor) -> int:
    """Take flock on the directory that cursor stands in; returns a descriptor that carries it."""
    # The walk may close the cursor's own descriptor, and with the last one the lock would go.
    lock = os.dup(cursor.fd)
    try:
        if try_flock(lock):
            return lock
        reason = f"in use: locked by {holder_of(lock)}"
    except FlockUnsupported as error:
        reason = f"{error}, so nobody can tell whether it is in use"
    os.close(lock)
    raise _InUse(errno.EWOULDBLOCK, reason)


def refusal(path: str, error: OSError) -> Removal:
    if isinstance(error, (MountPoint, _InUse)):
        return Removal(blocked=Blocked(path, str(error.strerror)))
    if isinstance(error, FileNotFoundError):
        return Removal(blocked=Blocked(path, CHANGED))
    return Removal(blocked=Blocked(path, f"cannot be removed: {error.strerror}"), failed=True)


def put_back(source: int, trash: str, target: int, name: str, is_dir: bool) -> str:
    """Move trash, in directory source, back to name in directory target, or beside what is there now.

    Nothing is replaced but an empty directory by another; left as trash, what changed would be lost at the
    next run. Returns the name it has now. Raises OSError.
    """
    beside = os.fsdecode(os.fsencode(name)[:200]) + f".besom-kept-{os.urandom(8).hex()}"
    for back in (name, beside):
        try:
            if is_dir:
                # Fails on all but an empty directory.
                os.rename(trash, back, src_dir_fd=source, dst_dir_fd=target)
                return back
            os.link(trash, back, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                if not is_dir and _is_same(trash, source, back, target):
                    break  # a kill came between link and unlink
                if back == name:
                    continue
            if is_dir:
                raise
            # No hard links here.
            with suppress(FileNotFoundError):
                os.lstat(back, dir_fd=target)
                back = beside
            os.rename(trash, back, src_dir_fd=source, dst_dir_fd=target)
            return back
        break
    os.unlink(trash, dir_fd=source)
    return back


def _is_same(name: str, directory: int, other: str, its: int) -> bool:
    """Whether two names are of the same inode."""
    try:
        return os.path.samestat(os.lstat(name, dir_fd=directory), os.lstat(other, dir_fd=its))
    except FileNotFoundError:
        return False


def empty(cursor: Cursor, trash: str, path: str, freed: int, ident: tuple[int, int] | None = None) -> Removal:
    """Remove the directory trash with all that is in it; path is what to call it.

    ident: its device and inode; what another has put in its place since is left alone. Where there was no
    room for a trash it is the name of the entry itself.
    """
    depth = cursor.depth
    is_trash = TRASH.fullmatch(trash) or SESSIONS_TRASH.fullmatch(trash)
    unfinished = "trash that cannot be finished" if is_trash else "its removal cannot be finished"
    problems: list[str] = []

    def note(name: str, error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            problems.append(f"{printable(cursor.path(name))}: {error.strerror}")

    def scan() -> list[str]:
        fd = cursor.fd
        subdirs = []
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    subdirs.append(entry.name)
                    continue
                try:
                    os.unlink(entry.name, dir_fd=fd)
                except OSError as error:
                    note(entry.name, error)
        return subdirs

    def left(name: str) -> None:
        try:
            os.rmdir(name, dir_fd=cursor.fd)
        except OSError as error:
            note(name, error)

    for attempt in range(_RESCANS):
        # A process with the directory open can still write into it: look again, but not for ever.
        problems.clear()
        try:
            cursor.enter(trash)
            if ident not in (None, cursor.ident):
                cursor.rise(depth)
                if not (is_trash or attempt):
                    return Removal(blocked=Blocked(path, CHANGED))
                return Removal(blocked=Blocked(path, f"{unfinished}: it was replaced", True))
            walk(cursor, scan, left, note)
        except OSError as error:
            note("", error)
        cursor.rise(depth)
        left(trash)
        if not problems:
            return Removal(freed=freed)
    reason = f"{unfinished}: {problems[0]}"
    return Removal(blocked=Blocked(path, reason, anomaly=True), failed=True)
