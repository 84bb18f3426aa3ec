# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Layout `files`: which entries go, and what is kept; test_prune_trees.py has layout `trees`."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from dataclasses import replace as other_than
from signal import SIGTERM
from typing import Any

import pytest

import besom.prune as engine
from besom import inventory
from besom.errors import BesomError, Interrupted, LockHeld, UsageError
from besom.guard import STOPPED
from besom.locks import try_flock
from besom.prune import Request, _Execution, plan, prune
from besom.root import Root
from besom.run import Run
from besom.shutdown import Shutdown
from besom.tree import CHANGED


def ten_files(area: Any) -> None:
    """0 to 9, each 4096 bytes, 0 the newest and 9 nine days old."""
    for number in range(10):
        area.file(str(number), days=number)


@pytest.mark.parametrize(
    ("limits", "stay"),
    [
        ({"max_size": "40K"}, "0123456789"),
        ({"max_size": 40 * 1024 - 1}, "012345678"),
        ({"max_size": "20K"}, "01234"),
        ({"max_size": 20 * 1024 + 4095}, "01234"),
        ({"max_size": "20K", "target_size": "8K"}, "01"),
        ({"max_size": "40K", "target_size": "8K"}, "0123456789"),
        ({"max_size": 1}, ""),
        ({"max_age": "5d"}, "012345"),
        ({"max_age": "4.99d"}, "01234"),
        ({"max_age": "9w"}, "0123456789"),
        ({"max_entries": 3}, "012"),
        ({"max_entries": 10}, "0123456789"),
        ({"max_size": "8K", "min_age": "4.5d"}, "01234"),
        ({"max_entries": 1, "min_age": "20d"}, "0123456789"),
        ({"max_size": "36K", "max_age": "6d", "max_entries": 8}, "0123456"),
        ({"max_size": "12K", "max_age": "6d", "max_entries": 8}, "012"),
        ({"max_size": "36K", "max_age": "8d", "max_entries": 2}, "01"),
    ],
    ids=str,
)
def test_exactly_the_oldest_go_and_not_one_more(
    area: Any, pruned: Callable[..., Any], limits: dict[str, Any], stay: str
) -> None:
    ten_files(area)
    report = pruned(area, **limits)
    assert area.files() == set(stay)
    assert (report.removed.entries, report.removed.bytes) == (10 - len(stay), (10 - len(stay)) * 4096)
    assert (report.bytes_before, report.bytes_after) == (40960, len(stay) * 4096)


def test_least_recently_used_goes_by_the_later_of_atime_and_mtime(
    area: Any, pruned: Callable[..., Any]
) -> None:
    area.file("old-read-yesterday", days=9, used=1)
    area.file("old-never-read", days=9)
    area.file("written-last-week-read-before", days=7, used=8)
    area.file("new", days=0)
    pruned(area, order="lru", max_entries=2)
    assert area.files() == {"old-read-yesterday", "new"}


def test_max_age_of_the_least_recently_used_goes_by_use_as_well(
    area: Any, pruned: Callable[..., Any]
) -> None:
    area.file("read", days=9, used=1)
    area.file("unread", days=9)
    pruned(area, order="lru", max_age="5d")
    assert area.files() == {"read"}


@pytest.mark.root
def test_a_store_is_pruned_until_the_file_system_has_min_free(
    area: Any, mount: Callable[..., None], pruned: Callable[..., Any], now: int
) -> None:
    mount("-t", "tmpfs", "-o", "size=4M,mode=755", "besom-test", area.path)
    for number in range(12):
        area.file(str(number), days=number, size=256 * 1024)
    assert (os.statvfs(area.path).f_bavail * 4096) == 1024 * 1024
    pruned(area, min_free="50%", dry_run=True)
    report = pruned(area, min_free="50%")
    assert area.files() == {str(number) for number in range(8)}
    assert report.removed.bytes == 1024 * 1024
    assert not pruned(area, min_free="50%").changed
    pruned(area, min_free=2 * 1024 * 1024 + 1)
    assert area.files() == {str(number) for number in range(7)}


