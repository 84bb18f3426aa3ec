# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPException
from typing import Any

import pytest
from tests.host.mirror import PATIENCE_S, Mirror, Status, reset, serve, truncated

from besom.connections import Connections, _Line
from besom.cutoff import Cut, Cutoff

CONTENT = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as one:
        one.add("/a", CONTENT)
        yield one


def read(connections: Connections, url: str, method: str = "GET", at_most: int = -1) -> bytes:
    """What comes, as a transfer reads it."""
    response = connections(url, method=method)
    room, found = memoryview(bytearray(100_000)), b""
    with response:
        while at_most < 0 or len(found) < at_most:
            count = response.readinto1(room)
            if not count:
                break
            found += room[:count]
    return found


def test_a_connection_is_kept_for_the_next_request(mirror: Mirror) -> None:
    connections = Connections(PATIENCE_S)
    mirror.add("/empty")
    mirror.add("/not", etag='"1"', vices=[Status(304)])
    for _ in range(3):
        assert read(connections, f"{mirror.url}/a") == CONTENT
        assert read(connections, f"{mirror.url}/a", "HEAD") == b""
        assert read(connections, f"{mirror.url}/empty") == b""
        assert read(connections, f"{mirror.url}/not") == b""
    assert mirror.connections == 1


@pytest.mark.parametrize("how", ["left", "cut short", "reset", "unknown length", "close"])
def test_one_whose_answer_is_not_at_its_end_is_not_kept(mirror: Mirror, how: str) -> None:
    connections = Connections(PATIENCE_S)
    file = mirror.files["/a"]
    if how == "unknown length":
        file.length = -1
    if how in ("cut short", "reset"):
        file.vices.append((truncated if how == "cut short" else reset)(1000))
    with contextlib.suppress(ConnectionError):
        read(connections, f"{mirror.url}/a", at_most=1 if how in ("left", "close") else -1)
    file.length = None
    assert read(connections, f"{mirror.url}/a") == CONTENT
    assert mirror.connections == 2


def test_a_server_may_hang_up_on_a_kept_connection(mirror: Mirror) -> None:
    """Before the next request, or just as it comes; that is not even a retry."""
    connections = Connections(PATIENCE_S)
    mirror.files["/a"].vices = [truncated(len(CONTENT)), None, None]

    def hang_up(handler: Any, _part: bytes) -> None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    for _ in range(2):
        assert read(connections, f"{mirror.url}/a") == CONTENT
    mirror.add("/b", CONTENT, unanswered=True, vices=[hang_up])
    assert read(connections, f"{mirror.url}/b") == CONTENT
    assert len(mirror.of("/b")) == 2


