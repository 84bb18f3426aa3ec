"""Figures for Prometheus, in a file for node_exporter's textfile collector.

The file itself remembers the counters: each run adds to what it finds there. It is replaced whole, with
mode 0644 and without time stamps, as the collector wants it; the format is that of
https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress

from besom.locks import FlockUnsupported, try_flock
from besom.report import Report
from besom.root import open_directory
from besom.units import printable

from .state import patiently

# Name: type and help. Those by store have the labels operation and store: its name, or a temp area's path.
_BY_STORE = {
    "besom_usage_bytes": ("gauge", "Allocated bytes in use after the last run, each inode once."),
    "besom_limit_bytes": ("gauge", "The max_size of the store."),
    "besom_over_limit": ("gauge", "1 while the store stays over a limit since nothing else in it can go."),
    "besom_entries": ("gauge", "Entries after the last run."),
    "besom_anomalies": ("gauge", "What the last run has left alone for somebody to look at."),
    "besom_last_duration_seconds": ("gauge", "How long the last run took there."),
    "besom_last_success_timestamp_seconds": ("gauge", "When a run was last without an error there."),
    "besom_removed_entries_total": ("counter", "Entries removed."),
    "besom_freed_bytes_total": ("counter", "Bytes that the file system got back."),
    "besom_failed_entries_total": ("counter", "Entries that should have gone and could not."),
    "besom_failures_total": ("counter", "Runs that ended in an error there."),
    "besom_lock_waits_total": ("counter", "Times that the lock was waited for."),
    "besom_lock_wait_seconds_total": ("counter", "Seconds that the lock was waited for."),
    "besom_lock_timeouts_total": ("counter", "Runs that left the store alone since its lock stayed held."),
}
_OVERALL = {
    "besom_runs_total": ("counter", "Runs, by their outcome."),
    "besom_run_duration_seconds": ("gauge", "How long the last run took."),
    "besom_run_last_success_timestamp_seconds": ("gauge", "When a run last ended without an error."),
    "besom_drains_total": ("counter", "Drains of this host."),
    "besom_drain_timestamp_seconds": ("gauge", "When the last drain of this host ended."),
    "besom_drain_duration_seconds": ("gauge", "How long the last drain of this host took."),
    "besom_drain_failed_phases": ("gauge", "Phases of the last drain that failed."),
}
FAMILIES = {**_BY_STORE, **_OVERALL}
OUTCOMES = ("done", "failed", "interrupted")
_MOST_BYTES = 16 << 20
# A write takes some milliseconds.
_PATIENCE_S = 5.0
_MOST = 2.0**63
_LINE = re.compile(r"(besom_\w+)(\{.*\})? (\S+)")

# Name and labels as they are written: {operation="prune",store="gems"}.
Key = tuple[str, str]


class Metrics:
    """What one run, or one drain, has to say: gauges replace what the file has, counts are added."""

    def __init__(self) -> None:
        self._gauges: dict[Key, float] = {}
        self._counts: dict[Key, float] = {}

    def of_report(self, operation: str, store: str, report: Report, now: float, limit: int | None) -> None:
        """Note how a store fared. now in seconds since the epoch; limit in bytes."""
        labels = _labels(operation=operation, store=store)
        failed = bool(report.failures.total)
        # Not a number where nobody knows: what the file has of it goes.
        gauges: dict[str, float] = {
            "besom_usage_bytes": report.bytes_after if report.is_measured else math.nan,
            "besom_entries": report.entries_after if report.is_measured else math.nan,
            "besom_over_limit": report.missed,
            "besom_anomalies": report.anomalies.total if report.is_measured else math.nan,
            "besom_last_duration_seconds": report.duration_s,
            "besom_limit_bytes": math.nan if limit is None else limit,
        }
        if not (failed or report.interrupted):
            gauges["besom_last_success_timestamp_seconds"] = now
        for name, value in gauges.items():
            self._gauges[name, labels] = value
        self._count(
            labels,
            besom_removed_entries_total=report.removed.entries,
            besom_freed_bytes_total=report.removed.bytes,
            besom_failed_entries_total=report.failures.total,
            besom_failures_total=failed,
            # There from the first run on, so that the first wait is an increase.
            besom_lock_waits_total=0,
            besom_lock_wait_seconds_total=0,
            besom_lock_timeouts_total=0,
        )

    def of_wait(self, operation: str, store: str, seconds: float) -> None:
        """Note that a lock was waited for."""
        labels = _labels(operation=operation, store=store)
        self._count(labels, besom_lock_waits_total=1, besom_lock_wait_seconds_total=seconds)

    def of_failure(self, operation: str, store: str, locked: bool) -> None:
        """Note that nothing came of it; locked: since its lock stayed held."""
        labels = _labels(operation=operation, store=store)
        self._count(labels, besom_failures_total=not locked, besom_lock_timeouts_total=locked)

    def of_run(self, outcome: str, seconds: float, now: float) -> None:
        """Note how a whole run ended."""
        self._count(_labels(outcome=outcome), besom_runs_total=1)
        self._gauges["besom_run_duration_seconds", ""] = seconds
        if outcome == "done":
            self._gauges["besom_run_last_success_timestamp_seconds", ""] = now

    def of_drain(self, failed: int, seconds: float, now: float) -> None:
        """Note how a drain ended; failed: how many of its phases have."""
        self._count("", besom_drains_total=1)
        self._gauges["besom_drain_timestamp_seconds", ""] = now
        self._gauges["besom_drain_duration_seconds", ""] = seconds
        self._gauges["besom_drain_failed_phases", ""] = failed

    def _count(self, labels: str, **counts: float) -> None:
        for name, count in counts.items():
            self._counts[name, labels] = self._counts.get((name, labels), 0) + count

    def write(self, path: str, areas: Iterable[tuple[str, str]]) -> None:
        """Bring the file at path up to date. Raises OSError, BesomError.

        areas: (operation, store) of all that is configured; others are forgotten.
        """
        # 10 ms that a host without metrics does not need.
        from besom.durable import parts_of, remove_part, write_durably

        directory, name = os.path.split(path)
        fd = open_directory(directory)
        try:
            # Daemon, cron and drain add to the same counters. Anybody may hold the lock: then without it.
            with suppress(FlockUnsupported):
                patiently(lambda: try_flock(fd), _PATIENCE_S)
            for part in parts_of(fd, name):
                remove_part(fd, part)
            values = _read(fd, name)
            values.update(self._gauges)
            for key, count in self._counts.items():
                values[key] = values.get(key, 0) + count
            known = {"", *(_labels(outcome=outcome) for outcome in OUTCOMES)}
            known |= {_labels(operation=operation, store=store) for operation, store in areas}
            kept = {key: value for key, value in values.items() if key[1] in known and value < _MOST}
            write_durably(fd, directory, name, render(kept).encode(), mode=0o644)
        finally:
            os.close(fd)


def render(values: Mapping[Key, float]) -> str:
    """The values as a file, by families, the same for the same values."""
    lines = []
    for family, (kind, meaning) in FAMILIES.items():
        rows = sorted((labels, value) for (name, labels), value in values.items() if name == family)
        if rows:
            lines += [f"# HELP {family} {meaning}", f"# TYPE {family} {kind}"]
            lines += [f"{family}{labels} {_number(value)}" for labels, value in rows]
    return "".join(line + "\n" for line in lines)


def _labels(**values: str) -> str:
    escaped = (
        (name, printable(value).replace("\\", "\\\\").replace('"', '\\"')) for name, value in values.items()
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 3))


def _read(directory_fd: int, name: str) -> dict[Key, float]:
    """What the file has, as far as it can be understood; a counter that is lost begins anew."""
    values: dict[Key, float] = {}
    with suppress(OSError):
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory_fd)
        with os.fdopen(fd, encoding="utf-8", errors="replace", newline="\n") as stream:
            text = stream.read(_MOST_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else ""
        for line in text.split("\n"):
            match = _LINE.fullmatch(line)
            if match and match.group(1) in FAMILIES:
                with suppress(ValueError):
                    value = float(match.group(3))
                    if 0 <= value < _MOST:
                        values[match.group(1), match.group(2) or ""] = value
    return values
