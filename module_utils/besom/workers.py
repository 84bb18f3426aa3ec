# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""As many threads as pay: one more step while the work gets on faster for it, and back where it does not.

What waits for a disk waits side by side; what only computes gains nothing, and is left to few.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Callable, Generic, TypeVar

Job = TypeVar("Job")

_FIRST = 4
# Long enough to tell a gain from chance, short enough to be there within the first half second.
_WINDOW_S = 0.1
_LEAST = 50
_GAIN = 1.1
_REST, _LONGEST_REST = 5, 80
_TELL_S = 0.05
# So many jobs wait for a thread at most: who adds more waits as well.
_AHEAD = 32


class Pace:
    """How many threads there should be, from what they get done in a second."""

    def __init__(self, most: int) -> None:
        self.size = self._least = min(_FIRST, most)
        self._most = most
        # What so many did before the last step up; nothing is known to be compared with at first.
        self._before = 0.0
        self._rest, self._resting = _REST, 0
        # One window may be bad by chance.
        self._doubted = False

    def observe(self, rate: float) -> int:
        """Take note of a rate that was reached by size threads; returns how many there should be now."""
        if self._resting:
            self._resting -= 1
        elif rate < self._before * _GAIN and not self._doubted:
            self._doubted = True
        elif rate < self._before * _GAIN:
            # The last step gained nothing: take it back, and try it again later, and later still.
            self.size = max(self._least, self.size // 2)
            self._before, self._resting, self._doubted = 0.0, self._rest, False
            self._rest = min(2 * self._rest, _LONGEST_REST)
        else:
            self._doubted = False
            if self.size < self._most:
                self.size, self._before = min(2 * self.size, self._most), rate
        return self.size


class Workers(Generic[Job]):
    """Does each job that is added by as many threads as pay, and at most most; a context manager.

    hire: each thread works inside the context manager that it returns, and does a job by calling what that
    yields. done tells how much is done so far, by which the number of threads is judged; tell is called now
    and then by the thread that adds. That one works itself with most = 1, where no thread can be started,
    and on a job that stays the only one. What a job raises ends all: add() or finish() raises it again.
    """

    def __init__(
        self,
        hire: Callable[[], AbstractContextManager[Callable[[Job], None]]],
        done: Callable[[], int],
        tell: Callable[[], None],
        most: int,
    ) -> None:
        self._hire, self._done, self._tell, self._most = hire, done, tell, most
        self._pace = Pace(most)
        self._jobs: deque[Job] = deque()
        lock = threading.Lock()
        self._news, self._room = threading.Condition(lock), threading.Condition(lock)
        # Threads that have not ended, and those of them that take another job.
        self._alive = self._staying = 0
        self._closed = False
        self._error: BaseException | None = None
        self._here = ExitStack()
        self._work_here: Callable[[Job], None] | None = None
        self._since, self._before = 0.0, 0

    def add(self, job: Job) -> None:
        """Have job done; waits while many others are to be done before it."""
        with self._news:
            self._jobs.append(job)
            self._news.notify()
        if self._most == 1 or len(self._jobs) + self._alive > 1:
            self._see_to_it()

    def finish(self) -> None:
        """Return once every job is done and every thread has ended."""
        if not self._alive:
            self._do_it_here()
        with self._news:
            self._closed = True
            self._news.notify_all()
        self._see_to_it()
        self._here.close()

    def _see_to_it(self) -> None:
        """Have threads at work, and wait until there is room for more jobs, or for the end once closed."""
        if self._most == 1 or not (self._alive or self._closed or self._start()):
            self._do_it_here()
        while True:
            with self._room:
                if self._error is not None:
                    raise self._error
                if not self._alive if self._closed else len(self._jobs) <= _AHEAD:
                    break
                self._room.wait(_TELL_S)
            self._observe()
        self._observe()

    def _do_it_here(self) -> None:
        while self._jobs:
            if self._work_here is None:
                self._work_here = self._here.enter_context(self._hire())
            self._work_here(self._jobs.popleft())
            self._tell()

    def _observe(self) -> None:
        self._tell()
        now, done = time.monotonic(), self._done()
        if now - self._since < _WINDOW_S or (self._jobs and done - self._before < _LEAST):
            return
        # Threads that wait for jobs are slow by no fault of theirs.
        if self._jobs:
            self._pace.observe((done - self._before) / (now - self._since))
            self._start()
        self._since, self._before = now, done

    def _start(self) -> bool:
        """Start threads until there are as many as there should be; False where there can be none."""
        if not self._alive:
            self._since, self._before = time.monotonic(), self._done()
        while self._staying < self._pace.size and self._error is None:
            with self._room:
                self._alive += 1
                self._staying += 1
            try:
                threading.Thread(target=self._run, name="besom-worker", daemon=True).start()
            except RuntimeError:  # no memory for one more, or this user may have no more
                with self._room:
                    self._alive -= 1
                    self._staying -= 1
                break
        return self._alive > 0

    def _run(self) -> None:
        try:
            with self._hire() as work:
                while (job := self._next()) is not None:
                    work(job)
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that adds)
            self._error = self._error or error
        with self._room:
            self._alive -= 1
            self._room.notify()

    def _next(self) -> Job | None:
        """The next job; None when this thread is to end."""
        with self._news:
            while True:
                if self._error is not None:
                    return None
                if self._staying > self._pace.size:
                    self._staying -= 1
                    return None
                if self._jobs:
                    self._room.notify()
                    return self._jobs.popleft()
                if self._closed:
                    return None
                self._news.wait()

    def __enter__(self) -> Workers[Job]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._news:
            self._closed = True
            self._jobs.clear()
            self._news.notify_all()
            while self._alive:
                self._room.wait()
        self._here.close()
