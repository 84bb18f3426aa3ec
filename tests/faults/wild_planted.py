# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Faults of each kind that wild.py is there to find, planted in readers: both drivers have to find them."""

from __future__ import annotations

import contextlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from besom.errors import UsageError
from besom.units import parse_size

from .wild import Target
from .wild_targets import TARGETS, text_of


def lets_an_error_out(data: bytes, _place: Path) -> None:
    """A reader of mountinfo that does not count the words of a line."""
    for line in data.split(b"\n"):
        line.split(b" ")[9]


def loses_a_limit(data: bytes, place: Path) -> Any:
    """A size that cannot be read counts as none: the store is pruned by what else it says."""

    def lenient(value: Any, name: str = "size") -> int | None:
        with contextlib.suppress(UsageError):
            return parse_size(value, name)
        return None

    with mock.patch("besom.policy.parse_size", lenient):
        return TARGETS["config"].feed(data, place)


def takes_the_square(data: bytes, _place: Path) -> str:
    """Until it was found: redact() of what is no URL."""
    return re.sub(r"(?s)(?<=//).*@", "", text_of(data))


def writes_outside(data: bytes, place: Path) -> None:
    """The name of a member, taken as it is."""
    name = data[:100].split(b"\0")[0]
    with contextlib.suppress(OSError, ValueError):
        (place / text_of(name)).resolve().relative_to(place.parent)
        (place / text_of(name)).write_bytes(b"")


def shows_a_line_break(data: bytes, _place: Path) -> None:
    raise UsageError(f"'{text_of(data)}' is no size.")


def takes_all_memory(data: bytes, _place: Path) -> int:
    """The size that a header tells, believed."""
    digits = re.match(rb"[0-9]{1,10}", data)
    return len(bytearray(int(digits[0]))) if digits else 0


_LIKE = {
    "lets an error out": ("mountinfo", lets_an_error_out, IndexError),
    "loses a limit": ("config", loses_a_limit, AssertionError),
    "takes the square": ("URLs", takes_the_square, None),
    "writes outside": ("archive", writes_outside, AssertionError),
    "shows a line break": ("sizes and durations", shows_a_line_break, AssertionError),
    "takes all memory": ("sizes and durations", takes_all_memory, MemoryError),
}
# What is planted: a target like one of the table, but for how it is fed.
PLANTED: dict[str, Target] = {
    name: replace(
        TARGETS[like],
        name=like,
        feed=feed,
        check=TARGETS[like].check if name == "loses a limit" else (lambda _data, _place, _result: None),
        answers=(UsageError,) if name == "shows a line break" else (),
        seconds=0.3 if name == "takes the square" else TARGETS[like].seconds,
        tokens=(*TARGETS[like].tokens, b"../x"),
    )
    for name, (like, feed, _error) in _LIKE.items()
}
