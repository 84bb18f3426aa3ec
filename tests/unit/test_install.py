# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tree comes whole and in one step or not at all; what is there and wanted is left alone."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from tests.host.mirror import File, Mirror, Status, serve, stalled

from besom.archive import BadArchive
from besom.errors import BesomError, Interrupted, LockHeld, MissingPath, NoSpace, UsageError
from besom.install import InstallReport, InstallRequest, install
from besom.installed import MARK
from besom.opener import plain_opener
from besom.run import Run
from besom.shutdown import Shutdown
from besom.transfer import read_checksum, read_source
from besom.tree import Cursor
from besom.units import Share

OPENER = plain_opener(timeout=20, redirects=False)


def app(version: str, **more: bytes) -> bytes:
    """An archive of app-VERSION with the file `version` in it."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in {"version": version.encode(), "bin/run": b"#!", **more}.items():
            info = tarfile.TarInfo(f"app-{version}/{name}")
            info.size, info.mode = len(content), 0o755
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


ONE, TWO = app("1"), app("2")


@pytest.fixture(scope="module")
def server() -> Iterator[Mirror]:
    with serve() as mirror:
        yield mirror


@pytest.fixture
def mirror(server: Mirror) -> Mirror:
    server.files.clear()
    server.asked.clear()
    return server


class Place:
    """A directory to install into, and a clock that goes on by a second each time it is looked at."""

    def __init__(self, path: Path, mirror: Mirror) -> None:
        self.path, self._mirror, self._seconds = path, mirror, 1_700_000_000
        path.mkdir()

    def set_clock(self, seconds: int) -> None:
        self._seconds = seconds

    def now(self) -> int:
        self._seconds += 1
        return self._seconds * 10**9

    def run(self, **options: Any) -> Run:
        return Run(**{"now": self.now, "lock_timeout": 0.0, **options})

    def install(self, file: File | None = None, run: Run | None = None, **options: Any) -> InstallReport:
        """Install /app.tgz as `app`, without its top directory, with file's checksum if it is given."""
        dry_run = options.pop("dry_run", False)
        checksum = read_checksum(file.checksum) if file else None
        source = read_source(self._mirror.url + options.pop("url", "/app.tgz"), checksum=checksum)
        request = InstallRequest(str(self.path), "app", **{"source": source, "strip": True, **options})
        return install(request, run or self.run(dry_run=dry_run), OPENER)

    def absent(self, **options: Any) -> InstallReport:
        return self.install(source=None, **options)

    @property
    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))

    def version(self, name: str = "app") -> str:
        return (self.path / name / "version").read_text()


@pytest.fixture
def place(tmp_path: Path, mirror: Mirror) -> Place:
    return Place(tmp_path / "opt", mirror)


def snapshot(path: Path) -> dict[str, Any]:
    """Everything below, with its inode and times, and links as they are."""
    return {
        str(one): (*(st := one.lstat())[:6], st.st_mtime_ns, st.st_ctime_ns)
        for one in [path, *path.rglob("*")]
    }


def predicts(place: Place, **options: Any) -> InstallReport:
    """Do it dry, for real, and both again: the first tells the second, and the others change nothing."""
    before = snapshot(place.path)
    dry = place.install(dry_run=True, **options)
    assert snapshot(place.path) == before
    done = place.install(**options)
    assert (dry.changed, dry.action, dry.switched) == (done.changed, done.action, done.switched)
    assert dry.planned == done.planned == done.removed
    assert [one["reason"] for one in dry.victims.items] == [one["reason"] for one in done.victims.items]
    assert len(dry.after.old) == len(done.after.old)
    assert dry.after.link == done.after.link
    before = snapshot(place.path)
    for dry_run in (False, True):
        assert not place.install(dry_run=dry_run, **options).changed
    assert snapshot(place.path) == before
    return done


