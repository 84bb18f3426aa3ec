# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The coordinator of a shutdown: a flag, the work in flight, and clean-ups that run whatever happens."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable

from .errors import BesomError, Interrupted


@dataclass
class Cleanup:
    """What is to be done at the end, however that comes; action is told how many seconds it may take."""

    name: str
    action: Callable[[float], None]
    timeout: float


class Shutdown:
    """Set by SIGINT, SIGTERM or SIGHUP once listen() was called; never interrupts a removal.

    hurry: a second signal came, and what waits for something should not. drained and abandoned count
    the operations that came to their end, or not, after the shutdown had begun.
    """

    def __init__(self) -> None:
        self.signum = 0
        self.hurry = False
        self.drained = self.abandoned = 0
        self.cleanups_run = 0
        self.cleanups_failed: list[str] = []
        self._cleanups: list[Cleanup] = []
        self._operations: list[str] = []

    @property
    def requested(self) -> bool:
        return self.signum != 0

    @property
    def lost(self) -> str:
        """Which lock was lost, where that is why work is to stop; empty for all other reasons."""
        return ""

    def request(self, signum: int = signal.SIGTERM, _frame: Any = None) -> None:
        self.hurry = self.signum != 0
        self.signum = self.signum or signum

    def listen(self) -> Shutdown:
        """Take SIGINT, SIGTERM and SIGHUP (a lost connection) as requests to stop. Main thread only."""
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        for signum in signals:
            # What the parent ignores on purpose (nohup) stays ignored.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self.request)
        # Blocked by a parent they are by accident; that is inherited, and they would never come.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        return self

    def check(self, doing: str = "") -> None:
        """Raise Interrupted if a shutdown was requested."""
        if self.signum:
            name = signal.Signals(self.signum).name
            where = f" while {doing}" if doing else ""
            raise Interrupted(
                f"Interrupted. {name} came{where}; nothing was left half done, "
                "and another run goes on from there.",
                self.signum,
            )

    @property
    def in_flight(self) -> list[str]:
        """What is at work, the outermost first."""
        return self._operations[:]

    @contextmanager
    def operation(self, name: str) -> Iterator[None]:
        """Count what is done inside as in flight. Raises Interrupted when a shutdown has begun already."""
        self.check(f"about to begin with {name}")
        self._operations.append(name)
        try:
            yield
        except Interrupted:
            self.abandoned += 1
            raise
        else:
            self.drained += 1 if self.requested else 0
        finally:
            self._operations.remove(name)

    def push(self, name: str, action: Callable[[float], None], timeout: float) -> Cleanup:
        """Have action(timeout), in seconds, run by clean_up() unless it is popped before that."""
        cleanup = Cleanup(name, action, timeout)
        self._cleanups.append(cleanup)
        return cleanup

    def pop(self, cleanup: Cleanup) -> None:
        """Take a clean-up back, which is not run then."""
        self._cleanups.remove(cleanup)

    @contextmanager
    def cleanup(self, name: str, action: Callable[[float], None], timeout: float) -> Iterator[None]:
        """Have action(timeout) run when the block is left, whatever becomes of it."""
        cleanup = self.push(name, action, timeout)
        try:
            yield
        finally:
            self.pop(cleanup)
            self._run(cleanup)

    def clean_up(self) -> None:
        """Run what was pushed, last in first out; what fails in one keeps no other from its turn."""
        while self._cleanups:
            self._run(self._cleanups.pop())

    def _run(self, cleanup: Cleanup) -> None:
        began = time.monotonic()
        self.cleanups_run += 1
        try:
            cleanup.action(cleanup.timeout)
        except (BesomError, OSError) as error:
            self.cleanups_failed.append(f"{cleanup.name}: {error}")
            return
        took = time.monotonic() - began
        if took > cleanup.timeout:
            self.cleanups_failed.append(f"{cleanup.name}: it took {took:.1f}s of {cleanup.timeout:.1f}s.")
