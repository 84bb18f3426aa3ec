# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from besom.info import inspect, store_info, temps_info
from besom.policy import Policy, Store, Temps

DAY = 86400


def test_a_store_is_described_by_usage_entries_ages_and_limits(
    area: Any, make_run: Callable[..., Any], now: int
) -> None:
    area.file("a/old", days=9, size=10_000)
    area.file("new", days=1)
    policy = Policy.from_mapping({"max_size": "1G", "max_age": "2h", "min_free": "5%", "order": "oldest"})
    found = store_info(Store(str(area.path), "files", policy, "gems"), make_run())
    assert (found["name"], found["store"], found["layout"]) == ("gems", str(area.path), "files")
    assert (found["bytes"], found["entries"]) == (12288 + 4096, 2)
    assert (found["oldest"], found["newest"]) == (now / 1e9 - 9 * DAY, now / 1e9 - DAY)
    assert found["limits"] == {"max_size": 1024**3, "max_age": 7200.0, "min_free": "5%"}
    assert found["holder"] is None
    json.dumps(found)


def test_trees_are_counted_whole(area: Any, make_run: Callable[..., Any], now: int) -> None:
    area.tree("one", days=9)
    area.tree("two", days=3, files={"a/b": 1, "c": 1})
    found = store_info(Store(str(area.path), "trees", Policy()), make_run())
    assert (found["entries"], found["oldest"], found["newest"]) == (
        2,
        now / 1e9 - 9 * DAY,
        now / 1e9 - 3 * DAY,
    )


def test_the_holder_of_the_writer_lock_is_named(
    area: Any, make_run: Callable[..., Any], hold: Callable[..., Any]
) -> None:
    held = hold(area.path)
    found = store_info(Store(str(area.path), "files", Policy()), make_run())["holder"]
    assert (found["pid"], found["command"].split()[0]) == (held.pid, "flock")
    assert isinstance(found["since"], float)


def test_a_temp_area_is_described_by_what_is_stale_and_what_is_kept(
    area: Any, make_run: Callable[..., Any], hold: Callable[..., Any]
) -> None:
    for name, days in ((".temp-old", 9), (".temp-new", 0), (".temp-held", 9)):
        area.file(name, days)
    hold(area.at(".temp-held"))
    found = temps_info(Temps(str(area.path)), make_run())
    assert (found["pattern"], found["older_than"]) == ([".temp-*"], DAY)
    assert (found["bytes"], found["stale"]) == (3 * 4096, {"entries": 1, "bytes": 4096})
    assert found["kept_total"] == 2
    assert len(area.files()) == 3


@pytest.mark.root
def test_the_file_system_is_described(
    area: Any, mount: Callable[..., None], make_run: Callable[..., Any]
) -> None:
    mount("-t", "tmpfs", "-o", "size=4M,nr_inodes=100,mode=755", "besom-test", area.path)
    area.file("a", size=1024**2)
    assert store_info(Store(str(area.path), "files", Policy()), make_run())["file_system"] == {
        "mount": str(area.path),
        "type": "tmpfs",
        "total_bytes": 4 * 1024**2,
        "available_bytes": 3 * 1024**2,
        "inodes_total": 100,
        "inodes_available": os.statvfs(area.path).f_favail,
    }


def test_what_does_not_exist_yet_is_a_warning(
    area: Any, tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    missing = str(tmp_path / "missing")
    found = inspect(
        [Store(str(area.path), "files", Policy()), Store(missing, "files", Policy())],
        [Temps(missing)],
        make_run(),
    )
    assert (len(found["stores"]), found["temps"]) == (1, [])
    assert found["warnings"] == [f"{missing} does not exist yet; it was skipped."] * 2


def test_looking_changes_nothing(
    area: Any, make_run: Callable[..., Any], snapshot: Callable[..., Any]
) -> None:
    area.tree(".temp-a", days=9, files={"a/b": 1})
    before = snapshot(area)
    for layout in ("files", "trees"):
        inspect([Store(str(area.path), layout, Policy())], [Temps(str(area.path))], make_run())
    assert snapshot(area) == before
