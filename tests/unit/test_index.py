# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A run that remembers what a store came to says and does what one that walks all of it would."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import besom.survey
from besom.policy import Policy, Store
from besom.prune import Request, prune
from besom.report import Report, combine
from besom.run import Run
from besom.survey import Memory

DAY = 86400 * 10**9
HOUR = 3600 * 10**9
REALTIME_COARSE = 5  # clock_gettime(2); Python has no name for it
EXAMPLES = settings(max_examples=settings.default.max_examples * 3 // 5)


def tick() -> None:
    """Wait until the clock that the kernel stamps files with has gone on."""
    before = time.clock_gettime_ns(REALTIME_COARSE)
    while time.clock_gettime_ns(REALTIME_COARSE) == before:
        pass


class Keeper:
    """Keeps house in one area as the daemon does: each cycle with what is remembered, beside a full walk."""

    def __init__(self, area: Any, state: Path, now: int, **limits: Any) -> None:
        layout = limits.pop("layout", "files")
        self.area, self.state, self.now = area, state, now
        self.store = Store(str(area.path), layout, Policy.from_mapping(limits, layout=layout))
        state.mkdir(mode=0o700, exist_ok=True)

    def run(self, **options: Any) -> Run:
        return Run(now=lambda: self.now, lock_timeout=0.0, memory=Memory, **options)

    def walk(self) -> Report:
        return prune(Request(self.store), self.run(dry_run=True))

    def cycle(self) -> Report:
        report = prune(Request(self.store), self.run(index_dir=str(self.state), reconcile=24 * HOUR))
        tick()
        return report

    def compare(self) -> Report:
        expected, report = self.walk(), self.cycle()
        assert told(report) == told(expected)
        return report

    @property
    def file(self) -> Path:
        (path,) = self.state.iterdir()
        return path


def told(report: Report) -> dict[str, Any]:
    """What a report says of a store, whoever has found it out."""
    figures = report.to_dict()
    for name in ("kept", "anomalies", "victims"):
        figures[name] = sorted(figures[name], key=lambda one: str(one["path"]))
    names = (
        *("kept", "kept_total", "anomalies", "anomalies_total", "victims", "victims_total", "planned"),
        *("bytes_before", "warnings", "failures_total"),
    )
    return {**{name: figures[name] for name in names}, "entries": report.entries_before}


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stamps as fine as the kernel's clock, so that what was just made is believed after a tick."""
    monkeypatch.setattr(besom.survey, "time_ns", lambda: time.time_ns() + HOUR)


@pytest.fixture
def keeper(area: Any, tmp_path: Path, now: int, settled: None) -> Callable[..., Keeper]:
    return lambda **limits: Keeper(area, tmp_path / "state", now, **(limits or {"max_size": "1G"}))


# Where random changes happen; a directory may be below another, and a name may be of either kind.
PLACES = st.sampled_from(["", "a", "a/b", "a/b/c", "d", "d/e", "a2"])
MADE = ["make", "make", "make", "rename", "link", "outside", "symlink", "fifo", "replace"]
OPERATIONS = st.sampled_from(
    [*MADE, "delete", "out", "move", "swap", "remove", "exchange", "chmod", "lock", "unlock", "later"]
)
STEPS = st.lists(
    st.lists(st.tuples(OPERATIONS, PLACES, PLACES, st.integers(0, 9), st.integers(0, 5)), max_size=5),
    min_size=2,
    max_size=5,
)
LIMITS = st.sampled_from(
    [
        {"max_size": "1G"},
        {"max_size": "40K", "target_size": "20K"},
        {"max_entries": 5},
        {"max_age": "3d"},
        {"max_age": "3d", "min_age": "1d", "max_entries": 6, "order": "lru"},
        {"max_size": "30K", "min_age": "2d"},
    ]
)


class Changes:
    """Random changes of one area, whatever stands in it by then."""

    def __init__(self, area: Any, outside: Any, hold: Callable[..., Any]) -> None:
        self.area, self.outside, self.hold = area, outside, hold
        self.numbers = count()
        self.held: list[Any] = []

    def files(self) -> list[str]:
        return sorted(
            name for name in self.area.files() if stat.S_ISREG(os.lstat(self.area.at(name)).st_mode)
        )

    def make(self, place: str, _other: str, size: int, days: int) -> None:
        self.area.file(os.path.join(place, f"f{next(self.numbers)}"), days, size * 1500)

    def delete(self, _place: str, _other: str, which: int, _days: int) -> None:
        names = self.files()
        if names:
            os.unlink(self.area.at(names[which % len(names)]))

    def rename(self, place: str, _other: str, which: int, _days: int) -> None:
        names = self.files()
        if names and os.path.isdir(self.area.at(place)):
            os.rename(self.area.at(names[which % len(names)]), self.fresh(place))

    def link(self, place: str, _other: str, which: int, _days: int) -> None:
        names = self.files()
        if names and os.path.isdir(self.area.at(place)):
            os.link(self.area.at(names[which % len(names)]), self.fresh(place))

    def out(self, _place: str, _other: str, which: int, _days: int) -> None:
        names = self.files()
        if names:
            os.link(self.area.at(names[which % len(names)]), self.outside.at(f"o{next(self.numbers)}"))

    def outside_(self, place: str, _other: str, which: int, days: int) -> None:
        names = sorted(self.outside.files())
        path = self.outside.at(names[which % len(names)]) if names else self.outside.file("o", days, 5000)
        if os.path.isdir(self.area.at(place)):
            os.link(path, self.fresh(place))

    def move(self, place: str, other: str, _which: int, _days: int) -> None:
        old, new = self.area.at(place), self.area.at(other)
        if (
            place
            and other
            and self.is_dir(old)
            and not os.path.lexists(new)
            and self.is_dir(os.path.dirname(new))
            and not f"{other}/".startswith(f"{place}/")
        ):
            os.rename(old, new)

    def replace(self, place: str, _other: str, size: int, days: int) -> None:
        path = self.area.at(place)
        if place and self.is_dir(path):
            shutil.rmtree(path)
            os.mkdir(path)
            self.make(place, "", size, days)

    def exchange(self, place: str, other: str, _which: int, _days: int) -> None:
        one, two = self.area.at(place), self.area.at(other)
        apart = not f"{other}/".startswith(f"{place}/") and not f"{place}/".startswith(f"{other}/")
        if place and other and apart and self.is_dir(one) and self.is_dir(two):
            aside = self.outside.at(f"x{next(self.numbers)}")
            os.rename(one, aside)
            os.rename(two, one)
            os.rename(aside, two)

    def swap(self, place: str, other: str, _which: int, _days: int) -> None:
        path = self.area.at(place)
        if place and self.is_dir(path):
            os.rename(path, self.outside.at(f"s{next(self.numbers)}"))
            os.symlink(self.area.at(other) if other else str(self.outside.path), path)

    def remove(self, place: str, _other: str, _which: int, _days: int) -> None:
        path = self.area.at(place)
        if place and os.path.islink(path):
            os.unlink(path)
        elif place and self.is_dir(path):
            shutil.rmtree(path)

    def symlink(self, place: str, _other: str, _which: int, days: int) -> None:
        if os.path.isdir(self.area.at(place)):
            os.symlink("/etc", self.fresh(place))

    def fifo(self, place: str, _other: str, _which: int, _days: int) -> None:
        if os.path.isdir(self.area.at(place)):
            os.mkfifo(self.fresh(place))

    def chmod(self, place: str, _other: str, which: int, _days: int) -> None:
        if self.is_dir(self.area.at(place)):
            os.chmod(self.area.at(place), (0o755, 0o1777, 0o700)[which % 3])

    def lock(self, place: str, _other: str, which: int, _days: int) -> None:
        names = [*self.files(), *([place] if place and self.is_dir(self.area.at(place)) else [])]
        if names and not self.held:
            self.held.append(self.hold(self.area.at(names[which % len(names)])))

    def unlock(self, *_rest: Any) -> None:
        while self.held:
            self.held.pop().release()

    def fresh(self, place: str) -> str:
        return str(self.area.at(os.path.join(place, f"n{next(self.numbers)}")))

    @staticmethod
    def is_dir(path: str) -> bool:
        return os.path.isdir(path) and not os.path.islink(path)

    def do(self, operation: str, *arguments: Any) -> None:
        getattr(self, {"outside": "outside_"}.get(operation, operation))(*arguments)


@pytest.fixture
def areas(make_area: Callable[[str], Any], tmp_path: Path) -> Callable[[], tuple[Any, Any, Path]]:
    """New directories for each example: to keep house in, beside it, and for the state."""
    numbers = count()

    def make() -> tuple[Any, Any, Path]:
        number = next(numbers)
        for old in tmp_path.iterdir():
            shutil.rmtree(old)
        return make_area(f"in{number}"), make_area(f"out{number}"), tmp_path / f"state{number}"

    return make


@EXAMPLES
@given(steps=STEPS, limits=LIMITS, layout=st.sampled_from(["files", "files", "files", "trees"]))
def test_whatever_changes_each_cycle_says_and_does_what_a_walk_would(
    areas: Any,
    hold: Callable[..., Any],
    now: int,
    settled: None,
    steps: Any,
    limits: dict[str, Any],
    layout: str,
) -> None:
    area, outside, state = areas()
    keeper, changes = Keeper(area, state, now, layout=layout, **limits), Changes(area, outside, hold)
    for step in steps:
        for operation, *arguments in step:
            if operation == "later":
                keeper.now += DAY
            else:
                changes.do(operation, *arguments)
        keeper.compare()
    changes.unlock()
    keeper.compare()
    assert keeper.compare().removed.entries == 0


def test_a_store_that_did_not_change_is_known_from_the_index(
    keeper: Callable[..., Keeper], area: Any
) -> None:
    area.file("a/b/old", days=9)
    area.file("new")
    house = keeper(max_size="1G", max_age="30d")
    assert [house.compare().measured for _ in range(3)] == ["walk", "index", "index"]
    assert house.compare().bytes_before == 8192
    assert stat.S_IMODE(house.file.stat().st_mode) == 0o600


def test_an_index_of_what_did_not_change_is_not_written_again(
    keeper: Callable[..., Keeper], area: Any
) -> None:
    area.file("a/b", days=9)
    house = keeper()
    house.cycle()
    before = house.file.stat()
    os.mkfifo(area.at("fifo"))  # its directory is read each time
    house.compare()
    once = house.file.stat()
    house.compare()
    assert once.st_ino != before.st_ino
    assert house.file.stat().st_ino == once.st_ino


def test_an_entry_goes_as_soon_as_it_is_too_old_though_nothing_changed(
    keeper: Callable[..., Keeper], area: Any
) -> None:
    area.file("a/one", days=3)
    area.file("b/two", days=1)
    house = keeper(max_age="80h")
    assert [house.compare().measured for _ in range(2)] == ["walk", "index"]
    house.now += 8 * HOUR
    assert house.compare().measured == "index"
    house.now += 1
    assert house.compare().removed.entries == 1
    assert area.files() == {"b/two"}


def test_a_lock_is_reported_while_it_is_held(
    keeper: Callable[..., Keeper], area: Any, hold: Callable[..., Any]
) -> None:
    for name in ("a/one", "a/two", "b/c/three"):
        area.file(name, days=3)
    house = keeper()
    house.cycle()
    for path in ("a/one", "b/c"):
        held = hold(area.at(path))
        report = house.compare()
        assert (report.measured, report.kept.total) == ("index", 1)
        held.release()
        report = house.compare()
        assert (report.measured, report.kept.total, report.entries_before) == ("index", 0, 3)


def test_an_inode_counts_once_when_it_gets_a_second_name(
    keeper: Callable[..., Keeper], area: Any, outside: Any
) -> None:
    area.file("a/one", days=3, size=9000)
    area.dir("b/c")
    house = keeper()
    house.cycle()
    os.link(area.at("a/one"), area.at("b/c/again"))
    report = house.compare()
    assert (report.measured, report.bytes_before, report.entries_before) == ("index", 12288, 2)
    os.unlink(area.at("a/one"))
    assert house.compare().bytes_before == 12288
    os.link(area.at("b/c/again"), outside.at("far"))
    os.unlink(area.at("b/c/again"))
    assert house.compare().bytes_before == 0
    os.link(outside.at("far"), area.at("a/back"))
    assert house.compare().bytes_before == 12288


def test_growth_where_a_file_is_shows_after_the_reconcile(keeper: Callable[..., Keeper], area: Any) -> None:
    path = area.file("a/one", days=3)
    house = keeper(max_size="1G", max_age="90d")
    house.cycle()
    with open(path, "ab") as stream:
        stream.write(b"x" * 20_000)
    os.utime(path, ns=(house.now - 80 * DAY,) * 2)
    report = house.cycle()
    assert (report.measured, report.bytes_before) == ("index", 4096)
    house.now += 24 * HOUR - 1
    assert house.cycle().measured == "index"
    house.now += 1
    report = house.compare()
    assert (report.measured, report.bytes_before) == ("walk", 24576)
    house.now += 10 * DAY
    assert house.compare().removed.entries == 1


def test_what_was_read_just_after_a_change_is_read_again(
    area: Any, tmp_path: Path, now: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    area.file("a/one", days=3)
    house = Keeper(area, tmp_path / "state", now, max_size="1G")
    house.cycle()
    before = os.stat(area.at("a"))
    area.file("a/two", days=3)
    # As if it had happened in one tick of the clock that stamps files.
    real = os.stat

    def coarse(path: Any, **how: Any) -> Any:
        st = real(path, **how)
        return before if st.st_ino == before.st_ino else st

    monkeypatch.setattr(os, "stat", coarse)
    assert house.cycle().entries_before == 2


@pytest.mark.root
def test_a_directory_that_is_mounted_over_is_a_mount(
    keeper: Callable[..., Keeper], area: Any, outside: Any, tmp_path: Path
) -> None:
    area.file("a/b/one", days=3)
    area.file("c/d", days=3)
    outside.file("far")
    house = keeper()
    house.cycle()
    for path in ("a/b", "a", "c/d"):
        kind = outside.at("far") if path == "c/d" else str(outside.path)
        subprocess.run(["mount", "--bind", kind, area.at(path)], check=True)
        try:
            report = house.compare()
            assert report.kept.items == [{"path": area.at(path), "reason": "is a mount point"}]
            assert house.compare().entries_before == 1
        finally:
            subprocess.run(["umount", area.at(path)], check=True)
        report = house.compare()
        assert (report.kept.total, report.entries_before) == (0, 2)


@pytest.mark.root
def test_flags_and_a_file_system_that_turns_read_only_are_seen(
    keeper: Callable[..., Keeper], area: Any, chattr: Callable[[str, str], None], mount: Callable[..., None]
) -> None:
    area.file("a/one", days=3)
    house = keeper()
    house.cycle()
    for flag, count_ in (("+i", 1), ("-i", 0)):
        chattr(flag, area.at("a"))
        assert house.compare().anomalies.total == count_
    mount("--bind", str(area.path), str(area.path))
    assert [house.compare().measured for _ in range(2)] == ["walk", "index"]
    subprocess.run(["mount", "-o", "remount,bind,ro", str(area.path)], check=True)
    assert house.compare().anomalies.total == 1


@pytest.mark.parametrize("order", ["oldest", "lru"])
def test_a_limit_that_is_missed_is_met_as_a_walk_would(
    keeper: Callable[..., Keeper], area: Any, order: str
) -> None:
    for number in range(9):
        area.file(f"{number % 3}/{number}", days=9 - number, used=number)
    house = keeper(max_size="36K", target_size="20K", order=order)
    house.compare()
    assert house.compare().measured == "index"
    area.file("2/another", days=1)
    report = house.compare()
    assert (report.measured, report.removed.entries) == ("walk", 5)
    # The walk was remembered before anything went.
    assert [house.compare().measured for _ in range(2)] == ["index", "index"]


def test_trash_is_finished_and_other_files_stay(keeper: Callable[..., Keeper], area: Any) -> None:
    area.file("a/one", days=3)
    house = keeper()
    house.cycle()
    area.tree(".besom-trash-0123456789abcdef", days=3)
    assert house.compare().removed.entries == 1
    assert area.files() == {"a/one"}


def test_a_dry_run_neither_reads_nor_writes_an_index(keeper: Callable[..., Keeper], area: Any) -> None:
    path = area.file("a/one", days=3)
    house = keeper()
    options = {"index_dir": str(house.state), "reconcile": 24 * HOUR}
    assert prune(Request(house.store), house.run(dry_run=True, **options)).measured == "walk"
    assert os.listdir(house.state) == []
    house.cycle()
    with open(path, "ab") as stream:
        stream.write(b"x" * 20_000)
    report = prune(Request(house.store), house.run(dry_run=True, **options))
    assert (report.measured, report.bytes_before) == ("walk", 24576)


@pytest.mark.parametrize(
    "asked",
    [{"empty": True}, {"ids": frozenset(["a/one"])}, {"older_than": DAY}],
    ids=["empty", "ids", "age"],
)
def test_who_names_what_goes_has_the_store_walked(
    keeper: Callable[..., Keeper], area: Any, asked: dict[str, Any]
) -> None:
    area.file("a/one", days=3)
    house = keeper()
    house.cycle()
    run = house.run(index_dir=str(house.state), reconcile=24 * HOUR)
    assert prune(Request(house.store, **asked), run).removed.entries == 1


def test_without_a_period_or_a_place_every_cycle_walks(
    keeper: Callable[..., Keeper], area: Any, tmp_path: Path
) -> None:
    area.file("a/one", days=3)
    house = keeper()
    house.cycle()
    missing = str(tmp_path / "missing")
    for options in (
        {"index_dir": str(house.state), "reconcile": 0},
        {"index_dir": missing, "reconcile": HOUR},
    ):
        for _ in range(2):
            assert prune(Request(house.store), house.run(**options)).measured == "walk"
    assert not os.path.exists(missing)


def test_clocks_that_were_set_back_make_a_walk(keeper: Callable[..., Keeper], area: Any) -> None:
    area.file("a/one", days=3)
    house = keeper()
    house.cycle()
    house.now -= DAY
    assert house.compare().measured == "walk"


@pytest.mark.parametrize(
    "change",
    [{"layout": "trees"}, {"order": "lru"}, {"path": "/nowhere"}],
    ids=["layout", "order", "store"],
)
def test_the_index_of_another_store_layout_or_order_is_none(
    keeper: Callable[..., Keeper], area: Any, outside: Any, change: dict[str, str]
) -> None:
    area.file("a/one", days=3)
    outside.file("a/two", days=3)
    house = keeper()
    house.cycle()
    data = house.file.read_bytes()
    if "path" in change:
        house.store = Store(str(outside.path), "files", house.store.policy)
        house.cycle()
        for path in house.state.iterdir():
            path.write_bytes(data)
    else:
        limits = {"max_size": "1G", "order": change.get("order")}
        house.store = Store(str(area.path), change.get("layout", "files"), Policy.from_mapping(limits))
    report = house.compare()
    assert report.measured == "walk"


FIELDS = ["rows", "links", "names", "walked", "shared", "subject"]
ODD = st.sampled_from([-1, 0, 1, 2**31, 2**64, 10**400, 1.5, float("nan"), None, True, "x", [], {}, [[]] * 9])


@EXAMPLES
@given(data=st.data())
def test_a_file_that_is_no_sound_index_changes_nothing(
    areas: Any, now: int, settled: None, data: st.DataObject
) -> None:
    area, outside, state = areas()
    house = Keeper(area, state, now, max_entries=3)
    for name in ("a/one", "a/b/two", "c/three"):
        area.file(name, days=3)
    outside.file("precious", days=9)
    os.link(area.at("a/one"), area.at("c/again"))
    house.cycle()
    whole = house.file.read_bytes()
    how = data.draw(st.sampled_from(["bytes", "cut", "flip", "field", "columns"]))
    if how == "bytes":
        spoilt = data.draw(st.binary(max_size=600))
    elif how == "cut":
        spoilt = whole[: data.draw(st.integers(0, len(whole) - 1))]
    elif how == "flip":
        at = data.draw(st.integers(0, len(whole) - 1))
        spoilt = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    else:
        # With a checksum that is right: as somebody would make it who may write there.
        end = whole.index(b"\n", 4) + 1
        head, rest = json.loads(whole[4:end]), bytearray(whole[end:])
        if how == "field":
            head[data.draw(st.sampled_from(FIELDS))] = data.draw(ODD)
        else:
            parents = 4 * head["rows"]
            at = data.draw(st.sampled_from([*range(parents), *range(len(rest) - head["names"], len(rest))]))
            rest[at] = data.draw(st.sampled_from([0, 1, 0x2E, 0x2F, 0xFF]))
        body = json.dumps(head).encode() + b"\n" + rest
        spoilt = zlib.crc32(body).to_bytes(4, "big") + body
    house.file.write_bytes(spoilt)
    area.file("c/four", days=1)
    if how == "columns":
        # A tree of other directories that could be one: it may hide some, and nothing goes by it.
        expected, report = house.walk(), house.cycle()
        assert report.removed.entries in (0, expected.planned.entries)
        assert len(area.files()) == 4 - report.removed.entries
        house.now += 24 * HOUR
    house.compare()
    assert outside.files() == {"precious"}
    assert len(area.files()) == 3


@pytest.mark.root
@pytest.mark.parametrize("how", ["owner", "writable", "symlink", "fifo", "directory", "huge", "place"])
def test_an_index_that_others_could_have_written_is_none(
    keeper: Callable[..., Keeper], area: Any, tmp_path: Path, how: str
) -> None:
    area.file("a/one", days=3)
    house = keeper()
    house.cycle()
    path, copy = house.file, tmp_path / "copy"
    shutil.copy(path, copy)
    if how == "owner":
        os.chown(path, 65534, 65534)
    elif how == "writable":
        path.chmod(0o666)
    elif how == "huge":
        os.truncate(path, 10**12)
    elif how == "place":
        house.state.chmod(0o777)
    else:
        path.unlink()
        {"symlink": lambda: path.symlink_to(copy), "fifo": lambda: os.mkfifo(path), "directory": path.mkdir}[
            how
        ]()
    assert house.compare().measured == "walk"
    assert copy.read_bytes()


@pytest.mark.root
@pytest.mark.parametrize("why", ["full", "read-only"])
def test_a_state_directory_that_takes_nothing_costs_the_index_and_not_the_run(
    keeper: Callable[..., Keeper], area: Any, mount: Callable[..., None], why: str
) -> None:
    area.file("a/one", days=3)
    house = keeper()
    mount("-t", "tmpfs", "-o", "size=64k", "none", str(house.state))
    if why == "full":
        with open(house.state / "fill", "wb", buffering=0) as stream:
            while True:
                try:
                    stream.write(b"x" * 4096)
                except OSError:
                    break
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(house.state)], check=True)
    assert [house.compare().measured for _ in range(2)] == ["walk", "walk"]
    assert not [name for name in os.listdir(house.state) if "index" in name]


