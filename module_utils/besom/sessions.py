# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The layout `sessions`: an entry is `<id>.json` and its blobs, every `<id>` and `<id>.*` beside it.

A name belongs to the longest id that fits. What has no sound metadata, or nothing but metadata, is an
anomaly: its bytes count, and it is never removed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

from . import metadata
from .inventory import ALL, YOUNGEST, Companion, Inventory, Pending, listing
from .locks import LockTable
from .own_names import ORPHAN, OWNED, TREE
from .report import CAP
from .root import Root
from .run import Run
from .tree import (
    SESSIONS_TRASH,
    TRASH,
    Blocked,
    Cursor,
    Measure,
    MountPoint,
    Shared,
    Sums,
    can_write,
    file_forbids,
    in_range,
    measure,
    sticky_forbids,
)
from .units import printable

JSON = ".json"
PUT_BACK = "a removal that was cut off, and something of it is newer: it is put back"
FOREIGN = "belongs to another user than its metadata, in a sticky directory"
_LONE = "is a blob without metadata"


@dataclass
class Session:
    """One session, or (problem) what is none and why.

    parts: the names of its blobs, see part_of; problem: a reason to leave it alone for ever; without one,
    created (ns) and group are from its metadata. measure: of all its names, whose blocked says why it
    has to stay this time; print: the identity of all of them.
    """

    id: str
    path: str
    parts: tuple[str, ...]
    measure: Measure
    print: int = 0
    inode: int = 0
    written: int = 0
    created: int = 0
    group: str = ""
    problem: str = ""


def part_of(id_: str, name: str, is_dir: bool) -> str:
    """A name of a session, short: `d` for a directory or `f`, and what follows the id."""
    return ("d" if is_dir else "f") + name[len(id_) :]


def id_of(name: str) -> str | None:
    """The id whose metadata a name is, if it is one."""
    return name[: -len(JSON)] if name.endswith(JSON) and len(name) > len(JSON) else None


def owner_of(name: str, ids: Collection[str]) -> str | None:
    """The longest of the ids that a name belongs to."""
    if name in ids:
        return name
    end = name.rfind(".")
    while end > 0:
        if name[:end] in ids:
            return name[:end]
        end = name.rfind(".", 0, end)
    return None


def is_own(name: str) -> bool:
    """Whether a name is of besom's own making, or the file system's: never an entry, nor part of one."""
    if name[0] != ".":
        return name == "lost+found"
    return bool(name.startswith(".besom-") or ORPHAN.fullmatch(name) or TREE.fullmatch(name))


@dataclass
class _Names:
    """The names directly in a store.

    rows: `<id>/<part>` of each name of a session, sorted; lone: blobs without metadata; own: besom's own.
    """

    rows: list[str] = field(default_factory=list)
    lone: list[tuple[str, bool]] = field(default_factory=list)
    own: list[tuple[str, bool]] = field(default_factory=list)


def _sort_out(cursor: Cursor, found: Inventory, gone: Collection[str]) -> _Names:
    # One string for each name, a directory's with a slash: half of what a tuple takes.
    names, others = _Names(), []
    found.listed = os.fstat(cursor.fd).st_mtime_ns
    with os.scandir(cursor.fd) as entries:
        for entry in entries:
            name, is_dir = entry.name, entry.is_dir(follow_symlinks=False)
            if name in gone:
                continue
            if is_dir and (TRASH.fullmatch(name) or SESSIONS_TRASH.fullmatch(name)):
                found.trash[name] = 0
            elif is_own(name):
                if name != "lost+found" and not OWNED.fullmatch(name):
                    names.own.append((name, is_dir))
            else:
                others.append(f"{name}/" if is_dir else name)
    ids = {id_ for name in others if (id_ := id_of(name.rstrip("/"))) is not None}
    begun = _begun(cursor, found, names, ids)
    fits = ids | begun.keys() if begun else ids
    while others:
        name = others.pop()
        is_dir, name = name[-1] == "/", name.rstrip("/")
        id_ = id_of(name)
        id_ = owner_of(name, fits) if id_ is None else id_
        if id_ is None:
            names.lone.append((name, is_dir))
        elif id_ in ids:
            names.rows.append(f"{id_}/{part_of(id_, name, is_dir)}")
        else:
            found.pending[begun[id_]].names.append((name, is_dir))
    names.rows.sort()
    names.lone.sort()
    return names


