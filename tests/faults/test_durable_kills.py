"""kill -9, or an error, at every system call of a publication: the old one or the new one, and no temp."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pytest

from besom import durable_tree
from besom.durable import draft, write_durably
from besom.durable_tree import is_old, remove_orphans, tree_draft
from besom.root import Root
from besom.run import Run

from .child import Call, Child, calls_in, calls_of

OLD, NEW = "old" * 5000, "new" * 7000
ASIDE = ".besom-old-app-1"
LEAVES = ("version", "lib/code")


def publish_file(path: Path) -> None:
    with Root(str(path)) as root:
        write_durably(root.fd, root.path, "target", NEW.encode())


def publish_tree(path: Path, aside: str | None = None) -> None:
    with Root(str(path)) as root, tree_draft(root, "target") as one:
        os.mkdir("lib", dir_fd=one.fd)
        for leaf in LEAVES:
            fd = os.open(leaf, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=one.fd)
            os.write(fd, NEW.encode())
            os.close(fd)
        one.commit(aside)


def put_tree_aside(path: Path) -> None:
    # With so few for each, syncfs is tried as well.
    durable_tree._FEW = 1
    publish_tree(path, ASIDE)


def swap_tree(path: Path) -> None:
    durable_tree._exchange = lambda *_arguments: False
    publish_tree(path, ASIDE)


def write_in_place(path: Path) -> None:
    """What a careless writer does, to see that it is caught."""
    with open(path / "target", "w") as file:
        file.write(NEW)


def replace_in_place(path: Path) -> None:
    shutil.rmtree(path / "target")
    publish_tree(path)


Work = Callable[[Path], None]


def prepare(path: Path, tree: bool) -> Path:
    path.mkdir()
    if tree:
        (path / "target" / "lib").mkdir(parents=True)
    for name in [f"target/{leaf}" for leaf in LEAVES] if tree else ["target"]:
        (path / name).write_text(OLD)
    return path


def version(path: Path) -> str:
    """Which one is there: old or new, or what is wrong with it."""
    try:
        texts = {(path / leaf).read_text() for leaf in LEAVES} if path.is_dir() else {path.read_text()}
    except FileNotFoundError:
        return "missing" if not path.exists() else "torn"
    return {OLD: "old", NEW: "new"}.get(texts.pop() if len(texts) == 1 else "", "torn")


@dataclass(frozen=True)
class Outcome:
    """What was there after the writer was killed, what after the next start, and what beside it."""

    call: Call
    found: str
    then: str
    beside: tuple[str, ...]
    removed: int


def outcome(path: Path, call: Call) -> Outcome:
    """The next start, while other writers are at work on the same names."""
    found = version(path / "target")
    with (
        Root(str(path)) as root,
        draft(root.fd, root.path, "data") as file,
        tree_draft(root, "target") as tree,
    ):
        report = remove_orphans(root, Run(lock_timeout=0))
        assert not report.failures.total
        assert not report.anomalies.total
        assert {file.name, tree.name} <= set(os.listdir(path))
    beside = tuple(sorted({*os.listdir(path)} - {"target"}))
    assert {version(path / name) for name in beside} <= {"old"}
    return Outcome(call, found, version(path / "target"), beside, report.removed.entries)


def kill_everywhere(tmp_path: Path, work: Work, tree: bool, since: str = "") -> list[Outcome]:
    """One run for each call (since the first of that name) that changes something, killed just before it."""
    counted, log = prepare(tmp_path / "counted", tree), tmp_path / "log"
    with Root(str(counted)):
        pass  # what is loaded only once is loaded by now, and the calls are the same every time
    calls = calls_of(lambda: work(counted), log)
    assert version(counted / "target") == "new"
    first = next(number for number, (name, _nth) in enumerate(calls) if since in name)
    outcomes = []
    for number, (name, nth) in enumerate(calls[first:]):
        area = prepare(tmp_path / str(number), tree)
        with Child(lambda area=area: work(area)) as child:
            child.trace(log, f"{name}:signal=KILL:when={nth}")
            child.go()
            assert child.wait() == -signal.SIGKILL, f"it was not killed at {name} {nth}"
        assert calls_in(log)[-1] == (name, nth)
        outcomes.append(outcome(area, (name, nth)))
    return outcomes


@pytest.mark.parametrize(
    ("work", "tree", "since"),
    [
        (publish_file, False, ""),
        (publish_tree, True, ""),
        # Filled as that one is.
        (put_tree_aside, True, "fchmod"),
        (swap_tree, True, "fchmod"),
    ],
)
def test_a_writer_killed_at_any_call_leaves_the_old_or_the_new_one(
    tmp_path: Path, work: Work, tree: bool, since: str
) -> None:
    outcomes = kill_everywhere(tmp_path, work, tree, since)
    # Only where the kernel exchanges nothing, its name is gone for an instant, and comes back.
    allowed = {"old", "new", "missing"} if work is swap_tree else {"old", "new"}
    for one in outcomes:
        assert one.found in allowed, one
        assert one.then in ("old", "new"), one
        # Put aside, or known for an old version by the next start; with none of it lost.
        assert all(name == ASIDE or is_old(name, "target") for name in one.beside), one
        if work in (put_tree_aside, swap_tree):
            assert len(one.beside) == (one.then == "new"), one
    # What it is to be tried at was there.
    assert {one.then for one in outcomes} == {"old", "new"}
    assert sum(one.removed for one in outcomes) >= 3


@pytest.mark.parametrize(("work", "tree"), [(write_in_place, False), (replace_in_place, True)])
def test_a_careless_writer_would_be_caught(tmp_path: Path, work: Work, tree: bool) -> None:
    assert {one.then for one in kill_everywhere(tmp_path, work, tree)} & {"torn", "missing"}


NOT_SYNCED, NOT_PUBLISHED = "target cannot be brought to the disk: ", "target cannot be published: "
RENAMES = "?rename,?renameat,?renameat2"


@pytest.mark.parametrize(
    ("work", "fault", "status", "message"),
    [
        (publish_file, "?write:error=ENOSPC:when=1", 3, "target cannot be written: No space left"),
        (
            publish_file,
            "?fsync:error=EIO:when=1",
            1,
            NOT_SYNCED + "Input/output error",
        ),
        (publish_file, "?fchmod:error=EPERM:when=1", 1, "target cannot be given its owner and mode"),
        (
            publish_file,
            f"{RENAMES}:error=EROFS:when=1",
            1,
            NOT_PUBLISHED + "Read-only file system",
        ),
        (publish_file, f"{RENAMES}:error=EBUSY:when=1", 0, ""),
        (publish_file, f"{RENAMES}:error=ESTALE:when=1", 0, ""),
        (publish_file, f"{RENAMES}:error=ETXTBSY:when=1", 0, ""),
        (publish_tree, "?mkdirat:error=ENOSPC:when=1", 3, "target cannot be written: No space left"),
        (
            publish_tree,
            "?fsync:error=EIO:when=3",
            1,
            NOT_SYNCED + "Input/output error",
        ),
        (put_tree_aside, "?syncfs:error=EIO:when=1", 1, NOT_SYNCED),
        (publish_tree, "?renameat2:error=EIO:when=1", 1, NOT_PUBLISHED + "Input/output error"),
        (publish_tree, "?renameat2:error=EBUSY:when=1", 0, ""),
        (publish_tree, "?renameat2:error=EINVAL:when=1", 0, ""),
    ],
)
def test_an_error_leaves_the_old_one_and_no_temp_or_is_overcome(
    tmp_path: Path, work: Work, fault: str, status: int, message: str
) -> None:
    area = prepare(tmp_path / "area", tree=work is not publish_file)
    with Child(lambda: work(area)) as child:
        child.trace(tmp_path / "log", fault)
        child.go()
        assert child.wait() == status
        said = child.said()
    assert "INJECTED" in (tmp_path / "log").read_text()
    assert message in said
    assert bool(message) == bool(said)
    assert version(area / "target") == ("old" if status else "new")
    assert os.listdir(area) == ["target"]
