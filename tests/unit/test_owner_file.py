# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The owner file: who may take it over, and that no two ever have it."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from besom import entry_removal, owner_file
from besom.effort import Effort
from besom.errors import BesomError, LockHeld, LockLost, UsageError
from besom.guard import guarded
from besom.info import lock_info
from besom.owner_file import ALIVE, DEAD, INITIAL, NAME, UNKNOWN, Owner, OwnerFile
from besom.root import Root
from besom.run import Run


@pytest.fixture(autouse=True)
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    """flock(2) as it is where it does nothing: it succeeds for everybody."""
    monkeypatch.setattr(fcntl, "flock", lambda fd, operation: None)


@pytest.fixture
def root(area: Any) -> Iterator[Root]:
    with Root(str(area.path)) as opened:
        yield opened


def lock(root: Root, timeout: float = 0, **options: Any) -> Any:
    return guarded(root, Run(lock_timeout=timeout, lock_option="--lock-timeout", **options))


def gone_process() -> Owner:
    """A record of a process of this host that has been and is gone."""
    source, sink = os.pipe()
    pid = os.fork()
    if not pid:
        os.write(sink, json.dumps(asdict(Owner.current())).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(sink)
    with os.fdopen(source, "rb") as stream:
        return Owner(**json.loads(stream.read()))


def leave(area: Any, owner: Owner, name: str = NAME) -> Path:
    path = Path(area.at(name))
    path.write_text(json.dumps(asdict(owner)))
    return path


def break_lock(root: Root) -> None:
    file = OwnerFile(root.fd, root.path)
    file.break_up(file.breakable()[1])


def test_where_flock_keeps_nobody_out_an_owner_file_does(area: Any, root: Root) -> None:
    with lock(root):
        values = json.loads(Path(area.at(NAME)).read_text())
        assert values["pid"] == os.getpid()
        says = rf"is locked by pid {os.getpid()} \(.*\) on .*, since 2.*or raise --lock-timeout\.$"
        with Root(str(area.path)) as second, pytest.raises(LockHeld, match=says), lock(second):
            pytest.fail("two hold the lock")
    assert area.names() == []


class NoFlock(Root):
    """A store whose descriptor the kernel refuses flock on with EBADF, as NFS does for directories."""

    def reopen(self) -> None:
        super().reopen()
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_PATH)


def test_where_flock_is_refused_an_owner_file_keeps_others_out(
    area: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with NoFlock(str(area.path)) as root:
        with lock(root):
            assert area.names() == [NAME]
            with pytest.raises(LockHeld), lock(root):
                pytest.fail("two hold the lock")
        assert area.names() == []


def test_where_neither_works_the_store_is_left_alone(
    area: Any, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BesomError, match=r"No space left.*leaves this store alone"), lock(root):
        pytest.fail("nothing guards this")
    assert area.names() == []


def test_of_those_that_take_turns_and_are_killed_no_two_have_it_at_once(area: Any, tmp_path: Path) -> None:
    counter, ends = tmp_path / "counter", []
    counter.write_text("0")

    def turn(number: int) -> None:
        with Root(str(area.path)) as root, lock(root, 60):
            count = int(counter.read_text())
            counter.write_text("")  # who comes in between finds no number
            counter.write_text(str(count + 1))
            if number % 2:
                os.kill(os.getpid(), signal.SIGKILL)  # the next one has to take it over

    workers = []
    for _ in range(3):
        worker = os.fork()
        if worker:
            workers.append(worker)
            continue
        status = 1
        with suppress(BaseException):
            for number in range(10):
                child = os.fork()
                if not child:
                    code = 1
                    with suppress(BaseException):
                        turn(number)
                        code = 0
                    os._exit(code)
                ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                assert ended == (-signal.SIGKILL if number % 2 else 0)
            status = 0
        os._exit(status)
    ends = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
    assert ends == [0] * 3
    assert counter.read_text() == "30"
    with Root(str(area.path)) as root, lock(root):
        assert area.names() == [NAME]


# As another process, which knows nothing of what this one holds, sees it.
THERE = replace(Owner.current(), pid_namespace=INITIAL, host_id="h", boot_id="b")
HERE = replace(THERE, pid=0)


@pytest.mark.parametrize(
    ("changes", "fate"),
    [
        ({}, ALIVE),
        ({"start_token": "1"}, DEAD),
        ({"start_token": ""}, UNKNOWN),
        ({"pid_namespace": "pid:[1]"}, UNKNOWN),
        ({"pid_namespace": ""}, UNKNOWN),
        ({"boot_id": "another"}, DEAD),
        ({"boot_id": ""}, UNKNOWN),
        ({"boot_id": "another", "host_id": "another"}, UNKNOWN),
        ({"boot_id": "another", "host_id": ""}, UNKNOWN),
        ({"boot_id": "another", "pid_namespace": "pid:[1]"}, UNKNOWN),
        ({"host_id": "another", "start_token": "1"}, DEAD),
        ({"time_namespace": "time:[1]"}, UNKNOWN),
        ({"time_namespace": "time:[1]", "start_token": "1"}, UNKNOWN),
    ],
    ids=str,
)
def test_an_owner_is_dead_only_where_that_is_proven(changes: dict[str, str], fate: str) -> None:
    assert replace(THERE, **changes).fate(HERE) == fate


def test_a_process_that_may_not_be_looked_at_is_not_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_file, "_start_token", lambda pid: "")  # hidepid
    assert THERE.fate(HERE) == UNKNOWN


