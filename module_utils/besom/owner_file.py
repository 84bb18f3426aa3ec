# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The writer lock where flock proves nothing: a file in the store's root that names its owner.

What a dead owner has left is taken over only under a claim, a second owner file that bears the dead
one's id in its name: of several who find it, one may replace it, and that one looks again before.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import time
from dataclasses import asdict, dataclass
from typing import Any

from .command_line import command_of
from .errors import BesomError, LockHeld, UsageError
from .own_names import OWNED
from .units import printable

NAME = ".besom-owner"
# The pid namespace that a host itself boots with (PROC_PID_INIT_INO of include/linux/proc_ns.h).
INITIAL = "pid:[4026531836]"
UNREADABLE = f"an owner that cannot be read in {NAME}"
ALIVE, DEAD, UNKNOWN = "alive", "dead", "unknown"
_LONGEST = 4096
# So many crashes in the very middle of a take-over are believed; more are somebody's play.
_MOST_CLAIMS = 8
# How often a holder looks whether the file is still its own, in seconds.
_LOOK_S = 1.0
# How long a server that answers with an error is asked again for the end of a lock, in seconds.
_GIVING_UP_S = (0.05, 0.2, 0.0)
# What a file system without hard links says to link(2).
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES, errno.EINVAL)
# The ids under which this process has files, or is about to have them: any other of its own was left behind.
_held: set[str] = set()


@dataclass(frozen=True)
class Owner:
    """Who has an owner file. since: seconds since the epoch; empty ids are those that could not be read."""

    host_id: str
    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    start_token: str
    command: str
    since: float
    id: str
    time_namespace: str = ""

    @classmethod
    def current(cls) -> Owner:
        """This process, under a new id."""
        # 25 ms that only the fall-back needs.
        import hashlib
        import socket

        machine, host = _read("/etc/machine-id"), socket.gethostname()
        # machine-id(5): it is not to be shown, so what is written is made from it.
        digest = hashlib.sha256(f"besom\0{machine}\0{host}".encode()).hexdigest()
        return cls(
            host_id=digest[:32] if machine else "",
            host=host,
            boot_id=boot_id(),
            pid_namespace=_namespace(),
            pid=os.getpid(),
            start_token=_start_token(os.getpid()),
            command=_command(),
            since=time.time(),
            id=os.urandom(8).hex(),
            time_namespace=_namespace("time"),
        )

    def __str__(self) -> str:
        command = f" ({printable(self.command)})" if self.command else ""
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"pid {self.pid}{command} on {printable(self.host)}, since {since}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "command": printable(self.command),
            "since": self.since,
            "host": printable(self.host),
        }

    def fate(self, here: Owner) -> str:
        """ALIVE or DEAD where that can be proven from this process (here), else UNKNOWN."""
        if self.boot_id and self.boot_id == here.boot_id:
            # A boot id is of one running kernel, whatever host names and containers say.
            if not self.pid_namespace or self.pid_namespace != here.pid_namespace:
                return UNKNOWN
            # Start tokens count from the boot as a time namespace has it, time_namespaces(7).
            if self.time_namespace != here.time_namespace:
                return UNKNOWN
            if (self.pid, self.start_token) == (here.pid, here.start_token):
                return ALIVE if self.id in _held else DEAD
            return _fate_of_process(self.pid, self.start_token)
        same_host = bool(self.host_id) and self.host_id == here.host_id
        # Containers of several machines may share image and name, hence also host_id: a boot of the host
        # proves nothing about them.
        in_container = (self.pid_namespace, here.pid_namespace) != (INITIAL, INITIAL)
        return DEAD if same_host and self.boot_id and here.boot_id and not in_container else UNKNOWN


def _read_bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as stream:
            return stream.read(_LONGEST)
    except OSError:
        return b""


def boot_id() -> str:
    """What the kernel calls this boot; empty where /proc does not say."""
    return _read("/proc/sys/kernel/random/boot_id")


def _read(path: str) -> str:
    return os.fsdecode(_read_bytes(path)).strip()


def _command() -> str:
    try:
        return command_of()
    except OSError:
        return ""