def test_an_archive_becomes_a_tree_with_a_mark(mirror: Mirror, place: Place) -> None:
    file = mirror.add("/app.tgz", ONE)
    mirror.url = mirror.url.replace("http://", "http://user:secret@")
    try:
        report = predicts(place, file=file, url="/app.tgz")
    finally:
        mirror.url = mirror.url.replace("user:secret@", "")
    assert (report.action, report.changed) == ("installed", True)
    assert place.names == ["app"]
    assert place.version() == "1"
    assert stat.S_IMODE((place.path / "app").stat().st_mode) == 0o755
    assert stat.S_IMODE((place.path / "app" / MARK).stat().st_mode) == 0o644
    text = (place.path / "app" / MARK).read_text()
    mark = json.loads(text)
    assert "secret" not in text
    assert mark["url"] == f"{mirror.url}/app.tgz"
    assert (mark["checksum"], mark["strip"], mark["entries"]) == (file.checksum, True, 3)
    values = report.to_dict()
    assert (values["checksum"], values["files"]) == (file.checksum, {"entries": 3, "bytes": 3})
    assert values["fetched_bytes"] == len(ONE)


def test_with_a_checksum_no_server_is_asked_whether_the_tree_is_the_wanted_one(
    mirror: Mirror, place: Place
) -> None:
    file = mirror.add("/app.tgz", ONE)
    place.install(file)
    mirror.asked.clear()
    assert not place.install(file).changed
    assert not place.install(file, url="/elsewhere.tgz").changed
    assert mirror.asked == []
    assert place.install(file, strip=False).action == "upgraded"


def test_without_a_checksum_the_server_is_asked_whether_it_has_changed(mirror: Mirror, place: Place) -> None:
    mirror.add("/app.tgz", ONE, etag='"1"')
    assert predicts(place).action == "installed"
    assert mirror.counts["GET"] == 1
    mirror.add("/app.tgz", TWO, etag='"2"')
    assert predicts(place).action == "upgraded"
    assert place.version() == "2"
    assert mirror.counts["GET"] == 2


def test_the_same_content_is_not_installed_twice(mirror: Mirror, place: Place) -> None:
    mirror.add("/app.tgz", ONE, etag='"1"')
    place.install()
    inode = (place.path / "app").stat().st_ino
    mirror.add("/app.tgz", ONE, etag='"2"')
    assert not place.install().changed
    assert (place.path / "app").stat().st_ino == inode
    # The new validator is known from now on.
    mirror.asked.clear()
    assert not place.install().changed
    assert mirror.counts == {"HEAD": 1}


@pytest.mark.parametrize("checked", [False, True])
def test_what_goes_while_the_lock_is_waited_for_is_installed_again(
    mirror: Mirror, place: Place, hold: Callable[..., Any], checked: bool
) -> None:
    file = mirror.add("/app.tgz", ONE, etag='"1"')
    place.install()
    mirror.add("/app.tgz", ONE, etag='"2"')
    held = hold(place.path)

    def waiting(_sentence: str) -> None:
        """As somebody who prunes, and has the lock."""
        shutil.rmtree(place.path / "app", ignore_errors=True)
        held.release()

    run = place.run(lock_timeout=60.0, waiting=waiting)
    report = place.install(file if checked else None, run, current="live")
    assert (report.action, report.switched, mirror.counts["GET"]) == ("installed", True, 2)
    assert place.version() == place.version("live") == "1"


def test_what_a_killed_run_has_left_of_a_mark_goes_with_the_next(mirror: Mirror, place: Place) -> None:
    file = mirror.add("/app.tgz", ONE)
    place.install(file)
    (place.path / f"app/.{MARK}.0123456789abcdef.part").write_text("{")
    assert not predicts(place, file=file).changed
    assert sorted(os.listdir(place.path / "app")) == [MARK, "bin", "version"]


def test_an_upgrade_keeps_as_many_old_versions_as_asked(mirror: Mirror, place: Place) -> None:
    for version in ("1", "2", "3", "4"):
        file = mirror.add("/app.tgz", app(version))
        report = predicts(place, file=file, keep=2)
        assert report.removed.entries == (version == "4")
    old = [name for name in place.names if name != "app"]
    assert all(re.fullmatch(r"\.besom-old-app-\d{8}T\d{6}\.\d{6}", name) for name in old)
    assert [place.version(name) for name in old] == ["2", "3"]
    assert report.after.old == tuple(old)
    assert report.victims.items[0]["reason"] == "old version"
    # Fewer are to be kept now.
    report = predicts(place, file=file, keep=0)
    assert (report.action, report.changed, report.removed.entries) == ("", True, 2)
    assert place.names == ["app"]


