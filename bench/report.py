"""What was measured as a page, and as a table for the README, from the figures of results.json."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ground import COLD

HEADER = """\
# What besom costs beside what one would use instead

Written by `bench/run --record` from results.json; do not edit. Medians of interleaved rounds on copies of
the same tree (fixed seed), the file system synced before each; what each contender left was checked every
time. *ratio* compares wall times (of peak memory: peaks) with the last line of a table. *peak* is the
largest resident set of any one process, or where a table says so of all its processes, shared pages counted
once. Only besom removes the directories that it emptied, verifies downloads and brings them to the disk. The
kernel begins to write a tree out while it is made: of a million files, one `in memory` is partly on the disk.

![How long besom takes beside the yardsticks](chart.svg)"""
# What the title of a table says beside its subject.
_ASIDE = re.compile(r" \([^)]*\)|`")
HEAD = ("", "wall", "min to max", "user + sys", "peak", "ratio", "bar")
Table = dict[str, Any]


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    for scale, unit in ((1, "s"), (1e3, "ms")):
        if value * scale >= 1:
            return f"{value * scale:.2f} {unit}" if unit == "s" else f"{value * scale:.1f} {unit}"
    return f"{value * 1e6:.0f} us"


def ratio(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f} x" if value >= 0.1 else f"1 / {1 / value:.0f}"


def bars(row: Table) -> str:
    return ", ".join(f"{limit(bar)} {'met' if bar['met'] else 'MISSED'}" for bar in row["bars"])


def limit(bar: Table) -> str:
    most = bar["most"]
    return f"<= {ratio(most)}" if bar["of"] == "ratio" else f"<= {most:g} {bar['of']}"


def cells(row: Table, unit: str) -> tuple[str, ...]:
    walls = row["walls_s"]
    return (
        f"{row['name']} ({row['units']:,})"
        if unit and f"({row['units']:,})" not in row["name"]
        else row["name"],
        seconds(row["wall_s"]) + (f" a {unit}" if unit else ""),
        f"{seconds(min(walls))} to {seconds(max(walls))}" if len(walls) > 1 else "",
        seconds(row["cpu_s"]) if row["cpu_s"] else "" if row["cpu_s"] is None else "0",
        "" if row["peak_mib"] is None else f"{row['peak_mib']:.1f} MiB",
        ratio(row["ratio"]),
        bars(row),
    )


def plain(title: str) -> str:
    """A title for who wants no more than the subject."""
    return _ASIDE.sub("", title)


def grid(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def markdown(table: Table) -> str:
    rounds = f"{table['rounds']} round" + ("s" if table["rounds"] > 1 else "")
    when = f"{table['date']}, besom {table['besom']}, {rounds}, load before {table['load']}"
    found = [
        f"**{table['title']}** ({when})",
        grid([HEAD, *(cells(row, table["unit"]) for row in table["contenders"])]),
        *table["notes"],
    ]
    return "\n\n".join(found)


def page(machine: dict[str, Any], tables: Sequence[Table]) -> str:
    missed = [
        f"- {table['title']}: {row['name']}, {bars(row)}"
        for table in tables
        for row in table["contenders"]
        if not all(bar["met"] for bar in row["bars"])
    ]
    judged = sum(len(row["bars"]) for table in tables for row in table["contenders"])
    verdict = f"Of {judged} bars, {len(missed)} rows have one that is missed" + (":" if missed else ".")
    facts = "\n".join(f"- {key}: {value}" for key, value in machine.items())
    return (
        "\n\n".join(
            [HEADER, facts, verdict, *(["\n".join(missed)] if missed else []), *map(markdown, tables)]
        )
        + "\n"
    )


def headlines(tables: Sequence[Table]) -> list[Table]:
    """Those for the README: no small trees, no cold caches, no file systems that were made to be measured."""
    return [
        table
        for table in tables
        if table["fs"] == "here" and not 0 < table["files"] < 100_000 and COLD not in table["title"]
    ]


def summary(tables: Sequence[Table]) -> str:
    """A line for each contest that has a yardstick or a bar: besom, which comes first, beside the last."""
    lines = [("what", "besom", "beside", "ratio", "bar")]
    for table in tables:
        first, last = table["contenders"][0], table["contenders"][-1]
        for row in table["contenders"]:
            if not row["bars"] and row is not first:
                continue
            per = f" a {table['unit']}" if table["unit"] else ""
            mine = seconds(row["wall_s"]) + per if row["wall_s"] is not None else f"{row['peak_mib']:.1f} MiB"
            if table["compared"] == "peak" or any(bar["of"] == "MiB" for bar in row["bars"]):
                mine = f"{row['peak_mib']:.1f} MiB"
            theirs = f"{last['peak_mib']:.1f} MiB" if table["compared"] == "peak" else seconds(last["wall_s"])
            beside = f"{last['name']}, {theirs}{per}" if row["ratio"] is not None else ""
            lines.append(
                (plain(table["title"]), f"{row['name']}: {mine}", beside, ratio(row["ratio"]), bars(row))
            )
    return grid(lines)
