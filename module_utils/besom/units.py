# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sizes, durations and names: how people write them, how besom prints them."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from typing import Any

from .errors import UsageError

_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([KMGTPE]?)(i?B)?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([smhdw]?)")
_PERCENT = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%")
_FACTOR = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T", "P", "E"))}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
# What signed 64-bit figures of the kernel can hold, in bytes and in nanoseconds.
_MOST = 2**63 - 1
_LONGEST_SHOWN = 200


def _text(value: Any) -> str:
    if isinstance(value, str):
        # Decimal takes the digits of any script.
        return value.strip() if value.isascii() else ""
    # True is an int in Python; str() raises ValueError for a whole number of more than 4300 digits.
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _MOST:
        return repr(value)
    return ""


def parse_size(value: Any, name: str = "size") -> int:
    """Bytes in `500`, `500B`, `10K`, `1.5GiB`; K = KB = KiB = 1024.

    name: the option or key, for the message. Raises UsageError when the value is malformed, zero or
    more than 2**63 - 1 bytes.
    """
    match = _SIZE.fullmatch(_text(value))
    if match:
        number, unit, suffix = match.groups()
        size = int(Decimal(number) * _FACTOR[unit.upper()])
        if 0 < size <= _MOST and not (suffix and suffix.lower() == "ib" and not unit):
            return size
    raise UsageError(f"{name}: {_quoted(value)} is not a size above zero; write for example 500M or 10GiB.")


def parse_duration(value: Any, name: str = "duration", zero: bool = False) -> float:
    """Seconds in `90`, `90s`, `15m`, `24h`, `7d`, `2w`.

    zero: whether 0 is allowed (it is for timeouts only). Raises UsageError when the value is malformed
    or longer than 292 years (2**63 nanoseconds).
    """
    match = _DURATION.fullmatch(_text(value))
    if match:
        number, unit = match.groups()
        seconds = Decimal(number) * _SECONDS[unit]
        if (zero or seconds > 0) and seconds * 10**9 <= _MOST:
            return float(seconds)
    least = "a duration" if zero else "a duration above zero"
    raise UsageError(f"{name}: {_quoted(value)} is not {least}; write for example 90s, 15m, 24h, 7d or 2w.")


def parse_count(value: Any, name: str = "count") -> int:
    """A whole number above zero. Raises UsageError for anything else."""
    text = _text(value)
    if re.fullmatch(r"[0-9]{1,18}", text) and int(text) > 0:
        return int(text)
    raise UsageError(f"{name}: {_quoted(value)} is not a whole number above zero.")


def parse_factor(value: Any, name: str = "factor") -> float:
    """A number of zero or more. Raises UsageError for anything else."""
    try:
        text = _text(value)
        # Of what Decimal reads, 2_ is a misprint.
        number = Decimal(text if "_" not in text else -1)
    except InvalidOperation:
        number = Decimal(-1)
    if number.is_finite() and 0 <= number <= 1000:
        return float(number)
    raise UsageError(f"{name}: {_quoted(value)} is not a number from 0 to 1000.")


class Share:
    """A size in bytes, or a percentage of a file system: `10GiB` or `5%`."""

    def __init__(self, value: Any, name: str = "size") -> None:
        self.percent: Decimal | None = None
        self.size = 0
        match = _PERCENT.fullmatch(_text(value))
        if match:
            self.percent = Decimal(match.group(1))
            if not 0 < self.percent < 100:
                raise UsageError(f"{name}: {_quoted(value)} is not between 0% and 100%.")
        else:
            self.size = parse_size(value, name)

    def of(self, total: int) -> int:
        """The bytes this means on a file system of total bytes."""
        return self.size if self.percent is None else int(self.percent * total / 100)

    def __str__(self) -> str:
        return format_size(self.size) if self.percent is None else f"{self.percent}%"


def format_size(size: int) -> str:
    """`0 B`, `500 B`, `23.4 MiB`: one decimal from KiB on."""
    if abs(size) < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        value /= 1024
        if abs(value) < 1023.95 or unit == "EiB":
            return f"{value:.1f} {unit}"
    raise AssertionError("unreachable")


def format_duration(seconds: float) -> str:
    """`40s`, `15m`, `24h`, `3.5d`: the largest unit that gives at least 1, at most one decimal."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms" if seconds else "0s"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        # 24h and 90s read better than 1d and 1.5m.
        if seconds >= 2 * length or unit == "s":
            return f"{seconds / length:.1f}".rstrip("0").rstrip(".") + unit
    raise AssertionError("unreachable")


def printable(path: str | bytes) -> str:
    r"""A path as one line of plain text that stands for exactly one name.

    Bytes that are not UTF-8, and characters that do not print (newlines, escapes, line separators,
    direction marks), are written as `\xNN` byte by byte; a backslash is doubled, so the text can be
    turned back without doubt and no name can forge a line of a log.
    """
    name = os.fsdecode(path)
    if name.isprintable() and "\\" not in name:
        return name
    with suppress(UnicodeEncodeError):
        # Where the file system's encoding is ASCII, all that is not comes as single bytes.
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return "".join(map(_escape, name))


def shown(value: Any) -> str:
    """A value as a message shows it: one line of at most 200 characters, whatever somebody has written."""
    # str() raises ValueError for a whole number of more than 4300 digits.
    text = hex(value) if isinstance(value, int) and abs(value) > _MOST else str(value)
    line = printable(text[:_LONGEST_SHOWN])
    return line if len(line) <= _LONGEST_SHOWN >= len(text) else f"{line[:_LONGEST_SHOWN]}..."


def from_printable(text: str) -> str:
    r"""The name that printable() has written as text: `\\` is a backslash, `\xNN` a byte, all else itself.

    Raises UsageError for a backslash that stands for nothing: what was meant cannot be told.
    """

    def meant(match: re.Match[bytes]) -> bytes:
        mark = match.group(1)
        if not mark:
            raise UsageError(
                f"{_quoted(text)} has a lone backslash; write a backslash as two of them, a byte as \\xNN."
            )
        return mark if mark == b"\\" else bytes.fromhex(mark[1:].decode())

    return os.fsdecode(re.sub(rb"\\(\\|x[0-9a-fA-F]{2}|)", meant, os.fsencode(text)))


def _escape(char: str) -> str:
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    # JSON can hold other halves of characters, which no name of a file can.
    how = "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", how))


def is_name(text: str) -> bool:
    """Whether a text can be the name or path of a file here: it encodes, and holds no NUL byte."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _quoted(value: Any) -> str:
    huge = isinstance(value, int) and abs(value) > _MOST
    # No more of it than is shown, and one character that tells of the rest.
    text = printable(value[:81]) if isinstance(value, str) else hex(value) if huge else repr(value)
    return f"'{text[:80]}...'" if len(text) > 80 else f"'{text}'"