def test_a_clock_that_was_put_back_does_not_make_the_newest_old_version_the_oldest(
    mirror: Mirror, place: Place
) -> None:
    place.install(mirror.add("/app.tgz", app("1")), keep=1)
    for version, clock in (("2", 4_300_000_000), ("3", 1_700_000_000), ("4", 1_600_000_000)):
        place.set_clock(clock)
        place.install(mirror.add("/app.tgz", app(version)), keep=1)
        (old,) = [name for name in place.names if name != "app"]
        assert place.version(old) == str(int(version) - 1)


def test_an_upgrade_that_keeps_nothing_leaves_nothing(mirror: Mirror, place: Place) -> None:
    place.install(mirror.add("/app.tgz", ONE))
    report = predicts(place, file=mirror.add("/app.tgz", TWO))
    assert (report.action, report.removed.entries, place.names) == ("upgraded", 1, ["app"])
    assert place.version() == "2"


def test_whoever_stands_in_the_old_tree_keeps_it_and_others_see_one_whole_tree(
    mirror: Mirror, place: Place
) -> None:
    """A reader that opens app/version all the time finds it always, with one content or the other."""
    place.install(mirror.add("/app.tgz", ONE), keep=1)
    fd = os.open(place.path / "app", os.O_RDONLY)
    seen, failures, over = set(), [], threading.Event()

    def read() -> None:
        while not over.is_set():
            try:
                seen.add(place.version())
            except OSError as error:
                failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for version in ("2", "3", "4", "5"):
        place.install(mirror.add("/app.tgz", app(version)), keep=9)
    over.set()
    reader.join()
    assert not failures
    assert seen <= {"1", "2", "3", "4", "5"}
    with os.fdopen(os.open("version", os.O_RDONLY, dir_fd=fd)) as stream:
        assert stream.read() == "1"
    os.close(fd)


def test_a_link_leads_to_the_tree(mirror: Mirror, place: Place) -> None:
    file = mirror.add("/app.tgz", ONE)
    place.install(file)
    report = predicts(place, file=file, current="live")
    assert (report.action, report.changed, report.switched) == ("", True, True)
    assert os.readlink(place.path / "live") == "app"
    (place.path / "live").unlink()
    (place.path / "live").symlink_to("other")
    assert predicts(place, file=file, current="live").switched
    assert os.readlink(place.path / "live") == "app"
    assert place.names == ["app", "live"]


def test_what_is_to_be_absent_goes_with_its_old_versions_and_the_link(mirror: Mirror, place: Place) -> None:
    for content in (ONE, TWO):
        place.install(mirror.add("/app.tgz", content), keep=1, current="live")
    (place.path / "app-2").mkdir()
    report = predicts(place, source=None, current="live")
    assert (report.action, report.switched, report.removed.entries) == ("removed", True, 2)
    assert place.names == ["app-2"]
    assert not place.absent().changed


def test_a_link_that_leads_elsewhere_is_not_removed(mirror: Mirror, place: Place) -> None:
    place.install(mirror.add("/app.tgz", ONE))
    (place.path / "live").symlink_to("other")
    assert not place.absent(current="live").switched
    assert place.names == ["live"]


def test_what_is_in_use_is_not_removed(mirror: Mirror, place: Place, hold: Callable[..., Any]) -> None:
    file = mirror.add("/app.tgz", ONE)
    place.install(file)
    hold(place.path / "app/version")
    report = place.absent()
    assert (report.changed, report.action) == (False, "")
    assert "in use: locked by pid" in report.kept.items[0]["reason"]
    assert report.failures.total == 1
    # As an old version it stays as well, and nobody minds.
    report = place.install(mirror.add("/app.tgz", TWO))
    assert (report.action, report.failures.total, report.kept.total) == ("upgraded", 0, 1)
    assert len(report.after.old) == 1


