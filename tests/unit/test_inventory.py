# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from besom.inventory import Inventory, read_files, read_trees
from besom.root import Root
from besom.run import Run

DAY = 86400 * 10**9


def names(found: Inventory) -> set[str]:
    """The entries that could be removed, as relative paths."""
    top = found.root.path + "/"
    return {found.path(w, n)[len(top) :] for chunk in found.chunks for n, w in zip(chunk.names, chunk.where)}


def inventory(area: Any, layout: str = "files", **options: Any) -> Inventory:
    with Root(str(area.path)) as root:
        return (read_files if layout == "files" else read_trees)(root, Run(), **options)


def test_every_regular_file_and_symlink_is_an_entry_of_files_however_deep(area: Any) -> None:
    area.file("a")
    area.file("b/c/d/e")
    area.symlink("b/link", "/etc")
    area.dir("empty")
    found = inventory(area)
    assert names(found) == {"a", "b/c/d/e", "b/link"}
    assert found.entries == 3


def test_every_child_directory_is_an_entry_of_trees_and_nothing_else_is(area: Any) -> None:
    area.tree("one")
    area.tree("two", files={"a/b": 1})
    area.file("loose")
    area.symlink("link", area.at("one"))
    found = inventory(area, "trees")
    assert (names(found), found.entries) == ({"one", "two"}, 2)


@pytest.mark.parametrize("layout", ["files", "trees"])
def test_lost_and_found_is_never_an_entry(area: Any, layout: str) -> None:
    area.tree("lost+found", days=100)
    area.tree("other", days=1)
    found = inventory(area, layout)
    assert all("lost+found" not in name for name in names(found))
    assert found.entries == 1


def test_what_is_neither_file_nor_symlink_is_kept_and_named(
    area: Any, reasons: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(area.at("fifo"))
    monkeypatch.chdir(area.path)  # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    found = inventory(area)
    assert found.entries == 0
    assert reasons(found.kept) == dict.fromkeys(["fifo", "socket"], "is a socket, FIFO or device")


@pytest.mark.root
def test_a_device_node_is_kept_and_named(area: Any, reasons: Callable[..., dict[str, str]]) -> None:
    os.mknod(area.at("null"), 0o20600, os.makedev(1, 3))
    assert reasons(inventory(area).kept) == {"null": "is a socket, FIFO or device"}


def test_usage_is_what_du_counts_each_inode_once(
    area: Any, outside: Any, allocated: Callable[..., int]
) -> None:
    path = area.file("a", size=10_000)
    os.link(path, area.at("again"))
    os.link(outside.file("b", size=20_000), area.at("from-outside"))
    area.file("sparse", size=0)
    os.truncate(area.at("sparse"), 10**9)
    area.symlink("long", "x" * 200)
    assert inventory(area).usage == allocated(area)


def test_usage_of_trees_is_what_du_counts_with_links_between_trees_and_loose_files(
    area: Any, outside: Any, allocated: Callable[..., int]
) -> None:
    area.tree("one", files={"a": 10_000, "b/c": 5000})
    area.tree("two")
    os.link(area.at("one/a"), area.at("two/a"))
    os.link(area.at("one/a"), area.at("one/again"))
    os.link(area.at("one/b/c"), area.at("loose"))
    os.link(area.at("loose"), area.at("loose-again"))
    os.link(outside.file("b", size=20_000), area.at("two/from-outside"))
    area.file("alone")
    assert inventory(area, "trees").usage == allocated(area, directories=True)


def test_ages_are_those_of_the_oldest_and_the_newest_entry(area: Any, now: int) -> None:
    area.file("a", days=9)
    area.file("b", days=5, used=2)
    found = inventory(area)
    assert (found.oldest, found.newest) == (now - 9 * DAY, now - 5 * DAY)
    found = inventory(area, lru=True)
    assert (found.oldest, found.newest) == (now - 9 * DAY, now - 2 * DAY)
    assert inventory(area, horizon=0).oldest == now - 9 * DAY


def test_an_empty_store_has_no_ages(area: Any) -> None:
    found = inventory(area)
    assert (found.usage, found.entries, found.oldest, found.newest, found.chunks) == (0, 0, None, None, [])


@pytest.mark.parametrize("layout", ["files", "trees"])
def test_reading_a_store_changes_nothing_not_even_an_atime(
    area: Any, snapshot: Callable[..., Any], layout: str
) -> None:
    area.tree("one", days=5, files={"a/b": 1, "c": 10})
    area.symlink("one/link", "c", days=3)
    before = snapshot(area)
    inventory(area, layout)
    assert snapshot(area) == before


NAMES = [
    *(b"new\nline", b"\xff\xfe not utf-8", b"x" * 255, b" ", b"-rf", b"\\x0a", b"\x1b[2J", "é".encode()),
    *("é".encode("latin-1"), b"$(reboot)", b"*", b"\xed\xa0\x80", b".hidden", b"~"),
]


@pytest.mark.parametrize("layout", ["files", "trees"])
def test_any_name_is_an_entry_under_exactly_that_name(area: Any, layout: str) -> None:
    for name in NAMES:
        if layout == "files":
            area.file(os.path.join(name, name))
        else:
            area.dir(name)
    expected = {os.fsdecode(os.path.join(name, name) if layout == "files" else name) for name in NAMES}
    assert names(inventory(area, layout)) == expected


def test_more_entries_than_one_table_holds_keep_their_directories(area: Any) -> None:
    # Several tables, with directories that straddle their bounds; links to one file are quickly made.
    area.symlink("s", "x")
    for number in range(9000):
        directory = area.at(f"d{number % 3}")
        if number < 3:
            os.mkdir(directory)
        os.link(area.at("s"), f"{directory}/{number}", follow_symlinks=False)
    found = inventory(area)
    assert len(found.chunks) > 2
    assert names(found) == {"s", *(f"d{n % 3}/{n}" for n in range(9000))}


@pytest.mark.parametrize(
    "seconds", [10**10, 2 * 10**10, -(10**10), -(10**14)], ids=["2286", "2603", "1653", "long-ago"]
)
@pytest.mark.parametrize("layout", ["files", "trees"])
@pytest.mark.parametrize("lru", [False, True])
def test_a_time_beyond_what_64_bits_of_nanoseconds_hold_is_a_time_like_any_other(
    area: Any, layout: str, seconds: int, lru: bool
) -> None:
    area.tree("t", days=3)
    for name in ("t/data", "t"):
        os.utime(area.at(name), (seconds, seconds))
    found = inventory(area, layout, lru=lru)
    assert names(found) == {"t/data" if layout == "files" else "t"}
