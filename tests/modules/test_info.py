# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""cache_info agrees with du, stat and findmnt, names the holder of a store, and changes nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Callable

import pytest

from .play import Play, Result
from .scenes import DAY, FIVE, TEMPS, TREES, build
from .snapshot import snapshot


@pytest.fixture(scope="module")
def here(play: Play) -> Path:
    here = play.base / "here/one"
    build(here / "files", {**FIVE, "cache/deep/er/f": (12, 0.5)})
    os.link(here / "files/cache/a", here / "files/cache/deep/second-name")
    (here / "files/cache/link").symlink_to("/etc/hostname")
    os.mkfifo(here / "files/cache/fifo")
    build(here / "trees", TREES)
    build(here / "temps", TEMPS)
    return here


@pytest.fixture(scope="module")
def holder(here: Path, hold: Callable[[Path], int]) -> int:
    return hold(here / "trees/cache")


@pytest.fixture(scope="module")
def info(play: Play, here: Path, holder: int) -> Result:
    stores = [
        {
            "name": "blobs",
            "path": "{here}/files/cache",
            "layout": "files",
            "max_size": "1M",
            "min_free": "5%",
        },
        {"path": "{here}/trees/cache", "layout": "trees", "max_age": "7d"},
        {"path": "{here}/later", "layout": "files"},
    ]
    temps = [{"path": "{here}/temps/area"}, {"path": "{here}/never", "pattern": ["x-*"], "older_than": "2h"}]
    before = snapshot(str(here))
    play.add("one/info", "cache_info", {"stores": stores, "temps": temps})
    play.add("one/check", "cache_info", {"stores": stores, "temps": temps}, check=True)
    found = play.run()
    info, check = found["here", "one/info"], found["here", "one/check"]
    assert info.tree == check.tree == before
    assert info["changed"] is check["changed"] is False
    for one in ("bytes", "entries", "kept", "holder"):
        assert [store[one] for store in info["stores"]] == [store[one] for store in check["stores"]]
    return info


def du(*paths: Path) -> int:
    """Allocated bytes of all that the paths hold, each inode once."""
    done = subprocess.run(["du", "-scB1", *paths], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-2])


def test_usage_of_files_agrees_with_du(info: Result, here: Path) -> None:
    store = info["stores"][0]
    top = here / "files/cache"
    files = [Path(parent) / name for parent, _, names in os.walk(top) for name in names if name != "fifo"]
    assert store["bytes"] == du(*files)
    assert store["entries"] == len(files) == 8
    assert store["store"] == str(top)
    assert (store["name"], store["layout"]) == ("blobs", "files")


def test_usage_of_trees_agrees_with_du(info: Result, here: Path) -> None:
    store = info["stores"][1]
    assert store["bytes"] == du(*(here / "trees/cache").iterdir())
    assert store["entries"] == 4


def test_the_oldest_and_the_newest_entry_agree_with_stat(info: Result, here: Path) -> None:
    files, trees = info["stores"]
    times = [os.lstat(path).st_mtime for path in (here / "files/cache").rglob("*") if path.is_file()]
    assert files["oldest"] == pytest.approx(min(times), abs=1e-3)
    assert trees["oldest"] == pytest.approx((here / "trees/cache/a/1").stat().st_mtime, abs=1e-3)
    assert trees["newest"] - trees["oldest"] == pytest.approx(4 * DAY, abs=5)


def test_the_holder_of_the_writer_lock_is_named(info: Result, holder: int, here: Path) -> None:
    assert info["stores"][0]["holder"] is None
    assert info["stores"][1]["holder"]["pid"] == holder
    assert info["stores"][1]["holder"]["command"] == f"flock {here}/trees/cache sh -c"
    assert 0 <= Path(f"/proc/{holder}").stat().st_mtime - info["stores"][1]["holder"]["since"] < 60


def test_limits_are_given_in_bytes_and_seconds(info: Result) -> None:
    assert info["stores"][0]["limits"] == {"max_size": 1024**2, "min_free": "5%"}
    assert info["stores"][1]["limits"] == {"max_age": 7 * DAY}


def test_the_file_system_agrees_with_findmnt(info: Result, here: Path) -> None:
    asked = ["findmnt", "-nro", "TARGET,FSTYPE", "--target", here]
    target, kind = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    st = os.statvfs(here)
    for one in [*info["stores"], *info["temps"]]:
        figures: dict[str, Any] = one["file_system"]
        assert (figures["mount"], figures["type"]) == (target, kind)
        assert figures["total_bytes"] == st.f_blocks * st.f_frsize
        assert figures["inodes_total"] == (st.f_files or None)
        assert 0 <= figures["available_bytes"] <= figures["total_bytes"]


def test_temps_are_split_into_stale_and_kept(info: Result, here: Path) -> None:
    (area,) = info["temps"]
    top = here / "temps/area"
    assert area["temps"] == str(top)
    assert area["stale"] == {"entries": 2, "bytes": du(top / ".temp-old", top / ".temp-file")}
    assert area["bytes"] == du(*top.glob(".temp-*"))
    assert {item["path"] for item in area["kept"]} == {f"{top}/.temp-young", f"{top}/.temp-written"}
    assert (area["pattern"], area["older_than"]) == ([".temp-*"], DAY)


def test_what_is_not_besoms_to_remove_is_listed(info: Result, here: Path) -> None:
    kept = info["stores"][0]["kept"]
    assert kept == [{"path": f"{here}/files/cache/fifo", "reason": "is a socket, FIFO or device"}]


def test_what_does_not_exist_yet_is_a_warning(info: Result, here: Path) -> None:
    assert info["warnings"] == [
        f"{here}/later does not exist yet; it was skipped.",
        f"{here}/never does not exist yet; it was skipped.",
    ]