@pytest.mark.parametrize(
    ("prepare", "options", "match"),
    [
        (lambda path: (path / "app").mkdir(), {}, "is there and besom has not installed it; .* with replace"),
        (lambda path: (path / "app").mkdir(), {"source": None}, "besom has not installed it"),
        (lambda path: (path / "app").write_text("x"), {}, "is not a directory; move it away"),
        (lambda path: (path / "app").symlink_to("."), {"replace": True}, "is not a directory; move it away"),
        (lambda path: (path / "live").mkdir(), {"current": "live"}, "live is not a symlink"),
        (lambda path: None, {"current": "app"}, "is the name of the tree"),
        (lambda path: None, {"current": "../live"}, "is no name of a file"),
        (lambda path: None, {"current": ".live"}, "begins with a dot"),
    ],
)
def test_what_is_in_the_way_is_said_before_anything_is_fetched(
    mirror: Mirror, place: Place, prepare: Callable[[Path], None], options: dict[str, Any], match: str
) -> None:
    mirror.add("/app.tgz", ONE)
    prepare(place.path)
    before = snapshot(place.path)
    for dry_run in (True, False):
        with pytest.raises(UsageError, match=match):
            place.install(dry_run=dry_run, **options)
    assert snapshot(place.path) == before
    assert mirror.asked == []


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "\ud800", ".besom-trash-0123456789abcdef", "x" * 230])
def test_a_name_that_cannot_be_is_refused(place: Place, name: str) -> None:
    with pytest.raises(UsageError):
        install(InstallRequest(str(place.path), name), place.run(), OPENER)


def test_a_directory_that_is_missing_is_not_made(place: Place) -> None:
    with pytest.raises(MissingPath):
        install(InstallRequest(f"{place.path}/none", "app"), place.run(), OPENER)


def test_what_besom_has_not_installed_can_be_replaced(mirror: Mirror, place: Place) -> None:
    (place.path / "app/deep").mkdir(parents=True)
    report = place.install(mirror.add("/app.tgz", ONE), replace=True, keep=1)
    assert (report.action, len(report.after.old)) == ("upgraded", 1)
    assert (place.path / report.after.old[0] / "deep").is_dir()


@pytest.mark.parametrize(
    "mark",
    [
        "",
        "x",
        "[]",
        "{}",
        '{"origin": {}}',
        '{"origin": {"source": 1}}',
        r'{"origin": {"source": ""}, "url": "http://x/\u001b[2J\nTASK [forged]"}',
        r'{"origin": {"source": "", "etag": "a\r\nX-Injected: 1"}}',
        pytest.param("[" * 100_000, id="deep"),
    ],
)
def test_a_mark_that_is_none_is_as_good_as_no_mark(mirror: Mirror, place: Place, mark: str) -> None:
    mirror.add("/app.tgz", ONE)
    (place.path / "app").mkdir()
    (place.path / "app" / MARK).write_text(mark)
    with pytest.raises(UsageError, match="besom has not installed it"):
        place.install()


@pytest.mark.parametrize(
    ("content", "checksum", "error", "match"),
    [
        (ONE, "sha256:" + "0" * 64, BesomError, "has the checksum sha256:.*, not sha256:0000.*; nothing was"),
        (ONE[:-20], "", BadArchive, r"app\.tgz: The archive ends too early"),
        (b"no archive at all", "", BadArchive, "neither a tar"),
        (app("1", **{"../../evil": b"x"}), "", BadArchive, "leads out of it; it is refused"),
        (app("1", **{MARK: b"{}"}), "", BadArchive, "a name that is besom's own"),
    ],
    # Of their own: what gzip packs has the time in it, and every process of pytest-xdist packs it itself.
    ids=["checksum", "cut", "no archive", "leads out", "reserved"],
)
def test_what_is_not_what_it_should_be_leaves_everything_as_it_was(
    mirror: Mirror, place: Place, content: bytes, checksum: str, error: type[BesomError], match: str
) -> None:
    place.install(mirror.add("/app.tgz", TWO))
    before = snapshot(place.path / "app")
    mirror.add("/app.tgz", content)
    source = read_source(f"{mirror.url}/app.tgz", checksum=read_checksum(checksum) if checksum else None)
    with pytest.raises(error, match=match):
        place.install(source=source)
    assert snapshot(place.path / "app") == before
    assert place.names == ["app"]