def parts_now(cursor: Cursor) -> dict[str, list[str]]:
    """The parts of every id with metadata in the store that cursor stands in, listed anew."""
    with listing(cursor) as entries:
        names = [(one.name, one.is_dir(follow_symlinks=False)) for one in entries if not is_own(one.name)]
    found: dict[str, list[str]] = {id_: [] for name, _dir in names if (id_ := id_of(name)) is not None}
    for name, is_dir in names:
        id_ = owner_of(name, found) if id_of(name) is None else None
        if id_ is not None:
            found[id_].append(part_of(id_, name, is_dir))
    return found


def is_ours(root: Root, fd: int) -> bool:
    """Whether the trash open as fd was made by a besom that may decide what goes from root, and by no other.

    In a directory for all anybody could name the blobs of others in a trash.
    """
    st = os.fstat(fd)
    return st.st_uid in (0, os.geteuid(), os.fstat(root.fd).st_uid) and not st.st_mode & 0o077


def _begun(cursor: Cursor, found: Inventory, names: _Names, ids: Collection[str]) -> dict[str, str]:
    """The sessions whose removal was begun and not finished, by their trash; found.pending is filled."""
    begun: dict[str, str] = {}
    for name in [name for name in found.trash if SESSIONS_TRASH.fullmatch(name)]:
        try:
            cursor.enter(name)
            if not is_ours(found.root, cursor.fd):
                del found.trash[name]
                names.own.append((name, True))
                found.anomalies.add(cursor.path(), "is the trash of another user; look, and remove it")
                continue
            with os.scandir(cursor.fd) as entries:
                for entry in entries:
                    id_ = id_of(entry.name)
                    if id_ is None or entry.is_dir(follow_symlinks=False):
                        continue
                    if entry.name in cursor.mounted and cursor.is_mount(entry.name):
                        continue
                    begun[id_] = name
                    pending = found.pending.setdefault(name, Pending())
                    pending.ids.append(id_)
                    # A rename changes the ctime, so this is when it went there.
                    moment = entry.stat(follow_symlinks=False).st_ctime_ns
                    pending.moment = min(pending.moment, moment)
                    # Metadata that was put there anew is newer.
                    pending.back = pending.back or id_ in ids
        except OSError:
            pass  # measure_trash says so
        finally:
            cursor.rise(0)
    return begun


def look(
    cursor: Cursor,
    names: Iterable[tuple[str, bool]],
    table: LockTable,
    thorough: bool = False,
    companion: Companion | None = None,
) -> tuple[Measure, int, os.stat_result | None]:
    """Measure names (and whether each is a directory) in the directory that cursor stands in, as one.

    Returns the measure, a print of their identities (for this process only), and the stat of the first
    name. A file's identity is its device, inode, mtime and size, a directory's that of its measure.
    thorough as in tree.measure; the companion is told of all directories, and what the root covers.
    """
    whole, first = Measure(), None
    own, depth = os.fstat(cursor.fd), cursor.depth
    user = -1
    identities = []
    for name, is_dir in names:
        try:
            if is_dir:
                cursor.enter(name)
                try:
                    one = measure(cursor, table, thorough, companion.note if companion else None)
                    st = os.fstat(cursor.fd)
                    if not can_write(cursor.fd):
                        # Moving a directory changes its `..`.
                        one.block(cursor.path(), "cannot be written")
                finally:
                    cursor.rise(depth)
                whole.merge(one)
                identity = (name, st.st_dev, st.st_ino, one.newest, one.count)
            else:
                if name in cursor.mounted and cursor.is_mount(name):
                    raise MountPoint(errno.EXDEV, "is a mount point", name)
                st = os.stat(name, dir_fd=cursor.fd, follow_symlinks=False)
                if companion is not None:
                    companion.cover(st.st_ino)
                # Metadata is read by whoever lists sessions.
                whole.add(st, read=first is not None)
                identity = (name, st.st_dev, st.st_ino, st.st_mtime_ns, st.st_size)
                if st.st_ino in table.inodes:
                    holder = table.holder(st.st_dev, st.st_ino)
                    if holder:
                        whole.block(cursor.path(name), f"in use: locked by {holder}", anomaly=False)
                if stat.S_ISREG(st.st_mode):
                    forbids = file_forbids(name, cursor.fd) if thorough else ""
                    if forbids:
                        whole.block(cursor.path(name), f"is {forbids}")
                elif not stat.S_ISLNK(st.st_mode):
                    kind = "a directory" if stat.S_ISDIR(st.st_mode) else "a socket, FIFO or device"
                    whole.block(cursor.path(name), f"is {kind}", anomaly=False)
        except MountPoint:
            whole.block(cursor.path(name), "is a mount point", anomaly=False)
            continue
        except FileNotFoundError:
            continue
        except OSError as error:
            whole.block(cursor.path(name), f"cannot be read: {error.strerror}")
            continue
        if sticky_forbids(own, st):
            whole.block(cursor.path(name), "belongs to another user, in a sticky directory")
        if first is None and own.st_mode & stat.S_ISVTX and id_of(name):
            user = st.st_uid
        if user not in (-1, 0, own.st_uid, st.st_uid):
            # Metadata decides about no more than its owner could remove himself.
            whole.block(cursor.path(name), FOREIGN)
        whole.device = st.st_dev
        first = first or st
        identities.append(identity)
    return whole, hash(tuple(identities)), first


