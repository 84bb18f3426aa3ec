# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing the files of a plan: each one verified on its directory's descriptor just before it goes."""

from __future__ import annotations

import errno
import os
from array import array
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import compress
from typing import Any, Callable

from .effort import Rate
from .inventory import Criteria, Inventory
from .locks import LockTable
from .looking import ELSEWHERE, FILES, Looker, Names, Place, jobs_of, locked_by, ways_to
from .removal import Ident, Removed, Remover
from .report import CAP
from .run import Run
from .selection import Chunk, Victim, first_victims
from .shutdown import Shutdown
from .tree import CHANGED, Cursor, MountPoint, file_forbids, in_range


@dataclass
class _Victims:
    """Some files to remove: the columns of a Chunk, and all of its inventory that is needed for that.

    ways: parent and name of each directory on the way to one of them; standing: directories that the
    reading stands in; listed: paths that Removed.stayed is about.
    """

    device: int
    columns: tuple[Sequence[Any], ...]
    ways: dict[int, tuple[int, str]]
    standing: list[int]
    listed: Collection[str]


class FileRemover(Remover["_Victims | Names"]):
    """Removes the victims of the chunks that it is given, and what may go of the names that it is given; then
    the directories that this left empty.

    lru: one that was read since counts as changed.
    """

    def __init__(self, found: Inventory, lru: bool, run: Run, total: Callable[[], int]) -> None:
        super().__init__(found, run, total, run.effort.workers)
        self.lru = lru

    def add(self, chunk: Chunk, listed: Collection[str]) -> None:
        """Have the victims of a chunk removed; waits while much else is to be removed before.

        listed: paths that Removed.stayed is about, of this chunk and maybe of others.
        """
        columns: Iterable[Any] = (
            *(chunk.names, chunk.where, chunk.inode, chunk.mtime, chunk.size, chunk.key),
            *(chunk.bytes, chunk.freed),
        )
        if not all(chunk.victims):
            columns = (
                array(column.typecode, kept) if isinstance(column, array) else list(kept)
                for column in columns
                for kept in [compress(column, chunk.victims)]
            )
        columns = tuple(columns)
        standing = self.found.standing[:]
        for start in range(0, len(columns[0]), FILES):
            its = tuple(column[start : start + FILES] for column in columns)
            self.give(_Victims(chunk.device, its, ways_to(self.found, set(its[1])), standing, listed))

    def look(self, criteria: Criteria, where: int, ident: Ident, names: list[str]) -> None:
        """Have those of some names in a directory removed that may go; waits as add does."""
        for job in jobs_of(self.found, criteria, where, ident, names):
            self.give(job)

    def hire(self, done: memoryview[int], shutdown: Shutdown, parent: int) -> _Hand:
        return _Hand(self, done, shutdown, parent)

    def finish(self) -> Removed:
        outcome = super().finish()
        self._remove_emptied(outcome.emptied)
        return outcome

    def _remove_emptied(self, emptied: dict[int, Ident]) -> None:
        """Remove directories that were emptied while the reading stood in them."""
        place = Place(self.found)
        # What is further down was found later.
        todo = [-directory for directory in emptied]
        heapify(todo)
        while todo:
            directory = -heappop(todo)
            if not directory or (todo and -directory == todo[0]):
                continue
            with suppress(OSError):
                parent = self.found.parents[directory]
                if place.go(parent) is None:
                    _remove_directory(self.found.names[directory], place.cursor.fd, emptied[directory])
                    emptied[parent] = place.cursor.ident
                    heappush(todo, -parent)
        place.cursor.rise(0)


