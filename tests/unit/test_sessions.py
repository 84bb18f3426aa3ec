# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The layout sessions: what is an entry, what is an anomaly, what goes, and what never does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from besom.errors import UsageError
from besom.inventory import Inventory
from besom.metadata import MOST, SKEW, Unfit, parse
from besom.policy import Policy, Store, read_store
from besom.prune import Request, prune
from besom.root import Root
from besom.run import Run
from besom.sessions import id_of, owner_of, read_sessions, sessions

DAY = 86400 * 10**9


def read(area: Any, run: Run, **options: Any) -> Inventory:
    with Root(str(area.path)) as root:
        return read_sessions(root, run, **options)


def ids(found: Inventory) -> set[str]:
    return {name.partition("/")[0] for chunk in found.chunks for name in chunk.names}


def test_a_session_is_its_metadata_and_every_blob_of_its_name(
    area: Any, session: Any, make_run: Any, allocated: Any
) -> None:
    session(area, "a", blobs={"": 1, ".dat": 9000, ".d/": 5000})
    session(area, "b")
    found = read(area, make_run())
    assert sorted(name for chunk in found.chunks for name in chunk.names) == ["a/d.d/f/f.dat", "b/f.dat"]
    assert (found.entries, found.anomalies.total) == (2, 0)
    assert found.usage == sum(sum(chunk.bytes) for chunk in found.chunks) == allocated(area, directories=True)


def test_the_longest_id_wins() -> None:
    known = {"a", "a.b", "a.b.json", "c"}
    assert [
        owner_of(name, known) for name in ("a.x", "a.b", "a.b.x", "a.bx", "a.b.json.x", "c", "d", "")
    ] == [*("a", "a.b", "a.b", "a", "a.b.json", "c", None, None)]
    assert [id_of(name) for name in ("a.json", "a.b.json", ".json", "json", "a.JSON")] == [
        *("a", "a.b", None, None, None)
    ]


def test_a_session_goes_without_one_whose_id_is_longer(
    area: Any, session: Any, pruned: Callable[..., Any]
) -> None:
    session(area, "a", days=9, blobs={".x": 1, ".b.x": 1})
    session(area, "a.b", days=1, blobs={".y": 1})
    pruned(area, "sessions", max_entries=1)
    # a.b.x belongs to a.b, and stays with it.
    assert area.names() == ["a.b.json", "a.b.x", "a.b.y"]


def test_besoms_own_names_are_no_entries_and_count_as_usage(area: Any, session: Any, make_run: Any) -> None:
    session(area, "a")
    alone = read(area, make_run()).usage
    for name in (".besom-owner", ".a.json.0123456789abcdef.part", ".besom-kept-x.json"):
        area.file(name, days=99)
    area.tree("lost+found", days=99)
    area.tree(".temp-a-0123456789abcdef", days=99)
    found = read(area, make_run())
    assert (ids(found), found.entries, found.anomalies.total) == ({"a"}, 1, 0)
    assert found.usage > alone


def spoil_metadata(data: bytes) -> Callable[[Any], None]:
    def spoil(area: Any) -> None:
        with open(area.at("bad.json"), "wb") as stream:
            stream.write(data)

    return spoil


def replaced(make: Callable[[str], Any]) -> Callable[[Any], None]:
    def spoil(area: Any) -> None:
        os.unlink(area.at("bad.json"))
        make(area.at("bad.json"))

    return spoil


