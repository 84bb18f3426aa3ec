# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Trees take their place whole, and what killed writers leave is removed; nothing else is."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from besom import durable_tree
from besom.durable import Retries, draft
from besom.durable_tree import TreeDraft, is_old, remove_orphans, tree_draft
from besom.errors import BesomError, UsageError
from besom.report import Report
from besom.root import Root
from besom.run import Run

HEX = "0123456789abcdef"
TREE = f".temp-app-{HEX}"
PART = f".data.{HEX}.part"
SWAP = ".besom-swap-app-{:x}-01234567"
TRASH = f".besom-trash-{HEX}"


@pytest.fixture
def root(area: Any) -> Iterator[Root]:
    with Root(str(area.path)) as one:
        yield one


def fill(one: TreeDraft, content: str = "new") -> None:
    os.mkdir("lib", dir_fd=one.fd)
    for name in ("version", "lib/code"):
        fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=one.fd)
        os.write(fd, content.encode())
        os.close(fd)
    os.symlink("version", "link", dir_fd=one.fd)


def install(root: Root, content: str = "new", aside: str | None = None) -> Retries:
    retries = Retries()
    with tree_draft(root, "app", retries) as one:
        fill(one, content)
        one.commit(aside)
    return retries


def content(area: Any, name: str = "app") -> str:
    found = {(Path(area.at(name)) / part).read_text() for part in ("version", "lib/code", "link")}
    assert len(found) == 1
    return found.pop()


def tops(area: Any) -> list[str]:
    return sorted(os.listdir(area.path))


def no_exchange(*_arguments: Any) -> bool:
    return False


