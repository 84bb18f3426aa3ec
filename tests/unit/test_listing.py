# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is listed, against a listing made the long way; what is counted, against what is there."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besom.inventory import Inventory
from besom.layouts import read_store
from besom.listing import AGES, Entry, Listing, Wanted, statistics
from besom.policy import SORTS, Policy, Store
from besom.report import CAP
from besom.root import Root
from besom.selection import CHUNK
from besom.units import from_printable, printable

HOUR, DAY = 3600 * 10**9, 86400 * 10**9


def read(area: Any, make_run: Callable[..., Any], layout: str = "files", order: str = "oldest") -> Inventory:
    store = Store(str(area.path), layout, Policy(order=order))
    with Root(store.path) as root:
        return read_store(store, root, make_run(), whole=True)


def listed(found: Inventory, now: int, **wanted: int) -> list[str]:
    return [entry.id for entry in Listing(found, now, Wanted(**wanted)).sorted()]


def test_files_are_named_by_their_path_and_come_oldest_first(
    area: Any, make_run: Callable[..., Any], now: int
) -> None:
    area.file("a/b/old", days=9, size=10_000)
    area.file("new", days=1)
    area.file(b"a/\xff\n", days=3)
    entries = list(Listing(read(area, make_run), now).sorted())
    assert entries == [
        Entry("a/b/old", now - 9 * DAY, 12288),
        Entry(os.fsdecode(b"a/\xff\n"), now - 3 * DAY, 4096),
        Entry("new", now - DAY, 4096),
    ]


def test_trees_are_listed_whole_by_name(area: Any, make_run: Callable[..., Any], now: int) -> None:
    area.tree("one", days=9)
    area.tree("two", days=3, files={"a/b": 1, "c": 1})
    area.file("loose", days=30)
    found = read(area, make_run, "trees")
    assert listed(found, now) == ["one", "two"]
    assert listed(found, now, newer_than=5 * DAY) == ["two"]


def test_what_no_prune_would_take_is_listed_all_the_same(
    area: Any, make_run: Callable[..., Any], hold: Callable[..., Any], now: int
) -> None:
    hold(area.file("held", days=9))
    area.file("free", days=3)
    found = read(area, make_run)
    assert listed(found, now) == ["held", "free"]
    assert [item["path"] for item in found.kept.items] == [area.at("held")]
    hold(area.tree("tree", days=9) + "/data")
    assert listed(read(area, make_run, "trees"), now) == ["tree"]