def names_of(id_: str, parts: Iterable[str]) -> list[tuple[str, bool]]:
    """The names of a session, its metadata first, and whether each is a directory."""
    return [(id_ + JSON, False), *((id_ + part[1:], part[0] == "d") for part in parts)]


def _read_metadata(cursor: Cursor, name: str, st: os.stat_result | None) -> bytes:
    """The bytes of the metadata file that st is of. Raises Unfit."""
    if st is None or not stat.S_ISREG(st.st_mode):
        raise metadata.Unfit("its metadata is not a regular file")
    if st.st_size > metadata.MOST:
        raise metadata.Unfit("its metadata is larger than 1 MiB")
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            fd = os.open(name, flags | os.O_NOATIME, dir_fd=cursor.fd)
        except PermissionError:
            # O_NOATIME is for the owner only, open(2).
            fd = os.open(name, flags, dir_fd=cursor.fd)
        try:
            now = os.fstat(fd)
            if (now.st_dev, now.st_ino) != (st.st_dev, st.st_ino):
                raise metadata.Unfit("its metadata is being replaced")
            data = os.read(fd, metadata.MOST + 1)
        finally:
            os.close(fd)
    except OSError as error:
        raise metadata.Unfit(f"its metadata cannot be read: {error.strerror}") from None
    if len(data) > metadata.MOST:
        raise metadata.Unfit("its metadata is larger than 1 MiB")
    return data