@pytest.mark.root
def test_what_other_links_hold_frees_nothing_and_min_free_looks_further(
    area: Any, make_area: Callable[[str], Any], mount: Callable[..., None], pruned: Callable[..., Any]
) -> None:
    mount("-t", "tmpfs", "-o", "size=4M,mode=755", "besom-test", area.path)
    area.dir("store")
    area.file("elsewhere", size=512 * 1024)
    os.link(area.file("store/linked", days=9, size=512 * 1024), area.at("also"))
    area.file("store/old", days=8, size=512 * 1024)
    area.file("store/new", days=1, size=512 * 1024)
    area.path = area.path / "store"
    report = pruned(area, min_free="2560K")
    area.path = area.path.parent
    assert area.files() == {"elsewhere", "also", "store/new"}
    assert (report.removed.entries, report.removed.bytes) == (2, 512 * 1024)


@pytest.mark.root
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_file_system_that_is_full_can_still_be_pruned(
    area: Any, mount: Callable[..., None], pruned: Callable[..., Any], what: str
) -> None:
    mount("-t", "tmpfs", "-o", "size=256K,nr_inodes=12,mode=755", "besom-test", area.path)
    with pytest.raises(OSError, match="No space left"):  # noqa: PT012 (a loop)
        for number in range(1000):
            area.file(f"t{number}/x", days=number, size=64 * 1024 if what == "bytes" else 0)
    pruned(area, layout="trees", max_entries=2)
    assert len(os.listdir(area.path)) == 2
    pruned(area, max_entries=1)
    assert len(area.files()) == 1


def test_hard_links_inside_the_store_count_once_and_are_freed_with_the_last(
    area: Any, pruned: Callable[..., Any], allocated: Callable[..., int]
) -> None:
    os.link(area.file("a", days=9, size=100_000), area.at("sub-a"))
    area.file("b", days=5, size=10_000)
    report = pruned(area, dry_run=True, max_size="20K")
    assert report.bytes_before == allocated(area)
    before = allocated(area)
    done = pruned(area, max_size="20K")
    assert area.files() == {"b"}
    assert done.removed.bytes == report.planned.bytes == before - allocated(area)


def test_one_of_two_links_frees_nothing(area: Any, pruned: Callable[..., Any]) -> None:
    os.link(area.file("a", days=9, size=100_000), area.at("b"))
    report = pruned(area, max_entries=1)
    assert (report.removed.entries, report.removed.bytes) == (1, 0)
    assert report.bytes_after == report.bytes_before


def test_a_link_outside_keeps_the_bytes_but_not_the_usage(
    area: Any, outside: Any, pruned: Callable[..., Any], allocated: Callable[..., int]
) -> None:
    os.link(outside.file("kept", days=9, size=100_000), area.at("linked"))
    area.file("new", days=1)
    before = allocated(area, outside)
    report = pruned(area, max_size="8K")
    assert (area.files(), outside.files()) == ({"new"}, {"kept"})
    assert report.removed.bytes == before - allocated(area, outside) == 0
    assert (report.bytes_before - report.bytes_after) == os.stat(outside.at("kept")).st_blocks * 512


def test_directories_that_a_prune_empties_go_and_those_empty_before_stay(
    area: Any, pruned: Callable[..., Any]
) -> None:
    area.file("a/b/c/old", days=9)
    area.file("x/old", days=9)
    area.file("x/new", days=1)
    area.dir("empty/before")
    area.dir("y/empty")
    area.file("y/old", days=9)
    pruned(area, max_age="5d")
    assert area.names() == ["empty", "empty/before", "x", "x/new", "y", "y/empty"]


def test_the_store_itself_stays_when_everything_in_it_goes(area: Any, pruned: Callable[..., Any]) -> None:
    area.file("a/old", days=9)
    pruned(area, max_age="5d")
    assert (area.path.is_dir(), area.names()) == (True, [])


