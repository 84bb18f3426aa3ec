"""A contest: contenders that do the same work in turns, and what comes of it as figures."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Callable

from stopwatch import Sample


@dataclass(frozen=True)
class Bar:
    """What a contender may take at most: times the yardstick's (`ratio`), or so many `ms` or `MiB`."""

    of: str
    most: float

    def judge(self, row: dict[str, Any]) -> dict[str, Any]:
        value = {
            "ratio": row["ratio"],
            "ms": row["wall_s"] and row["wall_s"] * 1000,
            "MiB": row["peak_mib"],
        }[self.of]
        return {"of": self.of, "most": self.most, "met": value <= self.most}


@dataclass(frozen=True)
class Contender:
    """Who does the work: run does it once, checks what came of it, and tells what it took.

    units: how many hosts, or files, one run is for. program: what has to be installed.
    """

    name: str
    run: Callable[[], Sample]
    bars: tuple[Bar, ...] = ()
    units: int = 1
    program: str = "env"


@dataclass(frozen=True)
class Contest:
    """Contenders of which the last is the yardstick: what is compared is `wall` or `peak`, or nothing.

    unit: what times are given for, where contenders have different numbers of it. rounds: instead of the
    usual number. notes: what is to be known beside the figures; asked for at the end.
    """

    name: str
    title: str
    contenders: list[Contender]
    compared: str = "wall"
    unit: str = ""
    rounds: int | None = None
    notes: Callable[[], list[str]] = field(default=list)


def hold(contest: Contest, rounds: int) -> dict[str, Any]:
    """Every contender once a round, each round beginning with another; gives the medians."""
    entered = []
    for contender in contest.contenders:
        if shutil.which(contender.program):
            entered.append(contender)
        else:
            print(f"bench: {contender.program} is not installed and left out", file=sys.stderr)
    samples: list[list[Sample]] = [[] for _ in entered]
    load = os.getloadavg()[0]
    for turn in range(contest.rounds or rounds):
        for step in range(len(entered)):
            at = (turn + step) % len(entered)
            sample = entered[at].run()
            samples[at].append(sample)
            took = "" if sample.wall is None else f" {sample.wall:.3f} s"
            print(f"bench: {contest.title}, round {turn + 1}: {entered[at].name}{took}", file=sys.stderr)
    rows = [_row(contender, *mine) for contender, mine in zip(entered, samples)]
    for contender, row in zip(entered, rows):
        of = {"wall": "wall_s", "peak": "peak_mib"}.get(contest.compared)
        row["ratio"] = row[of] / rows[-1][of] if of else None
        row["bars"] = [bar.judge(row) for bar in contender.bars]
    return {
        "contest": contest.name,
        "title": contest.title,
        "compared": contest.compared,
        "unit": contest.unit,
        "load": round(load, 1),
        "rounds": contest.rounds or rounds,
        "notes": contest.notes(),
        "contenders": rows,
    }


def _row(contender: Contender, *samples: Sample) -> dict[str, Any]:
    walls = [sample.wall / contender.units for sample in samples if sample.wall is not None]
    cpus = [sample.cpu / contender.units for sample in samples if sample.cpu is not None]
    peaks = [sample.peak_kib / 1024 for sample in samples if sample.peak_kib is not None]
    return {
        "name": contender.name,
        "units": contender.units,
        "wall_s": median(walls) if walls else None,
        "walls_s": walls,
        "cpu_s": median(cpus) if cpus else None,
        "peak_mib": median(peaks) if peaks else None,
    }
