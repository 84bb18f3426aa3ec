# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Durable publication of files: a locked temp beside the target, fsync, rename, fsync of the directory.

A reader, which takes no lock, sees the old file or the new one, whole; what is published and synced
survives a power cut (fsync(2), rename(2)). Temps are named .<name>.<16 hex>.part and locked with flock
while their writer lives; what a killed writer leaves is known by its lock that nobody holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Callable, TypeVar

from .errors import BesomError, NoSpace, UsageError
from .locks import FlockUnsupported, try_flock
from .own_names import ORPHAN, TREE
from .root import open_directory
from .units import format_duration, is_name, printable

_UMASK = re.compile(rb"^Umask:\s*([0-7]+)", re.MULTILINE)
_AROUND = len(".") + len(".0123456789abcdef.part")

# What a rename may meet for a while: a server that has just moved (ESTALE), a file that is being run, or
# opened by a client that shares it with nobody (CIFS gives EBUSY or ETXTBSY for a sharing violation).
_TRANSIENT = (errno.EBUSY, errno.ETXTBSY, errno.ESTALE)
# ERROR_SHARING_VIOLATION and ERROR_LOCK_VIOLATION, where Python gives the number of Windows.
_SHARING_VIOLATIONS = (32, 33)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
# The budget of a rename whose caller has none: as long as a lock is waited for by default.
_PATIENCE_S = 30.0
_ATTEMPTS = 100

T = TypeVar("T")


@dataclass
class Retries:
    """Renames that were refused for a while: tries beyond the first, seconds in all, and for one name."""

    tries: int = 0
    elapsed_s: float = 0.0
    longest_wait_s: float = 0.0

    def add(self, tries: int, elapsed_s: float) -> None:
        self.tries += tries
        self.elapsed_s += elapsed_s
        self.longest_wait_s = max(self.longest_wait_s, elapsed_s)

    def to_dict(self) -> dict[str, float]:
        return {
            "tries": self.tries,
            "elapsed_s": round(self.elapsed_s, 3),
            "longest_wait_s": round(self.longest_wait_s, 3),
        }