def test_there_has_to_be_room_for_the_archive_and_its_content(mirror: Mirror, place: Place) -> None:
    mirror.add("/app.tgz", ONE)
    for options in ({"expand": 1e15}, {"reserve": Share("99.9%")}):
        with pytest.raises(NoSpace, match="Insufficient disk space"):
            place.install(dry_run=True, **options)
    assert mirror.counts["GET"] == 0
    mirror.add("/app.tgz", ONE, head=405)
    report = place.install(expand=1e15)
    assert "The size of" in report.warnings[0]


def test_what_nobody_can_tell_from_an_old_version_is_reported(mirror: Mirror, place: Place) -> None:
    file = mirror.add("/app.tgz", ONE)
    place.install(file)
    (place.path / ".besom-swap-app-0-01234567").mkdir()
    for dry_run in (True, False):
        report = place.install(file, dry_run=dry_run)
        assert not report.changed
        assert [one["path"] for one in report.anomalies.items] == [f"{place.path}/.besom-swap-app-0-01234567"]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "archives"
    path.mkdir()
    return path


def test_an_archive_in_a_store_is_fetched_once_for_all(mirror: Mirror, place: Place, store: Path) -> None:
    file = mirror.add("/app.tgz", ONE)
    dry = place.install(file, store=str(store), dry_run=True)
    assert (dry.action, list(store.iterdir()), mirror.counts["GET"]) == ("installed", [], 0)
    first = place.install(file, store=str(store))
    assert (first.action, first.fetched.bytes, place.version()) == ("installed", len(ONE), "1")
    (kept,) = store.iterdir()
    assert kept.name == file.checksum.replace(":", "-")
    assert kept.read_bytes() == ONE
    # No server is there any more.
    mirror.files.clear()
    mirror.asked.clear()
    place.absent()
    for options in ({"current": "live"}, {"strip": False}):
        again = predicts(place, file=file, store=str(store), **options)
        assert again.changed
        assert again.fetched.bytes == 0
    assert mirror.asked == []
    assert [one.name for one in store.iterdir()] == [kept.name]


def test_what_somebody_did_to_an_archive_in_a_store_is_noticed(
    mirror: Mirror, place: Place, store: Path
) -> None:
    file = mirror.add("/app.tgz", ONE)
    place.install(file, store=str(store))
    place.absent()
    (kept,) = store.iterdir()
    st = kept.stat()
    kept.write_bytes(ONE[:-1] + b"x")
    os.utime(kept, ns=(st.st_atime_ns, st.st_mtime_ns))
    assert place.install(file, store=str(store)).action == "installed"
    assert (kept.read_bytes(), place.version()) == (ONE, "1")
    # An owner of the store who does it all the time gets no archive extracted that nobody has verified.
    place.absent()
    real = os.read

    def read(fd: int, size: int) -> bytes:
        block = real(fd, size)
        is_kept = os.readlink(f"/proc/self/fd/{fd}") == str(kept)
        return block[:-1] + b"x" if is_kept and block else block

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "read", read)
        with pytest.raises(BesomError, match="was changed meanwhile; run this again"):
            place.install(file, store=str(store))
    assert place.names == []


def test_how_an_install_through_a_store_fails(
    mirror: Mirror, place: Place, store: Path, hold: Callable[..., Any]
) -> None:
    file = mirror.add("/app.tgz", ONE)
    with pytest.raises(UsageError, match="A store needs a checksum"):
        place.install(store=str(store))
    with pytest.raises(MissingPath, match=r"archives2 does not exist"):
        place.install(file, store=f"{store}2")
    held = hold(str(store))
    with pytest.raises(LockHeld, match=f"{store} is locked by"):
        place.install(file, store=str(store))
    held.release()
    mirror.add("/app.tgz", TWO)
    with pytest.raises(BesomError, match=r"has the checksum .* nothing was published"):
        place.install(file, store=str(store))
    shutdown = Shutdown()
    shutdown.request(signal.SIGTERM)
    with pytest.raises(Interrupted):
        place.install(file, run=place.run(shutdown=shutdown), store=str(store))
    assert (place.names, list(store.iterdir())) == ([], [])


