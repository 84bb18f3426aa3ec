"""kill -9 before each call that changes a file system: old or new, whole; the next run does the rest.

One call of each kind in every run; scripts/test --faults kills at each, and then the run that clears up too.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from besom import durable, durable_tree, sweep, tree
from besom.locks import LockTable

from .child import Call
from .conftest import ALL, Tried
from .matrix import (
    Plant,
    area_of,
    calls_in_all,
    converges,
    left,
    living,
    locked,
    one_of_each_kind,
    planted,
    run,
)
from .operations import CONFIGURATION, OPERATIONS, Operation


def amiss(operation: Operation, area: Path, call: Call, log: Path, again: Call | None) -> str:
    """What is amiss after a run that is killed at this call; again: where the next one is killed."""
    with living(operation, area) as missed:
        status, said = run(lambda: operation.work(area), log, f"{call[0]}:signal=KILL:when={call[1]}")
        if status != -signal.SIGKILL:
            return f"it was not killed, and ended with {status}: {said}"
        wrong = seen(operation, area) or missed()
        if not wrong and again:
            run(lambda: operation.work(area), log, f"{again[0]}:signal=KILL:when={again[1]}")
            wrong = seen(operation, area) or missed()
            wrong = wrong and f"{wrong} (the next was killed at {again[0]} {again[1]})"
        wrong = wrong or converges(operation, area, missed)
    return wrong or left(operation, area)


def seen(operation: Operation, area: Path) -> str:
    """What a reader sees that it should not, and who holds what."""
    held = set(locked(area)) - {name.rstrip("/") for name in operation.living}
    return operation.wrong(area) or (f"{sorted(held)} is locked" if held else "")


def kill_everywhere(
    operation: Operation, tmp_path: Path, every: bool, enough: str = "", at: str = ""
) -> tuple[int, list[str]]:
    """How many were killed, and what was found; enough: to find this once; at: only at calls of this name."""
    calls = [call for call in calls_in_all(operation, tmp_path) if not at or call[0] == at]
    dice = random.Random(7)  # noqa: S311
    found: list[str] = []
    killed = 0
    for number, call in enumerate(calls if every else one_of_each_kind(calls)):
        for again in (None, dice.choice(calls)) if every and not enough else (None,):
            area = area_of(operation, tmp_path, f"{number}{'-again' if again else ''}")
            wrong = amiss(operation, area, call, tmp_path / "log", again)
            if wrong:
                found.append(f"{call[0]} {call[1]}: {wrong}")
            killed += 2 if again else 1
            shutil.rmtree(area)
        if enough and any(enough in one for one in found):
            break
    return killed, found


KILLED = {**OPERATIONS, "replace the configuration": CONFIGURATION}


@pytest.mark.parametrize("name", KILLED)
def test_killed_at_any_call(ground: Path, name: str, tried: Tried) -> None:
    killed, found = kill_everywhere(KILLED[name], ground, ALL)
    assert found == []
    assert killed >= 2
    tried("processes killed at a call", killed)


# The tests of the test: each of these faults, planted in besom, has to be found.


@contextmanager
def renaming_in_place() -> Iterator[None]:
    """A rename that writes over what is there instead."""

    def rename(
        source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        fd = os.open(source, os.O_RDONLY, dir_fd=src_dir_fd)
        content = os.read(fd, 1 << 20)
        os.close(fd)
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=dst_dir_fd)
        os.write(fd, content)
        os.close(fd)
        os.unlink(source, dir_fd=src_dir_fd)

    with patch.object(os, "rename", rename):
        yield


def removing_before_replacing() -> AbstractContextManager[Any]:
    def exchange(directory_fd: int, one: str, other: str) -> bool:
        shutil.rmtree(other, dir_fd=directory_fd)
        os.rename(one, other, src_dir_fd=directory_fd, dst_dir_fd=directory_fd)
        os.mkdir(one, dir_fd=directory_fd)
        return True

    return patch.object(durable_tree, "_exchange", exchange)


def leaving_orphans() -> AbstractContextManager[Any]:
    return patch.object(durable_tree, "_tidy", lambda *_arguments: None)


@contextmanager
def ignoring_locks() -> Iterator[None]:
    """Who is asked for a lock says yes, and nobody is seen to hold one."""
    with ExitStack() as stack:
        for where, name, what in (
            (durable, "_hold", lambda *_arguments: True),
            (durable_tree, "try_flock", lambda _fd: True),
            (durable_tree, "prove_flock", lambda _fd: None),
            (sweep, "try_flock", lambda _fd: True),
            (tree, "try_flock", lambda _fd: True),
            (LockTable, "holder", lambda *_arguments: None),
        ):
            stack.enter_context(patch.object(where, name, what))
        yield


def removing_where_it_stands() -> AbstractContextManager[Any]:
    """No trash: as on a full disk, where that is documented."""
    real = os.rename

    def rename(source: str, target: str, **keywords: Any) -> None:
        # A session keeps its names in the trash.
        if target == source or target.startswith(".besom-trash-"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(source, target, **keywords)

    return patch.object(os, "rename", rename)


@contextmanager
def leaving_a_child_behind() -> Iterator[None]:
    """A child that has the locks of its parent, and outlives it."""
    real, done = os.unlink, []

    def unlink(*arguments: Any, **keywords: Any) -> None:
        if not done and not os.fork():
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(2)
            signal.pause()
        done.append(1)
        real(*arguments, **keywords)

    with patch.object(os, "unlink", unlink):
        yield


# The operation, the fault, a call at which a kill shows it, and what is said then.
PLANTED: list[tuple[str, Plant, str, str]] = [
    ("publish a file", renaming_in_place, "write", "torn"),
    ("sync", renaming_in_place, "write", "torn"),
    ("tell the status", renaming_in_place, "write", "torn"),
    ("write metrics", renaming_in_place, "write", "torn"),
    ("publish a tree", removing_before_replacing, "unlinkat", "torn"),
    ("upgrade", removing_before_replacing, "unlinkat", "torn"),
    ("publish a file", leaving_orphans, "fsync", "left"),
    ("publish a tree", leaving_orphans, "fsync", "left"),
    ("upgrade", leaving_orphans, "fsync", "left"),
    ("publish a file", ignoring_locks, "", "of a living writer is gone"),
    ("publish a tree", ignoring_locks, "", "of a living writer is gone"),
    ("sweep", ignoring_locks, "", "of a living writer is gone"),
    ("sync", ignoring_locks, "", "of a living writer is gone"),
    ("write metrics", ignoring_locks, "", "of a living writer is gone"),
    ("prune trees", removing_where_it_stands, "", "torn"),
    ("prune sessions", removing_where_it_stands, "", "torn"),
    ("prune files", leaving_a_child_behind, "", "locked"),
]


@pytest.mark.parametrize(
    ("name", "plant", "at", "said"), PLANTED, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_planted_fault_is_found(ground: Path, name: str, plant: Plant, at: str, said: str) -> None:
    _killed, found = kill_everywhere(planted(OPERATIONS[name], plant), ground, True, said, at)
    assert any(said in one for one in found), found
