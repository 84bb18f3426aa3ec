# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Work under the writer lock of a store, which ends between two entries when the lock is lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Callable

from .errors import LockLost, UsageError
from .locks import Flock, Lock, Wait, take_local
from .root import Root
from .run import Run
from .shutdown import Shutdown
from .units import printable

STOPPED = "work stopped between two entries, and another run goes on from there"


class Guard(Shutdown):
    """The shutdown of a run, with one more reason to stop: lost() says why the lock is not held any more."""

    # Of its own; all else is the state of the shutdown that it stands for.
    __slots__ = ("_lost", "_path")

    def __init__(self, shutdown: Shutdown, path: str, lost: Callable[[], str]) -> None:
        self.__dict__ = shutdown.__dict__
        self._path, self._lost = path, lost

    @property
    def lost(self) -> str:
        return self._lost()

    @property
    def signum(self) -> int:
        """The signal that came; that of a request to stop once the lock is lost."""
        return self.__dict__["signum"] or (signal.SIGTERM if self._lost() else 0)

    @signum.setter
    def signum(self, signum: int) -> None:
        self.__dict__["signum"] = signum

    def check(self, doing: str = "") -> None:
        if not self.__dict__["signum"] and self.lost:
            raise LockLost(f"{self._path} {self.lost}; {STOPPED}.")
        super().check(doing)


def _take(root: Root, shared: Callable[[str], Lock] | None, wait: Wait) -> list[Lock]:
    """The local lock and the shared one, if there is one, of the directory that the path names now."""
    while True:
        with ExitStack() as stack:
            locks = [take_local(root, wait)]
            stack.callback(locks[0].release)
            if shared is not None:
                locks.append(shared(root.real))
                stack.callback(locks[1].release)
                wait.take(locks[1])
            # take_local has looked before the wait for the other.
            if shared is None or root.is_current():
                stack.pop_all()
                return locks
        root.reopen()


@contextmanager
def guarded(root: Root, run: Run, backend: str = "flock") -> Iterator[tuple[Run, float]]:
    """Hold the writer lock of the store open as root: the run to go on with, and the seconds waited.

    backend `redis`: run.shared_lock is held beside the local one. What looks at the shutdown of the run
    that is yielded stops also when a lock is lost. No child that runs another program holds it on. Raises
    LockHeld after run.lock_timeout, naming path, holder and option, Interrupted on a signal, BesomError
    where no lock can be had, UsageError where no shared lock is at hand.
    """
    shown = printable(root.path)
    if backend != "flock" and run.shared_lock is None:
        raise UsageError(f"{shown} has lock_backend: {backend}, which needs redis_url; set it.")
    wait = Wait(root.path, run.lock_timeout, run.shutdown, run.lock_option, run.waiting, run.progress)
    with ExitStack() as stack:
        locks = _take(root, run.shared_lock if backend != "flock" else None, wait)
        for lock in locks:
            stack.callback(lock.release)
        if wait.waited_s:
            run.waited(root.path, wait.waited_s)
        run.admit()

        if isinstance(locks[-1], Flock):
            # The kernel takes it from nobody who lives.
            yield run, wait.waited_s
            return

        def lost() -> str:
            return next((f"lost its lock ({why})" for lock in locks if (why := lock.lost())), "")

        yield replace(run, shutdown=Guard(run.shutdown, shown, lost)), wait.waited_s
