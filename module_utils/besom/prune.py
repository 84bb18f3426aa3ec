# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bringing a store under its policy: plan what goes, then execute that plan under the writer lock."""

from __future__ import annotations

import errno
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import compress, count, islice
from typing import Callable

from .inventory import OLDEST, ORPHAN, YOUNGEST, Inventory, read_files, read_trees
from .locks import LockTable, writer_lock
from .mounts import mount_of
from .policy import Policy, Store
from .report import CAP, Report
from .root import Root
from .run import Forecast, Run
from .selection import Goals, choose, tally
from .tree import CHANGED, Cursor, MountPoint, Removal, file_forbids, finish_trash, in_range, remove_tree
from .units import format_size, printable

_ST_NOATIME = 1024  # statvfs(3)


@dataclass(frozen=True)
class Request:
    """One prune of a store.

    empty: everything goes that is not in use or inside the grace period. only: nothing but names
    that match is an entry.
    """

    store: Store
    empty: bool = False
    only: re.Pattern[str] | None = None


def orphans_of(store: Store, older_than: int) -> Request:
    """The request that removes besom's own orphaned downloads from a store, older than so many ns."""
    return Request(replace(store, layout="files", policy=Policy(max_age=older_than)), only=ORPHAN)


@dataclass
class Plan:
    """What a prune would do: the inventory with its victims marked, and the report as it stands."""

    request: Request
    inventory: Inventory
    report: Report
    usage: int = 0  # bytes that leave the store with the victims
    shedding: bool = False  # the store is over its max_size


def plan(request: Request, root: Root, run: Run, thorough: bool = True) -> Plan:
    """What the request would do to the store open as root. Only inspects.

    thorough: also open victims to see whether they are immutable; the execution of a plan made
    without it finds that out by itself.
    """
    store, policy = request.store, request.store.policy
    now = run.now()
    aged = now - policy.max_age if policy.max_age is not None else OLDEST
    grace = now - policy.min_age if policy.min_age is not None else YOUNGEST
    by_age_only = (policy.max_size, policy.min_free, policy.max_entries) == (None, None, None)
    horizon = aged if by_age_only and not request.empty else grace
    lru = policy.order == "lru"
    if store.layout == "files":
        found = read_files(root, run, lru, horizon, grace, request.only)
    else:
        found = read_trees(root, run, lru, horizon, grace, thorough)

    report = Report("prune", root.path, kept=found.kept, anomalies=found.anomalies)
    trash = sum(found.trash.values())
    size, available = _space(root, run.forecast)
    goals = Goals(before=aged)
    if policy.max_size is not None and found.usage > policy.max_size:
        goals.shed = found.usage - (policy.target_size or policy.max_size)
    if policy.max_entries is not None:
        goals.drop = found.entries - policy.max_entries
    if policy.min_free is not None:
        goals.free = policy.min_free.of(size) - available - trash
    if request.empty:
        goals = Goals(before=YOUNGEST)
    short = choose(found.chunks, goals)
    while thorough and store.layout == "files" and _drop_forbidden(found):
        short = choose(found.chunks, goals)

    entries, usage, freed = tally(found.chunks)
    report.planned.add(entries + len(found.trash), freed + trash)
    report.bytes_before = report.bytes_after = found.usage + trash
    _list_victims(request, found, report, goals)
    _warn(report, found, short, policy)
    if lru and os.fstatvfs(root.fd).f_flag & _ST_NOATIME:
        report.warnings.append(
            f"{printable(root.path)} is mounted noatime: the order lru goes by mtime there."
        )
    return Plan(request, found, report, usage + trash, goals.shed > 0)


def _space(root: Root, forecast: Forecast) -> tuple[int, int]:
    """(bytes, bytes available) of the file system that root is on."""
    st = os.fstatvfs(root.fd)
    mount = mount_of(root.fd)
    before = forecast.freed.get(mount.device, 0) if mount else 0
    return st.f_blocks * st.f_frsize, st.f_bavail * st.f_frsize + before


