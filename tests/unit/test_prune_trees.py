# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Layout `trees`: each directory in the store goes whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from besom import entry_removal
from besom.effort import Effort
from besom.prune import _Execution, plan
from besom.root import Root
from besom.tree import CHANGED

TRASH = ".besom-trash-0123456789abcdef"


def four_trees(area: Any) -> None:
    """a to d: a the newest, d nine days old."""
    for name, days in (("a", 0), ("b", 3), ("c", 6), ("d", 9)):
        area.tree(name, days, {"one": 4096, "sub/two": 4096})


@pytest.fixture
def pruned_trees(pruned: Callable[..., Any]) -> Callable[..., Any]:
    return lambda area, **options: pruned(area, layout="trees", **options)


@pytest.mark.parametrize(
    ("limits", "stay"),
    [
        ({"max_entries": 2}, "ab"),
        ({"max_age": "5d"}, "ab"),
        ({"max_size": "40K"}, "ab"),
        ({"max_size": "48K"}, "abc"),
        ({"max_size": "48K", "target_size": "20K"}, "a"),
        ({"max_size": 1, "min_age": "4d"}, "ab"),
        ({"max_entries": 1, "max_age": "100d"}, "a"),
    ],
    ids=str,
)
def test_exactly_the_oldest_trees_go_whole(
    area: Any,
    pruned_trees: Callable[..., Any],
    allocated: Callable[..., int],
    limits: dict[str, Any],
    stay: str,
) -> None:
    four_trees(area)
    area.file("loose", days=99, size=0)
    before = allocated(area, directories=True)
    report = pruned_trees(area, **limits)
    whole = {f"{top}/{file}" for top in stay for file in ("one", "sub/two")}
    assert area.files() == {"loose", *whole}
    assert set(os.listdir(area.path)) == {"loose", *stay}
    assert report.bytes_before == before
    assert report.bytes_after == before - report.removed.bytes == allocated(area, directories=True)


def test_what_an_installation_that_was_cut_off_has_left_stays(
    area: Any, pruned_trees: Callable[..., Any]
) -> None:
    """It may be the only copy of the tree that it was to replace."""
    swap = ".besom-swap-app-1f-01234567"
    area.tree(swap, 9, {"one": 4096})
    area.tree("a", 3, {"one": 4096})
    report = pruned_trees(area, max_age="1d")
    assert os.listdir(area.path) == [swap]
    assert [item["path"] for item in report.kept.items] == [area.at(swap)]


def test_the_age_of_a_tree_is_that_of_its_newest_part(area: Any, pruned_trees: Callable[..., Any]) -> None:
    four_trees(area)
    area.file("d/sub/deep/new", days=1)
    for name in ("d/sub/deep", "d/sub", "d"):
        os.utime(area.at(name), (0, 0))
    os.utime(area.dir("c/sub/empty"), ns=(0, os.stat(area.at("a/one")).st_mtime_ns))
    for name in ("c/sub", "c"):
        os.utime(area.at(name), (0, 0))
    pruned_trees(area, max_age="2d")
    assert set(os.listdir(area.path)) == {"a", "c", "d"}


def test_the_use_of_a_tree_is_that_of_its_last_read_file_and_not_of_its_directories(
    area: Any, pruned_trees: Callable[..., Any], now: int
) -> None:
    four_trees(area)
    area.file("d/sub/two", days=9, used=1)
    os.utime(area.at("d/sub"), ns=(now, now - 9 * 86400 * 10**9))
    os.utime(area.at("c/sub"), ns=(now, now - 6 * 86400 * 10**9))
    pruned_trees(area, max_entries=2, order="lru")
    assert set(os.listdir(area.path)) == {"a", "d"}


