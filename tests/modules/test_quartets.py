# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Check, run, run again, check again: every state of every module that removes, on every Python found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pytest

from .conftest import VERSIONS
from .play import Play, Result
from .scenes import SCENES, Scene, touch_read
from .snapshot import paths, snapshot, usage

pytestmark = pytest.mark.slow

STEPS = {"check": True, "run": False, "again": False, "check-again": True}
PREDICTED = ("changed", "planned", "victims", "victims_total", "bytes_before", "bytes_after", "diff")


@dataclass
class Quartet:
    scene: Scene
    here: Path
    before: dict[str, list[int]]
    check: Result
    run: Result
    again: Result
    check_again: Result


@pytest.fixture(scope="module")
def stage(
    pythons: dict[str, str], tmp_path_factory: pytest.TempPathFactory, hold: Callable[[Path], int]
) -> dict[tuple[str, str], Quartet]:
    """All scenes on all Pythons, in one play: one host for each Python."""
    play = Play(tmp_path_factory.mktemp("quartets"), pythons)
    before = {}
    for scene in SCENES:
        for host in pythons:
            here = play.base / host / scene.name
            scene.build(here)
            if scene.name == "files-lru":
                touch_read(here)
            for name in scene.held:
                hold(here / name)
            before[host, scene.name] = snapshot(str(here))
        for step, check in STEPS.items():
            play.add(f"{scene.name}/{step}", scene.module, scene.args, check=check)
    found = play.run()
    return {
        (host, scene.name): Quartet(
            scene,
            play.base / host / scene.name,
            before[host, scene.name],
            *(found[host, f"{scene.name}/{step}"] for step in STEPS),
        )
        for scene in SCENES
        for host in pythons
    }


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest, pythons: dict[str, str]) -> str:
    if request.param not in pythons:
        pytest.skip(f"Python {request.param} is not on this machine")
    return str(request.param)


@pytest.fixture(params=SCENES, ids=lambda scene: scene.name)
def quartet(request: pytest.FixtureRequest, version: str, stage: dict[tuple[str, str], Quartet]) -> Quartet:
    return stage[version, request.param.name]


def test_every_step_succeeds(quartet: Quartet) -> None:
    for result in (quartet.check, quartet.run, quartet.again, quartet.check_again):
        assert result.status == "ok", result.values


def test_the_run_removes_exactly_what_it_should(quartet: Quartet) -> None:
    assert paths(quartet.before) - paths(quartet.run.tree) == quartet.scene.gone
    assert quartet.run["changed"] is bool(quartet.scene.gone)
    assert quartet.run["failures"] == []
    # What stays is not so much as written to: only directories that lost an entry have new times.
    stayed = {
        path: values
        for path, values in quartet.run.tree.items()
        if not any(str(Path(gone).parent) == path for gone in quartet.scene.gone)
    }
    assert stayed == {path: quartet.before[path] for path in stayed}


def test_check_mode_changes_nothing(quartet: Quartet) -> None:
    assert quartet.check.tree == quartet.before
    assert quartet.check_again.tree == quartet.run.tree


def test_check_mode_predicts_what_the_run_does(quartet: Quartet) -> None:
    check, run = quartet.check, quartet.run
    assert {key: check[key] for key in PREDICTED} == {key: run[key] for key in PREDICTED}
    assert check["planned"] == run["removed"]
    assert check["dry_run"] is True
    assert run["dry_run"] is False
    assert check["removed"] == {"entries": 0, "bytes": 0}
    assert warnings_of(check) == warnings_of(run)
    assert check.get("reports") is None or [one["planned"] for one in check["reports"]] == [
        one["removed"] for one in run["reports"]
    ]


def warnings_of(result: Result) -> list[str]:
    """Its warnings, without how much space a disk lacks that others write on as well."""
    return [re.sub(r"[0-9.]+ \w+ (?=short of min_free)", "", text) for text in result.get("warnings", [])]


def test_the_second_run_changes_nothing(quartet: Quartet) -> None:
    for result in (quartet.again, quartet.check_again):
        assert result["changed"] is False
        assert result["planned"] == result["removed"] == {"entries": 0, "bytes": 0}
        assert result["diff"] == []
        assert result["bytes_before"] == result["bytes_after"] == quartet.run["bytes_after"]
        assert result.tree == quartet.run.tree


def test_the_figures_are_those_of_the_disk(quartet: Quartet) -> None:
    run, before, after = quartet.run, quartet.before, quartet.run.tree
    entries = {path for path in quartet.scene.gone if is_entry(quartet.scene, path, before)}
    assert run["removed"]["entries"] == run["victims_total"] == len(entries)
    assert {item["path"] for item in run["victims"]} == {str(quartet.here / path) for path in entries}
    lost = usage(before, True) - usage(after, True)
    if quartet.scene.args.get("layout") == "files":
        lost = usage(before, False) - usage(after, False)
        below = {path: values for path, values in after.items() if path.startswith("cache/")}
        assert run["bytes_after"] == usage(below, False)
    if quartet.scene.args.get("layout") in ("trees", "sessions"):
        below = {path: values for path, values in after.items() if path.startswith("cache/")}
        assert run["bytes_after"] == usage(below, True)
    assert run["freed_bytes"] == run["removed"]["bytes"] == lost
    assert run["bytes_before"] - run["bytes_after"] == lost


def is_entry(scene: Scene, path: str, before: dict[str, list[int]]) -> bool:
    """Whether a path that left is an entry of its own, and not part of one or a directory left empty."""
    if scene.args.get("layout") == "files":
        return not any(other.startswith(path + "/") for other in before)
    if scene.args.get("layout") == "sessions" and "." in Path(path).name:
        return False  # each of them has a blob that is named as it is
    return str(Path(path).parent) not in scene.gone


def test_the_diff_shows_what_leaves(quartet: Quartet) -> None:
    for result in (quartet.check, quartet.run):
        before = "".join(part["before"] for part in result["diff"])
        assert "".join(part["after"] for part in result["diff"]).count(" in use\n") == len(result["diff"])
        for item in result["victims"]:
            assert f"{item['path']} ({item['reason']})\n" in before
        assert before.count("\n") == len(result["diff"]) + result["victims_total"]


def test_what_is_kept_is_listed_with_its_reason(quartet: Quartet) -> None:
    for result in (quartet.check, quartet.run, quartet.again):
        kept = {item["path"]: item["reason"] for item in result["kept"]}
        assert kept.keys() == {str(quartet.here / path) for path in quartet.scene.kept}
        assert result["kept_total"] == len(kept)
        for path, reason in quartet.scene.kept.items():
            assert re.search(reason, kept[str(quartet.here / path)])


def test_a_limit_that_cannot_be_met_is_a_warning(quartet: Quartet) -> None:
    for result in (quartet.check, quartet.run):
        warnings = result.get("warnings", [])
        assert len(warnings) == bool(quartet.scene.warning), warnings
        assert quartet.scene.warning in "".join(warnings)
