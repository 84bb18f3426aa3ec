"""besom sync: the artifacts of a manifest, fetched into their store."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from functools import partial

from besom.drain_flag import refuse_new_work
from besom.housekeep import Outcome, perform
from besom.opener import plain_opener
from besom.run import Run
from besom.shutdown import Shutdown
from besom.sync import SyncReport, SyncRequest, sync
from besom.units import Share, format_size, parse_count, parse_duration

from .config import load
from .manifest import read_manifest
from .output import noted_text, say
from .progress import Transfers
from .runs import path_of, run_of
from .shared_lock import backend_of


def sync_command(options: Namespace, shutdown: Shutdown) -> int:
    config = load(options.config, os.environ)
    manifest = read_manifest(options.manifest, options.allow_weak_checksum)
    path = path_of(config, manifest.store)
    request = SyncRequest(
        path,
        manifest.artifacts,
        plain_opener(parse_duration(options.timeout, "--timeout"), redirects=False),
        parse_count(options.parallel, "--parallel"),
        drain_timeout=config.drain_timeout,
        reserve=Share(options.reserve, "--reserve") if options.reserve is not None else None,
        full_check=options.full_check,
        lock_backend=backend_of(config, path),
    )
    if not options.dry_run:
        refuse_new_work("besom sync")
    terminal = sys.stderr.isatty()
    transfers = Transfers(terminal, lines=not (terminal or options.json), color=not _plain(options))
    progress = transfers.of_all if terminal else None
    run = run_of(options, config, shutdown, progress, options.dry_run)
    with transfers:
        outcome = perform([(path, partial(sync, request, run, transfers))], run, skip_missing=False)
    return _finish(options, outcome, run, terminal)


def _plain(options: Namespace) -> bool:
    return options.no_color or "NO_COLOR" in os.environ


def _finish(options: Namespace, outcome: Outcome, run: Run, terminal: bool) -> int:
    reports = [report for report in outcome.reports if isinstance(report, SyncReport)]
    for report in reports:
        outcome.errors += report.held
        for warning in report.warnings:
            say(f"warning: {warning}")
    if options.json:
        values = reports[0].to_dict() if reports else {"operation": "sync", "changed": False}
        failure = {"error": " ".join(outcome.messages), "status": outcome.status} if outcome.status else {}
        print(json.dumps({**values, **failure}))
    else:
        loud = options.dry_run or options.verbose or sys.stdout.isatty()
        for report in reports:
            _print_text(report, loud, listed=terminal or run.dry_run, verbose=options.verbose)
    for message in outcome.messages:
        say(message)
    return outcome.status


def _print_text(report: SyncReport, loud: bool, listed: bool, verbose: bool) -> None:
    done = "Would fetch" if report.dry_run else "Fetched"
    if listed and report.fetched.total:
        print(noted_text(done, report.fetched.items, report.fetched.total))
    if report.adjusted.total:
        print(noted_text("Owner, group or mode", report.adjusted.items, report.adjusted.total))
    if verbose and report.unchanged.total:
        print(noted_text("Unchanged", report.unchanged.items, report.unchanged.total))
    if report.not_done.total:
        print(noted_text("Not done", report.not_done.items, report.not_done.total))
    if report.failures.total > 1:
        print(noted_text("Failed", report.failures.items, report.failures.total))
    if loud or report.fetched.total:
        size = report.planned.bytes if report.dry_run else report.figures.bytes
        noun = "file" if report.fetched.total == 1 else "files"
        print(
            f"{done} {report.fetched.total} {noun} ({format_size(size)}); {report.unchanged.total} unchanged."
        )
