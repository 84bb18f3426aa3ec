# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""TERM to a module, or the loss of its connection (HUP), ends it between two entries.

The task fails, and nothing is half done.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .play import Play, Result
from .scenes import build
from .snapshot import paths

TREES = {f"cache/{name}/{n}": (4, age) for age, name in enumerate("edcba", 2) for n in range(4)}
FILES = {f"cache/{name}": (4, age) for age, name in enumerate("edcba", 2)}
TEMPS = {f"area/.temp-{name}/{n}": (4, age) for age, name in enumerate("edcba", 2) for n in range(4)}
SIGNALS = {"here": "TERM", "lost": "HUP"}
MESSAGE = (
    "Interrupted. SIG{signal} came while at work on {path}; "
    "nothing was left half done, and another run goes on from there."
)


@pytest.fixture(scope="module")
def pythons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By host, a Python whose third unlinkat is met by its signal: the kernel's own clock, and no race."""
    strace = shutil.which("strace")
    if strace is None:
        assert os.environ.get("CI") != "true", "strace is missing: run scripts/bootstrap --test"
        pytest.skip("strace is missing: run scripts/bootstrap --test")
    traced = [strace, "-f", "-qq", "-o", "/dev/null", "-e", "trace=unlinkat"]
    works = subprocess.run([*traced, "true"], capture_output=True, check=False)
    if works.returncode:
        pytest.skip("this kernel lets nobody trace a process")
    found = {}
    for host, name in SIGNALS.items():
        wrapper = tmp_path_factory.mktemp("wrapper") / "python"
        command = [*traced, "-e", f"inject=unlinkat:signal={name}:when=3", sys.executable]
        wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        wrapper.chmod(0o755)
        found[host] = str(wrapper)
    return found


@pytest.fixture(scope="module")
def everything(
    pythons: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Result]:
    play = Play(tmp_path_factory.mktemp("interrupted"), pythons)
    scenes = {
        "trees": (TREES, "cache_prune", {"path": "{here}/cache", "layout": "trees", "max_age": "1d"}),
        "files": (FILES, "cache_prune", {"path": "{here}/cache", "layout": "files", "max_age": "1d"}),
        "host": (
            {**TEMPS, **TREES},
            "housekeep",
            {
                "temps": [{"path": "{here}/area"}],
                "stores": [{"path": "{here}/cache", "layout": "trees", "max_age": "1d"}],
            },
        ),
    }
    for name, (files, module, args) in scenes.items():
        for host in SIGNALS:
            build(play.base / host / name, files)
        play.add(f"{name}/run", module, args)
    return {(host, name.partition("/")[0]): result for (host, name), result in play.run().items()}


@pytest.fixture(params=SIGNALS)
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def results(host: str, everything: dict[tuple[str, str], Result]) -> dict[str, Result]:
    return {name: result for (where, name), result in everything.items() if where == host}


@pytest.mark.parametrize("name", ["trees", "files", "host"])
def test_the_task_fails_with_a_clear_message(results: dict[str, Result], host: str, name: str) -> None:
    result = results[name]
    assert result.status == "failed", result.values
    top = "area" if name == "host" else "cache"
    store = result["store"] or result["reports"][0]["store"]
    assert store.endswith(f"/{name}/{top}")
    assert result.msg == MESSAGE.format(signal=SIGNALS[host], path=store)
    assert result["interrupted"] is True
    assert result["changed"] is True


@pytest.mark.parametrize(("name", "removed"), [("trees", 1), ("files", 3), ("host", 1)])
def test_the_entry_at_work_is_finished_and_no_other_begun(
    results: dict[str, Result], name: str, removed: int
) -> None:
    result = results[name]
    assert result["planned"]["entries"] == 5
    assert result["removed"]["entries"] == removed


def test_nothing_is_left_half_done(results: dict[str, Result]) -> None:
    for name, files in {"trees": TREES, "host": TEMPS}.items():
        left = paths(results[name].tree)
        gone = {path for path in files if path not in left}
        assert len(gone) == 4, gone
        (entry,) = {str(Path(path).parent) for path in gone}
        assert entry not in left
        assert not any(".besom-" in path for path in left)


def test_the_work_after_it_is_not_begun(results: dict[str, Result]) -> None:
    assert set(TREES) <= paths(results["host"].tree)
    assert len(results["host"]["reports"]) == 1
