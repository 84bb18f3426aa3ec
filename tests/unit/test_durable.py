# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files are published whole or not at all; what a killed writer leaves is told from a living one's."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Callable

import pytest

from besom import durable
from besom.durable import (
    Retries,
    adopt,
    draft,
    parts_of,
    patiently,
    remove_part,
    sync_directory,
    write_durably,
)
from besom.errors import BesomError, NoSpace, UsageError


class Place:
    """An open directory."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path = path
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.at = (self.fd, str(path))

    def file(self, name: str, content: bytes = b"") -> Path:
        path = self.path / name
        path.write_bytes(content)
        return path

    @property
    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    one = Place(tmp_path / "place")
    yield one
    os.close(one.fd)


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system on which flock always succeeds, and keeps nobody out."""
    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)


def refuse(monkeypatch: pytest.MonkeyPatch, call: str, *errors: OSError) -> None:
    """Have a call of os fail with these errors, one each, and then work."""
    real, left = getattr(os, call), list(errors)

    def one(*arguments: Any, **options: Any) -> Any:
        if left:
            raise left.pop(0)
        return real(*arguments, **options)

    monkeypatch.setattr(os, call, one)


def busy(number: int = errno.EBUSY) -> OSError:
    return OSError(number, os.strerror(number))


def sharing_violation() -> OSError:
    error = PermissionError(errno.EACCES, "The process cannot access the file")
    error.winerror = 32  # as Windows has it
    return error


ORPHAN = ".data.0123456789abcdef.part"


def test_a_reader_sees_the_old_file_until_the_new_one_is_there_whole(place: Place) -> None:
    target = place.file("data", b"old")
    with draft(*place.at, "data") as one:
        one.write(b"new")
        one.seal(0o640)
        assert target.read_bytes() == b"old"
        one.publish()
        assert target.read_bytes() == b"new"
    assert place.names == ["data"]
    assert target.stat().st_mode & 0o7777 == 0o640


def test_the_order_is_write_fsync_rename_fsync_of_the_directory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool]] = []
    for call in ("write", "fsync", "rename"):
        real = getattr(os, call)

        def one(*arguments: Any, call: str = call, real: Any = real, **options: Any) -> Any:
            calls.append((call, arguments[0] == place.fd))
            return real(*arguments, **options)

        monkeypatch.setattr(os, call, one)
    write_durably(*place.at, "data", b"new")
    assert calls == [("write", False), ("fsync", False), ("rename", False), ("fsync", True)]


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        ("return", nullcontext()),
        ("raise", pytest.raises(RuntimeError)),
        ("discard", pytest.raises(BesomError, match="discarded before")),
    ],
)
def test_what_is_not_published_leaves_nothing(place: Place, end: str, outcome: Any) -> None:
    place.file("data", b"old")

    def write() -> None:
        with draft(*place.at, "data") as one:
            one.write(b"new")
            if end == "raise":
                raise RuntimeError
            if end == "discard":
                one.discard()
                one.publish()

    with outcome:
        write()
    assert place.names == ["data"]
    assert (place.path / "data").read_bytes() == b"old"


def test_a_draft_is_private_and_locked_and_let_go_at_the_end(
    place: Place, is_locked: Callable[[str], bool]
) -> None:
    with draft(*place.at, "data") as one:
        temp = place.path / one.name
        assert temp.stat().st_mode & 0o7777 == 0o600
        assert durable.ORPHAN.fullmatch(one.name)
        assert is_locked(str(temp))
        one.publish()
    assert not is_locked(str(place.path / "data"))


def test_the_mode_is_that_of_the_file_before_or_what_the_umask_leaves(place: Place) -> None:
    old = os.umask(0o027)
    try:
        for expected in (0o640, 0o604):
            with draft(*place.at, "data") as one:
                one.publish()
            assert (place.path / "data").stat().st_mode & 0o7777 == expected
            (place.path / "data").chmod(0o604)
    finally:
        os.umask(old)


@pytest.mark.root
def test_the_mode_of_another_owners_file_is_not_taken_over(place: Place) -> None:
    theirs = place.file("data")
    theirs.chmod(0o666)
    os.chown(theirs, 12345, -1)
    with draft(*place.at, "data") as one:
        one.seal(uid=54321, gid=4242)
        one.publish()
    st = theirs.stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o022) == (54321, 4242, 0)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256, ORPHAN, ".besom-owner"])
