"""Sending events to a Seq server, https://datalust.co/docs/posting-raw-events.

Lines go into small files in a directory, and a thread sends one file after the other, the oldest first.
A server that is away, slow or lying costs the work nothing: what it has not taken is sent later, also
by the next process; beyond a bound the oldest go, and are counted.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import threading
import time
import urllib.parse
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Callable

from besom.errors import BesomError
from besom.locks import try_flock
from besom.units import printable

from .state import StateDir

# One file is one request; so much is kept, and in so many files: each short command has its own.
FILE_BYTES = 256 << 10
BUFFER_BYTES = 8 << 20
MOST_FILES = 1000
# Events that come close together travel together.
LINGER_S = 1.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 300.0
# For a connection and each read, and for a whole answer.
TIMEOUT_S, ANSWER_S = 10.0, 30.0
_KEY_BYTES = 1000
_NAME = re.compile(r"[0-9]{20}-[0-9]+\.clef")
# Of a process that was killed before it gave the file its name, or is about to.
_NEW = re.compile(r"\.[0-9]+\.new")
# The server will never take them, however often they are sent.
_HOPELESS = (400, 413, 422)


def read_api_key(path: str) -> str:
    """The key in the first line of the file at path; empty: there is no path. Raises OSError."""
    if not path:
        return ""
    with open(path, encoding="ascii", errors="ignore", opener=_open_at_once) as stream:
        return "".join(char for char in stream.read(_KEY_BYTES).split("\n")[0] if "!" <= char <= "~")


def _open_at_once(path: str, flags: int) -> int:
    """Nobody who makes it a FIFO shall hold besom up."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


