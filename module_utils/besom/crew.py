# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Threads that work off a list of jobs, and can be left behind where they hang."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterable
from typing import Callable, Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Crew(Generic[Job, Result]):
    """work(job) for each job, by so many threads; what it comes to is told by wait(), in the order of ends.

    The threads are daemons: what hangs in a system call keeps no process from its end.
    """

    def __init__(self, jobs: Iterable[Job], work: Callable[[Job], Result], size: int) -> None:
        self._todo = deque(jobs)
        self._work = work
        self._ended: queue.SimpleQueue[tuple[Job, Result | BaseException]] = queue.SimpleQueue()
        self.outstanding = len(self._todo)
        for number in range(min(size, self.outstanding)):
            threading.Thread(target=self._run, name=f"besom-{number}", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                job = self._todo.popleft()
            except IndexError:
                return
            try:
                result: Result | BaseException = self._work(job)
            except BaseException as error:  # noqa: BLE001 (told, or raised again, by who waits)
                result = error
            self._ended.put((job, result))
            # Nothing of it is kept while the next is waited for.
            del job, result

    def wait(self, seconds: float) -> tuple[Job, Result | BaseException] | None:
        """A job that has ended, with its result or what it raised; None when none has by then."""
        try:
            ended = self._ended.get(timeout=seconds)
        except queue.Empty:
            return None
        self.outstanding -= 1
        return ended

    def stop(self) -> list[Job]:
        """Begin no other job; returns those that are not begun."""
        left = []
        try:
            while True:
                left.append(self._todo.popleft())
        except IndexError:
            self.outstanding -= len(left)
            return left