@pytest.mark.root
def test_a_tree_has_the_owner_group_and_mode_that_are_asked_for(mirror: Mirror, place: Place) -> None:
    file = mirror.add("/app.tgz", ONE)
    for options in ({"uid": 7}, {"uid": 7, "gid": 8}, {"uid": 7, "gid": 8, "mode": 0o2750}):
        report = predicts(place, file=file, **options)
        assert report.changed
        top, *rest = [place.path / "app", *(place.path / "app").rglob("*")]
        assert {one.name for one in rest} == {MARK, "bin", "run", "version"}
        for one in (top, *(one for one in rest if one.name != MARK)):
            st = one.lstat()
            assert (st.st_uid, st.st_gid) == (options["uid"], options.get("gid", os.getegid()))
        assert stat.S_IMODE(top.stat().st_mode) == options.get("mode", 0o755)
        assert stat.S_IMODE((top / "version").stat().st_mode) == 0o755
    # Who asks for none leaves it as it is.
    assert not place.install(file).changed


@pytest.mark.root
def test_what_killed_runs_have_left_is_no_lack_of_space(
    mirror: Mirror, place: Place, mount: Callable[..., None]
) -> None:
    mount("-t", "tmpfs", "-o", "size=2m", "none", place.path)
    file = mirror.add("/app.tgz", app("1", large=os.urandom(300_000)))
    (place.path / ".temp-app-0123456789abcdef").mkdir()
    (place.path / ".temp-app-0123456789abcdef/large").write_bytes(bytes(900_000))
    # Nobody knows where this one comes from; it is used as it is, or emptied.
    (place.path / ".app.0123456789abcdef.part").write_bytes(bytes(800_000))
    report = predicts(place, file=file)
    assert report.action == "installed"
    assert place.names == ["app"]


