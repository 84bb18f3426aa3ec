"""besom install: an archive from the web becomes a directory, in one step."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from functools import partial

from besom.artifacts import read_access
from besom.drain_flag import refuse_new_work
from besom.errors import UsageError
from besom.extract import Limits
from besom.housekeep import Outcome, perform
from besom.install import InstallReport, InstallRequest, install
from besom.opener import plain_opener
from besom.shutdown import Shutdown
from besom.transfer import Source, read_checksum, read_headers, read_source
from besom.units import Share, format_size, parse_count, parse_duration, parse_factor, parse_size

from .config import load
from .output import absolute, noted_text, say
from .progress import Bar
from .runs import bar_of, path_of, run_of
from .shared_lock import backend_of


def install_command(options: Namespace, shutdown: Shutdown) -> int:
    config = load(options.config, os.environ)
    into = absolute(options.into)
    store = path_of(config, options.store) if options.store is not None else ""
    mode, uid, gid = read_access(vars(options), "--")
    request = InstallRequest(
        into,
        options.name,
        _source(options),
        keep=_keep(options.keep),
        current=options.current or "",
        strip=options.strip,
        replace=options.replace,
        limits=Limits(
            parse_count(options.max_entries, "--max-entries"),
            parse_size(options.max_size, "--max-size"),
            setid=options.allow_setid,
        ),
        expand=parse_factor(options.expand, "--expand"),
        reserve=Share(options.reserve, "--reserve") if options.reserve is not None else None,
        store=store,
        mode=mode,
        uid=uid,
        gid=gid,
        lock_backend=backend_of(config, into),
        store_backend=backend_of(config, store) if store else "flock",
    )
    opener = plain_opener(parse_duration(options.timeout, "--timeout"), redirects=False)
    if not options.dry_run:
        refuse_new_work("besom install")
    bar = bar_of(options)
    run = run_of(options, config, shutdown, bar, options.dry_run)
    with bar or Bar():
        outcome = perform([(request.into, partial(install, request, run, opener))], run, skip_missing=False)
    return _finish(options, outcome)


def _source(options: Namespace) -> Source | None:
    if options.absent:
        if options.url:
            raise UsageError("--absent needs no URL; leave one of them out.")
        return None
    if not options.url:
        raise UsageError("Nothing is to be installed; give a URL, or --absent.")
    headers = {}
    for line in options.header:
        name, colon, value = line.partition(":")
        if not colon:
            raise UsageError("--header: write it as NAME: VALUE.")
        headers[name.strip()] = value.strip()
    checksum = options.checksum
    return read_source(
        options.url,
        checksum=None
        if checksum is None
        else read_checksum(checksum, "--checksum", options.allow_weak_checksum),
        headers=read_headers(headers, "--header"),
    )


def _keep(text: str) -> int:
    return 0 if text == "0" else parse_count(text, "--keep")


def _finish(options: Namespace, outcome: Outcome) -> int:
    report = next((one for one in outcome.reports if isinstance(one, InstallReport)), None)
    for warning in report.warnings if report else ():
        say(f"warning: {warning}")
    if options.json:
        values = report.to_dict() if report else {"operation": "install", "changed": False}
        failure = {"error": " ".join(outcome.messages), "status": outcome.status} if outcome.status else {}
        print(json.dumps({**values, **failure}))
    elif report:
        _print_text(report, options.dry_run or options.verbose or sys.stdout.isatty())
    for message in outcome.messages:
        say(message)
    return outcome.status


def _print_text(report: InstallReport, loud: bool) -> None:
    if report.changed or loud:
        print(report.summary)
    if report.fetched.bytes and loud:
        print(f"Fetched {format_size(report.fetched.bytes)}.")
    if report.kept.total:
        print(noted_text("Kept", report.kept.items, report.kept.total))
    if report.anomalies.total:
        print(noted_text("To look at", report.anomalies.items, report.anomalies.total))
