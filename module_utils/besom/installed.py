# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is installed: the mark in a tree, the old versions beside it, the link that names the current one."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields

from .durable import draft, failed, parts_of, remove_part, sync_directory
from .durable_tree import is_old
from .errors import UsageError
from .origin import Origin
from .root import Root, open_directory
from .units import printable

# In the top directory of each tree that besom has installed.
MARK = ".besom-installed"
# A link on its way to its name; under the writer lock there is none but one that a crash has left.
LINK = re.compile(r"\.besom-link-[0-9a-f]{16}")
_MOST_MARK = 64 * 1024
NOWHERE = Origin("")


@dataclass(frozen=True)
class Mark:
    """What a tree was made from: the URL as it may be shown, the checksum of the archive (ALGORITHM:HEX).

    origin: what the server said of the archive; strip: whether its top directory was left out; entries,
    bytes: what was extracted; installed: when, in UTC.
    """

    url: str = ""
    checksum: str = ""
    origin: Origin = NOWHERE
    strip: bool = False
    entries: int = 0
    bytes: int = 0
    installed: str = ""

    def tells_the_same(self, other: Mark) -> bool:
        """Whether both trees come from the same archive, in the same way."""
        return (self.checksum, self.strip) == (other.checksum, other.strip)


def _json(mark: Mark) -> bytes:
    return (json.dumps(asdict(mark), indent=1) + "\n").encode()


def read_mark(root: Root, name: str) -> Mark | None:
    """The mark of the tree name in root; None where besom has not installed it."""
    try:
        tree = open_directory(name, root.fd)
        try:
            # A FIFO may have been planted.
            fd = os.open(MARK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=tree)
        finally:
            os.close(tree)
        with os.fdopen(fd, "rb") as stream:
            values = json.loads(stream.read(_MOST_MARK))
        origin = Origin(**values.pop("origin"))
        mark = Mark(origin=origin, **values)
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return None
    for one, like in ((mark, Mark()), (origin, NOWHERE)):
        if any(type(getattr(one, f.name)) is not type(getattr(like, f.name)) for f in fields(one)):
            return None
    # Whoever has the tree may have written it; it is shown, and sent to servers.
    told = (mark.url, mark.checksum, mark.installed, origin.etag, origin.modified)
    sent = origin.etag + origin.modified
    return mark if all(map(str.isprintable, told)) and sent.isascii() else None


def write_mark(tree_fd: int, path: str, mark: Mark) -> None:
    """Put the mark into a tree that has none, and is not synced yet. Raises BesomError, NoSpace."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with os.fdopen(os.open(MARK, flags, 0o644, dir_fd=tree_fd), "wb") as stream:
            os.fchmod(stream.fileno(), 0o644)
            stream.write(_json(mark))
    except OSError as error:
        raise failed(path, "marked as installed", error) from error


def rewrite_mark(root: Root, name: str, mark: Mark) -> None:
    """Replace the mark of the tree name. Raises BesomError, NoSpace."""
    path = os.path.join(root.path, name)
    try:
        with _opened(root, name) as tree:
            with draft(tree, path, MARK, own=True) as one:
                one.write(_json(mark))
                one.seal(0o644)
                one.publish()
            sync_directory(tree, path)
    except OSError as error:
        raise failed(path, "marked as installed", error) from error


def has_left_marks(root: Root, name: str) -> bool:
    """Whether there is a mark on its way in the tree name."""
    with suppress(OSError), _opened(root, name) as tree:
        return bool(parts_of(tree, MARK))
    return False


def remove_left_marks(root: Root, name: str) -> None:
    """Remove what a crash has left of marks in the tree name. To be called under the writer lock."""
    with suppress(OSError), _opened(root, name) as tree:
        for part in parts_of(tree, MARK):
            remove_part(tree, part)


@contextmanager
def _opened(root: Root, name: str) -> Iterator[int]:
    tree = open_directory(name, root.fd)
    try:
        yield tree
    finally:
        os.close(tree)


@dataclass(frozen=True)
class State:
    """What root has of a name: a tree (exists), its mark, its old versions (oldest first), and the link.

    link: what the link `current` leads to; None where there is none. access: mode, uid, gid of the tree.
    """

    exists: bool
    mark: Mark | None
    old: tuple[str, ...]
    link: str | None
    access: tuple[int, ...] = ()


ABSENT = State(False, None, (), None)


def read_state(root: Root, name: str, current: str = "") -> State:
    """The state of name in root. Raises UsageError for what is in the way of a tree or of the link."""
    st, link = _stat(root, name), None
    if st and not stat.S_ISDIR(st.st_mode):
        raise UsageError(f"{_shown(root, name)} is not a directory; move it away, or choose another name.")
    if current:
        with suppress(FileNotFoundError):
            try:
                link = os.readlink(current, dir_fd=root.fd)
            except OSError as error:
                if isinstance(error, FileNotFoundError):
                    raise
                raise UsageError(
                    f"{_shown(root, current)} is not a symlink; move it away, or choose another current."
                ) from None
    old = sorted(
        entry.name
        for entry in _entries(root)
        if is_old(entry.name, name) and entry.is_dir(follow_symlinks=False)
    )
    access = (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) if st else ()
    return State(st is not None, read_mark(root, name) if st else None, tuple(old), link, access)


def switch(root: Root, current: str, name: str | None) -> None:
    """Make the symlink current lead to name, in one step; None: remove it. Raises BesomError, NoSpace."""
    temp = f".besom-link-{os.urandom(8).hex()}"
    try:
        if name is None:
            os.unlink(current, dir_fd=root.fd)
        else:
            os.symlink(name, temp, dir_fd=root.fd)
            try:
                os.rename(temp, current, src_dir_fd=root.fd, dst_dir_fd=root.fd)
            except OSError:
                os.unlink(temp, dir_fd=root.fd)
                raise
        os.fsync(root.fd)
    except OSError as error:
        raise failed(os.path.join(root.path, current), "switched", error) from error


def remove_left_links(root: Root) -> None:
    """Remove the links that a crash has left on their way. To be called under the writer lock."""
    left = [entry.name for entry in _entries(root) if LINK.fullmatch(entry.name) and entry.is_symlink()]
    for name in left:
        with suppress(OSError):
            os.unlink(name, dir_fd=root.fd)


def _entries(root: Root) -> Iterator[os.DirEntry[str]]:
    # btrfs lists an open directory as it was at the open, or at the last rewind; each scan is to begin anew.
    os.lseek(root.fd, 0, os.SEEK_SET)
    with os.scandir(root.fd) as entries:
        yield from entries


def _stat(root: Root, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=root.fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _shown(root: Root, name: str) -> str:
    return printable(os.path.join(root.path, name))
