"""One round of housekeeping over everything that is configured, with an event for each thing that happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Callable

from besom.errors import BesomError, LockHeld, UsageError
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

# Told what is begun (operation, path) and, with an empty operation, that it is over.
Watch = Callable[[str, str], None]


def _unwatched(operation: str, path: str) -> None:
    """The watch of those who only look at the outcome."""


def housekeeping(config: Config, run: Run, watch: Watch = _unwatched) -> Outcome:
    """Sweep every temp area and bring every store under its policy; what fails keeps nothing else back.

    Stores that overlap are left alone: which of their policies is meant nobody can tell.
    """
    run = replace(run, waiting=partial(_tell_of_wait, run.waiting), waited=partial(_tell_waited, run.waited))
    refused = _overlapping(list(config.stores.values()))
    errors: list[BesomError] = [UsageError(sentence) for sentence in dict.fromkeys(refused.values())]
    outcome = perform(_tasks(config, run, watch, refused), run)
    outcome.errors += errors
    for error in outcome.errors:
        if isinstance(error, LockHeld):
            log.warning("store_skipped", "{reason}", reason=str(error))
        else:
            log.error("work_failed", "{reason}", reason=str(error))
    for note in outcome.notes:
        log.info("area_missing", "{note}", note=note)
    return outcome


def _tell_of_wait(also: Callable[[str], None], message: str) -> None:
    log.info("lock_awaited", "{message}", message=message)
    also(message)


def _tell_waited(also: Callable[[str, float], None], path: str, seconds: float) -> None:
    log.info(
        "lock_won",
        "Got the lock of {path} after {waited}.",
        path=printable(path),
        waited=format_duration(round(seconds, 1)),
        lock_wait_s=round(seconds, 3),
    )
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


def _tasks(config: Config, run: Run, watch: Watch, refused: dict[str, str]) -> Iterator[Task]:
    # As in the engine: an old temp that lies in a store is gone when the store is measured.
    for area in config.temps:
        yield area.path, partial(_watched, "sweep", area.path, partial(sweep, area, run), watch)
    for store in config.stores.values():
        if store.path not in refused:
            work = partial(prune, Request(store), run)
            yield store.path, partial(_watched, "prune", store.path, work, watch)


def _watched(operation: str, path: str, work: Callable[[], Report], watch: Watch) -> Report:
    watch(operation, path)
    try:
        report = work()
    finally:
        watch("", path)
    _tell(report)
    return report


def _tell(report: Report) -> None:
    figures = {
        "operation": report.operation,
        "path": printable(report.store),
        "removed_entries": report.removed.entries,
        "freed_bytes": report.removed.bytes,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "kept": report.kept.total,
        "duration_s": round(report.duration_s, 3),
    }
    if report.removed.entries:
        log.info(
            f"{report.operation}_done",
            "{operation} of {path}: removed {removed_entries}, freed {freed}; in use {after}.",
            freed=format_size(report.removed.bytes),
            after=format_size(report.bytes_after),
            **figures,
        )
    else:
        log.info(
            f"{report.operation}_idle",
            "{operation} of {path}: nothing to remove; in use {after}.",
            after=format_size(report.bytes_after),
            **figures,
        )
    for item in report.anomalies.items:
        log.warning("anomaly", "To look at: {path} ({reason}).", path=item["path"], reason=item["reason"])
    for item in report.failures.items:
        log.error("entry_failed", "{path} {reason}.", path=item["path"], reason=item["reason"])
    for sentence in report.warnings:
        log.warning("limit_missed", "{reason}", reason=sentence)


def summary(outcome: Outcome) -> tuple[int, int]:
    """(entries removed, bytes freed) by all of it."""
    return (
        sum(report.removed.entries for report in outcome.reports),
        sum(report.removed.bytes for report in outcome.reports),
    )


def missed(outcome: Outcome) -> list[str]:
    """The stores that stay over a limit, since nothing else in them can go."""
    return [printable(report.store) for report in outcome.reports if report.missed]
