"""besom stats: how many entries, how large, of which groups and of what age."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from typing import Any

from besom.answer import NoAnswer
from besom.errors import MissingPath, UsageError
from besom.layouts import read_store
from besom.listing import AGES, Statistics, statistics
from besom.policy import Store
from besom.report import Tally
from besom.root import Root
from besom.run import Run
from besom.shutdown import Shutdown
from besom.units import format_duration, format_size, printable

from .commands import store_of
from .config import Config, load
from .output import counted, say, table
from .progress import Bar
from .runs import bar_of, run_of

_BAR = 40
# Of text; --json has them all.
_GROUPS = 20


def stats_command(options: Namespace, shutdown: Shutdown) -> int:
    config = load(options.config, os.environ)
    stores = _stores(options, config)
    bar = bar_of(options)
    run = run_of(options, config, shutdown, bar, dry_run=True)
    found: list[tuple[Store, Statistics, dict[str, Any]]] = []
    failure: dict[str, Any] = {}
    for store in stores:
        try:
            with bar or Bar():
                found.append(_read(store, run))
        except MissingPath:
            if store.name not in config.stores:
                raise
            say(f"warning: {printable(store.path)} does not exist yet; it was skipped.")
        except NoAnswer as error:
            say(str(error))
            failure = {"error": f"{failure.get('error', '')} {error}".lstrip(), "status": error.status}
    if options.json:
        total = Tally()
        for _, figures, _ in found:
            total.add(figures.total.entries, figures.total.bytes)
        listed = [values for _, _, values in found]
        head = {"operation": "stats", "changed": False, "total": total.to_dict()}
        print(json.dumps({**head, "stores": listed, **failure}))
    else:
        for store, figures, values in found:
            _print_text(store, figures, values)
    return int(failure.get("status", 0))


def _stores(options: Namespace, config: Config) -> list[Store]:
    if options.stores:
        return [store_of(options, config, word, limits_required=False) for word in options.stores]
    if not config.stores:
        raise UsageError("No store is configured; name a directory with --layout, as in ./cache/.")
    return list(config.stores.values())


def _read(store: Store, run: Run) -> tuple[Store, Statistics, dict[str, Any]]:
    with Root(store.path) as root:
        found = read_store(store, root, run, whole=True)
        now = run.now()
    figures = statistics(found, now)
    values = {
        "name": store.name,
        "store": printable(root.path),
        "layout": store.layout,
        "total": figures.total.to_dict(),
        "groups": [{"group": printable(group), **tally.to_dict()} for group, tally in _by_size(figures)],
        # From an age (inclusive) to an age, in seconds; the oldest have no end.
        "ages": [
            {"from_s": low, "to_s": high, **tally.to_dict()}
            for (low, high), tally in zip(_bounds(), figures.ages)
        ],
        "oldest": None if found.oldest is None else found.oldest / 1e9,
        "newest": None if found.newest is None else found.newest / 1e9,
        "kept_total": found.kept.total,
        "anomalies_total": found.anomalies.total,
        # Of sessions: the bytes that no prune ever takes.
        "anomalous_bytes": found.anomalous,
    }
    return store, figures, values


def _by_size(figures: Statistics) -> list[tuple[str, Tally]]:
    """The groups, the largest first."""
    return sorted(figures.groups.items(), key=lambda row: (-row[1].bytes, -row[1].entries, row[0]))


def _print_text(store: Store, figures: Statistics, values: dict[str, Any]) -> None:
    title = f"{printable(store.name)} ({values['store']})" if store.name else values["store"]
    print(f"{title}: {counted(figures.total.entries, store.noun)}, {format_size(figures.total.bytes)}")
    most = max(1, *(tally.entries for tally in figures.ages)) if sys.stdout.isatty() else 0
    rows = [("AGE", "ENTRIES", "SIZE", "")]
    for (low, high), tally in zip(_bounds(), figures.ages):
        rows.append((_between(low, high), *_cells(tally), _bar(tally.entries, most)))
    _print_rows(rows)
    if figures.groups:
        groups = _by_size(figures)
        rows = [("GROUP", "ENTRIES", "SIZE", "")]
        rows += [(printable(name) or "-", *_cells(tally), "") for name, tally in groups[:_GROUPS]]
        _print_rows(rows)
        if len(groups) > _GROUPS:
            print(f"  and {len(groups) - _GROUPS} more groups; --json has them all")
    if values["anomalies_total"]:
        size = f", {format_size(values['anomalous_bytes'])}" if store.layout == "sessions" else ""
        print(f"  Anomalies: {values['anomalies_total']}{size}; besom list --anomalies names them.")


def _bounds() -> list[tuple[int, int | None]]:
    """From which age to which, in seconds, each bar goes; the last has no end."""
    bounds = [bound // 10**9 for bound in AGES]
    return list(zip([0, *bounds], [*bounds, None]))


def _between(low: int, high: int | None) -> str:
    if high is None:
        return f"from {format_duration(low)}"
    return f"{format_duration(low)} to {format_duration(high)}" if low else f"under {format_duration(high)}"


def _cells(tally: Tally) -> tuple[str, str]:
    return str(tally.entries), format_size(tally.bytes)


def _bar(count: int, most: int) -> str:
    """At least one mark for anything that is there; nothing without a terminal (most is 0)."""
    return "#" * (-(-count * _BAR // most)) if most else ""


def _print_rows(rows: list[tuple[str, str, str, str]]) -> None:
    print("\n".join(f"  {line}" for line in table(rows, right=(1, 2))))
