# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""zip, through the standard library's zipfile (which reads names and sizes, and extracts nothing)."""

from __future__ import annotations

import calendar
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, Callable, cast

from .archive import CHUNK, LONGEST_NAME, BadArchive, Member, damaged, decode, too_many
from .inflate import MOST_MEMORY
from .units import printable

# The table of contents is read in one piece; this one holds some 300,000 names.
_MOST_CONTENTS = 32 * 1024**2
_UNIX = 3


class _Bounded(io.RawIOBase):
    """A file of which nobody reads more than the largest table of contents at once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        if size > _MOST_CONTENTS:
            raise BadArchive("The archive has too long a table of contents; it is refused.")
        return self._stream.read(_MOST_CONTENTS if size < 0 else size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


class _Contents(list[zipfile.ZipInfo]):
    """A table of contents that ends at the entries allowed, whatever number the archive tells."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def append(self, info: zipfile.ZipInfo) -> None:
        # One directory may not count, where it is stripped.
        if len(self) > self._most:
            raise too_many(self._most)
        super().append(info)


class _Zip(zipfile.ZipFile):
    """zipfile appends to filelist what it reads, each some 1 KB in memory."""

    def __init__(self, archive: BinaryIO, most: int) -> None:
        self._contents = _Contents(most)
        super().__init__(_Bounded(archive))

    @property
    def filelist(self) -> list[zipfile.ZipInfo]:
        return self._contents

    @filelist.setter
    def filelist(self, _empty: list[zipfile.ZipInfo]) -> None:
        """It begins empty, and is never replaced."""


@contextmanager
def _reading() -> Iterator[None]:
    """Turn all that zipfile raises for an archive that is none into one sentence."""
    try:
        yield
    except BadArchive:
        raise
    except OSError as error:
        # Without a number it is not the disk's.
        if error.errno is not None and not isinstance(error, UnicodeError):
            raise
        raise damaged() from error
    except NotImplementedError as error:
        raise BadArchive("The archive is packed in a way that this Python cannot read.") from error
    except (
        *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError),
        *(ValueError, OverflowError, LookupError, MemoryError),
    ) as error:
        raise damaged() from error
    except Exception as error:
        if type(error).__name__ == "LZMAError":
            raise damaged() from error
        raise


def is_zip(head: bytes) -> bool:
    """Whether a file that begins with head is a zip file, or an empty one."""
    return head.startswith((b"PK\3\4", b"PK\5\6"))


def zip_members(archive: BinaryIO, unpacked: Callable[[int], None], most: int) -> Iterator[Member]:
    """The members of a zip file, in the order of its table of contents. most: how many are allowed."""
    with _reading():
        opened = _Zip(archive, most)
    with opened:
        for info in opened.infolist():
            yield _member(opened, info, unpacked)


def _member(opened: zipfile.ZipFile, info: zipfile.ZipInfo, unpacked: Callable[[int], None]) -> Member:
    name = decode(info.orig_filename.encode())
    shown = printable(name[:200])
    if info.flag_bits & 0x1:
        raise BadArchive(f"The archive holds {shown}, which is encrypted; it is refused.")
    unix = info.external_attr >> 16 if info.create_system == _UNIX else 0
    mtime = _time(info)
    if name.endswith("/"):
        return Member(name, "directory", unix & 0o7777 or 0o755, mtime)
    if stat.S_ISLNK(unix):
        target = b"".join(_content(opened, info, unpacked, LONGEST_NAME))
        try:
            return Member(name, "symlink", 0o777, mtime, os.fsdecode(target.decode().encode()))
        except UnicodeDecodeError:
            raise BadArchive(f"The archive holds {shown}, a link to what is not UTF-8.") from None
    if stat.S_IFMT(unix) not in (0, stat.S_IFREG):
        raise BadArchive(f"The archive holds {shown}, which is no file; it is refused.")
    return Member(name, "file", unix & 0o7777 or 0o644, mtime, content=_content(opened, info, unpacked))


def _content(
    opened: zipfile.ZipFile, info: zipfile.ZipInfo, unpacked: Callable[[int], None], limit: int = 0
) -> Iterator[bytes]:
    """What info names, checked against its CRC at the end; more than limit (if any) is refused."""
    with _reading():
        if info.compress_type == zipfile.ZIP_LZMA and _dictionary(opened, info) > MOST_MEMORY:
            raise BadArchive("The archive wants too much memory; it is refused.")
        stream = opened.open(info)
    read = 0
    with stream:
        while True:
            with _reading():
                chunk = stream.read(CHUNK)
            if not chunk:
                break
            read += len(chunk)
            unpacked(len(chunk))
            if limit and read > limit:
                raise BadArchive(f"The archive holds {printable(info.filename[:200])}, too long a link.")
            yield chunk
    if read != info.file_size:
        raise damaged()


def _dictionary(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """The bytes of memory that what is packed by LZMA asks for (APPNOTE.TXT, 4.3.7 and 5.8.8)."""
    archive = cast(IO[bytes], opened.fp)  # it is open
    archive.seek(info.header_offset)
    name, extra = struct.unpack("<26xHH", archive.read(30))
    archive.seek(name + extra, os.SEEK_CUR)
    size: int = struct.unpack("<5xI", archive.read(9))[0]
    return size


def _time(info: zipfile.ZipInfo) -> float:
    """Seconds since the epoch; the format knows no time zone, so that of the archive counts as UTC."""
    try:
        return float(calendar.timegm((*info.date_time, 0, 0, 0)))
    except (ValueError, OverflowError):
        return 0.0
