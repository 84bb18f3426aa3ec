# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import fcntl
import hashlib
import itertools
import os
import re
import shutil
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from tests.host.mirror import PATIENCE_S, Mirror, Status, serve, stalled

from besom.artifacts import read_artifacts
from besom.claim import Listings
from besom.durable import Draft, draft, list_parts
from besom.errors import LockHeld, NoSpace, UsageError
from besom.housekeep import Outcome
from besom.opener import plain_opener
from besom.preflight import Need, Verdict
from besom.run import Forecast, Run
from besom.shutdown import Shutdown
from besom.sync import SyncReport, SyncRequest, sync
from besom.units import Share

CONTENT = hashlib.sha256(b"seed").digest() * 3000  # 96 KB
OPENER = plain_opener(timeout=20, redirects=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Mirror]:
    with serve() as mirror:
        yield mirror


class Scene:
    """A store, a mirror, and what is to come from one to the other."""

    def __init__(self, store: Path, mirror: Mirror) -> None:
        self.store, self.mirror = store, mirror
        self.artifacts: list[dict[str, Any]] = []
        self.said: list[str] = []
        store.mkdir()

    def add(self, dest: str, content: bytes = CONTENT, checked: bool = True, **more: Any) -> None:
        """An artifact, with its checksum unless told otherwise; more is for the file on the mirror."""
        file = self.mirror.add(f"/{dest}", content, **{"etag": f'"{len(self.mirror.files)}"', **more})
        checksum = {"checksum": file.checksum} if checked else {}
        self.artifacts.append({"url": f"{self.mirror.url}/{dest}", "dest": dest, **checksum})

    def sync(self, run: Run | None = None, **more: Any) -> SyncReport:
        self.mirror.asked.clear()
        run = run or Run(lock_timeout=0, dry_run=more.pop("dry_run", False))
        run.waiting = self.said.append
        request = SyncRequest(str(self.store), read_artifacts(self.artifacts), OPENER, **more)
        return sync(request, run)

    def path(self, dest: str) -> Path:
        return self.store / dest

    @property
    def files(self) -> list[str]:
        """All that is in the store and no directory."""
        return sorted(
            str(path.relative_to(self.store)) for path in self.store.rglob("*") if not path.is_dir()
        )

    @property
    def counts(self) -> dict[str, int]:
        return dict(self.mirror.counts)


@pytest.fixture
def scene(tmp_path: Path, server: Mirror) -> Scene:
    server.files.clear()
    server.most_busy = 0
    return Scene(tmp_path / "store", server)


@pytest.fixture
def xattrs(tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "user.besom.test", b"1")
    except OSError:
        pytest.skip("this file system has no extended attributes")


def dests(noted: Any) -> list[str]:
    return sorted(item["path"] for item in noted.items)


def test_what_is_missing_comes_and_a_second_run_asks_for_nothing(scene: Scene) -> None:
    for dest in ("one", "deep/er/two", "deep/three"):
        scene.add(dest)
    report = scene.sync()
    assert dests(report.fetched) == scene.files == ["deep/er/two", "deep/three", "one"]
    assert all(scene.path(dest).read_bytes() == CONTENT for dest in scene.files)
    assert report.changed
    assert report.figures.bytes == 3 * len(CONTENT)
    assert report.planned.to_dict() == {"entries": 3, "bytes": 3 * len(CONTENT)}
    again = scene.sync()
    assert not again.changed
    assert again.unchanged.total == 3
    assert scene.mirror.asked == []


def test_a_dry_run_predicts_and_changes_nothing(scene: Scene) -> None:
    scene.add("one")
    scene.add("two", checked=False)
    scene.sync()
    scene.add("three")
    scene.mirror.add("/two", CONTENT * 2, etag='"new"')
    report = scene.sync(dry_run=True)
    assert dests(report.fetched) == ["three", "two"]
    assert report.changed
    assert scene.files == ["one", "two"]
    assert "GET" not in scene.counts
    assert dests(scene.sync().fetched) == ["three", "two"]


def test_a_refresh_of_metadata_costs_one_304(scene: Scene, xattrs: None) -> None:
    scene.add("index", checked=False)
    scene.sync()
    report = scene.sync()
    assert report.unchanged.total == 1
    assert len(scene.mirror.asked) == 1
    # Where HEAD is refused, the GET itself is answered with 304.
    scene.mirror.files["/index"].head = 405
    assert not scene.sync().changed
    assert scene.counts == {"HEAD": 1, "GET": 1}


