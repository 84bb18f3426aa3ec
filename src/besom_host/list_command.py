"""besom list: the entries of one store, as a table or as one JSON object, written as they come."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from besom.errors import Interrupted, UsageError
from besom.inventory import Inventory
from besom.layouts import read_store
from besom.listing import Entry, Listing, Wanted
from besom.policy import Store
from besom.report import Noted, Tally
from besom.root import Root
from besom.shutdown import Shutdown
from besom.units import (
    format_duration,
    format_size,
    from_printable,
    parse_count,
    parse_duration,
    parse_size,
    printable,
)

from .commands import store_of
from .config import load
from .output import counted, noted_text, say
from .progress import Bar
from .runs import bar_of, run_of

# Columns of a table for the names of groups; a longer one moves what follows it.
_WIDEST = 30


def list_command(options: Namespace, shutdown: Shutdown) -> int:
    wanted = _wanted(options)
    limit = parse_count(options.limit, "--limit") if options.limit is not None else None
    config = load(options.config, os.environ)
    store = store_of(options, config, options.store, limits_required=False)
    if store.layout != "sessions" and (options.group is not None or options.sort == "group"):
        raise UsageError("Groups are those of sessions; --group and --sort group need that layout.")
    bar = bar_of(options)
    run = run_of(options, config, shutdown, bar, dry_run=True)
    with Root(store.path) as root:
        with bar or Bar():
            found = read_store(store, root, run, whole=True)
        now = run.now()
        listing = Listing(found, now, wanted)
        entries = _heedful(listing.sorted(options.sort, options.reverse, limit), shutdown)
        if options.anomalies:
            _print_anomalies(options, found, limit)
        elif options.json:
            head = {"store": printable(root.path), "layout": store.layout, **_figures(found, listing)}
            return _print_json(head, entries, now, grouped=store.layout == "sessions")
        else:
            _print_table(entries, now, store, found, listing.matched)
    return 0


def _heedful(entries: Iterator[Entry], shutdown: Shutdown) -> Iterator[Entry]:
    """The entries until a signal comes: a million lines are not to be sat through."""
    for entry in entries:
        shutdown.check("printing")
        yield entry


def _wanted(options: Namespace) -> Wanted:
    def age(value: str | None, name: str) -> int | None:
        return None if value is None else int(parse_duration(value, name) * 1e9)

    def size(value: str | None, name: str) -> int | None:
        return None if value is None else parse_size(value, name)

    return Wanted(
        age(options.older_than, "--older-than"),
        age(options.newer_than, "--newer-than"),
        size(options.larger_than, "--larger-than"),
        size(options.smaller_than, "--smaller-than"),
        None if options.group is None else from_printable(options.group),
    )


def _figures(found: Inventory, listing: Listing) -> dict[str, Any]:
    return {
        "matched": listing.matched.to_dict(),
        "total": Tally(found.entries, found.usage).to_dict(),
        "kept_total": found.kept.total,
        "anomalies_total": found.anomalies.total,
    }


def _print_json(head: dict[str, Any], entries: Iterator[Entry], now: int, grouped: bool) -> int:
    """One object, also when a signal cuts it short; returns the exit status.

    A million entries are written one after the other, and never are one text.
    """
    text = json.dumps({"operation": "list", **head})
    sys.stdout.write(text[:-1] + ', "entries": [')
    separator = ""
    end: dict[str, Any] = {"changed": False}
    try:
        for entry in entries:
            values = {
                "id": printable(entry.id),
                "time": entry.key / 1e9,
                "age_s": round((now - entry.key) / 1e9, 3),
                "bytes": entry.bytes,
            }
            if grouped:
                values.update(group=printable(entry.group), blobs=entry.blobs)
            sys.stdout.write(separator + json.dumps(values))
            separator = ", "
    except Interrupted as error:
        end.update(error=str(error), status=error.status)
        say(str(error))
    sys.stdout.write("], " + json.dumps(end)[1:] + "\n")
    return int(end.get("status", 0))


def _print_table(entries: Iterator[Entry], now: int, store: Store, found: Inventory, matched: Tally) -> None:
    grouped = store.layout == "sessions"
    width = min(_WIDEST, max(5, *(len(printable(group)) for group in found.groups), 0)) if grouped else 0
    if matched.entries:
        head = f"  BLOBS  {'GROUP':<{width}}" if grouped else ""
        print(f"{'AGE':>8}  {'SIZE':>10}{head}  ID")
    for entry in entries:
        age = format_duration(round((now - entry.key) / 1e9))
        group = f"  {entry.blobs:>5}  {printable(entry.group) or '-':<{width}}" if grouped else ""
        print(f"{age:>8}  {format_size(entry.bytes):>10}{group}  {printable(entry.id)}")
    total = f"{counted(found.entries, store.noun)}, {format_size(found.usage)}"
    if matched.entries == found.entries:
        print(f"In all {total}.")
    else:
        print(f"{counted(matched.entries, store.noun)}, {format_size(matched.bytes)}, of {total}.")
    if found.kept.total:
        print(noted_text("Kept by any prune", found.kept.items, found.kept.total))
    if found.anomalies.total:
        print(f"Anomalies: {found.anomalies.total}; see them with --anomalies.")


def _print_anomalies(options: Namespace, found: Inventory, limit: int | None) -> None:
    noted: Noted = found.anomalies
    items = noted.items if limit is None else noted.items[:limit]
    if options.json:
        values = {"operation": "list", "changed": False, "store": printable(found.root.path)}
        print(json.dumps({**values, "anomalies": items, "anomalies_total": noted.total}))
    else:
        print(noted_text("To look at", items, noted.total) or "No anomalies.")
