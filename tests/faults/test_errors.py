# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Each call that changes a file system fails in each way: said, nothing lost, mended by the next run.

A few of them in every run; scripts/test --faults tries each call with each error.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable

import pytest

from besom.crew import Crew
from besom.durable import write_durably
from besom.durable_tree import remove_orphans, tree_draft
from besom.errors import BesomError
from besom.fetch import plain_opener
from besom.housekeep import perform
from besom.install import InstallRequest, install
from besom.policy import read_store, read_temps
from besom.prune import Request, prune
from besom.report import Report
from besom.root import Root
from besom.run import Run
from besom.sweep import sweep
from besom.transfer import read_checksum, read_source
from besom_host.state import IDLE, RUNNING, StateDir, Status

from ..host.mirror import Mirror, serve
from .child import Call, Child, calls_of
from .conftest import ALL, Tried

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EROFS", "EMFILE", "ESTALE", "EINTR")
FULL = ("ENOSPC", "EDQUOT")
SAID = {getattr(errno, name): os.strerror(getattr(errno, name)) for name in ERRORS}
OLD, NEW = b"old" * 5000, b"new" * 7000
DAY = 86400
NAMES = ("0", "1", "2", "3", "4")
KEPT = 2


class Failed(BesomError):
    """What a command would say and end with."""


@dataclass(frozen=True)
class Operation:
    """make prepares a directory, work changes it; wrong says what is amiss after work was met by an error.

    done: how the directory looks when all is done. full: it needs space, and ends with 3 where there is none.
    """

    make: Callable[[Path], object]
    work: Callable[[Path], None]
    wrong: Callable[[Path], str]
    done: Callable[[Path], bool]
    full: bool = False


def told(path: Path, work: Callable[[], Report]) -> None:
    """Work as commands and modules do it."""
    outcome = perform([(str(path), work)], Run(lock_timeout=0.0), skip_missing=False)
    if outcome.status:
        error = Failed(" ".join(outcome.messages))
        error.status = outcome.status
        raise error


def age(path: Path, days: int) -> None:
    for one in [*path.rglob("*"), path]:
        os.utime(one, (time.time() - days * DAY,) * 2)


# Publication.


