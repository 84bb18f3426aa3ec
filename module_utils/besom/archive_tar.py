# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""tar: ustar, pax and GNU, as tar(5) of libarchive and POSIX.1-2017 (pax) describe them.

One pass over a stream. A sparse, multi-volume or incremental archive is refused, and so is one without
its end mark: nothing else tells whether a plain tar is whole.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from .archive import CHUNK, BadArchive, Member, Reader, decode, ended
from .units import printable

BLOCK = 512
# Header blocks that describe the next member: names, and what else pax has. Linux allows no longer name.
_MOST_HEADER = 1024**2
_KINDS = {b"0": "file", b"\0": "file", b"7": "file", b"1": "link", b"2": "symlink", b"5": "directory"}
_REFUSED = {
    b"3": "a device",
    b"4": "a device",
    b"6": "a FIFO",
    b"S": "a sparse file, which besom does not extract",
    b"M": "a part of a file in another volume",
    b"D": "part of an incremental backup",
}
_PAX = (b"x", b"X", b"g")
_SPARSE = re.compile(rb"GNU\.sparse\.|SCHILY\.realsize$|SUN\.holesdata$")
_USED = ("path", "linkpath", "size", "mtime")


def is_tar(block: bytes) -> bool:
    """Whether this is the first block of a tar: its checksum is right, summed as signed bytes or unsigned."""
    if len(block) < BLOCK:
        return False
    text = block[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]+", text):
        return False
    rest = block[:148] + b" " * 8 + block[156:]
    total = sum(rest)
    return int(text, 8) in (total, total - 256 * sum(byte > 127 for byte in rest))


def tar_members(stream: Reader) -> Iterator[Member]:
    """The members of a tar; what follows its end is read as well, so that damage to it is found."""
    everywhere: dict[str, str] = {}
    once: dict[str, str] = {}
    while True:
        block = stream.exactly(BLOCK)
        if not any(block):
            if once:
                raise ended()
            break
        if not is_tar(block):
            raise BadArchive("The archive is damaged: a header in it is none; download it again.")
        kind, size = block[156:157], _number(block[124:136])
        if kind in _PAX:
            (everywhere if kind == b"g" else once).update(_records(_header(stream, size)))
        elif kind in (b"L", b"K"):
            name = decode(_header(stream, size).split(b"\0", 1)[0])
            once["path" if kind == b"L" else "linkpath"] = name
        elif kind == b"V":
            _skip(stream, size)
        else:
            yield from _member(stream, block, size, {**everywhere, **once})
            once = {}
    while stream.read(CHUNK):
        pass


def _member(stream: Reader, block: bytes, size: int, pax: dict[str, str]) -> Iterator[Member]:
    type_ = block[156:157]
    name = pax.get("path") or _path(block)
    kind = _KINDS.get(type_, "")
    if not kind or "sparse" in pax:
        what = _REFUSED.get(type_ if not kind else b"S", "of a kind that besom does not know")
        raise BadArchive(f"The archive holds {printable(name)}, {what}; it is refused.")
    if kind == "file" and name.endswith("/"):
        kind = "directory"  # as tar wrote them before 1988
    if "size" in pax:
        if not re.fullmatch(r"[0-9]{1,18}", pax["size"]):
            raise BadArchive(f"The archive is damaged: {printable(name)} has no size; download it again.")
        size = int(pax["size"])
    link = ""
    if kind in ("link", "symlink"):
        link = pax.get("linkpath") or decode(_text(block[157:257]))
    # Some archivers give a hard link, or a directory, a size that no data follow (tar(5)).
    data = size if kind == "file" else 0
    content = _content(stream, data)
    mode = _number(block[100:108]) & 0o7777
    yield Member(name, kind, mode, _time(pax.get("mtime", ""), block[136:148]), link, content)
    # What nobody has read lies in the way of the next header.
    for _chunk in content:
        pass


def _content(stream: Reader, size: int) -> Iterator[bytes]:
    left = size
    while left:
        chunk = stream.exactly(min(left, CHUNK))
        left -= len(chunk)
        yield chunk
    stream.exactly(-size % BLOCK)


def _skip(stream: Reader, size: int) -> None:
    for _chunk in _content(stream, size):
        pass


def _header(stream: Reader, size: int) -> bytes:
    if size > _MOST_HEADER:
        raise BadArchive(f"The archive has a header of {size} bytes; it is refused.")
    return stream.exactly(size + -size % BLOCK)[:size]


def _text(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _path(block: bytes) -> str:
    name = _text(block[:100])
    # GNU's own format has times where ustar has the first part of a long name.
    prefix = _text(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return decode(prefix + b"/" + name if prefix else name)


def _number(field: bytes) -> int:
    """An octal number, or one in base 256 as GNU writes what is too large for that."""
    if field[0] & 0x80:
        number = int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
        if field[0] & 0x40 or number >= 2**63:
            raise BadArchive("The archive is damaged: a number in it cannot be; download it again.")
        return number
    text = field.split(b"\0", 1)[0].strip()
    if not re.fullmatch(rb"[0-7]*", text):
        raise BadArchive("The archive is damaged: a number in it is none; download it again.")
    return int(text or b"0", 8)


def _time(pax: str, field: bytes) -> float:
    """Seconds since the epoch; what cannot be read is 0, since nothing depends on it."""
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]*)?", pax):
        return float(pax)
    try:
        return float(_number(field))
    except BadArchive:
        return 0.0


def _records(data: bytes) -> dict[str, str]:
    """Those records of a pax header that are used, each `LENGTH KEY=VALUE\\n`, LENGTH counting all of it."""
    found = {}
    position = 0
    while position < len(data):
        match = re.compile(rb"([0-9]{1,7}) ([^=\n]{1,1000})=").match(data, position)
        length = int(match.group(1)) if match else 0
        record = data[position : position + length]
        if not match or len(record) < length or match.end() >= position + length or record[-1:] != b"\n":
            raise BadArchive("The archive is damaged: a pax header in it is none; download it again.")
        key = match.group(2).decode("utf-8", "replace")
        # Of all others, comments and users' names, nothing is kept: there may be any number of them.
        if key in _USED:
            found[key] = decode(data[match.end() : position + length - 1])
        elif _SPARSE.match(match.group(2)):
            found["sparse"] = key
        position += length
    return found
