# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removal shared between processes: the outcome of one, exact whatever ends it, at no more than a rate."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from besom import entry_removal, file_removal, inventory, looking, prune, session_removal, workers
from besom.effort import Effort
from besom.errors import BesomError
from besom.locks import LockTable
from besom.run import Run
from besom.shutdown import Shutdown
from besom.tree import CHANGED
from besom.workers import Pace


@pytest.fixture(params=["processes", "threads"])
def several(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Even a small store is worth several, with a few files each: the number of processes at least."""
    monkeypatch.setattr(inventory, "CHUNK", 2)
    monkeypatch.setattr(inventory, "_LISTED", 5)
    monkeypatch.setattr(looking, "FILES", 2)
    monkeypatch.setattr(file_removal, "FILES", 2)
    monkeypatch.setattr(entry_removal, "_WORK", 8)
    if request.param == "processes":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
        return 2
    # One computes, and waits for the disk as often as it pays.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    monkeypatch.setattr(workers, "_FIRST", 4)
    return 1


def deep_store(area: Any) -> None:
    """Old files on all levels of a few branches, a young one, and directories that were empty before."""
    for branch in "abc":
        for level in range(1, 7):
            for number in range(3):
                area.file("/".join([branch] * level) + f"/{number}", days=9)
    area.file("b/b/b/young", days=0)
    area.dir("a/a/empty")
    area.dir("empty")


def everything(area: Any, below: str = "") -> list[str]:
    top = area.at(below)
    return sorted(
        os.path.relpath(os.path.join(d, n), area.path) for d, ds, fs in os.walk(top) for n in ds + fs
    )


def parts(report: Any) -> dict[str, Any]:
    """What of a report does not depend on who did the work, or where."""
    found = report.to_dict()
    names = ("removed", "planned", "bytes_before", "bytes_after", "victims_total", "failures", "interrupted")
    return {name: found[name] for name in (*names, "kept_total", "anomalies_total")}


@pytest.mark.parametrize("limits", [{"max_age": "1d"}, {"max_entries": 1}], ids=["by age", "by number"])
def test_what_several_leave_is_what_one_leaves(
    area: Any,
    make_area: Callable[[str], Any],
    make_run: Callable[..., Run],
    request_for: Any,
    limits: Any,
    several: int,
) -> None:
    other = make_area("other")
    deep_store(area)
    deep_store(other)
    seen: set[int] = set()
    report = prune.prune(
        request_for(area, **limits),
        make_run(progress=lambda *_: seen.update(working())),
    )
    alone = prune.prune(request_for(other, **limits), make_run(effort=Effort(workers=1)))
    assert len(seen) >= several
    assert (
        everything(area)
        == everything(other)
        == ["a", "a/a", "a/a/empty", "b", "b/b", "b/b/b", "b/b/b/young", "empty"]
    )
    assert parts(report) == parts(alone)
    assert report.removed.entries == 54
    assert not working()


def working() -> set[int]:
    """Processes that this one has started, and that have not ended."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.add(int(pid))
    return found


def slowly(before: Callable[[], None] = lambda: None) -> Callable[..., None]:
    """An unlink that calls before, and takes a while."""

    def unlink(name: str, **options: Any) -> None:
        before()
        time.sleep(0.002)
        os.remove(name, **options)

    return unlink


@pytest.mark.usefixtures("several")
def test_names_of_one_inode_free_it_once_whoever_removes_which(area: Any, pruned: Callable[..., Any]) -> None:
    for number in range(100):
        area.file(f"{number}/one", days=9)
        for link in range(3):
            os.makedirs(area.at(f"links/{(number + link) % 7}"), exist_ok=True)
            os.link(area.at(f"{number}/one"), area.at(f"links/{(number + link) % 7}/{number}"))
    dry, report = pruned(area, max_age="1d", dry_run=True), pruned(area, max_age="1d")
    assert report.removed == report.planned == dry.planned
    assert (report.removed.entries, report.removed.bytes) == (400, 100 * 4096)
    assert (report.bytes_before, report.bytes_after) == (100 * 4096, 0)
    assert everything(area) == []


@pytest.mark.usefixtures("several")
def test_directories_emptied_together_by_several_processes_go(area: Any, pruned: Callable[..., Any]) -> None:
    for number in range(16):
        area.file(f"top/{number % 4}/{number}", days=9)
    report = pruned(area, max_age="1d")
    assert (report.removed.entries, everything(area)) == (16, [])


@pytest.mark.usefixtures("several")
def test_what_changed_is_kept_by_every_process(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any]
) -> None:
    for number in range(16):
        area.file(f"{number % 4}/{number}", days=9)
    run = make_run()
    with prune.Root(str(area.path)) as root:
        planned = prune.plan(request_for(area, max_age="1d"), root, run)
        for number in range(8):
            area.file(f"{number % 4}/{number}", days=9, size=100)
        report = prune._Execution(planned, run).execute()
    assert report.removed.entries == report.kept.total == report.victims.total == 8
    assert {os.path.basename(item["path"]) for item in report.kept.items} == {str(n) for n in range(8)}
    assert {os.path.basename(item["path"]) for item in report.victims.items} == {str(n) for n in range(8, 16)}


