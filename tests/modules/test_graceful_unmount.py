# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""graceful_unmount on real mounts: check, run, run again, check again; busy ones stay or are detached."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from .play import Play, Result

pytestmark = pytest.mark.root

STEPS = {"check": True, "run": False, "again": False, "check-again": True}
# What the task is given beside its paths, and what becomes of each mount; `held` ones have a holder.
SCENES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "idle": ({"paths": ["{here}/plain", "{here}/fuse/"]}, {"plain": "unmounted", "fuse": "unmounted"}),
    # The hung one lies beside its scene, whose files are looked at after each task.
    "many": (
        {"paths": ["{here}-beside/at", "{here}/nested", "{here}/stacked", "{here}/none"], "recursive": True},
        {
            "../many-beside/at": "unmounted",
            "nested/sub": "unmounted",
            "nested": "unmounted",
            "stacked": "unmounted",
            "none": "absent",
        },
    ),
    "lazy": ({"path": "{here}/held", "timeout": "0.2", "lazy": True}, {"held": "detached"}),
}


@dataclass
class Stage:
    base: Path
    results: dict[str, Result]
    holders: dict[str, int]

    def step(self, scene: str, step: str) -> Result:
        return self.results[f"{scene}/{step}"]


def mounted(top: Path) -> list[str]:
    with open("/proc/self/mountinfo") as stream:
        return [path for line in stream if f"{(path := line.split()[4])}/".startswith(f"{top}/")]


def bindfs(at: Path) -> int:
    """The pid of the server of a FUSE mount there."""
    program = shutil.which("bindfs")
    if program is None:
        assert os.environ.get("CI") != "true", "bindfs is missing: run scripts/bootstrap --test"
        pytest.skip("bindfs is missing: run scripts/bootstrap --test")
    source = at.with_name(f"{at.name}-source")
    source.mkdir(parents=True)
    at.mkdir()
    # It goes into the background once it is mounted.
    subprocess.run([program, source, at], check=True)
    found = subprocess.run(["pgrep", "-f", f"{source} {at}"], capture_output=True, check=True)
    return int(found.stdout)


def tmpfs(at: Path) -> None:
    at.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "besom-test", at], check=True)


@pytest.fixture(scope="module")
def stage(play: Play, hold: Callable[[Path], int]) -> Iterator[Stage]:
    if os.geteuid() != 0:
        pytest.skip("needs root (mounts)")
    base = play.base / "here"
    servers: list[int] = []
    holders = {}
    try:
        for name in (
            *("idle/plain", "many/nested", "many/nested/sub", "many/stacked", "many/stacked"),
            *("refused/plain", "refused/plain/sub", "one-stays/plain"),
        ):
            tmpfs(base / name)
        for name in ("idle/fuse", "many-beside/at"):
            servers.append(bindfs(base / name))
        os.kill(servers[-1], signal.SIGSTOP)
        for name in ("lazy", "one-stays"):
            tmpfs(base / name / "held")
            holders[name] = hold(base / name / "held")
        for name, (args, _states) in SCENES.items():
            for step, check in STEPS.items():
                play.add(f"{name}/{step}", "graceful_unmount", args, check=check)
        both = {"paths": ["{here}/held", "{here}/plain"], "timeout": "0.2"}
        play.add("one-stays/run", "graceful_unmount", both)
        play.add("refused/below", "graceful_unmount", {"path": "{here}/plain"})
        play.add("refused/system", "graceful_unmount", {"path": "/usr"})
        play.add("refused/timeout", "graceful_unmount", {"path": "/mnt/x", "timeout": "soon"})
        found = {name: result for (_host, name), result in play.run().items()}
        yield Stage(base, found, holders)
    finally:
        for path in reversed(mounted(base)):
            subprocess.run(["umount", "-c", "--lazy", path], check=False)
        for pid in servers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("scene", SCENES)
def test_the_mounts_go_and_the_second_run_finds_nothing_to_do(stage: Stage, scene: str) -> None:
    _args, wanted = SCENES[scene]
    run, again = stage.step(scene, "run"), stage.step(scene, "again")
    assert run.status == again.status == "ok", run.values
    found = {os.path.relpath(one["path"], stage.base / scene): one["state"] for one in run["mounts"]}
    assert found == wanted
    assert (run["changed"], again["changed"]) == (True, False)
    assert {one["state"] for one in again["mounts"]} == {"absent"}
    assert mounted(stage.base / scene) == []


@pytest.mark.parametrize("scene", SCENES)
def test_check_mode_predicts_what_the_run_does(stage: Stage, scene: str) -> None:
    for one, other in (("check", "run"), ("check-again", "again")):
        check, run = stage.step(scene, one), stage.step(scene, other)
        assert check.status == "ok"
        assert check["changed"] is run["changed"]
        assert check["diff"] == run["diff"]
        for key in ("path", "fstype", "source"):
            assert [mount[key] for mount in check["mounts"]] == [mount[key] for mount in run["mounts"]]
        assert {mount["state"] for mount in check["mounts"]} <= {"would_unmount", "absent"}


def test_all_layers_are_in_the_diff(stage: Stage) -> None:
    layer = f"{stage.base}/many/stacked (tmpfs)\n"
    diff = stage.step("many", "run")["diff"]
    assert layer * 2 in diff["before"]
    assert diff["before"].count("\n") == 5
    assert diff["after"] == ""


def test_who_holds_a_detached_mount_is_named(stage: Stage) -> None:
    for step in ("check", "run"):
        ((mount,), pid) = stage.step("lazy", step)["mounts"], stage.holders["lazy"]
        # flock(1) holds the directory open, and so does what it runs.
        assert {holder["kind"] for holder in mount["holders"]} == {"file"}
        assert pid in {holder["pid"] for holder in mount["holders"]}
    assert f"pid {stage.holders['lazy']} (flock: file " in stage.step("lazy", "run").msg


def test_a_busy_mount_fails_the_task_and_keeps_no_other_from_going(stage: Stage) -> None:
    result = stage.step("one-stays", "run")
    top = stage.base / "one-stays"
    assert result.status == "failed"
    assert {one["path"]: one["state"] for one in result["mounts"]} == {
        f"{top}/held": "busy",
        f"{top}/plain": "unmounted",
    }
    assert result.msg.startswith(f"{top}/held stays mounted: held by pid ")
    assert f"pid {stage.holders['one-stays']}" in result.msg
    assert result["changed"] is True
    assert mounted(top) == [f"{top}/held"]


@pytest.mark.parametrize(
    ("step", "says"),
    [
        ("below", "plain/sub; unmount these first, or use recursive."),
        ("system", "/usr is refused: it is a system directory"),
        ("timeout", "timeout: 'soon' is not a duration"),
    ],
)
def test_what_is_wrong_is_refused_in_one_sentence(stage: Stage, step: str, says: str) -> None:
    result = stage.step("refused", step)
    assert result.status == "failed"
    assert says in result.msg
    assert len(mounted(stage.base / "refused")) == 2
