# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A large store is read by several, and what comes of it is what one alone would have found."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from typing import Any

import pytest

from besom import file_reading, inventory, looking, workers
from besom.effort import Effort
from besom.errors import BesomError, Interrupted
from besom.inventory import Inventory, read_files
from besom.prune import prune
from besom.report import CAP
from besom.root import Root
from besom.run import Run

DAY = 86400 * 10**9


@pytest.fixture(params=["processes", "threads"])
def helped(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a small store is read by several, with a few files each."""
    monkeypatch.setattr(inventory, "_ALONE", 0)
    monkeypatch.setattr(inventory, "_SMALL", 0)
    monkeypatch.setattr(inventory, "_LISTED", 5)
    monkeypatch.setattr(file_reading, "CHUNK", 3)
    monkeypatch.setattr(looking, "FILES", 2)
    if request.param == "threads":
        monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0})
        monkeypatch.setattr(workers, "_FIRST", 4)


def read(area: Any, make_run: Callable[..., Run], most: int = 16, **options: Any) -> Inventory:
    with Root(str(area.path)) as root:
        return read_files(root, make_run(effort=Effort(workers=most)), **options)


def facts(found: Inventory) -> dict[str, Any]:
    """All that a plan goes by."""
    rows = sorted(
        (found.path(where, name), *row)
        for chunk in found.chunks
        for name, where, *row in zip(
            *(chunk.names, chunk.where, chunk.inode, chunk.mtime, chunk.size, chunk.key),
            *(chunk.bytes, chunk.freed, chunk.victims),
        )
    )
    return {
        "rows": rows,
        "sums": (found.usage, found.entries, found.young, found.oldest, found.newest),
        "kept": sorted((item["path"], item["reason"]) for item in found.kept.items),
        "anomalies": sorted((item["path"], item["reason"]) for item in found.anomalies.items),
        "links": {ident: (link.links, link.seen, link.listed) for ident, link in found.links.items()},
    }


def mixed_store(area: Any) -> None:
    """Files of several sizes and ages, links of one inode here and there, and what is no entry."""
    for place in ("", "a/", "a/b/", "c/", "c/d/e/"):
        for number in range(17):
            area.file(f"{place}{number}", days=number % 7, size=number * 3000, used=number % 5)
        area.symlink(f"{place}link", "/etc", days=3)
        os.mkfifo(area.at(f"{place}fifo"))
    for number, place in enumerate(("z", "a/z", "a/b/z", "c/z", "c/d/e/z", "c/d/e/y", "a/y")):
        os.link(area.at("16" if number % 2 else "c/12"), area.at(place))
    os.chmod(area.dir("a/b"), 0o1777)  # noqa: S103


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize("lru", [False, True], ids=["oldest", "lru"])
def test_several_find_what_one_finds(
    area: Any, make_run: Callable[..., Run], hold: Any, now: int, lru: bool
) -> None:
    mixed_store(area)
    hold(area.at("a/5"))
    hold(area.at("c/d/e"))
    options = {"lru": lru, "horizon": now - DAY, "grace": now - 2 * DAY}
    alone = read(area, make_run, 1, **options)
    several = read(area, make_run, **options)
    assert facts(several) == facts(alone)
    assert len(several.chunks) >= 8
    assert len(alone.links) == 2
    assert several.kept.total == (5 if lru else 6)


def test_a_store_is_read_by_several_once_it_is_large(
    area: Any, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    forks: list[int] = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(1) or fork())
    for number in range(inventory._ALONE):
        area.file(f"{number % 2}/{number}")
    small = facts(read(area, make_run))
    assert not forks
    for number in range(2000):
        area.file(f"{number % 7}/more-{number}")
    large = facts(read(area, make_run))
    assert forks
    assert large == facts(read(area, make_run, 1)) != small


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize(
    ("happens", "left_out", "why"),
    [
        ("locked", 4, "in use"),
        ("replaced", 4, "changed"),
        ("moved", 4, ""),
        ("a symlink", 4, "changed"),
        ("files gone", 4, ""),
    ],
)
def test_what_changes_between_the_list_and_the_look_is_left_out(
    area: Any,
    make_run: Callable[..., Run],
    hold: Any,
    reasons: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    happens: str,
    left_out: int,
    why: str,
) -> None:
    for number in range(4):
        area.file(f"a/{number}")
        area.file(f"b/{number}")
    look = file_reading.FileReader.look
    listed: list[str] = []

    def after(self: Any, criteria: Any, where: int, ident: Any, names: list[str]) -> None:
        name = self._found.names[where]
        if name and not listed:
            listed.append(name)
            if happens == "locked":
                hold(area.at(name))
            elif happens == "files gone":
                for each in names:
                    os.unlink(area.at(f"{name}/{each}"))
            else:
                os.rename(area.at(name), area.at("a-other"))
            if happens == "replaced":
                shutil.copytree(area.at("a-other"), area.at(name))
            if happens == "a symlink":
                os.symlink("a-other", area.at(name))
        look(self, criteria, where, ident, names)

    monkeypatch.setattr(file_reading.FileReader, "look", after)
    found = read(area, make_run)
    [name] = listed
    assert found.entries == len(facts(found)["rows"]) == 8 - left_out
    assert set(reasons(found.kept)) == ({name} if why else set())
    assert all(reason.startswith(why) for reason in reasons(found.kept).values())


@pytest.mark.usefixtures("helped")
def test_who_holds_the_store_itself_hides_nothing_of_it(
    area: Any, make_run: Callable[..., Run], hold: Any
) -> None:
    """As another run does while its plan is asked for."""
    mixed_store(area)
    expected = facts(read(area, make_run, 1))
    hold(area.path)
    assert facts(read(area, make_run)) == expected


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize("most", [1, 16])
@pytest.mark.parametrize("entries", range(1, 7))
def test_of_names_of_one_inode_those_go_that_the_dry_run_names(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any], most: int, entries: int
) -> None:
    names = ["a/1", "b/1", "b/0", "a/0", "c/0", "c/1"]
    area.file(names[0], days=9)
    for name in names[1:]:
        area.dir(os.path.dirname(name))
        os.link(area.at(names[0]), area.at(name))
    request = request_for(area, max_entries=entries)
    dry = prune(request, make_run(dry_run=True))
    done = prune(request, make_run(effort=Effort(workers=most)))
    assert dry.victims.items == done.victims.items
    assert area.files() == set(names) - {
        os.path.relpath(item["path"], area.path) for item in dry.victims.items
    }
    assert (done.removed.entries, len(area.files())) == (6 - entries, entries)


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize("limits", [{"max_entries": 50}, {"max_age": "1d"}], ids=["number", "age"])
def test_of_many_victims_the_same_are_named_whoever_finds_them(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any], limits: dict[str, Any]
) -> None:
    for number in range(300):
        area.file(f"{number % 3}/{number * 37 % 101}/{number}", days=2 + number * 7 % 5)
    request = request_for(area, **limits)
    alone, several = (prune(request, make_run(dry_run=True, effort=Effort(workers=most))) for most in (1, 16))
    done = prune(request, make_run())
    assert alone.victims.items == several.victims.items == done.victims.items
    assert len(done.victims.items) == CAP < done.victims.total


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize("most", [1, 16])
@pytest.mark.parametrize("limits", [{"max_entries": 1}, {"max_age": "1d"}], ids=["number", "age"])
def test_a_file_that_cannot_be_looked_at_stays_and_hides_no_other(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    reasons: Callable[..., dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    limits: dict[str, Any],
) -> None:
    for number in range(9):
        area.file(f"a/{number}", days=9)
        area.file(f"a/b/c/{number}", days=8)
    area.file("young", days=0.5)
    look = os.stat

    def stat(name: Any, **options: Any) -> os.stat_result:
        if name == "3":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return look(name, **options)

    monkeypatch.setattr(os, "stat", stat)
    report = prune(request_for(area, **limits), make_run(effort=Effort(workers=most)))
    monkeypatch.undo()
    assert area.files() == {"a/3", "a/b/c/3", "young"}
    assert reasons(report.anomalies) == dict.fromkeys("ac", "cannot be read: Input/output error")
    assert (report.anomalies.total, report.entries_before, report.failures.total) == (2, 17, 0)


@pytest.mark.usefixtures("helped")
@pytest.mark.parametrize("when", ["look", "settle"])
def test_a_signal_ends_the_reading_and_nothing_goes(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    when: str,
) -> None:
    """Also one that comes when all names are listed, and not all are looked at."""
    mixed_store(area)
    before, run, there = area.names(), make_run(), getattr(file_reading.FileReader, when)

    def too_late(self: Any, *names: Any) -> None:
        run.shutdown.request(signal.SIGTERM)
        there(self, *names)

    monkeypatch.setattr(file_reading.FileReader, when, too_late)
    with pytest.raises(Interrupted):
        prune(request_for(area, max_entries=1), run)
    assert area.names() == before


@pytest.mark.usefixtures("helped")
def test_a_process_that_is_killed_ends_the_reading_in_one_sentence(
    area: Any,
    make_run: Callable[..., Run],
    request_for: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mixed_store(area)
    before = area.names()
    monkeypatch.setattr(file_reading._Hand, "work", lambda _self, _job: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(BesomError, match=rf"^{area.path}: A process of this run .* by signal 9; .*\.$"):
        prune(request_for(area, max_entries=1), make_run())
    assert area.names() == before
