# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where a file came from, kept with it in the extended attribute user.besom.origin.

Where a file system has no such attributes nothing is resumed, and every check reads the whole file.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields, replace

_NAME = "user.besom.origin"
# All attributes of a file share one block on ext4; a validator that long is left out.
_LONGEST = 512


@dataclass(frozen=True)
class Origin:
    """What a server said of a file, and which file it was.

    source: digest of the URL, which may hold secrets; etag and modified: the validators as they came
    (RFC 9110, 8.8); strong: whether one of them vouches byte for byte; size: of the whole, -1 where the
    server did not say. checksum, inode and mtime_ns are set once the file is whole.
    """

    source: str
    etag: str = ""
    modified: str = ""
    strong: bool = False
    size: int = -1
    checksum: str = ""
    inode: int = 0
    mtime_ns: int = 0

    @property
    def if_range(self) -> str:
        """The validator for If-Range, which has to be strong (RFC 9110, 13.1.5); empty: there is none."""
        if not self.strong:
            return ""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    @property
    def conditions(self) -> dict[str, str]:
        """The headers of a request that only a changed file answers with its content."""
        if self.etag:
            return {"If-None-Match": self.etag}
        return {"If-Modified-Since": self.modified} if self.modified else {}

    def vouches(self, st: os.stat_result, owner: int | None = None) -> bool:
        """Whether the file with this stat still is the one that was fetched.

        By inode, size and mtime, as git's index does; not for a file that others than this user (and
        owner, a uid) may have written and given its old mtime again.
        """
        mine = st.st_uid in (os.geteuid(), owner) and not st.st_mode & 0o022
        same = (self.inode, self.size, self.mtime_ns) == (st.st_ino, st.st_size, st.st_mtime_ns)
        return mine and same and bool(self.checksum)

    def of_file(self, fd: int, checksum: str) -> Origin:
        """This origin for the whole file that fd is open on."""
        st = os.fstat(fd)
        return replace(self, size=st.st_size, checksum=checksum, inode=st.st_ino, mtime_ns=st.st_mtime_ns)


def digest_of(url: str) -> str:
    """What stands for a URL in an origin."""
    return hashlib.sha256(url.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def said(url: str, headers: Mapping[str, str], size: int) -> Origin:
    """The origin that the headers of a response tell of."""
    etag, modified = headers.get("ETag", "") or "", headers.get("Last-Modified", "") or ""
    etag = etag if _is_plain(etag) else ""
    modified = modified if _is_plain(modified) else ""
    strong = bool(etag) and not etag.startswith("W/")
    if not etag and modified:
        # A file may change twice within one second of its date (RFC 9110, 8.8.2.2).
        with suppress(TypeError, ValueError, IndexError, OverflowError):
            dated = email.utils.parsedate_to_datetime(headers.get("Date", ""))
            strong = (dated - email.utils.parsedate_to_datetime(modified)).total_seconds() >= 1
    return Origin(digest_of(url), etag, modified, strong, size)


def _is_plain(value: str) -> bool:
    return len(value) <= _LONGEST and value.isascii() and value.isprintable()


def write_origin(fd: int, origin: Origin) -> None:
    """Keep origin with the file that fd is open on, where that can be."""
    with suppress(OSError):
        os.setxattr(fd, _NAME, json.dumps(vars(origin)).encode())


def read_origin(fd: int) -> Origin | None:
    """The origin kept with the file that fd is open on; None where besom wrote none."""
    try:
        values = json.loads(os.getxattr(fd, _NAME))
        known = {field.name: values[field.name] for field in fields(Origin)}
        blank = Origin("")
        if all(type(value) is type(getattr(blank, name)) for name, value in known.items()):
            origin = Origin(**known)
            if _is_plain(origin.etag) and _is_plain(origin.modified):
                return origin
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    return None
