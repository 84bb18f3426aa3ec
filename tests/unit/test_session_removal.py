# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A session goes whole, and only as it was planned; what was begun is finished, or left alone."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Any

import pytest

from besom import session_removal, sessions
from besom.durable_tree import remove_orphans
from besom.errors import UsageError
from besom.policy import Hooks, Policy, Store
from besom.prune import Request, orphans_of, prune
from besom.root import Root
from besom.sessions import FOREIGN, PUT_BACK
from besom.sweep import Temps, sweep
from besom.tree import CHANGED, FOR_SESSIONS, Cursor

TRASH = ".besom-trash-0123456789abcdef-sessions"


@pytest.fixture
def two(area: Any, session: Any) -> list[str]:
    """An old session `a` with three blobs, and `b`, which stays; all the names."""
    session(area, "a", days=9, blobs={"": 4096, ".dat": 4096, ".d/": 4096})
    session(area, "b", days=1)
    names: list[str] = area.names()
    return names


@pytest.mark.parametrize("what", ["a.json", "a.dat", "a.d", "a.d/sub/two"])
def test_a_lock_on_anything_in_it_keeps_a_session(
    area: Any, two: list[str], pruned: Any, hold: Any, reasons: Any, what: str
) -> None:
    held = hold(area.at(what))
    dry, real = (pruned(area, "sessions", max_age="5d", dry_run=dry_run) for dry_run in (True, False))
    assert not dry.changed
    assert not real.changed
    ((name, reason),) = reasons(real.kept).items()
    assert (name, f"pid {held.pid} " in reason) == (os.path.basename(what), True)
    assert area.names() == two


def test_a_fifo_among_its_blobs_keeps_a_session(area: Any, two: list[str], pruned: Any, reasons: Any) -> None:
    os.mkfifo(area.at("a.fifo"))
    report = pruned(area, "sessions", max_age="5d")
    assert reasons(report.kept) == {"a.fifo": "is a socket, FIFO or device"}
    assert area.names() == sorted([*two, "a.fifo"])


@pytest.mark.root
@pytest.mark.parametrize("what", ["a.dat", "a.d/sub/two", "a.json"])
def test_what_is_immutable_keeps_its_session_and_the_next_oldest_goes(
    area: Any, two: list[str], pruned: Any, chattr: Any, reasons: Any, what: str
) -> None:
    chattr("+i", area.at(what))
    dry = pruned(area, "sessions", max_entries=1, dry_run=True)
    real = pruned(area, "sessions", max_entries=1)
    assert (dry.planned, dry.bytes_after) == (real.removed, real.bytes_after)
    assert reasons(real.anomalies) == reasons(dry.anomalies) == {os.path.basename(what): "is immutable"}
    assert area.names() == [name for name in two if name[0] == "a"]


@pytest.mark.root
@pytest.mark.parametrize("what", ["a.dat", "a.d/sub"])
def test_a_mount_inside_keeps_a_session(
    area: Any, two: list[str], pruned: Any, mount: Any, outside: Any, reasons: Any, what: str
) -> None:
    source = outside.file("x") if what == "a.dat" else outside.dir("x")
    mount("--bind", source, area.at(what))
    report = pruned(area, "sessions", max_age="5d")
    assert reasons(report.kept) == {os.path.basename(what): "is a mount point"}
    assert [name for name in area.names() if name[0] == "."] == []
    assert not report.changed


def write(path: str) -> Callable[[], None]:
    def act() -> None:
        with open(path, "a") as stream:
            stream.write("more")

    return act


@pytest.mark.parametrize("event", ["os.mkdir", *[f"os.rename {n}" for n in range(4)]])
@pytest.mark.parametrize("what", ["a.json", "a", "a.dat", "a.d/sub/two"])
def test_a_session_that_changes_before_it_is_in_the_trash_is_put_back_whole(
    area: Any, two: list[str], pruned: Any, saboteur: Any, reasons: Any, event: str, what: str
) -> None:
    name, _space, nth = event.partition(" ")

    def act() -> None:
        places = [area.at(what), *(os.path.join(area.at(t), what) for t in area.names() if "/" not in t)]
        write(next(place for place in places if os.path.isfile(place)))()

    with saboteur.before(int(nth or 0), act, name) as acted:
        report = pruned(area, "sessions", max_age="5d")
        assert acted()
    assert list(reasons(report.kept).values()) == [CHANGED]
    assert (area.names(), report.removed.entries, report.victims.total) == (two, 0, 0)


