"""Waiting for descriptors, until a deadline or a signal."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from besom.shutdown import Shutdown


class Deadline:
    """So many seconds from now; None: never."""

    def __init__(self, seconds: float | None) -> None:
        self._started = time.monotonic()
        self._end = None if seconds is None else self._started + seconds

    @property
    def left(self) -> float | None:
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left == 0.0

    @property
    def waited(self) -> float:
        return time.monotonic() - self._started


def wait_for(fds: Sequence[int], deadline: Deadline, shutdown: Shutdown, doing: str) -> bool:
    """Wait until one of fds can be read; False when the deadline is over. Raises Interrupted on a signal."""
    with _signals() as woken:
        poll = select.poll()
        for fd in (*fds, woken):
            poll.register(fd, select.POLLIN)
        while True:
            shutdown.check(doing)
            left = deadline.left
            # Rounded up: a deadline is not over before its time.
            ready = poll.poll(None if left is None else min(int(left * 1000) + 1, 2**31 - 1))
            with suppress(BlockingIOError):
                os.read(woken, 4096)
            shutdown.check(doing)
            if any(fd != woken for fd, _ in ready):
                return True
            if deadline.over:
                return False


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that can be read once a signal has come: no signal falls between a look and a wait."""
    source, sink = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before = signal.set_wakeup_fd(sink, warn_on_full_buffer=False)
    try:
        yield source
    finally:
        signal.set_wakeup_fd(before)
        os.close(source)
        os.close(sink)