def _namespace(kind: str = "pid") -> str:
    """A namespace of this process; empty where /proc shows those of another, or the kernel has none."""
    try:
        same = os.readlink("/proc/self") == str(os.getpid())
        return os.readlink(f"/proc/self/ns/{kind}") if same else ""
    except OSError:
        return ""


def _start_token(pid: int) -> str:
    """The start of a process in ticks since the boot (proc(5), stat field 22); empty when not readable."""
    words = _stat(pid)
    return words[19] if len(words) > 19 else ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on, the state."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _is_zombie(pid: int) -> bool:
    """Whether the process has ended and its parent has not looked; not one of which other threads live."""
    words = _stat(pid)
    return len(words) > 17 and words[0] in ("Z", "X") and int(words[17]) <= 1


def _fate_of_process(pid: int, start_token: str) -> str:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return DEAD
    except PermissionError:
        pass
    except OverflowError:
        return UNKNOWN
    if _is_zombie(pid):
        return DEAD
    # /proc may hide the processes of others (hidepid): what cannot be read proves nothing.
    found = _start_token(pid)
    if not found or not start_token:
        return UNKNOWN
    return ALIVE if found == start_token else DEAD


class OwnerFile:
    """The owner file of the store open as directory_fd; taken, kept and given up as a locks.Lock."""

    # It stands where asking is dear: network mounts.
    longest_pause_s = 0.25

    def __init__(self, directory_fd: int, path: str) -> None:
        self._fd, self._path = directory_fd, path
        self._mine = Owner.current()
        self._found: Owner | None = None
        self._looked = 0.0
        self._lost = ""

    def attempt(self) -> bool:
        """Make the file, or take it over from an owner that is provably dead; False when another has it.

        Raises BesomError where it cannot be written.
        """
        _held.add(self._mine.id)
        try:
            won = self._take(NAME, 0)
        except OSError as error:
            _held.discard(self._mine.id)
            raise BesomError(
                f"{printable(self._path)}: flock does not work here, and {NAME} cannot be written instead "
                f"({error.strerror}); besom leaves this store alone."
            ) from error
        if not won:
            _held.discard(self._mine.id)
        return won

    def prove(self) -> None:
        """Nothing: making a file exclusively is its own proof."""

    def holder(self) -> str:
        return str(self._found or UNREADABLE)

    def remedy(self) -> str:
        """What to do when the holder will not let go: empty while it is seen to live."""
        if self._found is not None and self._found.fate(self._mine) == ALIVE:
            return ""
        return f" If that owner is surely gone, run: besom lock break {printable(self._path)}"

    def lost(self) -> str:
        """Why the file is not this lock's any more; empty while it is. Looks once a second at most."""
        now = time.monotonic()
        if not self._lost and now - self._looked >= _LOOK_S:
            self._looked = now
            if not self._is_mine(NAME):
                self._lost = f"{NAME} is not besom's own any more; somebody has broken the lock"
        return self._lost

    def release(self) -> None:
        self._give_up(NAME)
        _held.discard(self._mine.id)

    def _give_up(self, name: str) -> None:
        """Remove the file name if it is this lock's."""
        for pause in _GIVING_UP_S:
            try:
                found = self._load(name)
                if found is not None and found.id == self._mine.id:
                    os.unlink(name, dir_fd=self._fd)
                return
            except FileNotFoundError:
                return
            except OSError:
                time.sleep(pause)

    def _is_mine(self, name: str) -> bool:
        try:
            found = self.read(name)
        except FileNotFoundError:
            return False
        return found is not None and found.id == self._mine.id

    def _take(self, name: str, depth: int) -> bool:
        """Come to own the file name; False when another has it, who is noted; nothing is left by an error."""
        try:
            return self._win(name, depth)
        except BaseException:
            self._give_up(name)
            raise

    def _win(self, name: str, depth: int) -> bool:
        while True:
            try:
                found = self._found = self.read(name)
            except FileNotFoundError:
                if self._make(name):
                    return True
                continue  # made just now
            if found is not None and found.id == self._mine.id:
                return True  # made, although the server of a network mount has said otherwise
            if found is None or found.fate(self._mine) != DEAD or depth > _MOST_CLAIMS:
                return False
            claim = f"{NAME}.{found.id}"
            if claim == name or not self._take(claim, depth + 1):
                return False
            # Only who has the claim replaces the file of this id; it may have been replaced before that,
            # or a person may have broken both.
            try:
                now = self.read(name)
                if now is not None and now.id == found.id:
                    self._remove(f"{claim}.new")
                    os.rename(claim, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
                    self._sync_directory()
                    return True
            except FileNotFoundError:
                pass
            except BaseException:
                self._give_up(claim)
                raise
            self._remove(claim)

    def _make(self, name: str) -> bool:
        """Make the file with this process as its owner, whole and durably; False when there is one."""
        new = f"{NAME}.{self._mine.id}.new"
        self._write(new)
        try:
            os.link(new, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except (FileExistsError, FileNotFoundError):
            return False  # a person who breaks a lock removes new as well
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            try:
                self._write(name)
            except FileExistsError:
                return False
        finally:
            self._remove(new)
        self._sync_directory()
        return True

    def _write(self, name: str) -> None:
        """Raises FileExistsError."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o644, dir_fd=self._fd)
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(json.dumps(asdict(self._mine)).encode() + b"\n")
                stream.flush()
                os.fsync(fd)
        except BaseException:
            self._remove(name)
            raise

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self._fd)

    def _sync_directory(self) -> None:
        fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            os.fsync(fd)
        except OSError as error:
            # Some network and FUSE file systems have no such call for directories, fsync(2).
            if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        finally:
            os.close(fd)

    def read(self, name: str = NAME) -> Owner | None:
        """The owner in the file name; None for what is torn, or nothing that besom has written.

        Raises FileNotFoundError.
        """
        try:
            return self._load(name)
        except FileNotFoundError:
            raise
        except OSError:
            return None

    def _load(self, name: str) -> Owner | None:
        """As read(), but raises OSError where the file system does not say."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with os.fdopen(os.open(name, flags, dir_fd=self._fd), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                return None
            content = stream.read(_LONGEST)
        try:
            owner = Owner(**json.loads(content))
        except (ValueError, TypeError, RecursionError):
            return None
        values: dict[str, Any] = asdict(owner)
        pid, since = values.pop("pid"), values.pop("since")
        sound = (
            all(isinstance(text, str) for text in values.values())
            and isinstance(pid, int)
            and pid > 0
            and isinstance(since, (int, float))
            and 0 <= since < 2**40
            and re.fullmatch("[0-9a-f]{16}", owner.id) is not None
        )
        return owner if sound else None

    def found(self) -> tuple[Owner | None, str] | None:
        """The owner (None: it cannot be read) and its fate; None where there is no file."""
        try:
            owner = self.read()
        except FileNotFoundError:
            return None
        return owner, UNKNOWN if owner is None else owner.fate(self._mine)

    def breakable(self) -> tuple[str, str]:
        """Whose lock a person could break here, in words, and its id; empty if it cannot be read.

        Raises UsageError when there is no file, LockHeld when its owner is seen to live on this host.
        """
        shown, found = printable(self._path), self.found()
        if found is None:
            raise UsageError(f"{shown} has no {NAME}, so there is nothing to break.")
        owner, fate = found
        if owner is None and stat.S_ISDIR(os.stat(NAME, dir_fd=self._fd, follow_symlinks=False).st_mode):
            raise UsageError(
                f"{NAME} in {shown} is a directory, which besom has not made; remove it yourself."
            )
        if fate == ALIVE:
            raise LockHeld(f"{shown} is locked by {owner}, which lives: end that process instead.")
        return str(owner or UNREADABLE), owner.id if owner else ""

    def break_up(self, which: str) -> None:
        """Remove the file if it has this id, since a person says that its owner is gone.

        Raises as breakable() does, LockHeld when it is another's by now, BesomError where it cannot go.
        """
        shown = printable(self._path)
        try:
            # Claims first: whoever is about to take the file over cannot any more.
            names = [name for name in os.listdir(self._fd) if OWNED.fullmatch(name) and name != NAME]
            owner, found = self.breakable()
            if found != which:
                raise LockHeld(f"{shown} is locked by {owner} now, which nobody was asked about; look again.")
            for name in [*names, NAME]:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self._fd)
            self._sync_directory()
        except OSError as error:
            raise BesomError(f"{NAME} in {shown} cannot be removed ({error.strerror}).") from error