def sessions(
    found: Inventory,
    run: Run,
    group_key: str = "group",
    thorough: bool = False,
    companion: Companion | None = None,
) -> Iterator[Session]:
    """Every session in the store of an inventory, by id, then every blob without metadata.

    Fills in found.trash. thorough also looks for immutable files. Raises Interrupted between two of them.
    """
    root, now = found.root, run.now()
    cursor, table = Cursor(root), LockTable()
    if companion is not None:
        own = os.fstat(cursor.fd)
        companion.note(cursor, Sums(own, low=own.st_ino, high=own.st_ino, settled=True))
    names = _sort_out(cursor, found, run.forecast.names.get(root.ident, ()))
    doing = f"reading {printable(root.path)}"
    for name, is_dir in names.own:
        one_own = look(cursor, [(name, is_dir)], table, companion=companion)[0]
        found.settled = found.settled and not one_own.blocked
        found.count_usage(one_own)
    for id_, group in groupby(names.rows, key=lambda row: row.partition("/")[0]):
        run.shutdown.check(doing)
        cut = len(id_) + 1
        rows = [row[cut:] for row in group]
        parts = tuple(part for part in rows if part[1:] != JSON)
        its = names_of(id_, parts)
        if "d" + JSON in rows:
            its[0] = (its[0][0], True)
        whole, identity, st = look(cursor, its, table, thorough, companion)
        path = cursor.path(id_ + JSON)
        one = Session(id_, path, parts, whole, identity)
        if st is not None:
            one.inode, one.written = st.st_ino, in_range(st.st_mtime_ns)
        try:
            data = _read_metadata(cursor, id_ + JSON, None if its[0][1] else st)
            read = metadata.parse(data, now, group_key)
            one.created, one.group = read.created, read.group
            if not parts:
                raise metadata.Unfit("is metadata without a blob")
        except metadata.Unfit as unfit:
            one.problem = str(unfit)
        yield one
    for name, is_dir in names.lone:
        run.shutdown.check(doing)
        whole, identity, _st = look(cursor, [(name, is_dir)], table)
        yield Session(name, cursor.path(name), (), whole, identity, problem=_LONE)
    beside = {}
    for trash, pending in list(found.pending.items()):
        rest, pending.print, _st = look(cursor, pending.names, table, thorough)
        # What was done in the same tick of the kernel's clock may have been done later.
        pending.back = pending.back or rest.changed >= pending.moment
        if pending.back:
            del found.trash[trash]
            rest.merge(look(cursor, [(trash, True)], table)[0])
            found.count_usage(rest)
            found.note(rest.blocked or Blocked(cursor.path(trash), PUT_BACK))
            if rest.blocked:
                del found.pending[trash]
        else:
            beside[trash] = rest
    found.measure_trash(table, run.forecast, beside)
    for trash in beside.keys() - found.trash.keys():
        found.count_usage(beside[trash])


def read_sessions(
    root: Root,
    run: Run,
    order: str = "created",
    horizon: int = YOUNGEST,
    grace: int = YOUNGEST,
    thorough: bool = False,
    group_key: str = "group",
    whole: bool = False,
    companion: Companion | None = None,
) -> Inventory:
    """The inventory of layout `sessions`; order: which of its times is the key of a session.

    horizon, grace, thorough, whole and companion as in read_trees; what was written inside the grace
    period is young whatever its metadata says. In chunks, a session is named `<id>/<part>/<part>...`.
    """
    found = Inventory(root, by_mtime=False)
    found.anomalies.cap = ALL if whole else CAP
    writable = can_write(root.fd)
    found.settled = writable and not os.geteuid()
    linked: list[tuple[int, int, int, int, str, Measure]] = []
    groups: dict[str, int] = {}
    anomalous: Shared = {}
    for one in sessions(found, run, group_key, thorough, companion):
        measured = one.measure
        # Whether it is noted goes by its age, which no index follows.
        found.settled = found.settled and not measured.blocked
        found.count_usage(measured)
        run.progress("scan", found.entries, 0)
        if one.problem:
            found.anomalies.add(one.path, one.problem)
            known = sum(held for ident, (_n, _l, held) in measured.shared.items() if ident in anomalous)
            found.anomalous += measured.bytes - known
            anomalous.update(measured.shared)
            continue
        found.entries += 1
        key = {"created": one.created, "lru": measured.used}.get(order, measured.newest)
        found.span(key, key)
        if key >= horizon or measured.newest > grace:
            found.young += key > grace or measured.newest > grace
            continue
        blocked = measured.blocked
        if not (blocked or writable):
            blocked = Blocked(one.path, "cannot be removed: the store cannot be written", True)
        if blocked:
            found.note(blocked)
        if whole or not blocked:
            chunk = found.room(measured.device)
            name = "/".join((one.id, *one.parts))
            if measured.shared:
                found.shared[name] = measured.shared
                linked.append((key, one.inode, len(found.chunks) - 1, len(chunk), name, measured))
            chunk.open_names.append(name)
            chunk.where.append(0)
            chunk.inode.append(one.inode)
            chunk.mtime.append(one.written)
            chunk.size.append(one.print)
            chunk.key.append(key)
            chunk.group.append(groups.setdefault(one.group, len(groups)))
            chunk.set_bytes(len(chunk.bytes), measured.bytes, measured.bytes)
    found.groups = list(groups)
    if found.chunks:
        found.chunks[-1].seal()
    linked.sort()
    for _key, _inode, number, position, _name, measured in linked:
        found.chunks[number].set_bytes(position, *found.credit(measured))
    return found
