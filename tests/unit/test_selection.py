# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besom import selection
from besom.selection import Chunk, Goals, choose, tally


@dataclass(frozen=True)
class Row:
    key: int
    inode: int
    size: int
    freed: int
    where: int = 0
    name: str = ""


def chunks_of(rows: list[Row], at_once: int) -> list[Chunk]:
    chunks = []
    for start in range(0, len(rows), at_once):
        chunk = Chunk(device=1)
        for row in rows[start : start + at_once]:
            chunk.open_names.append(row.name or f"{row.key}-{len(chunk)}")
            for column, value in (
                (chunk.where, row.where),
                (chunk.inode, row.inode),
                (chunk.mtime, 0),
                (chunk.size, 0),
            ):
                column.append(value)
            chunk.key.append(row.key)
            chunk.set_bytes(len(chunk) - 1, row.size, row.freed)
        chunk.seal()
        chunks.append(chunk)
    return chunks


def naive(rows: list[Row], goals: Goals) -> tuple[list[int], tuple[int, int, int]]:
    """The places of the victims by sorting everything, and what they leave of the goals."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].key, rows[i].inode, rows[i].where, rows[i].name))
    victims: list[int] = []
    drop, shed, free = goals.drop, goals.shed, goals.free
    for i in order:
        if rows[i].key >= goals.before and drop <= 0 and shed <= 0 and free <= 0:
            break
        victims.append(i)
        drop, shed, free = drop - 1, shed - rows[i].size, free - rows[i].freed
    return sorted(victims), (drop, shed, free)


# A few neighbouring keys and inodes make ties; extremes make many passes over the buckets.
KEYS = st.one_of(st.integers(0, 5), st.integers(-(2**63), 2**63 - 2), st.integers(10**18, 10**18 + 1000))
INODES = st.one_of(st.integers(1, 4), st.integers(1, 2**64 - 1))
PLACES = st.tuples(st.integers(0, 2), st.sampled_from("ab"))
SIZES = st.one_of(st.just(0), st.integers(0, 10), st.integers(0, 2**40))


@st.composite
def some_rows(draw: st.DrawFn) -> list[Row]:
    rows = []
    for key, inode, size, frees, (where, name) in draw(
        st.lists(st.tuples(KEYS, INODES, SIZES, st.integers(0, 2), PLACES), max_size=60)
    ):
        # No two names of a directory are the same.
        rows.append(Row(key, inode, size, (0, size // 2, size)[frees], where, f"{name}{len(rows)}"))
    return rows


@st.composite
def some_goals(draw: st.DrawFn, rows: list[Row]) -> Goals:
    size, freed = sum(row.size for row in rows), sum(row.freed for row in rows)
    return Goals(
        shed=draw(st.one_of(st.just(0), st.integers(-10, size + 5))),
        free=draw(st.one_of(st.just(0), st.integers(-10, freed + 5))),
        drop=draw(st.one_of(st.just(0), st.integers(-10, len(rows) + 2))),
        before=draw(
            st.one_of(
                st.just(-(2**63)), st.sampled_from([row.key for row in rows]) if rows else st.just(3), KEYS
            )
        ),
    )


@pytest.mark.parametrize(("few", "buckets"), [(0, 2), (1, 3), (3, 4), (4096, 1024)])
@given(data=st.data())
def test_the_victims_are_exactly_the_shortest_run_of_the_oldest_that_reaches_every_goal(
    few: int, buckets: int, data: st.DataObject
) -> None:
    rows = data.draw(some_rows(), "rows")
    goals = data.draw(some_goals(rows), "goals")
    chunks = chunks_of(rows, data.draw(st.sampled_from([1, 3, 100]), "rows in a chunk"))
    with pytest.MonkeyPatch.context() as patch:
        # So small that narrowing down takes several passes even over a few rows.
        patch.setattr(selection, "_FEW", few)
        patch.setattr(selection, "_BUCKETS", buckets)
        left = choose(chunks, goals)
    expected, unreached = naive(rows, goals)
    marks = [mark for chunk in chunks for mark in chunk.victims]
    assert [i for i, mark in enumerate(marks) if mark] == expected
    assert (left.drop, left.shed, left.free) == unreached
    chosen = [rows[i] for i in expected]
    assert tally(chunks) == (len(chosen), sum(r.size for r in chosen), sum(r.freed for r in chosen))


def test_more_ties_than_are_sorted_at_once_are_told_apart_by_inode() -> None:
    count = selection._FEW * 2 + 10
    # 7919 is prime to the count: every inode once, in no order.
    rows = [Row(5, i * 7919 % count + 1, 1, 1) for i in range(count)]
    chunks = chunks_of(rows, selection.CHUNK)
    choose(chunks, Goals(shed=count - 3))
    stay = [row.inode for row, mark in zip(rows, (m for c in chunks for m in c.victims)) if not mark]
    assert sorted(stay) == [count - 2, count - 1, count]


def test_entries_taken_out_of_a_table_leave_the_others_whole() -> None:
    rows = [Row(key, key + 100, key * 10, key * 10 if key != 2 else 0) for key in range(5)]
    (chunk,) = chunks_of(rows, 10)
    chunk.drop({1, 3})
    assert (list(chunk.key), list(chunk.inode), chunk.names) == (
        [0, 2, 4],
        [100, 102, 104],
        ["0-0", "2-2", "4-4"],
    )
    assert (list(chunk.bytes), list(chunk.freed)) == ([0, 20, 40], [0, 0, 40])
    choose([chunk], Goals(drop=2))
    assert list(chunk.victims) == [1, 1, 0]


def test_a_table_from_which_everything_was_taken_is_empty() -> None:
    (chunk,) = chunks_of([Row(1, 1, 1, 1)], 10)
    chunk.drop({0})
    assert choose([chunk], Goals(drop=1)).drop == 1
    assert tally([chunk]) == (0, 0, 0)
