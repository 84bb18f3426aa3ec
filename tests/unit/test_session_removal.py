# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A session goes whole, and only as it was planned; what was begun is finished, or left alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from besom.tree import CHANGED

TRASH = ".besom-trash-0123456789abcdef-sessions"


@pytest.fixture
def two(area: Any, session: Any) -> list[str]:
    """An old session `a` with three blobs, and `b`, which stays; all the names."""
    session(area, "a", days=9, blobs={"": 4096, ".dat": 4096, ".d/": 4096})
    session(area, "b", days=1)
    names: list[str] = area.names()
    return names


@pytest.mark.parametrize("what", ["a.json", "a.dat", "a.d", "a.d/sub/two"])
def test_a_lock_on_anything_in_it_keeps_a_session(
    area: Any, two: list[str], pruned: Any, hold: Any, reasons: Any, what: str
) -> None:
    held = hold(area.at(what))
    dry, real = (pruned(area, "sessions", max_age="5d", dry_run=dry_run) for dry_run in (True, False))
    assert not dry.changed
    assert not real.changed
    ((name, reason),) = reasons(real.kept).items()
    assert (name, f"pid {held.pid} " in reason) == (os.path.basename(what), True)
    assert area.names() == two


def test_a_fifo_among_its_blobs_keeps_a_session(area: Any, two: list[str], pruned: Any, reasons: Any) -> None:
    os.mkfifo(area.at("a.fifo"))
    report = pruned(area, "sessions", max_age="5d")
    assert reasons(report.kept) == {"a.fifo": "is a socket, FIFO or device"}
    assert area.names() == sorted([*two, "a.fifo"])


@pytest.mark.root
@pytest.mark.parametrize("what", ["a.dat", "a.d/sub/two", "a.json"])
def test_what_is_immutable_keeps_its_session_and_the_next_oldest_goes(
    area: Any, two: list[str], pruned: Any, chattr: Any, reasons: Any, what: str
) -> None:
    chattr("+i", area.at(what))
    dry = pruned(area, "sessions", max_entries=1, dry_run=True)
    real = pruned(area, "sessions", max_entries=1)
    assert (dry.planned, dry.bytes_after) == (real.removed, real.bytes_after)
    assert reasons(real.anomalies) == reasons(dry.anomalies) == {os.path.basename(what): "is immutable"}
    assert area.names() == [name for name in two if name[0] == "a"]


@pytest.mark.root
@pytest.mark.parametrize("what", ["a.dat", "a.d/sub"])
def test_a_mount_inside_keeps_a_session(
    area: Any, two: list[str], pruned: Any, mount: Any, outside: Any, reasons: Any, what: str
) -> None:
    source = outside.file("x") if what == "a.dat" else outside.dir("x")
    mount("--bind", source, area.at(what))
    report = pruned(area, "sessions", max_age="5d")
    assert reasons(report.kept) == {os.path.basename(what): "is a mount point"}
    assert [name for name in area.names() if name[0] == "."] == []
    assert not report.changed


def write(path: str) -> Callable[[], None]:
    def act() -> None:
        with open(path, "a") as stream:
            stream.write("more")

    return act


@pytest.mark.parametrize("event", ["os.mkdir", *[f"os.rename {n}" for n in range(4)]])
@pytest.mark.parametrize("what", ["a.json", "a", "a.dat", "a.d/sub/two"])
def test_a_session_that_changes_before_it_is_in_the_trash_is_put_back_whole(
    area: Any, two: list[str], pruned: Any, saboteur: Any, reasons: Any, event: str, what: str
) -> None:
    name, _space, nth = event.partition(" ")

    def act() -> None:
        places = [area.at(what), *(os.path.join(area.at(t), what) for t in area.names() if "/" not in t)]
        write(next(place for place in places if os.path.isfile(place)))()

    with saboteur.before(int(nth or 0), act, name) as acted:
        report = pruned(area, "sessions", max_age="5d")
        assert acted()
    assert list(reasons(report.kept).values()) == [CHANGED]
    assert (area.names(), report.removed.entries, report.victims.total) == (two, 0, 0)


def test_metadata_that_comes_anew_meanwhile_is_left_alone(
    area: Any, session: Any, two: list[str], pruned: Any, saboteur: Any
) -> None:
    with saboteur.before(2, lambda: session(area, "a", 0, blobs={}), "os.rename"):
        report = pruned(area, "sessions", max_age="5d")
    assert report.removed.entries == 1
    assert area.names() == ["a.json", "b.dat", "b.json"]


def test_what_is_put_back_replaces_nothing(
    area: Any, session: Any, two: list[str], pruned: Any, saboteur: Any
) -> None:
    def act() -> None:
        session(area, "a", 0, blobs={})
        write(area.at("a.dat"))()

    with saboteur.before(1, act, "os.rename"):
        assert not pruned(area, "sessions", max_age="5d").changed
    kept = [name for name in area.names() if ".besom-kept-" in name]
    assert sorted(set(area.names()) - set(kept)) == two
    # The metadata as it was, as one more blob of the session.
    assert [name[:18] for name in kept] == ["a.json.besom-kept-"]