COUNTED = """
import sys, time
import besom.survey
from besom.policy import Policy, Store
from besom.prune import Request, prune
from besom.run import Run

besom.survey.time_ns = lambda: time.time_ns() + 3600 * 10**9
store = Store(sys.argv[1], "files", Policy.from_mapping({"max_size": "1G"}))
report = prune(Request(store), Run(memory=besom.survey.Memory, index_dir=sys.argv[2], reconcile=10**15))
print(report.measured, report.entries_before)
"""


def test_a_store_with_nothing_to_do_is_not_read(area: Any, tmp_path: Path) -> None:
    """Counted by strace: a listing of each directory that has changed, and a stat of each that has not."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    for number in range(60):
        area.file(f"{number % 20}/{number}", days=3)
    trace = tmp_path / "trace"

    def run() -> tuple[str, int, int]:
        calls = "trace=getdents64,newfstatat,stat,lstat,statx"
        command = ["strace", "-f", "-y", "-e", calls, "-o", str(trace), sys.executable, "-c", COUNTED]
        command += [str(area.path), str(state)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        lines = [line for line in trace.read_text().splitlines() if str(area.path) in line]
        listed = {line.split("<")[1].split(">")[0] for line in lines if "getdents64" in line}
        return told, len(listed), sum("getdents64" not in line for line in lines)

    def run_again(told: str, listed: int) -> int:
        # A lock that another program holds on an inode near by has a directory listed as well.
        for _ in range(9):
            tick()
            found = run()
            if found[:2] == (told, listed):
                break
        assert found[:2] == (told, listed)
        return found[2]

    assert run()[:2] == ("walk 60", 21)
    assert 20 <= run_again("index 60", 0) <= 30
    area.file("7/another", days=3)
    found = run()
    assert found[0] == "index 61"
    assert 1 <= found[1] < 21
    run_again("index 61", 0)


@pytest.fixture
def filled(area: Any, session: Callable[..., None], now: int) -> Callable[[str], None]:
    """filled(layout): two entries with directories in them, and what counts and is none."""

    def fill(layout: str) -> None:
        if layout == "trees":
            area.tree("one", 3, {"a/b": 5000})
            area.tree("two", 5, {"a/b": 5000, "c": 1})
            os.link(area.at("two/c"), area.at("one/c"))
            os.utime(area.at("one"), ns=(now - 3 * DAY,) * 2)
            area.file("loose", 9, 5000)
        else:
            session(area, "one", 3, {".dat": 5000, ".d/": 5000})
            session(area, "two", 5)
            area.dir("lost+found")

    return fill


@pytest.mark.parametrize("layout", ["trees", "sessions"])
def test_trees_and_sessions_are_known_as_a_whole_until_anything_changes(
    keeper: Callable[..., Keeper], area: Any, filled: Callable[[str], None], layout: str
) -> None:
    filled(layout)
    house = keeper(layout=layout, max_size="1G", max_age="9d")
    assert [house.compare().measured for _ in range(3)] == ["walk", "index", "index"]
    deep = {"trees": "two/a/new", "sessions": "one.d/sub/new"}[layout]
    area.file(deep, days=3)
    assert [house.compare().measured for _ in range(2)] == ["walk", "index"]
    os.unlink(area.at(deep))
    assert [house.compare().measured for _ in range(2)] == ["walk", "index"]
    area.file("another", days=3)
    assert house.compare().measured == "walk"
    os.unlink(area.at("another"))
    assert [house.compare().measured for _ in range(2)] == ["walk", "index"]
    house.now += 24 * HOUR
    assert [house.compare().measured for _ in range(2)] == ["walk", "index"]


@pytest.mark.parametrize("layout", ["trees", "sessions"])
def test_a_tree_or_session_goes_when_it_is_too_old_though_nothing_changed(
    keeper: Callable[..., Keeper], filled: Callable[[str], None], layout: str
) -> None:
    filled(layout)
    house = keeper(layout=layout, max_age="130h")
    assert [house.compare().measured for _ in range(2)] == ["walk", "index"]
    house.now += 10 * HOUR
    assert house.compare().measured == "index"
    house.now += 1
    report = house.compare()
    assert (report.measured, report.removed.entries) == ("walk", 1)


@pytest.mark.parametrize(
    ("layout", "path"),
    [("trees", "one/a/b"), ("trees", "two/a"), ("sessions", "one.dat"), ("sessions", "one.d/sub/two")],
)
def test_a_lock_anywhere_in_a_tree_or_session_is_reported(
    keeper: Callable[..., Keeper],
    area: Any,
    filled: Callable[[str], None],
    hold: Callable[..., Any],
    layout: str,
    path: str,
) -> None:
    filled(layout)
    house = keeper(layout=layout, max_size="1G")
    house.cycle()
    held = hold(area.at(path))
    report = house.compare()
    assert (report.measured, report.kept.total) == ("walk", 1)
    held.release()
    report = house.compare()
    assert (report.measured, report.kept.total) == ("index", 0)


def test_what_a_young_tree_holds_back_is_reported_when_it_is_old(
    keeper: Callable[..., Keeper], area: Any
) -> None:
    area.tree("one", 1)
    os.mkfifo(area.at("one/fifo"))
    area.tree(".besom-swap-two-1-01234567", 1)
    house = keeper(layout="trees", max_size="1G", min_age="30h")
    for _ in range(3):
        house.compare()
        house.now += 4 * HOUR


def test_sessions_that_are_none_are_reported_in_each_run(
    keeper: Callable[..., Keeper], area: Any, filled: Callable[[str], None], session: Callable[..., None]
) -> None:
    filled("sessions")
    session(area, "soon", days=-1)
    house = keeper(layout="sessions", max_size="1G")
    assert [house.compare().anomalies.total for _ in range(2)] == [1, 1]
    house.now += 25 * HOUR
    assert house.compare().anomalies.total == 0


def test_trash_that_another_is_at_work_on_is_reported_in_each_run(
    keeper: Callable[..., Keeper], area: Any, hold: Callable[..., Any]
) -> None:
    area.file("a/one", days=3)
    area.tree(".besom-trash-0123456789abcdef", days=3)
    house = keeper()
    held = hold(area.at(".besom-trash-0123456789abcdef"))
    assert [house.compare().anomalies.total for _ in range(3)] == [1, 1, 1]
    held.release()
    assert house.compare().removed.entries == 1


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("layout", ["files", "trees", "sessions"])
def test_where_enough_is_free_nothing_is_read(
    area: Any, filled: Callable[[str], None], pruned: Callable[..., Report], layout: str, dry_run: bool
) -> None:
    if layout == "files":
        area.file("a/one", days=3)
    else:
        filled(layout)
    report = pruned(area, layout, dry_run, min_free="1K")
    values = report.to_dict()
    assert (report.measured, report.changed) == ("statvfs", False)
    assert (values["bytes_before"], values["bytes_after"]) == (None, None)


def test_where_enough_is_free_what_is_remembered_has_the_figures(
    area: Any, tmp_path: Path, now: int, settled: None
) -> None:
    for number in range(3):
        area.file(f"a/{number}", days=3)
    house = Keeper(area, tmp_path / "state", now, min_free="1K")
    assert house.cycle().measured == "statvfs"
    # Something had to go, and was walked for.
    house.store = Store(str(area.path), "files", Policy.from_mapping({"max_entries": 2}))
    assert house.cycle().removed.entries == 1
    house.store = Store(str(area.path), "files", Policy.from_mapping({"min_free": "1K"}))
    report = house.cycle()
    assert (report.measured, report.to_dict()["bytes_before"], report.entries_before) == ("index", 8192, 2)
    house.now += 24 * HOUR
    assert house.cycle().measured == "statvfs"


@pytest.mark.parametrize("more", [{"max_age": "90d"}, {"max_entries": 9}, {"max_size": "1G"}])
def test_another_limit_beside_the_free_space_has_the_store_read(
    area: Any, pruned: Callable[..., Report], more: dict[str, Any]
) -> None:
    area.file("a/one", days=3)
    assert pruned(area, min_free="1K", **more).measured == "walk"


def test_trash_is_finished_also_where_enough_is_free(area: Any, pruned: Callable[..., Report]) -> None:
    area.file("a/one", days=3)
    area.tree(".besom-trash-0123456789abcdef", days=3)
    assert pruned(area, min_free="1K").removed.entries == 1
    assert area.files() == {"a/one"}


def test_too_little_free_space_has_the_oldest_go(area: Any, pruned: Callable[..., Report]) -> None:
    area.file("a/one", days=3)
    free = os.statvfs(area.path)
    more = free.f_bavail * free.f_frsize + 2**40
    report = pruned(area, min_free=str(more))
    assert (report.measured, report.removed.entries, report.missed) == ("walk", 1, True)


def test_sums_of_reports_are_unknown_where_one_is(area: Any) -> None:
    reports = [Report("prune", "a", bytes_before=5, bytes_after=3), Report("prune", "b", measured="index")]
    assert combine("housekeep", reports).to_dict()["bytes_after"] == 3
    reports.append(Report("prune", "c", measured="statvfs"))
    total = combine("housekeep", reports).to_dict()
    assert (total["bytes_before"], total["bytes_after"], total["measured"]) == (None, None, "statvfs")
