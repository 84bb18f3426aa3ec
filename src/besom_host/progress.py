"""A progress bar for a person at a terminal, and nothing for anybody else."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from besom.units import format_size, printable

# Runs that are over sooner need no bar, and need not wait for rich to be imported.
PATIENCE_S = 1.0
_FRAME_S = 0.1
_ALL = "In all"


class Bar:
    """The engine's progress as a bar on stderr, once a run takes longer than a second; a context manager."""

    def __init__(self, color: bool = True) -> None:
        self._color = color
        self._started = time.monotonic()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._drawn = 0.0

    def __call__(self, phase: str, done: int, total: int) -> None:
        if self._bar is None:
            if time.monotonic() - self._started < PATIENCE_S:
                return
            self._open()
        if phase not in self._tasks:
            self._tasks[phase] = self._bar.add_task(phase, total=None)
        self._bar.update(self._tasks[phase], completed=done, total=total or None)
        if time.monotonic() - self._drawn >= _FRAME_S:
            self._drawn = time.monotonic()
            self._bar.refresh()

    def _open(self) -> None:
        # 60 ms that only this needs.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
        )

        console = Console(file=sys.stderr, no_color=not self._color)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            # Drawn when there is news, and only then.
            auto_refresh=False,
        )
        self._bar.start()

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class Transfers:
    """A bar for each transfer and one for all on a terminal; otherwise a line for each that is through.

    To be called as besom.sync's watch, by any thread; a context manager. of_all is the run's progress.
    """

    def __init__(self, terminal: bool, lines: bool, color: bool = True) -> None:
        self._terminal, self._lines, self._color = terminal, lines, color
        self._guard = threading.Lock()
        # A mirror that stalls moves nothing, and then the bars are wanted most.
        self._timer = threading.Timer(PATIENCE_S, self._begin)
        self._timer.daemon = True
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        # Bytes that are there and bytes in all, by dest: of those under way, and of all that ever were.
        self._moving: set[str] = set()
        self._bytes: dict[str, tuple[int, int]] = {}

    def __call__(self, dest: str, what: str, done: int, total: int) -> None:
        if not (self._terminal or self._lines):
            return
        with self._guard, self._going_quiet():
            if what == "fetched" and self._lines:
                print(f"Fetched {printable(dest)} ({format_size(done)}).", flush=True)
            if not self._terminal:
                return
            if what == "fetching":
                self._moving.add(dest)
                self._bytes[dest] = (done, total)
            else:
                self._moving.discard(dest)
            if self._bar is not None:
                self._draw(dest)

    def of_all(self, phase: str, done: int, total: int) -> None:
        """Show in the line for all what keeps them (say, the seconds of a wait), until one moves again."""
        with self._guard, self._going_quiet():
            if self._terminal and self._bar is not None:
                counted = f"{done}/{total}" if total else str(done)
                self._bar.update(self._all, description=f"{_ALL}, {phase} {counted}")

    @contextmanager
    def _going_quiet(self) -> Iterator[None]:
        """Say nothing more where nobody reads it: the work is not to end for that."""
        try:
            yield
        except (OSError, ValueError):
            self._terminal = self._lines = False

    def _begin(self) -> None:
        with self._guard, self._going_quiet():
            if not self._terminal:
                return
            self._open()
            for dest in self._moving:
                self._draw(dest)

    def _draw(self, dest: str) -> None:
        if dest in self._moving:
            done, total = self._bytes[dest]
            if dest not in self._tasks:
                self._tasks[dest] = self._bar.add_task(printable(dest), total=None)
            self._bar.update(self._tasks[dest], completed=done, total=None if total < 0 else total)
        elif dest in self._tasks:
            self._bar.remove_task(self._tasks.pop(dest))
        there = sum(done for done, _ in self._bytes.values())
        whole = sum(max(one) for one in self._bytes.values())
        self._bar.update(self._all, description=_ALL, completed=there, total=whole)

    def _open(self) -> None:
        # 60 ms that only this needs.
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            console=Console(file=sys.stderr, no_color=not self._color),
            transient=True,
            redirect_stdout=False,
        )
        self._all = self._bar.add_task(_ALL, total=None)
        self._bar.start()

    def __enter__(self) -> Transfers:
        if self._terminal:
            self._timer.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._timer.cancel()
        with self._guard, self._going_quiet():
            self._terminal = False
            if self._bar is not None:
                self._bar.stop()