def begin(area: Any, *names: str) -> None:
    """What a kill leaves that comes after so many names went into the trash."""
    os.mkdir(area.at(TRASH))
    for name in names:
        os.rename(area.at(name), area.at(os.path.join(TRASH, name)))


@pytest.mark.parametrize("count", range(5))
def test_a_removal_that_was_begun_is_finished(
    area: Any, two: list[str], pruned: Any, reasons: Any, count: int
) -> None:
    begin(area, *["a.json", "a", "a.d", "a.dat"][:count])
    dry = pruned(area, "sessions", max_age="50d", dry_run=True)
    real = pruned(area, "sessions", max_age="50d")
    assert (dry.planned, dry.bytes_after, dry.bytes_before) == (
        real.removed,
        real.bytes_after,
        real.bytes_before,
    )
    assert reasons(dry.victims) == {TRASH: "trash left by a crash"}
    assert (real.anomalies.total, real.failures.total) == (0, 0)
    # Where nothing was in the trash yet, nothing was begun.
    assert area.names() == ([name for name in two if name[0] == "b"] if count else two)
    assert not pruned(area, "sessions", max_age="50d").changed


def test_new_metadata_keeps_the_blobs_of_a_removal_that_was_begun(
    area: Any, session: Any, two: list[str], pruned: Any
) -> None:
    begin(area, "a.json", "a")
    session(area, "a", 0, blobs={})
    pruned(area, "sessions", max_age="5d")
    assert area.names() == [name for name in two if name != "a"]


@pytest.mark.parametrize("what", ["a.dat", "a.new", "a.d/sub/two", "a.d/new"])
def test_a_blob_that_was_written_after_the_removal_had_begun_stays(
    area: Any, two: list[str], pruned: Any, reasons: Any, what: str
) -> None:
    begin(area, "a.json")
    moment = os.lstat(area.at(f"{TRASH}/a.json")).st_ctime_ns
    top = area.at(what.partition("/")[0])
    # Until the clock of the file system has moved on.
    while not os.path.exists(area.at(what)) or os.lstat(area.at(what)).st_mtime_ns <= moment:
        write(area.at(what))()
    report = pruned(area, "sessions", max_age="5d")
    assert reasons(report.anomalies) == {os.path.basename(top): "is a blob without metadata"}
    assert os.path.exists(area.at(what))
    assert not os.path.exists(area.at("a"))


def test_trash_that_another_besom_is_at_work_on_is_left_alone(
    area: Any, two: list[str], pruned: Any, hold: Any
) -> None:
    begin(area, "a.json")
    hold(area.at(TRASH))
    before = area.names()
    report = pruned(area, "sessions", max_age="5d")
    assert (area.names(), report.anomalies.total, report.changed) == (before, 1, False)


@pytest.mark.root
def test_trash_of_a_stranger_begins_nothing(area: Any, two: list[str], pruned: Any, reasons: Any) -> None:
    begin(area, "a.json")
    os.chown(area.at(TRASH), 65534, 65534)
    report = pruned(area, "sessions", max_age="5d")
    assert set(reasons(report.anomalies)) == {"a", "a.d", "a.dat"}
    assert area.names() == [name for name in two if name != "a.json"]


def test_a_directory_that_only_looks_like_the_trash_of_trees_begins_nothing(
    area: Any, two: list[str], pruned: Any
) -> None:
    area.tree(TRASH[: -len("-sessions")], files={"x.json": 1})
    area.file("x.dat", days=99)
    report = pruned(area, "sessions", max_age="50d")
    assert report.anomalies.total == 1
    assert area.names() == sorted([*two, "x.dat"])


@pytest.mark.parametrize("call", ["mkdir", "rename"])
@pytest.mark.parametrize("nth", range(4))
def test_on_a_full_disk_a_session_goes_where_it_is(
    area: Any, two: list[str], pruned: Any, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    real, left = getattr(os, call), [nth]

    def full(*arguments: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0 or call == "mkdir":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **options)

    monkeypatch.setattr(os, call, full)
    report = pruned(area, "sessions", max_age="5d")
    assert (report.removed.entries, report.failures.total) == (1, 0)
    assert area.names() == [name for name in two if name[0] == "b"]


def test_blobs_that_share_an_inode_free_it_with_the_last_of_them(
    area: Any, session: Any, pruned: Any, allocated: Any
) -> None:
    for days, name in enumerate(("a", "b", "c"), 1):
        session(area, name, days)
        if name != "a":
            os.unlink(area.at(f"{name}.dat"))
            os.link(area.at("a.dat"), area.at(f"{name}.dat"))
    before = allocated(area)
    for left in (2, 1):
        dry = pruned(area, "sessions", max_entries=left, dry_run=True)
        real = pruned(area, "sessions", max_entries=left)
        assert dry.planned == real.removed
        assert real.removed.bytes == before - allocated(area)
        assert (real.bytes_after, real.bytes_before) == (allocated(area), before)
        before = allocated(area)
