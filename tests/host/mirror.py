# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A mirror with every vice: it stalls, truncates, resets, lies, throttles, redirects, changes half-way.

What it does is told to it; it never waits for a time, only for the test's events.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import ssl
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable

PATIENCE_S = 60.0


@dataclass
class Asked:
    """A request as it came; headers with names in lower case."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def range(self) -> str:
        return self.headers.get("range", "")


@dataclass
class Status:
    """An answer without content."""

    code: int
    headers: dict[str, str] = field(default_factory=dict)


# What sends the body, in place of sending it.
Vice = Callable[["Handler", bytes], None]


@dataclass
class File:
    """What is at a path. vices: what goes wrong with the GETs to come, one each (None: nothing)."""

    content: bytes = b""
    etag: str = ""
    modified: str = ""
    ranges: bool = True
    length: int | None = None  # None: the truth; -1: not told
    head: int = 200
    location: str = ""
    authorization: str = ""
    unanswered: bool = False  # a vice comes before the head of the answer
    vices: list[Status | Vice | None] = field(default_factory=list)

    @property
    def checksum(self) -> str:
        return "sha256:" + hashlib.sha256(self.content).hexdigest()


class Mirror:
    """asked: every request, in order. files: what there is, by path. connections: how many there were."""

    def __init__(self, port: int, scheme: str) -> None:
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.files: dict[str, File] = {}
        self.asked: list[Asked] = []
        self.busy = self.most_busy = self.connections = 0
        self.changed = threading.Condition()

    def add(self, path: str, content: bytes = b"", **more: Any) -> File:
        file = self.files[path] = File(content, **more)
        return file

    def of(self, path: str, method: str = "GET") -> list[Asked]:
        return [one for one in self.asked if (one.path, one.method) == (path, method)]

    @property
    def counts(self) -> Counter[str]:
        """How many requests of each method."""
        return Counter(one.method for one in self.asked)

    def wait_for(self, path: str, number: int = 1, method: str = "GET") -> None:
        """Wait until so many requests for path came."""
        with self.changed:
            came = self.changed.wait_for(lambda: len(self.of(path, method)) >= number, PATIENCE_S)
        assert came, f"nobody asked for {path}"

    def first_of(self, one: str, other: str) -> tuple[str, str]:
        """Wait until one of two files is fetched; their names, that one first."""
        with self.changed:
            came = self.changed.wait_for(lambda: self.of(one) or self.of(other), PATIENCE_S)
            assert came, f"nobody asked for {one} or {other}"
            first, second = (one, other) if self.of(one) else (other, one)
        return first.lstrip("/"), second.lstrip("/")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body in one segment each; without this Nagle waits for the ACK of the first.
    disable_nagle_algorithm = True
    mirror: Mirror

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def setup(self) -> None:
        super().setup()
        with self.mirror.changed:
            self.mirror.connections += 1

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        mirror = self.mirror
        asked = Asked(self.command, self.path, {key.lower(): value for key, value in self.headers.items()})
        with mirror.changed:
            mirror.asked.append(asked)
            mirror.busy += 1
            mirror.most_busy = max(mirror.most_busy, mirror.busy)
            mirror.changed.notify_all()
        try:
            with contextlib.suppress(ConnectionError):
                self.serve(asked, mirror.files.get(self.path))
        finally:
            with mirror.changed:
                mirror.busy -= 1

    def serve(self, asked: Asked, file: File | None) -> None:
        if file is None:
            return self.reply(404)
        if file.authorization and asked.headers.get("authorization") != file.authorization:
            return self.reply(401, {"WWW-Authenticate": 'Basic realm="mirror"'})
        if asked.method == "HEAD" and file.head != 200:
            return self.reply(file.head)
        if file.location:
            return self.reply(302, {"Location": file.location})
        vice = file.vices.pop(0) if file.vices and asked.method == "GET" else None
        if isinstance(vice, Status):
            return self.reply(vice.code, vice.headers)
        headers = {"ETag": file.etag, "Last-Modified": file.modified}
        headers = {name: value for name, value in headers.items() if value}
        if file.etag and asked.headers.get("if-none-match") == file.etag:
            return self.reply(304, headers)
        if file.modified and asked.headers.get("if-modified-since") == file.modified:
            return self.reply(304, headers)
        part, status = file.content, 200
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked.range)
        if match and file.ranges and asked.headers.get("if-range") in (None, file.etag, file.modified):
            first, last = int(match[1]), int(match[2] or len(file.content) - 1)
            if first >= len(file.content):
                return self.reply(416, {"Content-Range": f"bytes */{len(file.content)}"})
            part, status = file.content[first : last + 1], 206
            headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(file.content)}"
        if file.length != -1:
            headers["Content-Length"] = str(len(part) if file.length is None else file.length)
        else:
            headers["Connection"] = "close"
        if vice and file.unanswered:
            vice(self, b"")
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if asked.method == "HEAD":
            return None
        if vice:
            return vice(self, part)
        self.wfile.write(part)
        if file.length not in (None, len(part)):
            self.hang_up()
        return None

    def reply(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": "0", **(headers or {})}.items():
            if status != 304 or name != "Content-Length":
                self.send_header(name, value)
        self.end_headers()

    def hang_up(self, reset: bool = False) -> None:
        """End the connection, in good order or not."""
        self.wfile.flush()
        self.close_connection = True
        if reset:
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        else:
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_WR)


def truncated(after: int) -> Vice:
    """The connection ends, in good order, after so many bytes of the body."""

    def vice(handler: Handler, part: bytes) -> None:
        handler.wfile.write(part[:after])
        handler.hang_up()

    return vice


def reset(after: int) -> Vice:
    """The connection is reset after so many bytes of the body."""

    def vice(handler: Handler, part: bytes) -> None:
        handler.wfile.write(part[:after])
        handler.hang_up(reset=True)

    return vice


def stalled(after: int, until: threading.Event) -> Vice:
    """Nothing comes after so many bytes, until the event; then the rest."""

    def vice(handler: Handler, part: bytes) -> None:
        handler.wfile.write(part[:after])
        handler.wfile.flush()
        until.wait(PATIENCE_S)
        handler.wfile.write(part[after:])

    return vice


def then(vice: Vice, act: Callable[[], None]) -> Vice:
    """What vice does; and after that something else happens."""

    def both(handler: Handler, part: bytes) -> None:
        vice(handler, part)
        act()

    return both


@contextlib.contextmanager
def serve(tls: ssl.SSLContext | None = None) -> Iterator[Mirror]:
    """A mirror until the block is left; with tls it is one for https."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients of a test hang up."""

    one = type("One", (Handler,), {})
    server = Server(("127.0.0.1", 0), one)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    mirror = one.mirror = Mirror(server.server_port, "https" if tls else "http")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield mirror
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