def test_metadata_that_comes_anew_meanwhile_is_left_alone(
    area: Any, session: Any, two: list[str], pruned: Any, saboteur: Any
) -> None:
    with saboteur.before(2, lambda: session(area, "a", 0, blobs={}), "os.rename"):
        report = pruned(area, "sessions", max_age="5d")
    assert report.removed.entries == 1
    assert area.names() == ["a.json", "b.dat", "b.json"]


def test_what_is_put_back_replaces_nothing(
    area: Any, session: Any, two: list[str], pruned: Any, saboteur: Any
) -> None:
    def act() -> None:
        session(area, "a", 0, blobs={})
        write(area.at("a.dat"))()

    with saboteur.before(1, act, "os.rename"):
        assert not pruned(area, "sessions", max_age="5d").changed
    kept = [name for name in area.names() if ".besom-kept-" in name]
    assert sorted(set(area.names()) - set(kept)) == two
    # The metadata as it was, as one more blob of the session.
    assert [name[:18] for name in kept] == ["a.json.besom-kept-"]


def tick(path: str) -> None:
    """Wait until the clock of the file system that a directory is on has moved on."""
    os.utime(path)
    first = os.stat(path).st_ctime_ns
    while os.stat(path).st_ctime_ns == first:
        os.utime(path)


def begin(area: Any, *names: str) -> None:
    """What a kill leaves that comes after so many names went into the trash."""
    os.mkdir(area.at(TRASH), 0o700)
    tick(area.at(TRASH))
    for name in names:
        os.rename(area.at(name), area.at(os.path.join(TRASH, name)))


@pytest.mark.parametrize("count", range(5))
def test_a_removal_that_was_begun_is_finished(
    area: Any, two: list[str], pruned: Any, reasons: Any, count: int
) -> None:
    begin(area, *["a.json", "a", "a.d", "a.dat"][:count])
    dry = pruned(area, "sessions", max_age="50d", dry_run=True)
    real = pruned(area, "sessions", max_age="50d")
    assert (dry.planned, dry.bytes_after, dry.bytes_before) == (
        real.removed,
        real.bytes_after,
        real.bytes_before,
    )
    assert reasons(dry.victims) == {TRASH: "trash left by a crash"}
    assert (real.anomalies.total, real.failures.total) == (0, 0)
    # Where nothing was in the trash yet, nothing was begun.
    assert area.names() == ([name for name in two if name[0] == "b"] if count else two)
    assert not pruned(area, "sessions", max_age="50d").changed


def test_new_metadata_keeps_the_blobs_of_a_removal_that_was_begun(
    area: Any, session: Any, two: list[str], pruned: Any
) -> None:
    begin(area, "a.json", "a")
    session(area, "a", 0, blobs={})
    pruned(area, "sessions", max_age="5d")
    kept = [name for name in area.names() if name.startswith("a.json.besom-kept-")]
    assert (len(kept), sorted(set(area.names()) - set(kept))) == (1, two)


@pytest.mark.parametrize("what", ["a.dat", "a.new", "a.d/sub/two", "a.d/new"])
def test_a_removal_that_was_begun_is_undone_when_something_is_newer(
    area: Any, two: list[str], pruned: Any, reasons: Any, what: str
) -> None:
    begin(area, "a.json", "a")
    write(area.at(what))()
    for dry_run in (True, False):
        report = pruned(area, "sessions", max_age="5d", dry_run=dry_run)
        assert (reasons(report.kept), report.changed) == ({TRASH: PUT_BACK}, False)
    assert area.names() == sorted({*two, what})
    pruned(area, "sessions", max_age="5d")
    assert area.names() == [name for name in two if name[0] == "b"]


def test_trash_that_another_besom_is_at_work_on_is_left_alone(
    area: Any, two: list[str], pruned: Any, hold: Any
) -> None:
    begin(area, "a.json")
    hold(area.at(TRASH))
    before = area.names()
    report = pruned(area, "sessions", max_age="5d")
    assert (area.names(), report.anomalies.total, report.changed) == (before, 1, False)


@pytest.mark.root
def test_trash_of_a_stranger_begins_nothing(area: Any, two: list[str], pruned: Any, reasons: Any) -> None:
    begin(area, "a.json")
    os.chown(area.at(TRASH), 65534, 65534)
    report = pruned(area, "sessions", max_age="5d")
    assert set(reasons(report.anomalies)) == {"a", "a.d", "a.dat", TRASH}
    assert area.names() == sorted([TRASH, f"{TRASH}/a.json", *(name for name in two if name != "a.json")])


