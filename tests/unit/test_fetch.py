# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import http.server
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from besom.errors import UsageError
from besom.fetch import check_url, content_length, redact
from besom.opener import plain_opener

SIZE = 123_456


class Artifacts(http.server.BaseHTTPRequestHandler):
    """One kind of server behaviour for each path; asked remembers what was asked for."""

    asked: list[tuple[str, str, str | None]]

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        self.asked.append((self.command, self.path, self.headers["Range"]))
        head = self.command == "HEAD"
        ranged = {"Content-Range": f"bytes 0-0/{SIZE}", "Content-Length": "1"}
        if self.headers["Accept-Encoding"] != "identity":
            self.reply(400)
        elif self.path == "/good":
            self.reply(200, {"Content-Length": str(SIZE)})
        elif self.path == "/get-only":
            self.reply(405) if head else self.reply(206, ranged, b"x")
        elif self.path == "/get-whole":
            self.reply(403) if head else self.reply(200, {"Content-Length": str(SIZE)}, b"x" * SIZE)
        elif self.path == "/silent-head":
            self.reply(200) if head else self.reply(206, ranged, b"x")
        elif self.path == "/never-says":
            self.reply(200, {}, b"" if head else b"data")
        elif self.path == "/part-only":
            self.reply(405) if head else self.reply(206, {"Content-Length": "1"}, b"x")
        elif self.path == "/part-of-unknown":
            self.reply(405) if head else self.reply(206, {"Content-Range": "bytes 0-0/*"}, b"x")
        elif self.path == "/gzip":
            self.reply(200, {"Content-Length": "99", "Content-Encoding": "gzip"})
        elif self.path.startswith("/lies/"):
            self.reply(200, {"Content-Length": self.path[6:].replace("_", " ")})
        elif self.path == "/empty":
            self.reply(200, {"Content-Length": "0"})
        elif self.path == "/redirect":
            self.reply(302, {"Location": "/good"})
        elif self.path == "/loop":
            self.reply(302, {"Location": "/loop"})
        elif self.path == "/reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif self.path == "/garbage":
            self.wfile.write(b"\x00\xff not http\r\n\r\n")
        elif self.path == "/closed":
            pass
        else:
            self.reply(404, {"Content-Length": "9"}, b"" if head else b"not found")
        self.close_connection = True

    def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        # Whoever asked may know enough already, and be gone.
        with suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(body)

    def handle(self) -> None:
        with suppress(OSError, ValueError):  # the connection that /reset closed
            super().handle()

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name in the base class)
        pass


@pytest.fixture
def asked() -> list[tuple[str, str, str | None]]:
    return []


@pytest.fixture
def server(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a real HTTP server."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    handler = type("Handler", (Artifacts,), {"asked": asked})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def size_of(server: str) -> Callable[[str], int | None]:
    return lambda path: content_length(server + path, plain_opener())


@pytest.mark.parametrize("path", ["/good", "/get-only", "/get-whole", "/silent-head", "/redirect"])
def test_the_size_is_found_by_head_or_by_a_get_of_one_byte(size_of: Callable[[str], Any], path: str) -> None:
    assert size_of(path) == SIZE


def test_a_server_that_answers_head_is_not_asked_again(
    size_of: Callable[[str], Any], asked: list[Any]
) -> None:
    size_of("/good")
    assert asked == [("HEAD", "/good", None)]


def test_a_server_that_refuses_head_is_asked_for_one_byte_only(
    size_of: Callable[[str], Any], asked: list[Any]
) -> None:
    size_of("/get-only")
    assert asked == [("HEAD", "/get-only", None), ("GET", "/get-only", "bytes=0-0")]


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/never-says",
            "/part-only",
            "/part-of-unknown",
            "/gzip",
            "/missing",
            "/reset",
            "/closed",
            "/garbage",
        ),
        *("/loop", "/lies/-5", "/lies/many", "/lies/1e9", "/lies/5,5", "/lies/99999999999999999999"),
        *("/lies/0x10", "/lies/+5", "/lies/5_5"),
    ],
)
def test_a_size_that_the_server_does_not_tell_is_unknown(size_of: Callable[[str], Any], path: str) -> None:
    assert size_of(path) is None


def test_a_size_of_nothing_is_a_size(size_of: Callable[[str], Any]) -> None:
    assert size_of("/empty") == 0


def test_the_size_of_what_no_server_serves_is_unknown(server: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x"
        assert content_length(url, plain_opener()) is None


@pytest.mark.parametrize(
    "url", ["http://example.org/a.tar.gz", "https://[::1]:8443/", "https://user:pw@example.org/x?y#z"]
)
def test_http_and_https_urls_are_taken_as_they_are(url: str) -> None:
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "x",
            "/etc/passwd",
            "file:///etc/passwd",
            "ftp://example.org/x",
            "http://",
            "https:///x",
            "http:x",
        ),
        *("http://[::1/", "http://example.org:port/", "http://a b/", "http://a/\r\nX: y"),
        *(None, 5, True, ["http://example.org"]),
    ],
)
def test_anything_else_is_refused_in_one_line(url: Any) -> None:
    with pytest.raises(UsageError, match=r"^urls: .* is not an http or https URL\.$") as caught:
        check_url(url, "urls")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "url",
    [
        "https://user:secret@h/p",
        "https://h/p?token=secret",
        "https://h/p#secret",
        "http://a@secret@h/p?secret",
    ],
)
def test_what_is_shown_of_a_url_holds_no_secret(url: str) -> None:
    assert "secret" not in redact(url)
    assert redact(url).endswith("//h/p")


@pytest.mark.parametrize(
    "url",
    [
        *(f"http://user:the{char}secret@h/x" for char in "/#? \n"),
        *("ftp://user:secret@h/x", "http:/user:sec/secret@h", "user:/secret@h", "http://[x:secret@h"),
    ],
)
def test_a_password_is_not_shown_of_what_is_no_url_either(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_url(url)
    assert "secret" not in str(caught.value)
    assert "the" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://h/\udcff", "http://\ud800/"])
def test_a_url_that_is_no_text_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is not an http or https URL"):
        check_url(url)


@pytest.mark.parametrize("url", ["/" * 60_000, "://@" * 15_000, "http://h/" + "//x" * 20_000, "@" * 60_000])
def test_a_long_url_is_shown_at_once(url: str) -> None:
    started = time.process_time()
    assert len(redact(url)) < 300
    assert time.process_time() - started < 0.2


def test_what_stands_before_the_bracket_of_an_address_is_no_host() -> None:
    with pytest.raises(UsageError) as caught:
        check_url("http://u:secret[::1]x://p]@h/")
    assert "secret" not in str(caught.value)
    assert check_url("http://u:p@[::1]:80/") == "http://u:p@[::1]:80/"


def test_a_login_before_the_slashes_is_no_part_of_what_is_shown() -> None:
    assert "secret" not in redact("user:secret@host//path")