def _warn(report: Report, found: Inventory, short: Goals, policy: Policy) -> None:
    """Say which limit stays missed, and why."""
    missed = []
    if short.shed > 0:
        missed.append(f"{format_size(short.shed)} over {'target' if policy.target_size else 'max'}_size")
    if short.drop > 0:
        missed.append(f"{short.drop} entries over max_entries")
    if short.free > 0:
        missed.append(f"{format_size(short.free)} short of min_free")
    if missed:
        why = [f"{found.young} younger than min_age"] if found.young else []
        why += [f"{report.kept.total} in use or not besom's to remove"] if report.kept.total else []
        why += [f"{report.anomalies.total} anomalies"] if report.anomalies.total else []
        left = f" (kept: {', '.join(why)})" if why else ""
        report.warnings.append(
            f"{printable(report.store)} stays {' and '.join(missed)}: nothing else in it can go{left}."
        )


def _list_victims(request: Request, found: Inventory, report: Report, goals: Goals) -> None:
    """Name the first victims, with the limit that each is over."""
    for name, size in found.trash.items():
        report.victims.add(found.path(0, name), "trash left by a crash", kind="tree", bytes=size)
    kind = "file" if request.store.layout == "files" else "tree"
    listed: list[tuple[int, str, int]] = []
    for chunk in found.chunks:
        rows = compress(zip(chunk.key, chunk.where, chunk.names, chunk.freed), chunk.victims)
        for key, where, name, freed in islice(rows, max(0, CAP - len(report.victims.items) - len(listed))):
            listed.append((key, found.path(where, name), freed))
        if len(listed) >= CAP:
            break
    for key, path, freed in sorted(listed):
        reason = "older than max_age" if key < goals.before else "oldest, over the limit"
        report.victims.add(path, "emptied" if request.empty else reason, kind=kind, bytes=freed)
    report.victims.total = report.planned.entries


class _Place:
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


def _drop_forbidden(found: Inventory) -> int:
    """Take victims that are immutable or append-only out of the tables, as anomalies; returns how many."""
    place = _Place(found)
    dropped, here = 0, -1
    error: OSError | None = None
    for chunk in found.chunks:
        gone = set()
        for position, name, where in compress(zip(count(), chunk.names, chunk.where), chunk.victims):
            if where != here:
                here, error = where, place.go(where)
            why = "" if error else file_forbids(name, place.cursor.fd)
            if why:
                gone.add(position)
                found.anomalies.add(place.cursor.path(name), f"is {why}")
        if gone:
            chunk.drop(gone)
            dropped += len(gone)
    place.cursor.rise(0)
    return dropped


class _Execution:
    """One pass over a plan under the writer lock; its report is the plan's."""

    def __init__(self, plan: Plan, run: Run) -> None:
        self.plan, self.run = plan, run
        self.found, self.report = plan.inventory, plan.report
        self.total = plan.report.planned.entries
        self.usage = 0
        # A rule (immutable, append-only) that a quick plan had not seen: worth a second, thorough one.
        self.surprised = False

    def execute(self) -> Report:
        report = self.report
        self._finish_trash()
        if self.plan.request.store.layout == "files":
            self._remove_files()
        else:
            self._remove_trees()
        report.interrupted = self.run.shutdown.requested and report.removed.entries < self.total
        report.bytes_after = report.bytes_before - self.usage
        return report

    def _finish_trash(self) -> None:
        cursor = Cursor(self.found.root)
        for name in self.found.trash:
            removal = finish_trash(cursor, name)
            if self._account(cursor.path(name), removal):
                self.usage += removal.freed

    def _remove_trees(self) -> None:
        cursor = Cursor(self.found.root)
        for chunk in self.found.chunks:
            rows = compress(zip(chunk.names, chunk.mtime, chunk.size, chunk.bytes), chunk.victims)
            for name, newest, inodes, size in rows:
                if self.run.shutdown.requested:
                    return
                if self._account(cursor.path(name), remove_tree(cursor, name, (newest, inodes))):
                    self.usage += size
                self.run.progress("remove", self.report.removed.entries, self.total)

    def _account(self, path: str, removal: Removal) -> bool:
        blocked = removal.blocked
        if blocked is None:
            self.report.removed.add(1, removal.freed)
            return True
        self.report.victims.discard(path)
        if removal.failed:
            self.report.failures.add(blocked.path, blocked.reason)
        else:
            self.found.note(blocked)
            self.surprised = self.surprised or blocked.anomaly
        return False

    def _remove_files(self) -> None:
        found, shutdown, removed = self.found, self.run.shutdown, self.report.removed
        lru = self.plan.request.store.policy.order == "lru"
        touched: set[int] = set()

        def left(cursor: Cursor, directory: int) -> None:
            # rmdir removes what is empty and nothing else; what was empty before was never touched.
            if directory in touched:
                with suppress(OSError):
                    os.rmdir(found.names[directory], dir_fd=cursor.fd)
                    touched.add(found.parents[directory])

        place = _Place(found, left)
        error: OSError | None = None
        here = fd = -1
        stat, unlink = os.stat, os.unlink
        for chunk in found.chunks:
            if not any(chunk.victims):
                continue
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
                        self._spared(where, name, CHANGED)
                        continue
                    if inode in locked:
                        holder = table.holder(device, inode)
                        if holder:
                            self._spared(where, name, f"in use: locked by {holder}")
                            continue
                    unlink(name, dir_fd=fd)
                except OSError as refused:
                    self._not_removed(where, name, fd, refused)
                    continue
                entries += 1
                usage += held
                touched.add(where)
                if st.st_nlink == 1:
                    freed += st.st_blocks * 512
            removed.add(entries, freed)
            self.usage += usage
            self.run.progress("remove", removed.entries, self.total)
            if shutdown.signum:
                break
        with suppress(OSError):
            place.rise()
        place.cursor.rise(0)

    def _spared(self, where: int, name: str, reason: str) -> None:
        path = self.found.path(where, name)
        self.report.victims.discard(path)
        self.report.kept.add(path, reason)

    def _not_removed(self, where: int, name: str, fd: int, error: OSError) -> None:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE):
            return self._spared(where, name, CHANGED)
        if isinstance(error, MountPoint) or error.errno == errno.EBUSY:
            return self._spared(where, name, "is a mount point")
        path = self.found.path(where, name)
        self.report.victims.discard(path)
        why = file_forbids(name, fd) if error.errno == errno.EPERM else ""
        if why:
            self.surprised = True
            self.report.anomalies.add(path, f"is {why}")
        else:
            self.report.failures.add(path, f"cannot be removed: {error.strerror}")
        return None