def test_names_that_cannot_be_published_are_refused_before_anything_is_written(
    place: Place, name: str
) -> None:
    with pytest.raises(UsageError), draft(*place.at, name):
        pass
    assert place.names == []


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, os.fsdecode(b"\xff" * 255), "new\nline", "-rf"])
def test_any_other_name_works_and_its_temps_are_told_from_those_of_others(place: Place, name: str) -> None:
    other = name[:-1] + "~"
    with draft(*place.at, name) as one, draft(*place.at, other) as two:
        assert len(os.fsencode(one.name)) <= 255
        assert (parts_of(place.fd, name), parts_of(place.fd, other)) == ([one.name], [two.name])
        one.publish()
    assert place.names == [name]


def test_temps_of_a_name_are_not_those_of_a_longer_one(place: Place) -> None:
    for name in (ORPHAN, ".data.0123456789abcdef.fedcba9876543210.part", ".data.tar.part"):
        place.file(name)
    assert parts_of(place.fd, "data") == [ORPHAN]


@pytest.mark.parametrize(
    ("call", "error"), [("write", "ENOSPC"), ("fsync", "EIO"), ("fchmod", "EPERM"), ("rename", "EIO")]
)
def test_a_failure_leaves_the_old_file_and_no_temp(
    place: Place, monkeypatch: pytest.MonkeyPatch, call: str, error: str
) -> None:
    place.file("data", b"old")
    refuse(monkeypatch, call, busy(getattr(errno, error)))
    with pytest.raises(NoSpace if error == "ENOSPC" else BesomError, match="data cannot be"):
        write_durably(*place.at, "data", b"new")
    assert place.names == ["data"]
    assert (place.path / "data").read_bytes() == b"old"


def test_a_failed_fsync_is_not_tried_again(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "fsync", busy(errno.EIO))
    with draft(*place.at, "data") as one:
        with pytest.raises(BesomError, match="brought to the disk"):
            one.seal()
        assert place.names == []
        for again in (one.seal, one.publish):
            with pytest.raises(BesomError, match="discarded before"):
                again()


@pytest.mark.parametrize("refusal", [busy(), busy(errno.ETXTBSY), busy(errno.ESTALE), sharing_violation()])
def test_a_rename_that_is_refused_for_a_while_is_tried_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, refusal: OSError
) -> None:
    refuse(monkeypatch, "rename", refusal, refusal)
    retries, pauses = Retries(), []
    with draft(*place.at, "data", retries) as one:
        one.publish(pause=pauses.append)
    assert pauses == [0.05, 0.1]
    assert retries.tries == 2
    assert retries.longest_wait_s == retries.elapsed_s > 0
    assert place.names == ["data"]


def test_the_waits_double_to_a_second() -> None:
    pauses: list[float] = []
    retries = Retries()

    def rename() -> None:
        if len(pauses) < 7:
            raise busy()

    patiently(rename, "data", retries, pause=pauses.append)
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert retries.to_dict()["tries"] == 7


