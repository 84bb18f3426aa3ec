# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an archive is made of, and reading from one of which nothing can be believed."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Callable

from .errors import BesomError
from .units import printable

CHUNK = 256 * 1024
# The longest path that a system call takes (PATH_MAX, limits.h).
LONGEST_NAME = 4096


class BadArchive(BesomError):
    """The archive is damaged, of a kind that is not known, or hostile."""


@dataclass
class Member:
    """One member of an archive, as it claims to be.

    kind: file, directory, symlink or link (a hard link); mode: permission and set-id bits; mtime in
    seconds since the epoch; link: the target of a link; content: of a file, to be read before the next
    member is asked for.
    """

    name: str
    kind: str
    mode: int
    mtime: float
    link: str = ""
    content: Iterable[bytes] = ()


def decode(name: bytes) -> str:
    """A name or link target as this host writes names. Raises BadArchive for what is no text."""
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise BadArchive(f"The archive holds {printable(name[:200])}, which is not UTF-8.") from None
    if "\0" in text or len(name) > LONGEST_NAME:
        raise BadArchive(f"The archive holds {printable(text[:200])}, which is no name of a file.")
    return os.fsdecode(name)


class Reader:
    """Reads a stream of which nothing is known; unpacked is told the bytes of each piece that it gives."""

    def __init__(self, stream: Any, unpacked: Callable[[int], None]) -> None:
        self._stream, self._unpacked = stream, unpacked
        self._piece, self._position = b"", 0

    def read(self, size: int) -> bytes:
        """At most size bytes; fewer than that only at the end. Raises BadArchive, or OSError of the disk."""
        found = []
        while size > 0:
            part = self._piece[self._position : self._position + size]
            if not part:
                # In large pieces, however small the headers are.
                self._piece, self._position = self._next(), 0
                if not self._piece:
                    break
                continue
            self._position += len(part)
            size -= len(part)
            found.append(part)
        return found[0] if len(found) == 1 else b"".join(found)

    def _next(self) -> bytes:
        try:
            piece: bytes = self._stream.read(CHUNK)
        except OSError as error:
            if error.errno is None:  # what bz2 raises for damage
                raise damaged() from error
            raise
        except (EOFError, ValueError, MemoryError, zlib.error) as error:
            raise damaged() from error
        except Exception as error:
            # Not every Python has them.
            if type(error).__name__ in ("LZMAError", "ZstdError"):
                raise damaged() from error
            raise
        self._unpacked(len(piece))
        return piece

    def exactly(self, size: int) -> bytes:
        """Size bytes. Raises BadArchive when the stream ends before."""
        data = self.read(size)
        if len(data) < size:
            raise ended()
        return data


def too_many(entries: int) -> BadArchive:
    return BadArchive(
        f"The archive holds more than {entries} entries; raise max_entries if it is to be trusted."
    )


def damaged() -> BadArchive:
    return BadArchive("The archive is damaged; download it again, and give its checksum.")


def ended() -> BadArchive:
    return BadArchive("The archive ends too early; download it again, and give its checksum.")
