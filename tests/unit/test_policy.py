# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

from typing import Any

import pytest

from besom.errors import UsageError
from besom.policy import Policy, read_store, read_temps

HOUR = 3600 * 10**9
STORE = {"path": "/srv/cache", "layout": "files", "max_size": "1G"}


def test_a_store_is_read_with_sizes_in_bytes_and_ages_in_nanoseconds() -> None:
    store = read_store(
        {
            **STORE,
            "name": "gems",
            "target_size": "512M",
            "max_age": "2h",
            "min_age": "1h",
            "max_entries": 7,
            "min_free": "5%",
            "order": "lru",
        }
    )
    policy = store.policy
    assert (store.path, store.layout, store.name, store.noun) == ("/srv/cache", "files", "gems", "files")
    assert (policy.max_size, policy.target_size, policy.max_entries) == (1024**3, 512 * 1024**2, 7)
    assert (policy.max_age, policy.min_age, policy.order) == (2 * HOUR, HOUR, "lru")
    assert policy.min_free is not None
    assert policy.min_free.of(1000) == 50


def test_a_value_of_none_counts_as_not_given() -> None:
    store = read_store({**STORE, "name": None, "max_age": None, "order": None, "target_size": None})
    assert (store.name, store.policy) == ("", Policy(max_size=1024**3))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([], "must be a mapping"),
        ("text", "must be a mapping"),
        ({**STORE, "maxsize": 1}, "unknown key maxsize; the keys are"),
        ({**STORE, 5: 1}, "unknown key 5"),
        ({**STORE, "a\nb": 1}, r"unknown key a\x0ab"),
        ({**STORE, "name": "a/b"}, "name: a/b is not a name"),
        ({**STORE, "name": ""}, "is not a name"),
        ({**STORE, "name": 5}, "is not a name"),
        ({**STORE, "layout": None}, "layout: None is not one of files, trees"),
        ({**STORE, "layout": "FILES"}, "layout: FILES is not one of"),
        ({**STORE, "path": "cache"}, "path: cache is not an absolute path"),
        ({**STORE, "path": "/srv/\0x"}, "is not an absolute path"),
        ({**STORE, "path": 5}, "is not an absolute path"),
        ({"path": "/srv/x", "layout": "files"}, "no limit is set; give at least one of max_size"),
        ({**STORE, "max_size": 0}, "max_size: '0' is not a size"),
        ({**STORE, "max_size": True}, "max_size: 'True' is not a size"),
        ({**STORE, "max_age": "1 year"}, "max_age: '1 year' is not a duration"),
        ({**STORE, "max_entries": "1.5"}, "max_entries: '1.5' is not a whole number"),
        ({**STORE, "min_free": "100%"}, "min_free: '100%' is not between"),
        ({**STORE, "target_size": "2G"}, "target_size is above max_size"),
        (
            {"path": "/srv/x", "layout": "files", "max_age": 1, "target_size": "2G"},
            "target_size needs max_size",
        ),
        ({**STORE, "max_age": "1h", "min_age": "2h"}, "min_age is above max_age"),
        ({**STORE, "order": ""}, "order:  is not one of oldest"),
        ({**STORE, "order": False}, "order: False is not one of oldest"),
        ({**STORE, "lock_backend": ""}, "lock_backend:  is not one of flock"),
        ({**STORE, "name": "a\nb", "order": "x"}, r"a\x0ab: order: x is not"),
        ({**STORE, 16**6000: 1}, "unknown key 0x1000"),
        ({**STORE, "order": "x" * 10**6}, "xxx... is not one of"),
        ({**STORE, "order": "newest"}, "order: newest is not one of oldest, lru, created"),
        ({**STORE, "order": "created"}, "created needs the layout sessions"),
    ],
)
def test_a_store_that_makes_no_sense_is_refused_in_one_line_that_names_the_key(
    values: Any, says: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_store(values, "stores: ")
    message = str(caught.value)
    assert says in message
    assert message.startswith("stores: ")
    assert "\n" not in message


def test_a_message_about_a_named_store_carries_its_name() -> None:
    with pytest.raises(UsageError, match=r"^stores: gems: max_size: "):
        read_store({**STORE, "name": "gems", "max_size": "x"}, "stores: ")


def test_a_temp_area_has_the_defaults_of_the_design() -> None:
    temps = read_temps({"path": "/srv/x"})
    assert (temps.patterns, temps.older_than) == ((".temp-*",), 24 * HOUR)


def test_a_temp_area_takes_one_pattern_or_several() -> None:
    assert read_temps({"path": "/srv/x", "pattern": "a*", "older_than": "1h"}).patterns == ("a*",)
    assert read_temps({"path": "/srv/x", "pattern": ["a*", "b?"]}).patterns == ("a*", "b?")


@pytest.mark.parametrize(
    "pattern",
    ["", "a/b", "/tmp/.temp-*", "../x", "a\0b", [], ["a", ""], ["a", "b/c"], 5, {"a": 1}, [None], True],
)
def test_a_pattern_that_is_no_glob_of_a_name_is_refused(pattern: Any) -> None:
    with pytest.raises(UsageError, match=r"^temps: pattern: "):
        read_temps({"path": "/srv/x", "pattern": pattern}, "temps: ")


@pytest.mark.parametrize("older_than", [0, "0s", "-1h", "", "soon", False])
def test_an_age_that_is_none_is_refused(older_than: Any) -> None:
    with pytest.raises(UsageError, match=r"^older_than: "):
        read_temps({"path": "/srv/x", "older_than": older_than})
