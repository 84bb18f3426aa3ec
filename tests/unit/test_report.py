# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json

from besom.report import CAP, Noted, Report, combine


def test_a_report_has_the_shape_that_the_design_promises() -> None:
    promised = {
        *(
            "operation",
            "store",
            "changed",
            "dry_run",
            "planned",
            "removed",
            "kept",
            "kept_total",
            "anomalies",
        ),
        *("anomalies_total", "bytes_before", "bytes_after", "freed_bytes", "lock_wait_s", "duration_s"),
        *("interrupted", "warnings"),
    }
    report = Report("prune", "/srv/x").to_dict()
    assert promised <= set(report)
    assert set(report["planned"]) == set(report["removed"]) == {"entries", "bytes"}
    json.dumps(report)


def test_a_report_of_a_million_kept_files_stays_small_and_says_how_many_there_were() -> None:
    report = Report("prune", "/srv/x")
    for number in range(1000):
        report.kept.add(f"/srv/x/{number}", "in use")
    result = report.to_dict()
    assert len(result["kept"]) == CAP == 100
    assert result["kept_total"] == 1000


def test_a_path_that_is_not_utf8_is_json_that_any_reader_takes() -> None:
    report = Report("prune", "/srv/\udcff")
    report.kept.add(b"/srv/\xff\n", "in use")
    text = json.dumps(report.to_dict(), ensure_ascii=False)
    assert json.loads(text.encode("utf-8"))["kept"] == [{"path": "/srv/\\xff\\x0a", "reason": "in use"}]


def test_a_dry_run_is_changed_by_what_it_plans_and_a_run_by_what_it_removed() -> None:
    dry, real = Report("prune", "/a", dry_run=True), Report("prune", "/a")
    for report in (dry, real):
        report.planned.add(1, 4096)
    assert (dry.changed, real.changed) == (True, False)
    real.removed.add(1, 4096)
    assert (real.changed, real.to_dict()["freed_bytes"]) == (True, 4096)


def test_taking_back_a_victim_leaves_the_others() -> None:
    noted = Noted()
    for name in ("a", "b"):
        noted.add(name, "old")
    noted.discard("a")
    assert (noted.total, [item["path"] for item in noted.items]) == (1, ["b"])


def test_combined_figures_are_sums_and_lists_stay_capped() -> None:
    reports = []
    for _ in range(3):
        report = Report("prune", "/x", bytes_before=10, bytes_after=4, lock_wait_s=0.5, warnings=["same"])
        report.planned.add(2, 6)
        report.removed.add(1, 3)
        for number in range(60):
            report.kept.add(str(number), "in use")
        reports.append(report)
    reports[1].interrupted = True
    total = combine("clean", reports).to_dict()
    assert (total["planned"], total["removed"]) == ({"entries": 6, "bytes": 18}, {"entries": 3, "bytes": 9})
    assert (total["bytes_before"], total["bytes_after"], total["lock_wait_s"]) == (30, 12, 1.5)
    assert (len(total["kept"]), total["kept_total"]) == (100, 180)
    assert (total["interrupted"], total["warnings"], total["store"]) == (True, ["same"], "")
