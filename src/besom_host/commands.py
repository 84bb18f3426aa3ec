"""What each command does: options into requests of the engine, its reports into text or JSON."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Callable

from besom.drain_flag import refuse_new_work
from besom.errors import UsageError
from besom.fetch import check_url
from besom.housekeep import Outcome, check_roots, perform
from besom.opener import plain_opener
from besom.policy import DEFAULT_OLDER_THAN, LAYOUTS, POLICY_KEYS, Store, Temps, read_store, read_temps
from besom.prune import Request, orphans_of, prune
from besom.report import Report
from besom.shutdown import Shutdown
from besom.sweep import sweep
from besom.units import (
    Share,
    format_size,
    parse_count,
    parse_duration,
    parse_factor,
    parse_size,
    printable,
)

from .config import Config, load
from .output import absolute, limits_text, noted_text, removal_text, say, table, until, when
from .progress import Bar
from .runs import bar_of, named, run_of
from .shared_lock import backend_of
from .waiting import Deadline, wait_for

# What the command line can say of a store.
STORE_FLAGS = ("layout", "group_key", *POLICY_KEYS)
# Where the work is, and the work itself, which takes run=.
Work = tuple[str, Callable[..., Report]]


def preflight_command(options: Namespace, shutdown: Shutdown) -> int:
    from besom.preflight import Need, preflight

    require = parse_size(options.require, "--require") if options.require is not None else 0
    inodes = parse_count(options.inodes, "--inodes") if options.inodes is not None else 0
    needs = []
    for word in options.paths:
        path, equals, size = word.rpartition("=")
        if equals:
            needs.append(Need(absolute(path), parse_size(size, path), inodes))
        else:
            needs.append(Need(absolute(word), require, inodes))
    first = needs[0].path
    urls = [check_url(url, "--url") for url in options.url]
    if not (require or inodes or urls) and not all(need.size for need in needs):
        raise UsageError("Nothing is needed; write PATH=SIZE, or give --require, --inodes or --url.")
    reserve = Share(options.reserve, "--reserve") if options.reserve is not None else None
    expand = parse_factor(options.expand, "--expand")
    needs += [Need(first, url=url) for url in urls]
    verdict = preflight(needs, plain_opener() if urls else None, reserve, expand)
    for warning in verdict.warnings:
        say(f"warning: {warning}")
    if options.json:
        failure = {} if verdict.sufficient else {"error": verdict.message, "status": 3}
        print(json.dumps({**verdict.to_dict(), **failure}))
    elif verdict.sufficient:
        for fs in verdict.file_systems:
            print(
                f"Enough space on {printable(fs.path)}: required {format_size(fs.required + fs.reserve)}, "
                f"available {format_size(fs.available)}."
            )
    if not verdict.sufficient:
        say(verdict.message)
        return 3
    return 0


def sweep_command(options: Namespace, shutdown: Shutdown) -> int:
    values = {"pattern": options.pattern, "older_than": options.older_than}
    temps = [read_temps({"path": absolute(path), **values}) for path in options.paths]
    config = load(options.config, os.environ)
    check_roots([], temps, skip_missing=False)
    work: list[Work] = [(area.path, partial(sweep, area)) for area in temps]
    return finish(
        options, carry_out(options, config, shutdown, work, options.dry_run, skip_missing=False), {}
    )


def prune_command(options: Namespace, shutdown: Shutdown) -> int:
    config = load(options.config, os.environ)
    store = store_of(options, config, options.store)
    configured = "/" not in options.store
    check_roots([store], [], skip_missing=configured)
    work: list[Work] = [(store.path, partial(prune, Request(store)))]
    outcome = carry_out(options, config, shutdown, work, options.dry_run, skip_missing=configured)
    return finish(options, outcome, {store.path: store.noun})


def store_of(options: Namespace, config: Config, word: str, limits_required: bool = True) -> Store:
    """The store that a STORE or PATH of the command line names, under the flags. Raises UsageError."""
    flags = {key: value for key in STORE_FLAGS if (value := getattr(options, key, None)) is not None}
    if "/" not in word:
        return read_store({**named(config, word), **flags}, "", limits_required)
    path = absolute(word)
    if "layout" not in flags:
        layouts = [f"--layout {layout}" for layout in LAYOUTS]
        raise UsageError(f"A PATH needs {', '.join(layouts[:-1])} or {layouts[-1]}.")
    values = {"path": path, "lock_backend": backend_of(config, path), **flags}
    return read_store(values, f"{options.command}: ", limits_required)


def chosen(options: Namespace, config: Config) -> tuple[list[Store], list[Temps]]:
    """The stores that are named, or else all stores and temp areas."""
    if options.stores:
        for name in options.stores:
            named(config, name)
        return [config.stores[name] for name in dict.fromkeys(options.stores)], []
    if not (config.stores or config.temps):
        where = printable(config.path) if config.path else "/etc/besom/besom.yml"
        raise UsageError(
            f"No store or temp area is configured; write them into {where}, or name a file with --config."
        )
    return list(config.stores.values()), config.temps


def clean_command(options: Namespace, shutdown: Shutdown) -> int:
    config = load(options.config, os.environ)
    stores, temps = chosen(options, config)
    check_roots(stores, temps)
    if options.all and not (options.dry_run or options.yes) and not sys.stdin.isatty():
        raise UsageError("--all empties the stores; confirm that with --yes, or look first with --dry-run.")
    older_than = int(parse_duration(DEFAULT_OLDER_THAN) * 1e9)
    work: list[Work] = [(area.path, partial(sweep, area)) for area in temps]
    nouns = {}
    for store in stores:
        request = Request(store, empty=True) if options.all else orphans_of(store, older_than)
        nouns[store.path] = store.noun if options.all else "orphaned downloads"
        work.append((store.path, partial(prune, request)))
    if options.all and not (options.dry_run or options.yes):
        preview = carry_out(options, config, shutdown, work, dry_run=True)
        text = removal_text(preview.reports, nouns, dry_run=True)
        if text and not confirmed(text, "Remove all of this?", shutdown):
            say("Nothing was removed.")
            return 0
    return finish(options, carry_out(options, config, shutdown, work, options.dry_run), nouns)


def confirmed(text: str, question: str, shutdown: Shutdown) -> bool:
    """Ask on the terminal; a signal there is an interruption, not an answer."""
    print(text, file=sys.stderr)
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    wait_for([sys.stdin.fileno()], Deadline(None), shutdown, "waiting for an answer")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def info_command(options: Namespace, shutdown: Shutdown) -> int:
    # 15 ms that a prune does not need.
    from besom.info import inspect

    config = load(options.config, os.environ)
    stores, temps = chosen(options, config)
    bar = bar_of(options)
    with bar or Bar():
        run = config.remember(run_of(options, config, shutdown, bar, dry_run=True))
        found = inspect(stores, temps, run)
    for warning in found["warnings"]:
        say(f"warning: {warning}")
    if options.json:
        print(json.dumps({"operation": "info", **found}))
        return 0
    words = ("STORE", "LAYOUT", "ENTRIES", "USAGE", "LIMITS", "OLDEST", "NEWEST", "WALKED", "AGAIN IN")
    stores_table = [(*words, "AVAILABLE", "LOCKED BY")]
    for one in found["stores"]:
        holder = one["holder"]
        store = config.stores[one["name"]]
        stores_table.append(
            (
                printable(store.name),
                one["layout"],
                str(one["entries"]),
                format_size(one["bytes"]),
                limits_text(store),
                when(one["oldest"]),
                when(one["newest"]),
                when(one["walked"]),
                until(one["reconcile_due"]),
                format_size(one["file_system"]["available_bytes"]),
                f"pid {holder['pid']} ({holder['command']})" if holder else "-",
            )
        )
    temps_table = [("TEMP AREA", "PATTERN", "STALE", "USAGE", "KEPT")]
    for one in found["temps"]:
        stale = f"{one['stale']['entries']} ({format_size(one['stale']['bytes'])})"
        patterns = printable(" ".join(one["pattern"]))
        temps_table.append((one["temps"], patterns, stale, format_size(one["bytes"]), str(one["kept_total"])))
    for rows, right in ((stores_table, (2, 3)), (temps_table, (2, 3, 4))):
        if len(rows) > 1:
            print("\n".join(table(rows, right)))
    for one in found["stores"] + found["temps"]:
        title = f"To look at in {one.get('store') or one.get('temps')}"
        text = noted_text(title, one["anomalies"], one["anomalies_total"])
        if text:
            print(text)
    return 0


def carry_out(
    options: Namespace,
    config: Config,
    shutdown: Shutdown,
    work: Sequence[Work],
    dry_run: bool,
    skip_missing: bool = True,
) -> Outcome:
    bar = bar_of(options)
    run = run_of(options, config, shutdown, bar, dry_run)
    if not dry_run:
        run.admit = partial(refuse_new_work, f"besom {options.command}")
        run.admit()
    with bar or Bar():
        outcome = perform([(path, partial(do, run=run)) for path, do in work], run, skip_missing)
    if not dry_run and (config.log_file or config.log_journal or config.seq_url):
        from .cycle import tell_outcome

        tell_outcome(config, outcome)
    return outcome


def finish(
    options: Namespace, outcome: Outcome, nouns: Mapping[str, str], figures: Mapping[str, Any] | None = None
) -> int:
    """Print what came of it, as text or JSON (with more figures, if given); returns the exit status."""
    total = outcome.to_dict(options.command)
    if options.command in ("prune", "purge") and outcome.reports:
        total = {**outcome.reports[0].to_dict(), "operation": options.command}
    for warning in total["warnings"]:
        say(f"warning: {warning}")
    if options.json:
        if outcome.messages:
            total.update(error=" ".join(outcome.messages), status=outcome.status)
        print(json.dumps({**total, **(figures or {})}))
    else:
        _print_text(options, outcome, total, nouns)
    for message in outcome.messages:
        say(message)
    return outcome.status


def _print_text(
    options: Namespace, outcome: Outcome, total: dict[str, Any], nouns: Mapping[str, str]
) -> None:
    text = removal_text(outcome.reports, nouns, options.dry_run)
    # A run from cron in which nothing happens has nothing to say.
    loud = options.dry_run or options.verbose or sys.stdout.isatty()
    if text:
        print(text)
    elif loud and not outcome.errors:
        print("Nothing to remove.")
    if options.verbose and total["victims_total"]:
        print(noted_text("In detail", total["victims"], total["victims_total"]))
    if (text or loud) and total["kept_total"]:
        print(noted_text("Kept", total["kept"], total["kept_total"]))
    if total["anomalies_total"]:
        print(noted_text("To look at", total["anomalies"], total["anomalies_total"]))