def test_what_somebody_changed_comes_again(scene: Scene) -> None:
    scene.add("one")
    scene.add("two", checked=False)
    scene.sync()
    for dest in ("one", "two"):
        st = scene.path(dest).stat()
        scene.path(dest).write_bytes(CONTENT[::-1])
        os.utime(scene.path(dest), ns=(st.st_atime_ns, st.st_mtime_ns + 1))
    assert dests(scene.sync().fetched) == ["one", "two"]
    assert scene.path("one").read_bytes() == scene.path("two").read_bytes() == CONTENT


def test_a_full_check_trusts_no_stat(scene: Scene, xattrs: None) -> None:
    scene.add("one")
    scene.add("two", checked=False)
    scene.sync()
    for dest in ("one", "two"):
        st = scene.path(dest).stat()
        scene.path(dest).write_bytes(CONTENT[::-1])
        os.utime(scene.path(dest), ns=(st.st_atime_ns, st.st_mtime_ns))
    assert not scene.sync().changed
    assert dests(scene.sync(full_check=True).fetched) == ["one", "two"]


def test_what_is_the_same_already_is_not_published_again(scene: Scene, xattrs: None) -> None:
    """Another tool put it there: it is fetched once, to know what it is."""
    scene.add("one", checked=False)
    scene.path("one").write_bytes(CONTENT)
    inode = scene.path("one").stat().st_ino
    assert not scene.sync().changed
    assert scene.path("one").stat().st_ino == inode
    assert not scene.sync().changed
    assert scene.counts == {"HEAD": 1}


def test_what_fails_keeps_no_other_from_its_turn(scene: Scene) -> None:
    scene.add("one")
    scene.add("gone")
    del scene.mirror.files["/gone"]
    scene.add("wrong")
    scene.mirror.files["/wrong"].content = b"other"
    scene.add("two")
    report = scene.sync()
    assert dests(report.fetched) == scene.files == ["one", "two"]
    reasons = {item["path"]: item["reason"] for item in report.failures.items}
    assert reasons["gone"].endswith("/gone cannot be fetched: the server answers 404")
    assert "has the checksum" in reasons["wrong"]


def test_at_most_so_many_at_a_time(scene: Scene) -> None:
    until = threading.Event()
    for number in range(6):
        scene.add(str(number), vices=[stalled(10, until)])
    threads = [threading.Thread(target=scene.sync, kwargs={"parallel": 3})]
    threads[0].start()
    with scene.mirror.changed:
        assert scene.mirror.changed.wait_for(lambda: scene.mirror.counts["GET"] == 3, PATIENCE_S)
    until.set()
    threads[0].join()
    assert len(scene.files) == 6
    assert scene.mirror.most_busy == 3


def test_what_would_not_fit_is_not_begun(scene: Scene) -> None:
    scene.add("one")
    st = os.statvfs(scene.store)
    reserve = Share(str(st.f_blocks * st.f_frsize))
    for dry_run in (True, False):
        with pytest.raises(NoSpace, match="Insufficient disk space"):
            scene.sync(reserve=reserve, dry_run=dry_run)
    assert scene.files == []
    assert "GET" not in scene.counts


def test_an_unknown_size_is_a_warning(scene: Scene) -> None:
    scene.add("one", length=-1)
    scene.add("two", head=405)
    (warning,) = scene.sync().warnings
    assert warning.startswith("The sizes of 2 artifacts (http")
    assert scene.files == ["one", "two"]


@pytest.mark.parametrize(
    "dest",
    [
        "../out",
        "/etc/x",
        "a/../../out",
        "",
        "a/",
        ".",
        "a\0b",
        "\ud800",
        "a/" * 200_000 + "b",
        ".x.0123456789abcdef.part",
    ],
)
def test_a_dest_outside_is_refused(dest: str) -> None:
    with pytest.raises(UsageError, match="dest"):
        read_artifacts([{"url": "http://host/", "dest": dest}])


@pytest.mark.parametrize("pair", [("a", "./a"), ("a", "a/b"), ("a/b/c", "a")])
def test_two_artifacts_cannot_have_one_place(pair: tuple[str, str]) -> None:
    with pytest.raises(UsageError, match=r"named twice|a file and a directory"):
        read_artifacts([{"url": "http://host/", "dest": dest} for dest in pair])


