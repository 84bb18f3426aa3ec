# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Connections to web servers that are kept for the next request, for any number of threads."""

from __future__ import annotations

import errno
import io
import os
import re
import select
import socket
import threading
import time
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from http.client import HTTPConnection, HTTPException, HTTPResponse, LineTooLong, UnknownProtocol
from typing import Any

from .cutoff import Cutoff
from .fetch import body_length

# A server, as one connection serves it: scheme, host, port (None: the usual one).
_Server = tuple[str, str, "int | None"]
# Bytes that are read at once as long as the head is not there.
_HEAD = 8192
# The longest line of a head and the most lines, as http.client has them.
_LINE, _LINES = 65536, 100
# By how much a wait may outlast its deadline.
_INSTANT_S = 0.05
# How soon one that is not connected yet heeds a signal.
_STEP_MS = 50


class _Wire(io.RawIOBase):
    """What a response is read from. What is due has to come by deadline, in seconds of time.monotonic."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._deadline, self._ended = deadline, False
        self._sock = sock
        # It keeps the socket open for as long as this is, as http.client expects.
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._ended:
            return 0
        if self._deadline < float("inf"):
            _limit(self._sock, self._deadline)
        return self._raw.readinto(buffer)

    def relax(self, timeout: float) -> None:
        """From now on each read may take timeout seconds."""
        self._deadline = float("inf")
        if self._sock.gettimeout() != timeout:
            self._sock.settimeout(timeout)

    def hurry(self, timeout: float) -> None:
        """From now on all reads together may take timeout seconds."""
        self._deadline = time.monotonic() + timeout

    def end(self) -> None:
        """From now on nothing comes."""
        self._ended = True

    def fileno(self) -> int:
        return self._raw.fileno()

    def close(self) -> None:
        self._raw.close()
        super().close()


def _limit(sock: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        # What the socket itself raises.
        raise socket.timeout("timed out")
    # Setting it is a call of the kernel, and most reads are over at once.
    if not left <= (sock.gettimeout() or 0) <= left + _INSTANT_S:
        sock.settimeout(left)


def _head_lines(fp: io.BufferedReader) -> Iterator[bytes]:
    """The lines of a head after its status, as far as the empty one. Raises HTTPException."""
    for _line in range(_LINES):
        line = fp.readline(_LINE + 1)
        if len(line) > _LINE:
            raise LineTooLong("header line")
        if line in (b"\r\n", b"\n", b""):
            return
        yield line
    raise HTTPException(f"got more than {_LINES} headers")


class _Fields:
    """The header fields of an answer (RFC 9112, 5); what is none is passed over.

    http.client has an e-mail parser read them, which takes as long as all else of an answer.
    """

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._values: dict[str, list[str]] = {}
        values: list[str] = []
        for line in lines:
            text = line.decode("iso-8859-1").rstrip("\r\n")
            name, colon, value = text.partition(":")
            if text.startswith((" ", "\t")):
                # The value before goes on.
                values[-1:] = [f"{one} {text.strip()}" for one in values[-1:]]
            elif colon and name and name == name.strip():
                values = self._values.setdefault(name.lower(), [])
                values.append(value.strip())
            else:
                values = []

    def get_all(self, name: str, default: Any = None) -> Any:
        return self._values.get(name.lower(), default)

    def get(self, name: str, default: Any = None) -> Any:
        return self._values.get(name.lower(), [default])[0]


class _Response(HTTPResponse):
    """A response that gives its connection back when it is closed at its very end."""

    _home: Connections | None = None

    def __init__(self, sock: Any, *args: Any, deadline: float, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp.close()
        self._wire = _Wire(sock, deadline)
        self.fp = io.BufferedReader(self._wire, _HEAD)
        self._began = self._more = False

    def begin(self) -> None:
        """Read the head of the answer; interim ones before it are passed over (RFC 9110, 15.2)."""
        # What goes on for ever is ended by the deadline.
        while True:
            version, self.status, reason = self._read_status()  # type: ignore[attr-defined]
            fields = _Fields(_head_lines(self.fp))
            if self.status >= 200 or self.status == 101:
                break
        if not version.startswith(("HTTP/1.", "HTTP/0.9")):
            raise UnknownProtocol(version)
        self.code, self.reason = self.status, reason.strip()
        self.version = 10 if version in ("HTTP/1.0", "HTTP/0.9") else 11
        self.headers = self.msg = fields  # type: ignore[assignment]
        self.chunked, self.chunk_left = fields.get("Transfer-Encoding", "").lower() == "chunked", None
        self.will_close = self._check_close()  # type: ignore[attr-defined]
        length = fields.get("Content-Length", "")
        self.length = int(length) if re.fullmatch("[0-9]{1,18}", length) and not self.chunked else None
        if self._method == "HEAD" or self.status in (101, 204, 304):  # type: ignore[attr-defined]
            self.length = 0
        self.will_close = self.will_close or (self.length is None and not self.chunked)

    def answered(self, home: Connections, connection: _Line, timeout: float) -> None:
        """Its head is there; connection is home's, and each read of the body may take timeout seconds."""
        self._home, self._connection, self._timeout = home, connection, timeout
        self._wire.relax(timeout)

    def readinto1(self, buffer: Any) -> int:
        """As read1 reads, straight into buffer once what came with the head is handed on."""
        if self.isclosed() or self.chunked or not self.length or len(buffer) < _HEAD:
            return super().readinto1(buffer)
        room = memoryview(buffer)[: self.length]
        if self._began:
            count = self._wire.readinto(room) or 0
        else:
            self._began = True
            first = self.fp.read1(min(len(room), _HEAD))
            count = len(first)
            room[:count] = first
        self.length -= count
        return count

    def _read_next_chunk_size(self) -> Any:
        # http.client reads lines until it has one: they must not drip either.
        self._wire.hurry(self._timeout)
        size = super()._read_next_chunk_size()  # type: ignore[misc]
        self._wire.relax(self._timeout)
        return size

    def _read_and_discard_trailer(self) -> None:
        """Trailers are left: nobody looks at them, they may go on for ever, and it is not kept anyway."""

    def close(self) -> None:
        super().close()
        home, self._home = self._home, None
        if home:
            home.take_back(self._connection, self._is_whole)

    def _close_conn(self) -> None:
        # http.client calls it at the end of a body, or as it is closed. What has come beyond the end
        # with the head nobody asked for.
        self._wire.end()
        self._more = bool(self.fp.peek(1))
        super()._close_conn()  # type: ignore[misc]

    @property
    def _is_whole(self) -> bool:
        # What is chunked has no end that is known before it is read; after 101 nothing is HTTP.
        if self.length != 0 or self.chunked or self.will_close or self.status == 101:
            return False
        try:
            body_length(self.headers)
        except ValueError:
            return False
        return not self._more