def test_what_fails_after_the_tree_is_in_place_is_told_with_that(
    mirror: Mirror, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.install(mirror.add("/app.tgz", ONE))

    def full(*_arguments: Any, **_options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = mirror.add("/app.tgz", TWO)
    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", full)
        report = place.install(file, current="live")
    assert (report.changed, report.action, report.switched) == (True, "upgraded", False)
    assert report.to_dict()["checksum"] == file.checksum
    assert "was upgraded, but then: " in report.failures.items[0]["reason"]
    assert "No space left on device" in report.failures.items[0]["reason"]
    # The next run finishes it.
    report = place.install(file, current="live")
    assert (report.action, report.switched, report.failures.total, place.names) == (
        "",
        True,
        0,
        ["app", "live"],
    )


def test_an_old_version_that_cannot_be_looked_at_is_told_with_the_upgrade(
    mirror: Mirror, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.install(mirror.add("/app.tgz", ONE))

    def broken(cursor: Cursor, name: str) -> None:
        if name.startswith(".besom-old-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), name)
        real(cursor, name)

    real = Cursor.enter

    with monkeypatch.context() as patch:
        patch.setattr(Cursor, "enter", broken)
        report = place.install(mirror.add("/app.tgz", TWO))
    assert (report.changed, report.action, place.version()) == (True, "upgraded", "2")
    assert [one["reason"] for one in report.failures.items] == ["cannot be removed: Input/output error"]


@pytest.mark.root
def test_a_tree_that_is_a_mount_is_kept_and_what_went_is_told(
    mirror: Mirror, place: Place, mount: Callable[..., None]
) -> None:
    for content in (ONE, TWO):
        place.install(mirror.add("/app.tgz", content), keep=1)
    mount("--bind", place.path / "app", place.path / "app")
    for dry_run in (True, False):
        report = place.absent(dry_run=dry_run)
        assert [one["reason"] for one in report.kept.items] == ["is a mount point"]
        assert report.planned.entries == 1
    assert (report.removed.entries, report.action, place.names) == (1, "", ["app"])
    assert report.failures.total == 1


def test_a_held_directory_is_waited_for_only_when_the_tree_is_ready(
    mirror: Mirror, place: Place, hold: Callable[..., Any]
) -> None:
    file = mirror.add("/app.tgz", ONE)
    held = hold(place.path)
    with pytest.raises(LockHeld, match="is locked by pid"):
        place.install(file)
    assert place.names == []
    assert mirror.counts["GET"] == 1
    told: list[str] = []

    def waiting(sentence: str) -> None:
        told.append(sentence)
        held.release()

    report = place.install(file, place.run(lock_timeout=60.0, waiting=waiting))
    assert report.lock_wait_s > 0
    assert len(told) == 1
    # What is there already needs no lock.
    hold(place.path)
    assert not place.install(file).changed


def test_a_signal_cuts_the_transfer_and_leaves_nothing(mirror: Mirror, place: Place) -> None:
    release, shutdown = threading.Event(), Shutdown()
    file = mirror.add("/app.tgz", ONE, vices=[stalled(50, release)])

    def stop() -> None:
        mirror.wait_for("/app.tgz")
        shutdown.request(signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(Interrupted) as error:
        place.install(file, place.run(shutdown=shutdown))
    stopper.join()
    release.set()
    assert error.value.status == 143
    assert place.names == []


@pytest.mark.parametrize("method", ["HEAD", "GET"])
def test_a_signal_leaves_a_server_behind_that_does_not_answer(
    mirror: Mirror, place: Place, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("besom.install._GRACE_S", 0.1)
    mirror.add("/app.tgz", ONE)
    release, shutdown = threading.Event(), Shutdown()

    def opener(url: str, **request: Any) -> Any:
        if request["method"] == method:
            shutdown.request(signal.SIGTERM)
            release.wait(60)
        return OPENER(url, **request)

    source = read_source(f"{mirror.url}/app.tgz")
    with pytest.raises(Interrupted) as error:
        install(InstallRequest(str(place.path), "app", source), place.run(shutdown=shutdown), opener)
    assert not release.is_set()
    release.set()
    assert error.value.status == 143
    assert place.names == []


@pytest.mark.parametrize("phase", ["fetch", "extract"])
def test_a_signal_in_any_phase_leaves_the_old_tree(mirror: Mirror, place: Place, phase: str) -> None:
    place.install(mirror.add("/app.tgz", ONE))
    before, shutdown = snapshot(place.path / "app"), Shutdown()

    def progress(now: str, done: int, total: int) -> None:
        if now == phase:
            shutdown.request(signal.SIGINT)

    with pytest.raises(Interrupted) as error:
        place.install(mirror.add("/app.tgz", TWO), place.run(shutdown=shutdown, progress=progress))
    assert error.value.status == 130
    assert snapshot(place.path / "app") == before
    assert place.names == ["app"]


def test_a_transfer_is_tried_again_and_that_is_told(
    mirror: Mirror, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = mirror.add("/app.tgz", ONE, vices=[Status(503, {"Retry-After": "0"})])
    values = place.install(file).to_dict()
    assert (values["action"], values["retries"]) == ("installed", 1)


def test_the_next_run_removes_what_a_killed_one_has_left(mirror: Mirror, place: Place) -> None:
    file = mirror.add("/app.tgz", ONE)
    place.install(file)
    (place.path / ".temp-app-0123456789abcdef/deep").mkdir(parents=True)
    (place.path / ".other.0123456789abcdef.part").write_bytes(b"x")
    (place.path / ".besom-link-0123456789abcdef").symlink_to("app")
    report = place.install(mirror.add("/app.tgz", TWO))
    assert report.action == "upgraded"
    assert place.names == ["app"]


def test_what_a_killed_run_has_fetched_is_gone_on_with(mirror: Mirror, place: Place) -> None:
    content = app("1", large=os.urandom(50_000))
    release = threading.Event()
    file = mirror.add("/app.tgz", content, etag='"1"', vices=[stalled(30_000, release)])
    try:
        os.setxattr(place.path, "user.besom.test", b"1")
    except OSError:
        pytest.skip("this file system has no extended attributes")
    pid = os.fork()
    if not pid:
        # No clean-up of pytest's, and none of besom's.
        try:
            place.install(file, place.run(progress=lambda phase, done, total: done == 30_000 and os._exit(9)))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    release.set()
    (left,) = place.names
    assert left.endswith(".part")
    report = place.install(file)
    assert (report.action, report.fetched.bytes) == ("installed", len(content) - 30_000)
    assert place.names == ["app"]
