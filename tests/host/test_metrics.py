# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The textfile for Prometheus: promtool likes it, counters live on, and what is in its way stops no work."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from besom.report import STATVFS, Report
from besom_host.metrics import FAMILIES, Metrics

from .conftest import need
from .host import Host


def judged(text: str) -> None:
    done = subprocess.run(
        [need("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def everything() -> Metrics:
    """Metrics with a value in every family."""
    metrics = Metrics()
    report = Report("prune", "/srv/gems", bytes_after=7, entries_before=3)
    report.removed.add(2, 4096)
    metrics.of_report("prune", "gems", report, 1e9, 10)
    metrics.of_wait("prune", "gems", 0.5)
    metrics.of_failure("prune", "gems", locked=True)
    metrics.of_run("done", 1.5, 1e9)
    metrics.of_drain(1, 2.5, 1e9)
    return metrics


def test_promtool_accepts_every_family(tmp_path: Path) -> None:
    path = tmp_path / "besom.prom"
    everything().write(str(path), [("prune", "gems")])
    text = path.read_text()
    assert {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")} == set(FAMILIES)
    judged(text)


def test_no_count_is_lost_when_several_write_at_once(tmp_path: Path) -> None:
    path = str(tmp_path / "besom.prom")

    def add(_number: int) -> None:
        metrics = Metrics()
        metrics.of_run("done", 1.5, 1e9)
        metrics.write(path, [])

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(add, range(15)))
    assert 'besom_runs_total{outcome="done"} 15\n' in Path(path).read_text()


def test_the_file_is_as_the_collector_wants_it_and_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "besom.prom"
    (tmp_path / ".besom.prom.0123456789abcdef.part").touch()  # a writer that was killed
    before = os.umask(0o077)
    try:
        everything().write(str(path), [("prune", "gems")])
        first = path.stat().st_ino
        everything().write(str(path), [("prune", "gems")])
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.stat().st_ino != first
    assert os.listdir(tmp_path) == ["besom.prom"]
    assert 'besom_removed_entries_total{operation="prune",store="gems"} 4\n' in path.read_text()
    assert 'besom_usage_bytes{operation="prune",store="gems"} 7\n' in path.read_text()


def test_what_nobody_has_looked_at_has_no_figures(tmp_path: Path) -> None:
    path = tmp_path / "besom.prom"
    everything().write(str(path), [("prune", "gems")])
    metrics = Metrics()
    metrics.of_report("prune", "gems", Report("prune", "/srv/gems", measured=STATVFS), 1e9, None)
    metrics.write(str(path), [("prune", "gems")])
    values = [line.split("{")[0] for line in path.read_text().splitlines() if 'store="gems"' in line]
    assert not {"besom_usage_bytes", "besom_entries", "besom_anomalies"} & set(values)
    assert {"besom_over_limit", "besom_last_success_timestamp_seconds"} <= set(values)


def test_what_is_configured_no_longer_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "besom.prom"
    everything().write(str(path), [("prune", "gems")])
    metrics = Metrics()
    metrics.of_report("prune", "other", Report("prune", "/srv/other"), 1e9, None)
    metrics.write(str(path), [("prune", "other")])
    assert "gems" not in path.read_text()
    assert 'besom_runs_total{outcome="done"} 1\n' in path.read_text()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(min_size=1, max_size=20),
    before=st.binary(max_size=60) | st.sampled_from([b"besom_runs_total 1e308", b"besom_runs_total NaN"]),
)
def test_any_name_and_any_old_file_make_a_file_of_whole_lines(
    tmp_path: Path, name: str, before: bytes
) -> None:
    path = tmp_path / "besom.prom"
    path.write_bytes(b'besom_runs_total{outcome="done"} 5\n' + before)
    metrics = Metrics()
    metrics.of_report("prune", name, Report("prune", "/srv"), 1e9, 1)
    metrics.of_run("done", 1, 1e9)
    metrics.write(str(path), [("prune", name)])
    lines = path.read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""
    assert all(
        line.isprintable() and line.startswith(("# HELP besom_", "# TYPE besom_", "besom_")) for line in lines
    )
    # A second line for the same series stands above the first.
    again = b'besom_runs_total{outcome="done"}' in before
    assert again or 'besom_runs_total{outcome="done"} 6' in lines


def test_wild_names_are_accepted_by_promtool(tmp_path: Path) -> None:
    path = tmp_path / "besom.prom"
    names = ['"', "\\", "a\nb", "\u2028", "{}", "a\\", "\x1b[2J", "\udcff", "ü"]
    metrics = Metrics()
    for name in names:
        metrics.of_report("prune", name, Report("prune", "/srv"), 1e9, 1)
    metrics.write(str(path), [("prune", name) for name in names])
    text = path.read_text()
    assert text.count("besom_usage_bytes{") == len(names)
    judged(text)
    # What was written is what is read.
    Metrics().write(str(path), [("prune", name) for name in names])
    assert path.read_text() == text


def test_each_way_to_keep_house_adds_to_the_same_counters(host: Host) -> None:
    path = host.path / "besom.prom"
    host.configure(metrics={"textfile": str(path)})
    host.fill(5)
    host.start()
    host.daemon("stop")
    host.fill(6)
    assert host.besom("housekeep").status == 0
    host.fill(4)
    assert host.besom("housekeep", "--dry-run").status == 0
    text = path.read_text()
    assert 'besom_removed_entries_total{operation="prune",store="gems"} 5\n' in text
    assert 'besom_entries{operation="prune",store="gems"} 3\n' in text
    assert 'besom_runs_total{outcome="done"} 2\n' in text
    judged(text)


@pytest.mark.parametrize("place", ["nowhere/besom.prom", "/proc/besom.prom", "besom.yml/x", "a-directory"])
def test_a_file_that_cannot_be_written_is_a_warning_and_the_work_is_done(host: Host, place: str) -> None:
    log = host.path / "log"
    host.configure(metrics={"textfile": str(host.path / place)}, log={"file": str(log)})
    host.fill(5)
    if place == "a-directory":
        (host.path / place).mkdir()
    assert host.besom("housekeep").status == 0
    assert len(host.names()) == 3
    assert "warning: The metrics cannot be written to " in log.read_text()