class Draft:
    """A file that is being written and that nobody sees yet: fd, open and locked, for reading and writing.

    name: the temp's own name in its directory; path: where it is to be published, for messages.
    """

    def __init__(
        self, directory_fd: int, directory_path: str, target: str, name: str, fd: int, retries: Retries
    ) -> None:
        self.fd = fd
        self.name = name
        self.path = os.path.join(directory_path, target)
        # Its own: whoever opened the directory may reopen it, and the number would mean another.
        self._directory = os.dup(directory_fd)
        self._target = target
        self._retries = retries
        self._sealed = self._done = False

    def write(self, content: bytes | bytearray | memoryview) -> None:
        """Write all of content where fd stands. Raises NoSpace, BesomError."""
        left = memoryview(content)
        try:
            while left:
                left = left[os.write(self.fd, left) :]
        except OSError as error:
            raise failed(self.path, "written", error) from error

    def seal(
        self,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        usual: int | None = None,
    ) -> None:
        """Give the file its owner and mode and bring it to the disk, which takes its time.

        Without a mode and a group it gets those of the file that it replaces, if that is this user's or
        the owner's to be (another's mode may let that other write), else usual: `usual_mode`, which
        who seals many has asked for once.
        A failed fsync is final (the kernel drops what it could not write, and the next fsync knows
        nothing of it): the temp is gone. Raises NoSpace, BesomError.
        """
        self._require_unfinished()
        try:
            if uid is not None or gid is not None:
                os.fchown(self.fd, -1 if uid is None else uid, -1 if gid is None else gid)
            usual = self._take_after(gid is None, usual_mode() if usual is None else usual)
            # After the chown, which takes set-id bits away.
            os.fchmod(self.fd, usual if mode is None else mode)
        except OSError as error:
            raise failed(self.path, "given its owner and mode", error) from error
        try:
            os.fsync(self.fd)
        except OSError as error:
            self.discard()
            raise failed(self.path, "brought to the disk", error) from error
        self._sealed = True

    def publish(self, deadline: float | None = None, pause: Callable[[float], None] = time.sleep) -> None:
        """Rename it over the target, as `patiently` does; durable after sync_directory.

        Seals it first if that was not done. Raises BesomError when it cannot be renamed, or when the
        temp is no longer there.
        """
        if not self._sealed:
            self.seal()
        self._require_unfinished()
        if not is_inode(self._directory, self.name, self.fd):
            raise BesomError(
                f"{printable(self.path)} is not published: somebody has removed its temp; run this again."
            )

        def rename() -> None:
            os.rename(self.name, self._target, src_dir_fd=self._directory, dst_dir_fd=self._directory)

        patiently(rename, self.path, self._retries, deadline, pause)
        self._done = True

    def discard(self) -> None:
        """Remove the temp, unless it is published or the name is another's by now. Raises nothing."""
        if not self._done:
            self._done = True
            with suppress(OSError):
                if is_inode(self._directory, self.name, self.fd):
                    os.unlink(self.name, dir_fd=self._directory)

    def leave(self) -> None:
        """Leave the temp to `adopt` as it is; discard it where no lock tells it from a living writer's."""
        if not self._done and _hold(self._directory, self.name, self.fd):
            self._done = True
        self.discard()

    def close(self) -> None:
        """Discard it unless it is published or left, and let go of the lock."""
        if self.fd >= 0:
            self.discard()
            with suppress(OSError):
                # A child that was forked meanwhile shares the lock; it must not hold it on.
                fcntl.flock(self.fd, fcntl.LOCK_UN)
            os.close(self.fd)
            os.close(self._directory)
            self.fd = -1

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def _require_unfinished(self) -> None:
        if self._done:
            raise BesomError(f"{printable(self.path)} was published or discarded before; begin a new one.")

    def _take_after(self, group: bool, mode: int) -> int:
        """The mode of the file that is replaced, or this one; group: take its group over as well."""
        with suppress(FileNotFoundError):
            old = os.stat(self._target, dir_fd=self._directory, follow_symlinks=False)
            st = os.fstat(self.fd)
            if stat.S_ISREG(old.st_mode) and old.st_uid in (os.geteuid(), st.st_uid):
                mode = old.st_mode & 0o777
                try:
                    if group and old.st_gid != st.st_gid:
                        os.fchown(self.fd, -1, old.st_gid)
                except OSError:
                    # Not this user's to give. What that group could do, another can only where everybody can.
                    mode = mode & 0o707 | (mode & 0o007) << 3
        return mode


@contextmanager
def draft(
    directory_fd: int, directory_path: str, name: str, retries: Retries | None = None, own: bool = False
) -> Iterator[Draft]:
    """A new draft of the file name in an open directory; discarded at the end unless it was published.

    directory_fd must be open for reading. The temp has mode 0600 until it is sealed. Where flock is
    refused it is not locked, and nobody removes it as an orphan either. own: name is one of besom's own.
    Raises UsageError for a name that is none, NoSpace, BesomError.
    """
    check_name(directory_fd, name, own=own)
    part, fd = _new_part(directory_fd, os.path.join(directory_path, name), name)
    retries = Retries() if retries is None else retries
    with Draft(directory_fd, directory_path, name, part, fd, retries) as one:
        yield one


def adopt(
    directory_fd: int, directory_path: str, part: str, name: str, retries: Retries | None = None
) -> Draft | None:
    """Take over the orphan part of a killed writer, to go on with it at its end; close it, or use `with`.

    None when it is locked or gone, when flock proves nothing here, and when others than this user
    could have written, or still write, to it.
    """
    try:
        fd = _open_part(directory_fd, part)
    except OSError:
        return None
    st = os.fstat(fd)
    own = stat.S_ISREG(st.st_mode) and st.st_uid == os.geteuid() and st.st_mode & 0o622 == 0o600
    if own and st.st_nlink == 1 and _hold(directory_fd, part, fd):
        os.lseek(fd, 0, os.SEEK_END)
        return Draft(directory_fd, directory_path, name, part, fd, Retries() if retries is None else retries)
    os.close(fd)
    return None


