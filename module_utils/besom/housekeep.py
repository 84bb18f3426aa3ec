# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The whole of a host in one go: gate, sweeps, prunes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Callable

from .answer import NoAnswer
from .errors import BesomError, Interrupted, LockHeld, MissingPath, NoSpace
from .policy import Store, Temps
from .report import Report, combine
from .root import Root, refuse_overlap
from .run import Run
from .units import printable

if TYPE_CHECKING:
    from .preflight import Verdict

# A store or temp area, and the work that is to be done there.
Task = tuple[str, Callable[[], Report]]


@dataclass
class Outcome:
    """What several tasks did: a report each, the errors of those that failed, notes on those skipped."""

    reports: list[Report] = field(default_factory=list)
    errors: list[BesomError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    verdict: Verdict | None = None

    @property
    def changed(self) -> bool:
        return any(report.changed for report in self.reports)

    @property
    def messages(self) -> list[str]:
        """A sentence for each thing that went wrong; empty when nothing did."""
        found = [str(error) for error in self.errors]
        for report in self.reports:
            if report.failures.total:
                first = (
                    report.failures.items[0]
                    if report.failures.items
                    else {"path": report.store, "reason": ""}
                )
                more = f" (and {report.failures.total - 1} more)" if report.failures.total > 1 else ""
                found.append(f"{first['path']} {first['reason']}{more}.")
        if self.verdict and not self.verdict.sufficient:
            found.append(self.verdict.message)
        return found

    @property
    def status(self) -> int:
        """The exit status: an interruption before all else, then that of the first error; 0 for success.

        A held lock comes last: where that is the status, nothing else went wrong.
        """
        statuses = [error.status for error in self.errors]
        statuses += [report.failure_status for report in self.reports if report.failures.total]
        if self.verdict and not self.verdict.sufficient:
            statuses.append(NoSpace.status)
        interruptions = [error.status for error in self.errors if isinstance(error, Interrupted)]
        failures = [status for status in statuses if status != LockHeld.status]
        return next(iter(interruptions + failures + statuses), 0)

    def to_dict(self, operation: str) -> dict[str, Any]:
        """The sums of all reports, with `reports`, one each, beside them."""
        total = combine(operation, self.reports)
        total.warnings += self.notes + (self.verdict.warnings if self.verdict else [])
        result = total.to_dict()
        result["reports"] = [report.to_dict() for report in self.reports]
        if self.verdict:
            result["sufficient"] = self.verdict.sufficient
            result["file_systems"] = [fs.to_dict() for fs in self.verdict.file_systems]
        return result


def check_roots(stores: Sequence[Store], temps: Sequence[Temps], skip_missing: bool = True) -> None:
    """Open every root that exists, before anything is removed.

    Raises UsageError for one that is refused (or missing, without skip_missing), and for stores that
    overlap. One that does not answer keeps the others from nothing: the work on it will fail.
    """
    areas: list[Store | Temps] = [*stores, *temps]
    with ExitStack() as stack:
        roots = {}
        for one in areas:
            try:
                roots[one] = stack.enter_context(Root(one.path))
            except MissingPath:
                if not skip_missing:
                    raise
            except NoAnswer:
                continue
        refuse_overlap([root for one, root in roots.items() if isinstance(one, Store)])


def perform(tasks: Iterable[Task], run: Run, skip_missing: bool = True) -> Outcome:
    """Do one task after the other; what fails in one does not keep the next from its turn.

    A root that does not exist (yet) is skipped with a note; without skip_missing it is an error. A
    shutdown ends it between two tasks.
    """
    outcome = Outcome()
    for path, work in tasks:
        try:
            with run.shutdown.operation(printable(path)):
                report = work()
                outcome.reports.append(report)
                if report.interrupted:
                    run.shutdown.check(f"at work on {printable(path)}")
        except Interrupted as error:
            outcome.errors.append(error)
            break
        except MissingPath as error:
            if skip_missing:
                outcome.notes.append(f"{printable(path)} does not exist yet; it was skipped.")
            else:
                outcome.errors.append(error)
        except BesomError as error:
            outcome.errors.append(error)
        except OSError as error:
            outcome.errors.append(BesomError(f"{printable(path)}: {error.strerror or error}."))
    return outcome


def tasks_of(stores: Iterable[Store], temps: Collection[Temps], run: Run) -> list[Task]:
    """The sweeps, then the prunes: an old temp that lies in a store is gone when the store is measured."""
    # 60 ms on a module's arrival.
    from .prune import Request, prune

    tasks: list[Task] = []
    if temps:
        from .sweep import sweep

        tasks += [(area.path, partial(sweep, area, run)) for area in temps]
    tasks += [(store.path, partial(prune, Request(store), run)) for store in stores]
    return tasks


def housekeep(
    stores: Sequence[Store],
    temps: Sequence[Temps],
    run: Run,
    gate: Callable[[], Verdict] | None = None,
) -> Outcome:
    """Sweep every temp area, bring every store under its policy, and judge the gate.

    Where the gate finds too little space, housekeeping goes on, since that may make room; its verdict
    counts at the end (in a dry run with what would have been freed). Raises UsageError before
    anything is removed.
    """
    check_roots(stores, temps)
    before = gate() if gate else None
    outcome = perform(tasks_of(stores, temps, run), run)
    outcome.verdict = gate() if gate and before and not before.sufficient else before
    return outcome
