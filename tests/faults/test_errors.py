"""Each call that changes a file system fails in each way: said, nothing lost, mended by the next run.

One error for one call of each kind in every run; scripts/test --faults tries each call with each error.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from besom import durable, durable_tree
from besom.durable_tree import remove_orphans
from besom.root import Root
from besom.run import Run

from .child import Call
from .conftest import ALL, Tried
from .matrix import Plant, area_of, calls_in_all, converges, left, living, one_of_each_kind, planted, run
from .operations import OPERATIONS, Operation, names

ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EACCES", "EROFS", "EMFILE", "ESTALE", "EINTR")
FULL = ("ENOSPC", "EDQUOT")
SYNCS = ("fsync", "fdatasync", "syncfs")
REMOVALS = ("unlink", "unlinkat", "rmdir")

Case = tuple[Call, str]


def cases_of(calls: list[Call], every: bool) -> list[Case]:
    """Each call with each error; else each kind of call once, with one error after the other."""
    if every:
        return [(call, name) for call in calls for name in ERRORS]
    return [(call, ERRORS[number % len(ERRORS)]) for number, call in enumerate(one_of_each_kind(calls))]


def amiss(operation: Operation, area: Path, case: Case, log: Path) -> str:
    """What is amiss with a run of which this call fails so, and with the run after it."""
    call, name = case
    with living(operation, area) as missed:
        status, said = run(lambda: operation.work(area), log, f"{call[0]}:error={name}:when={call[1]}")
        if "INJECTED" not in log.read_text():
            return "the call was not made"
        told = f"({status}: {said})"
        if status not in ((0, 1, 3) if operation.full and name in FULL else (0, 1)):
            return f"a wrong status {told}"
        if status and os.strerror(getattr(errno, name)) not in said:
            return f"it did not say why {told}"
        # Python tries again what a signal has interrupted, which has lost nothing.
        if call[0] in SYNCS and name != "EINTR" and operation.full and not status:
            return "it hides that something has not reached the disk"
        wrong = operation.wrong(area) or missed()
        if not wrong and status and call[0] not in REMOVALS and not operation.resumes:
            wrong = temps_in(area, operation)
        if wrong:
            return f"{wrong} {told}"
        # What is not essential may fail; but a temp that is left must be known for one. A stale handle is of
        # another file by now: a prune keeps that, and says so.
        hygiene(area)
    if (
        not status
        and not operation.told
        and (operation.full or name != "ESTALE")
        and not operation.done(area)
    ):
        return f"it ended with 0, and left {names(area)}"
    with living(operation, area) as missed:
        wrong = converges(operation, area, missed)
    return wrong or left(operation, area)


def hygiene(area: Path) -> None:
    for trash in area.glob(".besom-trash-*-sessions"):
        # Only a prune of sessions sees to theirs: what it has done, and could not remove, is empty.
        if not list(trash.iterdir()):
            trash.rmdir()
    with Root(str(area)) as root:
        remove_orphans(root, Run())


def temps_in(area: Path, operation: Operation) -> str:
    """The temps of its own that a run has left which has failed."""
    kept = {name.rstrip("/") for name in operation.living}
    temps = [one for one in os.listdir(area) if one.endswith(".part") or one.startswith(".temp-tree")]
    return f"it left {set(temps) - kept}" if set(temps) - kept else ""


def fail_everywhere(
    operation: Operation, ground: Path, every: bool, enough: str = "", at: str = ""
) -> tuple[int, list[str]]:
    """How many calls have failed, and what was found; enough: this, once; at: only calls of this name."""
    found: list[str] = []
    number = 0
    calls = [call for call in calls_in_all(operation, ground) if not at or call[0] == at]
    for case in cases_of(calls, every):
        area = area_of(operation, ground, f"{number}")
        number += 1
        if wrong := amiss(operation, area, case, ground / "log"):
            found.append(f"{case[0][0]} {case[0][1]} {case[1]}: {wrong}")
            if enough and enough in wrong:
                break
        shutil.rmtree(area)
    return number, found


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_error_is_said_and_loses_nothing(ground: Path, name: str, tried: Tried) -> None:
    count, found = fail_everywhere(OPERATIONS[name], ground, ALL)
    assert found == []
    assert count >= 1
    tried("calls that fail", count)


# The tests of the test: each of these faults, planted in besom, has to be found.


def hiding_a_failed_fsync() -> AbstractContextManager[Any]:
    real = os.fsync

    def fsync(fd: int) -> None:
        with suppress(OSError):
            real(fd)

    return patch.object(os, "fsync", fsync)


def trying_fsync_again() -> AbstractContextManager[Any]:
    """The page is marked clean by then, and the second fsync says that all is well."""
    real = os.fsync

    def fsync(fd: int) -> None:
        try:
            real(fd)
        except OSError:
            real(fd)

    return patch.object(os, "fsync", fsync)


@contextmanager
def writing_in_place() -> Iterator[None]:
    """No temp: what is there is cut, and written anew."""

    def write(directory_fd: int, _path: str, name: str, content: bytes, **_keywords: Any) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, dir_fd=directory_fd)
        try:
            os.write(fd, content)
        finally:
            os.close(fd)

    with (
        patch("tests.faults.operations.write_durably", write),
        patch("besom.durable.write_durably", write),
    ):
        yield


def leaving_temps() -> AbstractContextManager[Any]:
    return patch.object(durable.Draft, "discard", lambda _self: None)


def leaving_trees() -> AbstractContextManager[Any]:
    return patch.object(durable_tree.TreeDraft, "_remove_left", lambda _self, _held: None)


def hiding_a_failed_removal() -> AbstractContextManager[Any]:
    real = os.unlink

    def unlink(*arguments: Any, **keywords: Any) -> None:
        with suppress(OSError):
            real(*arguments, **keywords)

    return patch.object(os, "unlink", unlink)


def ending_in_a_traceback() -> AbstractContextManager[Any]:
    """An error that nobody makes a sentence of."""

    def failed(_path: str, _done: str, error: OSError) -> Exception:
        return ValueError(error.errno)

    return patch.object(durable, "failed", failed)


# The operation, the fault, a call whose failing shows it, and what is said then.
PLANTED: list[tuple[str, Plant, str, str]] = [
    ("publish a file", hiding_a_failed_fsync, "fsync", "hides"),
    ("publish a tree", hiding_a_failed_fsync, "fsync", "hides"),
    ("sync", hiding_a_failed_fsync, "fsync", "hides"),
    ("publish a file", trying_fsync_again, "fsync", "hides"),
    ("write metrics", trying_fsync_again, "fsync", "hides"),
    ("publish a file", writing_in_place, "write", "torn"),
    ("write metrics", writing_in_place, "write", "torn"),
    ("publish a file", leaving_temps, "write", "it left"),
    ("publish a tree", leaving_trees, "fsync", "it left"),
    ("prune files", hiding_a_failed_removal, "unlinkat", "ended with 0"),
    ("publish a file", ending_in_a_traceback, "write", "a wrong status"),
]


@pytest.mark.parametrize(
    ("name", "plant", "at", "said"), PLANTED, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_planted_fault_is_found(ground: Path, name: str, plant: Plant, at: str, said: str) -> None:
    _count, found = fail_everywhere(planted(OPERATIONS[name], plant), ground, True, said, at)
    assert any(said in one for one in found), found
