# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing the trees of a plan."""

from __future__ import annotations

from collections.abc import Collection
from typing import Callable

from .entry_removal import EntryHand, EntryRemover, Row
from .inventory import Inventory
from .run import Run
from .shutdown import Shutdown
from .tree import Removal, remove_tree


class TreeRemover(EntryRemover):
    """Removes trees whole, each by way of a trash of its own."""

    def __init__(self, found: Inventory, listed: Collection[str], run: Run, total: Callable[[], int]) -> None:
        super().__init__(found, listed, run, total, run.effort.workers)

    def work_of(self, row: Row) -> int:
        return row.size

    def hire(self, done: memoryview[int], shutdown: Shutdown, parent: int) -> EntryHand:
        return _Hand(self, done, shutdown, parent)


class _Hand(EntryHand):
    def remove(self, row: Row) -> Removal:
        return remove_tree(self.cursor, row.name, (row.mtime, row.size))
