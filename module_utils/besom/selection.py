# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which entries go: the shortest run of the oldest that reaches every goal, out of compact tables.

A million entries are arrays here (about 30 bytes each, what is rarely asked for compressed) and never a
million Python objects.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from heapq import nsmallest
from itertools import chain, compress, groupby
from operator import itemgetter
from typing import Any, Callable

from .report import CAP

CHUNK = 1024
# What no choice is made by: compressed once the chunk is sealed, a third of its size.
_PACKED = ("where", "inode", "mtime", "size")
_BUCKETS = 1024
_FEW = 4096


class Chunk:
    """Up to CHUNK entries of one device, a column each.

    where: index of the directory; inode, mtime (ns), size: identity (size: bytes of a file, inodes of
    a tree); key: age by the store's order (ns); bytes: usage that goes with the entry; freed: what
    the file system gets back. Of a session, inode and mtime are those of its metadata, and size is a print
    of what it is made of. victims is 1 for each entry that the plan removes.
    """

    names: list[str]
    where: array[int]
    inode: array[int]
    mtime: array[int]
    size: array[int]

    def __init__(self, device: int, by_mtime: bool = False) -> None:
        """by_mtime: the order goes by mtime, so that one column serves as both."""
        self.device = device
        self.open_names: list[str] = []
        self._packed: dict[str, tuple[str, bytearray]] = {}
        self.where = array("I")
        self.inode = array("Q")
        self.mtime = array("q")
        self.size = array("q")
        self.key = self.mtime if by_mtime else array("q")
        self.bytes = array("Q")
        self.freed = self.bytes
        # Of a session, the number of its group.
        self.group = array("I")
        self.victims = bytearray()

    def __len__(self) -> int:
        return len(self.key)

    def append(self, name: str, where: int, st: os.stat_result, mtime: int, key: int, size: int) -> None:
        """Add a file, of so many bytes of usage; the rest as the columns."""
        self.open_names.append(name)
        self.where.append(where)
        self.inode.append(st.st_ino)
        self.mtime.append(mtime)
        self.size.append(st.st_size)
        self.bytes.append(size)
        if self.key is not self.mtime:
            self.key.append(key)

    def seal(self) -> None:
        """No more entries: pack the names, and the columns that no choice is made by."""
        self.victims = bytearray(len(self))
        self._pack(self.open_names)
        self.open_names = []
        # Half the room, where they are small.
        with suppress(OverflowError):
            small = array("I", self.bytes)
            self.freed = small if self.freed is self.bytes else self.freed
            self.bytes = small

    def _pack(self, names: Iterable[str]) -> None:
        # Of bytes a process that reads them writes their count of references, right beside them, and the
        # pages that it shared with those it was forked with are its own then. Of a bytearray that is apart.
        # NUL is the one byte that no name contains.
        packed = {"names": ("", bytearray(zlib.compress(os.fsencode("\0".join(names)), 1)))}
        for column in _PACKED:
            values: array[int] = getattr(self, column)
            if values is not self.key:
                packed[column] = (values.typecode, bytearray(zlib.compress(values, 1)))
                self.__dict__.pop(column, None)
        self._packed = packed

    def __getattr__(self, column: str) -> Any:
        """Unpack a column of a sealed chunk, whose packed columns are no attributes; names never are one."""
        try:
            typecode, packed = self.__dict__["_packed"][column]
        except KeyError:
            if column == "names":
                return self.open_names
            raise AttributeError(column) from None
        values = zlib.decompress(packed)
        return array(typecode, values) if typecode else os.fsdecode(values).split("\0")

    def set_bytes(self, position: int, size: int, freed: int) -> None:
        """Set what goes with an entry; position may be one past the end, to append."""
        if self.bytes.typecode != "Q":
            wide = array("Q", self.bytes)
            self.freed = wide if self.freed is self.bytes else self.freed
            self.bytes = wide
        if freed != size and self.freed is self.bytes:
            self.freed = self.bytes[:]
        self.bytes[position : position + 1] = array("Q", [size])
        if self.freed is not self.bytes:
            self.freed[position : position + 1] = array("Q", [freed])

    def drop(self, positions: set[int]) -> None:
        """Take these entries out of the table."""
        stay = bytearray(position not in positions for position in range(len(self)))
        names = list(compress(self.names, stay))
        # Columns that are one array stay one.
        same = {"mtime": self.mtime is self.key, "freed": self.freed is self.bytes}
        for column in (*_PACKED, "key", "bytes", "freed", "group"):
            values: array[int] = getattr(self, column)
            setattr(self, column, array(values.typecode, compress(values, stay)))
        if same["mtime"]:
            self.mtime = self.key
        if same["freed"]:
            self.freed = self.bytes
        self.victims = bytearray(len(self))
        self._pack(names)


@dataclass
class Goals:
    """What is to be reached: shed bytes of usage, free bytes of the file system, drop entries.

    before: entries whose key is smaller go in any case (ns).
    """

    shed: int = 0
    free: int = 0
    drop: int = 0
    before: int = -(2**63)

    def reached(self, count: int, size: int, freed: int) -> bool:
        return count >= self.drop and size >= self.shed and freed >= self.free

    def less(self, count: int, size: int, freed: int) -> Goals:
        return replace(self, drop=self.drop - count, shed=self.shed - size, free=self.free - freed)