def test_no_symlink_leads_out(scene: Scene, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    scene.path("link").symlink_to(outside)
    scene.path("name").symlink_to(outside / "file")
    scene.path("pipe").mkdir()
    os.mkfifo(scene.path("pipe/fifo"))
    for dest in ("link/one", "name", "pipe/fifo"):
        scene.add(dest)
    report = scene.sync()
    assert dests(report.failures) == ["link/one", "name", "pipe/fifo"]
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "kept"


def test_owner_and_mode_are_set_and_kept(scene: Scene) -> None:
    scene.add("one")
    scene.artifacts[0]["mode"] = "0750"
    scene.sync()
    assert stat.S_IMODE(scene.path("one").stat().st_mode) == 0o750
    assert not scene.sync().changed
    scene.artifacts[0]["mode"] = "0640"
    for dry_run in (True, False):
        report = scene.sync(dry_run=dry_run)
        assert dests(report.adjusted) == ["one"]
        assert report.changed
    assert stat.S_IMODE(scene.path("one").stat().st_mode) == 0o640
    assert scene.mirror.asked == []
    # A new version keeps what nobody set.
    del scene.artifacts[0]["mode"]
    scene.path("one").write_bytes(b"broken")
    scene.sync()
    assert stat.S_IMODE(scene.path("one").stat().st_mode) == 0o640


def test_only_what_was_verified_gets_a_mode(scene: Scene, tmp_path: Path) -> None:
    """A link to it elsewhere, and what another puts in its place meanwhile, stay as they are."""
    scene.add("one")
    scene.sync()
    linked, strange = tmp_path / "linked", tmp_path / "strange"
    os.link(scene.path("one"), linked)
    strange.write_bytes(CONTENT[::-1])
    before = linked.stat()
    fd = os.open(scene.store, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def swap(_message: str) -> None:
        scene.path("one").unlink()
        os.link(strange, scene.path("one"))
        fcntl.flock(fd, fcntl.LOCK_UN)

    scene.artifacts[0]["mode"] = "0751"
    request = SyncRequest(str(scene.store), read_artifacts(scene.artifacts), OPENER)
    report = sync(request, Run(waiting=swap))
    os.close(fd)
    assert dests(report.adjusted) == ["one"]
    assert scene.path("one").read_bytes() == CONTENT
    after = scene.path("one").stat()
    assert stat.S_IMODE(after.st_mode) == 0o751
    assert after.st_mtime_ns == before.st_mtime_ns
    assert {stat.S_IMODE(path.stat().st_mode) for path in (linked, strange)} == {stat.S_IMODE(before.st_mode)}


@pytest.mark.root
def test_an_owner_without_a_checksum_costs_one_304(scene: Scene, xattrs: None) -> None:
    scene.add("one", checked=False)
    scene.artifacts[0]["owner"] = "daemon"
    assert scene.sync().fetched.total == 1
    assert not scene.sync().changed
    assert scene.counts == {"HEAD": 1}
    scene.artifacts[0]["owner"] = "root"
    # Who owns it may have written to it.
    assert scene.sync().fetched.total == 1


@pytest.mark.root
def test_an_owner_is_set(scene: Scene) -> None:
    scene.add("one")
    scene.artifacts[0] |= {"owner": "daemon", "group": "12345"}
    scene.sync()
    st = scene.path("one").stat()
    assert (st.st_uid, st.st_gid) == (1, 12345)
    assert not scene.sync().changed


@pytest.mark.parametrize(
    ("key", "value"),
    [("mode", "999"), ("mode", 0o644), ("mode", 70000), ("mode", True), ("owner", "nobody knows")],
)
def test_an_attribute_that_is_none(key: str, value: Any) -> None:
    with pytest.raises(UsageError, match=key):
        read_artifacts([{"url": "http://host/", "dest": "x", key: value}])


def test_the_store_is_not_locked_while_a_mirror_is_slow(scene: Scene) -> None:
    until = threading.Event()
    scene.add("one", vices=[stalled(10, until)])
    thread = threading.Thread(target=scene.sync)
    thread.start()
    scene.mirror.wait_for("/one")
    fd = os.open(scene.store, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)
    until.set()
    thread.join()
    assert scene.files == ["one"]


def test_a_store_that_others_hold_gets_nothing_published(scene: Scene) -> None:
    scene.add("one")
    fd = os.open(scene.store, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    report = scene.sync()
    os.close(fd)
    assert isinstance(report.held[0], LockHeld)
    assert dests(report.not_done) == ["one"]
    assert "one" not in scene.files


def test_a_held_store_is_waited_for_once_and_nothing_is_fetched_in_vain(scene: Scene, xattrs: None) -> None:
    for number in range(20):
        scene.add(str(number))
    fd = os.open(scene.store, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    report = scene.sync(parallel=1)
    os.close(fd)
    assert len(report.held) == 1
    assert not report.interrupted
    assert report.not_done.total == 20
    there = scene.counts["GET"]
    assert 0 < there < 20
    assert scene.sync().fetched.total == 20
    # One may have been cut before its answer came.
    assert scene.counts["GET"] in (20 - there, 21 - there)
    assert len(scene.files) == 20


def test_a_second_refresh_waits_and_then_has_nothing_to_fetch(scene: Scene) -> None:
    until = threading.Event()
    scene.add("one", vices=[stalled(10, until)])
    first = threading.Thread(target=scene.sync)
    first.start()
    scene.mirror.wait_for("/one")
    other = Scene.__new__(Scene)
    other.__dict__ = {**scene.__dict__, "said": []}
    waits = threading.Event()
    reports: list[SyncReport] = []

    def second() -> None:
        run = Run(lock_timeout=PATIENCE_S, waiting=lambda text: (other.said.append(text), waits.set())[0])
        request = SyncRequest(str(scene.store), read_artifacts(scene.artifacts), OPENER)
        reports.append(sync(request, run))

    thread = threading.Thread(target=second)
    thread.start()
    assert waits.wait(PATIENCE_S)
    until.set()
    thread.join()
    first.join()
    assert reports[0].unchanged.total == 1
    assert other.said[0].startswith(f"Waiting for {scene.store}/one, refreshed by ")
    assert scene.counts["GET"] == 1
    assert scene.files == ["one"]


def test_a_second_refresh_gives_up_after_its_timeout(scene: Scene) -> None:
    scene.add("one")
    fd = os.open(scene.store, os.O_RDONLY)
    with draft(fd, str(scene.store), "one"):
        report = scene.sync()
        assert len(scene.files) == 1
    os.close(fd)
    assert "one is being refreshed by" in str(report.held[0])
    assert re.search(r"waited [\d.]+m?s\. Let it finish, or raise lock_timeout\.$", str(report.held[0]))


def test_many_refreshes_of_one_file_at_once_fetch_it_once(scene: Scene) -> None:
    scene.add("one")
    barrier = threading.Barrier(8)

    def refresh() -> None:
        barrier.wait()
        request = SyncRequest(str(scene.store), read_artifacts(scene.artifacts), OPENER)
        reports.append(sync(request, Run(lock_timeout=PATIENCE_S)))

    reports: list[SyncReport] = []
    scene.mirror.asked.clear()
    threads = [threading.Thread(target=refresh) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(reports) == 8
    assert sum(report.fetched.total for report in reports) == 1
    assert sum(report.unchanged.total for report in reports) == 7
    assert scene.counts["GET"] == 1
    assert scene.files == ["one"]


def test_orphans_go_at_the_start_and_those_of_living_writers_stay(scene: Scene) -> None:
    scene.add("a/one")
    orphan = scene.path("a/.two.0123456789abcdef.part")
    orphan.parent.mkdir()
    orphan.write_bytes(b"left")
    fd = os.open(scene.path("a"), os.O_RDONLY)
    with draft(fd, "a", "three") as living:
        scene.sync()
        assert scene.files == sorted([f"a/{living.name}", "a/one"])
    os.close(fd)


def test_what_somebody_prunes_just_after_the_look_is_no_failure(scene: Scene) -> None:
    scene.add("sub/one")
    scene.sync()
    request = SyncRequest(str(scene.store), read_artifacts(scene.artifacts), OPENER)
    report = sync(request, Run(), lambda *_told: shutil.rmtree(scene.path("sub")))
    assert (report.unchanged.total, report.failures.items, scene.files) == (1, [], [])


@pytest.mark.root
def test_an_orphan_that_cannot_go_is_told_of(scene: Scene, chattr: Callable[[str, str], None]) -> None:
    scene.add("one")
    scene.path(".two.0123456789abcdef.part").write_bytes(b"left")
    chattr("+i", str(scene.path(".two.0123456789abcdef.part")))
    report = scene.sync()
    assert report.fetched.total == 1
    (warning,) = report.warnings
    assert warning.endswith(".two.0123456789abcdef.part cannot be removed: Operation not permitted.")


def test_a_store_that_is_moved_away_is_named_for_each_that_comes_later(scene: Scene) -> None:
    for number in range(40):
        scene.add(str(number))
    fd = os.open(scene.store, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def waiting(_sentence: str) -> None:
        """As somebody who has the lock."""
        scene.store.rename(f"{scene.store}-moved")
        os.close(fd)

    run = Run(lock_timeout=60.0, waiting=waiting)
    report = sync(SyncRequest(str(scene.store), read_artifacts(scene.artifacts), OPENER, 1), run)
    assert report.failures.total == 40
    missing = f"failed: {scene.store} does not exist; create it, or correct the path"
    assert {one["reason"] for one in report.failures.items} == {missing}
    assert os.listdir(f"{scene.store}-moved") == []


def interrupted(scene: Scene, signals: int, drain_timeout: float, until: threading.Event) -> SyncReport:
    """A sync of three with two at a time, that hears signals when something of both has come."""
    for number in range(3):
        scene.add(str(number), vices=[stalled(10, until)])
    run, coming, both = Run(shutdown=Shutdown()), set(), threading.Event()

    def watch(dest: str, what: str, done: int, _total: int) -> None:
        if what == "fetching" and done:
            coming.add(dest)
        if len(coming) == 2:
            both.set()

    def hear() -> None:
        both.wait(PATIENCE_S)
        for _ in range(signals):
            run.shutdown.request(signal.SIGINT)
        if signals == 1 and drain_timeout:
            until.set()

    thread = threading.Thread(target=hear)
    thread.start()
    artifacts = read_artifacts(scene.artifacts)
    request = SyncRequest(str(scene.store), artifacts, OPENER, parallel=2, drain_timeout=drain_timeout)
    report = sync(request, run, watch)
    until.set()
    thread.join()
    return report


def test_with_a_signal_what_is_in_flight_is_finished_and_no_more(scene: Scene) -> None:
    report = interrupted(scene, 1, PATIENCE_S, threading.Event())
    assert report.interrupted
    assert dests(report.fetched) == scene.files
    assert (report.fetched.total, report.not_done.total) == (2, 1)


@pytest.mark.parametrize(("signals", "drain_timeout"), [(2, PATIENCE_S), (1, 0.0)])
def test_a_second_signal_or_the_end_of_the_drain_cuts_it(
    scene: Scene, signals: int, drain_timeout: float
) -> None:
    report = interrupted(scene, signals, drain_timeout, threading.Event())
    assert report.interrupted
    assert dests(report.not_done) == ["0", "1", "2"]
    assert scene.files == []


@pytest.mark.parametrize("vice", ["silent", "busy"])
def test_the_first_signal_ends_what_only_waits(scene: Scene, vice: str) -> None:
    """For an answer that does not come, and for the time to ask again."""
    until, run = threading.Event(), Run(shutdown=Shutdown())

    def silent(_handler: object, _part: bytes) -> None:
        until.wait(PATIENCE_S)

    scene.add("one", vices=[Status(503, {"Retry-After": "200"})] if vice == "busy" else [silent])
    scene.mirror.asked.clear()
    scene.mirror.files["/one"].unanswered = vice == "silent"

    def hear() -> None:
        scene.mirror.wait_for("/one")
        run.shutdown.request(signal.SIGTERM)

    thread = threading.Thread(target=hear)
    thread.start()
    opener = plain_opener(timeout=PATIENCE_S, redirects=False)
    request = SyncRequest(str(scene.store), read_artifacts(scene.artifacts), opener, drain_timeout=PATIENCE_S)
    began = time.monotonic()
    report = sync(request, run)
    took = time.monotonic() - began
    until.set()
    thread.join()
    assert dests(report.not_done) == ["one"]
    assert scene.files == []
    assert took < PATIENCE_S / 2


def test_what_hangs_before_an_answer_is_left_behind_without_its_temp(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait for the server that nothing can cut."""
    monkeypatch.setattr("besom.sync._GRACE_S", 0.1)
    until, asked = threading.Event(), threading.Event()
    scene.add("one")

    def opener(url: str, method: str, **more: Any) -> Any:
        if method == "GET":
            asked.set()
            until.wait(PATIENCE_S)
        return OPENER(url, method=method, **more)

    run = Run()

    def hear() -> None:
        asked.wait(PATIENCE_S)
        run.shutdown.request(signal.SIGTERM)
        run.shutdown.request(signal.SIGTERM)

    thread = threading.Thread(target=hear)
    thread.start()
    report = sync(SyncRequest(str(scene.store), read_artifacts(scene.artifacts), opener), run)
    assert dests(report.not_done) == ["one"]
    assert scene.files == []
    until.set()
    thread.join()
    for left in threading.enumerate():
        if left.name.startswith("besom-"):
            left.join(PATIENCE_S)
    assert scene.files == []


def test_an_error_that_nobody_foresaw_leaves_no_temp(scene: Scene) -> None:
    until = threading.Event()
    scene.add("one")
    scene.add("two", vices=[stalled(10, until)])

    def watch(dest: str, what: str, done: int, total: int) -> None:
        if what == "fetched":
            scene.mirror.wait_for("/two")
            raise BrokenPipeError

    request = SyncRequest(str(scene.store), read_artifacts(scene.artifacts), OPENER)
    scene.mirror.asked.clear()
    with pytest.raises(BrokenPipeError):
        sync(request, Run(), watch)
    until.set()
    assert scene.files == ["one"]


def test_a_disk_that_is_full_on_the_way_is_status_3(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Draft, content: bytes) -> None:
        raise NoSpace("There is no room.")

    monkeypatch.setattr(Draft, "write", write)
    scene.add("one")
    outcome = Outcome([scene.sync()])
    assert outcome.status == 3
    assert outcome.messages == ["one failed: There is no room."]
    assert scene.files == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_the_gate_counts_what_orphans_give_back(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, dry_run: bool
) -> None:
    def gate(needs: list[Need], *_arguments: object, forecast: Forecast) -> Verdict:
        seen.append((needs[0].size, sum(forecast.freed.values()), scene.files))
        return Verdict()

    monkeypatch.setattr("besom.sync.preflight", gate)
    seen: list[Any] = []
    scene.add("one")
    mine, other = (f".{name}.0123456789abcdef.part" for name in ("one", "other"))
    for part in (mine, other):
        scene.path(part).write_bytes(CONTENT[:8192])
        scene.path(part).chmod(0o600)
    had, freed = (scene.path(part).stat().st_blocks * 512 for part in (mine, other))
    scene.sync(dry_run=dry_run)
    there = sorted([mine, other]) if dry_run else [mine]
    assert seen == [(len(CONTENT) - had, freed if dry_run else 0, there)]


def test_retries_are_told(scene: Scene) -> None:
    scene.add("one", vices=[Status(503, {"Retry-After": "0"})])
    report = scene.sync().to_dict()
    assert report["retries"]["requests"] == 1
    assert report["fetched_bytes"] == len(CONTENT)


def test_who_asks_during_a_listing_sees_what_was_there_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has made itself, that is; the one listing does for all who ask meanwhile."""
    listing, until, count = threading.Event(), threading.Event(), itertools.count()

    def slow(directory_fd: int) -> list[str]:
        found = list_parts(directory_fd)
        if not next(count):
            listing.set()
            until.wait(PATIENCE_S)
        return found

    monkeypatch.setattr("besom.claim.list_parts", slow)
    listings, seen = Listings(), [False] * 9
    fd = os.open(tmp_path, os.O_RDONLY)

    def ask(number: int) -> None:
        with draft(fd, str(tmp_path), str(number)) as one:
            asking.release()
            seen[number] = one.name in listings(fd)

    asking = threading.Semaphore(0)
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    threads[0].start()
    assert listing.wait(PATIENCE_S)
    for thread in threads[1:]:
        thread.start()
    for _ in threads:
        asking.acquire()
    until.set()
    for thread in threads:
        thread.join()
    os.close(fd)
    assert seen == [True] * 9
