# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a log in CLEF tells, each line held against the table of events."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from inotify_simple import INotify, flags

from besom_host.events import COMMON, EVENTS, TYPES

from .host import PATIENCE_S

_LEVELS = {"info": None, "warning": "Warning", "error": "Error"}


def check(line: str) -> dict[str, Any]:
    """A line of CLEF as its values; it is what the specification and the table say."""
    values = json.loads(line)
    event = EVENTS[values["event"]]
    assert line.isascii()
    assert datetime.fromisoformat(values["@t"]).utcoffset() is not None
    assert values["@mt"] == event.sentence
    assert values.get("@l") == _LEVELS[event.level]
    assert ("@x" in values) == event.trace
    properties = {name: value for name, value in values.items() if not name.startswith("@")}
    declared = {**COMMON, **event.fields}
    assert set(properties) == set(declared), event.name
    for name, value in properties.items():
        kinds = TYPES[declared[name][0]]
        assert isinstance(value, kinds), (event.name, name, value)
        assert isinstance(value, bool) == (kinds == (bool,)), (event.name, name, value)
        assert not isinstance(value, str) or value.isprintable()
    return dict(values)


def told(log: Path, until: str = "", times: int = 1) -> list[dict[str, Any]]:
    """The events of a log, once it has the one named, so many times."""
    deadline = time.monotonic() + PATIENCE_S
    with INotify() as news:
        news.add_watch(log.parent, flags.MODIFY | flags.CREATE | flags.MOVED_TO)
        while True:
            text = log.read_text() if log.exists() else ""
            found = [check(line) for line in text.split("\n")[:-1]]
            if not until or sum(values["event"] == until for values in found) >= times:
                return found
            left = deadline - time.monotonic()
            assert left > 0, f"{until} is not told: {text}"
            news.read(timeout=int(left * 1000))