def overwrite(path: Path, content: bytes) -> Report:
    """What a careless writer does."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        os.write(fd, content)
    finally:
        os.close(fd)
    return Report("overwrite", str(path))


def publish(path: Path) -> Report:
    with Root(str(path)) as root:
        report = remove_orphans(root, Run())
        write_durably(root.fd, root.path, "file", NEW)
        return report


def file_wrong(path: Path) -> str:
    found = (path / "file").read_bytes()
    return "" if found in (OLD, NEW) else f"{len(found)} bytes"


def publish_tree(path: Path) -> Report:
    with Root(str(path)) as root:
        report = remove_orphans(root, Run())
        aside = ".besom-old-tree-20260101T000000.000000"
        with tree_draft(root, "tree") as one:
            for name in ("a", "b"):
                fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=one.fd)
                os.write(fd, NEW)
                os.close(fd)
            one.commit(None if (path / aside).exists() else aside)
        return report


def make_tree(path: Path, name: str = "tree", content: bytes = OLD) -> None:
    (path / name).mkdir()
    for leaf in ("a", "b"):
        (path / name / leaf).write_bytes(content)


def tree_content(path: Path) -> set[bytes]:
    return {(path / leaf).read_bytes() for leaf in ("a", "b")}


def tree_wrong(path: Path) -> str:
    found = tree_content(path / "tree")
    if found not in ({OLD}, {NEW}):
        return f"the tree is torn: {[len(one) for one in found]}"
    # What was replaced is somewhere, under one name or the other.
    trees = [one for one in path.iterdir() if (one / "b").exists()]
    return "" if {OLD} in map(tree_content, trees) else "the old tree is lost"


def tree_done(path: Path) -> bool:
    others = {one.name for one in path.iterdir()} - {"tree"}
    return tree_content(path / "tree") == {NEW} and all(one.startswith(".besom-old-tree-") for one in others)


# Removal.


def make_entries(path: Path, trees: bool) -> None:
    for number, name in enumerate(NAMES):
        if trees:
            make_tree(path, name)
        else:
            (path / name).write_bytes(OLD)
        age(path / name, len(NAMES) - number)


def prune_entries(path: Path, trees: bool) -> None:
    layout = "trees" if trees else "files"
    store = read_store({"path": str(path), "layout": layout, "max_entries": KEPT})
    told(path, partial(prune, Request(store), Run(lock_timeout=0.0)))


def entries_wrong(path: Path, trees: bool) -> str:
    """Each entry that has its name is whole, and none of those that stay is gone."""
    names = {one.name for one in path.iterdir() if not one.name.startswith(".besom-trash-")}
    if not set(NAMES[-KEPT:]) <= names <= set(NAMES):
        return f"there is {names}"
    for name in names:
        content = tree_content(path / name) if trees else {(path / name).read_bytes()}
        if content != {OLD}:
            return f"{name} is torn"
    return ""


def entries_done(path: Path) -> bool:
    return {one.name for one in path.iterdir()} == set(NAMES[-KEPT:])


def make_temps(path: Path) -> None:
    for name in (".temp-a", ".temp-b", "data"):
        make_tree(path, name)
        age(path / name, 3)
    make_tree(path, ".temp-new")


def sweep_temps(path: Path) -> None:
    told(path, partial(sweep, read_temps({"path": str(path)}), Run(lock_timeout=0.0)))


def temps_wrong(path: Path) -> str:
    torn = [name for name in ("data", ".temp-new") if tree_content(path / name) != {OLD}]
    return f"{torn} are torn" if torn else ""


def temps_done(path: Path) -> bool:
    return {one.name for one in path.iterdir()} == {"data", ".temp-new"}


# Installation.


def archive(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as one:
        for leaf in ("a", "b"):
            info = tarfile.TarInfo(leaf)
            info.size = len(content)
            one.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def install_from(mirror: Mirror, name: str, path: Path) -> None:
    source = read_source(f"{mirror.url}/{name}", checksum=read_checksum(mirror.files[f"/{name}"].checksum))
    request = InstallRequest(str(path), "tree", source, keep=1, current="live", retries=0)
    opener = plain_opener(timeout=60, redirects=False)
    told(path, partial(install, request, Run(lock_timeout=0.0), opener))


def installed_wrong(path: Path) -> str:
    return tree_wrong(path) or ("" if os.readlink(path / "live") == "tree" else "the link is wrong")


def installed_done(path: Path) -> bool:
    names = {one.name[:15] for one in path.iterdir()}
    return tree_content(path / "tree") == {NEW} and names == {"tree", "live", ".besom-old-tree"}


# The status of the daemon.


def tell(path: Path, state: str = RUNNING) -> None:
    try:
        StateDir(str(path)).write(Status(state, answered=7))
    except OSError as error:
        # As the daemon does, which goes on without.
        raise Failed(str(error.strerror)) from error


def told_state(path: Path) -> str:
    status = StateDir(str(path))._read()
    return status.state if status.answered == 7 else "lost"


OPERATIONS = {
    "publish a file": Operation(
        lambda path: overwrite(path / "file", OLD),
        lambda path: told(path, lambda: publish(path)),
        file_wrong,
        lambda path: os.listdir(path) == ["file"] and (path / "file").read_bytes() == NEW,
        full=True,
    ),
    "publish a tree": Operation(
        make_tree, lambda path: told(path, lambda: publish_tree(path)), tree_wrong, tree_done, full=True
    ),
    "prune files": Operation(
        partial(make_entries, trees=False),
        partial(prune_entries, trees=False),
        partial(entries_wrong, trees=False),
        entries_done,
    ),
    "prune trees": Operation(
        partial(make_entries, trees=True),
        partial(prune_entries, trees=True),
        partial(entries_wrong, trees=True),
        entries_done,
    ),
    "sweep": Operation(make_temps, sweep_temps, temps_wrong, temps_done),
    "tell the status": Operation(
        lambda path: tell(path, IDLE),
        tell,
        lambda path: "" if told_state(path) in (IDLE, RUNNING) else "the status is lost",
        lambda path: told_state(path) == RUNNING,
    ),
}


@pytest.fixture(scope="module")
def mirror() -> Iterator[Mirror]:
    with serve() as one:
        one.add("/old.tgz", archive(OLD))
        one.add("/new.tgz", archive(NEW))
        yield one


def chosen(calls: list[Call]) -> list[tuple[Call, str]]:
    """Each call with each error; without ALL each kind of call once, with one of them after the other."""
    if ALL:
        return [(call, name) for call in calls for name in ERRORS]
    kinds = {call[0]: call for call in calls}
    return [(call, ERRORS[number % len(ERRORS)]) for number, call in enumerate(kinds.values())]


def amiss(operation: Operation, area: Path, call: Call, name: str, log: Path) -> str:
    """What is amiss with a run of which this call fails so, and with the run after it."""
    operation.make(area)
    with Child(lambda: operation.work(area)) as child:
        child.trace(log, f"{call[0]}:error={name}:when={call[1]}")
        child.go()
        status = child.wait()
        said = child.said() if status else ""
    if "INJECTED" not in log.read_text():
        return "the call was not made"
    if status not in ((0, 1, 3) if operation.full and name in FULL else (0, 1)):
        return f"it ended with {status}: {said}"
    if status and os.strerror(getattr(errno, name)) not in said:
        return f"it did not say why: {said}"
    wrong = operation.wrong(area)
    # A stale handle is of another file by now: a prune keeps that, and says so.
    if not wrong and status == 0 and not (name == "ESTALE" and not operation.full):
        # What is not essential may fail; but a temp that is left must be known for one.
        with Root(str(area)) as root:
            remove_orphans(root, Run())
        wrong = "" if operation.done(area) else f"it ended with 0, and left {os.listdir(area)}"
    if wrong:
        return f"{wrong} ({status}: {said})"
    operation.work(area)
    return "" if operation.done(area) else f"the next run left {os.listdir(area)}"


def try_all(operation: Operation, tmp_path: Path) -> int:
    """How many errors were tried."""
    log = tmp_path / "log"
    for name in ("warm", "counted"):
        area = tmp_path / name
        area.mkdir()
        operation.make(area)
        if name == "warm":
            # What is loaded only once is loaded by now.
            operation.work(area)
    calls = calls_of(lambda: operation.work(area), log)
    assert operation.done(area)
    found = []
    for number, (call, name) in enumerate(chosen(calls)):
        area = tmp_path / f"{number}"
        area.mkdir()
        if wrong := amiss(operation, area, call, name, log):
            found.append(f"{call[0]} {call[1]} {name}: {wrong}")
    assert found == []
    assert number >= 1
    return number + 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_error_is_said_and_loses_nothing(tmp_path: Path, name: str, tried: Tried) -> None:
    tried("calls that fail", try_all(OPERATIONS[name], tmp_path))


def test_an_error_leaves_the_old_tree_or_the_new_one_of_an_install(
    tmp_path: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, tried: Tried
) -> None:
    def alone(self: Crew[Any, Any], jobs: Any, work: Callable[[Any], Any], _size: int) -> None:
        # In this thread, whose calls are those that are seen.
        self.outstanding, self.result = 1, None  # type: ignore[attr-defined]
        (job,) = jobs
        try:
            self.result = job, work(job)  # type: ignore[attr-defined]
        except BaseException as error:  # noqa: BLE001 (as Crew does)
            self.result = job, error  # type: ignore[attr-defined]

    monkeypatch.setattr(Crew, "__init__", alone)
    monkeypatch.setattr(Crew, "wait", lambda self, _seconds: self.result)
    model = tmp_path / "model"
    model.mkdir()
    install_from(mirror, "old.tgz", model)
    operation = Operation(
        lambda path: shutil.copytree(model, path, symlinks=True, dirs_exist_ok=True),
        partial(install_from, mirror, "new.tgz"),
        installed_wrong,
        installed_done,
        full=True,
    )
    tried("calls that fail", try_all(operation, tmp_path))


def test_a_careless_writer_would_be_caught(tmp_path: Path) -> None:
    careless = Operation(
        lambda path: overwrite(path / "file", OLD),
        lambda path: told(path, lambda: overwrite(path / "file", NEW)),
        file_wrong,
        lambda path: (path / "file").read_bytes() == NEW,
    )
    with pytest.raises(AssertionError, match=r"write 1 \w+: 0 bytes"):
        try_all(careless, tmp_path)
