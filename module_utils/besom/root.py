# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Opening the directory that a store or a sweep is bounded by, and refusing the ones that must never be."""

from __future__ import annotations

import errno
import glob
import os
import pwd
from collections.abc import Iterator, Sequence
from typing import Any

from .errors import MissingPath, UsageError
from .mounts import MAY_HANG, mnt_id, mounts
from .units import printable
from .walk import walk

# And /lib*, which glob finds.
SYSTEM = (
    *("/", "/bin", "/boot", "/dev", "/etc", "/home", "/opt", "/proc"),
    *("/root", "/run", "/sbin", "/srv", "/sys", "/usr", "/var"),
)
# Fine by the design, whatever a password database says.
_ALLOWED = ("/tmp", "/var/tmp")  # noqa: S108


def open_directory(name: str, dir_fd: int | None = None) -> int:
    """A descriptor of directory name, for reading; does not change its atime where the kernel allows it."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        # O_NOATIME is for the owner only, open(2).
        return os.open(name, flags, dir_fd=dir_fd)


class Root:
    """An open directory that work is bounded by. Close it, or use it in a with statement."""

    def __init__(self, path: str) -> None:
        """Open an absolute path by its components; raises UsageError when it is missing or refused.

        Raises NoAnswer when a mount on the way does not answer, instead of hanging with it.
        """
        self.path = path
        self.fd = -1
        self.reopen()

    def reopen(self) -> None:
        """Open the directory that the path names now."""
        self.close()
        self.fd = _open_checked(self.path)
        st = os.fstat(self.fd)
        self.ident = (st.st_dev, st.st_ino)
        self.mnt_id = mnt_id(self.fd)
        self.real = os.readlink(f"/proc/self/fd/{self.fd}")
        try:
            _refuse(self)
        except UsageError:
            self.close()
            raise

    def is_current(self) -> bool:
        """Whether the path still names this directory."""
        try:
            fd = _open_checked(self.path)
        except UsageError:
            return False
        try:
            st = os.fstat(fd)
            return (st.st_dev, st.st_ino) == self.ident
        finally:
            os.close(fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Root:
        return self

    def __exit__(self, *_exc: Any) -> None:
        self.close()


def overlapping(roots: Sequence[Root]) -> Iterator[tuple[Root, Root, str]]:
    """Each two stores of which one is, or lies inside, the other, and a sentence that says so."""
    for i, one in enumerate(roots):
        for other in roots[i + 1 :]:
            if one.ident == other.ident or _inside(one.real, other.real) or _inside(other.real, one.real):
                names = f"{printable(one.path)} and {printable(other.path)}"
                yield one, other, f"Stores {names} overlap; give each a directory of its own."


def refuse_overlap(roots: Sequence[Root]) -> None:
    """Raise UsageError when two stores overlap: two policies would fight over what both hold."""
    for _one, _other, sentence in overlapping(roots):
        raise UsageError(sentence)


def _inside(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def _open_checked(path: str) -> int:
    """Open path one component at a time (CVE-2018-6954: O_NOFOLLOW on the last one is not enough)."""
    shown = printable(path)

    def trust(name: str, link: int, parent: int, last: bool) -> None:
        if last:
            raise UsageError(f"{shown} is a symlink; name the directory that it points to.")
        trust_link(shown, name, link, parent)

    try:
        here = walk(path, trust)
        try:
            return open_directory(".", here)
        finally:
            os.close(here)
    except FileNotFoundError:
        raise MissingPath(f"{shown} does not exist; create it, or correct the path.") from None
    except NotADirectoryError:
        raise UsageError(f"{shown} is not a directory.") from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{shown} leads through too many symlinks.") from None
        raise UsageError(f"{shown} cannot be opened: {error.strerror}.") from error


def trust_link(shown: str, name: str, link: int, parent: int) -> None:
    """Raise UsageError when the symlink name of the path shown could be redirected by others."""
    st, directory = os.fstat(link), os.fstat(parent)
    trusted = (0, os.geteuid())
    if st.st_uid not in trusted or directory.st_uid not in trusted or directory.st_mode & 0o022:
        raise UsageError(
            f"{shown} leads through the symlink {printable(name)}, which others could redirect; "
            "name the real directory."
        )


def _refuse(root: Root) -> None:
    """Refuse system directories, homes and what contains one, by inode and not by spelling."""
    refused = dict.fromkeys([*SYSTEM, *glob.glob("/lib*")], "a system directory")
    for user in pwd.getpwall():
        if user.pw_dir.startswith("/"):
            refused.setdefault(os.path.normpath(user.pw_dir), f"the home directory of {user.pw_name}")
    for path in _ALLOWED:
        refused.pop(path, None)
    remote = tuple(mount.path.rstrip("/") + "/" for mount in mounts() if mount.fstype.startswith(MAY_HANG))
    seen = set()
    for path, what in refused.items():
        within = path
        while within not in seen:
            seen.add(within)
            # A stat could hang on a remote one: there the path that the kernel gives has to do.
            hangs = (within + "/").startswith(remote)
            found = within == root.real if hangs else _ident(within) == root.ident
            if found:
                how = f"it is {what}" if within == path else f"it contains {printable(path)}, {what}"
                raise UsageError(f"{printable(root.path)} is refused: {how}; name a directory of its own.")
            within = os.path.dirname(within)


def _ident(path: str) -> tuple[int, int] | None:
    try:
        st = os.stat(path)
    except OSError:
        return None
    return (st.st_dev, st.st_ino)