def remove_part(directory_fd: int, part: str) -> int | None:
    """Remove the temp part if it is an orphan; returns the bytes that gives back.

    None when its writer lives, when it is gone, or when nobody can tell. Raises OSError when it
    cannot be removed.
    """
    try:
        fd = _open_part(directory_fd, part)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.EISDIR, errno.ENXIO):
            return None
        raise
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode) or not _hold(directory_fd, part, fd):
            return None
        os.unlink(part, dir_fd=directory_fd)
        return st.st_blocks * 512 if st.st_nlink == 1 else 0
    finally:
        os.close(fd)


def parts_of(directory_fd: int, name: str, found: Iterable[str] | None = None) -> list[str]:
    """The temps for the target name in an open directory, whoever writes to them, sorted.

    found: the names to look among; without them the directory is listed.
    """
    stem = _stem(directory_fd, name)
    length = len(stem) + len("0123456789abcdef.part")
    return sorted(
        one
        for one in (list_parts(directory_fd) if found is None else found)
        if len(one) == length and one.startswith(stem) and ORPHAN.fullmatch(one)
    )


def list_parts(directory_fd: int) -> list[str]:
    """The names in an open directory that may be those of temps."""
    # A description of its own: threads that read one directory at once would share its offset.
    fd = open_directory(".", directory_fd)
    try:
        return [one for one in os.listdir(fd) if one.endswith(".part")]
    finally:
        os.close(fd)


def sync_directory(fd: int, path: str = "the directory") -> None:
    """Make durable what was renamed in the directory open as fd. Raises BesomError; that is final."""
    try:
        os.fsync(fd)
    except OSError as error:
        raise failed(path, "brought to the disk", error) from error


def write_durably(
    directory_fd: int,
    directory_path: str,
    name: str,
    content: bytes,
    mode: int | None = 0o644,
    uid: int | None = None,
    gid: int | None = None,
    deadline: float | None = None,
) -> Retries:
    """Write, seal, publish and sync one file; parameters as in Draft.seal and Draft.publish."""
    retries = Retries()
    with draft(directory_fd, directory_path, name, retries) as one:
        one.write(content)
        one.seal(mode, uid, gid)
        one.publish(deadline)
        sync_directory(directory_fd, directory_path)
    return retries


def patiently(
    rename: Callable[[], T],
    path: str,
    retries: Retries,
    deadline: float | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> T:
    """Call rename, and again where it is refused for a while (EBUSY, ETXTBSY, ESTALE, sharing violations).

    From 50 ms doubling to 1 s, and not past deadline (time.monotonic seconds; None: for 30 s). pause
    waits, and may raise to end it. path is what to call the target. Raises NoSpace, BesomError.
    """
    began = time.monotonic()
    deadline = began + _PATIENCE_S if deadline is None else deadline
    tries, wait = 0, _FIRST_WAIT_S
    try:
        while True:
            try:
                return rename()
            except OSError as error:
                left = deadline - time.monotonic()
                if not _is_transient(error):
                    raise failed(path, "published", error) from error
                if left <= 0:
                    took = format_duration(round(time.monotonic() - began, 1))
                    raise BesomError(
                        f"{printable(path)} cannot be published: {error.strerror}, {tries + 1} times in "
                        f"{took}; find out what uses it, and run this again."
                    ) from error
            pause(min(wait, left))
            tries += 1
            wait = min(2 * wait, _LONGEST_WAIT_S)
    finally:
        if tries:
            retries.add(tries, time.monotonic() - began)


def _is_transient(error: OSError) -> bool:
    return error.errno in _TRANSIENT or getattr(error, "winerror", None) in _SHARING_VIOLATIONS


def failed(path: str, done: str, error: OSError) -> BesomError:
    """The error of a path that cannot be done (written, published): NoSpace where space is what it lacks."""
    cause = f"{printable(path)} cannot be {done}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{cause}; make room, and run this again.")
    return BesomError(f"{cause}.")


