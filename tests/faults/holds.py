# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who held a store when, and who changed it when: read from what strace(1) recorded of real processes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

CALLS = "clone,clone3,fork,vfork,flock,close,unlinkat,renameat,renameat2,exit_group"
_LINE = re.compile(
    r"(?P<pid>\d+) +(?P<at>[\d.]+) (?:(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?)[^<]*"
    r"(?:<(?P<took>[\d.]+)>)?|\+\+\+ (?:exited|killed) .*)"
)
_BEGUN = " <unfinished ...>"
_RESUMED = re.compile(r"(?P<pid>\d+) +[\d.]+ <\.\.\. \w+ resumed>(?P<rest>.*)")


def recorder(to: Path) -> list[str]:
    """The words before a command that record it and all that it forks in the file to."""
    options = ["-f", "--seccomp-bpf", "-q", "-y", "-T", "--absolute-timestamps=format:unix,precision:ns"]
    return ["strace", *options, "-s", "4096", "-o", str(to), "-e", f"trace={CALLS}"]


@dataclass
class Hold:
    """One process's hold of the writer lock, in epoch seconds: it surely held it all that time.

    It begins with the first call after that which won it, and ends when that which gives it up begins: the
    time between is told of a call's begin, and of its length without what strace itself takes in it.
    """

    pid: int
    began: float
    ended: float = inf


@dataclass(frozen=True)
class Change:
    """A call that took something out of the store or renamed it; lineage: its process and all before it."""

    lineage: tuple[int, ...]
    began: float
    ended: float
    what: str

    def lies_in(self, hold: Hold) -> bool:
        return hold.pid in self.lineage and hold.began <= self.began and self.ended <= hold.ended


@dataclass
class Record:
    """What one recording says about one store."""

    name: str
    holds: list[Hold] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


def read(recording: Path, store: Path) -> Record:
    """The holds of store and the changes below it, in recording, which may still be growing."""
    record = Record(recording.name)
    parents: dict[int, int] = {}
    holding: dict[tuple[int, str], Hold] = {}
    just_won: dict[int, Hold] = {}
    changes: list[tuple[int, Change]] = []
    with recording.open() as lines:
        for line in _whole(lines):
            match = _LINE.match(line)
            if match is None:
                continue
            pid, began = int(match["pid"]), float(match["at"])
            if pid in just_won:
                just_won.pop(pid).began = began
            # The kernel gives the lock up between the call and what strace says of the end.
            if match["call"] in (None, "exit_group"):
                for key in [key for key in holding if key[0] == pid]:
                    holding.pop(key).ended = began
                continue
            if match["result"] in ("?", "-1"):
                continue
            result, arguments = int(match["result"]), match["arguments"]
            ended = began + float(match["took"] or 0)
            descriptor = arguments.partition("<")[0]
            if match["call"] in ("clone", "clone3", "fork", "vfork"):
                parents[result] = pid
            elif match["call"] == "flock" and f"<{store}>, LOCK_EX" in arguments:
                holding[pid, descriptor] = Hold(pid, ended)
                record.holds.append(holding[pid, descriptor])
                just_won[pid] = holding[pid, descriptor]
            elif match["call"] in ("flock", "close"):
                if (pid, descriptor) in holding:
                    holding.pop((pid, descriptor)).ended = began
            elif re.search(rf"[<\"]{re.escape(str(store))}[/>]", arguments):
                changes.append((pid, Change((), began, ended, f"{match['call']}({arguments})")))
    for pid, change in changes:
        lineage = tuple(_lineage(pid, parents))
        record.changes.append(Change(lineage, change.began, change.ended, change.what))
    return record


def _whole(lines: Iterable[str]) -> Iterator[str]:
    """Calls as they would stand there had no other process come between their begin and their end."""
    begun: dict[str, str] = {}
    for line in lines:
        text = line.rstrip("\n")
        resumed = _RESUMED.match(text)
        if text.endswith(_BEGUN):
            begun[text.split()[0]] = text[: -len(_BEGUN)]
        elif resumed is None:
            yield text
        elif resumed["pid"] in begun:
            yield begun.pop(resumed["pid"]) + resumed["rest"]


def _lineage(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid:
        yield pid
        pid = parents.get(pid, 0)


def violations(records: Iterable[Record]) -> list[str]:
    """A sentence for each two holds at one time, and for each change that lies in no hold of its own."""
    records = list(records)
    found = []
    holds = sorted(
        ((hold, record.name) for record in records for hold in record.holds), key=lambda one: one[0].began
    )
    for (one, name), (other, other_name) in zip(holds, holds[1:]):
        if other.began < one.ended:
            found.append(
                f"{name} (pid {one.pid}) and {other_name} (pid {other.pid}) held it at {other.began}"
            )
    for record in records:
        for change in record.changes:
            if not any(change.lies_in(hold) for hold in record.holds):
                found.append(f"{record.name}: {change.what} at {change.began} without the lock")
    return found
