# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from besom.errors import UsageError
from besom.policy import Temps
from besom.root import Root
from besom.sweep import execute, plan
from besom.tree import CHANGED

TRASH = ".besom-trash-0123456789abcdef"


def test_only_what_is_old_and_matches_and_is_free_goes(
    area: Any, swept: Callable[..., Any], hold: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    area.tree(".temp-old", days=2, files={"a/b": 4096})
    area.file(".temp-old-file", days=2)
    area.tree(".temp-young", days=0.5)
    area.file(".temp-young-file", days=0.5)
    area.tree(".temp-held", days=2)
    area.tree("unrelated", days=99)
    area.file("x.part", days=99)
    area.tree("sub/.temp-deeper", days=99)
    held = hold(area.at(".temp-held"))
    report = swept(area)
    assert set(os.listdir(area.path)) == {
        *(".temp-young", ".temp-young-file", ".temp-held", "unrelated", "x.part", "sub"),
    }
    assert reasons(report.kept) == {
        ".temp-young": "not stale yet: 12h old, it goes after 24h",
        ".temp-young-file": "not stale yet: 12h old, it goes after 24h",
        ".temp-held": reasons(report.kept)[".temp-held"],
    }
    assert reasons(report.kept)[".temp-held"].startswith(f"in use: locked by pid {held.pid} (flock ")
    assert (report.removed.entries, report.removed.bytes) == (2, 4 * 4096)


def test_a_temp_goes_once_it_is_released(
    area: Any, swept: Callable[..., Any], hold: Callable[..., Any]
) -> None:
    area.tree(".temp-dir", days=2)
    area.file(".temp-file", days=2)
    area.tree(".temp-inside", days=2)
    held = [hold(area.at(name)) for name in (".temp-dir", ".temp-file", ".temp-inside/data")]
    assert not swept(area).changed
    for one in held:
        one.release()
    assert swept(area).removed.entries == 3
    assert area.names() == []


SWEEP_AND_PRUNE = """
import sys
from besom.policy import Policy, Store, Temps
from besom.prune import Request, prune
from besom.run import Run
from besom.sweep import sweep
for report in (
    sweep(Temps(sys.argv[1], older_than=1), Run()),
    prune(Request(Store(sys.argv[1], "trees", Policy(max_age=1))), Run()),
):
    print(report.removed.entries, *(item["reason"] for item in report.kept.items), sep="; ")
"""


@pytest.mark.root
def test_a_holder_that_cannot_be_seen_keeps_what_it_holds(area: Any, hold: Callable[..., Any]) -> None:
    area.tree(".temp-tree", days=9)
    area.file(".temp-file", days=9)
    hold(area.at(".temp-tree"))
    hold(area.at(".temp-file"))
    # In a pid namespace of its own, as in a container, /proc/locks does not list those locks.
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", SWEEP_AND_PRUNE, area.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    said = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    unseen = "in use: locked by a process that cannot be seen from here (in another pid namespace, perhaps)"
    assert said == f"0; {unseen}; {unseen}\n0; {unseen}\n"
    assert area.files() == {".temp-file", ".temp-tree/data"}


def test_a_file_deep_inside_that_is_young_keeps_a_temp(area: Any, swept: Callable[..., Any]) -> None:
    area.tree(".temp-a", days=9, files={"b/c/d": 1})
    os.utime(area.at(".temp-a/b/c/d"), ns=(0, os.stat(area.file("now")).st_mtime_ns))
    assert not swept(area).changed
    assert os.path.exists(area.at(".temp-a/b/c/d"))


def test_the_age_limit_is_exact(area: Any, swept: Callable[..., Any]) -> None:
    area.file(".temp-a", days=1)
    assert not swept(area, days=1).changed
    area.file(".temp-a", days=1.0001)
    assert swept(area, days=1).changed


def test_what_is_neither_directory_nor_file_stays(
    area: Any, outside: Any, swept: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    outside.file("keep", days=9)
    os.mkfifo(area.at(".temp-fifo"))
    os.utime(area.at(".temp-fifo"), (0, 0))
    area.symlink(".temp-link", outside.at(""), days=9)
    area.symlink(".temp-dangling", "nowhere", days=9)
    report = swept(area)
    assert reasons(report.kept) == dict.fromkeys(
        [".temp-fifo", ".temp-link", ".temp-dangling"], "is neither a directory nor a regular file"
    )
    assert (len(os.listdir(area.path)), outside.files()) == (3, {"keep"})


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (("a*",), "a ab"),
        (("?b",), "ab"),
        (("[ab]",), "a b"),
        (("a", "b"), "a b"),
        (("a*", "*b"), "a ab b"),
        (("A*",), ""),
        (("",), ""),
        (("*",), "a ab b .hidden"),
    ],
    ids=str,
)
def test_patterns_are_globs_of_whole_names(
    area: Any, swept: Callable[..., Any], patterns: tuple[str, ...], gone: str
) -> None:
    everything = {"a", "ab", "b", ".hidden"}
    for name in everything:
        area.file(name, days=9)
    swept(area, *patterns)
    assert area.files() == everything - set(gone.split())