def test_what_nobody_asked_for_is_not_taken_for_an_answer(mirror: Mirror) -> None:
    connections = Connections(PATIENCE_S)
    sent = threading.Event()

    def and_more(handler: Any, part: bytes) -> None:
        handler.wfile.write(part + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        sent.set()

    mirror.files["/a"].vices = [and_more]
    assert read(connections, f"{mirror.url}/a") == CONTENT
    assert sent.wait(PATIENCE_S)
    assert read(connections, f"{mirror.url}/a") == CONTENT


@contextlib.contextmanager
def scripted(*answers: str) -> Iterator[tuple[str, list[socket.socket]]]:
    """A server with an answer to each request in turn; and the connections that it had."""
    left, clients = list(answers), []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while left:
                client, _address = server.accept()
                clients.append(client)
                with client, contextlib.suppress(OSError):
                    while left and client.recv(65536):
                        client.sendall(left.pop(0).replace("\n", "\r\n").encode())

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/", clients


OK = "HTTP/1.1 200 OK\n"
SECOND = f"{OK}Content-Length: 6\n\nsecond"


@pytest.mark.parametrize(
    ("fields", "taken"),
    [
        ("A: b\n" * 98, True),
        ("A: b\n" * 101, False),
        (f"A: {'b' * 65_000}\n", True),
        (f"A: {'b' * 66_000}\n", False),
    ],
    ids=["many", "too many", "long", "too long"],
)
def test_a_head_has_an_end(fields: str, taken: bool) -> None:
    """As http.client has it; its own reader of heads has no name that all of Python 3.9 know."""
    connections = Connections(PATIENCE_S)
    outcome = contextlib.nullcontext() if taken else pytest.raises(HTTPException)
    with scripted(f"{OK}Content-Length: 5\n{fields}\nfirst") as (url, _clients), outcome:
        assert read(connections, url) == b"first"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_interim_answer_is_not_the_answer(method: str) -> None:
    interim = "HTTP/1.1 102 Processing\n\nHTTP/1.1 103 Early Hints\nContent-Length: 4\n\n"
    first = f"{interim}{OK}Content-Length: 5\n\n" + ("first" if method == "GET" else "")
    connections = Connections(PATIENCE_S)
    with scripted(first, SECOND) as (url, clients):
        assert read(connections, url, method) == (b"first" if method == "GET" else b"")
        assert read(connections, url) == b"second"
        assert len(clients) == 1


@pytest.mark.parametrize(
    "head",
    [
        "HTTP/1.1 101 Switching Protocols\nUpgrade: h2c\n",
        f"{OK}Content-Length: 0\nTransfer-Encoding: gzip, chunked\n",
        f"{OK}Content-Length: 0\nContent-Length: 5\n",
    ],
)
def test_one_whose_answer_has_no_sure_end_is_not_kept(head: str) -> None:
    connections = Connections(PATIENCE_S)
    with scripted(f"{head}\n", SECOND) as (url, clients):
        assert read(connections, url) == b""
        assert read(connections, url) == b"second"
        assert len(clients) == 2


def test_fields_go_on_in_the_next_line_and_what_is_none_is_passed_over() -> None:
    connections = Connections(PATIENCE_S)
    odd = "Content-Length : 3\nnonsense\n goes on\nwarning: one,\n\t two\nWarning: three\n: 4\n"
    with scripted(f"{OK}{odd}CONTENT-LENGTH:5 \n\nfirst", SECOND) as (url, clients):
        with connections(url) as response:
            assert response.headers.get_all("Warning") == ["one, two", "three"]
            assert response.headers.get("warning") == "one, two"
            assert response.headers.get("ETag") is None
            assert response.read() == b"first"
        assert read(connections, url) == b"second"
        assert len(clients) == 1


@pytest.mark.parametrize("head", ["HTTP/2 200 OK\n", "ICY 200 OK\n", "HTTP/1.1 OK\n", "\n"])
def test_what_is_no_answer_of_http_is_an_error(head: str) -> None:
    with scripted(f"{head}Content-Length: 0\n\n") as (url, _clients), pytest.raises(HTTPException):
        Connections(PATIENCE_S)(url)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_one_with_more_than_was_asked_for_is_not_kept(method: str) -> None:
    """Though what is more came with the head, so that nothing waits in the socket."""
    connections = Connections(PATIENCE_S)
    with scripted(f"{OK}Content-Length: 4\n\nmore" + "!" * (method == "GET"), SECOND) as (url, clients):
        assert read(connections, url, method) == (b"more" if method == "GET" else b"")
        assert read(connections, url) == b"second"
        assert len(clients) == 2


def test_what_tls_has_read_already_is_not_the_next_answer() -> None:
    """One record: 8192 bytes of it are read with the head, the rest waits decrypted, not in the socket."""
    line = _Line(("https", "host", None), None)
    line.sock, theirs = socket.socketpair()
    with theirs, line.sock:
        assert line.is_quiet
        line.sock = Decrypted(fileno=line.sock.detach())
        assert not line.is_quiet
        line.sock.close()


class Decrypted(socket.socket):
    """As an ssl.SSLSocket that has read a record, of which a part was asked for."""

    def pending(self) -> int:
        return 5


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"


def test_trailers_that_drip_are_not_waited_for() -> None:
    with dripping(CHUNKED + b"0\r\nX-Long: ") as url:
        assert read(Connections(PATIENCE_S), url) == b"hello"


def test_the_size_of_a_chunk_that_drips_is_given_up() -> None:
    with dripping(CHUNKED + b"5;") as url, pytest.raises(socket.timeout):
        read(Connections(0.3), url)


@contextlib.contextmanager
def dripping(head: bytes = b"HTTP/1.1 200 OK\r\nX-Long: ") -> Iterator[str]:
    """A server whose answer comes byte by byte, and has no end."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            client, _address = server.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(head)
                client.settimeout(0.02)
                while True:
                    client.sendall(b"x")
                    with contextlib.suppress(socket.timeout):
                        if not client.recv(65536):
                            break

        thread = threading.Thread(target=drip)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def test_a_head_that_drips_is_given_up() -> None:
    with dripping() as url, pytest.raises(socket.timeout):
        Connections(0.3)(url)


class Watched(Cutoff):
    """Tells when it is looked at for the second time: what asks waits by then."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.waits = 0, threading.Event()

    def begin(self) -> None:
        super().begin()
        self.looks += 1
        if self.looks > 1:
            self.waits.set()


def cut_while(asks: threading.Event | None, url: str) -> None:
    """What asks for url is cut by the end of all that waits; asks: when it does (None: as it connects)."""
    cutoff, errors = Watched(), []

    def ask() -> None:
        try:
            Connections(PATIENCE_S)(url, cutoff=cutoff)
        except (Cut, OSError) as error:
            errors.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert (asks or cutoff.waits).wait(PATIENCE_S)
    cutoff.end()
    thread.join(PATIENCE_S / 2)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [Cut]


def test_a_connect_that_hangs_is_cut() -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        # More than it takes: the next one is not answered, and tries again for a minute.
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        cut_while(None, f"http://127.0.0.1:{server.getsockname()[1]}/")


def test_a_wait_for_an_answer_is_cut() -> None:
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            client, _address = server.accept()
            with client:
                while client.recv(65536):
                    asked.set()

        thread = threading.Thread(target=accept)
        thread.start()
        cut_while(asked, f"http://127.0.0.1:{server.getsockname()[1]}/")
        thread.join()


@pytest.mark.parametrize(("headers", "agent"), [({}, "besom"), ({"user-agent": "mine"}, "mine")])
def test_a_server_is_told_who_asks(mirror: Mirror, headers: dict[str, str], agent: str) -> None:
    with Connections(PATIENCE_S)(f"{mirror.url}/a", headers=headers):
        assert [one.headers["user-agent"] for one in mirror.asked] == [agent]