def choose(chunks: list[Chunk], goals: Goals) -> Goals:
    """Mark the victims in chunks; returns what of the goals they leave unreached (<= 0: reached).

    The order is by key, then inode, then directory and name, so one input gives one plan. No victim
    can be left out at the young end without missing a goal.
    """
    for chunk in chunks:
        chunk.victims = bytearray(map(goals.before.__gt__, chunk.key))
        goals = goals.less(*_tally(chunk))
    if goals.reached(0, 0, 0):
        return goals

    def by_key(lo: int, hi: int) -> Iterator[tuple[int, int, int]]:
        for chunk in chunks:
            for row in zip(chunk.key, chunk.bytes, chunk.freed):
                if lo <= row[0] <= hi:
                    yield row

    def by_inode(lo: int, hi: int) -> Iterator[tuple[int, int, int]]:
        for chunk in chunks:
            for key, *row in zip(chunk.key, chunk.inode, chunk.bytes, chunk.freed):
                if key == oldest and lo <= row[0] <= hi:
                    yield row[0], row[1], row[2]

    keys = [k for chunk in chunks if len(chunk) for k in (min(chunk.key), max(chunk.key))]
    if not keys:
        return goals
    oldest, youngest, goals, few = _narrow(by_key, max(goals.before, min(keys)), max(keys), goals)
    low, high = 0, 2**64 - 1
    if not few:
        inodes = [i for chunk in chunks if len(chunk) for i in (min(chunk.inode), max(chunk.inode))]
        low, high, goals, few = _narrow(by_inode, min(inodes), max(inodes), goals)
    last: list[tuple[int, int, int, int]] = []
    for n, chunk in enumerate(chunks):
        for i, (key, inode) in enumerate(zip(chunk.key, chunk.inode)):
            if key < oldest or (key == oldest and inode < low):
                chunk.victims[i] = 1
            elif key <= youngest and inode <= high and not chunk.victims[i]:
                last.append((key, inode, n, i))
    for _key, _inode, n, i in _in_order(chunks, last):
        if goals.reached(0, 0, 0):
            break
        chunk = chunks[n]
        chunk.victims[i] = 1
        goals = goals.less(1, chunk.bytes[i], chunk.freed[i])
    return goals


def _in_order(chunks: list[Chunk], rows: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Rows (key, inode, chunk, position) by key and inode, and names of one inode by directory and name."""
    times = Counter(row[:2] for row in rows)
    places: dict[tuple[int, int], tuple[int, str]] = {}
    for n, its in groupby((row for row in rows if times[row[:2]] > 1), key=itemgetter(2)):
        where, names = chunks[n].where, chunks[n].names
        places.update(((n, i), (where[i], names[i])) for _key, _inode, _n, i in its)
    return sorted(rows, key=lambda row: (row[:2], places.get(row[2:], ())))


# One that goes: its directory and name, by which some files are the first of many; its key and bytes.
Victim = tuple[int, str, int, int]


def victims_of(chunk: Chunk) -> Iterator[Victim]:
    """Those that are marked in a chunk, which is unpacked only for some."""
    if any(chunk.victims):
        yield from compress(zip(chunk.where, chunk.names, chunk.key, chunk.freed), chunk.victims)


def first_victims(*several: Iterable[Victim]) -> list[Victim]:
    """As many of the first as a report names."""
    return nsmallest(CAP, chain.from_iterable(several))


def first_victims_of(chunks: Iterable[Chunk], first: list[Victim]) -> list[Victim]:
    """The same of those in first, which are sorted, and all that are marked in chunks."""
    for chunk in chunks:
        marks = chunk.victims
        if not any(marks) or (len(first) == CAP and min(compress(chunk.where, marks)) > first[-1][0]):
            continue
        first = first_victims(first, victims_of(chunk))
    return first


def _tally(chunk: Chunk) -> tuple[int, int, int]:
    victims = chunk.victims
    size = sum(compress(chunk.bytes, victims))
    return sum(victims), size, size if chunk.freed is chunk.bytes else sum(compress(chunk.freed, victims))


def tally(chunks: Iterable[Chunk]) -> tuple[int, int, int]:
    """(entries, usage bytes, freed bytes) of all victims."""
    count = size = freed = 0
    for chunk in chunks:
        one = _tally(chunk)
        count, size, freed = count + one[0], size + one[1], freed + one[2]
    return count, size, freed


def _narrow(
    rows: Callable[[int, int], Iterable[tuple[int, int, int]]], lo: int, hi: int, goals: Goals
) -> tuple[int, int, Goals, bool]:
    """Narrow lo..hi until the value at which the goals are reached is known, or few rows are left.

    rows(lo, hi) gives (value, bytes, freed) of the rows in that range. Returns lo, hi, the goals less
    all rows below lo, and whether few rows are left in lo..hi.
    """
    while lo < hi:
        width = (hi - lo) // _BUCKETS + 1
        buckets = [[0, 0, 0] for bucket in range((hi - lo) // width + 1)]
        for value, size, freed in rows(lo, hi):
            bucket = buckets[(value - lo) // width]
            bucket[0] += 1
            bucket[1] += size
            bucket[2] += freed
        for bucket in buckets:
            if goals.reached(*bucket):
                break
            goals = goals.less(*bucket)
            lo += width
        else:
            return lo, hi, goals, True
        hi = min(hi, lo + width - 1)
        if bucket[0] <= _FEW:
            return lo, hi, goals, True
    return lo, hi, goals, False
