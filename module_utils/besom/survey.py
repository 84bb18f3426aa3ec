# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Going through a store with its index: only what has changed is read, and what was read is remembered.

A directory that has the mtime and ctime under which it was read holds the same names: ctime cannot be
set, only made. What changes without them (a file that grows or is touched where it is) is found by the
next walk through all of it. Locks are looked up each time.
"""

from __future__ import annotations

import os
import stat
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import compress
from time import time_ns
from typing import Any

from .index import LINKS, NEVER, Index, IndexFile
from .inventory import YOUNGEST, Inventory, Looked, Reading
from .layouts import read_store
from .locks import LockTable
from .policy import Store
from .root import Root
from .run import Run
from .tree import Cursor, Moved, Sums, in_range, walk
from .units import printable

# Time stamps of a file system may be as coarse as this: a directory that was read so soon after a change
# may have changed again under the same ones (git's index calls that racy).
_COARSE_NS = 2 * 10**9
# What was found about a row of the index.
_GONE, _HELD, _READ = 0, 1, 2
_SUMS = ("usage", "entries", "oldest", "newest", "low", "high")
# Directories that hide other names of a link are read in a second pass, and those that hide others of theirs
# in a third; beyond that a walk is as good.
_PASSES = 3


class Changed(Exception):
    """Something of a store that is known as a whole is not as it was."""


class Survey:
    """One way through a store with what is remembered of it; a companion as the inventory has it.

    index: without rows, everything is read. doubted: rows that are read in any case. Of trees and sessions
    the row of the root has the sums of all, which stand as long as nothing has changed.
    """

    def __init__(self, index: Index, doubted: Iterable[int] = ()) -> None:
        self.index = index
        self._started = time_ns()
        rows = index.rows
        self._state = bytearray(len(index))
        self._was = array("q", rows["ctime"])
        self._doubt = bytearray(len(index))
        for row in doubted:
            self._doubt[row] = 1
        # Those in which a lock may be.
        self._suspect = bytearray(len(index))
        self._locked: list[int] = []
        self._lists_inodes = index.subject.get("lists_inodes", False)
        # The children of a row as a list that is linked, the one that was entered last first; 0 ends it.
        self._first = array("I", bytes(4 * len(index)))
        self._next = array("I", bytes(4 * len(index)))
        for row in range(1, len(index)):
            parent = rows["parent"][row]
            self._next[row] = self._first[parent]
            self._first[parent] = row
        self._links: dict[int, list[tuple[int, int, int]]] = {}
        # Of each directory on the way: its row, and the rows of the subdirectories that are to be entered.
        self._way: list[int] = []
        self._ahead: list[dict[str, int]] = []
        self._changed = not len(index)
        self.failed = False

    def scan(self, reading: Reading) -> list[str]:
        """The subdirectories of the directory at hand that have to be entered; reads it if it has changed."""
        cursor, index = reading.cursor, self.index
        depth = cursor.depth
        if depth:
            known = self._ahead[depth - 1].get(cursor.name, -1)
        else:
            known = 0 if len(index) else -1
            # Locks come and go without a trace in any directory.
            self._locked = reading.table.on(set(index.rows["device"]))
            for row in self._may_have(self._locked, range(len(index))):
                self._suspect[row] = 1
        del self._way[depth:], self._ahead[depth:]
        enter: list[str] = []
        ahead: dict[str, int] = {}
        if known >= 0 and self._holds(known, os.fstat(cursor.fd), cursor):
            reading.stand()
            self._state[known] = _HELD
            here, old = known, list(self._children(known))[::-1]
            names = [index.names[row] for row in old]
        else:
            names = reading.scan()
            by_name = {index.names[row]: row for row in self._children(known)} if known >= 0 else {}
            here = self._note(known, self._way[-1] if depth else 0, cursor.name, reading.sums)
            old = [by_name.get(name, -1) for name in names]
        fd, mounted, state, first, holds = cursor.fd, cursor.mounted, self._state, self._first, self._holds
        for name, row in zip(names, old):
            if row >= 0:
                # What is mounted on is not asked for anything.
                if not first[row] and name not in mounted:
                    try:
                        if holds(row, os.stat(name, dir_fd=fd, follow_symlinks=False)):
                            state[row] = _HELD
                            continue
                    except OSError:
                        pass  # entering it says what is the matter
                ahead[name] = row
            enter.append(name)
        self._way.append(here)
        self._ahead.append(ahead)
        return enter

    def refused(self, depth: int, error: OSError) -> None:
        """The directory above is read again next time, and what is refused looked at again."""
        del self._way[depth + 1 :]
        # A directory that is unchanged has those below it that it had.
        if isinstance(error, Moved) or not self._way or self._state[self._way[-1]] == _HELD:
            self.failed = True
        else:
            self._set(self._way[-1], "ctime", NEVER)

    def note(self, cursor: Cursor, sums: Sums) -> None:
        """Remember a directory of a store of trees or sessions, but for its bytes."""
        depth = cursor.depth
        del self._way[depth:]
        self._way.append(self._note(-1, self._way[-1] if depth else 0, cursor.name, sums))

    def cover(self, inode: int) -> None:
        """Remember an inode directly in the root of such a store, for the look at its locks."""
        rows = self.index.rows
        rows["low"][0], rows["high"][0] = min(rows["low"][0], inode), max(rows["high"][0], inode)

    def sum_up(self, found: Inventory) -> None:
        """Remember what a store of trees or sessions has come to as a whole."""
        noted = found.kept.total or found.anomalies.total or found.trash or found.pending
        if noted or not found.settled or NEVER in self.index.rows["ctime"]:
            self.failed = True
            return
        sums = {"usage": found.usage, "entries": found.entries}
        if found.oldest is not None and found.newest is not None:
            sums.update(oldest=found.oldest, newest=found.newest)
        for name, value in sums.items():
            self._set(0, name, value)

    def _children(self, row: int) -> Iterator[int]:
        row = self._first[row]
        while row:
            yield row
            row = self._next[row]

    def _holds(self, row: int, st: os.stat_result, cursor: Cursor | None = None) -> bool:
        """Whether a directory is as it was when its row was made.

        cursor: stands in it, so that it can be listed for locks; without one it is said not to hold then.
        """
        rows = self.index.rows
        return (
            st.st_ctime_ns == rows["ctime"][row]
            and st.st_mtime_ns == rows["mtime"][row]
            and st.st_ino == rows["inode"][row]
            and st.st_dev == rows["device"][row]
            and stat.S_ISDIR(st.st_mode)
            and not self._doubt[row]
            and (not self._suspect[row] or (cursor is not None and not self._is_locked(cursor)))
        )

    def _is_locked(self, cursor: Cursor) -> bool:
        """Whether the directory that the cursor stands in, or a name in it, is that of a locked inode."""
        locked = set(self._locked)
        # On overlayfs a directory may list another number than stat has.
        if not self._lists_inodes or cursor.ident[1] in locked:
            return True
        os.lseek(cursor.fd, 0, os.SEEK_SET)
        with os.scandir(cursor.fd) as names:
            return any(one.inode() in locked for one in names)

    def _may_have(self, inodes: list[int], rows: Iterable[int]) -> list[int]:
        """The rows that one of these inodes (sorted) may be in."""
        low, high, found = self.index.rows["low"], self.index.rows["high"], []
        for row in rows if inodes else ():
            place = bisect_left(inodes, low[row])
            if place < len(inodes) and inodes[place] <= high[row]:
                found.append(row)
        return found

    def _set(self, row: int, name: str, value: int) -> None:
        column = self.index.rows[name]
        if column[row] != value:
            column[row] = value
            self._changed = True

    def _note(self, row: int, parent: int, name: str, sums: Sums) -> int:
        """Remember what a directory came to, in the row that it had or in a new one."""
        index, own = self.index, sums.own
        if row < 0:
            row = len(index)
            index.names.append(name)
            for column in index.rows.values():
                column.append(0)
            for more in (self._first, self._next, self._was):
                more.append(0)
            for flags in (self._state, self._doubt, self._suspect):
                flags.append(0)
            index.rows["parent"][row] = parent
            self._was[row] = NEVER
            self._changed = True
        changed = max(own.st_ctime_ns, own.st_mtime_ns)
        holds = sums.settled and changed < self._started - _COARSE_NS
        values: dict[str, int] = {
            "device": own.st_dev,
            "inode": own.st_ino,
            "mtime": in_range(own.st_mtime_ns),
            "ctime": in_range(own.st_ctime_ns) if holds else NEVER,
        }
        for each in _SUMS:
            values[each] = getattr(sums, each)
        for each, value in values.items():
            self._set(row, each, value)
        self._state[row] = _READ
        if sums.shared:
            self._links[row] = sums.shared
        return row

    def finish(self, found: Inventory) -> list[int]:
        """Put the sums over all directories into the inventory; returns rows that are to be read as well.

        Those may have the other names of an inode that had no others when they were read.
        """
        index, alive = self.index, self._state
        doubtful = self._hidden_links(found)
        if doubtful:
            return doubtful
        self._settle_links()
        usage, entries, oldest, newest = (list(compress(index.rows[name], alive)) for name in _SUMS[:4])
        found.usage, found.entries = sum(usage) + index.shared, sum(entries)
        found.oldest, found.newest = (min(oldest), max(newest)) if found.entries else (None, None)
        return []

    def oldest_unread(self) -> int:
        """The oldest key (ns) in the directories that were not read."""
        held = (state == _HELD for state in self._state)
        return min(compress(self.index.rows["oldest"], held), default=YOUNGEST)

    def _hidden_links(self, found: Inventory) -> list[int]:
        held = [row for row, state in enumerate(self._state) if state == _HELD]
        if not held:
            return []
        links, was = self.index.links, self._was
        trusted = (was[row] != NEVER for row in links["row"])
        known = set(compress(zip(links["device"], links["inode"]), trusted)) if found.links else set()
        new = [ident for ident, link in found.links.items() if link.seen < link.links and ident not in known]
        return self._may_have(sorted(inode for _device, inode in new), held)

    def _settle_links(self) -> None:
        """Bring the table of links up to date, and count what they hold."""
        index, state, fresh = self.index, self._state, self._links
        old = index.links

        def old_links(row: int) -> list[tuple[int, ...]]:
            its = slice(bisect_left(old["row"], row), bisect_right(old["row"], row))
            return list(zip(*(old[name][its] for name in ("device", "inode", "bytes"))))

        others = [row for row, its in enumerate(state) if its != _HELD]
        if all(old_links(row) == fresh.get(row, []) for row in others):
            return
        self._changed = True
        rows = list(compress(zip(*old.values()), (state[row] == _HELD for row in old["row"])))
        rows += [(row, *link) for row, its in fresh.items() for link in its]
        rows.sort(key=lambda one: one[0])
        for name, column in zip(LINKS, zip(*rows) if rows else [()] * len(LINKS)):
            index.links[name] = array(LINKS[name], column)
        index.shared = sum({(device, inode): size for _row, device, inode, size in rows}.values())

    def keep(self, file: IndexFile) -> None:
        """Remember all this for the next time, if anything of it is new."""
        if self.failed or not self._changed:
            return
        index = self.index.only(self._state)
        numbers = {row: number for number, row in enumerate(compress(range(len(self._state)), self._state))}
        for name, column in self.index.links.items():
            values = map(numbers.__getitem__, column) if name == "row" else column
            index.links[name] = array(column.typecode, values)
        index.shared = self.index.shared
        file.save(index)


class Memory:
    """What is remembered of the store open as root, in the place that its run has for that."""

    def __init__(self, store: Store, root: Root, run: Run) -> None:
        self._store, self._root, self._run = store, root, run
        self._file = IndexFile(store, root, run)
        self.walked: int | None = None
        index = self._file.load() if run.reconcile else None
        if index is not None:
            self.walked = index.walked

    @property
    def due(self) -> int | None:
        """When the store is to be walked at the latest, ns since the epoch; None where it always is."""
        return None if self.walked is None else self.walked + self._run.reconcile

    def look(self, horizon: int, grace: int) -> Looked | None:
        """The store as it is, read as far as it has changed; None where it has to be walked."""
        now, due = self._run.now(), self.due
        if self.walked is None or due is None or not self.walked <= now < due:
            return None
        doubted: set[int] = set()
        for _pass in range(_PASSES):
            index = self._file.load()
            if index is None:
                return None
            survey = Survey(index, doubted)
            if self._store.layout == "files":
                found = read_store(self._store, self._root, self._run, horizon, grace, companion=survey)
            else:
                found = Inventory(self._root)
                try:
                    self._compare(survey)
                except Changed:
                    return None
            if survey.failed:
                return None
            more = survey.finish(found)
            if not more:
                survey.keep(self._file)
                return Looked(found, survey.oldest_unread())
            doubted.update(more)
        return None

    def _compare(self, survey: Survey) -> None:
        """Look whether every directory of a store of trees or sessions is as it was. Raises Changed."""
        cursor = Cursor(self._root)

        def changed(*_what: object) -> Any:
            raise Changed

        def stand() -> int:
            self._run.shutdown.check(f"reading {printable(self._root.path)}")
            return 0

        reading = Reading(cursor, LockTable(), changed, stand, Sums(os.fstat(self._root.fd)))
        try:
            walk(cursor, partial(survey.scan, reading), refused=changed)
        finally:
            cursor.rise(0)

    def begin(self) -> Survey:
        """What goes along a walk through all of the store."""
        return Survey(Index(self._file.subject, self._run.now()))

    def keep(self, survey: Survey, found: Inventory) -> None:
        """Remember what such a walk has found."""
        if self._store.layout != "files":
            survey.sum_up(found)
        if self._file.subject and not survey.failed:
            survey.finish(found)
            survey.keep(self._file)
