# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Bringing a store under its policy: plan what goes, then execute that plan under the writer lock."""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, compress, count, islice, repeat
from types import TracebackType
from typing import TYPE_CHECKING, Any, Callable

from .effort import io_class
from .errors import BesomError, Interrupted, LockLost, UsageError, reason_of
from .guard import STOPPED, guarded
from .hooks import around
from .inventory import OLDEST, YOUNGEST, Criteria, Inventory, Looked, Memory
from .layouts import read_store
from .mounts import mount_of
from .own_names import ORPHAN
from .policy import Policy, Store
from .report import CAP, INDEX, PART, STATVFS, WALK, Report, Tally
from .root import Root
from .run import Forecast, Run
from .selection import Chunk, Goals, Victim, choose, first_victims, first_victims_of, tally, victims_of
from .tree import Cursor, file_forbids, finish_trash, has_trash, is_directory
from .units import format_size, printable

if TYPE_CHECKING:
    from .entry_removal import EntryRemover
    from .file_removal import FileRemover
    from .removal import Ident, Removed, Remover
    from .shutdown import Shutdown

_ST_NOATIME = 1024  # statvfs(3)


@dataclass(frozen=True)
class Request:
    """One prune of a store.

    empty: everything goes that is not in use or inside the grace period. only: nothing but names
    that match is an entry. With ids, group or older_than (ns) the limits of the policy count for nothing:
    what meets all that is given goes, but for the grace period. An id is that of a session, the name of a
    tree, or the path of a file relative to the store.
    """

    store: Store
    empty: bool = False
    only: re.Pattern[str] | None = None
    ids: frozenset[str] | None = None
    group: str | None = None
    older_than: int | None = None

    @property
    def named(self) -> bool:
        """Whether it says itself what goes, by id, group or age."""
        return (self.ids, self.group, self.older_than) != (None, None, None)

    @property
    def by_rule(self) -> bool:
        """Whether each file tells by itself whether it goes, without the others."""
        policy = self.store.policy
        by_age_only = (policy.max_size, policy.min_free, policy.max_entries) == (None, None, None)
        return not self.named and (self.empty or by_age_only)


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


class Ahead:
    """Removes while the store is still read what tells by itself that it goes, so that no plan of it is kept.

    What is planned is verified as it goes, as in a plan of the whole store; from the first victim on most is
    not, but looked at just before it goes. hooks: the store's own, begun before the first file goes; report:
    what is told to the one after; a context manager.
    """

    def __init__(self, request: Request, root: Root, run: Run) -> None:
        self._request, self._root, self._run = request, root, run
        self._stack = ExitStack()
        self.report = Report("prune", root.path)
        self.remover: FileRemover | None = None
        self.found: Inventory | None = None
        self.planned = Tally()
        self.victims: list[Victim] = []
        # What came of all that was taken until the end of the reading.
        self.outcome: Removed | None = None
        self._looked = False
        self.total = 0
        self.begun = False

    def begin(self) -> None:
        """Run the hook before, unless it was run already."""
        if not self.begun:
            self._stack.enter_context(
                around(self._request.store.hooks, self._root.path, self._told, self._run)
            )
            self.begun = True

    @property
    def looks(self) -> bool:
        # Who has a rate to keep would wait between the look and the removal.
        return not self._run.effort.max_rate

    def take(self, found: Inventory, chunk: Chunk) -> None:
        """Have all of a chunk removed, sealed or not."""
        if not len(chunk):
            return
        chunk.victims = bytearray(b"\1" * len(chunk))
        self.planned.add(len(chunk), sum(chunk.freed))
        before = set(self.victims)
        self.victims = first_victims_of([chunk], self.victims)
        with self._removing(found) as remover:
            remover.add(chunk, [printable(found.path(*row[:2])) for row in {*self.victims} - before])

    def look(self, found: Inventory, criteria: Criteria, where: int, ident: Ident, names: list[str]) -> None:
        self._looked = True
        with self._removing(found) as remover:
            remover.look(criteria, where, ident, names)

    def settle(self) -> None:
        if self.remover is None or self.found is None or self.outcome is not None:
            return
        with self._removing(self.found) as remover:
            outcome = self.outcome = remover.finish()
        self.planned.add(outcome.planned.entries, outcome.planned.bytes)
        self.victims = first_victims(self.victims, outcome.victims)
        for _where, blocked in sorted(outcome.left_out.items()):
            self.found.note(blocked)
        if outcome.seen is not None:
            self.found.merge(outcome.seen)
        if self._looked:
            # Nobody may have looked at some.
            self._run.shutdown.check(f"reading {printable(self._root.path)}")

    @contextmanager
    def _removing(self, found: Inventory) -> Iterator[FileRemover]:
        """The remover, which begins with the first that goes."""
        try:
            if self.remover is None:
                self.found = found
                self.begin()
                lru = self._request.store.policy.order == "lru"
                # 15 ms on a module's arrival, here and below.
                from .file_removal import FileRemover

                self.remover = FileRemover(found, lru, self._run, lambda: self.total)
                self._stack.enter_context(self.remover)
            yield self.remover
        except OSError as error:
            # To the reading it would be one of the directory that it stands in.
            raise BesomError(f"{printable(self._root.path)}: {error.strerror or error}.") from error

    def __enter__(self) -> Ahead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            # For the hook after; nobody else gets this report.
            _cut_short(self.report, error, self._run)
        self._stack.__exit__(kind, error, trace)

    def _told(self) -> Report:
        """The report for the hook after, with what is known to be removed when an error took the figures."""
        if self.remover is not None:
            removed = self.report.removed
            removed.entries = max(removed.entries, self.remover.done)
        return self.report


