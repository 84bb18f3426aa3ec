# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What ends transfers from outside: first those that wait, then those that move."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class Cut(Exception):
    """The transfer was cut."""


class Cutoff:
    """Cuts transfers. After end() none begins, and what waits for a server is woken; after cut() what
    reads is as well, and ends at its next block."""

    def __init__(self) -> None:
        self._ending, self._cut = threading.Event(), threading.Event()
        self._guard = threading.Lock()
        # Descriptors of their own: who asks or reads closes its own whenever it likes.
        self._asking: set[int] = set()
        self._reading: set[int] = set()

    @property
    def is_cut(self) -> bool:
        return self._cut.is_set()

    def end(self) -> None:
        """Begin nothing more: what waits for an answer, or for its time, is cut; what comes may come."""
        with self._guard:
            self._ending.set()
            self._hang_up(self._asking)

    def cut(self) -> None:
        self.end()
        with self._guard:
            self._cut.set()
            self._hang_up(self._reading)

    @staticmethod
    def _hang_up(lines: set[int]) -> None:
        for fd in lines:
            with suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
                connection.shutdown(socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise Cut when what moves is to stop."""
        if self._cut.is_set():
            raise Cut

    def begin(self) -> None:
        """Raise Cut when nothing is to begin."""
        if self._ending.is_set():
            raise Cut

    def pause(self, seconds: float) -> None:
        if self._ending.wait(seconds):
            raise Cut

    @contextmanager
    def asking(self, fd: int) -> Iterator[None]:
        """What is inside waits for the server that the socket fd leads to."""
        with self._among(self._asking, fd, self._ending):
            yield

    @contextmanager
    def reading(self, response: Any) -> Iterator[None]:
        """What is inside reads from response."""
        try:
            fd = response.fileno()
        except (OSError, ValueError, AttributeError):
            # All of it is there already.
            fd = -1
        with self._among(self._reading, fd, self._cut):
            yield

    @contextmanager
    def _among(self, lines: set[int], fd: int, over: threading.Event) -> Iterator[None]:
        mine = os.dup(fd) if fd >= 0 else -1
        try:
            with self._guard:
                if over.is_set():
                    raise Cut
                lines.add(mine)
            yield
        finally:
            with self._guard:
                lines.discard(mine)
            if mine >= 0:
                os.close(mine)
