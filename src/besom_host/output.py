"""Reports and figures as text for a person; JSON is the report itself."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from besom.errors import UsageError
from besom.policy import Store
from besom.report import Report
from besom.units import format_duration, format_size, printable


def say(message: str) -> None:
    print(f"besom: {message}", file=sys.stderr)


def absolute(path: str) -> str:
    """A path of the command line, as seen from the current directory."""
    if not path:
        raise UsageError("A path is empty.")
    return path if path.startswith("/") else os.path.join(os.getcwd(), path)


def table(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> list[str]:
    """Rows as aligned lines; the columns in right are aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    to_right = set(right)
    return [
        "  ".join(
            cell.rjust(width) if i in to_right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        ).rstrip()
        for row in rows
    ]


def counted(number: int, noun: str) -> str:
    return f"{number} {noun[:-1] if number == 1 else noun}"


def removal_lines(report: Report, noun: str) -> list[tuple[str, str]]:
    """(path, what of it) of a report that removes something: a line per temp, or one for a whole store."""
    tally = report.planned if report.dry_run else report.removed
    if not tally.entries:
        return []
    if report.operation == "sweep" and report.victims.total == len(report.victims.items):
        rows = []
        for victim in report.victims.items:
            slash = "/" if victim["kind"] == "tree" else ""
            rows.append((victim["path"] + slash, f"{victim['reason']}, {format_size(victim['bytes'])}"))
        return rows
    path = printable(report.store).rstrip("/") + "/"
    return [(path, f"{counted(tally.entries, noun)}, {format_size(tally.bytes)}")]


def removal_text(reports: Sequence[Report], nouns: Mapping[str, str], dry_run: bool) -> str:
    """What goes, or would go, store by store and temp by temp, and the total; empty when nothing does.

    nouns: what the entries of each store (by its path) are called, in the plural.
    """
    stores_first = sorted(reports, key=lambda report: report.operation == "sweep")
    rows = [row for report in stores_first for row in removal_lines(report, nouns.get(report.store, "temps"))]
    if not rows:
        return ""
    width = max(len(path) for path, _ in rows)
    lines = ["Would remove:" if dry_run else "Removed:"]
    lines += [f"  {path.ljust(width)} ({what})" for path, what in rows]
    total = sum((report.planned if dry_run else report.removed).bytes for report in reports)
    lines.append(f"Total: {format_size(total)}")
    return "\n".join(lines)


def noted_text(title: str, items: Sequence[dict[str, Any]], total: int) -> str:
    """Paths with their reasons under a title; empty when there are none."""
    if not total:
        return ""
    lines = [f"{title}:"] + [f"  {item['path']} ({item['reason']})" for item in items]
    listed = len(items)
    if total > listed:
        lines.append(f"  and {total - listed} more")
    return "\n".join(lines)


def limits_text(store: Store) -> str:
    """The limits of a store in a few words."""
    policy = store.policy
    words = []
    if policy.max_size is not None:
        words.append(f"max {format_size(policy.max_size)}")
    if policy.max_age is not None:
        words.append(f"age {format_duration(policy.max_age / 1e9)}")
    if policy.min_free is not None:
        words.append(f"free {policy.min_free}")
    if policy.max_entries is not None:
        words.append(f"max {policy.max_entries} entries")
    return ", ".join(words)


def until(seconds: float | None) -> str:
    """How long it is until then."""
    return "-" if seconds is None else format_duration(max(0, round(seconds - time.time())))


def when(seconds: float | None) -> str:
    """How long ago that was."""
    return "-" if seconds is None else format_duration(max(0, round(time.time() - seconds)))
