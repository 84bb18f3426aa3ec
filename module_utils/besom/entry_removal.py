# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing the entries of a plan that go whole, trees and sessions, several of them side by side."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from itertools import compress
from typing import Callable, NamedTuple

from .effort import Rate
from .inventory import Inventory
from .removal import Removed, Remover
from .run import Run
from .selection import Chunk
from .shutdown import Shutdown
from .tree import Cursor, Removal

# A job has so much to be done, and one entry at least.
_WORK = 256


class Row(NamedTuple):
    """An entry that is to go: the columns of Chunk."""

    name: str
    mtime: int
    size: int
    key: int
    bytes: int
    freed: int


class EntryRemover(Remover[list[Row]]):
    """Removes the victims of chunks whole. listed: paths that Removed.stayed is about."""

    def __init__(
        self, found: Inventory, listed: Collection[str], run: Run, total: Callable[[], int], most: int
    ) -> None:
        # What an entry frees may depend on those that went before it.
        super().__init__(found, run, total, 1 if found.entangled else most)
        self.listed = listed

    def work_of(self, row: Row) -> int:
        """How much there is to be done to remove an entry, as inodes of a tree are counted."""
        raise NotImplementedError

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Have the victims of chunks removed, each begun in its turn."""
        rows: list[Row] = []
        work = 0
        for chunk in chunks:
            columns = (chunk.names, chunk.mtime, chunk.size, chunk.key, chunk.bytes, chunk.freed)
            for row in map(Row._make, compress(zip(*columns), chunk.victims)):
                if self.run.shutdown.requested:
                    return
                rows.append(row)
                work += self.work_of(row)
                if self.alone or work >= _WORK:
                    self.give(rows)
                    rows, work = [], 0
        if rows:
            self.give(rows)


class EntryHand:
    """Removes entries, in one thread; done, shutdown and parent as workers.Hire has them."""

    def __init__(self, remover: EntryRemover, done: memoryview[int], shutdown: Shutdown, parent: int) -> None:
        self.listed, self.done, self.shutdown, self.parent = remover.listed, done, shutdown, parent
        self.outcome = Removed()
        self.rate = Rate(remover.run.effort.max_rate)
        self.cursor = Cursor(remover.found.root)

    def remove(self, row: Row) -> Removal:
        """Remove one entry; nothing is raised, see Removal."""
        raise NotImplementedError

    def result(self) -> Removed:
        return self.outcome

    def close(self) -> None:
        self.cursor.rise(0)

    def work(self, job: list[Row]) -> None:
        for row in job:
            self.rate.wait(self.shutdown)
            # Nobody would hear of what is done for a parent that was killed.
            if self.shutdown.requested or (self.parent and os.getppid() != self.parent):
                return
            removal = self.remove(row)
            # A session is named with its parts.
            path = self.cursor.path(row.name.partition("/")[0])
            if self.outcome.account(path, removal, row.bytes, row.freed, self.listed):
                self.done[0] += 1
