# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing the trees of a plan, several of them side by side."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from itertools import compress
from typing import Callable

from .effort import Rate
from .inventory import Inventory
from .removal import Removed, Remover
from .run import Run
from .selection import Chunk
from .shutdown import Shutdown
from .tree import Cursor, remove_tree

# Of a tree: its name, the newest mtime (ns) and the count of inodes in it, bytes that leave the store with
# it, bytes that this frees.
Row = tuple[str, int, int, int, int]
# A job has so many inodes to remove, and one tree at least.
_INODES = 256


class TreeRemover(Remover[list[Row]]):
    """Removes the victims of chunks whole. listed: paths that Removed.stayed is about."""

    def __init__(self, found: Inventory, listed: Collection[str], run: Run, total: Callable[[], int]) -> None:
        # What a tree frees may depend on those that went before it.
        super().__init__(found, run, total, 1 if found.entangled else run.effort.workers)
        self.listed = listed

    def add(self, chunks: Iterable[Chunk]) -> None:
        """Have the victims of chunks removed, each begun in its turn."""
        rows: list[Row] = []
        inodes = 0
        for chunk in chunks:
            columns = (chunk.names, chunk.mtime, chunk.size, chunk.bytes, chunk.freed)
            for row in compress(zip(*columns), chunk.victims):
                if self.run.shutdown.requested:
                    return
                rows.append(row)
                inodes += row[2]
                if self.alone or inodes >= _INODES:
                    self.give(rows)
                    rows, inodes = [], 0
        if rows:
            self.give(rows)

    def hire(self, done: memoryview[int], shutdown: Shutdown, parent: int) -> _Hand:
        return _Hand(self, done, shutdown, parent)


class _Hand:
    """Removes trees, in one thread; done, shutdown and parent as workers.Hire has them."""

    def __init__(self, remover: TreeRemover, done: memoryview[int], shutdown: Shutdown, parent: int) -> None:
        self._listed, self._done, self._shutdown, self._parent = remover.listed, done, shutdown, parent
        self._outcome = Removed()
        self._rate = Rate(remover.run.effort.max_rate)
        self._cursor = Cursor(remover.found.root)

    def result(self) -> Removed:
        return self._outcome

    def work(self, job: list[Row]) -> None:
        outcome, cursor = self._outcome, self._cursor
        for name, newest, inodes, size, freed in job:
            self._rate.wait(self._shutdown)
            # Nobody would hear of what is done for a parent that was killed.
            if self._shutdown.requested or (self._parent and os.getppid() != self._parent):
                return
            removal = remove_tree(cursor, name, (newest, inodes))
            if outcome.account(cursor.path(name), removal, size, freed, self._listed):
                self._done[0] += 1