class Seq:
    """What is on its way to the server at url, kept in a directory inside that of the state.

    Raises UsageError where one of these cannot be made, or others can write to it.

    api_key: empty for none. tell(event, field=...) is told how it goes.
    """

    def __init__(self, url: str, api_key: str, directory: str, tell: Callable[..., None]) -> None:
        self._url, self._directory, self.tell = urllib.parse.urlsplit(url), directory, tell
        self._headers = {"Content-Type": "application/vnd.serilog.clef", "Connection": "close"}
        if api_key:
            self._headers["X-Seq-ApiKey"] = api_key
        for path in (os.path.dirname(directory), directory):
            StateDir(path).prepare()
        # A signal's handler may tell something while this thread tells something else.
        self._lock = threading.RLock()
        self._fd, self._size, self._name = -1, 0, ""
        # Lost, not told of yet, and why the last of them were; losing: some were told of since the last 201.
        self._dropped, self._why, self._losing = 0, "", False
        self._failing = False
        self._pause = 0.0
        self._news, self._stop = threading.Event(), threading.Event()
        # What earlier processes could not send.
        self._news.set()
        self._thread = threading.Thread(target=self._work, name="seq", daemon=True)
        # The main thread waits for signals by sigtimedwait(2): none may be given to another.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def write(self, line: str) -> None:
        """Keep a line until it is sent."""
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._lock:
            try:
                if self._fd < 0 or self._size + len(data) > FILE_BYTES:
                    self._begin()
                if os.write(self._fd, data) < len(data):
                    # The disk is full: what comes next is not joined to half a line.
                    os.ftruncate(self._fd, self._size)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._size += len(data)
            except (OSError, BesomError) as error:
                why = (isinstance(error, OSError) and error.strerror) or str(error)
                self._lose(1, f"the buffer cannot be written: {why}")
        self._tell_lost()
        self._news.set()

    def close(self, timeout: float) -> None:
        """Keep no more. timeout: seconds for what is there to be sent, unless the server is away already."""
        self._stop.set()
        self._news.set()
        if timeout and not self._failing:
            self._thread.join(timeout)
        with self._lock:
            self._end()
            self._losing = False
        self._tell_lost()

    def _begin(self) -> None:
        """A new file, which is locked while it is written to, and from before others can see it."""
        self._end()
        names = self._names()
        sizes = [self._size_of(name) for name in names]
        left = sum(sizes)
        for number, (old, size) in enumerate(zip(names, sizes)):
            if left + FILE_BYTES <= BUFFER_BYTES and len(names) - number < MOST_FILES:
                break
            left -= size
            self._lose(self._drop(old), "the buffer is full")
        for left_behind in filter(_NEW.fullmatch, os.listdir(self._directory)):
            self._drop(left_behind)
        name = f"{time.time_ns():020}-{os.getpid()}.clef"
        new = os.path.join(self._directory, f".{os.getpid()}.new")
        with suppress(FileNotFoundError):
            os.unlink(new)
        fd = os.open(new, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            # Before it was locked, another may have taken it for left behind.
            if not (try_flock(fd) and os.fstat(fd).st_nlink):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            os.rename(new, os.path.join(self._directory, name))
        except (OSError, BesomError):
            os.close(fd)
            raise
        self._fd, self._size, self._name = fd, 0, name

    def _end(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _names(self) -> list[str]:
        """The files, the oldest first."""
        return sorted(name for name in os.listdir(self._directory) if _NAME.fullmatch(name))

    def _size_of(self, name: str) -> int:
        with suppress(OSError):
            return os.lstat(os.path.join(self._directory, name)).st_size
        return 0  # another process has sent it

    def _drop(self, name: str) -> int:
        """Remove a file that nobody sends at the moment; how many lines that were."""
        taken = self._take(name)
        if taken is None:
            return 0
        fd, content = taken
        os.unlink(os.path.join(self._directory, name))
        os.close(fd)
        return content.count(b"\n")

    def _take(self, name: str) -> tuple[int, bytes] | None:
        """A locked descriptor of a file that nobody else writes to or sends, and its whole lines."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = os.open(os.path.join(self._directory, name), flags)
        except OSError:
            return None
        with suppress(OSError, BesomError):
            if try_flock(fd) and os.fstat(fd).st_nlink:
                # A writer that was killed may have left half a line.
                content = os.pread(fd, 2 * FILE_BYTES, 0)
                return fd, content[: content.rfind(b"\n") + 1]
        os.close(fd)
        return None

    def _work(self) -> None:
        while True:
            stopping = self._stop.wait(self._pause)
            if stopping and self._pause:
                return
            if not (self._pause or stopping):
                self._news.wait()
                stopping = self._stop.wait(LINGER_S)
            self._news.clear()
            # This thread lives as long as its process.
            with suppress(Exception):
                self._ship()
            if stopping:
                return

    def _ship(self) -> None:
        """Send what is there, until the server does not take it."""
        for name in self._names():
            # The one that is written to comes last: while the server is away, all goes on into it.
            if name == self._name:
                with self._lock:
                    self._end()
            taken = self._take(name)
            if taken is None:
                continue
            fd, content = taken
            try:
                if content and not self._send(content):
                    return
                os.unlink(os.path.join(self._directory, name))
            finally:
                os.close(fd)

    def _send(self, content: bytes) -> bool:
        """Whether the server has the lines now, or will never take them."""
        status, reason = self._post(content)
        if status == 201:
            self._went_well()
        elif status in _HOPELESS:
            self._lose(content.count(b"\n"), f"the server refuses them ({status})")
            self._tell_lost()
        else:
            self._went_wrong(reason)
            return False
        return True

    def _went_well(self) -> None:
        self._pause = 0.0
        if self._failing:
            self._failing = False
            self.tell("seq_recovered")
        with self._lock:
            self._losing = False
        self._tell_lost()

    def _lose(self, count: int, reason: str) -> None:
        with self._lock:
            self._dropped += count
            self._why = reason if count else self._why

    def _tell_lost(self) -> None:
        """Tell of what is lost: the first at once, the rest at the next 201, or at the end.

        What is told is one more event, which may be lost as well: one must not beget the next for ever.
        """
        with self._lock:
            if self._losing or not self._dropped:
                return
            dropped, self._dropped, self._losing = self._dropped, 0, True
        self.tell("seq_dropped", events=dropped, reason=self._why)

    def _went_wrong(self, reason: str) -> None:
        self._pause = min(self._pause * 2, LONGEST_PAUSE_S) or FIRST_PAUSE_S
        if not self._failing:
            self._failing = True
            self.tell("seq_failed", reason=reason)

    def _post(self, content: bytes) -> tuple[int, str]:
        """(status, why it was not taken) of sending the lines; status 0: there was no answer."""
        secure = self._url.scheme == "https"
        connection: Any = (HTTPSConnection if secure else HTTPConnection)(
            self._url.hostname or "", self._url.port, timeout=TIMEOUT_S
        )
        # A read has its own time, which an answer that drips byte by byte never exceeds.
        cut = threading.Timer(ANSWER_S, _cut, (connection,))
        cut.daemon = True
        cut.start()
        try:
            path = self._url.path.rstrip("/") + "/ingest/clef"
            connection.request("POST", path, content, self._headers)
            status = connection.getresponse().status
        except (OSError, HTTPException, ValueError) as error:
            return 0, printable(getattr(error, "strerror", None) or str(error) or type(error).__name__)
        finally:
            cut.cancel()
            connection.close()
        # Any other is not from Seq, whatever it says: a login page answers 200.
        return status, f"the answer is {status} instead of 201"


def _cut(connection: HTTPConnection) -> None:
    with suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)