def test_a_tree_that_is_held_stays_whole_and_the_next_oldest_goes(
    area: Any, pruned_trees: Callable[..., Any], hold: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    four_trees(area)
    held, inside = hold(area.at("d")), hold(area.at("c/sub/two"))
    report = pruned_trees(area, max_entries=3)
    assert set(os.listdir(area.path)) == {"a", "c", "d"}
    kept = reasons(report.kept)
    assert kept["d"].startswith(f"in use: locked by pid {held.pid} ")
    assert kept["two"].startswith(f"in use: locked by pid {inside.pid} ")
    held.release()
    inside.release()
    pruned_trees(area, max_entries=1)
    assert os.listdir(area.path) == ["a"]


def test_a_lock_taken_between_plan_and_execution_keeps_the_tree_whole(
    area: Any,
    make_run: Callable[..., Any],
    request_for: Callable[..., Any],
    hold: Callable[..., Any],
    reasons: Callable[..., Any],
) -> None:
    four_trees(area)
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(request_for(area, "trees", max_entries=1), root, run)
        hold(area.at("d"))
        hold(area.at("c/sub/two"))
        report = _Execution(planned, run).execute()
    assert all(reason.startswith("in use: locked by pid ") for reason in reasons(report.kept).values())
    assert set(os.listdir(area.path)) == {"a", "c", "d"}
    assert {"c/one", "c/sub/two", "d/one", "d/sub/two"} <= area.files()


@pytest.mark.root
@pytest.mark.parametrize("what", ["d", "d/sub", "d/sub/two"])
@pytest.mark.parametrize("limits", [{"max_entries": 3}, {"max_size": "65K", "target_size": "60K"}], ids=str)
def test_an_immutable_part_keeps_the_whole_tree_and_the_next_oldest_goes(
    area: Any,
    pruned_trees: Callable[..., Any],
    chattr: Callable[..., None],
    reasons: Callable[..., Any],
    limits: dict[str, Any],
    what: str,
) -> None:
    four_trees(area)
    area.file("loose", size=4096)
    chattr("+i", area.at(what))
    before = area.names()
    dry = pruned_trees(area, dry_run=True, **limits)
    real = pruned_trees(area, **limits)
    assert area.names() == [name for name in before if not name.startswith("c")]
    assert reasons(real.anomalies) == {os.path.basename(what): "is immutable"}
    assert (dry.planned, dry.bytes_after) == (real.removed, real.bytes_after)
    assert reasons(dry.anomalies) == reasons(real.anomalies)
    assert not pruned_trees(area, **limits).changed


@pytest.mark.root
def test_a_mount_inside_keeps_the_whole_tree(
    area: Any,
    outside: Any,
    mount: Callable[..., None],
    pruned_trees: Callable[..., Any],
    reasons: Callable[..., Any],
) -> None:
    four_trees(area)
    outside.file("keep", days=99)
    mount("--bind", outside.path, area.dir("d/sub/point", days=9))
    mount("-t", "tmpfs", "besom-test", area.dir("whole", days=9))
    before = area.files()
    report = pruned_trees(area, max_entries=2)
    assert area.files() == {name for name in before if name[0] not in "bc"}
    assert reasons(report.kept) == {"point": "is a mount point", "whole": "is a mount point"}


def test_trash_left_by_a_crash_is_finished(
    area: Any, pruned_trees: Callable[..., Any], pruned: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    for layout in ("trees", "files"):
        area.tree(TRASH, days=0, files={"a/b": 4096})
        area.tree("young", days=0)
        dry = pruned(area, layout=layout, max_age="5d", dry_run=True)
        assert reasons(dry.victims) == {TRASH: "trash left by a crash"}
        report = pruned(area, layout=layout, max_age="5d")
        assert (report.removed.entries, report.removed.bytes) == (1, 3 * 4096)
        assert (dry.planned, dry.bytes_before, dry.bytes_after) == (
            *(report.removed, report.bytes_before, report.bytes_after),
        )
        assert area.files() == {"young/data"}


@pytest.mark.root
def test_what_trash_gives_back_counts_for_min_free(
    area: Any, mount: Callable[..., None], pruned_trees: Callable[..., Any]
) -> None:
    mount("-t", "tmpfs", "-o", "size=4M,mode=755", "besom-test", area.path)
    for name in (TRASH, "old"):
        area.tree(name, days=9, files={"data": 1024**2})
    dry = pruned_trees(area, min_free="3M", dry_run=True)
    real = pruned_trees(area, min_free="3M")
    assert area.files() == {"old/data"}
    assert dry.planned == real.removed


def test_trash_that_somebody_is_at_work_on_is_left_and_reported(
    area: Any, pruned_trees: Callable[..., Any], hold: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    area.tree(TRASH, days=9)
    held = hold(area.at(TRASH))
    report = pruned_trees(area, max_entries=1)
    assert not report.changed
    assert f"locked by pid {held.pid} " in reasons(report.anomalies)[TRASH]
    held.release()
    assert pruned_trees(area, max_entries=1).removed.entries == 1


def test_a_name_that_only_resembles_trash_is_an_ordinary_entry(
    area: Any, pruned_trees: Callable[..., Any]
) -> None:
    for name in (".besom-trash-", TRASH + "0", TRASH.upper(), "x" + TRASH, TRASH[:-1] + "g"):
        area.tree(name, days=1)
    assert not pruned_trees(area, max_age="5d").changed
    assert len(os.listdir(area.path)) == 5


def test_links_shared_between_trees_are_freed_with_the_last_and_counted_once(
    area: Any, pruned_trees: Callable[..., Any], allocated: Callable[..., int]
) -> None:
    four_trees(area)
    area.file("d/shared", days=9, size=200_000)
    os.link(area.at("d/shared"), area.at("d/sub/shared"))
    os.link(area.at("d/shared"), area.at("c/shared"))
    area.tree("c", days=6, files={})
    area.tree("d", days=9, files={})
    before = allocated(area, directories=True)
    # Without d alone the store still holds what c shares with it.
    dry = pruned_trees(area, max_size="100K", dry_run=True)
    report = pruned_trees(area, max_size="100K")
    assert set(os.listdir(area.path)) == {"a", "b"}
    assert dry.planned == report.removed
    assert report.removed.bytes == before - allocated(area, directories=True)
    assert report.bytes_before == before
    assert report.bytes_after == allocated(area, directories=True)


def test_a_tree_written_to_deep_inside_between_plan_and_execution_is_back_whole(
    area: Any, make_run: Callable[..., Any], request_for: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    four_trees(area)
    before = area.files()
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(request_for(area, "trees", max_entries=2), root, run)
        with open(area.at("d/sub/two"), "ab") as stream:
            stream.write(b"x")
        report = _Execution(planned, run).execute()
    assert area.files() == {name for name in before if name[0] != "c"}
    assert reasons(report.kept) == {"d": CHANGED}
    assert reasons(report.victims).keys() == {"c"}


def test_links_out_of_a_tree_are_removed_and_not_followed(
    area: Any, outside: Any, pruned_trees: Callable[..., Any], snapshot: Callable[..., Any]
) -> None:
    outside.file("keep/file", days=99)
    before = snapshot(outside)
    area.tree("old", days=9)
    for name, target in (
        ("dir", outside.at("keep")),
        ("file", outside.at("keep/file")),
        ("up", ".."),
        ("self", "."),
    ):
        area.symlink(f"old/{name}", target, days=9)
    os.mkfifo(area.at("old/fifo"))
    for name in ("fifo", ""):
        os.utime(area.at(f"old/{name}"), ns=(0, os.stat(area.at("old/data")).st_mtime_ns))
    assert pruned_trees(area, max_age="5d").removed.entries == 1
    assert area.names() == []
    assert snapshot(outside) == before


def test_emptying_removes_every_tree_and_leaves_what_is_none(
    area: Any, pruned_trees: Callable[..., Any]
) -> None:
    four_trees(area)
    area.file("loose", days=99)
    area.symlink("link", area.at("a"), days=99)
    assert pruned_trees(area, empty=True).removed.entries == 4
    assert area.names() == ["link", "loose"]


def test_a_dry_run_of_trees_changes_nothing_at_all(
    area: Any, pruned_trees: Callable[..., Any], snapshot: Callable[..., Any]
) -> None:
    four_trees(area)
    before = snapshot(area)
    assert pruned_trees(area, dry_run=True, max_entries=1).planned.entries == 3
    assert snapshot(area) == before


def test_a_signal_stops_between_two_trees(
    area: Any, make_run: Callable[..., Any], request_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    four_trees(area)
    monkeypatch.setattr(entry_removal, "_WORK", 1)

    def stop_after_the_first(phase: str, _done: int, _total: int) -> None:
        if phase == "remove":
            run.shutdown.request()

    run = make_run(progress=stop_after_the_first, effort=Effort(workers=1))
    with Root(str(area.path)) as root:
        report = _Execution(plan(request_for(area, "trees", max_entries=1), root, run), run).execute()
    assert (report.interrupted, report.removed.entries) == (True, 1)
    assert len(os.listdir(area.path)) == 3
