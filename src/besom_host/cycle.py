"""One round of housekeeping over everything that is configured, with an event for each thing that happens."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable

from besom.errors import BesomError, Interrupted, LockHeld, MissingPath, UsageError
from besom.housekeep import Outcome, Task, perform
from besom.policy import Store
from besom.prune import Request, prune
from besom.report import Report
from besom.root import Root, overlapping
from besom.run import Run
from besom.sweep import sweep
from besom.units import format_duration, format_size, printable

from . import log
from .config import Config
from .metrics import Metrics
from .output import say

# Told what is begun (operation, path) and, with an empty operation, that it is over.
Watch = Callable[[str, str], None]
# The configuration in force, and how to run under it: asked for before the turn of each path and store.
InForce = Callable[[], tuple[Config, Run]]
# Events of a command that are on their way to Seq get this long, in seconds.
LAST_WORDS_S = 2.0


def _unwatched(operation: str, path: str) -> None:
    """The watch of those who only look at the outcome."""


@dataclass(frozen=True)
class Round:
    """One round: what it came to, and how long it took in seconds."""

    outcome: Outcome
    duration_s: float

    @property
    def result(self) -> str:
        """done, failed or interrupted."""
        if any(isinstance(error, Interrupted) for error in self.outcome.errors):
            return "interrupted"
        return "failed" if self.outcome.messages else "done"

    @property
    def removed_entries(self) -> int:
        return sum(report.removed.entries for report in self.outcome.reports)

    @property
    def freed_bytes(self) -> int:
        return sum(report.removed.bytes for report in self.outcome.reports)

    @property
    def missed(self) -> list[str]:
        """The stores that stay over a limit, since nothing else in them can go."""
        return [printable(report.store) for report in self.outcome.reports if report.missed]


def keep_house(
    config: Config, run: Run, cause: str, watch: Watch = _unwatched, in_force: InForce | None = None
) -> Round:
    """Sweep every temp area and bring every store under its policy; what fails keeps nothing else back.

    Stores that overlap are left alone: which of their policies is meant nobody can tell. Tells of all that
    happens, brings the metrics up to date, and raises nothing. cause: as in the event run_began. What
    config names has its turn as in_force says by then, and none when it is gone; what is new waits for
    the next round.
    """
    started, metrics = time.monotonic(), Metrics()
    log.tell("run_began", cause=cause)
    cycle = _Cycle(config, run, watch, metrics, in_force or (lambda: (config, run)))
    try:
        outcome = cycle.perform()
    except Exception as error:  # noqa: BLE001 (a daemon outlives whatever a run ends in)
        log.tell("run_crashed", error=repr(error))
        outcome = Outcome(errors=[BesomError(f"The run ended in {printable(repr(error))}; report it.")])
    found = Round(outcome, time.monotonic() - started)
    in_use = sum(report.bytes_after for report in outcome.reports)
    measured = all(report.is_measured for report in outcome.reports)
    log.tell(
        "run_ended",
        outcome=found.result,
        removed_entries=found.removed_entries,
        freed=format_size(found.freed_bytes),
        freed_bytes=found.freed_bytes,
        after=format_size(in_use) if measured else f"{format_size(in_use)} and more",
        bytes_after=in_use if measured else None,
        took=format_duration(round(found.duration_s, 1)),
        duration_s=round(found.duration_s, 3),
    )
    metrics.of_run(found.result, found.duration_s, time.time())
    if not run.dry_run:
        write_metrics(cycle.config, metrics)
    return found


def write_metrics(config: Config, metrics: Metrics) -> None:
    """Bring the configured textfile up to date; where that cannot be, a warning is told."""
    if not config.textfile:
        return
    areas = [("prune", name) for name in config.stores] + [("sweep", area.path) for area in config.temps]
    try:
        metrics.write(config.textfile, areas)
    except Exception as error:  # noqa: BLE001 (work goes on without figures, whatever is in their way)
        why = (isinstance(error, OSError) and error.strerror) or str(error) or repr(error)
        log.tell("metrics_unwritten", path=printable(config.textfile), reason=f"{why.rstrip('.')}.")


def tell_outcome(config: Config, outcome: Outcome) -> None:
    """Tell what a command of a person has done, where the configuration wants that told."""
    for refusal in log.configure(config, once=True):
        say(refusal)
    for report in outcome.reports:
        _tell(report)
    for error in outcome.errors:
        log.tell(
            "work_interrupted" if isinstance(error, Interrupted) else "command_failed", reason=str(error)
        )
    log.close(LAST_WORDS_S)


class _Cycle:
    """The tasks of one round, each with its events and figures."""

    def __init__(self, config: Config, run: Run, watch: Watch, metrics: Metrics, in_force: InForce) -> None:
        self.watch, self.metrics, self.in_force = watch, metrics, in_force
        # The stores that overlap with another, and those of them that were left alone: path and sentence.
        self.overlapping: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        # What is at work: operation, path, and what the metrics call it.
        self.now = ("", "", "")
        self._go_by(config, run)

    def _go_by(self, config: Config, run: Run) -> None:
        self.config = config
        self.run = replace(
            run,
            waiting=partial(self._tell_of_wait, run.waiting),
            waited=partial(self._tell_waited, run.waited),
        )

    def perform(self) -> Outcome:
        self.overlapping = _overlapping(list(self.config.stores.values()))
        outcome = perform(self._tasks(), self.run)
        for error in outcome.errors:
            if isinstance(error, Interrupted):
                log.tell("work_interrupted", reason=str(error))
        for path, sentence in self.refused.items():
            log.tell("work_failed", operation="prune", path=printable(path), reason=sentence)
        outcome.errors += [UsageError(sentence) for sentence in dict.fromkeys(self.refused.values())]
        return outcome

    def _tasks(self) -> Iterator[Task]:
        paths, names = dict.fromkeys(area.path for area in self.config.temps), list(self.config.stores)
        # As in the engine: an old temp that lies in a store is gone when the store is measured.
        for path in paths:
            for area in self._look_up().temps:
                if area.path == path:
                    yield path, partial(self._watched, "sweep", path, path, partial(sweep, area))
        for name in names:
            store = self._look_up().stores.get(name)
            if store is None:
                continue
            if store.path in self.overlapping:
                self.refused[store.path] = self.overlapping[store.path]
                continue
            work = partial(prune, Request(store))
            yield store.path, partial(self._watched, "prune", store.path, name, work, store)

    def _look_up(self) -> Config:
        """The configuration in force; it stays so until this is called again."""
        config, run = self.in_force()
        if config is not self.config:
            self._go_by(config, run)
            self.overlapping = _overlapping(list(config.stores.values()))
        return config

    def _watched(
        self, operation: str, path: str, name: str, work: Callable[[Run], Report], store: Store | None = None
    ) -> Report:
        self.now = operation, path, name
        self.watch(operation, path)
        try:
            report = work(self.run)
        except Exception as error:
            self._tell_failure(error)
            if isinstance(error, (BesomError, OSError)):
                raise
            # One store's misfortune is not the others'.
            why = printable(repr(error))
            raise BesomError(f"{operation} of {printable(path)} ended in {why}; report it.") from error
        finally:
            self.watch("", path)
        limit = store.policy.max_size if store else None
        self.metrics.of_report(operation, name, report, time.time(), limit)
        _tell(report)
        return report

    def _tell_failure(self, error: Exception) -> None:
        operation, path, name = self.now
        where = {"operation": operation, "path": printable(path)}
        if isinstance(error, Interrupted):
            return  # told once, for all
        if isinstance(error, MissingPath):
            log.tell("area_missing", **where)
            return
        self.metrics.of_failure(operation, name, locked=isinstance(error, LockHeld))
        if isinstance(error, LockHeld):
            log.tell("store_skipped", reason=str(error), **where)
        elif isinstance(error, BesomError):
            log.tell("work_failed", reason=str(error), **where)
        elif isinstance(error, OSError):
            reason = f"{printable(path)}: {error.strerror or error}."
            log.tell("work_failed", reason=reason, **where)
        else:
            log.tell("work_crashed", error=repr(error), **where)

    def _tell_of_wait(self, also: Callable[[str], None], message: str) -> None:
        log.tell("lock_awaited", message=message)
        also(message)

    def _tell_waited(self, also: Callable[[str, float], None], path: str, seconds: float) -> None:
        log.tell(
            "lock_won",
            path=printable(path),
            waited=format_duration(round(seconds, 1)),
            lock_wait_s=round(seconds, 3),
        )
        self.metrics.of_wait(self.now[0], self.now[2], seconds)
        also(path, seconds)


def _overlapping(stores: list[Store]) -> dict[str, str]:
    """The paths of stores that overlap with another, each with the sentence that says so."""
    with ExitStack() as stack:
        roots = []
        for store in stores:
            try:
                roots.append(stack.enter_context(Root(store.path)))
            except BesomError:
                continue  # its own turn says why
        refused = {}
        for one, other, sentence in overlapping(roots):
            refused[one.path] = refused[other.path] = sentence
    return refused


def _tell(report: Report) -> None:
    path, figures = printable(report.store), report.to_dict()
    before, after = (
        "an unknown amount" if figures[name] is None else format_size(figures[name])
        for name in ("bytes_before", "bytes_after")
    )
    log.tell(
        f"{report.operation}_{'done' if report.removed.entries else 'idle'}",
        operation=report.operation,
        path=path,
        removed_entries=report.removed.entries,
        freed_bytes=report.removed.bytes,
        freed=format_size(report.removed.bytes),
        bytes_before=figures["bytes_before"],
        before=before,
        bytes_after=figures["bytes_after"],
        after=after,
        entries_after=report.entries_after if report.is_measured else None,
        kept=report.kept.total,
        duration_s=round(report.duration_s, 3),
        lock_wait_s=round(report.lock_wait_s, 3),
        measured=report.measured,
    )
    for item in report.anomalies.items:
        log.tell("anomaly", path=item["path"], reason=item["reason"])
    for item in report.failures.items:
        log.tell("entry_failed", path=item["path"], reason=item["reason"])
    for number, sentence in enumerate(report.warnings):
        log.tell(
            "limit_missed" if report.missed and not number else "work_warned", path=path, reason=sentence
        )
