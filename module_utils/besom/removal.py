# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing the files of a plan: each one verified on its directory's descriptor just before it goes."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import compress
from types import TracebackType
from typing import Callable

from .effort import Rate
from .inventory import Inventory
from .locks import LockTable
from .report import Noted, Tally
from .run import Run
from .selection import Chunk
from .tree import CHANGED, Cursor, MountPoint, file_forbids, in_range
from .units import printable
from .workers import Workers


class Place:
    """Takes a cursor from directory to directory of an inventory, in the order of the walk."""

    def __init__(
        self, found: Inventory, left: Callable[[Cursor, int], None] = lambda cursor, directory: None
    ) -> None:
        """left(cursor, directory) is called in the parent, after a directory was left for good."""
        self.cursor = Cursor(found.root)
        self._found = found
        self._left = left
        self._way: list[int] = []

    def go(self, directory: int) -> OSError | None:
        """Stand in directory; returns the error instead when it cannot be reached."""
        chain = self._found.chain(directory)
        common = 0
        while common < min(len(chain), len(self._way)) and chain[common] == self._way[common]:
            common += 1
        try:
            self.rise(common)
            for step in chain[common:]:
                self.cursor.enter(self._found.names[step])
                self._way.append(step)
        except OSError as error:
            return error
        return None

    def rise(self, depth: int = 0) -> None:
        """Leave directories until depth of them are left on the way. Raises Moved."""
        while len(self._way) > depth:
            directory = self._way.pop()
            try:
                self.cursor.leave()
            except OSError:
                # What was moved away is not emptied here; go on from where the cursor still stands.
                del self._way[self.cursor.depth :]
                if len(self._way) < depth:
                    raise
                continue
            self._left(self.cursor, directory)


@dataclass
class Removed:
    """What became of some of the victims.

    usage: bytes that left the store; stayed: the listed paths that did not go, and how many in all;
    surprised: a file was immutable or append-only, which a quick plan does not see.
    """

    removed: Tally = field(default_factory=Tally)
    usage: int = 0
    kept: Noted = field(default_factory=Noted)
    anomalies: Noted = field(default_factory=Noted)
    failures: Noted = field(default_factory=Noted)
    stayed: set[str] = field(default_factory=set)
    stayed_total: int = 0
    surprised: bool = False

    def add(self, other: Removed) -> None:
        self.removed.add(other.removed.entries, other.removed.bytes)
        self.usage += other.usage
        self.kept.extend(other.kept)
        self.anomalies.extend(other.anomalies)
        self.failures.extend(other.failures)
        self.stayed |= other.stayed
        self.stayed_total += other.stayed_total
        self.surprised = self.surprised or other.surprised


class Remover:
    """Removes the victims of the chunks that it is given, then the directories that this left empty.

    lru: one that was read since counts as changed. listed: the paths that Removed.stayed is about; may
    still grow. total tells how many victims there are, as far as that is known. A context manager; a
    shutdown of the run ends it between two files.
    """

    def __init__(
        self, found: Inventory, lru: bool, run: Run, listed: Collection[str], total: Callable[[], int]
    ) -> None:
        self.found, self.lru, self.run, self.listed, self._total = found, lru, run, listed, total
        # Directories that something was removed from, by any thread.
        self.touched: set[int] = set()
        # Of two names of one inode the one that goes last frees it: two threads would both see two links.
        self.linked = threading.Lock()
        self.rate = Rate(run.effort.max_rate)
        self._hands: list[_Hand] = []
        self._workers: Workers[Chunk] = Workers(self._hire, self._done, self._tell, run.effort.workers)

    def add(self, chunk: Chunk) -> None:
        """Have the victims of a sealed chunk removed; waits while much else is to be removed before."""
        self._workers.add(chunk)

    def finish(self) -> Removed:
        """What became of all victims, once that is settled."""
        self._workers.finish()
        return self.outcome

    @property
    def outcome(self) -> Removed:
        """What has become of the victims so far."""
        outcome = Removed()
        for hand in self._hands:
            outcome.add(hand.outcome)
        return outcome

    def left(self, cursor: Cursor, directory: int) -> None:
        """To be told in its parent that directory was left: removes it if it was emptied here."""
        # rmdir removes what is empty and nothing else; what was empty before was never touched. Where the
        # reading still stands it would lose its way; it comes by itself when it leaves.
        if directory in self.touched and directory not in self.found.standing:
            with suppress(OSError):
                os.rmdir(self.found.names[directory], dir_fd=cursor.fd)
                self.touched.discard(directory)
                self.touched.add(self.found.parents[directory])

    @contextmanager
    def _hire(self) -> Iterator[Callable[[Chunk], None]]:
        hand = _Hand(self)
        self._hands.append(hand)
        try:
            yield hand.remove
        finally:
            hand.go_home()

    def _done(self) -> int:
        return sum(hand.outcome.removed.entries for hand in self._hands)

    def _tell(self) -> None:
        self.run.progress("remove", self._done(), self._total())

    def __enter__(self) -> Remover:
        self._workers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.__exit__(kind, error, trace)


