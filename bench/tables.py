"""Results as a table: medians, their spread, peak memory, and ratios to the contender that stands last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from contests import BESOM, DISK, MEMORY, Contender, Contest
from stopwatch import Sample

STATES = {DISK: "on disk (`sync` before)", MEMORY: "in memory (just made)"}
HEADER = """\
# What besom costs beside what one would use instead

Written by `bench/run --record`; do not edit. Medians of interleaved rounds, each contender on a fresh copy
of the same tree, and what it left was checked every time. *peak* is the largest resident set of any one
process; for peak memory of a large store, of all processes together, shared pages counted once. *ratio*
compares wall times (by the file where they are given so) with the last line of each table.
Only besom removes the directories that it emptied."""
HEAD = ("", "wall", "min to max", "user + sys", "peak", "ratio", "bar")


@dataclass
class Result:
    """All runs of one contender in one state."""

    contender: Contender
    files: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def wall(self) -> float:
        return median(sample.wall for sample in self.samples)

    @property
    def spread(self) -> tuple[float, float]:
        walls = [sample.wall for sample in self.samples]
        return min(walls), max(walls)

    @property
    def cpu(self) -> float:
        return median(sample.user + sample.system for sample in self.samples)

    @property
    def peak_mib(self) -> float:
        return median(sample.peak_kib for sample in self.samples) / 1024


@dataclass
class Table:
    """One contest in one state."""

    contest: Contest
    state: str
    results: list[Result]

    @property
    def title(self) -> str:
        files = sorted({f"{result.files:,}" for result in self.results}, key=len)
        return f"{self.contest.title}: {' or '.join(files)} files, {STATES[self.state]}"

    def ratio(self, result: Result) -> float | None:
        """Wall time beside that of the last contender (by the file, where the contest says so)."""
        if self.contest.large:
            return None
        last = self.results[-1]
        ratio = result.wall / last.wall
        return ratio * last.files / result.files if self.contest.per_file else ratio

    def bar(self, result: Result) -> tuple[str, bool | None]:
        """The bar as text, and whether it is met (None where there is none)."""
        if result.contender.program != BESOM:
            return "", None
        peak, most = self.contest.peak_mib, self.contest.bars.get(self.state)
        if peak is not None:
            return f"< {peak} MiB", result.peak_mib < peak
        ratio = self.ratio(result)
        if most is not None and ratio is not None:
            return f"<= {most:g} x", ratio <= most
        return "", None

    def cells(self, result: Result) -> tuple[str, ...]:
        low, high = result.spread
        ratio = self.ratio(result)
        bar, met = self.bar(result)
        wall = f"{result.wall:.2f} s"
        if self.contest.per_file:
            wall += f" ({1e6 * result.wall / result.files:,.0f} us a file)"
        return (
            f"{result.contender.name} ({result.files:,})" if self.contest.per_file else result.contender.name,
            wall,
            f"{low:.2f} to {high:.2f}",
            f"{result.cpu:.2f} s",
            f"{result.peak_mib:.1f} MiB",
            "" if ratio is None else f"{ratio:.2f} x" if ratio >= 0.1 else f"1 / {1 / ratio:.0f}",
            f"{bar} {'met' if met else 'MISSED'}" if bar else "",
        )

    def markdown(self) -> str:
        rows = [HEAD, *(self.cells(result) for result in self.results)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
        lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in rows]
        lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
        return "\n".join([f"**{self.title}**", "", *lines])

    def to_dict(self) -> dict[str, Any]:
        """The figures, and every sample they are from."""
        return {
            "contest": self.contest.name,
            "state": self.state,
            "title": self.title,
            "contenders": [
                {
                    "name": result.contender.name,
                    "files": result.files,
                    "wall_s": result.wall,
                    "cpu_s": result.cpu,
                    "peak_mib": result.peak_mib,
                    "ratio": self.ratio(result),
                    "bar": self.bar(result)[0] or None,
                    "met": self.bar(result)[1],
                    "samples": [sample.to_dict() for sample in result.samples],
                }
                for result in self.results
            ],
        }


def report(machine: dict[str, Any], tables: Sequence[Table]) -> str:
    """The whole run as one page."""
    lines = [HEADER, "", *(f"- {key}: {value}" for key, value in machine.items())]
    return "\n\n".join(["\n".join(lines), *(table.markdown() for table in tables)]) + "\n"
