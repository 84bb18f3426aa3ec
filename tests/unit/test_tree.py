# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import ctypes
import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from besom import tree
from besom.locks import LockTable
from besom.root import Root
from besom.tree import CHANGED, TRASH, Cursor, Measure, Removal, finish_trash, measure, remove_tree

AT_FDCWD, RENAME_EXCHANGE = -100, 2
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: str, other: str) -> None:
    """Swap two names in one step (renameat2(2))."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), one)


def look(path: str, name: str) -> Measure:
    """The measure that a plan would take of directory name in path."""
    with Root(path) as root:
        cursor = Cursor(root)
        cursor.enter(name)
        found = measure(cursor, LockTable(), thorough=True)
        cursor.rise(0)
        return found


def remove(path: str, name: str, found: Measure) -> Removal:
    with Root(path) as root:
        return remove_tree(Cursor(root), name, found.identity)


def test_a_tree_goes_whole_and_gives_back_what_it_held(area: Any, allocated: Callable[..., int]) -> None:
    area.tree("victim", files={"a/b/c": 10000, "a/d": 1, "e": 0})
    area.symlink("victim/a/out", "/etc/passwd")
    os.mkfifo(area.at("victim/fifo"))
    area.tree("other")
    before = allocated(area, directories=True)
    removal = remove(str(area.path), "victim", look(str(area.path), "victim"))
    assert removal.blocked is None
    assert area.names() == ["other", "other/data"]
    assert before - allocated(area, directories=True) == removal.freed > 12288


def test_a_measure_tells_newest_use_count_and_bytes(area: Any, now: int) -> None:
    area.tree("t", days=9, files={"a/old": 4096, "b": 4096})
    path = area.file("t/a/new", days=3, used=2)
    os.link(path, area.at("t/again"))
    for name in ("t/a", "t"):
        os.utime(area.at(name), ns=(now, now - 5 * 86400 * 10**9))
    found = look(str(area.path), "t")
    day = 86400 * 10**9
    assert (found.newest, found.used, found.count) == (now - 3 * day, now - 2 * day, 6)
    directories = sum(os.stat(area.at(name)).st_blocks for name in ("t", "t/a")) * 512
    assert found.bytes == found.freed == directories + 3 * 4096
    assert list(found.shared.values()) == [[2, 2, 4096]]


def fill(area: Any, outside: Any) -> None:
    """A tree to remove, and outside it one of the same shape that must live."""
    for one, top in ((area, "victim"), (outside, "victim")):
        for name in ("a/b/c", "a/d", "e/f", "g"):
            one.file(f"{top}/{name}")
    area.symlink("link", outside.at("victim/a"))


def clear(*areas: Any) -> None:
    for one in areas:
        for name in reversed(one.names()):
            path = one.at(name)
            (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)


def naive_removal(area: Any) -> None:
    """What is written in five minutes, by path."""
    for top, dirs, files in os.walk(area.at("victim"), topdown=False):
        for name in files:
            with suppress(OSError):
                os.unlink(os.path.join(top, name))
        for name in dirs:
            with suppress(OSError):
                os.rmdir(os.path.join(top, name))
    with suppress(OSError):
        os.rmdir(area.at("victim"))


def careful_removal(area: Any) -> None:
    with Root(str(area.path)) as root:
        cursor = Cursor(root)
        try:
            cursor.enter("victim")
        except OSError:
            return
        identity = measure(cursor, LockTable()).identity
        cursor.rise(0)
        remove_tree(cursor, "victim", identity)
        # And as trash, which is finished without a plan.
        for name in os.listdir(root.fd):
            if name not in ("link",):
                finish_trash(cursor, name)


def rounds_that_harm_the_outside(
    saboteur: Any, area: Any, outside: Any, remover: Callable[[Any], None], attack: Callable[[], None]
) -> int:
    """Attack before the first system call of a removal, then before the second, and so on to the last."""
    harmed = 0
    for nth in range(300):
        fill(area, outside)
        kept = outside.files()
        with saboteur.before(nth, attack) as acted:
            remover(area)
            done = not acted()
        harmed += not kept <= outside.files()
        if done:
            assert nth > 10
            return harmed
        clear(area, outside)
    raise AssertionError("a removal of ten names takes no 300 calls")


def swap_directory_and_symlink(area: Any) -> None:
    for top in [name for name in os.listdir(area.path) if name != "link"]:
        with suppress(OSError):
            exchange(area.at(os.path.join(top, "a")), area.at("link"))


def test_a_directory_swapped_for_a_symlink_at_any_moment_harms_nothing_outside(
    saboteur: Any, area: Any, outside: Any
) -> None:
    def attack() -> None:
        swap_directory_and_symlink(area)

    assert rounds_that_harm_the_outside(saboteur, area, outside, careful_removal, attack) == 0


def test_the_same_swap_does_harm_a_removal_by_path(saboteur: Any, area: Any, outside: Any) -> None:
    def attack() -> None:
        swap_directory_and_symlink(area)

    assert rounds_that_harm_the_outside(saboteur, area, outside, naive_removal, attack) > 0


def test_a_directory_moved_outside_at_any_moment_takes_nothing_there_with_it(
    saboteur: Any, area: Any, outside: Any
) -> None:
    def attack() -> None:
        for top in [name for name in os.listdir(area.path) if name != "link"]:
            with suppress(OSError):
                os.rename(area.at(os.path.join(top, "a/b")), outside.at("victim/a/moved"))

    assert rounds_that_harm_the_outside(saboteur, area, outside, careful_removal, attack) == 0


def test_a_parent_that_is_not_open_any_more_is_only_gone_back_to_if_it_is_the_same(
    saboteur: Any, area: Any, outside: Any
) -> None:
    # Deeper than the descriptors that stay open, so that the way back leads through '..'; and beside c
    # directories that are still to be entered when c is left, which are outside as well.
    area.file("victim/a/b/" + "/".join("cdefghijklmnopqrstuvwxyz") + "/leaf")
    for number in range(30):
        area.dir(f"victim/a/b/{number}")
        outside.file(f"{number}/keep")
    kept = outside.files()

    def move_away() -> None:
        (top,) = os.listdir(area.path)
        os.rename(area.at(f"{top}/a/b/c"), outside.at("moved"))

    # The first file to be removed is the leaf, deep down.
    with saboteur.before(0, move_away, "os.remove") as acted:
        careful_removal(area)
        assert acted()
    assert kept <= outside.files()


def test_a_swapper_that_never_rests_harms_nothing_outside(
    area: Any, outside: Any, make_area: Callable[[str], Any], snapshot: Callable[..., Any]
) -> None:
    staging = make_area("staging")
    fill(area, outside)
    before = snapshot(outside)
    stop = threading.Event()

    def swap() -> None:
        for _ in range(20_000):
            if stop.is_set():
                return
            swap_directory_and_symlink(area)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(60):
            careful_removal(area)
            if "victim" not in os.listdir(area.path):
                for name in ("a/b/c", "a/d", "e/f"):
                    staging.file(f"victim/{name}")
                os.rename(staging.at("victim"), area.at("victim"))
    finally:
        stop.set()
        thread.join()
    assert snapshot(outside) == before


def change_deep_inside(area: Any) -> None:
    (top,) = [name for name in os.listdir(area.path) if TRASH.fullmatch(name) or name == "victim"]
    area.file(os.path.join(top, "a/b/c"), days=-1)


@pytest.mark.parametrize("call", ["os.rename", "after it"])
def test_a_tree_that_is_written_to_deep_inside_is_put_back_whole(saboteur: Any, area: Any, call: str) -> None:
    area.tree("victim", days=5, files={"a/b/c": 1, "d": 1})
    found = look(str(area.path), "victim")

    def later() -> None:
        # The first look at what was renamed: still in time to be noticed.
        saboteur.then("open", lambda: change_deep_inside(area))

    act = (lambda: change_deep_inside(area)) if call == "os.rename" else later
    with saboteur.before(0, act, "os.rename") as acted:
        removal = remove(str(area.path), "victim", found)
        assert acted()
    assert removal.blocked is not None
    assert (removal.blocked.path, removal.blocked.reason) == (area.at("victim"), CHANGED)
    assert area.names() == ["victim", "victim/a", "victim/a/b", "victim/a/b/c", "victim/d"]


@pytest.mark.parametrize("name", ["victim", "v" * 255, "é" * 127, "本" * 85, os.fsdecode(b"\xff" * 255)])
def test_a_changed_tree_whose_name_was_taken_meanwhile_is_kept_under_another(
    saboteur: Any, area: Any, name: str
) -> None:
    area.tree(name, days=5)
    found = look(str(area.path), name)

    def write_and_take_the_name() -> None:
        (trash,) = [one for one in os.listdir(area.path) if TRASH.fullmatch(one)]
        area.file(f"{trash}/more")
        area.tree(name, files={"new": 1})

    def after_the_rename() -> None:
        saboteur.then("open", write_and_take_the_name)

    with saboteur.before(0, after_the_rename, "os.rename") as acted:
        removal = remove(str(area.path), name, found)
        assert acted()
    assert removal.blocked is not None
    assert removal.blocked.reason == CHANGED
    kept = os.path.basename(removal.blocked.path)
    assert ".besom-kept-" in kept
    assert area.files() == {f"{name}/new", f"{kept}/data", f"{kept}/more"}


@pytest.mark.parametrize("kind", ["symlink", "file", "fifo"])
def test_what_was_put_in_the_place_of_a_tree_before_it_is_moved_keeps_its_name(
    saboteur: Any, area: Any, kind: str
) -> None:
    area.tree("victim", days=5)
    found = look(str(area.path), "victim")

    def exchange_it() -> None:
        os.rename(area.at("victim"), area.at("aside"))
        if kind == "symlink":
            os.symlink("aside", area.at("victim"))
        elif kind == "file":
            area.file("victim")
        else:
            os.mkfifo(area.at("victim"))

    with saboteur.before(0, exchange_it, "os.rename") as acted:
        removal = remove(str(area.path), "victim", found)
        assert acted()
    assert removal.blocked is not None
    assert (removal.blocked.path, removal.blocked.reason) == (area.at("victim"), CHANGED)
    assert sorted(os.listdir(area.path)) == ["aside", "victim"]


def test_a_name_that_is_taken_while_a_changed_tree_is_put_back_is_not_lost_either(
    saboteur: Any, area: Any
) -> None:
    area.tree("victim", days=5)
    found = look(str(area.path), "victim")

    def write_and_take_the_name_late() -> None:
        area.file("victim/more")
        saboteur.then("os.rename", lambda: area.tree("victim", files={"new": 1}))

    with saboteur.before(0, write_and_take_the_name_late, "os.rename") as acted:
        removal = remove(str(area.path), "victim", found)
        assert acted()
    assert removal.blocked is not None
    assert removal.blocked.reason == CHANGED
    kept = os.path.basename(removal.blocked.path)
    assert ".besom-kept-" in kept
    assert area.files() == {"victim/new", f"{kept}/data", f"{kept}/more"}


def test_a_write_before_the_removal_begins_is_noticed_wherever_it_is(saboteur: Any, area: Any) -> None:
    area.tree("victim", days=5, files={"a/b/c": 1})
    found = look(str(area.path), "victim")
    area.file("victim/a/b/c", size=1)
    assert os.stat(area.at("victim")).st_mtime_ns < os.stat(area.at("victim/a/b/c")).st_mtime_ns
    with saboteur.before(0, lambda: None, "os.rename") as renamed:
        removal = remove(str(area.path), "victim", found)
        # Nobody saw it under another name in between.
        assert not renamed()
    assert removal.blocked is not None
    assert removal.blocked.reason == CHANGED
    assert os.path.exists(area.at("victim/a/b/c"))


@contextmanager
def few_descriptors(spare: int) -> Iterator[None]:
    """No more than spare descriptors beside those that are open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1 + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_three_thousand_levels_take_few_descriptors(area: Any, deep: Callable[..., Any]) -> None:
    top = area.dir("victim")
    with deep(top, 3000) as fd:
        os.close(os.open("leaf", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    with few_descriptors(32):
        found = look(str(area.path), "victim")
        assert (found.count, found.blocked) == (3002, None)
        assert remove(str(area.path), "victim", found).blocked is None
    assert area.names() == []


def test_a_path_longer_than_the_kernel_takes_is_removed_and_named(
    area: Any, deep: Callable[..., Any]
) -> None:
    top = area.dir("victim")
    with deep(top, 20, "n" * 255) as fd:
        os.mkfifo("leaf", dir_fd=fd)
    removal = remove(str(area.path), "victim", look(str(area.path), "victim"))
    assert removal.blocked is None
    assert area.names() == []


def test_the_cursor_stands_where_it_stood_after_a_removal(area: Any) -> None:
    area.tree("victim", files={"a/b/c": 1})
    with Root(str(area.path)) as root:
        cursor = Cursor(root)
        before = os.listdir("/proc/self/fd")
        assert remove_tree(cursor, "victim", (0, 0)).blocked is not None
        assert remove_tree(cursor, "missing", (0, 0)).blocked is not None
        assert (cursor.depth, cursor.fd) == (0, root.fd)
        assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """full(act): the disk has no room for the name of a trash; act() comes just before that shows."""

    def make(act: Callable[[], None]) -> None:
        def rename(*_arguments: Any, **_options: Any) -> None:
            monkeypatch.undo()
            act()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "rename", rename)

    return make


def replace_victim(area: Any, outside: Any) -> None:
    """Another tree that differs in nothing but its inodes."""
    os.rename(area.at("victim"), outside.at("old"))
    area.tree("victim", days=1, files={"a/b": 1})


def test_on_a_full_disk_a_tree_goes_where_it_is(area: Any, full: Any) -> None:
    area.tree("victim", days=1, files={"a/b": 1})
    found = look(str(area.path), "victim")
    full(lambda: None)
    removal = remove(str(area.path), "victim", found)
    assert (removal.blocked, removal.freed, area.names()) == (None, found.freed, [])


@pytest.mark.parametrize("when", ["before the look", "after it"])
def test_a_new_tree_under_that_name_is_left_alone_on_a_full_disk(
    area: Any, outside: Any, full: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    area.tree("victim", days=1, files={"a/b": 1})
    found, empty = look(str(area.path), "victim"), tree.empty

    def late(*arguments: Any) -> Removal:
        replace_victim(area, outside)
        return empty(*arguments)

    if when == "after it":
        full(lambda: monkeypatch.setattr(tree, "empty", late))
    else:
        full(lambda: replace_victim(area, outside))
    removal = remove(str(area.path), "victim", found)
    assert removal.blocked
    assert (removal.blocked.path, removal.blocked.reason) == (area.at("victim"), CHANGED)
    assert (removal.failed, removal.blocked.anomaly) == (False, False)
    assert area.files() == {"victim/a/b"}
    assert outside.files() == {"old/a/b"}


def test_a_tree_that_is_written_to_stays_where_it_is_on_a_full_disk(area: Any, full: Any) -> None:
    area.tree("victim", days=1, files={"a/b": 1})
    found = look(str(area.path), "victim")
    full(lambda: os.utime(area.at("victim/a/b")))
    removal = remove(str(area.path), "victim", found)
    assert removal.blocked
    assert removal.blocked.reason == CHANGED
    assert area.files() == {"victim/a/b"}