ANOMALIES = [
    (lambda area: os.unlink(area.at("bad.json")), "is a blob without metadata"),
    (lambda area: os.unlink(area.at("bad.dat")), "is metadata without a blob"),
    (spoil_metadata(b""), "its metadata is not valid JSON"),
    (spoil_metadata(b"\xff\xfe"), "its metadata is not valid JSON"),
    (spoil_metadata(b"[" * 100_000), "its metadata is not valid JSON"),
    (spoil_metadata(b"[]"), "its metadata is not a JSON object"),
    (spoil_metadata(b"{}"), "its metadata has no created_at"),
    (spoil_metadata(b'{"created_at": null}'), "its metadata has no created_at"),
    (spoil_metadata(b'{"created_at": 5, "created_at": 6}'), "its metadata has a key twice"),
    (spoil_metadata(b'{"created_at": NaN}'), "its created_at is no date: NaN"),
    (spoil_metadata(b'{"created_at": ' + b"9" * 900_000 + b"}"), "its created_at is no date: Infinity"),
    (spoil_metadata(b'{"created_at": "soon"}'), "its created_at is no date: soon"),
    (spoil_metadata(b'{"created_at": "\\ud800\\n"}'), "its created_at is no date: \\xed\\xa0\\x80\\x0a"),
    (spoil_metadata(b'{"created_at": true}'), "its created_at is no date: true"),
    (spoil_metadata(b'{"created_at": [1]}'), "its created_at is no date: a list"),
    (spoil_metadata(b'{"created_at": 0}'), "its created_at is not after 1970: 0"),
    (spoil_metadata(b'{"created_at": 1e12}'), "its created_at is in the future: 1E+12"),
    (spoil_metadata(b'{"created_at": 1}' + b" " * MOST), "its metadata is larger than 1 MiB"),
    (replaced(os.mkfifo), "its metadata is not a regular file"),
    (replaced(os.mkdir), "its metadata is not a regular file"),
    (replaced(lambda path: os.symlink("good.json", path)), "its metadata is not a regular file"),
]


@pytest.mark.parametrize("number", range(len(ANOMALIES)))
def test_what_has_no_sound_metadata_is_never_removed_and_its_bytes_count(
    area: Any,
    session: Any,
    pruned: Callable[..., Any],
    reasons: Callable[..., Any],
    allocated: Callable[..., int],
    number: int,
) -> None:
    spoil, reason = ANOMALIES[number]
    session(area, "bad", days=99)
    session(area, "good", days=1)
    spoil(area)
    before, held = area.names(), allocated(area, directories=True)
    for limits in ({"empty": True}, {"max_size": 1}, {"max_age": "1m"}, {"max_entries": 1}):
        report = pruned(area, "sessions", dry_run=True, **limits)
        assert list(reasons(report.anomalies).values()) == [reason]
        assert report.bytes_before == held
        assert all("bad" not in name for name in reasons(report.victims))
    assert pruned(area, "sessions", empty=True).removed.entries == 1
    assert area.names() == [name for name in before if not name.startswith("good")]


def test_metadata_exactly_at_the_limit_is_read(area: Any, session: Any, make_run: Any) -> None:
    session(area, "a")
    with open(area.at("a.json"), "r+") as stream:
        text = stream.read()
        stream.write(" " * (MOST - len(text)))
    assert ids(read(area, make_run())) == {"a"}


DATES = {
    "2024-02-29T12:00:00Z": "2024-02-29T12:00:00+00:00",
    "2024-02-29 12:00": "2024-02-29T12:00:00+00:00",
    "2024-02-29": "2024-02-29T00:00:00+00:00",
    "2024-02-29T12:00:00.5+05:30": "2024-02-29T06:30:00.500000+00:00",
    "2024-02-29t12:00:00,25-0800": "2024-02-29T20:00:00.250000+00:00",
    "20240229T120000Z": "2024-02-29T12:00:00+00:00",
    "20240229T1200+01": "2024-02-29T11:00:00+00:00",
    "2016-12-31T23:59:60Z": "2016-12-31T23:59:59+00:00",
}


@pytest.mark.parametrize("text", DATES)
def test_dates_of_any_zone_are_read(text: str, now: int) -> None:
    expected = datetime.fromisoformat(DATES[text])
    found = parse(json.dumps({"created_at": text}).encode(), now)
    assert found.created == int(expected.timestamp() * 1000) * 10**6