def plan(request: Request, root: Root, run: Run, thorough: bool = True, ahead: Ahead | None = None) -> Plan:
    """What the request would do to the store open as root. Only inspects.

    thorough: also open victims to see whether they are immutable; the execution of a plan made
    without it finds that out by itself. ahead: takes what it can from the plan, which
    is of what was read until then when a shutdown ends that.
    """
    store, policy = request.store, request.store.policy
    if request.group is not None and store.layout != "sessions":
        raise UsageError("A group needs the layout sessions, whose metadata names it.")
    if request.group == "":
        raise UsageError("The group is empty; name one.")
    now = run.now()
    aged = now - policy.max_age if policy.max_age is not None else OLDEST
    grace = now - policy.min_age if policy.min_age is not None else YOUNGEST
    horizon = aged if request.by_rule and not request.empty else grace

    def goals_of(found: Inventory) -> Goals:
        return _goals(request, root, run, found, aged)

    memory = _memory(request, root, run, thorough)
    found, measured = _without_walk(request, root, goals_of, memory.look(horizon, grace) if memory else None)
    if found is None:
        survey = memory.begin() if memory else None
        try:
            found = read_store(
                store, root, run, horizon, grace, request.only, thorough, companion=survey, taker=ahead
            )
            if memory and survey:
                memory.keep(survey, found)
        except (Interrupted, LockLost):
            if ahead is None or ahead.found is None:
                raise
            with suppress(Interrupted, LockLost):
                ahead.settle()
            found, measured = ahead.found, PART
            found.chunks, found.trash = [], {}
    report = Report("prune", root.path, kept=found.kept, anomalies=found.anomalies, measured=measured)
    trash = sum(found.trash.values())
    goals = goals_of(found)

    def mark(goals: Goals) -> Goals:
        return _mark_named(request, found, now) if request.named else choose(found.chunks, goals)

    short = mark(goals)
    if thorough and store.layout == "files":
        short = _pass_over_forbidden(found, goals, short, mark, run.shutdown)

    entries, usage, freed = tally(found.chunks)
    report.planned.add(entries + len(found.trash), freed + trash)
    report.entries_before = found.entries + len(found.trash)
    if ahead is not None:
        report.planned.add(ahead.planned.entries, ahead.planned.bytes)
    report.bytes_before = report.bytes_after = found.usage + trash
    _list_victims(request, found, report, goals, ahead.victims if ahead else [])
    _warn(report, found, short, policy)
    if policy.order == "lru" and os.fstatvfs(root.fd).f_flag & _ST_NOATIME:
        report.warnings.append(
            f"{printable(root.path)} is mounted noatime: the order lru goes by mtime there."
        )
    return Plan(request, found, report, usage + trash, goals.shed > 0)


