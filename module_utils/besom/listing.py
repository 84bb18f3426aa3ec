# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a store holds, entry by entry: chosen, sorted and counted. Only inspects, and takes no lock."""

from __future__ import annotations

import heapq
import os
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import NamedTuple

from .inventory import Inventory
from .report import Tally
from .selection import Chunk

_HOUR, _DAY = 3600 * 10**9, 86400 * 10**9
# The upper bounds (ns) of the bars in a histogram of ages; the last bar has none.
AGES = (_HOUR, _DAY, 7 * _DAY, 30 * _DAY, 90 * _DAY, 365 * _DAY)


class Entry(NamedTuple):
    """One entry: key is its age by the order of its store (ns since the epoch), bytes are allocated ones.

    Of a session: its group, empty where it names none, and how many blobs it has.
    """

    id: str
    key: int
    bytes: int
    group: str = ""
    blobs: int = 0


@dataclass(frozen=True)
class Wanted:
    """Which entries: all conditions hold that are given. Ages in ns, sizes in bytes, bounds excluded."""

    older_than: int | None = None
    newer_than: int | None = None
    larger_than: int | None = None
    smaller_than: int | None = None
    group: str | None = None


@dataclass
class Statistics:
    """All entries of a store, by group (of sessions; empty: those that name none), and by age as in AGES."""

    total: Tally = field(default_factory=Tally)
    groups: dict[str, Tally] = field(default_factory=dict)
    ages: list[Tally] = field(default_factory=lambda: [Tally() for _bar in range(len(AGES) + 1)])


class Listing:
    """The wanted entries of an inventory, as they are at now (ns). Memory: one small tuple for each."""

    def __init__(self, found: Inventory, now: int, wanted: Wanted = Wanted()) -> None:
        self._found, self._now, self._wanted = found, now, wanted
        # Names and directories of chunks that were asked for: to unpack them for each entry is dear.
        self._unpacked: dict[int, tuple[list[str], array[int]]] = {}
        self._places: dict[int, str] = {}
        self.matched = Tally()
        for chunk in found.chunks:
            for i in self._matching(chunk):
                self.matched.add(1, chunk.bytes[i])

    def _matching(self, chunk: Chunk) -> Iterator[int]:
        wanted, now = self._wanted, self._now
        oldest = -(2**64) if wanted.newer_than is None else now - wanted.newer_than
        newest = 2**64 if wanted.older_than is None else now - wanted.older_than
        least = -1 if wanted.larger_than is None else wanted.larger_than
        most = 2**64 if wanted.smaller_than is None else wanted.smaller_than
        # Its number; no chunk has the group -1.
        group = {name: n for n, name in enumerate(self._found.groups)}.get(wanted.group or "", -1)
        groups = repeat(group) if wanted.group is None else chunk.group
        for i, (key, size, its) in enumerate(zip(chunk.key, chunk.bytes, groups)):
            if oldest < key < newest and least < size < most and its == group:
                yield i

    def sorted(self, sort: str = "age", reverse: bool = False, limit: int | None = None) -> Iterator[Entry]:
        """The entries: by age the oldest first, by size the largest, by id and group as characters go.

        Equals follow in the order of removal, names of one inode as they were found. limit: only the first so
        many, which costs no memory for the others.
        """
        rows = self._rows(sort)
        if limit is None:
            chosen = sorted(rows, reverse=reverse)
        else:
            chosen = (heapq.nlargest if reverse else heapq.nsmallest)(limit, rows)
        return (self._entry(row[-2], row[-1]) for row in chosen)

    def _rows(self, sort: str) -> Iterator[tuple[object, int, int, int, int]]:
        """(what is sorted by, age, inode, chunk, position) of each entry."""
        for n, chunk in enumerate(self._found.chunks):
            names, where = (chunk.names, chunk.where) if sort == "id" else ([], chunk.group)
            inodes = chunk.inode
            for i in self._matching(chunk):
                key = chunk.key[i]
                by: object = key
                if sort == "size":
                    by = -chunk.bytes[i]
                elif sort == "id":
                    by = self._id(where[i], names[i])
                elif sort == "group" and chunk.group:
                    by = self._found.groups[chunk.group[i]]
                yield by, key, inodes[i], n, i

    def _id(self, where: int, name: str) -> str:
        """The id of an entry: the path of a file relative to its store, the name of a tree or session."""
        if where not in self._places:
            self._places[where] = "/".join(self._found.names[d] for d in self._found.chain(where))
        return os.path.join(self._places[where], name.partition("/")[0])

    def _entry(self, n: int, i: int) -> Entry:
        chunk = self._found.chunks[n]
        if n not in self._unpacked:
            self._unpacked[n] = chunk.names, chunk.where
        names, where = self._unpacked[n]
        entry = Entry(self._id(where[i], names[i]), chunk.key[i], chunk.bytes[i])
        if not chunk.group:
            return entry
        return entry._replace(group=self._found.groups[chunk.group[i]], blobs=names[i].count("/"))


def statistics(found: Inventory, now: int) -> Statistics:
    """The figures of an inventory, as they are at now (ns)."""
    result = Statistics()
    result.total.add(found.entries, found.usage)
    groups = [Tally() for _name in found.groups]
    for chunk in found.chunks:
        for key, size in zip(chunk.key, chunk.bytes):
            result.ages[bisect_right(AGES, now - key)].add(1, size)
        for group, size in zip(chunk.group, chunk.bytes):
            groups[group].add(1, size)
    result.groups = dict(zip(found.groups, groups))
    return result