def test_trash_that_others_can_enter_begins_nothing(area: Any, two: list[str], pruned: Any) -> None:
    begin(area, "a.json")
    (area.path / TRASH).chmod(0o710)
    before = area.names()
    assert not pruned(area, "sessions", max_age="5d").changed
    assert area.names() == before


def test_a_directory_that_cannot_be_moved_keeps_its_session(
    area: Any, two: list[str], pruned: Any, reasons: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = os.stat(area.at("a.d")).st_ino
    monkeypatch.setattr("besom.sessions.can_write", lambda fd: os.fstat(fd).st_ino != fixed)
    report = pruned(area, "sessions", max_age="5d", dry_run=True)
    assert (reasons(report.anomalies), report.changed) == ({"a.d": "cannot be written"}, False)


def test_a_directory_that_only_looks_like_the_trash_of_trees_begins_nothing(
    area: Any, two: list[str], pruned: Any
) -> None:
    area.tree(TRASH[: -len("-sessions")], files={"x.json": 1})
    area.file("x.dat", days=99)
    report = pruned(area, "sessions", max_age="50d")
    assert report.anomalies.total == 1
    assert area.names() == sorted([*two, "x.dat"])


@pytest.mark.parametrize("call", ["mkdir", "rename"])
@pytest.mark.parametrize("nth", range(4))
def test_on_a_full_disk_a_session_goes_where_it_is(
    area: Any, two: list[str], pruned: Any, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    real, left = getattr(os, call), [nth]

    def full(*arguments: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] < 0 or call == "mkdir":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **options)

    monkeypatch.setattr(os, call, full)
    report = pruned(area, "sessions", max_age="5d")
    assert (report.removed.entries, report.failures.total) == (1, 0)
    assert area.names() == [name for name in two if name[0] == "b"]


def test_on_a_full_disk_one_blob_makes_room_for_the_trash(
    area: Any, two: list[str], pruned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = os.mkdir, []

    def mkdir(*arguments: Any, **options: Any) -> None:
        seen.append([name for name in area.names() if name in ("a", "a.dat", "a.d", "a.json")])
        if len(seen) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*arguments, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    assert pruned(area, "sessions", max_age="5d").removed.entries == 1
    assert [len(names) for names in seen] == [4, 3]
    assert area.names() == [name for name in two if name[0] == "b"]


def test_blobs_that_share_an_inode_free_it_with_the_last_of_them(
    area: Any, session: Any, pruned: Any, allocated: Any
) -> None:
    for days, name in enumerate(("a", "b", "c"), 1):
        session(area, name, days)
        if name != "a":
            os.unlink(area.at(f"{name}.dat"))
            os.link(area.at("a.dat"), area.at(f"{name}.dat"))
    before = allocated(area)
    for left in (2, 1):
        dry = pruned(area, "sessions", max_entries=left, dry_run=True)
        real = pruned(area, "sessions", max_entries=left)
        assert dry.planned == real.removed
        assert real.removed.bytes == before - allocated(area)
        assert (real.bytes_after, real.bytes_before) == (allocated(area), before)
        before = allocated(area)


@pytest.mark.root
def test_in_a_sticky_store_metadata_decides_about_its_owners_names_only(
    area: Any, two: list[str], pruned: Any, reasons: Any
) -> None:
    area.path.chmod(0o1777)
    os.chown(area.at("a.json"), 65534, 65534)
    for dry_run in (True, False):
        report = pruned(area, "sessions", max_age="5d", dry_run=dry_run)
        assert (set(reasons(report.anomalies).values()), report.changed) == ({FOREIGN}, False)
    assert area.names() == two
    for name in ("a", "a.dat", "a.d"):
        os.chown(area.at(name), 65534, 65534)
    assert pruned(area, "sessions", max_age="5d").removed.entries == 1


@pytest.mark.parametrize("new", ["a.new", "a.d.json"])
def test_what_joins_a_session_after_the_plan_keeps_it(
    area: Any, session: Any, two: list[str], make_run: Any, reasons: Any, new: str
) -> None:
    """A new blob, and new metadata that takes a blob over."""
    session(area, "c", days=9)
    hooks = Hooks(before=f"touch {area.at(new)}")
    report = prune(Request(Store(str(area.path), "sessions", Policy(max_entries=1), hooks=hooks)), make_run())
    assert (reasons(report.kept), report.removed.entries) == ({"a": CHANGED}, 1)
    assert area.names() == sorted([*two, new])


def test_what_a_kill_left_in_both_places_is_put_back_once(area: Any, two: list[str], pruned: Any) -> None:
    begin(area, "a.json", "a.dat")
    os.link(area.at(f"{TRASH}/a.dat"), area.at("a.dat"))
    pruned(area, "sessions", max_age="50d")
    assert area.names() == two


def test_metadata_that_appears_while_a_removal_is_finished_undoes_it(
    area: Any, session: Any, two: list[str], pruned: Any, saboteur: Any, reasons: Any
) -> None:
    begin(area, "a.json")
    with saboteur.before(1, lambda: session(area, "a", 0, blobs={}), "os.rename") as acted:
        report = pruned(area, "sessions", max_age="50d")
        assert acted()
    assert set(reasons(report.kept).values()) == {PUT_BACK}
    kept = [name for name in area.names() if name.startswith("a.json.besom-kept-")]
    assert (len(kept), sorted(set(area.names()) - set(kept))) == (1, two)


def test_only_a_prune_of_sessions_finishes_their_trash(
    area: Any, two: list[str], pruned: Any, make_run: Any, reasons: Any
) -> None:
    begin(area, "a.json")
    before = area.names()
    for report in (
        prune(orphans_of(Store(str(area.path), "sessions", Policy()), 0), make_run()),
        pruned(area, "files", max_age="9999d"),
        pruned(area, "trees", max_age="9999d"),
        sweep(Temps(str(area.path), (".besom-*",), 0), make_run()),
    ):
        assert (reasons(report.kept), report.changed) == ({TRASH: FOR_SESSIONS}, False)
    with Root(str(area.path)) as root:
        remove_orphans(root, make_run())
    assert area.names() == before


def replace_trash(area: Any, outside: Any) -> Callable[[], None]:
    def act() -> None:
        (trash,) = [name for name in os.listdir(area.path) if name.startswith(".besom-trash-")]
        os.rename(area.at(trash), area.at("moved"))
        os.rename(outside.path, area.at(trash))

    return act


def test_a_directory_in_the_place_of_the_trash_is_left_alone(
    area: Any, two: list[str], pruned: Any, outside: Any
) -> None:
    for name in ("a.json", "a.dat"):
        outside.file(name)
    real = os.rename
    left = [4]

    def rename(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        left[0] -= 1
        if not left[0]:
            replace_trash(area, outside)()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", rename)
        report = pruned(area, "sessions", max_age="5d")
    assert report.removed.entries == 0
    assert set(two) <= set(area.names())
    (trash,) = [name for name in os.listdir(area.path) if name.startswith(".besom-trash-")]
    assert sorted(os.listdir(area.at(trash))) == ["a.dat", "a.json"]


@pytest.mark.parametrize("stuck", ["", "a.dat"])
def test_a_session_that_cannot_be_verified_in_the_trash_is_put_back(
    area: Any, two: list[str], pruned: Any, reasons: Any, stuck: str
) -> None:
    """Also when one of its names cannot be put back at first: then its metadata waits for that."""
    put_back = session_removal.put_back

    def refused(remover: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    def some(source: int, trash: str, target: int, name: str, is_dir: bool) -> None:
        if name == stuck:
            raise OSError(errno.EIO, "Input/output error")
        put_back(source, trash, target, name, is_dir)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_removal._Hand, "_enter", refused)
        patch.setattr(session_removal, "put_back", some)
        report = pruned(area, "sessions", max_age="5d")
    ((_name, reason),) = reasons(report.failures).items()
    if stuck:
        assert "still in .besom-trash-" in reason
        assert not os.path.exists(area.at("a.json"))
        assert set(reasons(pruned(area, "sessions", max_age="50d").kept).values()) == {PUT_BACK}
    assert area.names() == two


def test_a_session_of_more_directories_than_descriptors_goes(area: Any, session: Any, pruned: Any) -> None:
    session(area, "a", days=9, blobs={f".{n}/": 1 for n in range(150)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, hard))
    try:
        report = pruned(area, "sessions", max_age="5d")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.removed.entries, area.names()) == (1, [])


def test_a_mishap_with_the_trash_fails_no_later_session(
    area: Any, session: Any, pruned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that cannot be entered once made, and one that somebody removes while it is empty."""
    for id_ in "abc":
        session(area, id_, days=9)
    real, calls = Cursor.enter, []

    def enter(cursor: Cursor, name: str) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise OSError(errno.ENFILE, "Too many open files in system")
        real(cursor, name)

    remove = session_removal._Hand.remove

    def after(hand: Any, row: Any) -> Any:
        for name in os.listdir(area.path):
            if name.startswith(".besom-trash-"):
                os.rmdir(area.at(name))
        return remove(hand, row)

    monkeypatch.setattr(Cursor, "enter", enter)
    monkeypatch.setattr(session_removal._Hand, "remove", after)
    report = pruned(area, "sessions", max_age="5d")
    assert (report.removed.entries, report.failures.total) == (2, 1)
    assert area.names() == ["a.dat", "a.json"]


def test_a_listing_is_not_disturbed_by_who_begins_at_the_same_store(
    area: Any, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More names than the kernel gives at once; of an open directory all forks share the place to go on."""
    for number in range(900):
        session(area, f"{number:03}", days=9, blobs={".with-a-long-name-of-its-own": 1})
    with Root(str(area.path)) as root:
        cursor, is_own, seen = Cursor(root), sessions.is_own, []

        def another(name: str) -> bool:
            seen.append(name)
            if len(seen) in (600, 1200):
                Cursor(root)
            return is_own(name)

        monkeypatch.setattr(sessions, "is_own", another)
        parts = sessions.parts_now(cursor)
    assert len(seen) == 1800
    assert set(map(tuple, parts.values())) == {("f.with-a-long-name-of-its-own",)}


def test_a_full_disk_does_not_keep_what_was_begun(
    area: Any, two: list[str], pruned: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(area, "a.json")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    report = pruned(area, "sessions", max_age="50d")
    assert (report.removed.entries, area.names()) == (1, [name for name in two if name[0] == "b"])


def test_a_blob_with_a_time_in_the_future_goes_too(area: Any, two: list[str], pruned: Any) -> None:
    os.utime(area.at("a.d/one"), (2**31, 2**31))
    begin(area, "a.json")
    pruned(area, "sessions", max_age="50d")
    assert area.names() == [name for name in two if name[0] == "b"]


@pytest.mark.parametrize("id_", ["a.d/sub", "x" * 251])
def test_an_id_that_can_be_none_is_a_failure(
    area: Any, two: list[str], make_run: Any, reasons: Any, id_: str
) -> None:
    area.file("a.d/sub.json")
    request = Request(Store(str(area.path), "sessions", Policy()), ids=frozenset({id_}))
    assert set(reasons(prune(request, make_run()).failures).values()) == {"is no entry"}


def test_an_empty_group_is_refused(area: Any, two: list[str], make_run: Any) -> None:
    with pytest.raises(UsageError, match="group is empty"):
        prune(Request(Store(str(area.path), "sessions", Policy()), group=""), make_run())


def replace(area: Any, outside: Any, name: str) -> None:
    """Move away what has this name, and make another there that differs in nothing but its inodes."""
    st = os.lstat(area.at(name))
    os.rename(area.at(name), outside.at(name))
    if name.endswith(".d"):
        area.tree(name, 9, {"one": 4096, "sub/two": 4096})
    else:
        with open(outside.at(name), "rb") as old, open(area.at(name), "wb") as new:
            new.write(old.read())
    os.utime(area.at(name), ns=(st.st_atime_ns, st.st_mtime_ns))


@pytest.mark.parametrize("moved", range(4))
@pytest.mark.parametrize("what", ["a", "a.dat", "a.d", "a.json"])
def test_on_a_full_disk_what_is_new_under_a_name_is_left_alone(
    area: Any,
    two: list[str],
    pruned: Any,
    outside: Any,
    reasons: Any,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    moved: int,
) -> None:
    """Replaced just before the disk turns out to have no room for one more name in the trash."""
    real, left = os.rename, [moved]
    inodes: list[int] = []

    def full(*arguments: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] >= 0:
            real(*arguments, **options)
            return
        monkeypatch.undo()
        if os.path.exists(area.at(what)):
            replace(area, outside, what)
            inodes.append(os.lstat(area.at(what)).st_ino)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    report = pruned(area, "sessions", max_age="5d")
    if not inodes:
        # It was in the trash by then.
        assert (report.removed.entries, area.names()) == (1, [name for name in two if name[0] == "b"])
        return
    assert os.lstat(area.at(what)).st_ino == inodes[0]
    assert report.removed.entries == 0
    assert list(reasons(report.kept).values()) == [CHANGED]
    assert area.names() == two


@pytest.mark.parametrize("what", ["a", "a.dat", "a.d"])
def test_on_a_full_disk_what_is_new_beside_a_trash_ends_the_removal_that_was_begun(
    area: Any,
    two: list[str],
    pruned: Any,
    outside: Any,
    reasons: Any,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    begin(area, "a.json")

    def full(*_arguments: Any, **_options: Any) -> None:
        monkeypatch.undo()
        replace(area, outside, what)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    report = pruned(area, "sessions", max_age="50d")
    assert reasons(report.kept) == {TRASH: PUT_BACK}
    assert (report.removed.entries, area.names()) == (0, two)