def test_emptying_takes_everything_that_is_not_in_use_or_in_the_grace_period(
    area: Any, pruned: Callable[..., Any], hold: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    for name, days in (("future", -400), ("now", 0), ("old", 9), ("held", 9)):
        area.file(name, days)
    hold(area.at("held"))
    assert pruned(area, empty=True, min_age="1d").removed.entries == 1
    report = pruned(area, empty=True)
    assert area.files() == {"held"}
    assert reasons(report.kept)["held"].startswith("in use: locked by pid ")


def test_symlinks_are_unlinked_and_never_followed(
    area: Any, outside: Any, pruned: Callable[..., Any], snapshot: Callable[..., Any]
) -> None:
    outside.file("dir/keep", days=100)
    before = snapshot(outside)
    area.symlink("to-file", outside.at("dir/keep"), days=9)
    area.symlink("to-dir", outside.at("dir"), days=9)
    area.symlink("a/dangling", "nowhere", days=9)
    area.symlink("young", outside.at("dir"), days=1)
    pruned(area, max_age="5d")
    assert area.files() == {"young"}
    assert snapshot(outside) == before


def test_sockets_and_fifos_stay_and_are_reported(
    area: Any, pruned: Callable[..., Any], reasons: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(area.at("fifo"))
    monkeypatch.chdir(area.path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    area.file("file", days=1)
    report = pruned(area, empty=True)
    assert area.files() == {"fifo", "socket"}
    assert reasons(report.kept) == dict.fromkeys(["fifo", "socket"], "is a socket, FIFO or device")


@pytest.mark.parametrize("options", [[], ["-s"]], ids=["exclusive", "shared"])
def test_a_locked_file_is_kept_the_holder_named_and_the_next_oldest_taken(
    area: Any,
    pruned: Callable[..., Any],
    hold: Callable[..., Any],
    reasons: Callable[..., Any],
    options: list[str],
) -> None:
    ten_files(area)
    held = hold(area.at("9"), *options)
    report = pruned(area, max_entries=8)
    assert area.files() == set("01234569")
    assert reasons(report.kept)["9"].startswith(f"in use: locked by pid {held.pid} (flock ")
    held.release()
    pruned(area, max_entries=7)
    assert area.files() == set("0123456")


def test_a_locked_directory_keeps_all_that_is_in_it(
    area: Any, pruned: Callable[..., Any], hold: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    area.file("work/deep/old", days=9)
    area.file("other/old", days=9)
    held = hold(area.at("work"))
    report = pruned(area, max_age="5d")
    assert area.files() == {"work/deep/old"}
    assert f"pid {held.pid} " in reasons(report.kept)["work"]


@pytest.mark.parametrize("dry_run", [True, False])
def test_only_a_real_run_waits_for_the_writer_lock(
    area: Any, pruned: Callable[..., Any], hold: Callable[..., Any], dry_run: bool
) -> None:
    ten_files(area)
    held = hold(area.path)
    if dry_run:
        assert pruned(area, dry_run=True, max_entries=3).planned.entries == 7
    else:
        with pytest.raises(LockHeld, match=f"pid {held.pid} .*lock_timeout"):
            pruned(area, max_entries=3)
    assert len(area.files()) == 10


NAMES = [
    b"new\nline",
    b"\xff\xfe not utf-8",
    b"x" * 255,
    b"-rf",
    b"\\x0a",
    b"\x1b[2J",
    "é".encode("latin-1"),
    b" ",
]


def test_any_name_can_go_and_none_forges_a_line(area: Any, pruned: Callable[..., Any]) -> None:
    for name in NAMES:
        area.file(os.path.join(name, name), days=9)
    report = pruned(area, max_age="5d")
    assert area.names() == []
    shown = [item["path"] for item in report.victims.items]
    assert len(set(shown)) == len(NAMES)
    assert all(path.isprintable() for path in shown)


def test_files_deeper_than_path_max_go_and_so_do_their_directories(
    area: Any, pruned: Callable[..., Any], deep: Callable[..., Any], now: int
) -> None:
    area.file("new", days=1)
    with deep(area.dir("deep"), 30, "d" * 250) as fd:
        for name in ("one", "two"):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
            os.utime(name, ns=(now - 9 * 86400 * 10**9,) * 2, dir_fd=fd)
    report = pruned(area, max_age="5d")
    assert (report.removed.entries, report.failures.total) == (2, 0)
    assert area.names() == ["new"]


def test_lost_and_found_stays(area: Any, pruned: Callable[..., Any]) -> None:
    area.file("lost+found/#123", days=99)
    assert not pruned(area, empty=True).changed
    assert area.files() == {"lost+found/#123"}


def test_times_beyond_what_64_bits_hold_are_young_and_go_when_everything_goes(
    area: Any, pruned: Callable[..., Any]
) -> None:
    area.file("old", days=9)
    os.utime(area.file("future"), (2 * 10**10,) * 2)
    pruned(area, max_age="5d")
    assert area.files() == {"future"}
    for order in ("oldest", "lru"):
        os.utime(area.file("future"), (2 * 10**10,) * 2)
        report = pruned(area, empty=True, order=order)
        assert (area.files(), report.kept.total) == (set(), 0)


@pytest.mark.root
@pytest.mark.parametrize(
    "limits", [{"max_size": "20K"}, {"max_size": "36K", "target_size": "20K"}, {"max_entries": 5}]
)
@pytest.mark.parametrize("flag", ["+i", "+a"])
def test_an_immutable_file_is_an_anomaly_and_the_next_oldest_goes_instead(
    area: Any,
    pruned: Callable[..., Any],
    chattr: Callable[..., None],
    reasons: Callable[..., Any],
    limits: dict[str, Any],
    flag: str,
) -> None:
    ten_files(area)
    chattr(flag, area.at("9"))
    dry = pruned(area, dry_run=True, **limits)
    real = pruned(area, **limits)
    why = "is immutable" if flag == "+i" else "is append-only"
    assert area.files() == set("01239")
    assert reasons(dry.anomalies) == reasons(real.anomalies) == {"9": why}
    assert dry.planned == real.planned == real.removed
    assert dry.bytes_after == real.bytes_after
    assert set(reasons(dry.victims)) == set(reasons(real.victims)) == set("45678")
    assert real.failures.total == 0
    assert not pruned(area, **limits).changed


@pytest.mark.root
def test_what_lies_in_an_immutable_directory_is_kept_as_an_anomaly(
    area: Any, pruned: Callable[..., Any], chattr: Callable[..., None], reasons: Callable[..., Any]
) -> None:
    for number in range(4):
        area.file(f"fixed/{number}", days=9)
    area.file("old", days=8)
    chattr("+i", area.at("fixed"))
    report = pruned(area, max_age="5d")
    assert len(area.files()) == 4
    assert reasons(report.anomalies) == {"fixed": "4 files kept: their directory is immutable"}
    assert (report.anomalies.total, report.removed.entries) == (4, 1)


@pytest.mark.root
@pytest.mark.parametrize("kind", ["tmpfs", "bind", "file"])
def test_a_mount_inside_is_neither_entered_nor_counted(
    area: Any,
    outside: Any,
    mount: Callable[..., None],
    pruned: Callable[..., Any],
    reasons: Callable[..., Any],
    snapshot: Callable[..., Any],
    kind: str,
) -> None:
    outside.file("keep", days=99)
    area.file("sub/old", days=99)
    point = area.file("sub/point") if kind == "file" else area.dir("sub/point")
    if kind == "tmpfs":
        mount("-t", "tmpfs", "besom-test", point)
        area.file("sub/point/keep", days=99)
    else:
        mount("--bind", outside.at("keep") if kind == "file" else outside.path, point)
    before = snapshot(outside)
    report = pruned(area, empty=True)
    assert reasons(report.kept) == {"point": "is a mount point"}
    assert (report.removed.entries, report.bytes_before) == (1, 4096)
    assert os.path.exists(point if kind == "file" else os.path.join(point, "keep"))
    assert snapshot(outside) == before


def test_a_dry_run_changes_nothing_at_all(
    area: Any, pruned: Callable[..., Any], snapshot: Callable[..., Any]
) -> None:
    ten_files(area)
    area.file("sub/old", days=99)
    area.symlink("link", "sub/old", days=50)
    before = snapshot(area)
    report = pruned(area, dry_run=True, max_entries=3, max_size="8K", max_age="5d")
    assert (report.planned.entries, report.removed.entries, report.changed) == (10, 0, True)
    assert snapshot(area) == before


def test_a_second_run_changes_nothing(
    area: Any, pruned: Callable[..., Any], snapshot: Callable[..., Any]
) -> None:
    ten_files(area)
    limits = {"max_entries": 5, "max_size": "12K", "max_age": "7d"}
    assert pruned(area, **limits).changed
    before = snapshot(area)
    report = pruned(area, **limits)
    assert (report.changed, report.planned.entries, report.warnings) == (False, 0, [])
    assert snapshot(area) == before


def touch(path: str) -> None:
    os.utime(path)


def rewrite_in_place(path: str) -> None:
    """Other contents of the same size and the same mtime to the second, as a sloppy tool leaves them."""
    st = os.stat(path)
    with open(path, "r+b") as stream:
        stream.write(b"y")
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns // 10**9 * 10**9 + 1))


def append(path: str) -> None:
    st = os.stat(path)
    with open(path, "ab") as stream:
        stream.write(b"y")
    os.utime(path, ns=(st.st_atime_ns, st.st_mtime_ns))


def replace(path: str) -> None:
    """Another inode with the same mtime and size."""
    st = os.stat(path)
    with open(path + ".new", "wb") as stream:
        stream.write(b"z" * st.st_size)
    os.utime(path + ".new", ns=(st.st_atime_ns, st.st_mtime_ns))
    os.rename(path + ".new", path)


def replace_by_a_directory(path: str) -> None:
    os.unlink(path)
    os.mkdir(path)


@pytest.mark.parametrize("act", [touch, rewrite_in_place, append, replace, replace_by_a_directory])
def test_an_entry_that_changes_between_plan_and_execution_survives(
    area: Any,
    make_run: Callable[..., Any],
    request_for: Callable[..., Any],
    reasons: Callable[..., Any],
    act: Callable[[str], None],
) -> None:
    ten_files(area)
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(request_for(area, max_entries=7), root, run)
        act(area.at("8"))
        report = _Execution(planned, run).execute()
    assert os.path.lexists(area.at("8"))
    assert not os.path.lexists(area.at("9"))
    assert (report.planned.entries, report.removed.entries) == (3, 2)
    assert reasons(report.kept) == {"8": CHANGED}
    assert set(reasons(report.victims)) == set("79")
    assert report.bytes_after == 8 * 4096


def test_an_entry_that_is_read_between_plan_and_execution_survives_where_use_counts(
    area: Any,
    make_run: Callable[..., Any],
    request_for: Callable[..., Any],
    reasons: Callable[..., Any],
    now: int,
) -> None:
    ten_files(area)
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(request_for(area, max_entries=7, order="lru"), root, run)
        st = os.stat(area.at("8"))
        os.utime(area.at("8"), ns=(now, st.st_mtime_ns))
        report = _Execution(planned, run).execute()
    assert reasons(report.kept) == {"8": CHANGED}


def test_an_entry_that_is_locked_between_plan_and_execution_survives(
    area: Any,
    make_run: Callable[..., Any],
    request_for: Callable[..., Any],
    hold: Callable[..., Any],
    reasons: Callable[..., Any],
) -> None:
    ten_files(area)
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(request_for(area, max_entries=7), root, run)
        hold(area.at("8"))
        report = _Execution(planned, run).execute()
    assert reasons(report.kept)["8"].startswith("in use: locked by ")
    assert area.files() == set("01234568")


@pytest.mark.parametrize("instead", ["gone", "symlink", "another directory", "file"])
def test_a_directory_that_is_exchanged_between_plan_and_execution_is_not_gone_through(
    area: Any,
    outside: Any,
    make_run: Callable[..., Any],
    request_for: Callable[..., Any],
    reasons: Callable[..., Any],
    instead: str,
) -> None:
    area.file("d/old", days=9)
    area.file("e/old", days=9)
    outside.file("old", days=9)
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(request_for(area, max_age="5d"), root, run)
        os.rename(area.at("d"), outside.at("moved"))
        if instead == "symlink":
            os.symlink(outside.path, area.at("d"))
        elif instead == "another directory":
            area.file("d/old", days=9)
        elif instead == "file":
            area.file("d", days=9)
        report = _Execution(planned, run).execute()
    assert outside.files() == {"old", "moved/old"}
    assert [item["reason"] for item in report.kept.items] == [CHANGED]
    assert not os.path.exists(area.at("e"))


def test_a_signal_stops_between_two_entries_and_the_report_says_so(
    area: Any, make_run: Callable[..., Any], request_for: Callable[..., Any]
) -> None:
    ten_files(area)
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(request_for(area, max_entries=2), root, run)
        run.shutdown.request()
        report = _Execution(planned, run).execute()
    assert (report.interrupted, report.removed.entries, len(area.files())) == (True, 0, 10)
    assert report.bytes_after == report.bytes_before


@pytest.mark.parametrize("layout", ["files", "trees"])
def test_a_signal_ends_the_reading_of_a_store_and_nothing_goes(
    area: Any, make_run: Callable[..., Any], request_for: Callable[..., Any], layout: str
) -> None:
    for name in ("a", "b", "c"):
        area.tree(name, days=9)

    def stop(_phase: str, _done: int, _total: int) -> None:
        run.shutdown.request()

    run = make_run(progress=stop)
    with pytest.raises(Interrupted) as caught:
        prune(request_for(area, layout, max_age="5d"), run)
    assert caught.value.status == 143
    assert len(area.files()) == 3


def test_a_limit_that_cannot_be_reached_is_a_warning_that_says_why(
    area: Any, pruned: Callable[..., Any], hold: Callable[..., Any]
) -> None:
    ten_files(area)
    hold(area.at("9"))
    report = pruned(area, max_size="4K", max_entries=2, min_age="2.5d")
    assert area.files() == set("0129")
    (warning,) = report.warnings
    assert warning == (
        f"{area.path} stays 12.0 KiB over max_size and 2 entries over max_entries: nothing else in it can go "
        "(kept: 3 younger than min_age, 1 in use or not besom's to remove)."
    )


def test_what_is_gone_before_its_turn_counts_as_changed_and_not_as_a_failure(
    area: Any, make_run: Callable[..., Any], request_for: Callable[..., Any]
) -> None:
    ten_files(area)
    run = make_run()
    area.file("sub/oldest", days=20)
    with Root(str(area.path)) as root:
        planned = plan(request_for(area, max_entries=5), root, run)
        os.unlink(area.at("sub/oldest"))
        report = _Execution(planned, run).execute()
    assert (report.removed.entries, report.failures.total, report.kept.total) == (5, 0, 1)
    # Whoever removed the file may be about to put another there: only what this run empties goes.
    assert area.path.joinpath("sub").is_dir()


def test_a_missing_store_is_a_usage_error(area: Any, pruned: Callable[..., Any]) -> None:
    os.rmdir(area.path)
    with pytest.raises(UsageError, match="does not exist"):
        pruned(area, max_entries=1)


@pytest.mark.parametrize("layout", ["files", "trees"])
def test_a_signal_ends_the_reading_of_a_store_and_frees_it(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Request], layout: str
) -> None:
    for number in range(3):
        area.tree(str(number), days=9)
    before = area.names()
    shutdown = Shutdown()
    run = make_run(shutdown=shutdown, progress=lambda phase, done, total: shutdown.request(SIGTERM))
    with pytest.raises(Interrupted, match="SIGTERM came while reading") as caught:
        prune(request_for(area, layout, max_age="1d"), run)
    assert caught.value.status == 143
    assert area.names() == before
    with Root(str(area.path)) as root:
        assert try_flock(root.fd)


class Shared:
    """A lock that several machines see, and that is lost once why is set."""

    why = ""
    longest_pause_s = 0.01

    def attempt(self) -> bool:
        return True

    def holder(self) -> str:
        return ""

    remedy = holder

    def lost(self) -> str:
        return self.why

    def release(self) -> None:
        pass


@pytest.mark.root
@pytest.mark.parametrize("layout", ["files", "trees"])
@pytest.mark.parametrize("end", ["signal", "lost lock", "error"])
def test_what_the_first_pass_has_removed_is_told_whatever_ends_the_second(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Request],
    chattr: Callable[..., None],
    layout: str,
    end: str,
) -> None:
    for number in range(10):
        area.tree(str(number), days=number, files={"data": 4096})
    chattr("+i", area.at("9/data"))
    shared, phases = Shared(), [""]

    def progress(phase: str, _done: int, _total: int) -> None:
        again = phase == "scan" and "remove" in phases
        phases.append(phase)
        if not again:
            return
        if end == "signal":
            run.shutdown.request(SIGTERM)
        elif end == "lost lock":
            shared.why = "the server is gone"
        else:
            raise BesomError("so it was")

    run = make_run(progress=progress, shared_lock=lambda path: shared)
    request = request_for(area, layout, max_entries=5)
    report = prune(other_than(request, store=other_than(request.store, lock_backend="redis")), run)
    assert len(area.files()) == 6
    assert (report.changed, report.removed.entries, report.removed.bytes > 0) == (True, 4, True)
    assert (report.planned.entries, report.victims.total) == (5, 4)
    assert report.bytes_after < report.bytes_before
    assert report.interrupted == (end == "signal")
    told = {
        "signal": [],
        "lost lock": [f"lost its lock (the server is gone); {STOPPED}"],
        "error": ["so it was"],
    }
    assert [item["reason"] for item in report.failures.items] == told[end]


@pytest.mark.root
@pytest.mark.parametrize("limits", [{"max_age": "5d"}, {"empty": True}], ids=["by age", "empty"])
@pytest.mark.parametrize("layout", ["files", "trees"])
def test_by_age_an_immutable_file_costs_no_second_walk_and_the_prediction_is_right(
    area: Any,
    pruned: Callable[..., Any],
    chattr: Callable[..., None],
    reasons: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    limits: dict[str, Any],
) -> None:
    for number in range(10):
        area.tree(str(number), days=number, files={"data": 4096})
    os.link(area.at("8/data"), area.at("8/again"))
    if layout == "files":
        os.link(area.at("9/data"), area.at("7/linked"))
    chattr("+i", area.at("9/data"))
    walks, read = [], engine.read_store

    def walk(*arguments: Any, **options: Any) -> Any:
        walks.append(options)
        return read(*arguments, **options)

    monkeypatch.setattr(engine, "read_store", walk)
    dry = pruned(area, layout, dry_run=True, **limits)
    walks.clear()
    real = pruned(area, layout, **limits)
    assert len(walks) == 1
    assert {"9/data"} <= area.files()
    assert dry.planned == real.planned == real.removed
    assert (dry.bytes_before, dry.bytes_after) == (real.bytes_before, real.bytes_after)
    for name in ("anomalies", "kept", "failures", "victims"):
        assert reasons(getattr(dry, name)) == reasons(getattr(real, name))
        assert getattr(dry, name).total == getattr(real, name).total
    assert real.anomalies.total == (2 if layout == "files" else 1)


@pytest.mark.root
def test_by_age_trees_that_share_an_inode_with_an_immutable_one_are_predicted_right(
    area: Any, pruned: Callable[..., Any], chattr: Callable[..., None]
) -> None:
    for number in range(3):
        area.tree(str(number), days=9 - number, files={"data": 4096})
    os.link(area.at("1/data"), area.at("0/data-of-1"))
    chattr("+i", area.at("0/data"))
    dry, real = pruned(area, "trees", dry_run=True, empty=True), pruned(area, "trees", empty=True)
    assert dry.planned == real.planned == real.removed
    assert dry.bytes_after == real.bytes_after


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Names that are immutable, and how often each name was asked for (0 and more: not immutable)."""
    asked: dict[str, int] = {}

    def forbids(name: str, _fd: int) -> str:
        asked[name] = asked.get(name, 0) + 1
        return "immutable" if name.startswith("i") else ""

    monkeypatch.setattr(engine, "file_forbids", forbids)
    return asked


def test_many_immutable_files_are_looked_at_once_each_and_chosen_among_a_few_times(
    area: Any, pruned: Callable[..., Any], forbidden: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(300):
        area.file(f"{'i' if number < 200 else 'f'}{number}", days=400 - number, size=0)
    chosen, choose = [], engine.choose
    monkeypatch.setattr(engine, "choose", lambda *given: chosen.append(1) or choose(*given))
    report = pruned(area, dry_run=True, max_entries=298)
    assert (report.planned.entries, report.anomalies.total) == (2, 200)
    assert {os.path.basename(item["path"]) for item in report.victims.items} == {"f200", "f201"}
    assert set(forbidden.values()) == {1}
    assert len(chosen) < 30


def test_the_search_for_immutable_files_heeds_a_signal(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inventory, "CHUNK", 2)
    for number in range(20):
        area.file(str(number), days=9)
    run, asked = make_run(dry_run=True), []

    def forbids(name: str, _fd: int) -> str:
        asked.append(name)
        run.shutdown.request(SIGTERM)
        return ""

    monkeypatch.setattr(engine, "file_forbids", forbids)
    with pytest.raises(Interrupted):
        prune(request_for(area, max_age="5d"), run)
    assert len(asked) == 2


@pytest.mark.usefixtures("forbidden")
def test_exactly_the_immutable_files_that_would_have_gone_are_anomalies(
    area: Any, pruned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the plain way: from the oldest on, one by one, until every limit is met."""
    monkeypatch.setattr(inventory, "CHUNK", 4)
    rng = random.Random(7)  # noqa: S311
    for _round in range(60):
        for name in area.names():
            os.unlink(area.at(name))
        count = rng.randrange(1, 30)
        kinds = [rng.choice("if" if rng.random() < 0.9 else "i") for _ in range(count)]
        sizes = [rng.randrange(3) * 4096 for _ in range(count)]
        for number, (kind, size) in enumerate(zip(kinds, sizes)):
            area.file(f"{kind}{number}", days=100 - number, size=size)
        most, room = rng.randrange(1, count + 1), rng.randrange(1, 30) * 4096
        aged = rng.randrange(count + 1)
        goes, anomalies = set(), set()
        drop, shed = count - most, sum(sizes) - room
        for number in range(count):
            if number >= aged and drop <= 0 and shed <= 0:
                break
            if kinds[number] == "i":
                anomalies.add(f"i{number}")
                continue
            goes.add(f"f{number}")
            drop, shed = drop - 1, shed - sizes[number]
        report = pruned(area, dry_run=True, max_entries=most, max_size=room, max_age=f"{100.5 - aged:.1f}d")
        assert {os.path.basename(item["path"]) for item in report.victims.items} == goes
        assert {os.path.basename(item["path"]) for item in report.anomalies.items} == anomalies
