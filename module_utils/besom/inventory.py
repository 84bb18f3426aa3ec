# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a store: its entries as compact tables, its usage, and what of it is not besom's to remove.

Takes no lock and changes nothing, not even an atime (where O_NOATIME is allowed).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Callable, Optional, Protocol

from .locks import LockTable
from .own_names import OWNED
from .report import CAP, Noted
from .root import Root, open_directory
from .run import Forecast, Run
from .selection import CHUNK, Chunk
from .tree import (
    EARLIEST,
    FOR_SESSIONS,
    LATEST,
    SESSIONS_TRASH,
    SWAP,
    TRASH,
    Blocked,
    Cursor,
    Measure,
    MountPoint,
    Shared,
    Sums,
    can_write,
    flags_forbid,
    in_range,
    measure,
    sticky_forbids,
    walk,
)
from .units import printable

if TYPE_CHECKING:
    from .file_reading import FileReader

OLDEST = -(2**63)
YOUNGEST = 2**63 - 1
# So many tables that are about to be taken stay open: packing them takes longer than it saves.
_OPEN = 8
# So many files are read before others are asked to help: to start processes takes as long. Nor are they with
# the names of a small directory, which is open here: to go there takes them as long.
_ALONE, _SMALL = 1 << 13, 64
# Names of a directory that are listed before any of them goes. Some file systems do not list a directory well
# from which names go meanwhile; that of a larger one would take memory.
_LISTED = 1 << 14
# As many anomalies are named to somebody who asks for all.
ALL = 100_000


@dataclass
class _Link:
    """An inode with several links: its names in all, seen in the store, listed, counted as gone."""

    links: int
    size: int
    seen: int = 0
    listed: int = 0
    gone: int = 0
    # Of the name that is listed last, by key, directory and name: these, and its place in the tables.
    last: tuple[int, int, str] = (OLDEST, -1, "")
    chunk: int = -1
    position: int = -1


@dataclass(frozen=True)
class Criteria:
    """Which files of a store are entries, and which of those may go: as the parameters of read_files."""

    lru: bool = False
    horizon: int = YOUNGEST
    grace: int = YOUNGEST
    only: re.Pattern[str] | None = None
    whole: bool = False


class Taker(Protocol):
    """Takes entries while others are still read, so that they need not be kept."""

    @property
    def looks(self) -> bool:
        """Whether it may be given names that nobody has looked at."""

    def take(self, found: Inventory, chunk: Chunk) -> None:
        """Take a chunk, sealed or not; the reading waits for that."""

    def look(
        self, found: Inventory, criteria: Criteria, where: int, ident: tuple[int, int], names: list[str]
    ) -> None:
        """Look at names of a directory, which is where and has that identity; take those that may go."""

    def settle(self) -> None:
        """End of the reading: what was looked at is in the inventory then. Raises Interrupted."""


class Directories:
    """Directories by number, 0 for root: parents and names give the directory of each, and its name."""

    root: Root
    parents: Any
    names: Any

    def chain(self, directory: int) -> list[int]:
        """The numbers of the directories from just below the root down to this one."""
        found = []
        while directory:
            found.append(directory)
            directory = self.parents[directory]
        return found[::-1]

    def path(self, directory: int, name: str) -> str:
        # A session is named with its parts.
        id_ = name.partition("/")[0]
        return os.path.join(self.root.path, *(self.names[i] for i in self.chain(directory)), id_)


@dataclass
class Reading:
    """A store of files that is being read. scan() reads the directory where the cursor stands; stand() only
    notes that it stands there. Its sums are in sums then."""

    cursor: Cursor
    table: LockTable
    scan: Callable[[], list[str]]
    stand: Callable[[], int]
    sums: Sums


class Companion(Protocol):
    """Who goes along a walk through a store, and of one of files knows what need not be read again."""

    def scan(self, reading: Reading) -> list[str]:
        """Scan the directory at hand, or stand in it; the subdirectories to enter."""

    def refused(self, depth: int, error: OSError) -> None:
        """A directory could not be read, or entered from where the cursor stands, at that depth."""

    def note(self, cursor: Cursor, sums: Sums) -> None:
        """Of trees and sessions: the directory where the cursor stands was read; its sums but for bytes."""

    def cover(self, inode: int) -> None:
        """Of trees and sessions: an inode directly in the root."""


