# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""flock on directories and files, who holds one, and the wait for the writer lock of a store."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, ClassVar, Protocol

from .command_line import command_of
from .errors import BesomError, LockHeld
from .mounts import mounts
from .shutdown import Shutdown
from .units import format_duration, printable

if TYPE_CHECKING:
    from .owner_file import OwnerFile

# Short enough that a release is noticed within 20 ms, long enough to cost next to nothing.
POLL_S = 0.01
# File systems of which stat shows other device numbers than mountinfo and /proc/locks do.
SEVERAL_NUMBERS = ("aufs", "bcachefs", "btrfs", "overlay")
_REFUSED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EINVAL)


class FlockUnsupported(BesomError):
    """The file system refuses flock, or lets two holders have it at once."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock; command and since (epoch seconds of its start) where /proc shows them."""

    pid: int
    command: str = ""
    since: float | None = None

    def __str__(self) -> str:
        if self.pid <= 0:
            return "a process that cannot be seen from here (in another pid namespace, perhaps)"
        text = f"pid {self.pid}"
        if self.command:
            text += f" ({printable(self.command)})"
        else:
            text += " (gone; a child of it may hold the descriptor)"
        if self.since is not None:
            text += time.strftime(", running since %Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return text

    def to_dict(self) -> dict[str, object]:
        return {"pid": self.pid, "command": printable(self.command), "since": self.since}


def describe(pid: int) -> Holder:
    """The holder with this pid, as /proc shows it (proc(5): comm, cmdline, stat field 22)."""
    try:
        command = command_of(pid, most=4)
        with open(f"/proc/{pid}/stat", "rb") as stream:
            name, _paren, rest = stream.read().rpartition(b")")
        ticks = int(rest.split()[19])
        with open("/proc/stat", "rb") as stream:
            boot = next(int(line.split()[1]) for line in stream if line.startswith(b"btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return Holder(pid)
    command = command or os.fsdecode(name.partition(b"(")[2])
    return Holder(pid, command, boot + ticks / os.sysconf("SC_CLK_TCK"))


class LockTable:
    """One reading of /proc/locks: which inodes are locked (flock, fcntl or lease), and by whom.

    It costs one read for any number of files and takes no lock, so a plan can ask it. Locks of
    processes that this pid namespace cannot see are not in it; locks of this process are left out, and of
    its company: other processes that work for the same run.
    """

    company: ClassVar[Sequence[int]] = ()

    def __init__(self, text: bytes | None = None) -> None:
        if text is None:
            try:
                with open("/proc/locks", "rb") as stream:
                    text = stream.read()
            except OSError:
                text = b""
        self._locks: dict[int, list[tuple[int, int]]] = {}
        self._plain: set[int] | None = None
        # 0 is that of none.
        own = {os.getpid(), *filter(None, self.company)}
        for line in text.split(b"\n"):
            words = line.split()
            if len(words) < 8 or words[1] == b"->":
                continue
            try:
                major, minor, inode = words[5].split(b":")
                device, number = os.makedev(int(major, 16), int(minor, 16)), int(inode)
                pid = int(words[4])
            except (ValueError, OverflowError):
                continue
            if pid not in own:
                self._locks.setdefault(number, []).append((device, pid))
        # Looked at for every file: a set of plain numbers, empty more often than not.
        self.inodes = frozenset(self._locks)

    def holder(self, dev: int, inode: int) -> Holder | None:
        """Another process that holds a lock on this inode, if one is known."""
        for device, pid in self._locks.get(inode, ()):
            if device == dev or self._may_be_one(device, dev):
                return describe(pid)
        return None

    def on(self, devices: Iterable[int]) -> list[int]:
        """The numbers of the inodes, sorted, on which a lock is held that may be on one of these devices."""
        found = []
        for number, locks in self._locks.items():
            if any(one == dev or self._may_be_one(one, dev) for one, _pid in locks for dev in devices):
                found.append(number)
        return sorted(found)

    def _may_be_one(self, device: int, dev: int) -> bool:
        """Whether a device of /proc/locks and another that stat gives can be of one file system."""
        if os.major(device) or os.major(dev):
            return False
        if self._plain is None:
            self._plain = {
                os.makedev(*map(int, mount.device.split(":")))
                for mount in mounts()
                if mount.fstype not in SEVERAL_NUMBERS
            }
        return device not in self._plain and dev not in self._plain


def holder_of(fd: int) -> Holder:
    """Who holds a lock on the file that fd is open on; pid 0 when that cannot be seen."""
    st = os.fstat(fd)
    return LockTable().holder(st.st_dev, st.st_ino) or Holder(0)


def try_flock(fd: int) -> bool:
    """Take flock EX on fd without waiting; False when another holds it.

    Raises FlockUnsupported where the file system has no flock (NFS: EBADF for a directory).
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _REFUSED:
            raise FlockUnsupported(f"flock does not work here ({error.strerror})") from error
        raise
    return True


def prove_flock(fd: int) -> None:
    """Make sure that the flock held on directory fd keeps others out, with a second open description.

    Raises FlockUnsupported when a second holder is let in: there a lock proves nothing.
    """
    second = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        if try_flock(second):
            raise FlockUnsupported("flock keeps nobody out on this file system")
    finally:
        os.close(second)


def is_held(fd: int) -> bool:
    """Whether somebody else has a lock on directory fd; takes it, shared, for an instant to find out.

    Raises FlockUnsupported where flock proves nothing.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        raise FlockUnsupported(f"flock does not work here ({error.strerror})") from error
    try:
        prove_flock(fd)
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
    return False


class Lock(Protocol):
    """One way to keep other writers out of a store.

    longest_pause_s: waiting asks at least this often, in seconds.
    """

    longest_pause_s: float

    def attempt(self) -> bool:
        """Take it without waiting; False when another has it. Raises BesomError."""

    def holder(self) -> str:
        """Who has it, in words, after an attempt in vain."""

    def remedy(self) -> str:
        """What else helps against that holder, as a sentence with a space before it; or nothing."""

    def lost(self) -> str:
        """Why it is not held any more although it was not released; empty while it is held."""

    def release(self) -> None:
        """Give it up, or what is left of it."""


class Flock:
    """flock EX on the store's directory itself."""

    longest_pause_s = POLL_S

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def attempt(self) -> bool:
        return try_flock(self._fd)

    def prove(self) -> None:
        """Raise FlockUnsupported where the lock that was won keeps nobody out."""
        prove_flock(self._fd)

    def holder(self) -> str:
        return str(holder_of(self._fd))

    def remedy(self) -> str:
        return ""

    def lost(self) -> str:
        return ""

    def release(self) -> None:
        with contextlib.suppress(OSError):
            fcntl.flock(self._fd, fcntl.LOCK_UN)


class Lockable(Protocol):
    """A directory that can be opened and found moved: what the writer lock needs of a root."""

    path: str

    @property
    def fd(self) -> int: ...

    def is_current(self) -> bool: ...

    def reopen(self) -> None: ...


class Wait:
    """Waiting for the locks of one store: one timeout (seconds) for all of them together."""

    def __init__(
        self,
        path: str,
        timeout: float,
        shutdown: Shutdown,
        option: str,
        waiting: Callable[[str], None],
        progress: Callable[[str, int, int], None],
    ) -> None:
        self._path, self._timeout, self._shutdown = printable(path), timeout, shutdown
        self._option, self._waiting, self._progress = option, waiting, progress
        self._started = time.monotonic()
        self._told = False
        self._doing = f"waiting for the lock of {self._path}"

    @property
    def waited_s(self) -> float:
        """Seconds waited so far; 0 while nobody was in the way."""
        return time.monotonic() - self._started if self._told else 0.0

    def take(self, lock: Lock) -> None:
        """Take the lock, waiting for it. Raises LockHeld after the timeout, Interrupted on a signal."""
        pause, said = POLL_S, ""
        while not self._attempt(lock):
            self._shutdown.check(self._doing)
            waited = time.monotonic() - self._started
            if waited >= self._timeout:
                raise LockHeld(
                    f"{self._path} is locked by {lock.holder()}; waited {format_duration(round(waited, 1))}. "
                    f"Let it finish, or raise {self._option}.{lock.remedy()}"
                )
            if not said:
                said = f"Waiting for {self._path}, locked by {lock.holder()}"
                self._told = True
                self._waiting(f"{said}.")
            self._progress("wait for the lock", int(waited), int(self._timeout))
            time.sleep(min(pause, self._timeout - waited))
            pause = min(pause * 2, lock.longest_pause_s)
            self._shutdown.check(self._doing)

    def _attempt(self, lock: Lock) -> bool:
        try:
            return lock.attempt()
        except BesomError:
            # One that ends because a server keeps silent is heard as the signal that came meanwhile.
            self._shutdown.check(self._doing)
            raise


def _owner_file(root: Lockable) -> OwnerFile:
    # 10 ms on a module's arrival that few file systems need.
    from .owner_file import OwnerFile

    return OwnerFile(root.fd, root.path)


def take_local(root: Lockable, wait: Wait) -> Lock:
    """The lock against the writers of this host: flock, or the owner file where flock proves nothing."""
    fall_back = False
    while True:
        lock = _owner_file(root) if fall_back else Flock(root.fd)
        try:
            wait.take(lock)
            if root.is_current():
                lock.prove()
                return lock
        except FlockUnsupported:
            lock.release()
            fall_back = True
            continue
        except BaseException:
            lock.release()
            raise
        # The path names another directory by now: the lock of the old one guards nothing.
        lock.release()
        root.reopen()
        fall_back = False
