# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Publication by several threads: whoever gets the writer lock publishes what all of them have ready."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass, replace
from typing import Callable

from .claim import directory_in
from .durable import sync_directory
from .errors import BesomError, LockHeld
from .guard import guarded
from .root import Root
from .run import Run
from .shutdown import Shutdown
from .units import printable

# How soon after one batch the next is begun.
_BATCH_S = 0.02


@dataclass
class _Publication:
    directory: str
    fd: int
    commit: Callable[[float], None]
    published: bool = False
    done: bool = False
    error: BaseException | None = None

    def attempt(self, root: Root, there: dict[str, os.stat_result], deadline: float) -> None:
        """there: the directories that the store has now, of those that were looked at under this lock."""
        try:
            if self.directory not in there:
                with directory_in(root, self.directory) as fd:
                    there[self.directory] = os.fstat(fd)
            if not os.path.samestat(there[self.directory], os.fstat(self.fd)):
                shown = printable(os.path.join(root.path, self.directory))
                raise BesomError(f"{shown} was replaced meanwhile; run this again.")
            self.commit(deadline)
            self.published = True
        except (BesomError, OSError) as error:
            self.error = error


class Publisher:
    """Publishes under the writer lock what several threads have ready: one takes it for all of them."""

    def __init__(self, path: str, run: Run, backend: str = "flock") -> None:
        self.shutdown = Shutdown()
        self.lock_wait_s = 0.0
        # Why the store could not be had: it is waited for once, and what comes after that fails at once.
        self.held: LockHeld | None = None
        # Threads were left behind that may be at work with it still.
        self.left = False
        # A wait for the lock ends when transfers are cut, not with the first signal.
        self._run = replace(run, shutdown=self.shutdown)
        self._path, self._backend = path, backend
        self._root: Root | None = None
        self._ready: list[_Publication] = []
        self._next = 0.0
        self._one, self._guard = threading.Lock(), threading.Lock()

    def publish(self, directory: str, fd: int, commit: Callable[[float], None]) -> None:
        """Have commit(deadline) run under the lock, durably, in a directory that is open as fd.

        directory is relative to the store, deadline in seconds of time.monotonic. Raises LockHeld,
        LockLost, Interrupted, BesomError, OSError.
        """
        mine = _Publication(directory, fd, commit)
        with self._guard:
            self._ready.append(mine)
        with self._one:
            if not mine.done:
                # More of them come meanwhile, and a batch costs little more than one.
                time.sleep(max(0.0, self._next - time.monotonic()))
                with self._guard:
                    batch, self._ready = self._ready, []
                self._publish(batch)
                self._next = time.monotonic() + _BATCH_S
        if mine.error:
            raise mine.error

    def _publish(self, batch: list[_Publication]) -> None:
        try:
            if self.held:
                raise self.held
            # Opened once, and of its own: who waits for the lock may have to open it anew, and may fail.
            if not self._root or self._root.fd < 0:
                self._root = Root(self._path)
            with guarded(self._root, self._run, self._backend) as (run, waited):
                self.lock_wait_s += waited
                deadline = time.monotonic() + max(self._run.lock_timeout - waited, 1.0)
                there: dict[str, os.stat_result] = {}
                try:
                    for one in batch:
                        run.shutdown.check("publishing")
                        one.attempt(self._root, there, deadline)
                finally:
                    # Whatever ends it: what has its name by now is to stay.
                    published = [one for one in batch if one.published]
                    for directory in {one.directory for one in published}:
                        self._sync(directory, [one for one in published if one.directory == directory])
        except BaseException as error:  # noqa: BLE001 (each of those who wait raises it)
            if isinstance(error, LockHeld):
                self.held = error
            for one in batch:
                if not one.published:
                    one.error = one.error or error
        for one in batch:
            one.done = True

    def close(self) -> None:
        if self._root and not self.left:
            self._root.close()

    def _sync(self, directory: str, published: list[_Publication]) -> None:
        try:
            sync_directory(published[0].fd, os.path.join(self._path, directory))
        except BesomError as error:
            for one in published:
                one.error = one.error or error
