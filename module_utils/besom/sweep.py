# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing stale temps: old enough, of a matching name, and with nobody holding flock on them."""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
import time
from dataclasses import dataclass, replace

from .locks import FlockUnsupported, LockTable, holder_of, try_flock
from .mounts import mount_of
from .own_names import OWNED
from .policy import Temps
from .report import Report
from .root import Root
from .run import Forecast, Run
from .tree import (
    CHANGED,
    FOR_SESSIONS,
    SESSIONS_TRASH,
    TRASH,
    Blocked,
    Cursor,
    Removal,
    Shared,
    can_write,
    file_forbids,
    finish_trash,
    measure,
    remove_tree,
    sticky_forbids,
)
from .units import format_duration


@dataclass(frozen=True)
class Temp:
    """One temp (or trash left by a crash): its identity, its allocated bytes, and what it shares.

    identity: (newest mtime in ns, inodes) of a tree; (device, inode, mtime in ns, size) of a file;
    usage: the bytes that are in no temp any more when it goes, in its turn.
    """

    name: str
    identity: tuple[int, ...]
    bytes: int
    shared: Shared
    trash: bool = False
    usage: int = 0


@dataclass
class Plan:
    """The temps that would go, the report as it stands, and how many links of each inode go with them."""

    root: Root
    temps: list[Temp]
    report: Report
    links: dict[tuple[int, int], int]


def plan(temps: Temps, root: Root, run: Run) -> Plan:
    """What a sweep of the area open as root would remove. Only inspects, and takes no lock.

    A temp that a process is seen to hold in /proc/locks is kept; what cannot be seen there (another
    pid namespace) the execution finds out by flock.
    """
    report = Report("sweep", root.path)
    cursor, table = Cursor(root), LockTable()
    horizon = run.now() - temps.older_than
    parent = os.fstat(root.fd)
    stale: list[Temp] = []
    gone = run.forecast.names.get(root.ident, ())
    # What temps share comes back with the last of them.
    forecast = Forecast(links=dict(run.forecast.links))
    names_of: dict[tuple[int, int], int] = {}
    with os.scandir(root.fd) as entries:
        names = sorted(
            (entry.name, entry.is_dir(follow_symlinks=False))
            for entry in entries
            if entry.name != "lost+found"
            and not OWNED.fullmatch(entry.name)
            and entry.name not in gone
            and (_matches(entry.name, temps) or entry.name.startswith(".besom-trash-"))
        )
    for name, is_dir in names:
        run.shutdown.check(f"looking through {root.path}")
        trash = is_dir and TRASH.fullmatch(name) is not None
        if is_dir and SESSIONS_TRASH.fullmatch(name):
            report.kept.add(cursor.path(name), FOR_SESSIONS)
            continue
        if not trash and not _matches(name, temps):
            continue
        try:
            temp, newest, blocked = (_tree if is_dir else _file)(cursor, name, table, parent)
        except OSError as error:
            cursor.rise(0)
            if error.errno == errno.EXDEV:
                report.kept.add(cursor.path(name), "is a mount point")
            elif error.errno != errno.ENOENT:
                report.anomalies.add(cursor.path(name), f"cannot be read: {error.strerror}")
            continue
        report.entries_before += 1
        report.bytes_before += temp.bytes
        for ident, (count, _links, size) in temp.shared.items():
            report.bytes_before -= size if ident in names_of else 0
            names_of[ident] = names_of.get(ident, 0) + count
        if blocked:
            (report.anomalies if blocked.anomaly else report.kept).add(blocked.path, blocked.reason)
        elif newest >= horizon and not trash:
            age = format_duration(max(0, run.now() - newest) // 10**9)
            limit = format_duration(temps.older_than / 1e9)
            report.kept.add(cursor.path(name), f"not stale yet: {age} old, it goes after {limit}")
        else:
            stale.append(replace(temp, trash=trash))
            freed = forecast.credit(temp.bytes, temp.shared)
            report.planned.add(1, freed)
            report.victims.add(
                cursor.path(name),
                "trash left by a crash" if trash else "stale",
                kind="tree" if is_dir else "file",
                bytes=freed,
            )
    report.bytes_after = report.bytes_before
    usage = Forecast()
    for i, temp in enumerate(stale):
        shared = {
            ident: [count, names_of[ident], size] for ident, (count, links, size) in temp.shared.items()
        }
        stale[i] = replace(temp, usage=usage.credit(temp.bytes, shared))
    return Plan(root, stale, report, forecast.links)


def _matches(name: str, temps: Temps) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in temps.patterns)


def _tree(
    cursor: Cursor, name: str, table: LockTable, parent: os.stat_result
) -> tuple[Temp, int, Blocked | None]:
    cursor.enter(name)
    own = os.fstat(cursor.fd)
    found = measure(cursor, table, thorough=True)
    cursor.rise(0)
    blocked = found.blocked or _forbidden(cursor, name, parent, own)
    return Temp(name, found.identity, found.bytes, found.shared), found.newest, blocked