def _goals(request: Request, root: Root, run: Run, found: Inventory, aged: int) -> Goals:
    """What is to be reached in a store that was found so; entries with a key below aged go in any case."""
    policy = request.store.policy
    if request.empty or request.named:
        return Goals(before=YOUNGEST)
    goals = Goals(before=aged)
    if policy.max_size is not None and found.usage > policy.max_size:
        goals.shed = found.usage - (policy.target_size or policy.max_size)
    if policy.max_entries is not None:
        goals.drop = found.entries - policy.max_entries
    if policy.min_free is not None:
        size, available = _space(root, run.forecast)
        goals.free = policy.min_free.of(size) - available - sum(found.trash.values())
    return goals


def _memory(request: Request, root: Root, run: Run, thorough: bool) -> Memory | None:
    """What is remembered of the store, where a run keeps house by itself and goes by the store's limits."""
    by_itself = run.reconcile and not (run.dry_run or thorough)
    if run.memory is None or not by_itself or request != Request(request.store):
        return None
    return run.memory(request.store, root, run)


def _without_walk(
    request: Request, root: Root, goals_of: Callable[[Inventory], Goals], looked: Looked | None
) -> tuple[Inventory | None, str]:
    """The store as far as it was looked at, if that shows that nothing is to go, and Report.measured.

    looked: the store as the index has it.
    """
    if looked is not None and _suffices(looked, goals_of(looked.found)):
        return looked.found, INDEX
    by_policy = request == Request(request.store)
    if by_policy and request.store.policy.only_min_free and not has_trash(root):
        unread = Inventory(root)
        if goals_of(unread).reached(0, 0, 0):
            return unread, STATVFS
    return None, WALK


def _suffices(looked: Looked, goals: Goals) -> bool:
    """Whether nothing is to go from a store that was read in part."""
    found = looked.found
    if found.trash or found.pending or not goals.reached(0, 0, 0) or looked.oldest_unread < goals.before:
        return False
    return all(min(chunk.key) >= goals.before for chunk in found.chunks)


def _mark_named(request: Request, found: Inventory, now: int) -> Goals:
    """Mark what meets all conditions of a request that names what goes."""
    before = YOUNGEST if request.older_than is None else now - request.older_than
    group = -1
    if request.group is not None:
        group = found.groups.index(request.group) if request.group in found.groups else -2
    here, prefix = 0, ""
    for chunk in found.chunks:
        groups = chunk.group if group != -1 else repeat(group)
        for i, (name, where, key, its) in enumerate(zip(chunk.names, chunk.where, chunk.key, groups)):
            if where != here:
                here, prefix = where, "".join(f"{found.names[step]}/" for step in found.chain(where))
            named = request.ids is None or prefix + name.partition("/")[0] in request.ids
            chunk.victims[i] = named and key < before and its == group
    return Goals()