def test_every_anomaly_is_named_to_who_asks(
    area: Any, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report of a prune names a hundred; there may be more."""
    monkeypatch.setattr("besom.inventory.can_write", lambda fd: False)
    for number in range(CAP + 1):
        area.dir(str(number), days=1)
    found = read(area, make_run, "trees")
    assert len(found.anomalies.items) == found.anomalies.total == CAP + 1


ROWS = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from((1, 5000, 9000)), st.sampled_from(("a", "b", "ä", "z/y"))),
    max_size=8,
)


@given(
    rows=ROWS,
    wanted=st.builds(
        Wanted,
        older_than=st.none() | st.integers(0, 9).map(lambda n: n * DAY),
        newer_than=st.none() | st.integers(0, 9).map(lambda n: n * DAY),
        larger_than=st.none() | st.sampled_from((4096, 8192)),
        smaller_than=st.none() | st.sampled_from((8192, 12288)),
    ),
    sort=st.sampled_from([sort for sort in SORTS if sort != "group"]),
    reverse=st.booleans(),
    limit=st.none() | st.integers(1, 5),
)
def test_any_choice_of_entries_is_that_of_a_plain_list(
    tmp_path_factory: pytest.TempPathFactory,
    make_run: Callable[..., Any],
    now: int,
    rows: list[tuple[int, int, str]],
    wanted: Wanted,
    sort: str,
    reverse: bool,
    limit: int | None,
) -> None:
    path = tmp_path_factory.mktemp("listing")
    plain = []
    for number, (days, size, name) in enumerate(rows):
        file = path / f"{name}{number}"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * size)
        os.utime(file, ns=(now - days * DAY, now - days * DAY))
        st_ = file.stat()
        plain.append((days * DAY, st_.st_blocks * 512, str(file.relative_to(path)), st_.st_ino))
    store = Store(str(path), "files", Policy())
    with Root(store.path) as root:
        listing = Listing(read_store(store, root, make_run(), whole=True), now, wanted)
    entries = list(listing.sorted(sort, reverse, limit))

    chosen = [
        row
        for row in plain
        if (wanted.older_than is None or row[0] > wanted.older_than)
        and (wanted.newer_than is None or row[0] < wanted.newer_than)
        and (wanted.larger_than is None or row[1] > wanted.larger_than)
        and (wanted.smaller_than is None or row[1] < wanted.smaller_than)
    ]
    assert (listing.matched.entries, listing.matched.bytes) == (len(chosen), sum(row[1] for row in chosen))
    by = {"age": lambda row: -row[0], "size": lambda row: -row[1], "id": lambda row: row[2]}[sort]
    chosen.sort(key=lambda row: (by(row), -row[0], row[3]), reverse=reverse)
    assert [(now - entry.key, entry.bytes, entry.id) for entry in entries] == [
        row[:3] for row in chosen[:limit]
    ]


def session(area: Any, id_: str, created: int, group: object = None, blobs: int = 1) -> None:
    area.file(f"{id_}.json")
    with open(area.at(f"{id_}.json"), "w") as stream:
        json.dump({"created_at": created / 1e9, **({} if group is None else {"group": group})}, stream)
    for number in range(blobs):
        area.file(f"{id_}.{number}", days=1, size=5000)


def test_sessions_have_their_creation_group_and_blobs(
    area: Any, make_run: Callable[..., Any], now: int
) -> None:
    session(area, "b", now - 3 * DAY, "red")
    session(area, "a.x", now - 5 * DAY, blobs=2)
    session(area, "c", now - 4 * DAY, "blue")
    area.file("lone", days=9)
    found = read(area, make_run, "sessions", order="created")
    assert list(Listing(found, now).sorted()) == [
        Entry("a.x", now - 5 * DAY, 4096 + 2 * 8192, "", 2),
        Entry("c", now - 4 * DAY, 4096 + 8192, "blue", 1),
        Entry("b", now - 3 * DAY, 4096 + 8192, "red", 1),
    ]
    assert [entry.group for entry in Listing(found, now).sorted("group")] == ["", "blue", "red"]
    assert [entry.id for entry in Listing(found, now).sorted("id", reverse=True)] == ["c", "b", "a.x"]
    assert [entry.id for entry in Listing(found, now, Wanted(group="red")).sorted()] == ["b"]
    assert [entry.id for entry in Listing(found, now, Wanted(group="")).sorted()] == ["a.x"]
    assert list(Listing(found, now, Wanted(group="lilac")).sorted()) == []
    figures = statistics(found, now)
    assert {name: tally.entries for name, tally in figures.groups.items()} == {"": 1, "blue": 1, "red": 1}
    assert sum(tally.bytes for tally in figures.groups.values()) + 4096 == figures.total.bytes


def test_statistics_count_every_entry_in_the_bar_of_its_age(
    area: Any, make_run: Callable[..., Any], now: int
) -> None:
    for number, bound in enumerate((0, *AGES)):
        area.file(f"at{number}", days=bound / DAY)
        area.file(f"under{number}", days=(bound + HOUR / 2) / DAY, size=5000)
    figures = statistics(read(area, make_run), now)
    assert [(tally.entries, tally.bytes) for tally in figures.ages] == [(2, 4096 + 8192)] * len(figures.ages)
    assert (figures.total.entries, figures.total.bytes) == (14, 14 * 4096 + 7 * 4096)


def test_the_first_few_of_many_cost_little_memory(area: Any, now: int) -> None:
    """What is held for all of them is compact tables, and no object for each."""
    many = 4 * CHUNK
    with Root(str(area.path)) as root:
        found = Inventory(root)
        for number in range(many):
            chunk = found.room(1)
            chunk.open_names.append("")
            for column, value in ((chunk.where, 0), (chunk.inode, number), (chunk.mtime, now - number)):
                column.append(value)
            chunk.bytes.append(4096)
        found.chunks[-1].seal()
    tracemalloc.start()
    entries = list(Listing(found, now).sorted("size", limit=10))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [now - entry.key for entry in entries] == list(range(many - 1, many - 11, -1))
    assert peak < 20 * many


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_what_is_printed_of_a_name_is_read_as_that_name(name: bytes) -> None:
    assert os.fsencode(from_printable(printable(name))) == name