class _Line(HTTPConnection):
    """A connection whose waits can be cut; with an ssl.SSLContext it is encrypted."""

    def __init__(self, server: _Server, context: Any) -> None:
        self.default_port = 443 if context else 80
        super().__init__(server[1], server[2] or self.default_port)
        self.server = server
        self.cutoff: Cutoff | None = None
        self._context = context
        self._waits = ExitStack()
        self._deadline = float("inf")
        self.response_class = self._respond  # type: ignore[assignment]

    def connect(self) -> None:
        self.sock = self._dial()
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._context:
            self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)

    def _dial(self) -> socket.socket:
        """A socket that is connected to one of the host's addresses."""
        last: Exception = OSError("its name leads nowhere")
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        for family, kind, protocol, _name, address in found:
            with ExitStack() as failed:
                sock = failed.enter_context(socket.socket(family, kind, protocol))
                try:
                    self._connect(sock, address)
                except OSError as error:
                    last = error
                    continue
                self._wait(sock)
                failed.pop_all()
                return sock
        raise last

    def _connect(self, sock: socket.socket, address: Any) -> None:
        # In steps: what is not connected yet cannot be hung up.
        deadline, steps = time.monotonic() + float(self.timeout or 0), select.poll()
        sock.setblocking(False)
        number = sock.connect_ex(address)
        steps.register(sock, select.POLLOUT)
        while number == errno.EINPROGRESS:
            if self.cutoff:
                self.cutoff.begin()
            _limit(sock, deadline)
            if steps.poll(_STEP_MS):
                number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, os.strerror(number))
        sock.settimeout(self.timeout)

    def _wait(self, sock: socket.socket) -> None:
        """From now on it waits for the server."""
        if self.cutoff:
            self._waits.enter_context(self.cutoff.asking(sock.fileno()))

    def _respond(self, sock: Any, *args: Any, **more: Any) -> _Response:
        return _Response(sock, *args, deadline=self._deadline, **more)

    def ask(self, method: str, target: str, headers: Mapping[str, str], timeout: float) -> _Response:
        """The answer, whose head is there within timeout seconds from when it was asked for."""
        with self._waits:
            if self.sock is None:
                self.timeout = timeout
                self.connect()
            else:
                self._wait(self.sock)
            self._deadline = time.monotonic() + timeout
            _limit(self.sock, self._deadline)
            self.request(method, target, headers=dict(headers))
            return self.getresponse()  # type: ignore[return-value]

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came since the last answer: neither its end, nor what nobody asked for."""
        # What TLS has read already is not in the socket any more.
        pending = getattr(self.sock, "pending", int)()
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return not pending and not poll.poll(0)


class Connections:
    """An opener that follows no redirect; a status is no error of it.

    timeout in seconds: for a connection, for the whole head of an answer, and for each piece of its
    body. context: an ssl.SSLContext; without one TLS is verified against what the host trusts.
    """

    def __init__(self, timeout: float, context: Any = None) -> None:
        self._timeout, self._context = timeout, context
        self._guard = threading.Lock()
        self._idle: dict[_Server, list[_Line]] = {}

    def __call__(
        self, url: str, method: str = "GET", headers: Mapping[str, str] | None = None, cutoff: Any = None
    ) -> _Response:
        """What the server of url answers. cutoff: what may end the wait for it. Raises OSError, Cut,
        HTTPException, ValueError."""
        parts = urllib.parse.urlsplit(url)
        server = (parts.scheme, parts.hostname or "", parts.port)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = headers or {}
        if not any(name.lower() == "user-agent" for name in headers):
            # Some servers answer nobody who gives no name.
            headers = {"User-Agent": "besom", **headers}
        while True:
            if cutoff:
                cutoff.begin()
            kept = self._kept(server)
            connection = kept or self._new(server)
            connection.cutoff = cutoff
            try:
                response = connection.ask(method, target, headers, self._timeout)
            except BaseException as error:
                connection.close()
                if cutoff:
                    cutoff.begin()
                # A server may hang up on a kept connection at any time: what only asks is asked again
                # (RFC 9112, 9.3.1).
                if kept and isinstance(error, (OSError, HTTPException)) and not _timed_out(error):
                    continue
                raise
            response.answered(self, connection, self._timeout)
            return response

    def _kept(self, server: _Server) -> _Line | None:
        while True:
            with self._guard:
                idle = self._idle.get(server)
                connection = idle.pop() if idle else None
            if connection is None or connection.is_quiet:
                return connection
            connection.close()

    def _new(self, server: _Server) -> _Line:
        if server[0] != "https":
            return _Line(server, None)
        with self._guard:
            if self._context is None:
                import ssl

                # Once: it reads every certificate that the host trusts.
                self._context = ssl.create_default_context()
        return _Line(server, self._context)

    def take_back(self, connection: _Line, whole: bool) -> None:
        """A response is closed; whole: its connection stands right before the next one."""
        connection.cutoff = None
        if whole and connection.sock:
            with self._guard:
                self._idle.setdefault(connection.server, []).append(connection)
        else:
            connection.close()

    def __del__(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                # At the end of the interpreter there may be no suppress any more.
                try:  # noqa: SIM105
                    connection.close()
                except OSError:
                    pass


def _timed_out(error: Exception) -> bool:
    # socket.timeout is a TimeoutError since Python 3.10.
    return isinstance(error, (TimeoutError, socket.timeout))