def _note_absent(planned: Plan) -> None:
    """Count it a failure that an id names nothing; say when the grace period keeps one."""
    request, found, report = planned.request, planned.inventory, planned.report
    store = request.store
    cursor = Cursor(found.root)
    for id_ in sorted(request.ids or ()):
        *way, name = id_.split("/")
        try:
            if {"", ".", ".."} & {*way, name} or (way and store.layout != "files"):
                raise FileNotFoundError(id_)
            if id_.split("/")[0] == "lost+found" and store.layout != "sessions":
                raise FileNotFoundError(id_)
            for step in way:
                cursor.enter(step)
            name += ".json" if store.layout == "sessions" else ""
            if is_directory(name, cursor.fd) != (store.layout == "trees"):
                raise FileNotFoundError(id_)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            report.failures.add(os.path.join(found.root.path, id_), "is no entry")
        except OSError as error:
            # Of all others the walk has noted why they cannot be looked at.
            if error.errno == errno.ENAMETOOLONG:
                report.failures.add(os.path.join(found.root.path, id_), "is no entry")
        cursor.rise(0)
    if request.named and found.young:
        report.warnings.append(f"{printable(report.store)} keeps {found.young} younger than min_age.")


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
        report.missed = True
        target = policy.target_size or policy.max_size
        if short.shed > 0 and target is not None and found.anomalous > target:
            report.warnings.append(
                f"{printable(report.store)} stays {' and '.join(missed)}: its anomalies alone hold "
                f"{format_size(found.anomalous)}, and besom never removes those; look at them."
            )
            return
        why = [f"{found.young} younger than min_age"] if found.young else []
        why += [f"{report.kept.total} in use or not besom's to remove"] if report.kept.total else []
        why += [f"{report.anomalies.total} anomalies"] if report.anomalies.total else []
        left = f" (kept: {', '.join(why)})" if why else ""
        report.warnings.append(
            f"{printable(report.store)} stays {' and '.join(missed)}: nothing else in it can go{left}."
        )


def _list_victims(
    request: Request, found: Inventory, report: Report, goals: Goals, taken: list[Victim]
) -> None:
    """Name the first victims, some of which were taken before, with the limit that each is over.

    Of files the first are those by directory, in the order of the walk, and name; of all else the oldest.
    """
    for name, size in found.trash.items():
        report.victims.add(found.path(0, name), "trash left by a crash", kind="tree", bytes=size)
    kind = request.store.layout[:-1]
    if kind == "file":
        taken = first_victims_of(found.chunks, taken)
    else:
        taken = list(islice(chain.from_iterable(map(victims_of, found.chunks)), CAP))
    named = taken[: max(0, CAP - len(report.victims.items))]
    for key, path, freed in sorted(
        (key, found.path(where, name), freed) for where, name, key, freed in named
    ):
        reason = "older than max_age" if key < goals.before else "oldest, over the limit"
        reason = "emptied" if request.empty else "purged" if request.named else reason
        report.victims.add(path, reason, kind=kind, bytes=freed)
    report.victims.total = report.planned.entries


# A victim that may not go: its key and inode, its path, and why.
_Forbidden = tuple[tuple[int, int], str, str]


def _pass_over_forbidden(
    found: Inventory, goals: Goals, short: Goals, mark: Callable[[Goals], Goals], shutdown: Shutdown
) -> Goals:
    """Mark others instead of victims that are immutable or append-only, which become anomalies.

    short: what mark(goals) has returned; returns what it does in the end. Each file is opened once. Raises
    Interrupted.
    """
    clear = [bytearray(len(chunk)) for chunk in found.chunks]
    forbidden: list[_Forbidden] = []
    while dropped := _drop_forbidden(found, clear, shutdown):
        forbidden += dropped
        # Where there are many there may be more: look as far ahead again, not one by one.
        mark(replace(goals, drop=max(goals.drop, sum(map(sum, clear)) + 2 * len(forbidden))))
        forbidden += _drop_forbidden(found, clear, shutdown)
        short = mark(goals)
    if forbidden:
        # What is neither too old nor before the last victim would not have gone anyway.
        end = (YOUNGEST, 0)
        if short.reached(0, 0, 0):
            rows = (zip(chunk.key, chunk.inode, chunk.victims) for chunk in found.chunks)
            end = max(((key, inode) for key, inode, goes in chain.from_iterable(rows) if goes), default=end)
        for order, path, why in forbidden:
            if order < end or order[0] < goals.before:
                found.anomalies.add(path, f"is {why}")
    return short


