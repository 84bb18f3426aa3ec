# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The metadata of a session: when it was created, and its group. Nothing is guessed, whatever it says."""

from __future__ import annotations

import json
import re
from calendar import timegm
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from .tree import LATEST
from .units import printable

# Larger files are not read, bytes.
MOST = 1 << 20
# How far the clock of another machine may be ahead, in ns.
SKEW = 5 * 60 * 10**9
_LONGEST_NUMBER, _LONGEST_GROUP = 40, 255

# ISO 8601 and RFC 3339, extended or basic; a date alone is its first instant.
_FRACTION, _ZONE = r"(?:[.,](?P<f>\d{1,30}))?", r"(?P<z>[Zz]|[+-]\d\d(?::?\d\d)?)?"
_ISO = re.compile(
    r"(?P<Y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)"
    rf"(?:[Tt ](?P<H>\d\d):(?P<M>\d\d)(?::(?P<S>\d\d){_FRACTION})?{_ZONE})?",
    re.ASCII,
)
_BASIC = re.compile(
    r"(?P<Y>\d{4})(?P<m>\d\d)(?P<d>\d\d)"
    rf"[Tt](?P<H>\d\d)(?P<M>\d\d)(?:(?P<S>\d\d){_FRACTION})?{_ZONE}",
    re.ASCII,
)


class Unfit(ValueError):
    """Why metadata says nothing that a removal could rest on, in a few words."""


@dataclass(frozen=True)
class Metadata:
    """created: ns since the epoch; group: empty where there is none."""

    created: int
    group: str = ""


def parse(data: bytes, now: int, group_key: str = "group") -> Metadata:
    """What the bytes of a metadata file say at the time now (ns). Raises Unfit, and nothing else."""
    try:
        values = _DECODER.decode(data.decode("utf-8-sig"))
    except Unfit:
        raise
    except (ValueError, RecursionError):
        raise Unfit("its metadata is not valid JSON") from None
    if not isinstance(values, Mapping):
        raise Unfit("its metadata is not a JSON object")
    if values.get("created_at") is None:
        raise Unfit("its metadata has no created_at")
    created = _instant(values["created_at"])
    if created is None:
        raise Unfit(f"its created_at is no date: {_shown(values['created_at'])}")
    if created <= 0:
        raise Unfit(f"its created_at is not after 1970: {_shown(values['created_at'])}")
    if created > now + SKEW or created > LATEST:
        raise Unfit(f"its created_at is in the future: {_shown(values['created_at'])}")
    return Metadata(created, _group(values.get(group_key)))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; one in which a key stands twice says two things (RFC 8259, 4)."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Unfit("its metadata has a key twice")
    return values


def _number(text: str) -> Any:
    """An exact number; infinite where it is none, or longer than any time is."""
    try:
        return Decimal(text) if len(text) <= _LONGEST_NUMBER else Decimal("inf")
    except ArithmeticError:
        return Decimal("inf")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_once, parse_int=_number, parse_float=_number, parse_constant=_number
)


def _instant(value: Any) -> int | None:
    """ns since the epoch; None for what is no date."""
    if isinstance(value, Decimal):
        if not value.is_finite() or abs(value) > 10**15:
            return None
        return int(value * 10**9)
    if not isinstance(value, str):
        return None
    match = _ISO.fullmatch(value.strip()) or _BASIC.fullmatch(value.strip())
    if match is None:
        return None
    parts = {key: int(match[key] or 0) for key in "YmdHMS"}
    # A leap second is the one before it, which is what most clocks make of it.
    second = min(parts["S"], 59) if parts["S"] <= 60 else parts["S"]
    try:
        date = datetime(parts["Y"], parts["m"], parts["d"], parts["H"], parts["M"], second)
    except ValueError:
        return None
    zone = match["z"] or "Z"
    offset = 0
    if zone not in "Zz":
        hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
        if hours > 23 or minutes > 59:
            return None
        offset = (hours * 60 + minutes) * (-60 if zone[0] == "-" else 60)
    fraction = int((match["f"] or "0").ljust(9, "0")[:9])
    return (timegm(date.timetuple()) - offset) * 10**9 + fraction


def _group(value: Any) -> str:
    if isinstance(value, Decimal) and value.is_finite() and value == value.to_integral_value():
        value = str(value)
    return value if isinstance(value, str) and len(value) <= _LONGEST_GROUP else ""


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "a list" if isinstance(value, list) else "an object"
    text = printable(str(value)) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= _LONGEST_NUMBER else f"{text[:_LONGEST_NUMBER]}..."