def out_of_memory() -> None:
    raise MemoryError


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(calls: int, fate: Callable[[], None]) -> Callable[[], None]:
    """What meets its fate after so many calls in one process, and never in this one."""
    alone, left = os.getpid(), iter(range(calls))

    def call() -> None:
        assert os.getpid() != alone
        if next(left, None) is None:
            fate()

    return call


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("limits", [{"max_age": "1d"}, {"max_size": "1K"}], ids=["by age", "by size"])
@pytest.mark.parametrize(
    ("fate", "told"),
    [
        (out_of_memory, "^$"),
        (
            killed,
            r"/area: .* \(PID [0-9]+\) was ended by signal 9; .* goes on .* [1-9][0-9]* of its entries",
        ),
    ],
)
def test_what_a_process_dies_of_is_told_and_the_next_run_converges(
    area: Any,
    pruned: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    limits: Any,
    fate: Callable[[], None],
    told: str,
) -> None:
    deep_store(area)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", slowly(after(9, fate)))
        with pytest.raises(MemoryError if fate is out_of_memory else BesomError, match=told):
            pruned(area, **limits)
    assert not working()
    gone = 54 - len([name for name in everything(area) if name[-1].isdigit()])
    # Three others may have been at one.
    assert 6 <= gone < 54
    assert pruned(area, **limits).removed.entries >= 54 - gone
    assert "a/a/empty" in everything(area)
    assert len([name for name in everything(area) if name[-1].isdigit()]) == 0


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("to", ["one process", "all of them"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_what_a_signal_means_is_for_who_began_to_say(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    signum: int,
    to: str,
) -> None:
    """Ctrl+C goes to the whole group, and a daemon goes on for its drain_timeout."""
    deep_store(area)
    left = iter(range(3))

    def send() -> None:
        if next(left, None) is None:
            (os.killpg if to == "all of them" else os.kill)(
                os.getpgrp() if to == "all of them" else os.getpid(), signum
            )

    monkeypatch.setattr(os, "unlink", slowly(send))
    out, into = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            heard: list[int] = []
            signal.signal(signum, lambda signum, _frame: heard.append(signum))
            report = prune.prune(request_for(area, max_age="1d"), make_run())
            result = [report.removed.entries, report.failures.total, report.interrupted, bool(heard)]
            os.write(into, repr(result).encode())
        finally:
            os._exit(0)
    os.close(into)
    with open(out, "rb") as stream:
        assert stream.read().decode() == repr([54, 0, False, to == "all of them"])
    assert os.waitpid(pid, 0)[1] == 0
    assert [name for name in everything(area) if name[-1].isdigit()] == []


def test_a_shutdown_waits_for_no_process_that_has_no_room_for_more(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a job of long names takes is more than a pipe holds."""
    for number in range(6 * inventory.CHUNK):
        area.file(f"{number:0250}", days=9)
    monkeypatch.setattr(os, "unlink", slowly())
    shutdown, asked = Shutdown().listen(), []

    def stop() -> None:
        asked.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    def begin(phase: str, done: int, _total: int) -> None:
        if phase == "remove" and done and not timer.is_alive() and not asked:
            timer.start()

    timer = threading.Timer(0.2, stop)
    run = make_run(progress=begin, shutdown=shutdown, effort=Effort(workers=2))
    report = prune.prune(request_for(area, max_age="1d"), run)
    # A job takes more than two seconds.
    assert time.monotonic() - asked[0] < 1
    assert report.interrupted
    assert report.removed.entries == 6 * inventory.CHUNK - len(everything(area))


@pytest.mark.parametrize("limits", [{"max_age": "1d"}, {"max_entries": 1}], ids=["by age", "by number"])
def test_an_empty_directory_in_the_place_of_an_emptied_one_stays(
    area: Any, pruned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, limits: Any
) -> None:
    area.file("a/b/file", days=10)
    area.file("c/file", days=9)

    def unlink(name: str, **options: Any) -> None:
        os.remove(name, **options)
        if not os.path.exists(area.at("a/b/file")):
            os.rename(area.at("a/b"), area.at("moved"))
            os.mkdir(area.at("a/b"))
            monkeypatch.undo()

    monkeypatch.setattr(os, "unlink", unlink)
    assert pruned(area, **limits).removed.entries >= 1
    assert "moved" in everything(area)
    assert "a/b" in everything(area)


@pytest.mark.usefixtures("several")
def test_no_process_goes_on_without_the_one_it_works_for(
    area: Any, request_for: Callable[..., Any], make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is free once all of them have ended, which is soon."""
    for number in range(4000):
        area.file(f"{number % 20}/{number}", days=9)
    monkeypatch.setattr(os, "unlink", slowly())
    monkeypatch.setattr(inventory, "CHUNK", 400)
    pid = os.fork()
    if not pid:
        try:
            os.setsid()
            prune.prune(request_for(area, max_age="1d"), make_run())
        finally:
            os._exit(1)
    while len(everything(area)) > 4000:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    report = prune.prune(request_for(area, max_age="1d", max_entries=1), make_run(dry_run=True))
    fd = os.open(area.path, os.O_RDONLY)
    began = time.monotonic()
    fcntl.flock(fd, fcntl.LOCK_EX)
    # Each had 800 files to remove, of which it has finished one.
    assert time.monotonic() - began < 1
    assert 3000 < report.planned.entries <= len([name for name in everything(area) if "/" in name]) + 8
    os.close(fd)


@pytest.mark.usefixtures("several")
def test_where_no_process_can_be_started_one_does_it_all(
    area: Any, pruned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    deep_store(area)

    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(os, "fork", refuse)
    before = len(os.listdir("/proc/self/fd"))
    assert pruned(area, max_age="1d").removed.entries == 54
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("limits", [{"max_age": "1d"}, {"max_entries": 1}], ids=["by age", "by number"])
@pytest.mark.parametrize("after", [1, 3, 10, 40, 120])
@pytest.mark.parametrize("effort", [Effort(max_rate=2000), Effort(workers=3)], ids=["alone", "three"])
def test_a_shutdown_ends_every_process_and_the_figures_are_what_is_gone(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    limits: Any,
    after: int,
    effort: Effort,
) -> None:
    monkeypatch.setattr(os, "unlink", slowly())
    for number in range(400):
        area.file(f"{number % 20}/{number}", days=9)
    shutdown = Shutdown()
    calls = iter(range(after))

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "remove" and next(calls, None) is None:
            shutdown.request(signal.SIGTERM)

    report = prune.prune(
        request_for(area, **limits),
        make_run(progress=stop, shutdown=shutdown, effort=effort),
    )
    left = [name for name in everything(area) if "/" in name]
    assert report.interrupted
    assert report.removed.entries == 400 - len(left) < 400
    assert report.removed.bytes == report.bytes_before - report.bytes_after == 4096 * report.removed.entries
    assert report.planned.entries >= report.removed.entries
    if report.is_measured:
        assert report.bytes_before == 400 * 4096
    # What was emptied went, and no directory that is not.
    assert {name for name in everything(area) if "/" not in name} == {os.path.dirname(name) for name in left}
    assert not working()


@pytest.mark.usefixtures("several")
def test_what_was_not_read_to_its_end_says_so(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any]
) -> None:
    for number in range(400):
        area.file(f"{number % 20}/{number}", days=9)
    shutdown = Shutdown()

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "remove" and done:
            shutdown.request(signal.SIGTERM)

    effort = Effort(workers=1)
    report = prune.prune(
        request_for(area, max_age="1d"), make_run(progress=stop, shutdown=shutdown, effort=effort)
    )
    assert report.interrupted
    assert report.measured == "part"
    assert report.removed.entries == 400 - len([name for name in everything(area) if "/" in name])
    assert report.bytes_before - report.bytes_after == 4096 * report.removed.entries
    assert report.to_dict()["bytes_before"] is report.to_dict()["bytes_after"] is None


def many_trees(area: Any) -> None:
    """Forty old trees of nine inodes each, and a young one."""
    for number in range(40):
        area.tree(f"{number:02}", 9, {f"{sub}/{file}": 4096 for sub in "ab" for file in "123"})
    area.tree("young", 0, {"file": 4096})


class Many(NamedTuple):
    """A store of forty old entries and a young one, of either layout whose entries go whole."""

    layout: str
    make: Callable[[Any], None]
    # What somebody else does to three of them: the names that change, and the one that is locked.
    others: tuple[str, ...]
    lock: str
    # What follows the id in the names of an old one, how much is below the last, and the names of the young.
    names: tuple[str, ...]
    below: int
    young: set[str]

    def whole(self, area: Any, killed: bool = False) -> set[str]:
        """The ids of the old entries, none there in part; killed: of those that have their first name."""
        names = {name for name in os.listdir(area.path) if name[:2].isdigit()}
        ids = {name[:2] for name in names if not killed or name[2:] == self.names[0]}
        its = {id_ + ending for id_ in ids for ending in self.names}
        assert its <= names if killed else its == names
        assert all(len(everything(area, id_ + self.names[-1])) == self.below for id_ in ids)
        return ids


@pytest.fixture(params=["trees", "sessions"])
def many(request: pytest.FixtureRequest, session: Callable[..., None]) -> Many:
    if request.param == "trees":
        return Many("trees", many_trees, ("03/a/more", "20/b/1"), "07/b/2", ("",), 8, {"young"})

    def make(area: Any) -> None:
        for number in range(40):
            session(area, f"{number:02}", days=9, blobs={".dat": 4096, ".d/": 4096})
        session(area, "young", days=0.01)

    names, young = (".json", ".dat", ".d"), {"young.json", "young.dat"}
    return Many("sessions", make, ("03.more", "20.dat"), "07.d/sub/two", names, 3, young)


@pytest.mark.parametrize("limits", [{"max_age": "1d"}, {"max_entries": 1}], ids=["by age", "by number"])
def test_of_what_goes_whole_several_leave_what_one_leaves(
    area: Any,
    make_area: Callable[[str], Any],
    make_run: Callable[..., Run],
    request_for: Any,
    hold: Callable[..., Any],
    limits: Any,
    several: int,
    many: Many,
) -> None:
    """After the plan a name is added to one, a file of another changed, and one of a third locked."""
    other = make_area("other")
    seen: set[int] = set()
    held: set[int] = set()
    reports = []
    for store, effort in ((area, Effort()), (other, Effort(workers=1))):
        many.make(store)
        run = make_run(effort=effort, progress=lambda *_: seen.update(working()))
        with prune.Root(str(store.path)) as root:
            planned = prune.plan(request_for(store, many.layout, **limits), root, run, thorough=False)
            for name in many.others:
                store.file(name, days=8)
            held.add(hold(store.at(many.lock)).pid)
            reports.append(prune._Execution(planned, run).execute())
        left = {id_ + ending for id_ in ("03", "07", "20") for ending in many.names} | many.young
        assert set(os.listdir(store.path)) == left | {name.partition("/")[0] for name in many.others}
        kept = {os.path.basename(item["path"]) for item in reports[-1].kept.items}
        assert kept == {"03", "20", os.path.basename(many.lock)}
        gone = {os.path.basename(item["path"])[:2] for item in reports[-1].victims.items}
        assert len(gone) == 37
        assert not {"03", "07", "20"} & gone
    assert len(seen - held) >= several
    assert parts(reports[0]) == parts(reports[1])
    assert reports[0].removed.entries == 37
    assert working() == held


@pytest.mark.usefixtures("several")
def test_trees_that_share_an_inode_free_it_with_the_last_of_them(
    area: Any, pruned: Callable[..., Any]
) -> None:
    many_trees(area)
    for number in range(1, 40):
        os.link(area.at("00/a/1"), area.at(f"{number:02}/shared"))
        area.tree(f"{number:02}", 9, {})
    dry, report = (pruned(area, "trees", max_age="1d", dry_run=dry_run) for dry_run in (True, False))
    assert report.removed == report.planned == dry.planned
    assert report.bytes_before - report.bytes_after == report.removed.bytes
    assert os.listdir(area.path) == ["young"]


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("after", [0, 3, 20])
def test_a_shutdown_leaves_each_entry_whole_or_gone(
    area: Any,
    many: Many,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    after: int,
) -> None:
    many.make(area)
    monkeypatch.setattr(os, "unlink", slowly())
    shutdown = Shutdown()

    def stop(phase: str, done: int, _total: int) -> None:
        if phase == "remove" and done >= after:
            shutdown.request(signal.SIGTERM)

    run = make_run(progress=stop, shutdown=shutdown)
    report = prune.prune(request_for(area, many.layout, max_age="1d"), run)
    assert report.interrupted
    assert after <= report.removed.entries == 40 - len(many.whole(area)) < 40
    assert report.bytes_before - report.bytes_after == report.removed.bytes
    assert not any(name.startswith(".besom") for name in os.listdir(area.path))
    assert not working()


@pytest.mark.usefixtures("several")
def test_entries_that_killed_processes_were_at_are_finished_by_the_next_run(
    area: Any, many: Many, pruned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    many.make(area)
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", slowly(after(40, killed)))
        with pytest.raises(BesomError, match=r"ended by signal 9; .* [1-9][0-9]* of its entries"):
            pruned(area, many.layout, max_age="1d")
    assert not working()
    assert any(name.startswith(".besom-trash-") for name in os.listdir(area.path))
    many.whole(area, killed=True)
    assert not pruned(area, many.layout, max_age="1d").failures.total
    assert set(os.listdir(area.path)) == many.young


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("many", ["sessions"], indirect=True)
def test_a_session_that_gets_a_blob_while_others_go_stays(
    area: Any, many: Many, pruned: Callable[..., Any]
) -> None:
    """The run changes the store itself all the time; what somebody else does there is seen all the same."""
    many.make(area)
    move, done = session_removal._Hand._move, workers.shared_numbers(1)

    def moved(hand: Any, names: Any) -> Any:
        result = move(hand, names)
        done[0] += 1
        if done[0] == 5:
            mtime = os.stat(area.path).st_mtime_ns
            for id_ in sorted(many.whole(area))[-9:]:
                area.file(f"{id_}.more", days=9)
            # Within one tick of its clock a kernel does not tell two changes apart.
            while os.stat(area.path).st_mtime_ns == mtime:
                area.file("young.more", days=0)
                os.unlink(area.at("young.more"))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_removal._Hand, "_move", moved)
        report = pruned(area, "sessions", max_age="1d")
    more = {name[:2] for name in os.listdir(area.path) if name.endswith(".more")}
    assert (len(more), report.removed.entries) == (9, 31)
    assert {name[:2] for name in os.listdir(area.path) if not name.startswith("young")} == more
    assert {os.path.basename(item["path"]) for item in report.kept.items} == more


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("many", ["sessions"], indirect=True)
def test_where_nobody_else_is_the_store_is_not_listed_anew(
    area: Any, many: Many, pruned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by those that go on when others have removed their trashes."""
    many.make(area)
    listed, parts_now = workers.shared_numbers(1), session_removal.parts_now

    def counted(cursor: Any) -> Any:
        listed[0] += 1
        return parts_now(cursor)

    monkeypatch.setattr(session_removal, "parts_now", counted)
    assert pruned(area, "sessions", max_age="1d").removed.entries == 40
    assert listed[0] == 0


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("many", ["sessions"], indirect=True)
def test_locks_of_the_run_that_one_works_for_are_nobody_elses(
    area: Any, many: Many, pruned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On btrfs they are told by the number of the inode alone, which subvolumes share."""
    many.make(area)
    looked, identify = workers.shared_numbers(2), session_removal._identify

    def look(*arguments: Any) -> Any:
        st = os.stat(area.path)
        looked[0] += 1
        looked[1] += LockTable().holder(st.st_dev, st.st_ino) is not None
        return identify(*arguments)

    monkeypatch.setattr(session_removal, "_identify", look)
    pruned(area, "sessions", max_age="1d")
    assert looked[0] >= 30
    assert looked[1] == 0


@pytest.mark.parametrize("effort", [Effort(), Effort(workers=1)], ids=["several", "one"])
@pytest.mark.parametrize("many", ["sessions"], indirect=True)
def test_after_an_error_no_trash_is_held_on_to(
    area: Any,
    many: Many,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    effort: Effort,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a daemon, which lives on, would find it locked by itself."""
    many.make(area)
    identify, calls = session_removal._identify, iter(range(6))
    before = os.listdir("/proc/self/fd")

    def short(*arguments: Any) -> Any:
        if next(calls, None) is None:
            raise MemoryError
        return identify(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(session_removal, "_identify", short)
        patch.setattr(entry_removal, "_WORK", 8)
        with pytest.raises(MemoryError):
            prune.prune(request_for(area, "sessions", max_age="1d"), make_run(effort=effort))
    assert os.listdir("/proc/self/fd") == before
    assert not any(name.startswith(".besom") for name in os.listdir(area.path))
    assert 0 < len(many.whole(area)) < 40


class Errand:
    """A worker that notes what it began and ended, and does what it is told in between."""

    def __init__(self, done: Any, path: Path) -> None:
        self.done, self.path = done, path

    def work(self, job: tuple[str, Callable[[], None]]) -> None:
        name, act = job
        self.note(f"begun {name}")
        act()
        self.note(f"ended {name}")
        self.done[0] += 1

    def note(self, text: str) -> None:
        with open(self.path, "a", encoding="utf-8") as stream:
            stream.write(f"{text}\n")

    def result(self) -> str:
        return "well"

    def close(self) -> None:
        """It holds nothing."""


def nap() -> None:
    time.sleep(0.1)


def fail() -> None:
    raise OSError("the real reason")


def many_words(_word: str) -> None:
    """Whose argument is more than a pipe holds."""


@pytest.fixture
def crew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., workers.Workers[Any, str]]:
    """crew(hire=...): four threads in one process from the start."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
    monkeypatch.setattr(workers, "_FIRST", 4)

    def make(hire: Callable[[Any], Errand] | None = None) -> workers.Workers[Any, str]:
        hire = hire or (lambda done: Errand(done, tmp_path / "noted"))
        return workers.Workers(lambda done, *_: hire(done), lambda: None, Shutdown(), 16)

    return make


def work_off(crew: workers.Workers[Any, str], jobs: Iterable[tuple[str, Callable[[], Any]]]) -> list[str]:
    with crew:
        for job in jobs:
            crew.add(job)
        return crew.finish()


def noted(tmp_path: Path, what: str) -> set[str]:
    lines = (tmp_path / "noted").read_text().splitlines()
    return {line.partition(" ")[2] for line in lines if line.startswith(what)}


def test_where_no_thread_can_be_started_the_process_does_it_all(
    crew: Callable[..., workers.Workers[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    one = crew()
    assert work_off(one, [(str(number), bool) for number in range(20)]) == ["well"]
    assert one.done == 20


def test_an_error_waits_for_what_others_are_in_the_middle_of(
    crew: Callable[..., workers.Workers[Any, str]], tmp_path: Path
) -> None:
    """Also one that comes where a thread is to be started."""

    def hire(done: Any) -> Errand:
        if next(hired) == 2:
            fail()
        return Errand(done, tmp_path / "noted")

    for hires in (hire, None):
        hired = iter(range(9))
        jobs = [(str(number), fail if number == 7 and not hires else nap) for number in range(40)]
        with pytest.raises(BesomError, match=r"^the real reason$"):
            work_off(crew(hires), jobs)
        assert len(noted(tmp_path, "begun")) >= 2
        assert noted(tmp_path, "begun") - noted(tmp_path, "ended") <= {"7"}


def test_a_job_that_is_cut_off_hides_no_error(crew: Callable[..., workers.Workers[Any, str]]) -> None:
    """Who fails while more is being sent to it than a pipe holds."""
    long = partial(many_words, "x" * 3_000_000)
    jobs = [("first", nap), ("second", fail), *((str(number), long) for number in range(40))]
    with pytest.raises(BesomError, match=r"^the real reason$"):
        work_off(crew(), jobs)


def stand_by(begun: int, go: int) -> None:
    os.write(begun, b".")
    os.read(go, 1)


def test_more_may_be_at_work_at_once_also_on_jobs_that_were_given_before(
    crew: Callable[..., workers.Workers[Any, str]],
) -> None:
    """A trial of more would measure those that were at work before it."""
    (begun, begins), (go, goes) = os.pipe(), os.pipe()

    def wait_for(count: int) -> None:
        for _ in range(count):
            assert select.select([begun], [], [], 20)[0], "too few at work"
            os.read(begun, 1)

    with crew() as one:
        # Four are begun and five wait for them.
        for number in range(9):
            one.add((str(number), partial(stand_by, begins, go)))
        wait_for(4)
        one._pace.size = 8
        one._start()
        os.write(goes, bytes(4))
        wait_for(5)
        os.write(goes, bytes(5))
        one.finish()
        assert one.done == 9
    for fd in (begun, begins, go, goes):
        os.close(fd)


def test_what_gains_nothing_is_taken_back_from_processes_as_well(
    crew: Callable[..., workers.Workers[Any, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    with crew() as one:
        one._pace.size = 8
        one._start()
        assert [process.share[0] for process in one._processes] == [1] * 8
        one._pace.size = 2
        one._start()
        assert sum(process.share[0] for process in one._processes) == 2
        for number in range(99):
            one.add((str(number), bool))
        one.finish()
        assert one.done == 99


def test_children_of_a_killed_process_say_nothing(
    area: Any, request_for: Callable[..., Any], make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    many_trees(area)
    monkeypatch.setattr(entry_removal, "_WORK", 8)
    monkeypatch.setattr(os, "unlink", slowly())
    said, into = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            # As without pytest, which has its own ways (Python 3.9 has no name for that).
            threading.excepthook = getattr(threading, "__excepthook__", threading.excepthook)
            sys.stderr = open(into, "w", buffering=1)  # noqa: SIM115
            prune.prune(request_for(area, "trees", max_age="1d"), make_run())
        finally:
            os._exit(1)
    os.close(into)
    while len(os.listdir(area.path)) > 38:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    # Its end is that of the last that holds it.
    with open(said, "rb") as stream:
        assert stream.read() == b""


def test_no_more_go_in_a_second_than_may(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any]
) -> None:
    for number in range(60):
        area.file(f"{number % 4}/{number}", days=9)
    began = time.monotonic()
    report = prune.prune(request_for(area, max_age="1d"), make_run(effort=Effort(max_rate=100)))
    assert report.removed.entries == 60
    assert time.monotonic() - began >= 0.59


def test_a_shutdown_does_not_wait_for_a_slow_rate(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any]
) -> None:
    for layout in ("files", "trees"):
        store = area if layout == "files" else type(area)(area.path.with_name("trees"))
        for number in range(9):
            store.file(f"{number}/file", days=9)
            os.utime(store.at(str(number)), (0, 0))
        shutdown = Shutdown().listen()
        stop = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
        stop.start()
        began = time.monotonic()
        run = make_run(shutdown=shutdown, effort=Effort(max_rate=1))
        report = prune.prune(request_for(store, layout, max_age="1d"), run)
        assert time.monotonic() - began < 5
        stop.join()
        assert report.interrupted
        assert report.removed.entries < 9


def test_the_most_are_at_work_where_that_gains_and_a_few_where_it_does_not() -> None:
    waiting, computing = Pace(16), Pace(16)
    for pace, reached, other in ((waiting, lambda size: 1000 * size, 2), (computing, lambda _: 1000, 16)):
        sizes = [pace.observe(reached(pace.size)) for _ in range(500)]
        # A look at what the others would do now and then, and less and less often.
        looks = [at for at, (before, size) in enumerate(zip(sizes, sizes[1:])) if size == other != before]
        apart = [later - earlier for earlier, later in zip(looks, looks[1:])]
        assert set(sizes) == {2, 16}
        assert len(apart) >= 3
        assert apart == sorted(apart)
        assert apart[-1] > 100
        assert sizes.count(other) < 20
    alone = Pace(1)
    assert [alone.observe(1000) for _ in range(99)] == [1] * 99


def test_a_trial_that_was_lost_by_chance_is_made_again_soon() -> None:
    pace = Pace(16)
    rates = [3000, 6000, 6000, 5000]
    sizes = [pace.observe(rates[at] if at < len(rates) else 1000 * pace.size) for at in range(20)]
    # What comes up in the first is not what two reach.
    assert sizes[:4] == [2, 16, 16, 2]
    assert set(sizes[-10:]) == {16}


def test_what_pays_is_found_again_when_it_has_changed() -> None:
    pace = Pace(16)
    on_disk = [pace.observe(1000 * pace.size) for _ in range(200)]
    in_memory = [pace.observe(30000 - 500 * pace.size) for _ in range(400)]
    assert (on_disk[-1], in_memory[-1]) == (16, 2)


@pytest.mark.parametrize(
    ("limits", "directories", "most"),
    [("max_age=1", 64, 3000), ("max_age=1", 1, 4000), ("max_entries=1", 64, 6000)],
)
def test_memory_is_flat_by_age_and_small_by_number_and_in_one_directory(
    area: Any, limits: str, directories: int, most: int
) -> None:
    """Peak memory of the largest process at two sizes, in KiB."""
    program = """if True:
        import resource, sys
        from besom.policy import Policy, Store
        from besom.prune import Request, prune
        from besom.run import Run
        limit, path = sys.argv[1].split("="), sys.argv[2]
        report = prune(Request(Store(path, "files", Policy(**{limit[0]: int(limit[1])}))), Run())
        assert report.removed.entries >= int(sys.argv[3]) - 1, report
        # Its own ru_maxrss has that of who started it in it, getrusage(2).
        with open("/proc/self/status") as status:
            own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
        print(max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
    """
    peaks = []
    for files in (2_000, 60_000):
        for number in range(files):
            name = f"{area.path}/{number % directories:02}/{number:016x}"
            if number < directories:
                os.makedirs(os.path.dirname(name), exist_ok=True)
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT))
            os.utime(name, (number, number))
        command = [sys.executable, "-c", program, limits, str(area.path), str(files)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))

    # A plan of them all, or of one directory, takes some 40 bytes for each, beside what is being removed.
    assert peaks[1] - peaks[0] < most, peaks


@pytest.mark.parametrize("what", ["a", "a/b", "a/b/c"])
def test_files_whose_directory_is_locked_after_the_plan_are_kept(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    hold: Any,
    reasons: Any,
    what: str,
) -> None:
    for name in ("a/b/c/1", "a/b/c/2", "d/3", "4"):
        area.file(name, days=9)
    run = make_run()
    with prune.Root(str(area.path)) as root:
        planned = prune.plan(request_for(area, max_age="1d"), root, run)
        held = hold(area.at(what))
        report = prune._Execution(planned, run).execute()
    assert everything(area) == ["a", "a/b", "a/b/c", "a/b/c/1", "a/b/c/2"]
    assert set(reasons(report.kept)) == {"1", "2"}
    assert all(f"in use: locked by pid {held.pid} " in why for why in reasons(report.kept).values())
    assert (report.removed.entries, report.victims.total, report.bytes_after) == (2, 2, 2 * 4096)


@pytest.mark.usefixtures("several")
def test_a_lock_on_the_directory_at_hand_is_seen_with_the_next_batch(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    hold: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(6):
        area.file(f"d/{number}", days=9)
    held: list[Any] = []

    def lock() -> None:
        if not held:
            held.append(hold(area.at("d")))

    # All of it is planned.
    monkeypatch.setattr(inventory, "_LISTED", 6)
    monkeypatch.setattr(os, "unlink", slowly(lock))
    report = prune.prune(request_for(area, max_age="1d"), make_run(effort=Effort(workers=1)))
    assert (report.removed.entries, report.kept.total, len(area.files())) == (2, 4, 4)


@pytest.mark.parametrize(
    ("happens", "left", "why"),
    [
        ("replaced", 3, CHANGED),
        ("locked", 3, "in use: locked by pid"),
        ("a symlink", 3, CHANGED),
        ("moved", 3, ""),
        ("touched", 3, ""),
        ("linked", 0, ""),
    ],
)
def test_a_directory_that_was_listed_is_looked_at_as_it_is_when_its_files_go(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    hold: Any,
    reasons: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    happens: str,
    left: int,
    why: str,
) -> None:
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "b/2"):
        area.file(name, days=9)
    listed: list[str] = []
    look = file_removal.FileRemover.look

    def after(self: Any, criteria: Any, where: int, ident: Any, names: list[str]) -> None:
        name = self.found.names[where]
        listed.append(name)
        if happens == "locked":
            hold(area.at(name))
        elif happens == "touched":
            for each in names:
                os.utime(area.at(f"{name}/{each}"))
        elif happens == "linked":
            for each in names:
                os.link(area.at(f"{name}/{each}"), area.at(f"{each}.too"))
        else:
            os.rename(area.at(name), area.at("other"))
            if happens == "replaced":
                shutil.copytree(area.at("other"), area.at(name))
            if happens == "a symlink":
                os.symlink("other", area.at(name))
        look(self, criteria, where, ident, names)

    monkeypatch.setattr(file_removal.FileRemover, "look", after)
    monkeypatch.setattr(looking, "FILES", 1)
    report = prune.prune(request_for(area, max_age="1d"), make_run(effort=Effort(workers=1)))
    [name] = listed
    assert report.removed.entries == report.planned.entries == 6 - left
    assert report.victims.total == 6 - left
    place = "other" if happens in ("moved", "a symlink") else name
    assert len([each for each in area.files() if each.startswith(f"{place}/")]) == left
    assert all(reason.startswith(why) for reason in reasons(report.kept).values())
    assert set(reasons(report.kept)) == ({name} if why else set())
    assert (report.kept.total, report.anomalies.total) == (1 if why else 0, 0)
    # What has a name that was not listed is freed by nobody.
    assert report.removed.bytes == 3 * 4096


@pytest.mark.usefixtures("several")
@pytest.mark.parametrize("place", ["", "d/"], ids=["the root", "below"])
def test_a_directory_is_listed_once_while_its_files_go(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    # More names than one getdents(2) gives.
    monkeypatch.setattr(inventory, "_LISTED", 1000)
    monkeypatch.setattr(looking, "FILES", 100)
    for number in range(6000):
        area.file(f"{place}{number}", days=9 * (number % 2))
    os.mkfifo(area.at(f"{place}fifo"))
    request = request_for(area, max_age="1d")
    dry = prune.prune(request, make_run(dry_run=True))
    report = prune.prune(request, make_run())
    assert report.removed == report.planned == dry.planned
    assert report.removed.entries == 3000
    assert (report.entries_before, report.bytes_before) == (6000, dry.bytes_before)
    assert (report.kept.total, report.victims.total) == (1, 3000)


def test_what_nobody_has_looked_at_when_a_signal_came_is_said_not_to_be_measured(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(20):
        area.file(f"{number % 2}/{number}", days=9)
    shutdown = Shutdown()
    look = file_removal.FileRemover.look

    def too_late(self: Any, *names: Any) -> None:
        shutdown.request(signal.SIGTERM)
        look(self, *names)

    monkeypatch.setattr(file_removal.FileRemover, "look", too_late)
    run = make_run(shutdown=shutdown, effort=Effort(workers=1))
    report = prune.prune(request_for(area, max_age="1d"), run)
    assert (report.interrupted, report.measured) == (True, "part")
    assert report.removed.entries == 20 - len(area.files()) < 20
