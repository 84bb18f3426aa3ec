# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Decompression of gz, bz2, xz and zst, told by their first bytes; in pieces, whatever comes out."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Iterable
from typing import Any, Callable, Protocol

from .archive import CHUNK, ended
from .errors import BesomError

# xz -9 needs 65 MiB, zstd without --ultra 8 MiB; a header may ask for gigabytes.
MOST_MEMORY = 256 * 1024**2
_ZSTD = ("compression.zstd", "backports.zstd", "pyzstd")


class Stream(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes:
        """At most size bytes; none at the end."""


def inflated(archive: Stream, head: bytes) -> Any:
    """What reads the content of an archive that begins with head; the archive itself if it is not compressed.

    Raises BesomError where this Python has no library for it.
    """
    for magic, inflate in _INFLATERS.items():
        if head.startswith(magic):
            return inflate(archive)
    return archive


class _Inflated:
    """The content of one compressed stream after the other (pigz, pbzip2 and pixz write several)."""

    def __init__(self, stream: Stream, begin: Callable[[], Any]) -> None:
        self._stream, self._begin = stream, begin
        self._one = begin()

    def read(self, size: int) -> bytes:
        while True:
            if self._one.eof:
                fed = self._one.unused_data.lstrip(b"\0")
                while not fed:
                    more = self._stream.read(CHUNK)
                    if not more:
                        return b""
                    # xz may be padded with zeros, and all of them on tapes.
                    fed = more.lstrip(b"\0")
                self._one = self._begin()
            else:
                fed = self._stream.read(CHUNK) if self._one.needs_input else b""
            starved = self._one.needs_input and not fed
            data: bytes = self._one.decompress(fed, size)
            if data:
                return data
            if starved and not self._one.eof:
                raise ended()


class _Gunzip:
    """zlib's decompressor of a gzip member, with the interface of the others."""

    def __init__(self) -> None:
        self._one = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, size: int) -> bytes:
        return self._one.decompress(self._one.unconsumed_tail + data, size)

    @property
    def eof(self) -> bool:
        return self._one.eof

    @property
    def needs_input(self) -> bool:
        return not self._one.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._one.unused_data


def _gzip(stream: Stream) -> Any:
    return _Inflated(stream, _Gunzip)


def _bzip2(stream: Stream) -> Any:
    return _Inflated(stream, _library("bz2 archive", ("bz2",)).BZ2Decompressor)


def _xz(stream: Stream) -> Any:
    lzma = _library("xz archive", ("lzma",))
    return _Inflated(stream, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MOST_MEMORY))


def _zstd(stream: Stream) -> Any:
    found = _library("zst archive", (*_ZSTD, "zstandard"))
    if found.__name__ == "zstandard":
        return found.ZstdDecompressor(max_window_size=MOST_MEMORY).stream_reader(
            stream, read_across_frames=True
        )
    return _Inflated(stream, found.ZstdDecompressor)


def _library(what: str, names: Iterable[str]) -> Any:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise BesomError(
        f"This Python has nothing to read a {what} with; install the Python package {name} for it, "
        "or choose another archive."
    )


_INFLATERS: dict[bytes, Callable[[Stream], Any]] = {
    b"\x1f\x8b": _gzip,
    b"BZh": _bzip2,
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
}