class Memory(Protocol):
    """What is remembered of a store. survey.Memory is one, which no module is to carry."""

    walked: int | None

    @property
    def due(self) -> int | None:
        """When the store is to be walked at the latest, ns since the epoch; None where it always is."""

    def look(self, horizon: int, grace: int) -> Looked | None:
        """The store as it is, read as far as it has changed; None where it has to be walked."""

    def begin(self) -> Any:
        """The companion of a walk through all of the store."""

    def keep(self, survey: Any, found: Inventory) -> None:
        """Remember what such a walk has found."""


@dataclass
class Pending:
    """A removal of sessions that a crash cut off, by its trash.

    ids: whose metadata is in the trash, since moment (ctime, ns); names: what of them is still beside it, and
    whether each is a directory; print: of these; back: something is newer, so it is put back.
    """

    ids: list[str] = field(default_factory=list)
    moment: int = LATEST
    names: list[tuple[str, bool]] = field(default_factory=list)
    print: int = 0
    back: bool = False


@dataclass
class Inventory(Directories):
    """A store as it was found.

    chunks hold the entries that could be removed and are older than horizon; parents and names give
    the directory of each (0 is the root). usage: bytes, each inode once; entries: all of them;
    young: entries inside the grace period; oldest, newest: key (ns) of any entry; trash: left by a
    crash, bytes by name in the root. Of sessions: groups, that chunks name by number; anomalous, bytes
    of what is no entry; pending, by trash; listed, the mtime (ns) that the root had when it
    was listed.
    """

    root: Root
    by_mtime: bool = True
    chunks: list[Chunk] = field(default_factory=list)
    parents: array[int] = field(default_factory=lambda: array("I", [0]))
    names: list[str] = field(default_factory=lambda: [""])
    trash: dict[str, int] = field(default_factory=dict)
    usage: int = 0
    entries: int = 0
    young: int = 0
    oldest: int | None = None
    newest: int | None = None
    kept: Noted = field(default_factory=Noted)
    anomalies: Noted = field(default_factory=Noted)
    links: dict[tuple[int, int], _Link] = field(default_factory=dict)
    # Links gone before the entries go: what the forecast had noted, and those in the trash.
    gone: dict[tuple[int, int], int] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)
    anomalous: int = 0
    pending: dict[str, Pending] = field(default_factory=dict)
    listed: int = 0
    # Directories that the reading stands in, from the root down.
    standing: list[int] = field(default_factory=list)
    # Of layouts trees and sessions: whether all this stays as long as mtime and ctime of the directories do,
    # but for locks; and the inodes with several links in each entry that has such.
    settled: bool = True
    shared: dict[str, Shared] = field(default_factory=dict)

    @property
    def entangled(self) -> bool:
        """Of layouts trees and sessions: whether an inode has names in several entries, or beside them."""
        return any(
            names < self.links[ident].seen
            for shared in self.shared.values()
            for ident, (names, *_rest) in shared.items()
        )

    def room(self, device: int, chunks: list[Chunk] | None = None) -> Chunk:
        """The chunk of chunks (None: those of the inventory) that takes the next entry; seals full ones."""
        kept = chunks is None or chunks is self.chunks
        chunks = self.chunks if chunks is None else chunks
        chunk = chunks[-1] if chunks else None
        if chunk is None or chunk.device != device or len(chunk) >= CHUNK:
            if chunk is not None and (kept or len(chunks) > _OPEN):
                chunk.seal()
            chunk = Chunk(device, self.by_mtime)
            chunks.append(chunk)
        return chunk

    def room_for(self, link: _Link, device: int, key: int, where: int, name: str) -> Chunk:
        """The same for a name of an inode that has several, whose bytes are known only in the end."""
        chunk = self.room(device)
        link.listed += 1
        if (key, where, name) > link.last:
            link.last, link.chunk, link.position = (key, where, name), len(self.chunks) - 1, len(chunk)
        return chunk

    def count(self, sums: Sums) -> None:
        """Count what the entries of a directory come to."""
        self.usage += sums.usage
        self.entries += sums.entries
        if sums.entries:
            self.span(sums.oldest, sums.newest)

    def span(self, oldest: int, newest: int) -> None:
        self.oldest = oldest if self.oldest is None else min(oldest, self.oldest)
        self.newest = newest if self.newest is None else max(newest, self.newest)

    def note(self, blocked: Blocked) -> None:
        (self.anomalies if blocked.anomaly else self.kept).add(blocked.path, blocked.reason)

    def refused(self, path: str, error: OSError) -> None:
        """Note a directory that could not be entered, unless it is gone."""
        if error.errno != errno.ENOENT:
            self.note(unread(path, error))

    def is_entry(self, name: str) -> bool:
        """Whether a directory in the root may be an entry: trash is noted instead, lost+found left alone."""
        if TRASH.fullmatch(name):
            self.trash[name] = 0
            return False
        if SESSIONS_TRASH.fullmatch(name):
            self.kept.add(self.path(0, name), FOR_SESSIONS)
            return False
        return name != "lost+found"

    def count_usage(self, one: Measure) -> None:
        """Count the usage of one entry, each shared inode for the whole store once."""
        self.usage += one.bytes
        for ident, (names, count, size) in one.shared.items():
            link = self.links.get(ident)
            if link is None:
                link = self.links[ident] = _Link(count, size)
            else:
                self.usage -= size
            link.seen += names

    def credit(self, one: Measure) -> tuple[int, int]:
        """(usage, freed): bytes that go with an entry, for all entries in the order in which they may go.

        A shared inode's bytes go with the last of them that has a name of it.
        """
        size = freed = one.bytes
        for ident, (count, _links, shared) in one.shared.items():
            link = self.links[ident]
            link.gone += count
            last = link.gone == link.seen
            size -= 0 if last else shared
            freed -= 0 if last and link.seen >= link.links else shared
        return size, freed

    def merge(self, other: Inventory) -> None:
        """Add what was found of the same store elsewhere; the tables of both are sealed."""
        self.usage += other.usage
        self.entries += other.entries
        self.young += other.young
        if other.oldest is not None and other.newest is not None:
            self.span(other.oldest, other.newest)
        self.kept.extend(other.kept)
        self.anomalies.extend(other.anomalies)
        before = len(self.chunks)
        self.chunks += other.chunks
        for ident, link in other.links.items():
            mine = self.links.setdefault(ident, _Link(link.links, link.size))
            if mine.seen:
                self.usage -= link.size
            mine.seen += link.seen
            mine.listed += link.listed
            if link.last > mine.last:
                mine.last, mine.chunk, mine.position = link.last, before + link.chunk, link.position

    def measure_trash(
        self, table: LockTable, forecast: Forecast, beside: Mapping[str, Measure] | None = None
    ) -> None:
        """Find out how much the trash gives back; leave out what another besom is at work on.

        beside: what else goes with a trash, by its name.
        """
        cursor, before = Cursor(self.root), Forecast(links=dict(forecast.links))
        for name in list(self.trash):
            try:
                cursor.enter(name)
                one = measure(cursor, table)
                if beside and name in beside:
                    one.merge(beside[name])
                if one.blocked:
                    del self.trash[name]
                    self.note(replace(one.blocked, anomaly=True))
                else:
                    self.trash[name] = before.credit(one.bytes, one.shared)
            except OSError as error:
                del self.trash[name]
                self.refused(cursor.path(name), error)
            cursor.rise(0)
        self.gone = before.links
        for ident in self.gone.keys() & self.links.keys():
            self.links[ident].links -= self.gone[ident]