def test_the_file_of_a_process_that_is_gone_is_taken_over(area: Any, root: Root) -> None:
    leave(area, gone_process())
    assert lock_info(root)["state"] == "free"
    with lock(root):
        assert area.names() == [NAME]
        assert lock_info(root)["holder"]["pid"] == os.getpid()
    assert area.names() == []


def test_a_process_that_has_ended_and_is_not_reaped_is_dead(area: Any, root: Root) -> None:
    source, sink = os.pipe()
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            leave(area, Owner.current())
        os._exit(0)
    try:
        os.close(sink)
        assert os.read(source, 1) == b""  # it ends
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with lock(root):
            assert area.names() == [NAME]
    finally:
        os.close(source)
        os.waitpid(pid, 0)


@pytest.mark.parametrize("fault", ["release", "removal", "win"])
def test_an_error_of_the_file_system_leaves_no_lock_behind(
    area: Any, root: Root, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    load, unlink, sync, stale = OwnerFile._load, os.unlink, OwnerFile._sync_directory, OSError(116, "Stale")
    if fault == "win":
        leave(area, gone_process())
        failed = iter([stale])

        def fail_once(file: OwnerFile) -> None:
            if area.names() == [NAME]:  # once it is taken over
                for error in failed:
                    raise error
            sync(file)

        monkeypatch.setattr(OwnerFile, "_sync_directory", fail_once)
        with pytest.raises(BesomError, match="Stale"), lock(root):
            pytest.fail("not held")
    else:
        with lock(root):
            faults = iter([stale] * (1 if fault == "release" else 9))

            def fail(*arguments: Any, **options: Any) -> Any:
                for error in faults:
                    raise error
                return (load if fault == "release" else unlink)(*arguments, **options)

            monkeypatch.setattr(*((OwnerFile, "_load") if fault == "release" else (os, "unlink")), fail)
        monkeypatch.setattr(os, "unlink", unlink)
    # Left to be taken over by this very process where nothing else was possible.
    assert area.names() == ([NAME] if fault == "removal" else [])
    with lock(root):
        pass
    assert area.names() == []


def test_an_owner_file_is_whole_from_the_first_instant(
    area: Any, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, seen = os.fsync, []

    def look(fd: int) -> None:
        seen.append([name for name in area.names() if name == NAME])
        fsync(fd)

    monkeypatch.setattr(os, "fsync", look)
    with lock(root):
        assert seen == [[], [NAME]]  # the content, the directory
        assert area.names() == [NAME]


def test_where_there_are_no_hard_links_it_is_made_in_its_place(
    area: Any, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with lock(root):
        assert area.names() == [NAME]
        with Root(str(area.path)) as second, pytest.raises(LockHeld), lock(second):
            pytest.fail("two hold the lock")
    assert area.names() == []


def test_a_lock_that_nobody_was_asked_about_is_not_broken(area: Any, root: Root) -> None:
    first = replace(Owner.current(), host_id="other", boot_id="other", id="1" * 16)
    leave(area, first)
    file = OwnerFile(root.fd, root.path)
    _words, which = file.breakable()
    leave(area, replace(first, id="2" * 16, pid=7))
    with pytest.raises(
        LockHeld, match=r"is locked by pid 7 .* now, which nobody was asked about; look again"
    ):
        file.break_up(which)
    assert area.names() == [NAME]


def test_a_take_over_that_was_killed_half_way_is_finished_by_the_next(area: Any, root: Root) -> None:
    first, second = gone_process(), gone_process()
    leave(area, first)
    leave(area, second, f"{NAME}.{first.id}")
    with lock(root):
        assert area.names() == [NAME]
    assert area.names() == []


def test_a_file_that_was_taken_over_meanwhile_is_left_to_its_new_owner(
    area: Any, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    living, make = replace(Owner.current(), id="f" * 16), OwnerFile._make
    monkeypatch.setattr(owner_file, "_held", {living.id})

    def make_and_come_second(file: OwnerFile, name: str) -> bool:
        made = make(file, name)
        if name != NAME:
            leave(area, living)
        return made

    monkeypatch.setattr(OwnerFile, "_make", make_and_come_second)
    leave(area, gone_process())
    with pytest.raises(LockHeld), lock(root):
        pytest.fail("two hold the lock")
    assert area.names() == [NAME]
    assert json.loads(Path(area.at(NAME)).read_text())["id"] == living.id


def test_claims_that_lead_in_a_circle_are_nobodys_proof(area: Any, root: Root) -> None:
    owner, other = gone_process(), gone_process()
    leave(area, owner)
    leave(area, other, f"{NAME}.{owner.id}")
    leave(area, owner, f"{NAME}.{other.id}")
    with pytest.raises(LockHeld, match="besom lock break"), lock(root):
        pytest.fail("taken without a proof")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"pid": 1}', pytest.param("[" * 100_000, id="deep"), "a symlink", "a directory"],
)
def test_a_file_that_cannot_be_read_is_held_until_a_person_breaks_it(
    area: Any, root: Root, content: str
) -> None:
    if content == "a symlink":
        area.symlink(NAME, "elsewhere")
    elif content == "a directory":
        area.dir(NAME)
    else:
        Path(area.at(NAME)).write_text(content)
    says = f"an owner that cannot be read in {NAME}.*If that owner is surely gone, run: besom lock break"
    with pytest.raises(LockHeld, match=says), lock(root):
        pytest.fail("taken without a proof")
    if content == "a directory":
        with pytest.raises(UsageError, match="is a directory, which besom has not made; remove it yourself"):
            break_lock(root)
    else:
        break_lock(root)
        with lock(root):
            pass


def test_an_owner_elsewhere_holds_it_until_a_person_breaks_it(area: Any, root: Root) -> None:
    elsewhere = replace(Owner.current(), host="barn\n", host_id="other", boot_id="other", pid=1)
    leave(area, elsewhere)
    with pytest.raises(LockHeld, match=r"locked by pid 1 .* on barn\\x0a, since"), lock(root):
        pytest.fail("two hold the lock")
    assert "cannot be seen from here" in lock_info(root)["note"]
    break_lock(root)
    assert area.names() == []


def test_the_lock_of_an_owner_that_lives_here_is_not_broken(area: Any, root: Root) -> None:
    with lock(root):
        with pytest.raises(LockHeld, match="which lives: end that process instead"):
            break_lock(root)
        assert area.names() == [NAME]
    with pytest.raises(UsageError, match="nothing to break"):
        break_lock(root)


@pytest.mark.parametrize("layout", ["files", "trees"])
def test_an_owner_file_is_no_entry_and_is_not_counted(
    area: Any, layout: str, pruned: Any, swept: Any
) -> None:
    area.tree("entry", days=9)
    before = pruned(area, layout, dry_run=True, max_age="1d")
    names = {NAME, f"{NAME}.{'0' * 16}", f"{NAME}.{'0' * 16}.new"}
    for name in names:
        area.file(name, days=99)
    after = pruned(area, layout, dry_run=True, max_age="1d")
    assert (after.planned, after.bytes_before) == (before.planned, before.bytes_before)
    assert swept(area, "*", ".*", dry_run=True).victims.items[0]["path"] == area.at("entry")
    Path(area.at(NAME)).unlink()  # nobody's, so it would be waited for
    assert pruned(area, layout, max_age="1d").removed.entries == 1
    assert set(area.names()) == names - {NAME}


def test_work_ends_between_two_entries_once_its_lock_was_broken(
    area: Any, monkeypatch: pytest.MonkeyPatch, request_for: Any, make_run: Any
) -> None:
    monkeypatch.setattr(owner_file, "_LOOK_S", 0)
    for number in range(5):
        area.tree(f"tree{number}", days=9)

    def spoil(phase: str, done: int, _total: int) -> None:
        if (phase, done) == ("remove", 2):
            with suppress(FileNotFoundError):
                os.unlink(area.at(NAME))

    from besom.prune import prune

    monkeypatch.setattr(entry_removal, "_WORK", 1)
    run = make_run(progress=spoil, effort=Effort(workers=1))
    report = prune(request_for(area, "trees", max_age="1d"), run)
    assert report.removed.entries == 2
    assert not report.interrupted
    assert not run.shutdown.requested
    (failure,) = report.failures.items
    assert failure["path"] == str(area.path)
    assert failure["reason"].startswith("lost its lock (.besom-owner is not besom's own any more")
    assert len(area.names()) == 6


def test_a_lock_that_is_lost_while_nothing_is_removed_is_an_error_of_its_own(
    area: Any, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner_file, "_LOOK_S", 0)
    whole = Run()
    with guarded(root, whole) as (run, _waited):
        run.shutdown.check()
        os.unlink(area.at(NAME))
        with pytest.raises(LockLost, match="lost its lock") as caught:
            run.shutdown.check()
        assert caught.value.status == 1
        # A signal is said as what it is.
        whole.shutdown.request(signal.SIGINT)
        with pytest.raises(BesomError, match="SIGINT"):
            run.shutdown.check()