class _Hand:
    """Removes the victims of one chunk after the other, in one thread."""

    def __init__(self, remover: Remover) -> None:
        self.all, self.found = remover, remover.found
        self.outcome = Removed()
        self.place = Place(self.found, remover.left)
        self.here = -1
        self.error: OSError | None = None

    def go_home(self) -> None:
        with suppress(OSError):
            self.place.rise()
        self.place.cursor.rise(0)

    def remove(self, chunk: Chunk) -> None:
        if self.all.run.shutdown.signum:
            return
        shutdown, lru, place = self.all.run.shutdown, self.all.lru, self.place
        outcome, removed = self.outcome, self.outcome.removed
        rate, touch = self.all.rate, self.all.touched.add
        device, table = chunk.device, LockTable()
        locked = table.inodes
        fd = place.cursor.fd
        stat, unlink = os.stat, os.unlink
        columns = (chunk.names, chunk.where, chunk.inode, chunk.mtime, chunk.size, chunk.key, chunk.bytes)
        for name, where, inode, mtime, size, key, held in compress(zip(*columns), chunk.victims):
            if rate.limited:
                rate.wait(shutdown)
            if shutdown.signum:
                break
            if where != self.here:
                self.here, self.error = where, place.go(where)
                fd = place.cursor.fd
            if self.error:
                self.refused(where, name, fd, self.error)
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
                self.refused(where, name, fd, refused)
                continue
            touch(where)
            removed.entries += 1
            outcome.usage += held

    def unlink_one_of_several(self, name: str, fd: int, seen: os.stat_result) -> int:
        """Unlink a name of an inode that had others when it was seen; returns the bytes that this frees."""
        with self.all.linked:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if (st.st_dev, st.st_ino, st.st_mtime_ns, st.st_size) != (
                *(seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size),
            ):
                raise FileNotFoundError(errno.ENOENT, "was replaced", name)
            os.unlink(name, dir_fd=fd)
        return st.st_blocks * 512 if st.st_nlink == 1 else 0

    def stays(self, where: int, name: str) -> str:
        """The path of a victim that does not go."""
        path = self.found.path(where, name)
        self.outcome.stayed_total += 1
        if printable(path) in self.all.listed:
            self.outcome.stayed.add(printable(path))
        return path

    def refused(self, where: int, name: str, fd: int, error: OSError) -> None:
        outcome, path = self.outcome, self.stays(where, name)
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE):
            outcome.kept.add(path, CHANGED)
        elif isinstance(error, MountPoint) or error.errno == errno.EBUSY:
            outcome.kept.add(path, "is a mount point")
        elif error.errno == errno.EPERM and file_forbids(name, fd):
            outcome.surprised = True
            outcome.anomalies.add(path, f"is {file_forbids(name, fd)}")
        else:
            outcome.failures.add(path, f"cannot be removed: {error.strerror}")
