"""One run of an operation for each of its calls that changes a file system, with a fault at that call."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from .child import Call, Child, calls_of
from .operations import Operation, age, names

Plant = Callable[[], Any]


def planted(operation: Operation, plant: Plant) -> Operation:
    """The operation with a fault in besom itself: plant() is entered around its work."""

    def work(path: Path) -> None:
        with plant():
            operation.work(path)

    return replace(operation, work=work)


def area_of(operation: Operation, tmp_path: Path, name: str) -> Path:
    area = tmp_path / name
    area.mkdir()
    operation.make(area)
    return area


def calls_in_all(operation: Operation, tmp_path: Path) -> list[Call]:
    """The calls that the operation makes when nothing is amiss."""
    # What is loaded and compiled only once is so by now.
    operation.work(area_of(operation, tmp_path, "warm"))
    area = area_of(operation, tmp_path, "counted")
    with living(operation, area):
        calls = calls_of(lambda: operation.work(area), tmp_path / "log")
    assert operation.done(area), names(area)
    return calls


def one_of_each_kind(calls: list[Call]) -> list[Call]:
    """The last call of each name."""
    return list({call[0]: call for call in calls}.values())


@contextmanager
def living(operation: Operation, area: Path) -> Iterator[Callable[[], str]]:
    """Temps of writers that are at work meanwhile; gives what asks whether one of them is missed."""
    with ExitStack() as stack:
        held = []
        for name in operation.living:
            path = area / name
            if name.endswith("/"):
                path.mkdir()
                (path / "half").write_text("half")
                age(path, 3)
            else:
                path.write_text("half")
            fd = os.open(path, os.O_RDONLY)
            stack.callback(os.close, fd)
            fcntl.flock(fd, fcntl.LOCK_EX)
            held.append(path)
        yield lambda: next(
            (f"{path.name} of a living writer is gone" for path in held if not path.exists()), ""
        )
        for path in held:
            if path.is_dir():
                (path / "half").unlink(missing_ok=True)
                path.rmdir()
            else:
                path.unlink(missing_ok=True)


def run(work: Callable[[], None], log: Path | None = None, inject: str = "") -> tuple[int, str]:
    """Do it in a process of its own; its exit status, and what it had to say."""
    with Child(work) as child:
        if log:
            child.trace(log, inject)
        child.go()
        status = child.wait()
        return status, child.said() if status > 0 else ""


def converges(operation: Operation, area: Path, missed: Callable[[], str]) -> str:
    """What is amiss after the next run."""
    status, said = run(lambda: operation.work(area))
    return missed() or (f"the next run ended with {status}: {said}" if status else "")


def left(operation: Operation, area: Path) -> str:
    return "" if operation.done(area) else f"the next run left {names(area)}"


def locked(area: Path) -> Iterable[str]:
    """What somebody holds of an area, itself included."""
    for path in (area, *area.rglob("*")):
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            continue
        fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield path.name
        finally:
            os.close(fd)