@pytest.mark.parametrize(
    "value",
    ["20240229", "1700000000", "2024-02-30", "2024-1-1", "2024-02-29T24:00", "2024-02-29T12:00+24:00", ""],
)
def test_what_could_be_two_dates_or_none_is_no_date(value: str, now: int) -> None:
    with pytest.raises(Unfit, match="no date"):
        parse(json.dumps({"created_at": value}).encode(), now)


def test_a_clock_may_be_ahead_by_five_minutes(now: int) -> None:
    assert parse(b'{"created_at": %d}' % ((now + SKEW) // 10**9), now).created == now + SKEW
    with pytest.raises(Unfit, match="in the future"):
        parse(b'{"created_at": %d}' % ((now + SKEW) // 10**9 + 1), now)


def test_epochs_are_exact(now: int) -> None:
    assert parse(b'{"created_at": 1700000000.123456789}', now).created == 1700000000123456789


@pytest.mark.parametrize(
    ("value", "group"), [("x", "x"), (7, "7"), (1.5, ""), (None, ""), ([1], ""), ("y" * 256, "")]
)
def test_the_group_is_a_short_text_or_a_whole_number(value: Any, group: str, now: int) -> None:
    data = json.dumps({"created_at": 1, "team": value}).encode()
    assert parse(data, now, "team").group == group


SOUP = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.binary(max_size=200)
    | SOUP.map(lambda value: json.dumps({"created_at": value, "group": value}).encode())
)
def test_any_bytes_are_metadata_or_unfit_for_a_reason_of_one_line(data: bytes) -> None:
    try:
        found = parse(data, 10**18)
    except Unfit as unfit:
        assert str(unfit).isprintable()
    else:
        assert 0 < found.created <= 10**18 + SKEW


def test_the_store_knows_the_layout() -> None:
    store = read_store({"path": "/x", "layout": "sessions", "max_age": "1d"})
    assert (store.policy.order, store.group_key, store.noun) == ("created", "group", "sessions")
    store = read_store(
        {"path": "/x", "layout": "sessions", "max_age": "1d", "order": "lru", "group_key": "team"}
    )
    assert (store.policy.order, store.group_key) == ("lru", "team")
    for wrong in ({"layout": "files", "group_key": "x"}, {"layout": "sessions", "group_key": 5}):
        with pytest.raises(UsageError, match="group_key"):
            read_store({"path": "/x", "max_age": "1d", **wrong})
    with pytest.raises(UsageError, match="order: created needs"):
        read_store({"path": "/x", "layout": "trees", "max_age": "1d", "order": "created"})


def test_a_listing_has_what_it_shows(area: Any, session: Any, make_run: Any, now: int) -> None:
    session(area, "a", days=2, group="red", blobs={".x": 1, ".y": 1})
    session(area, "b", days=1)
    area.file("lone")
    with Root(str(area.path)) as root:
        found = list(sessions(Inventory(root), make_run()))
    assert [(one.id, one.created, one.group, len(one.parts), one.problem) for one in found] == [
        ("a", now - 2 * DAY, "red", 2, ""),
        ("b", now - DAY, "", 1, ""),
        ("lone", 0, "", 0, "is a blob without metadata"),
    ]


def test_the_oldest_by_created_at_go_first_whatever_the_files_say(
    area: Any, session: Any, pruned: Callable[..., Any], reasons: Any
) -> None:
    for number, days in enumerate((3, 1, 4, 2)):
        session(area, f"s{days}", days)
        area.file(f"s{days}.dat", days=number)
    report = pruned(area, "sessions", max_entries=2)
    assert reasons(report.victims) == dict.fromkeys(("s3", "s4"), "oldest, over the limit")
    assert {item["kind"] for item in report.victims.items} == {"session"}
    assert area.names() == ["s1.dat", "s1.json", "s2.dat", "s2.json"]


@pytest.mark.parametrize(("order", "gone"), [("created", "made"), ("oldest", "written"), ("lru", "read")])
def test_the_age_is_that_of_the_order(
    area: Any, session: Any, make_run: Any, order: str, gone: str, now: int
) -> None:
    for name, made, written, used in (("made", 30, 1, 1), ("written", 1, 20, 2), ("read", 2, 10, 9)):
        session(area, name, made)
        for path in (area.at(f"{name}.json"), area.at(f"{name}.dat")):
            os.utime(path, ns=(now - used * DAY, now - written * DAY))
        # Who lists sessions reads their metadata.
        os.utime(area.at(f"{name}.json"), ns=(now, now - written * DAY))
    store = read_store({"path": str(area.path), "layout": "sessions", "order": order, "max_entries": 2})
    prune(Request(store), make_run())
    assert {"made", "written", "read"} - {name.split(".")[0] for name in area.names()} == {gone}


def test_anomalies_that_alone_keep_a_store_over_its_limit_are_named_as_the_reason(
    area: Any, session: Any, pruned: Callable[..., Any]
) -> None:
    area.file("lone", size=100_000)
    session(area, "a")
    report = pruned(area, "sessions", max_size="50K")
    (warning,) = report.warnings
    assert warning == (
        f"{area.path} stays 50.0 KiB over max_size: its anomalies alone hold 100.0 KiB, "
        "and besom never removes those; look at them."
    )
    assert report.missed


@pytest.mark.parametrize(("layout", "id_"), [("files", "lost+found/#123"), ("trees", "lost+found")])
def test_lost_and_found_is_no_entry_that_a_request_can_name(
    area: Any, make_run: Any, layout: str, id_: str
) -> None:
    area.file("lost+found/#123", days=99)
    report = prune(Request(Store(str(area.path), layout, Policy()), ids=frozenset({id_})), make_run())
    assert [item["reason"] for item in report.failures.items] == ["is no entry"]
    assert area.files() == {"lost+found/#123"}


@pytest.mark.parametrize("layout", ["files", "trees", "sessions"])
def test_what_a_request_names_goes_and_nothing_else(
    area: Any, session: Any, make_run: Any, layout: str, now: int
) -> None:
    def fill() -> dict[str, str]:
        for days, name in enumerate(("a", "b", "c", "d"), 1):
            if layout == "files":
                area.file(f"sub/{name}", days)
            elif layout == "trees":
                area.tree(name, days)
            else:
                session(area, name, days, group="odd" if days % 2 else "even")
        return {name: f"sub/{name}" if layout == "files" else name for name in "abcd"}

    def purge(policy: Policy | None = None, **named: Any) -> tuple[set[str], Any]:
        request = Request(Store(str(area.path), layout, policy or Policy()), **named)
        dry = prune(request, make_run(dry_run=True))
        report = prune(request, make_run())
        assert dry.planned.to_dict() == report.removed.to_dict()
        assert dry.failures == report.failures
        left = {one for one, name in entries.items() if any(n.startswith(name) for n in area.names())}
        return set("abcd") - left, report

    entries = fill()
    gone, report = purge(ids=frozenset({entries["a"], entries["c"], "nope", "../outside"}))
    assert gone == {"a", "c"}
    assert [item["reason"] for item in report.failures.items] == ["is no entry"] * 2
    assert [item["reason"] for item in report.victims.items] == ["purged"] * 2
    fill()
    assert purge(older_than=2 * DAY)[0] == {"c", "d"}
    fill()
    assert purge(older_than=2 * DAY, ids=frozenset({entries["c"], entries["a"]}))[0] == {"c"}
    fill()
    gone, report = purge(Policy(min_age=3 * DAY), older_than=DAY)
    assert gone == {"d"}
    assert "younger than min_age" in report.warnings[0]
    fill()
    if layout == "sessions":
        assert purge(group="odd")[0] == {"a", "c"}
        assert purge(group="none")[0] == {"a", "c"}
    else:
        with pytest.raises(UsageError, match="group needs the layout sessions"):
            purge(group="odd")
