# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""For any store and any policy: what a dry run says is what the run does, and that is what it should do."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from datetime import datetime, timezone
from itertools import count
from pathlib import PurePath
from typing import Any
from unittest.mock import ANY

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from besom import inventory, looking
from besom.housekeep import housekeep
from besom.policy import Policy, Store, Temps
from besom.prune import Request, prune
from besom.sweep import sweep

DAY = 86400 * 10**9
# Each makes trees and prunes them, so fewer than a profile asks for.
EXAMPLES = settings(max_examples=settings.default.max_examples * 2 // 5)

PLACES = st.sampled_from(["", "a", "a/b", "c", ".temp-x", ".temp-y/z"])
TOPS = st.sampled_from(
    ["one", "two", "two/sub", "three", ".temp-x", ".besom-trash-0123456789abcdef", "lost+found"]
)
SIZES = st.sampled_from([0, 1, 4096, 4097, 10_000, 70_000])
DAYS = st.integers(0, 6)
# What to make: a new file, or a link to one of those made before (elsewhere: outside of all stores).
KINDS = st.sampled_from(["file", "file", "file", "link", "link", "symlink", "elsewhere", "fifo"])
FILES = st.lists(st.tuples(KINDS, PLACES, SIZES, DAYS, DAYS, st.integers(0, 20)), max_size=14)
TREES = st.lists(st.tuples(KINDS, TOPS, SIZES, DAYS, DAYS, st.integers(0, 20)), max_size=14)


@st.composite
def policies(draw: st.DrawFn) -> dict[str, Any]:
    limits: dict[str, Any] = {}
    order = {"order": draw(st.sampled_from(["oldest", "lru"]))}
    if not draw(st.integers(0, 3)):
        # Done while the store is still read.
        return {"max_age": f"{draw(st.integers(1, 6))}d"} | order
    if draw(st.booleans()):
        limits["max_size"] = draw(st.sampled_from([1, 4096, 12_000, 40_000, 90_000, 10**6]))
        if draw(st.booleans()):
            limits["target_size"] = max(1, limits["max_size"] * draw(st.integers(0, 100)) // 100)
    if draw(st.booleans()):
        limits["max_entries"] = draw(st.integers(1, 6))
    if draw(st.booleans()):
        limits["max_age"] = f"{draw(st.integers(1, 6))}d"
    if draw(st.booleans()):
        limits["min_age"] = f"{draw(st.integers(1, int(limits.get('max_age', '6d')[:-1])))}d"
    if not limits or draw(st.booleans()):
        limits["max_entries"] = draw(st.integers(1, 6))
    return limits | order


def build(area: Any, outside: Any, entries: list[tuple[Any, ...]], paths: list[str], now: int) -> None:
    """Make the entries in area; paths: the files made so far, here or in other areas."""
    for number, (kind, place, size, days, used, which) in enumerate(entries):
        path = area.at(os.path.join(place, str(number)))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if kind == "link" and paths:
            os.link(paths[which % len(paths)], path, follow_symlinks=False)
            continue
        if kind == "elsewhere":
            os.link(outside.file(f"{area.path.name}{number}", days, size, used), path)
        elif kind == "symlink":
            area.symlink(path, "/etc", days)
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            area.file(path, days, size, used)
        paths.append(path)


def settle(area: Any, now: int) -> None:
    """Give directories the age of four days, so that those of their contents count."""
    for name in area.names():
        if os.path.isdir(area.at(name)) and not os.path.islink(area.at(name)):
            os.utime(area.at(name), ns=(now - 4 * DAY,) * 2)


@pytest.fixture
def fresh(make_area: Callable[[str], Any]) -> Callable[..., Any]:
    """fresh(NAME...): new areas, for each example; those of the one before are gone."""
    numbers = count()
    old: list[Any] = []

    def make(*names: str) -> list[Any]:
        for area in old:
            shutil.rmtree(area.path)
        number = next(numbers)
        old[:] = [make_area(f"{name}-{number}") for name in names]
        return old

    return make


def expected_files(area: Any, limits: dict[str, Any], now: int) -> int:
    """How many of the oldest have to go, by trying none, one, two...; from what stat says."""
    policy = Policy.from_mapping(limits)
    entries = []
    for name in area.files():
        st_ = os.lstat(area.at(name))
        if not name.startswith("lost+found/") and (
            os.path.islink(area.at(name)) or os.path.isfile(area.at(name))
        ):
            key = max(st_.st_mtime_ns, st_.st_atime_ns) if policy.order == "lru" else st_.st_mtime_ns
            entries.append((key, st_.st_ino, st_.st_blocks * 512))
    entries.sort()
    may_go = [e for e in entries if policy.min_age is None or e[0] < now - policy.min_age]

    def usage(rows: list[tuple[int, int, int]]) -> int:
        return sum({inode: size for _, inode, size in rows}.values())

    over = policy.max_size is not None and usage(entries) > policy.max_size
    target = (policy.target_size or policy.max_size) if over else None
    for number in range(len(may_go) + 1):
        stay = entries[number:]
        if (
            (target is None or usage(stay) <= target)
            and (policy.max_entries is None or len(stay) <= policy.max_entries)
            and (policy.max_age is None or not stay or stay[0][0] >= now - policy.max_age)
        ):
            return number
    return len(may_go)


@EXAMPLES
@given(entries=FILES, limits=policies(), by_several=st.booleans())
def test_a_prune_of_files_does_what_its_dry_run_says_and_takes_exactly_the_oldest(
    fresh: Callable[..., Any],
    make_run: Callable[..., Any],
    snapshot: Callable[..., Any],
    allocated: Callable[..., int],
    reasons: Callable[..., Any],
    now: int,
    entries: list[tuple[Any, ...]],
    limits: dict[str, Any],
    by_several: bool,
) -> None:
    area, outside = fresh("store", "outside")
    build(area, outside, entries, [], now)
    request = Request(Store(str(area.path), "files", Policy.from_mapping(limits)))
    before, files, held = snapshot(area), area.files(), allocated(area, outside)
    oldest = sorted((os.lstat(area.at(name)).st_mtime_ns, name) for name in files)

    dry = prune(request, make_run(dry_run=True))
    assert snapshot(area) == before
    assert dry.planned.entries == expected_files(area, limits, now)

    with pytest.MonkeyPatch.context() as patch:
        if by_several:
            patch.setattr(inventory, "_ALONE", 0)
            patch.setattr(inventory, "_SMALL", 0)
            patch.setattr(looking, "FILES", 2)
        real = prune(request, make_run())
    gone = files - area.files()
    assert real.removed == real.planned == dry.planned
    assert {os.path.relpath(item["path"], area.path) for item in dry.victims.items} == gone
    assert len(gone) == dry.planned.entries
    assert real.removed.bytes == held - allocated(area, outside)
    assert (real.bytes_before, real.bytes_after) == (dry.bytes_before, dry.bytes_after)
    assert (reasons(real.kept), real.warnings) == (reasons(dry.kept), dry.warnings)
    assert (real.failures.total, real.anomalies.total) == (0, 0)
    if limits["order"] == "oldest":
        newest_gone = max([age for age, name in oldest if name in gone], default=0)
        stay = [age for age, name in oldest if name not in gone and not os.path.exists(f"{area.at(name)}/")]
        assert all(age >= newest_gone or reasons(real.kept) for age in stay)

    again = prune(request, make_run())
    assert (again.planned.entries, again.changed) == (0, False)


@EXAMPLES
@given(entries=TREES, limits=policies())
def test_a_prune_of_trees_does_what_its_dry_run_says_whole(
    fresh: Callable[..., Any],
    make_run: Callable[..., Any],
    snapshot: Callable[..., Any],
    allocated: Callable[..., int],
    reasons: Callable[..., Any],
    now: int,
    entries: list[tuple[Any, ...]],
    limits: dict[str, Any],
) -> None:
    area, outside = fresh("store", "outside")
    build(area, outside, entries, [], now)
    settle(area, now)
    request = Request(Store(str(area.path), "trees", Policy.from_mapping(limits)))
    before, files = snapshot(area), area.files()
    held = allocated(area, outside, directories=True)

    dry = prune(request, make_run(dry_run=True))
    assert snapshot(area) == before
    real = prune(request, make_run())
    tops = {os.path.basename(item["path"]) for item in dry.victims.items}
    assert files - area.files() == {name for name in files if name.split("/")[0] in tops}
    assert real.removed == real.planned == dry.planned
    assert real.removed.bytes == held - allocated(area, outside, directories=True)
    assert (real.bytes_before, real.bytes_after) == (dry.bytes_before, dry.bytes_after)
    assert (real.failures.total, real.anomalies.total) == (0, 0)

    again = prune(request, make_run())
    assert (again.planned.entries, again.changed) == (0, False)


# A name, what is written into it if it is metadata, its size, and how many days ago it was written and read.
NAMES = st.sampled_from(
    [
        *("a.json", "a.b.json", "b.json", "b.json", "a.json.json", ".json", "c.json"),
        *(
            "a",
            "a.x",
            "a.b",
            "a.b.x",
            "a.b.json.x",
            "b",
            "b.d/1",
            "b.d/2/3",
            "c",
            "c.x",
            "d.x",
            "lost+found/x",
        ),
    ]
)
CREATED = st.one_of(
    st.integers(0, 6),
    st.integers(0, 6).map(lambda days: f"{days}"),
    st.sampled_from([None, -9, "", "never", "[1]", '{"created_at": 1} ']),
)
NOISE = st.lists(st.tuples(KINDS, NAMES, CREATED, SIZES, DAYS, DAYS, st.integers(0, 20)), max_size=6)


@st.composite
def sessions(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Sessions with a blob or two, most of them sound, and names at random beside them."""
    rows = []
    for id_ in draw(
        st.lists(st.sampled_from(["a", "a.b", "b", "c", "a.json", "e"]), unique=True, max_size=5)
    ):
        rows.append(("file", f"{id_}.json", draw(DAYS | CREATED), 0, draw(DAYS), draw(DAYS), 0))
        for end in draw(st.lists(st.sampled_from(["", ".x", ".d/1", ".d/2"]), unique=True, min_size=1)):
            rows.append((draw(KINDS), id_ + end, None, draw(SIZES), draw(DAYS), draw(DAYS), draw(DAYS)))
    return rows + draw(NOISE)


def write_sessions(area: Any, entries: list[tuple[Any, ...]], now: int) -> dict[str, int]:
    """Make the names; returns when each session with sound metadata was created."""
    created: dict[str, int] = {}
    paths: list[str] = []
    for kind, name, when, size, days, used, which in entries:
        if any(os.path.isfile(area.at(str(top))) for top in PurePath(name).parents):
            continue
        path, id_ = area.at(name), name[: -len(".json")]
        if os.path.lexists(path):
            continue
        if name.endswith(".json"):
            text = f'{{"created_at": {when}}}'
            if isinstance(when, int):
                created[id_] = now - when * DAY
                text = json.dumps({"created_at": (now - when * DAY) // 10**9})
            elif when and when.isdigit():
                created[id_] = now - int(when) * DAY
                text = json.dumps(
                    {"created_at": f"{datetime.fromtimestamp(created[id_] // 10**9, timezone.utc)}"}
                )
            if not id_ or (isinstance(when, int) and when < 0):
                created.pop(id_, None)
            area.file(name, days)
            with open(path, "w") as stream:
                stream.write(text)
            os.utime(path, ns=(now - used * DAY, now - days * DAY))
        elif kind == "link" and paths:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.link(paths[which % len(paths)], path, follow_symlinks=False)
        elif kind == "fifo":
            os.makedirs(os.path.dirname(path), exist_ok=True)
            os.mkfifo(path)
            age_of(path, now, days)
        else:
            paths.append(area.file(name, days, size, used))
    return created


def age_of(path: str, now: int, days: int) -> None:
    os.utime(path, ns=(now - days * DAY,) * 2)


def expected_sessions(area: Any, created: dict[str, int], limits: dict[str, Any], now: int) -> list[str]:
    """Which sessions have to go, by trying none, one, two... of the oldest; from what stat says."""
    policy = Policy.from_mapping(limits, layout="sessions")
    everything = [name for name in area.names() if not name.startswith("lost+found")]
    tops = {name for name in everything if "/" not in name}
    ids = {name[:-5] for name in tops if name.endswith(".json") and name != ".json"}
    belong: dict[str, list[str]] = {id_: [] for id_ in ids}
    for name in everything:
        top = name.split("/")[0]
        fits = [id_ for id_ in ids if top == id_ or top.startswith(id_ + ".")]
        if top[:-5] in ids and top.endswith(".json"):
            fits = [top[:-5]]
        if fits:
            belong[max(fits, key=len)].append(name)
    rows = []
    for id_ in ids & created.keys():
        own = belong[id_]
        stats = {name: os.lstat(area.at(name)) for name in own}
        newest = max(one.st_mtime_ns for one in stats.values())
        read = [
            one.st_atime_ns
            for name, one in stats.items()
            if name != f"{id_}.json" and not stat.S_ISDIR(one.st_mode)
        ]
        key = {"created": created[id_], "oldest": newest, "lru": max([newest, *read])}[policy.order]
        grace = now + DAY if policy.min_age is None else now - policy.min_age
        fifo = any(stat.S_ISFIFO(one.st_mode) for name, one in stats.items() if "/" not in name)
        if len({name.split("/")[0] for name in own}) > 1:
            free = not fifo and key < grace and newest <= grace
            rows.append((key, stats[f"{id_}.json"].st_ino, id_, free))
    free = sorted(row[:3] for row in rows if row[3])

    def usage(names: set[str]) -> int:
        found = [os.lstat(area.at(name)) for name in names]
        return sum({one.st_ino: one.st_blocks * 512 for one in found}.values())

    over = policy.max_size is not None and usage(set(everything)) > policy.max_size
    target = (policy.target_size or policy.max_size) if over else None
    for number in range(len(free) + 1):
        going = [id_ for _key, _inode, id_ in free[:number]]
        stay = set(everything) - {name for id_ in going for name in belong[id_]}
        if (
            (target is None or usage(stay) <= target)
            and (policy.max_entries is None or len(rows) - number <= policy.max_entries)
            and (policy.max_age is None or not free[number:] or free[number][0] >= now - policy.max_age)
        ):
            break
    return going


@EXAMPLES
@given(
    entries=sessions(),
    limits=policies(),
    order=st.sampled_from(["created", "oldest", "lru"]),
    most=st.integers(1, 3),
)
def test_a_prune_of_sessions_does_what_its_dry_run_says_and_takes_exactly_the_oldest(
    fresh: Callable[..., Any],
    make_run: Callable[..., Any],
    snapshot: Callable[..., Any],
    allocated: Callable[..., int],
    now: int,
    entries: list[tuple[Any, ...]],
    limits: dict[str, Any],
    order: str,
    most: int,
) -> None:
    (area,) = fresh("store")
    limits.update(order=order, max_entries=most)
    created = write_sessions(area, entries, now)
    settle(area, now)
    request = Request(Store(str(area.path), "sessions", Policy.from_mapping(limits, layout="sessions")))
    before, held = snapshot(area), allocated(area, directories=True)
    going = expected_sessions(area, created, limits, now)

    dry = prune(request, make_run(dry_run=True))
    assert snapshot(area) == before
    assert {os.path.basename(item["path"]) for item in dry.victims.items} == set(going)
    assert prune(request, make_run(dry_run=True)).to_dict() == {**dry.to_dict(), "duration_s": ANY}
    real = prune(request, make_run())
    assert real.removed == real.planned == dry.planned
    assert real.removed.bytes == held - allocated(area, directories=True)
    assert (real.bytes_before, real.bytes_after) == (dry.bytes_before, dry.bytes_after)
    assert (real.kept, real.anomalies, real.warnings) == (dry.kept, dry.anomalies, dry.warnings)
    assert real.failures.total == 0
    again = prune(request, make_run())
    assert (again.planned.entries, again.changed) == (0, False)


@EXAMPLES
@given(entries=TREES, days=st.integers(1, 6))
def test_a_sweep_does_what_its_dry_run_says(
    fresh: Callable[..., Any],
    make_run: Callable[..., Any],
    allocated: Callable[..., int],
    now: int,
    entries: list[tuple[Any, ...]],
    days: int,
) -> None:
    area, outside = fresh("temps", "outside")
    build(area, outside, entries, [], now)
    settle(area, now)
    held = allocated(area, outside, directories=True)
    temps = Temps(str(area.path), ("t*", "[0-5]"), days * DAY)
    dry = sweep(temps, make_run(dry_run=True))
    real = sweep(temps, make_run())
    assert real.removed == real.planned == dry.planned
    assert real.removed.bytes == held - allocated(area, outside, directories=True)
    assert (real.bytes_before, real.bytes_after) == (dry.bytes_before, dry.bytes_after)
    assert not sweep(temps, make_run()).changed


@EXAMPLES
@given(
    files=FILES,
    trees=TREES,
    more=FILES,
    limits=st.tuples(policies(), policies(), policies()),
    days=st.integers(1, 6),
)
def test_a_dry_run_over_temps_and_stores_of_one_disk_counts_no_byte_twice(
    fresh: Callable[..., Any],
    make_run: Callable[..., Any],
    allocated: Callable[..., int],
    now: int,
    files: list[tuple[Any, ...]],
    trees: list[tuple[Any, ...]],
    more: list[tuple[Any, ...]],
    limits: tuple[dict[str, Any], ...],
    days: int,
) -> None:
    *areas, outside = fresh("files", "trees", "more", "outside")
    paths: list[str] = []
    for area, entries in zip(areas, (files, trees, more)):
        build(area, outside, entries, paths, now)
        settle(area, now)
    stores = [
        Store(str(area.path), layout, Policy.from_mapping(policy))
        for area, layout, policy in zip(areas, ("files", "trees", "files"), limits)
    ]
    temps = [
        Temps(str(areas[0].path), (".temp-*", "[0-3]"), days * DAY),
        Temps(str(areas[0].path), ("[2-5]",), days * DAY),
        Temps(str(areas[1].path), ("t*",), days * DAY),
        Temps(str(areas[1].path), ("[0-9]",), 2 * DAY),
    ]
    held = allocated(*areas, outside, directories=True)
    emptied = sum(1 for area in areas for name in area.names() if name not in area.files())
    dry = housekeep(stores, temps, make_run(dry_run=True))
    real = housekeep(stores, temps, make_run())
    assert [report.planned for report in dry.reports] == [report.removed for report in real.reports]
    assert [(r.bytes_before, r.bytes_after) for r in dry.reports] == [
        (r.bytes_before, r.bytes_after) for r in real.reports
    ]
    # Directories that a prune of files empties go as well, and are no entries.
    emptied -= sum(1 for area in areas for name in area.names() if name not in area.files())
    freed = held - allocated(*areas, outside, directories=True)
    assert 0 <= freed - sum(report.removed.bytes for report in real.reports) <= emptied * 4096
    assert not housekeep(stores, temps, make_run()).changed
