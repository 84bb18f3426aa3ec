# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What was measured of a store, by directory, remembered in a file beside the state.

It is safe to lose and never a reason to remove anything: whatever is wrong with the file, or is not as it
was when it was written, the store is walked. Written whole, without fsync, with a checksum.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import compress
from typing import Any

from .mounts import mounts
from .owner_file import boot_id
from .policy import Store
from .root import Root
from .run import Run

VERSION = 1
# The ctime of a directory that is to be read again in any case: no time in range is that one.
NEVER = 2**63 - 1
# Where directories were seen to get a new ctime, from this host's clock, with whatever changes in them.
FILE_SYSTEMS = ("btrfs", "ext2", "ext3", "ext4", "overlay", "tmpfs", "xfs")
_MOST_BYTES = 32 << 20
_LONGEST_HEAD = 1 << 20
_CHECKSUM_BYTES = 4
_ST_RDONLY = 1  # statvfs(3)
# One row for each directory, parents first; the meaning of the sums is that of inventory.Sums.
_NAMES = ("parent", "device", "inode", "mtime", "ctime", "usage", "entries", "oldest", "newest", "low")
ROWS = dict(zip((*_NAMES, "high"), "IQQqqQQqqQQ"))
# One for each name of an inode with several links, by row.
LINKS = {"row": "I", "device": "Q", "inode": "Q", "bytes": "Q"}


def _checksum(data: bytes | memoryview) -> bytes:
    # Against what a crash or a disk makes of a file; whoever may write it could make any.
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "big")


class Index:
    """The directories of one store as tables of columns; the first is its root.

    subject: what it is about, for comparison; walked: when all of it was last read (ns); shared: bytes of
    the inodes in links, each once.
    """

    def __init__(self, subject: Mapping[str, Any], walked: int) -> None:
        self.subject, self.walked, self.shared = subject, walked, 0
        self.names: list[str] = []
        self.rows = {name: array(code) for name, code in ROWS.items()}
        self.links = {name: array(code) for name, code in LINKS.items()}

    def __len__(self) -> int:
        return len(self.names)

    def only(self, alive: bytearray) -> Index:
        """The rows that are alive, their parents renumbered; without links."""
        index = Index(self.subject, self.walked)
        index.names = list(compress(self.names, alive))
        index.rows = {name: array(ROWS[name], compress(column, alive)) for name, column in self.rows.items()}
        number, numbers = 0, array("I")
        for one in alive:
            numbers.append(number)
            number += one > 0
        index.rows["parent"] = array("I", map(numbers.__getitem__, index.rows["parent"]))
        return index

    def encode(self) -> bytes:
        names = os.fsencode("\0".join(self.names))
        head = {
            "subject": self.subject,
            "walked": self.walked,
            "shared": self.shared,
            "rows": len(self),
            "links": len(self.links["row"]),
            "names": len(names),
        }
        parts = [json.dumps(head).encode() + b"\n"]
        parts += [column.tobytes() for column in (*self.rows.values(), *self.links.values())]
        body = b"".join([*parts, names])
        return _checksum(body) + body

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """The index in the bytes of a file. Raises ValueError for what encode() has not made."""
        whole = memoryview(data)
        end = data.find(b"\n", _CHECKSUM_BYTES, _LONGEST_HEAD) + 1
        if not end or _checksum(whole[_CHECKSUM_BYTES:]) != data[:_CHECKSUM_BYTES]:
            raise ValueError("not an index")
        head = json.loads(data[_CHECKSUM_BYTES:end])
        counts = [head[name] for name in ("rows", "links", "names", "walked", "shared")]
        if not (isinstance(head["subject"], dict) and all(isinstance(n, int) and n >= 0 for n in counts)):
            raise ValueError("not a head")
        index = cls(head["subject"], head["walked"])
        index.shared = head["shared"]
        rest = whole[end:]
        for columns, count in ((index.rows, head["rows"]), (index.links, head["links"])):
            for column in columns.values():
                column.frombytes(rest[: count * column.itemsize])
                rest = rest[count * column.itemsize :]
                if len(column) != count:
                    raise ValueError("cut short")
        if len(rest) != head["names"]:
            raise ValueError("cut short")
        index.names = os.fsdecode(bytes(rest)).split("\0")
        index._check()
        return index

    def _check(self) -> None:
        parents, names, links = self.rows["parent"], self.names, self.links["row"]
        sound = len(parents) == len(names) > 0 and not parents[0] and not names[0]
        sound = sound and all(parent < row for row, parent in enumerate(parents) if row)
        sound = sound and all(name and "/" not in name and name not in (".", "..") for name in names[1:])
        sound = sound and all(row < len(names) for row in links)
        if not sound or any(one > other for one, other in zip(links, links[1:])):
            raise ValueError("not a tree")


class IndexFile:
    """Where the index of the store open as root is kept, and what has to be as it was for it to count."""

    def __init__(self, store: Store, root: Root, run: Run) -> None:
        self._directory = run.index_dir
        self._name = f"index-{_checksum(os.fsencode(root.real)).hex()}"
        self.subject: dict[str, Any] = {}
        listed = mounts()
        mount = next((one for one in listed if one.id == root.mnt_id), None)
        read_only = os.fstatvfs(root.fd).f_flag & _ST_RDONLY
        known = mount is not None and mount.fstype in FILE_SYSTEMS
        if mount and mount.fstype == "overlay" and store.layout != "files":
            # Files may be on another device than their directory, which only a reading of files looks at.
            known = False
        if run.index_dir and known and not read_only:
            inside = root.real + "/"
            below = [[one.id, os.fsencode(one.path).hex()] for one in listed if one.path.startswith(inside)]
            self.subject = {
                "version": VERSION,
                "store": [*root.ident, root.mnt_id],
                "kind": [store.layout, store.policy.order, store.group_key],
                "user": os.geteuid(),
                "boot": boot_id(),
                "mounts": below,
                "lists_inodes": mount is not None and mount.fstype != "overlay",
            }

    def load(self) -> Index | None:
        """The index, if there is one that is about this; anything else is as good as none."""
        try:
            with _opened(self._directory) as directory:
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                with open(os.open(self._name, flags, dir_fd=directory), "rb") as stream:
                    st = os.fstat(stream.fileno())
                    if not (stat.S_ISREG(st.st_mode) and _trusted(st)) or st.st_size > _MOST_BYTES:
                        return None
                    index = Index.decode(stream.read(_MOST_BYTES + 1))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        return index if self.subject and index.subject == self.subject else None

    def save(self, index: Index) -> None:
        """Keep the index; where that cannot be, there is none."""
        data = index.encode()
        with suppress(OSError), _opened(self._directory) as directory:
            new = f".{self._name}.new"
            with suppress(FileNotFoundError):
                os.unlink(new if len(data) <= _MOST_BYTES else self._name, dir_fd=directory)
            if len(data) > _MOST_BYTES:
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with open(os.open(new, flags, 0o600, dir_fd=directory), "wb") as stream:
                    stream.write(data)
                os.rename(new, self._name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                os.unlink(new, dir_fd=directory)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """The directory at path, open. Raises OSError, also when others can write it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not _trusted(os.fstat(fd)):
            raise PermissionError(f"{path} can be written by others")
        yield fd
    finally:
        os.close(fd)


def _trusted(st: os.stat_result) -> bool:
    """Whether nobody but root and this user can have written it."""
    return st.st_uid in (0, os.geteuid()) and not st.st_mode & 0o022