@dataclass
class Looked:
    """A store that was read as far as it has changed.

    found has the sums of all of it, but entries, kept and anomalies only of the directories that were read:
    in the others there is nothing to keep. oldest_unread: the oldest key (ns) in those.
    """

    found: Inventory
    oldest_unread: int


@contextmanager
def listing(cursor: Cursor) -> Iterator[Iterator[os.DirEntry[str]]]:
    """What is in the directory that cursor stands in, listed anew.

    Where one is in a directory that was opened once is one place for all threads, and for forks.
    """
    fd = open_directory(".", cursor.fd)
    try:
        with os.scandir(fd) as entries:
            yield entries
    finally:
        os.close(fd)


# An entry that may go: name, stat, mtime and key (ns), bytes, and the inode if that has several links.
Candidate = tuple[str, os.stat_result, int, int, int, Optional[_Link]]


def candidates(
    criteria: Criteria,
    found: Inventory,
    sums: Sums,
    names: Iterable[str],
    fd: int,
    path: Callable[[str], str],
    table: LockTable,
) -> Generator[Candidate, None, None]:
    """Look at names of the directory open as fd, none of them a directory or mounted on; those that may go.

    Each was looked at just before it is given. What all come to is added to sums, kept, young and
    links; what could not be looked at is left out, and the error is in sums.
    """
    lru, horizon, grace, only = criteria.lru, criteria.horizon, criteria.grace, criteria.only
    locked, links, device, stat = table.inodes, found.links, sums.own.st_dev, os.stat
    usage = entries = young = 0
    oldest, newest, low, high = sums.oldest, sums.newest, sums.low, sums.high
    try:
        for name in names:
            try:
                st = stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            except OSError as error:
                sums.refused = error
                continue
            kind = st.st_mode & 0o170000
            if kind != 0o100000 and kind != 0o120000:
                # What has become a directory since is looked into next time.
                if kind != 0o040000:
                    found.kept.add(path(name), "is a socket, FIFO or device")
                continue
            if only is not None and not only.fullmatch(name):
                continue
            entries += 1
            size = st.st_blocks * 512
            inode = st.st_ino
            if inode > high:
                high = inode
            elif inode < low:
                low = inode
            key = mtime = st.st_mtime_ns
            if not EARLIEST <= mtime <= LATEST:
                key = mtime = in_range(mtime)
            if lru and st.st_atime_ns > key:
                key = in_range(st.st_atime_ns)
            if key < oldest:
                oldest = key
            if key > newest:
                newest = key
            link = None
            if st.st_nlink > 1:
                ident = (st.st_dev, inode)
                sums.shared.append((*ident, size))
                link = links.get(ident)
                if link is None:
                    link = links[ident] = _Link(st.st_nlink, size)
                    found.usage += size
                link.seen += 1
                size = 0  # its last link gets it, once all are known
            else:
                usage += size
            if st.st_dev != device:
                sums.strange = True
            if key >= horizon:
                young += key > grace
                continue
            if inode in locked:
                holder = table.holder(st.st_dev, inode)
                if holder:
                    found.kept.add(path(name), f"in use: locked by {holder}")
                    if not criteria.whole:
                        continue
            yield name, st, mtime, key, size, link
    finally:
        sums.usage += usage
        sums.entries += entries
        sums.oldest, sums.newest, sums.low, sums.high = oldest, newest, low, high
        found.young += young