def test_a_rename_is_not_tried_past_the_deadline(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.file("data", b"old")
    refuse(monkeypatch, "rename", *[busy()] * 100)
    pauses: list[float] = []
    retries = Retries()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        time.sleep(seconds)

    refused = pytest.raises(BesomError, match=r"Device or resource busy, \d times in")
    with refused, draft(*place.at, "data", retries) as one:
        one.publish(time.monotonic() + 0.2, pause)
    assert pauses[:1] == [0.05]
    assert sum(pauses) <= 0.2
    assert retries.tries == len(pauses)
    assert (place.path / "data").read_bytes() == b"old"
    assert place.names == ["data"]


def test_a_temp_that_another_has_replaced_is_not_published(place: Place) -> None:
    with draft(*place.at, "data") as one:
        os.unlink(place.path / one.name)
        planted = place.file(one.name, b"planted")
        with pytest.raises(BesomError, match="somebody has removed its temp"):
            one.publish()
    assert place.names == [planted.name]


def test_a_temp_of_a_living_writer_is_neither_removed_nor_taken_over(
    place: Place, hold: Callable[[Path], Any]
) -> None:
    held = hold(place.file(ORPHAN, b"half"))
    with draft(*place.at, "data") as own:
        for part in (own.name, ORPHAN):
            assert remove_part(place.fd, part) is None
            assert adopt(*place.at, part, "data") is None
    assert place.names == [ORPHAN]
    held.release()
    assert remove_part(place.fd, ORPHAN) is not None
    assert place.names == []
    assert remove_part(place.fd, ORPHAN) is None


def test_a_temp_that_is_published_just_before_its_lock_is_won_is_no_orphan(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.file(ORPHAN, b"whole").chmod(0o600)
    real, others = durable.try_flock, []

    def try_flock(fd: int) -> bool:
        if place.names == [ORPHAN]:
            os.rename(place.path / ORPHAN, place.path / "data")
            others.append(open(place.file(ORPHAN, b"another's"), "r+"))  # noqa: SIM115 - for its lock
            fcntl.flock(others[-1], fcntl.LOCK_EX)
        return real(fd)

    monkeypatch.setattr(durable, "try_flock", try_flock)
    assert remove_part(place.fd, ORPHAN) is None
    assert place.names == [ORPHAN, "data"]
    others.pop().close()


def test_an_orphan_is_taken_over_and_gone_on_with(place: Place, is_locked: Callable[[str], bool]) -> None:
    place.file(ORPHAN, b"half of").chmod(0o600)
    one = adopt(*place.at, ORPHAN, "data")
    assert one is not None
    with one:
        assert is_locked(str(place.path / ORPHAN))
        one.write(b" it all")
        one.publish()
    assert place.names == ["data"]
    assert (place.path / "data").read_bytes() == b"half of it all"


@pytest.mark.root
@pytest.mark.parametrize("wrong", ["owner", "mode", "read-only", "link", "symlink", "fifo", "directory"])
def test_an_orphan_that_others_may_write_to_is_not_taken_over(place: Place, wrong: str) -> None:
    part = place.path / ORPHAN
    if wrong == "symlink":
        part.symlink_to(place.file("elsewhere"))
    elif wrong == "fifo":
        os.mkfifo(part, 0o600)
    elif wrong == "directory":
        part.mkdir(0o700)
    else:
        part.touch()
        part.chmod({"mode": 0o622, "read-only": 0o400}.get(wrong, 0o600))
    if wrong == "owner":
        os.chown(part, 12345, -1)
    if wrong == "link":
        os.link(part, place.path / "another")
    assert adopt(*place.at, ORPHAN, "data") is None
    if wrong in ("symlink", "fifo", "directory"):
        assert remove_part(place.fd, ORPHAN) is None
        assert ORPHAN in place.names


@pytest.mark.usefixtures("no_flock")
def test_where_flock_keeps_nobody_out_no_temp_is_an_orphan(place: Place) -> None:
    with draft(*place.at, "data") as one:
        one.write(b"new")
        assert remove_part(place.fd, one.name) is None
        assert adopt(*place.at, one.name, "data") is None
        one.publish()
    assert (place.path / "data").read_bytes() == b"new"


def test_where_flock_is_refused_files_are_published_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_lock(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    place.file(ORPHAN)
    monkeypatch.setattr(fcntl, "flock", refuse_lock)
    write_durably(*place.at, "data", b"new")
    assert remove_part(place.fd, ORPHAN) is None
    assert place.names == [ORPHAN, "data"]


@pytest.mark.parametrize("meanwhile", ["removed", "taken over"])
def test_a_temp_lost_between_its_creation_and_its_lock_is_made_anew(
    place: Place, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    real, taken = durable.lock_temp, []

    def lock_temp(fd: int) -> bool:
        if not taken:
            (part,) = place.names
            if meanwhile == "removed":
                taken.append(remove_part(place.fd, part))
            else:
                taken.append(adopt(*place.at, part, "data"))
        return real(fd)

    monkeypatch.setattr(durable, "lock_temp", lock_temp)
    with draft(*place.at, "data") as one:
        if meanwhile == "taken over":
            # It is the other's now, and stays.
            assert len(parts_of(place.fd, "data")) == 2
            with taken[0]:
                taken[0].write(b"another's")
                taken[0].publish()
        assert parts_of(place.fd, "data") == [one.name]
        one.write(b"new")
        one.publish()
    assert place.names == ["data"]
    assert (place.path / "data").read_bytes() == b"new"


def test_a_child_that_lives_on_does_not_keep_a_temp_locked(place: Place) -> None:
    with draft(*place.at, "data") as one:
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        os.close(reader)
        try:
            one.publish()
            one.close()
            with open(place.path / "data") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(writer)
            os.waitpid(child, 0)


def test_sync_of_a_directory_says_which_failed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, "fsync", busy(errno.EIO))
    with pytest.raises(BesomError, match=f"{place.path} cannot be brought to the disk"):
        sync_directory(*place.at)


@pytest.mark.root
def test_a_new_version_keeps_the_group_and_the_mode(place: Place) -> None:
    file = place.file("a", b"old")
    os.chown(file, 0, 12345)
    file.chmod(0o640)
    with draft(*place.at, "a") as one:
        one.write(b"new")
        one.publish()
    st = file.stat()
    assert (st.st_gid, st.st_mode & 0o777) == (12345, 0o640)
    os.chown(file, 1, 12345)
    with draft(*place.at, "a") as one:
        one.publish()
    assert file.stat().st_gid != 12345
