# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing the files of a plan: each one verified on its directory's descriptor just before it goes."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import compress
from typing import Callable

from .inventory import Inventory
from .locks import LockTable
from .report import Noted, Tally
from .run import Run
from .selection import Chunk
from .tree import CHANGED, Cursor, MountPoint, file_forbids, in_range
from .units import printable
from .workers import orphaned, spread

# Below this many files a second process costs more than it gains; beyond, unlinks wait side by side.
_WORTH_FORKING = 20_000
_PROCESSES = 4


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
    touched: directories that something was removed from; surprised: a file was immutable or
    append-only, which a quick plan does not see.
    """

    removed: Tally = field(default_factory=Tally)
    usage: int = 0
    kept: Noted = field(default_factory=Noted)
    anomalies: Noted = field(default_factory=Noted)
    failures: Noted = field(default_factory=Noted)
    stayed: set[str] = field(default_factory=set)
    stayed_total: int = 0
    touched: set[int] = field(default_factory=set)
    surprised: bool = False

    def add(self, other: Removed) -> None:
        self.removed.add(other.removed.entries, other.removed.bytes)
        self.usage += other.usage
        self.kept.extend(other.kept)
        self.anomalies.extend(other.anomalies)
        self.failures.extend(other.failures)
        self.stayed |= other.stayed
        self.stayed_total += other.stayed_total
        self.touched |= other.touched
        self.surprised = self.surprised or other.surprised


def remove_files(found: Inventory, lru: bool, run: Run, listed: Collection[str] = ()) -> Removed:
    """Remove the victims of an inventory, then the directories that this left empty.

    lru: one that was read since counts as changed. listed: the paths that Removed.stayed is about.
    A shutdown ends it between two files.
    """
    chunks = [chunk for chunk in found.chunks if any(chunk.victims)]
    shares = _shares(chunks) if not found.links else [chunks]
    outcome = Removed()
    parent = os.getpid()

    def work(share: Sequence[Chunk]) -> Removed:
        one = _Worker(found, lru, run, listed, parent)
        one.remove(share)
        return one.outcome

    for share, one in zip(shares, spread(shares, work, run.shutdown)):
        if one is None:
            text = "a worker process died; some of its files are gone, and not in these figures"
            outcome.failures.add(found.root.path, text)
        else:
            outcome.add(one)
        # Directories on the way to where two shares meet were emptied by several processes.
        for chunk in (share[0], share[-1]) if len(shares) > 1 else ():
            for end in (chunk.where[0], chunk.where[-1]):
                _remove_emptied(found, end, outcome.touched)
    return outcome


def _shares(chunks: list[Chunk]) -> list[list[Chunk]]:
    """The chunks in at most _PROCESSES shares of about as many victims each, in the order of the walk."""
    total = sum(sum(chunk.victims) for chunk in chunks)
    count = _PROCESSES if total >= _WORTH_FORKING else 1
    shares: list[list[Chunk]] = [[] for share in range(count)]
    done = 0
    for chunk in chunks:
        shares[min(count - 1, done * count // max(1, total))].append(chunk)
        done += sum(chunk.victims)
    return [share for share in shares if share]


def _remove_emptied(found: Inventory, directory: int, touched: Collection[int]) -> None:
    """Remove a directory and those above it, as far as they are empty and something was removed there."""
    place = Place(found)
    for step in reversed(found.chain(directory)):
        if step not in touched or place.go(found.parents[step]):
            break
        try:
            os.rmdir(found.names[step], dir_fd=place.cursor.fd)
        except FileNotFoundError:
            pass
        except OSError:
            break
        touched = {*touched, found.parents[step]}
    place.cursor.rise(0)


class _Worker:
    """Removes shares of the victims, in one process."""

    def __init__(self, found: Inventory, lru: bool, run: Run, listed: Collection[str], parent: int) -> None:
        self.found, self.lru, self.run, self.listed, self.parent = found, lru, run, listed, parent
        self.total = sum(sum(chunk.victims) for chunk in found.chunks)
        self.outcome = Removed()

    def left(self, cursor: Cursor, directory: int) -> None:
        # rmdir removes what is empty and nothing else; what was empty before was never touched.
        if directory in self.outcome.touched:
            with suppress(OSError):
                os.rmdir(self.found.names[directory], dir_fd=cursor.fd)
                self.outcome.touched.add(self.found.parents[directory])

    def remove(self, chunks: Sequence[Chunk]) -> None:
        shutdown, outcome, lru = self.run.shutdown, self.outcome, self.lru
        share = sum(sum(chunk.victims) for chunk in chunks)
        place = Place(self.found, self.left)
        error: OSError | None = None
        here = fd = -1
        stat, unlink, touch = os.stat, os.unlink, outcome.touched.add
        for chunk in chunks:
            if shutdown.requested or orphaned(self.parent):
                break
            device, table = chunk.device, LockTable()
            locked = table.inodes
            entries = freed = usage = 0
            columns = (chunk.names, chunk.where, chunk.inode, chunk.mtime, chunk.size, chunk.key, chunk.bytes)
            for name, where, inode, mtime, size, key, held in compress(zip(*columns), chunk.victims):
                if shutdown.signum:
                    break
                if where != here:
                    here, error = where, place.go(where)
                    fd = place.cursor.fd
                try:
                    if error:
                        raise error
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
                    unlink(name, dir_fd=fd)
                except OSError as refused:
                    self.refused(where, name, fd, refused)
                    continue
                touch(where)
                entries += 1
                usage += held
                if st.st_nlink == 1:
                    freed += st.st_blocks * 512
            outcome.removed.add(entries, freed)
            outcome.usage += usage
            # What one process has done of its share stands for all of them.
            self.run.progress("remove", outcome.removed.entries * self.total // share, self.total)
        with suppress(OSError):
            place.rise()
        place.cursor.rise(0)

    def stays(self, where: int, name: str) -> str:
        """The path of a victim that does not go."""
        path = self.found.path(where, name)
        self.outcome.stayed_total += 1
        if printable(path) in self.listed:
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