def unread(path: str, error: OSError) -> Blocked:
    """What an error says of a directory that could not be entered, or read."""
    if isinstance(error, MountPoint):
        return Blocked(path, "is a mount point")
    return Blocked(path, f"cannot be read: {error.strerror}", True)


def read_files(
    root: Root,
    run: Run,
    lru: bool = False,
    horizon: int = YOUNGEST,
    grace: int = YOUNGEST,
    only: re.Pattern[str] | None = None,
    whole: bool = False,
    companion: Companion | None = None,
    taker: Taker | None = None,
) -> Inventory:
    """The inventory of layout `files`: every regular file and symlink, however deep.

    lru: age is the later of atime and mtime. horizon: an entry whose key (ns) is not below it is
    counted and not listed; grace: the youngest key that may go. only: other names are no entries.
    whole: chunks have the entries that could not be removed as well, and every anomaly is named.
    taker: gets all that is listed but what has several links, whose bytes are known only in the end; from
    the first on that may go, it looks by itself.
    companion: what it does not have scanned is not in the inventory. Without these two many files are looked
    at by as many processes and threads as pay, run.effort.workers at most. Raises Interrupted between two
    directories, and between two files of a large one; BesomError where such a process was killed.
    """
    found, forecast = Inventory(root, by_mtime=not lru), run.forecast
    criteria = Criteria(lru, horizon, grace, only, whole)
    found.anomalies.cap = ALL if whole else CAP
    cursor, table = Cursor(root), LockTable()
    mounted, locked = cursor.mounted, table.inodes
    way, doing = found.standing, f"reading {printable(root.path)}"
    going: list[Chunk] = [] if taker else found.chunks
    others = os.geteuid() != 0
    # Names that are looked at by others, and here.
    given = alone = 0
    reader: FileReader | None = None

    def stand() -> int:
        run.shutdown.check(doing)
        depth = cursor.depth
        del way[depth:]
        if depth:
            found.parents.append(way[depth - 1])
            found.names.append(cursor.name)
        way.append(len(found.names) - 1)
        return way[depth]

    def scan() -> list[str]:
        here = stand()
        fd, depth = cursor.fd, cursor.depth
        own = os.fstat(fd)
        reading.sums = sums = Sums(own, low=own.st_ino, high=own.st_ino)
        noted = found.kept.total + found.anomalies.total
        if depth and own.st_ino in locked:
            holder = table.holder(own.st_dev, own.st_ino)
            if holder:
                found.kept.add(cursor.path(), f"in use: locked by {holder}")
                return []
        gone = forecast.names.get((own.st_dev, own.st_ino), ())
        flags = flags_forbid(fd)
        forbidden = f"is {flags}" if flags else "" if can_write(fd) else "cannot be written"
        sticky = bool(own.st_mode & stat.S_ISVTX)
        unremovable = 0
        subdirs: list[str] = []
        listed: list[str] = []

        def consider(names: list[str]) -> None:
            nonlocal given, alone, unremovable
            look_at = None if companion or forbidden or sticky else others_look(len(names))
            if look_at is not None:
                run.shutdown.check(doing)
                look_at(criteria, here, (own.st_dev, own.st_ino), names)
                given += len(names)
                return
            alone += len(names)
            chunk: Chunk | None = None
            for name, st, mtime, key, size, link in look(names):
                if forbidden or (sticky and sticky_forbids(own, st)):
                    unremovable += 1
                    if not whole:
                        continue
                if chunk is None or chunk.device != st.st_dev or len(chunk.mtime) >= CHUNK:
                    chunk = found.room(st.st_dev, going)
                into = chunk if link is None else found.room_for(link, st.st_dev, key, here, name)
                into.append(name, here, st, mtime, key, size)

        def look(names: list[str]) -> Iterator[Candidate]:
            for start in range(0, len(names), CHUNK):
                run.shutdown.check(doing)
                some = names[start : start + CHUNK]
                yield from candidates(criteria, found, sums, some, fd, cursor.path, table)

        with listing(cursor) as entries:
            for entry in entries:
                name = entry.name
                if name in gone:
                    continue
                # d_type tells a directory without touching what may be a mount.
                if entry.is_dir(follow_symlinks=False):
                    if depth or found.is_entry(name):
                        subdirs.append(name)
                elif not depth and name[0] == "." and OWNED.fullmatch(name):
                    continue
                elif name in mounted and cursor.is_mount(name):
                    found.kept.add(cursor.path(name), "is a mount point")
                else:
                    listed.append(name)
                    if len(listed) == _LISTED:
                        consider(listed)
                        listed = []
        consider(listed)
        if sums.refused is not None:
            if companion is not None:
                raise sums.refused
            found.note(unread(cursor.path(), sums.refused))
        if unremovable:
            why = forbidden or "is sticky, and they belong to others"
            found.anomalies.add(
                cursor.path(), f"{unremovable} files kept: their directory {why}", unremovable
            )
        found.count(sums)
        noted -= found.kept.total + found.anomalies.total
        trash = not depth and found.trash
        sums.settled = not (noted or forbidden or (sticky and others) or sums.strange or gone or trash)
        run.progress("scan", found.entries + given, 0)
        hand_over(1)
        return subdirs

    def hand_over(most: int) -> None:
        """Give all to the taker but so many chunks, of which one has room for more."""
        while taker and len(going) > most:
            taker.take(found, going.pop(0))

    def others_look(count: int) -> Callable[[Criteria, int, tuple[int, int], list[str]], None] | None:
        """By whom so many names of a directory are looked at, if by others."""
        nonlocal reader
        if taker is not None:
            return partial(taker.look, found) if taker.looks and going else None
        if alone < _ALONE or count < _SMALL or whole or run.effort.workers == 1:
            return None
        if reader is None:
            # 15 ms on a module's arrival.
            from .file_reading import FileReader

            reader = reading_ends.enter_context(FileReader(found, run))
        return reader.look

    def left(_name: str) -> None:
        # None for one that could not be read at all.
        del way[cursor.depth + 1 :]

    def refused(name: str, error: OSError) -> None:
        found.refused(cursor.path(name), error)
        if companion is not None:
            companion.refused(cursor.depth, error)

    def together() -> list[str]:
        return companion.scan(reading) if companion is not None else scan()

    reading = Reading(cursor, table, scan, stand, Sums(os.fstat(root.fd)))
    with ExitStack() as reading_ends:
        try:
            walk(cursor, together, left, refused)
        except OSError as error:
            refused("", error)
        finally:
            cursor.rise(0)
            way.clear()
        hand_over(0)
        if found.chunks:
            found.chunks[-1].seal()
        if taker:
            taker.settle()
        if reader is not None:
            reader.settle()
            # Nobody may have looked at some.
            run.shutdown.check(doing)
    found.measure_trash(table, forecast)
    for link in found.links.values():
        # It is known now, and takes room.
        link.last = _Link.last
        # A name that stays keeps the inode: then its bytes go with none of the others.
        if link.listed and link.listed == link.seen:
            freed = link.size if link.seen >= link.links else 0
            found.chunks[link.chunk].set_bytes(link.position, link.size, freed)
    return found


