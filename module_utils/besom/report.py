# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The report: one shape for module results, --json, log events and metrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .units import printable

CAP = 100
# How what a report says is known, see Report.measured.
WALK, INDEX, PART, STATVFS = "walk", "index", "part", "statvfs"


@dataclass
class Tally:
    """Entries and the bytes that their removal gives back to the file system."""

    entries: int = 0
    bytes: int = 0

    def add(self, entries: int, size: int) -> None:
        self.entries += entries
        self.bytes += size

    def to_dict(self) -> dict[str, int]:
        return {"entries": self.entries, "bytes": self.bytes}


@dataclass
class Noted:
    """Paths with a reason each: the first of them (at most cap), and how many there were."""

    items: list[dict[str, Any]] = field(default_factory=list)
    total: int = 0
    cap: int = CAP

    def add(self, path: str | bytes, reason: str, count: int = 1, **more: Any) -> None:
        self.total += count
        if len(self.items) < self.cap:
            self.items.append({"path": printable(path), "reason": reason, **more})

    def discard(self, path: str | bytes) -> None:
        """Take back a path that was added; past cap only the total knows of it."""
        self.total -= 1
        shown = printable(path)
        self.items = [item for item in self.items if item["path"] != shown]

    def extend(self, other: Noted) -> None:
        self.total += other.total
        self.items.extend(other.items[: max(0, self.cap - len(self.items))])


@dataclass
class Report:
    """What an operation did, or (dry_run) would do.

    planned and removed count entries and the bytes that the file system gets back; bytes_before and
    bytes_after are the usage, each inode once. failures lists what should have gone and could not;
    missed: a limit stays missed, since nothing else can go (a warning says which). measured: WALK, all of
    it was read; INDEX, only what has changed since; PART, as much as was read before an interruption, which
    planned is of; STATVFS, nothing was looked at but the free space.
    """

    operation: str
    store: str
    dry_run: bool = False
    planned: Tally = field(default_factory=Tally)
    removed: Tally = field(default_factory=Tally)
    kept: Noted = field(default_factory=Noted)
    anomalies: Noted = field(default_factory=Noted)
    failures: Noted = field(default_factory=Noted)
    victims: Noted = field(default_factory=Noted)
    bytes_before: int = 0
    bytes_after: int = 0
    entries_before: int = 0
    lock_wait_s: float = 0.0
    duration_s: float = 0.0
    interrupted: bool = False
    warnings: list[str] = field(default_factory=list)
    missed: bool = False
    measured: str = WALK
    # What the failures come to as an exit status.
    failure_status: int = 1

    @property
    def entries_after(self) -> int:
        """What is there now of entries_before, the entries and trash that were there."""
        return max(0, self.entries_before - self.removed.entries)

    @property
    def is_measured(self) -> bool:
        """Whether bytes, entries, kept and anomalies say anything."""
        return self.measured in (WALK, INDEX)

    @property
    def changed(self) -> bool:
        return bool((self.planned if self.dry_run else self.removed).entries)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, in the order and with the names of the design."""
        return {
            "operation": self.operation,
            "store": printable(self.store),
            "changed": self.changed,
            "dry_run": self.dry_run,
            "planned": self.planned.to_dict(),
            "removed": self.removed.to_dict(),
            "victims": self.victims.items,
            "victims_total": self.victims.total,
            "kept": self.kept.items,
            "kept_total": self.kept.total,
            "anomalies": self.anomalies.items,
            "anomalies_total": self.anomalies.total,
            "failures": self.failures.items,
            "failures_total": self.failures.total,
            "bytes_before": self.bytes_before if self.is_measured else None,
            "bytes_after": self.bytes_after if self.is_measured else None,
            "freed_bytes": self.removed.bytes,
            "lock_wait_s": round(self.lock_wait_s, 3),
            "duration_s": round(self.duration_s, 3),
            "interrupted": self.interrupted,
            "warnings": self.warnings,
            "measured": self.measured,
        }


def combine(operation: str, reports: Iterable[Report]) -> Report:
    """One report whose figures are the sums of the reports given; its store is empty."""
    total = Report(operation, "")
    for report in reports:
        total.dry_run = total.dry_run or report.dry_run
        total.planned.add(report.planned.entries, report.planned.bytes)
        total.removed.add(report.removed.entries, report.removed.bytes)
        for name in ("kept", "anomalies", "failures", "victims"):
            getattr(total, name).extend(getattr(report, name))
        total.bytes_before += report.bytes_before
        total.bytes_after += report.bytes_after
        # What is not known of one is not known of all of them.
        total.measured = max(total.measured, report.measured, key=(WALK, INDEX, PART, STATVFS).index)
        total.lock_wait_s += report.lock_wait_s
        total.duration_s += report.duration_s
        total.interrupted = total.interrupted or report.interrupted
        total.warnings += [w for w in report.warnings if w not in total.warnings]
    return total
