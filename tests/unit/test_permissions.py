# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What another user than root may not remove is kept and reported, and costs nothing else its turn."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from besom.file_removal import FileRemover  # noqa: F401  # nobody may not read where root's Python has its modules
from besom.policy import Temps
from besom.prune import _Execution, plan
from besom.root import Root
from besom.sweep import execute
from besom.sweep import plan as plan_sweep

NOBODY, OTHER = 65534, 65533
PR_SET_DUMPABLE = 4

pytestmark = pytest.mark.root


@contextmanager
def as_nobody() -> Iterator[None]:
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    # Else the kernel gives this process's own /proc to root.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def pruned_as_nobody(make_run: Callable[..., Any], request_for: Callable[..., Any]) -> Callable[..., Any]:
    """pruned_as_nobody(area, layout): the dry run's report and the run's, with a max_age of 5 days."""

    def run(area: Any, layout: str) -> tuple[Any, Any]:
        reports = []
        for thorough in (True, False):
            # pytest's directories are root's alone, so the store is opened before.
            with Root(str(area.path)) as root, as_nobody():
                planned = plan(request_for(area, layout, max_age="5d"), root, make_run(), thorough)
                reports.append(planned.report if thorough else _Execution(planned, make_run()).execute())
        return reports[0], reports[1]

    return run


def give(path: str, owner: int) -> None:
    for top, dirs, files in os.walk(path):
        for name in (".", *dirs, *files):
            os.chown(os.path.join(top, name), owner, owner, follow_symlinks=False)


def test_files_of_others_in_a_sticky_directory_stay(
    area: Any, pruned_as_nobody: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    for name, owner in (("own", NOBODY), ("other", OTHER), ("roots", 0)):
        os.chown(area.file(name, days=9), owner, owner)
    area.path.chmod(0o1777)
    dry, real = pruned_as_nobody(area, "files")
    assert area.files() == {"other", "roots"}
    assert reasons(real.anomalies) == {
        "area": "2 files kept: their directory is sticky, and they belong to others"
    }
    assert (dry.planned, real.failures.total) == (real.removed, 0)


def test_files_in_a_directory_that_cannot_be_written_stay(
    area: Any, pruned_as_nobody: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    area.file("locked/old", days=9)
    area.file("open/old", days=9)
    give(area.path, NOBODY)
    Path(area.at("locked")).chmod(0o555)
    dry, real = pruned_as_nobody(area, "files")
    assert area.files() == {"locked/old"}
    assert reasons(real.anomalies) == {"locked": "1 files kept: their directory cannot be written"}
    assert (dry.planned, real.failures.total) == (real.removed, 0)


def test_a_name_that_cannot_go_keeps_the_bytes_of_the_names_that_can(
    area: Any, pruned_as_nobody: Callable[..., Any]
) -> None:
    os.link(area.file("open/old", days=9, size=50_000), area.at("also"))
    os.makedirs(area.at("fixed"))
    os.link(area.at("also"), area.at("fixed/old"))
    give(area.path, NOBODY)
    Path(area.at("fixed")).chmod(0o555)
    dry, real = pruned_as_nobody(area, "files")
    assert area.files() == {"fixed/old"}
    assert (real.planned.entries, real.planned.bytes) == (2, 0)
    assert dry.planned == real.planned == real.removed
    assert real.bytes_after == real.bytes_before == os.stat(area.at("fixed/old")).st_blocks * 512


def test_a_directory_that_cannot_be_read_is_an_anomaly_and_the_rest_goes(
    area: Any, pruned_as_nobody: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    area.file("secret/old", days=9)
    area.file("open/old", days=9)
    give(area.path, NOBODY)
    give(area.at("secret"), 0)
    Path(area.at("secret")).chmod(0o700)
    dry, real = pruned_as_nobody(area, "files")
    assert area.files() == {"secret/old"}
    assert reasons(real.anomalies) == {"secret": "cannot be read: Permission denied"}
    assert dry.planned == real.removed


@pytest.mark.parametrize("what", ["whole", "deep", "sticky", "store"])
def test_a_tree_that_cannot_go_whole_stays_whole(
    area: Any, pruned_as_nobody: Callable[..., Any], what: str
) -> None:
    for name in ("bad", "good"):
        area.tree(name, days=9, files={"a/b": 1, "c": 1})
    give(area.path, NOBODY)
    if what == "whole":
        Path(area.at("bad")).chmod(0o555)
    elif what == "deep":
        Path(area.at("bad/a")).chmod(0o555)
    elif what == "sticky":
        os.chown(area.at("bad"), OTHER, OTHER)
        Path(area.at("bad")).chmod(0o777)
        os.chown(area.path, OTHER, OTHER)
        area.path.chmod(0o1777)
    else:
        area.path.chmod(0o555)
    dry, real = pruned_as_nobody(area, "trees")
    assert area.files() == {"bad/a/b", "bad/c"} | ({"good/a/b", "good/c"} if what == "store" else set())
    assert real.anomalies.total == (2 if what == "store" else 1)
    assert (dry.planned, real.failures.total) == (real.removed, 0)


def test_temps_of_others_in_a_sticky_directory_stay(
    area: Any, make_run: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    area.tree(".temp-own", days=9)
    area.tree(".temp-other", days=9)
    area.file(".temp-file", days=9)
    give(area.at(".temp-own"), NOBODY)
    area.path.chmod(0o1777)
    with Root(str(area.path)) as root, as_nobody():
        report = execute(plan_sweep(Temps(str(area.path)), root, make_run()), make_run())
    assert reasons(report.anomalies).keys() == {".temp-other", ".temp-file"}
    assert area.names() == [".temp-file", ".temp-other", ".temp-other/data"]