def _drop_forbidden(found: Inventory, clear: list[bytearray], shutdown: Shutdown) -> list[_Forbidden]:
    """Take victims that are immutable or append-only out of the tables; returns them.

    clear: what of each chunk is known to be neither, and is not opened again.
    """
    from .looking import Place

    place = Place(found)
    dropped: list[_Forbidden] = []
    here = -1
    error: OSError | None = None
    for number, chunk in enumerate(found.chunks):
        if not any(chunk.victims):
            continue
        shutdown.check(f"reading {printable(found.root.path)}")
        known, gone = clear[number], set()
        rows = zip(count(), chunk.names, chunk.where, chunk.key, chunk.inode)
        for position, name, where, key, inode in compress(rows, chunk.victims):
            if known[position]:
                continue
            if where != here:
                here, error = where, place.go(where)
            why = "" if error else file_forbids(name, place.cursor.fd)
            if why:
                gone.add(position)
                dropped.append(((key, inode), place.cursor.path(name), why))
            else:
                known[position] = 1
        if gone:
            chunk.drop(gone)
            clear[number] = bytearray(compress(known, (position not in gone for position in count())))
    place.cursor.rise(0)
    return dropped


class _Execution:
    """One pass over a plan under the writer lock; its report is the plan's."""

    def __init__(self, plan: Plan, run: Run, ahead: Ahead | None = None) -> None:
        self.plan, self.run, self.ahead = plan, run, ahead
        self.found, self.report = plan.inventory, plan.report
        self.total = plan.report.planned.entries
        self.listed = {item["path"] for item in plan.report.victims.items}
        self.usage = 0
        # Victims under a rule (immutable, append-only) that a quick plan had not seen; the bytes as planned.
        self.forbidden = Tally()

    def execute(self) -> Report:
        report = self.report
        self._finish_trash()
        remove = {"files": self._remove_files, "trees": self._remove_trees, "sessions": self._remove_sessions}
        remove[self.plan.request.store.layout]()
        shutdown = self.run.shutdown
        report.interrupted = shutdown.requested and (
            report.measured == PART or report.removed.entries < self.total
        )
        if report.interrupted and shutdown.lost:
            report.interrupted = False
            report.failures.add(report.store, f"{shutdown.lost}; {STOPPED}")
        report.bytes_after = report.bytes_before - self.usage
        return report

    def _finish_trash(self) -> None:
        cursor = Cursor(self.found.root)
        pending = self.found.pending
        back = {name for name in pending if pending[name].back}
        names = [*self.found.trash, *back]
        if not names:
            return
        # 40 ms on a module's arrival that hardly a run needs.
        from .removal import Removed
        from .session_removal import finish_sessions
        from .sessions import PUT_BACK

        for name in names:
            if name in pending:
                removal = finish_sessions(self.found.root, cursor, name, pending[name])
            else:
                removal = finish_trash(cursor, name)
            if name in back and removal.blocked and removal.blocked.reason == PUT_BACK:
                continue  # as the plan has noted
            outcome = Removed()
            planned = self.found.trash.get(name, 0)
            outcome.account(cursor.path(name), removal, removal.freed, planned, self.listed)
            self._settle(outcome)

    def _remove_trees(self) -> None:
        if self.total:
            from .tree_removal import TreeRemover

            self._remove_whole(TreeRemover(self.found, self.listed, self.run, lambda: self.total))

    def _remove_sessions(self) -> None:
        if self.total:
            from .session_removal import SessionRemover

            lru = self.plan.request.store.policy.order == "lru"
            self._remove_whole(SessionRemover(self.found, lru, self.listed, self.run, lambda: self.total))

    def _remove_whole(self, remover: EntryRemover) -> None:
        with remover:
            self._finish(remover, partial(remover.add, self.found.chunks))

    def _remove_files(self) -> None:
        ahead, before = self.ahead, 0
        with ExitStack() as stack:
            if ahead is not None and ahead.remover is not None:
                remover = ahead.remover
                ahead.total = self.total
                if ahead.outcome is not None:
                    self._settle(ahead.outcome)
                    before = ahead.outcome.removed.entries
            elif self.total:
                from .file_removal import FileRemover

                lru = self.plan.request.store.policy.order == "lru"
                remover = FileRemover(self.found, lru, self.run, lambda: self.total)
                stack.enter_context(remover)
            else:
                return

            def add() -> None:
                for chunk in self.found.chunks:
                    if any(chunk.victims) and not self.run.shutdown.requested:
                        remover.add(chunk, self.listed)

            self._finish(remover, add, before)

    def _finish(self, remover: Remover[Any], add: Callable[[], None], before: int = 0) -> None:
        """Let add give the remover what is left to do, and settle what became of it. Raises BesomError.

        before: how many it had removed, which are settled.
        """
        try:
            add()
            outcome = remover.finish()
        except BesomError:
            self.report.removed.entries += remover.done - before
            raise
        self._settle(outcome)

    def _settle(self, outcome: Removed) -> None:
        """Put what became of some victims into the report."""
        report = self.report
        report.removed.add(outcome.removed.entries, outcome.removed.bytes)
        self.usage += outcome.usage
        for name in ("kept", "anomalies", "failures"):
            getattr(report, name).extend(getattr(outcome, name))
        report.victims.items = [item for item in report.victims.items if item["path"] not in outcome.stayed]
        report.victims.total -= outcome.stayed_total
        self.forbidden.add(outcome.forbidden.entries, outcome.forbidden.bytes)


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
            _note_absent(planned)
            _remember(planned, run.forecast)
        else:
            with guarded(root, run, request.store.lock_backend) as (guarded_run, waited):
                report = _prune_locked(request, root, guarded_run)
                report.lock_wait_s = waited
    report.duration_s = time.monotonic() - started
    return report