def read_trees(
    root: Root,
    run: Run,
    lru: bool = False,
    horizon: int = YOUNGEST,
    grace: int = YOUNGEST,
    thorough: bool = False,
    whole: bool = False,
    companion: Companion | None = None,
) -> Inventory:
    """The inventory of layout `trees`: each directory in the root, whole.

    Parameters as in read_files, where the companion is told of all directories; thorough as in
    tree.measure. What else is in the root counts as usage and is never an entry.
    """
    found, forecast = Inventory(root, by_mtime=False), run.forecast
    found.anomalies.cap = ALL if whole else CAP
    cursor, table = Cursor(root), LockTable()
    listed: list[tuple[int, int, str, Measure]] = []

    writable = can_write(root.fd)
    sticky = os.fstat(root.fd)
    found.settled = writable and not (sticky.st_mode & stat.S_ISVTX and os.geteuid())
    note = companion.note if companion is not None else None
    if note is not None:
        note(cursor, Sums(sticky, low=sticky.st_ino, high=sticky.st_ino, settled=True))
    gone = forecast.names.get(root.ident, ())
    with os.scandir(root.fd) as names:
        children = [entry.name for entry in names if entry.is_dir(follow_symlinks=False)]
    _count_loose(found, cursor, {*children, *gone}, companion)
    for name in children:
        run.shutdown.check(f"reading {printable(root.path)}")
        if name in gone or not found.is_entry(name):
            continue
        try:
            cursor.enter(name)
        except OSError as error:
            found.refused(cursor.path(name), error)
            continue
        own = os.fstat(cursor.fd)
        one = measure(cursor, table, thorough, note)
        cursor.rise(0)
        # Whether it is noted goes by its age, which no index follows.
        found.settled = found.settled and not one.blocked and not SWAP.fullmatch(name)
        found.entries += 1
        found.count_usage(one)
        run.progress("scan", found.entries, 0)
        key = one.used if lru else one.newest
        found.span(key, key)
        if key >= horizon:
            found.young += key > grace
            continue
        blocked = one.blocked
        if not (blocked or writable):
            blocked = Blocked(cursor.path(name), "cannot be removed: the store cannot be written", True)
        elif not blocked and sticky_forbids(sticky, own):
            blocked = Blocked(cursor.path(name), "belongs to another user, in a sticky directory", True)
        elif not blocked and SWAP.fullmatch(name):
            # It may be the only copy; the next installation knows.
            blocked = Blocked(cursor.path(name), "was left by an installation that was cut off", False)
        if blocked:
            found.note(blocked)
        if whole or not blocked:
            listed.append((key, one.inode, name, one))
            if one.shared:
                found.shared[name] = one.shared
    found.measure_trash(table, forecast)
    for key, inode, name, one in sorted(listed, key=lambda row: row[:2]):
        chunk = found.room(one.device)
        chunk.open_names.append(name)
        chunk.where.append(0)
        chunk.inode.append(inode)
        chunk.mtime.append(one.newest)
        chunk.size.append(one.count)
        chunk.key.append(key)
        chunk.set_bytes(len(chunk.bytes), *found.credit(one))
    if found.chunks:
        found.chunks[-1].seal()
    return found


def _count_loose(
    found: Inventory, cursor: Cursor, others: set[str], companion: Companion | None = None
) -> None:
    """Count as usage what lies in the root of a store of trees and is not one of the others."""
    with os.scandir(cursor.fd) as names:
        for entry in names:
            if entry.name in others or OWNED.fullmatch(entry.name):
                continue
            if entry.name in cursor.mounted and cursor.is_mount(entry.name):
                continue
            try:
                st = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            if companion is not None:
                companion.cover(st.st_ino)
            size = st.st_blocks * 512
            if st.st_nlink > 1:
                # A name that no entry has: by it, the inode stays whatever goes.
                link = found.links.setdefault((st.st_dev, st.st_ino), _Link(st.st_nlink, size))
                size = 0 if link.seen else size
                link.seen += 1
            found.usage += size
