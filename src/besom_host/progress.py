"""A progress bar for a person at a terminal, and nothing for anybody else."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any

# Runs that are over sooner need no bar, and need not wait for rich to be imported.
PATIENCE_S = 1.0
_FRAME_S = 0.1


class Bar:
    """The engine's progress as a bar on stderr, once a run takes longer than a second; a context manager."""

    def __init__(self, color: bool = True) -> None:
        self._color = color
        self._started = time.monotonic()
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._drawn = 0.0
        self._process = os.getpid()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if os.getpid() != self._process:
            return  # the engine's workers have no terminal
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
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            # Drawn when there is news: a thread of its own would be there when the engine forks.
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