def _file(
    cursor: Cursor, name: str, table: LockTable, parent: os.stat_result
) -> tuple[Temp, int, Blocked | None]:
    if cursor.is_mount(name):
        raise OSError(errno.EXDEV, "is a mount point")
    st = os.stat(name, dir_fd=cursor.fd, follow_symlinks=False)
    path = cursor.path(name)
    blocked = _forbidden(cursor, name, parent, st)
    holder = table.holder(st.st_dev, st.st_ino)
    forbids = file_forbids(name, cursor.fd) if stat.S_ISREG(st.st_mode) else ""
    if not stat.S_ISREG(st.st_mode):
        blocked = Blocked(path, "is neither a directory nor a regular file")
    elif holder:
        blocked = Blocked(path, f"in use: locked by {holder}")
    elif forbids:
        blocked = Blocked(path, f"is {forbids}", anomaly=True)
    size = st.st_blocks * 512
    ident = (st.st_dev, st.st_ino)
    shared = {ident: [1, st.st_nlink, size]} if st.st_nlink > 1 else {}
    return Temp(name, (*ident, st.st_mtime_ns, st.st_size), size, shared), st.st_mtime_ns, blocked


def _forbidden(cursor: Cursor, name: str, parent: os.stat_result, st: os.stat_result) -> Blocked | None:
    if not can_write(cursor.fd):
        return Blocked(cursor.path(name), "cannot be removed: its directory cannot be written", anomaly=True)
    if sticky_forbids(parent, st):
        return Blocked(cursor.path(name), "belongs to another user, in a sticky directory", anomaly=True)
    return None


def execute(planned: Plan, run: Run) -> Report:
    """Remove the temps of a plan, each under its own lock; what changed meanwhile is kept."""
    report, cursor = planned.report, Cursor(planned.root)
    for temp in planned.temps:
        if run.shutdown.requested:
            report.interrupted = True
            break
        if temp.trash:
            removal = finish_trash(cursor, temp.name)
        elif len(temp.identity) == 2:
            removal = remove_tree(cursor, temp.name, (temp.identity[0], temp.identity[1]))
        else:
            removal = _remove_file(cursor, temp)
        blocked = removal.blocked
        if blocked is None:
            report.removed.add(1, removal.freed)
            report.bytes_after -= temp.usage
        else:
            report.victims.discard(cursor.path(temp.name))
            noted = (
                report.failures if removal.failed else report.anomalies if blocked.anomaly else report.kept
            )
            noted.add(blocked.path, blocked.reason)
        run.progress("remove", report.removed.entries, len(planned.temps))
    return report


def _remove_file(cursor: Cursor, temp: Temp) -> Removal:
    path = cursor.path(temp.name)
    fd = -1
    try:
        # A FIFO may have been planted: opening it without O_NONBLOCK would wait for a writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(temp.name, flags, dir_fd=cursor.fd)
        if not try_flock(fd):
            return Removal(blocked=Blocked(path, f"in use: locked by {holder_of(fd)}"))
        for st in (os.fstat(fd), os.stat(temp.name, dir_fd=cursor.fd, follow_symlinks=False)):
            if (st.st_dev, st.st_ino, st.st_mtime_ns, st.st_size) != temp.identity:
                return Removal(blocked=Blocked(path, CHANGED))
        os.unlink(temp.name, dir_fd=cursor.fd)
        return Removal(freed=st.st_blocks * 512 if st.st_nlink == 1 else 0)
    except FlockUnsupported as error:
        return Removal(blocked=Blocked(path, f"{error}, so nobody can tell whether it is in use"))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            return Removal(blocked=Blocked(path, CHANGED))
        return Removal(blocked=Blocked(path, f"cannot be removed: {error.strerror}"), failed=True)
    finally:
        if fd >= 0:
            os.close(fd)


def sweep(temps: Temps, run: Run) -> Report:
    """Sweep one temp area, or (run.dry_run) say what that would remove.

    Raises UsageError for an area that is missing or refused, Interrupted for a signal before the
    first removal; an interruption later is in the report.
    """
    started = time.monotonic()
    with Root(temps.path) as root:
        planned = plan(temps, root, run)
        report = planned.report
        if run.dry_run:
            report.dry_run = True
            report.bytes_after -= sum(temp.usage for temp in planned.temps)
            run.forecast.names.setdefault(root.ident, set()).update(temp.name for temp in planned.temps)
            run.forecast.links = planned.links
            run.forecast.free(mount_of(root.fd), report.planned.bytes)
        else:
            execute(planned, run)
    report.duration_s = time.monotonic() - started
    return report