def check_name(directory_fd: int, name: str, around: int = 0, own: bool = False) -> None:
    """Raise UsageError unless name, with so many bytes around it, can be published in this directory.

    Names that besom gives its own files and temps are refused, unless it is one of its own.
    """
    shown = printable(name)
    if name in ("", ".", "..") or "/" in name or not is_name(name):
        raise UsageError(f"{shown!r} is no name of a file; give one without slashes.")
    longest = name_max(directory_fd) - around
    if len(os.fsencode(name)) > longest:
        raise UsageError(f"{shown} is too long for a name here; {longest} bytes are allowed.")
    if not own and (name.startswith(".besom-") or ORPHAN.fullmatch(name) or TREE.fullmatch(name)):
        raise UsageError(f"{shown} is named as besom names what is its own; choose another name.")


def name_max(directory_fd: int) -> int:
    """The bytes that a name may have in this directory."""
    return os.fpathconf(directory_fd, "PC_NAME_MAX")


def usual_mode() -> int:
    """What the umask leaves of 0666."""
    return 0o666 & ~umask()


def umask() -> int:
    """This process's umask, without setting it: other threads would make files meanwhile (proc(5))."""
    with suppress(OSError):
        status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            # The second line, after the name of the program.
            match = _UMASK.search(os.read(status, 512))
        finally:
            os.close(status)
        if match:
            return int(match[1], 8)
    return 0o022


def lock_temp(fd: int) -> bool:
    """Lock a temp of one's own; False when another has it. Where flock is refused, it goes without."""
    try:
        return try_flock(fd)
    except FlockUnsupported:
        return True


def is_inode(directory_fd: int, name: str, fd: int) -> bool:
    """Whether name is what fd is open on."""
    try:
        there = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _stem(directory_fd: int, name: str) -> str:
    """What the names of all temps for name begin with; a long name is cut, and told by its digest."""
    room = name_max(directory_fd) - _AROUND
    raw = os.fsencode(name)
    if len(raw) <= room:
        return f".{name}."
    # 5 ms that hardly any name needs.
    import hashlib

    digest = "~" + hashlib.sha256(raw).hexdigest()[:16]
    # Some file systems take nothing but UTF-8: no character is cut in two.
    return "." + raw[: room - len(digest)].decode("utf-8", "ignore") + digest + "."


def _new_part(directory_fd: int, path: str, name: str) -> tuple[str, int]:
    """The name of a new temp and a descriptor of it, locked."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _attempt in range(_ATTEMPTS):
        part = _stem(directory_fd, name) + f"{os.urandom(8).hex()}.part"
        try:
            fd = os.open(part, flags, 0o600, dir_fd=directory_fd)
        except OSError as error:
            raise failed(path, "written", error) from error
        try:
            # For an instant it was an orphan: whoever took it for one holds it, or has removed it.
            if lock_temp(fd) and is_inode(directory_fd, part, fd):
                return part, fd
        except OSError as error:
            with suppress(OSError):
                if is_inode(directory_fd, part, fd):
                    os.unlink(part, dir_fd=directory_fd)
            os.close(fd)
            raise failed(path, "written", error) from error
        os.close(fd)
    raise BesomError(f"{printable(path)} cannot be written: its temps are removed as soon as they are made.")


def _open_part(directory_fd: int, part: str) -> int:
    # NFS gives an exclusive lock only to who may write; a FIFO may have been planted.
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(part, os.O_RDWR | flags, dir_fd=directory_fd)
    except PermissionError:
        return os.open(part, os.O_RDONLY | flags, dir_fd=directory_fd)


def _hold(directory_fd: int, part: str, fd: int) -> bool:
    """Lock the orphan that fd is open on; False unless that is part still, and keeps everybody else out."""
    try:
        if not try_flock(fd):
            return False
        second = _open_part(directory_fd, part)
        try:
            return os.path.samestat(os.fstat(second), os.fstat(fd)) and not try_flock(second)
        finally:
            os.close(second)
    except (FlockUnsupported, OSError):
        return False