@pytest.fixture(params=["exchange", "swap"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How an old tree is replaced: in one step, or where the file system has none."""
    if request.param == "swap":
        monkeypatch.setattr(durable_tree, "_exchange", no_exchange)


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, nth: int, number: int, times: int = 1) -> None:
    """Have the nth call of one of os fail, and those after it, so many times."""
    real, calls = getattr(os, call), iter(range(sys.maxsize))

    def one(*arguments: Any, **options: Any) -> Any:
        if nth <= next(calls) < nth + times:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, one)


def test_a_tree_is_there_whole_or_not_at_all(root: Root, area: Any) -> None:
    with tree_draft(root, "app") as one:
        fill(one)
        assert tops(area) == [one.name]
        assert os.fstat(one.fd).st_mode & 0o7777 == 0o700
        one.seal(0o750)
        assert tops(area) == [one.name]
        assert not one.commit()
    assert tops(area) == ["app"]
    assert content(area) == "new"
    assert os.stat(area.at("app")).st_mode & 0o7777 == 0o750


@pytest.mark.usefixtures("way")
def test_an_upgrade_replaces_the_old_tree_which_goes_or_gets_the_name_that_it_is_given(
    root: Root, area: Any
) -> None:
    for number, aside in (("1", None), ("2", None), ("3", ".besom-old-app-2"), ("4", ".besom-old-app-3")):
        install(root, number, aside)
        assert content(area) == number
    assert tops(area) == [".besom-old-app-2", ".besom-old-app-3", "app"]
    assert (content(area, ".besom-old-app-2"), content(area, ".besom-old-app-3")) == ("2", "3")


def test_a_tree_is_exchanged_in_one_step_where_the_kernel_can(root: Root, area: Any) -> None:
    install(root, "old")
    area.dir("other")
    if not durable_tree._exchange(root.fd, "app", "other"):
        pytest.skip("this file system exchanges no names")
    durable_tree._exchange(root.fd, "app", "other")
    os.rmdir(area.at("other"))
    # Were it done in several steps, the old tree would have a third name.
    old = os.stat(area.at("app")).st_ino
    with tree_draft(root, "app") as one:
        fill(one)
        one.commit()
        assert os.stat(area.at(one.name)).st_ino == old
    assert tops(area) == ["app"]


# One rename before an exchange and one after it; without it there are five.
@pytest.mark.parametrize(
    ("way", "nth"),
    [*(("exchange", nth) for nth in range(2)), *(("swap", nth) for nth in range(5))],
    indirect=["way"],
)
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY])
def test_a_refused_rename_leaves_all_as_it_was(
    root: Root, area: Any, monkeypatch: pytest.MonkeyPatch, nth: int, number: int
) -> None:
    install(root, "old")
    refuse(monkeypatch, "rename", nth, number, 2 if number == errno.EBUSY else 1)
    retries = Retries()
    with tree_draft(root, "app", retries) as one:
        fill(one)
        if number == errno.EBUSY:
            assert one.commit(".besom-old-app-1", pause=lambda seconds: None)
        else:
            with pytest.raises(BesomError, match="app cannot be published"):
                one.commit(".besom-old-app-1")
    if number == errno.EBUSY:
        assert retries.tries == 2
        assert content(area) == "new"
        assert tops(area) == [".besom-old-app-1", "app"]
    else:
        assert content(area) == "old"
        assert tops(area) == ["app"]


def test_what_is_not_committed_leaves_nothing(root: Root, area: Any) -> None:
    install(root, "old")

    def fail() -> None:
        with tree_draft(root, "app") as one:
            fill(one)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with tree_draft(root, "app") as one:
        fill(one)
    assert tops(area) == ["app"]
    assert content(area) == "old"


def test_every_file_and_directory_is_synced_before_the_rename_and_the_root_after_it(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    inodes: list[Any] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (inodes.append(os.fstat(fd).st_ino), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda *a, **o: (inodes.append("rename"), rename(*a, **o)))
    with tree_draft(root, "app") as one:
        fill(one)
        expected = {os.stat(name, dir_fd=one.fd).st_ino for name in (".", "lib", "version", "lib/code")}
        one.seal()
        one.commit()
    # The tree itself once more, with its owner and mode.
    assert set(inodes[:4]) == expected
    assert inodes[4] in expected
    assert inodes[5:] == ["rename", root.ident[1]]


@pytest.mark.parametrize("sound", [True, False])
def test_many_files_are_synced_at_once_where_that_is_sound(
    root: Root, monkeypatch: pytest.MonkeyPatch, sound: bool
) -> None:
    calls: list[str] = []
    fsync, call = os.fsync, durable_tree._call
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(durable_tree, "_call", lambda name, *a: (calls.append(name), call(name, *a)))
    monkeypatch.setattr(durable_tree, "_syncfs_is_sound", lambda fd: sound)
    monkeypatch.setattr(durable_tree, "_FEW", 3)
    with tree_draft(root, "app") as one:
        for name in "abcd":
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=one.fd))
        one.seal()
    assert ("syncfs" in calls) == sound
    assert calls.count("fsync") == (4 if sound else 6)


@pytest.mark.parametrize("call", ["fsync", "syncfs"])
def test_a_failed_sync_is_final(root: Root, area: Any, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    install(root, "old")
    if call == "fsync":
        refuse(monkeypatch, "fsync", 2, errno.EIO)
    else:

        def fail(name: str, *_arguments: Any) -> None:
            raise OSError(errno.EIO, f"{name} failed")

        monkeypatch.setattr(durable_tree, "_syncfs_is_sound", lambda fd: True)
        monkeypatch.setattr(durable_tree, "_FEW", 1)
        monkeypatch.setattr(durable_tree, "_call", fail)
    with tree_draft(root, "app") as one:
        fill(one)
        with pytest.raises(BesomError, match="brought to the disk"):
            one.seal()
        assert tops(area) == ["app"]
        with pytest.raises(BesomError, match="discarded before"):
            one.commit()
    assert content(area) == "old"


def test_a_failed_sync_of_the_root_removes_neither_tree(
    root: Root, area: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(root, "old")
    with tree_draft(root, "app") as one:
        fill(one)
        one.seal()
        refuse(monkeypatch, "fsync", 0, errno.EIO)
        with pytest.raises(BesomError, match="brought to the disk"):
            one.commit()
    assert {content(area, name) for name in tops(area)} == {"old", "new"}


@pytest.mark.parametrize("kind", ["file", "symlink"])
def test_what_is_no_tree_is_not_replaced(root: Root, area: Any, outside: Any, kind: str) -> None:
    area.file("app") if kind == "file" else area.symlink("app", str(outside.path))
    with tree_draft(root, "app") as one:
        fill(one)
        with pytest.raises(BesomError, match="is not a directory"):
            one.commit()
    assert tops(area) == ["app"]


def test_no_tree_is_put_aside_over_another(root: Root, area: Any) -> None:
    install(root, "old")
    area.dir("kept")
    with tree_draft(root, "app") as one:
        fill(one)
        with pytest.raises(BesomError, match="kept is there already"):
            one.commit("kept")
    assert content(area) == "old"


@pytest.mark.parametrize("name", ["", "..", "a/b", "x" * 218, TREE, ".besom-old-app-1"])
def test_names_that_cannot_be_published_are_refused_at_once(root: Root, area: Any, name: str) -> None:
    with pytest.raises(UsageError), tree_draft(root, name):
        pass
    assert tops(area) == []


@pytest.mark.usefixtures("way")
def test_the_longest_name_works(root: Root, area: Any) -> None:
    name = os.fsdecode(b"\xff" * 217)
    for _ in range(2):
        with tree_draft(root, name) as one:
            fill(one)
            one.commit()
    assert tops(area) == [name]


def test_a_root_that_was_replaced_meanwhile_gets_nothing(root: Root, area: Any) -> None:
    with tree_draft(root, "app") as one:
        fill(one)
        area.path.rename(str(area.path) + "-moved")
        area.path.mkdir()
        root.reopen()
        with pytest.raises(BesomError, match="somebody has moved or removed"):
            one.commit()
    assert tops(area) == []


def orphans(area: Any) -> None:
    area.tree(TREE)
    area.tree(TRASH)
    area.file(PART)
    area.file(f"sub/deep/{PART}")


def tidy(root: Root, make_run: Callable[..., Run], **options: Any) -> Report:
    dry_run = options.pop("dry_run", False)
    return remove_orphans(root, make_run(dry_run=dry_run), **options)


def test_orphans_are_removed_however_young_and_a_dry_run_foretells_it(
    root: Root, area: Any, make_run: Callable[..., Run], snapshot: Callable[..., Any]
) -> None:
    orphans(area)
    install(root, "new")
    before = snapshot(area)
    foretold = tidy(root, make_run, dry_run=True, directories=["sub/deep", "missing"])
    assert snapshot(area) == before
    done = tidy(root, make_run, directories=["sub/deep", "missing"])
    assert foretold.planned == done.planned == done.removed
    assert foretold.victims == done.victims
    assert (done.removed.entries, done.changed, foretold.changed) == (4, True, True)
    assert tops(area) == ["app", "sub"]
    assert not tidy(root, make_run, directories=["sub/deep"]).changed
    assert area.names() == ["app", "app/lib", "app/lib/code", "app/link", "app/version", "sub", "sub/deep"]


def test_temps_of_living_writers_and_of_other_tools_stay(
    root: Root, area: Any, make_run: Callable[..., Run], hold: Callable[..., Any], reasons: Callable[..., Any]
) -> None:
    others = [".temp-app", f".temp-app-{HEX}0", "data.part", f".temp-file-{HEX}", f".data.{HEX[1:]}.part"]
    for name in (*others, PART):
        area.file(name)
    area.tree(TREE)
    area.dir(f".dir.{HEX}.part")
    before = area.names()
    held = [hold(area.at(name)) for name in (TREE, PART)]
    with draft(root.fd, root.path, "data") as file, tree_draft(root, "app") as tree:
        fill(tree)
        report = tidy(root, make_run)
        assert not report.changed
        kept = reasons(report.kept)
        assert sorted(kept) == sorted([TREE, PART, file.name, tree.name])
        assert "in use: locked by pid" in kept[PART]
        tree.commit()
        file.publish()
    assert set(before) < set(area.names())
    for one in held:
        one.release()
    assert tidy(root, make_run).removed.entries == 2
    assert tops(area) == sorted([*others, f".dir.{HEX}.part", "app", "data"])


def test_temps_to_be_spared_stay(root: Root, area: Any, make_run: Callable[..., Run]) -> None:
    orphans(area)
    tidy(root, make_run, directories=["sub/deep"], spare={f"sub/deep/{PART}", TREE})
    assert area.names() == [TREE, f"{TREE}/data", "sub", "sub/deep", f"sub/deep/{PART}"]


def test_hygiene_does_not_leave_its_root(
    root: Root, area: Any, outside: Any, make_run: Callable[..., Run]
) -> None:
    outside.file(PART)
    area.symlink("link", str(outside.path))
    tidy(root, make_run, directories=["link"])
    with pytest.raises(UsageError, match="leads out of"):
        tidy(root, make_run, directories=["a/../../outside"])
    assert outside.names() == [PART]


def cut_off(root: Root, area: Any, make_run: Callable[..., Run], swap: str) -> Report:
    """The hygiene after a replacement that left what is named swap; what it does is foretold."""
    foretold = tidy(root, make_run, dry_run=True)
    assert swap in tops(area)
    report = tidy(root, make_run)
    assert foretold.planned == report.planned == report.removed
    assert (foretold.warnings, foretold.changed) == ([], report.changed)
    return report


def test_an_old_tree_that_can_be_neither_named_nor_put_back_is_not_lost(
    root: Root, area: Any, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    install(root, "old")
    real, calls = durable_tree._exchange, iter((False, True))

    def exchange(*arguments: Any) -> bool:
        if next(calls):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(durable_tree, "_exchange", exchange)
        refuse(patch, "rename", 1, errno.EIO)
        with pytest.raises((BesomError, OSError), match="Input/output error"):
            install(root, "new", ".besom-old-app-1")
    if content(area) == "old":
        pytest.skip("this file system exchanges no names")
    assert tidy(root, make_run).removed.entries == 1
    old, _new = tops(area)
    assert is_old(old, "app")
    assert (content(area, old), content(area)) == ("old", "new")


def test_an_old_tree_that_made_room_in_vain_is_put_back(
    root: Root, area: Any, make_run: Callable[..., Run]
) -> None:
    install(root, "old")
    swap = SWAP.format(os.stat(area.at("app")).st_ino)
    os.rename(area.at("app"), area.at(swap))
    assert "the old one is back" in cut_off(root, area, make_run, swap).warnings[0]
    assert tops(area) == ["app"]
    assert content(area) == "old"


def test_an_old_tree_that_was_replaced_and_not_named_becomes_an_old_version(
    root: Root, area: Any, make_run: Callable[..., Run]
) -> None:
    install(root, "old")
    swap = SWAP.format(os.stat(area.at("app")).st_ino)
    os.rename(area.at("app"), area.at(swap))
    install(root, "new")
    assert "the old one is .besom-old-app-" in cut_off(root, area, make_run, swap).warnings[0]
    old, new = tops(area)
    assert is_old(old, "app")
    assert (content(area, old), content(area, new)) == ("old", "new")


def test_a_new_tree_that_was_not_put_in_its_place_goes(
    root: Root, area: Any, make_run: Callable[..., Run]
) -> None:
    install(root, "old")
    area.tree(swap := SWAP.format(os.stat(area.at("app")).st_ino))
    assert cut_off(root, area, make_run, swap).removed.entries == 1
    assert tops(area) == ["app"]
    assert content(area) == "old"


def test_where_nobody_can_tell_the_old_tree_from_the_new_one_both_stay(
    root: Root, area: Any, make_run: Callable[..., Run]
) -> None:
    install(root, "one")
    area.tree(swap := SWAP.format(0))
    report = cut_off(root, area, make_run, swap)
    assert (report.changed, report.anomalies.total) == (False, 1)
    assert "may be an old version of app" in report.anomalies.items[0]["reason"]
    assert tops(area) == [swap, "app"]


def test_where_flock_keeps_nobody_out_no_temp_is_an_orphan(
    root: Root, area: Any, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    orphans(area)
    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)
    report = tidy(root, make_run)
    assert (report.removed.entries, report.kept.total, report.victims.total) == (1, 2, 1)
    with tree_draft(root, "app") as one:
        fill(one)
        tidy(root, make_run)
        one.commit()
    # One's own temps go all the same.
    with tree_draft(root, "app") as one:
        fill(one)
    assert tops(area) == [PART, TREE, "app", "sub"]


def test_where_flock_is_refused_trees_are_published_and_replaced_all_the_same(
    root: Root, area: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_lock(fd: int, operation: int) -> None:
        raise OSError(errno.EBADF, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", refuse_lock)
    install(root, "old")
    install(root, "new")
    with tree_draft(root, "app") as one:
        fill(one, "newer")
    assert tops(area) == ["app"]
    assert content(area) == "new"


def test_a_temp_lost_between_its_creation_and_its_lock_is_made_anew(
    root: Root, area: Any, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, reports = durable_tree.lock_temp, []

    def lock_temp(fd: int) -> bool:
        if not reports:
            reports.append(tidy(root, make_run))
        return bool(real(fd))

    monkeypatch.setattr(durable_tree, "lock_temp", lock_temp)
    install(root)
    assert reports[0].removed.entries == 1
    assert tops(area) == ["app"]