class _Hand(Looker):
    """Removes victims, in one thread; done, shutdown and parent as workers.Hire has them."""

    def __init__(self, remover: FileRemover, done: memoryview[int], shutdown: Shutdown, parent: int) -> None:
        super().__init__(remover.found.root, shutdown, parent, self.left)
        self.all, self.done = remover, done
        self.outcome = Removed()
        self.rate = Rate(remover.run.effort.max_rate)
        self.standing: Collection[int] = ()
        self.listed: Collection[str] = ()
        # Directories that something was removed from.
        self.touched: set[int] = set()

    def result(self) -> Removed:
        with suppress(OSError):
            self.place.rise()
        self.outcome.seen, self.outcome.left_out = self.all_seen(), self.left_out
        return self.outcome

    def left(self, cursor: Cursor, directory: int, ident: Ident) -> None:
        """Remove directory, which was left for its parent, if it was emptied here."""
        # rmdir removes what is empty and nothing else; what was empty before was never touched.
        if directory not in self.touched:
            return
        self.touched.discard(directory)
        if directory in self.standing:
            # The reading would lose its way.
            self.outcome.emptied[directory] = ident
            return
        with suppress(OSError):
            _remove_directory(self.ways.names[directory], cursor.fd, ident)
            self.touched.add(self.ways.parents[directory])

    def work(self, job: _Victims | Names) -> None:
        if self.shutdown.signum:
            return
        self.standing = set(job.standing)
        if isinstance(job, Names):
            self.listed = ()
            self.look(job)
        else:
            self.listed = set(job.listed)
            self.ways.now(job.ways, self.place.way)
            self.remove(job)

    def look(self, job: Names) -> None:
        """Remove what may go of some names, each as soon as it was looked at."""
        outcome, where = self.outcome, job.where
        done, before, victims = self.done, self.done[0], outcome.victims
        # Whether any of these can be among the first.
        first: list[Victim] | None = [] if len(victims) < CAP or where <= victims[-1][0] else None
        shutdown, parent, unlink, getppid = self.shutdown, self.parent, os.unlink, os.getppid
        gone = held = 0
        with self.looking(job) as (seen, fd, its):
            try:
                for name, st, mtime, key, size, link in its:
                    # Nobody would hear of what is done for a parent that was killed.
                    if shutdown.signum or (parent and getppid() != parent):
                        break
                    if link is not None:
                        # What it frees is known only once all names of it are.
                        seen.room_for(link, st.st_dev, key, where, name).append(
                            name, where, st, mtime, key, size
                        )
                        continue
                    try:
                        unlink(name, dir_fd=fd)
                    except OSError as refused:
                        self.refused(where, name, fd, refused, size)
                        outcome.planned.add(1, size)
                        continue
                    gone += 1
                    held += size
                    done[0] = before + gone
                    if first is not None:
                        first.append((where, name, key, size))
            finally:
                outcome.planned.add(gone, held)
                outcome.removed.add(gone, held)
                outcome.usage += held
                if first:
                    outcome.victims = first_victims(victims, first)
                if gone:
                    self.touched.add(where)

    def remove(self, job: _Victims) -> None:
        """Remove victims that are as they were when they were planned."""
        shutdown, lru, place, parent = self.shutdown, self.all.lru, self.place, self.parent
        outcome, removed, done = self.outcome, self.outcome.removed, self.done
        rate, touch = self.rate, self.touched.add
        device, table = job.device, LockTable()
        locked = table.inodes
        fd, here, in_use = place.cursor.fd, -1, ""
        error: OSError | None = None
        stat, unlink, getppid = os.stat, os.unlink, os.getppid
        for name, where, inode, mtime, size, key, held, freed in zip(*job.columns):
            if rate.limited:
                rate.wait(shutdown)
            # Nobody would hear of what is done for a parent that was killed.
            if shutdown.signum or (parent and getppid() != parent):
                break
            if where != here:
                here, error = where, place.go(where)
                fd = place.cursor.fd
                # Somebody may have begun to work in it since it was read.
                in_use = locked_by(place.cursor, table) if locked else ""
            if error:
                self.refused(where, name, fd, error)
                continue
            if in_use:
                outcome.kept.add(self.stays(where, name), in_use)
                continue
            try:
                st = stat(name, dir_fd=fd, follow_symlinks=False)
                if (
                    st.st_ino != inode
                    or (st.st_mtime_ns != mtime and in_range(st.st_mtime_ns) != mtime)
                    or st.st_size != size
                    or st.st_dev != device
                    or (lru and in_range(st.st_atime_ns) > key)
                ):
                    outcome.kept.add(self.stays(where, name), CHANGED)
                    continue
                if inode in locked:
                    holder = table.holder(device, inode)
                    if holder:
                        outcome.kept.add(self.stays(where, name), f"in use: locked by {holder}")
                        continue
                if st.st_nlink == 1:
                    unlink(name, dir_fd=fd)
                    removed.bytes += st.st_blocks * 512
                else:
                    removed.bytes += self.unlink_one_of_several(name, fd, st)
            except OSError as refused:
                self.refused(where, name, fd, refused, freed)
                continue
            touch(where)
            removed.entries += 1
            done[0] += 1
            outcome.usage += held

    def unlink_one_of_several(self, name: str, fd: int, seen: os.stat_result) -> int:
        """Unlink a name of an inode that had others when it was seen; returns the bytes that this frees."""
        # The one that goes last frees it: two at work would both see two links.
        with self.all.turn:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if (st.st_dev, st.st_ino, st.st_mtime_ns, st.st_size) != (
                *(seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size),
            ):
                raise FileNotFoundError(errno.ENOENT, "was replaced", name)
            os.unlink(name, dir_fd=fd)
        return st.st_blocks * 512 if st.st_nlink == 1 else 0

    def stays(self, where: int, name: str) -> str:
        """The path of a victim that does not go."""
        path = self.ways.path(where, name)
        self.outcome.stay(path, self.listed)
        return path

    def refused(self, where: int, name: str, fd: int, error: OSError, freed: int = 0) -> None:
        """Note why a victim does not go, which was to free so many bytes."""
        outcome, path = self.outcome, self.stays(where, name)
        if error.errno in ELSEWHERE:
            outcome.kept.add(path, CHANGED)
        elif isinstance(error, MountPoint) or error.errno == errno.EBUSY:
            outcome.kept.add(path, "is a mount point")
        elif error.errno == errno.EPERM and file_forbids(name, fd):
            outcome.forbidden.add(1, freed)
            outcome.anomalies.add(path, f"is {file_forbids(name, fd)}")
        else:
            outcome.failures.add(path, f"cannot be removed: {error.strerror}")


def _remove_directory(name: str, fd: int, ident: Ident) -> None:
    """Remove an empty directory, if it is still the one where something was removed. Raises OSError."""
    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    if (st.st_dev, st.st_ino) != ident:
        raise FileNotFoundError(errno.ENOENT, "was replaced", name)
    os.rmdir(name, dir_fd=fd)