def prune(request: Request, run: Run) -> Report:
    """Bring a store under its policy, or (run.dry_run) say what that would remove.

    A dry run takes no lock. Raises UsageError for a root that is missing or refused, LockHeld,
    Interrupted while waiting for the lock; an interruption later is in the report.
    """
    started = time.monotonic()
    with Root(request.store.path) as root:
        if run.dry_run:
            planned = plan(request, root, run, thorough=True)
            report = planned.report
            report.dry_run = True
            report.bytes_after -= planned.usage
            _remember(planned, run.forecast)
        else:
            with writer_lock(root, run.lock_timeout, run.shutdown, run.lock_option, run.waiting) as waited:
                report = _prune_locked(request, root, run)
                report.lock_wait_s = waited
    report.duration_s = time.monotonic() - started
    return report


def _prune_locked(request: Request, root: Root, run: Run) -> Report:
    planned = plan(request, root, run, thorough=False)
    first = _Execution(planned, run)
    report = first.execute()
    if not first.surprised or report.interrupted:
        return report
    # The dry run sees what is immutable beforehand and takes the next oldest instead: so does this.
    store = request.store
    if planned.shedding and store.policy.target_size is not None:
        # Pruning began above max_size, so it goes on to the target.
        policy = replace(store.policy, max_size=store.policy.target_size)
        request = replace(request, store=replace(store, policy=policy))
    again = _Execution(plan(request, root, run, thorough=True), run).execute()
    again.planned.add(report.removed.entries, report.removed.bytes)
    again.removed.add(report.removed.entries, report.removed.bytes)
    report.victims.extend(again.victims)
    again.victims = report.victims
    again.bytes_before = report.bytes_before
    again.failures.extend(report.failures)
    return again


def _remember(planned: Plan, forecast: Forecast) -> None:
    """Note in forecast what the execution of this plan would remove."""
    found = planned.inventory
    forecast.free(mount_of(found.root.fd), planned.report.planned.bytes)
    forecast.links.update(found.gone)
    for chunk in found.chunks if found.links else []:
        for name, inode in compress(zip(chunk.names, chunk.inode), chunk.victims):
            shared = found.shared.get(name, {}) if found.shared else {(chunk.device, inode): [1]}
            for ident, (names, *_rest) in shared.items():
                if ident in found.links:
                    forecast.links[ident] = forecast.links.get(ident, 0) + names