def _prune_locked(request: Request, root: Root, run: Run) -> Report:
    with io_class(run.effort.io_class), Ahead(request, root, run) as ahead:
        taking = ahead if request.by_rule and request.store.layout == "files" else None
        planned = plan(request, root, run, thorough=False, ahead=taking)
        ahead.report = planned.report
        _note_absent(planned)
        if planned.report.planned.entries:
            ahead.begin()
        ahead.report = _carry_out(planned, request, root, run, taking)
    return ahead.report


def _carry_out(planned: Plan, request: Request, root: Root, run: Run, ahead: Ahead | None) -> Report:
    first = _Execution(planned, run, ahead)
    report = first.execute()
    if not first.forbidden.entries or run.shutdown.requested:
        return report
    found = planned.inventory
    if request.by_rule and not (found.entangled or found.pending):
        # Nothing else goes instead. Where entries share inodes, what the others free changes as well.
        report.planned.add(-first.forbidden.entries, -first.forbidden.bytes)
        return report
    # The dry run sees what is immutable beforehand and takes the next oldest instead: so does this.
    store = request.store
    if planned.shedding and store.policy.target_size is not None:
        # Pruning began above max_size, so it goes on to the target.
        policy = replace(store.policy, max_size=store.policy.target_size)
        request = replace(request, store=replace(store, policy=policy))
    try:
        again = _Execution(plan(request, root, run, thorough=True), run).execute()
    except (BesomError, OSError) as error:
        # What the first has removed is to be told all the same.
        _cut_short(report, error, run)
        return report
    again.planned.add(report.removed.entries, report.removed.bytes)
    again.removed.add(report.removed.entries, report.removed.bytes)
    report.victims.extend(again.victims)
    again.victims = report.victims
    again.bytes_before, again.entries_before = report.bytes_before, report.entries_before
    again.failures.extend(report.failures)
    return again


def _cut_short(report: Report, error: BaseException, run: Run) -> None:
    """Note in a report what ended the work that it tells of."""
    if isinstance(error, Interrupted):
        report.interrupted = True
    elif isinstance(error, LockLost):
        report.failures.add(report.store, f"{run.shutdown.lost}; {STOPPED}")
    else:
        report.failures.add(report.store, reason_of(error))


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
