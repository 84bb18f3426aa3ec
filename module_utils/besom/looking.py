# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looking at names of a store in the place of the reading, which only lists them, by as many as pay."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Callable

from .inventory import Candidate, Criteria, Directories, Inventory, candidates, unread
from .locks import LockTable
from .removal import Ident
from .root import Root
from .shutdown import Shutdown
from .tree import CHANGED, Blocked, Cursor, MountPoint, Sums

# Of what is no longer where it was.
ELSEWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)
# Files of a job: so few that all processes end at about the same time.
FILES = 256


class Place:
    """Takes a cursor from directory to directory, best in the order of the walk."""

    def __init__(
        self, found: Directories, left: Callable[[Cursor, int, Ident], None] = lambda *left: None
    ) -> None:
        """left(cursor, directory, ident) is called in the parent, after a directory was left for good."""
        self.cursor = Cursor(found.root)
        self._found = found
        self._left = left
        # The directories that the cursor stands in, from below the root down.
        self.way: list[int] = []

    def go(self, directory: int) -> OSError | None:
        """Stand in directory; returns the error instead when it cannot be reached."""
        chain = self._found.chain(directory)
        common = 0
        while common < min(len(chain), len(self.way)) and chain[common] == self.way[common]:
            common += 1
        try:
            self.rise(common)
            for step in chain[common:]:
                self.cursor.enter(self._found.names[step])
                self.way.append(step)
        except OSError as error:
            return error
        return None

    def rise(self, depth: int = 0) -> None:
        """Leave directories until depth of them are left on the way. Raises Moved."""
        while len(self.way) > depth:
            directory, ident = self.way.pop(), self.cursor.ident
            try:
                self.cursor.leave()
            except OSError:
                # What was moved away is not emptied here; go on from where the cursor still stands.
                del self.way[self.cursor.depth :]
                if len(self.way) < depth:
                    raise
                continue
            self._left(self.cursor, directory, ident)


@dataclass
class Names:
    """Names in one directory that are to be looked at, in the place of the reading.

    ident: of the directory; ways: parent and name of each directory on the way to it; standing: directories
    that the reading stands in.
    """

    criteria: Criteria
    where: int
    ident: Ident
    names: list[str]
    ways: dict[int, tuple[int, str]]
    standing: list[int]


class Ways(Directories):
    """The directories on the way to the files at hand."""

    def __init__(self, root: Root) -> None:
        self.root, self.parents, self.names = root, {}, {}

    def now(self, ways: Mapping[int, tuple[int, str]], way: Sequence[int]) -> None:
        """Know these, and of the others those on the way to where one stands."""
        known = {one: (self.parents[one], self.names[one]) for one in way} | dict(ways)
        self.parents = {one: parent for one, (parent, _name) in known.items()}
        self.names = {one: name for one, (_parent, name) in known.items()}


def ways_to(found: Directories, directories: Iterable[int]) -> dict[int, tuple[int, str]]:
    """Parent and name of each directory on the way to one of these."""
    ways = {}
    for directory in directories:
        while directory and directory not in ways:
            ways[directory] = (found.parents[directory], found.names[directory])
            directory = found.parents[directory]
    return ways


def jobs_of(
    found: Inventory, criteria: Criteria, where: int, ident: Ident, names: list[str]
) -> Iterator[Names]:
    """Jobs of the names in a directory."""
    ways, standing = ways_to(found, [where]), found.standing[:]
    for start in range(0, len(names), FILES):
        yield Names(criteria, where, ident, names[start : start + FILES], ways, standing)


class Looker:
    """Looks at names, in one thread; shutdown and parent as workers.Hire has them.

    seen: what they came to; left_out: why directories were not looked at, or not at all of them.
    """

    def __init__(
        self,
        root: Root,
        shutdown: Shutdown,
        parent: int,
        left: Callable[[Cursor, int, Ident], None] = lambda *left: None,
    ) -> None:
        """left as Place has it."""
        self.shutdown, self.parent = shutdown, parent
        self.ways = Ways(root)
        self.place = Place(self.ways, left)
        self.seen: Inventory | None = None
        self.left_out: dict[int, Blocked] = {}

    @contextmanager
    def looking(self, job: Names) -> Iterator[tuple[Inventory, int, Iterable[Candidate]]]:
        """Give what is seen, the descriptor of a directory, and those of the names in it that may go.

        Each is looked at as it is asked for.
        """
        where, place = job.where, self.place
        self.ways.now(job.ways, place.way)
        seen = self.seen = self.seen or Inventory(self.ways.root, not job.criteria.lru)
        table = LockTable()
        error = place.go(where)
        fd = place.cursor.fd
        blocked = self._blocked(job, error, table)
        if blocked is not None:
            self.left_out[where] = blocked
        if error is not None or blocked is not None:
            yield seen, fd, ()
            return
        sums, path = Sums(os.fstat(fd)), partial(self.ways.path, where)
        its = candidates(job.criteria, seen, sums, job.names, fd, path, table)
        try:
            yield seen, fd, its
        finally:
            its.close()
            seen.count(sums)
            if sums.refused is not None:
                self.left_out[where] = unread(place.cursor.path(), sums.refused)

    def _blocked(self, job: Names, error: OSError | None, table: LockTable) -> Blocked | None:
        """Why the directory of job is not looked at, unless it is gone; error: that of going there."""
        if error is not None and error.errno == errno.ENOENT:
            return None
        where, ways, cursor = job.where, self.ways, self.place.cursor
        here = ways.path(ways.parents[where], ways.names[where]) if where else ""
        if error is not None and (isinstance(error, MountPoint) or error.errno not in ELSEWHERE):
            return unread(here, error)
        why = CHANGED if error is not None or cursor.ident != job.ident else locked_by(cursor, table)
        return Blocked(here, why) if why else None

    def all_seen(self) -> Inventory | None:
        """What was seen, its tables sealed, once there is nothing more to look at."""
        if self.seen is not None and self.seen.chunks:
            self.seen.chunks[-1].seal()
        return self.seen

    def close(self) -> None:
        self.place.cursor.rise(0)


def locked_by(cursor: Cursor, table: LockTable) -> str:
    """By whom the directory that cursor stands in, or one above it, is in use; empty if by nobody.

    The lock of the root is that of this run.
    """
    for device, inode in cursor.way:
        holder = table.holder(device, inode) if inode in table.inodes else None
        if holder:
            return f"in use: locked by {holder}"
    return ""