def test_lost_and_found_stays_whatever_the_pattern(area: Any, swept: Callable[..., Any]) -> None:
    area.tree("lost+found", days=99)
    assert not swept(area, "*").changed


def test_a_dry_run_takes_no_lock_changes_nothing_and_predicts_the_run(
    area: Any, swept: Callable[..., Any], snapshot: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    area.tree(".temp-a", days=9, files={"b/c": 70_000})
    area.file(".temp-b", days=9, size=10_000)
    area.tree(".temp-c", days=0)
    area.tree(TRASH, days=0)
    before = snapshot(area)
    dry = swept(area, dry_run=True)
    assert snapshot(area) == before
    real = swept(area)
    assert (dry.planned, dry.changed) == (real.removed, True)
    assert (dry.bytes_before, dry.bytes_after) == (real.bytes_before, real.bytes_after)
    assert (
        reasons(dry.victims)
        == reasons(real.victims)
        == {
            **dict.fromkeys([".temp-a", ".temp-b"], "stale"),
            TRASH: "trash left by a crash",
        }
    )
    assert os.listdir(area.path) == [".temp-c"]


def test_links_shared_by_temps_are_freed_with_the_last_of_them(
    area: Any, outside: Any, swept: Callable[..., Any], allocated: Callable[..., int]
) -> None:
    for name in (".temp-a", ".temp-b", ".temp-c"):
        area.tree(name, days=9)
    area.file(".temp-a/shared", days=9, size=100_000)
    for name in (".temp-b/shared", ".temp-b/again", ".temp-file"):
        os.link(area.at(".temp-a/shared"), area.at(name))
    area.file(".temp-one", days=9, size=50_000)
    os.link(area.at(".temp-one"), area.at(".temp-two"))
    os.link(outside.file("kept", days=9, size=30_000), area.at(".temp-c/kept"))
    for name in (".temp-a", ".temp-b", ".temp-c"):
        os.utime(area.at(name), (0, 0))
    before = allocated(area, outside, directories=True)
    dry = swept(area, dry_run=True)
    real = swept(area)
    assert area.names() == []
    assert dry.planned == real.removed
    assert real.removed.bytes == before - allocated(area, outside, directories=True)


@pytest.mark.parametrize("kind", ["file", "tree"])
@pytest.mark.parametrize("change", ["write", "replace", "lock", "remove"])
def test_what_changes_between_plan_and_execution_is_kept(
    area: Any,
    make_run: Callable[..., Any],
    hold: Callable[..., Any],
    reasons: Callable[..., Any],
    kind: str,
    change: str,
) -> None:
    if kind == "file":
        inner = area.file(".temp-a", days=9)
    else:
        inner = os.path.join(area.tree(".temp-a", days=9), "data")
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(Temps(str(area.path)), root, run)
        if change == "write":
            with open(inner, "ab") as stream:
                stream.write(b"more")
        elif change == "lock":
            hold(area.at(".temp-a"))
        else:
            os.rename(area.at(".temp-a"), area.at("elsewhere"))
            if change == "replace":
                area.tree(".temp-a", days=8)
        report = execute(planned, run)
    assert report.planned.entries == 1
    assert (report.removed.entries, report.failures.total, report.victims.total) == (0, 0, 0)
    reason = reasons(report.kept)[".temp-a"]
    assert reason.startswith("in use: locked by pid ") if change == "lock" else reason == CHANGED
    assert os.path.exists(area.at(".temp-a")) == (change != "remove")


@pytest.mark.parametrize("plant", ["fifo", "symlink"])
def test_a_fifo_or_symlink_planted_in_place_of_a_temp_hangs_and_harms_nothing(
    area: Any, outside: Any, make_run: Callable[..., Any], plant: str
) -> None:
    area.file(".temp-a", days=9)
    outside.file("keep", days=9)
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(Temps(str(area.path)), root, run)
        os.unlink(area.at(".temp-a"))
        if plant == "fifo":
            os.mkfifo(area.at(".temp-a"))
        else:
            area.symlink(".temp-a", outside.at("keep"), days=9)
        report = execute(planned, run)
    assert (report.removed.entries, report.kept.total) == (0, 1)
    assert os.path.lexists(area.at(".temp-a"))
    assert outside.files() == {"keep"}


def test_a_file_that_takes_the_place_of_a_temp_at_the_last_moment_stays(
    area: Any, make_run: Callable[..., Any], reasons: Callable[..., Any], saboteur: Any
) -> None:
    area.file(".temp-a", days=9)
    area.file("precious", days=9)
    run = make_run()
    with Root(str(area.path)) as root:
        planned = plan(Temps(str(area.path)), root, run)
        take_its_place = partial(os.rename, area.at("precious"), area.at(".temp-a"))
        with saboteur.before(0, take_its_place, "fcntl.flock") as acted:
            report = execute(planned, run)
            assert acted()
    assert reasons(report.kept) == {".temp-a": CHANGED}
    assert area.files() == {".temp-a"}


@pytest.mark.root
def test_an_immutable_part_keeps_a_temp_whole_and_the_rest_goes_on(
    area: Any, swept: Callable[..., Any], chattr: Callable[..., None], reasons: Callable[..., Any]
) -> None:
    area.tree(".temp-a", days=9, files={"one": 1, "sub/two": 1})
    area.file(".temp-b", days=9)
    area.tree(".temp-c", days=9)
    chattr("+i", area.at(".temp-a/sub/two"))
    chattr("+i", area.at(".temp-b"))
    report = swept(area)
    assert reasons(report.anomalies) == {"two": "is immutable", ".temp-b": "is immutable"}
    assert area.files() == {".temp-a/one", ".temp-a/sub/two", ".temp-b"}
    assert report.removed.entries == 1


@pytest.mark.root
def test_a_mount_is_never_swept_nor_what_holds_one(
    area: Any, mount: Callable[..., None], swept: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    mount("-t", "tmpfs", "besom-test", area.dir(".temp-mounted"))
    mount("-t", "tmpfs", "besom-test", area.dir(".temp-a/b/inside"))
    mount("--bind", area.file("other"), area.file(".temp-file"))
    for name in (".temp-a/b", ".temp-a"):
        os.utime(area.at(name), (0, 0))
    report = swept(area)
    assert not report.changed
    assert reasons(report.kept) == dict.fromkeys(
        [".temp-mounted", "inside", ".temp-file"], "is a mount point"
    )


def test_a_signal_stops_between_two_temps(area: Any, make_run: Callable[..., Any]) -> None:
    for name in "abc":
        area.tree(f".temp-{name}", days=9)

    def stop(_phase: str, _done: int, _total: int) -> None:
        run.shutdown.request()

    run = make_run(progress=stop)
    with Root(str(area.path)) as root:
        report = execute(plan(Temps(str(area.path)), root, run), run)
    assert (report.interrupted, report.removed.entries) == (True, 1)
    assert sorted(os.listdir(area.path)) == [".temp-b", ".temp-c"]


def test_where_there_is_nothing_there_is_nothing_to_say(area: Any, swept: Callable[..., Any]) -> None:
    report = swept(area)
    assert not report.changed
    assert (report.kept.total, report.anomalies.total, report.warnings) == (0, 0, [])


def test_a_missing_area_is_a_usage_error(area: Any, swept: Callable[..., Any]) -> None:
    os.rmdir(area.path)
    with pytest.raises(UsageError, match="does not exist"):
        swept(area)
