# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import email
import email.utils
import hashlib
import http.client
import itertools
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.host.mirror import Mirror, Status, reset, serve, stalled, then, truncated

from besom.cutoff import Cut, Cutoff
from besom.durable import Draft, adopt, draft, parts_of
from besom.errors import BesomError, UsageError
from besom.opener import plain_opener
from besom.origin import Origin, digest_of, read_origin, write_origin
from besom.transfer import (
    Source,
    Transfer,
    look,
    read_checksum,
    read_headers,
    read_source,
)

CONTENT = hashlib.sha256(b"seed").digest() * 20_000  # 640 KB
OPENER = plain_opener(timeout=20, redirects=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Mirror]:
    with serve() as mirror:
        yield mirror


@pytest.fixture
def mirror(server: Mirror) -> Mirror:
    server.files.clear()
    server.asked.clear()
    return server


class Patient(Cutoff):
    """Waits for nothing, and notes for how long it was to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.pauses: list[float] = []

    def pause(self, seconds: float) -> None:
        self.check()
        self.pauses.append(seconds)


class Place:
    """A directory that something is fetched into."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDONLY)
        self.cutoff = Patient()
        self.transfer: Transfer | None = None

    def fetch(self, source: Source, known: Origin | None = None, **more: Any) -> Origin | None:
        """Fetch and publish as `file`."""
        with draft(self.fd, str(self.path), "file") as one:
            return self.go_on(one, source, known, **more)

    def go_on(self, one: Draft, source: Source, known: Origin | None = None, **more: Any) -> Origin | None:
        self.transfer = Transfer(source, more.pop("opener", OPENER), self.cutoff, **more)
        origin = self.transfer.run(one, known)
        if origin:
            one.publish()
        return origin

    @property
    def content(self) -> bytes:
        return (self.path / "file").read_bytes()

    @property
    def names(self) -> list[str]:
        return sorted(os.listdir(self.path))

    def leave(self, content: bytes, origin: Origin | None) -> None:
        """An orphan of a killed writer."""
        part = self.path / ".file.0123456789abcdef.part"
        part.write_bytes(content)
        part.chmod(0o600)
        if origin:
            with part.open("r+b") as stream:
                write_origin(stream.fileno(), origin)

    def adopted(self) -> Draft:
        (part,) = parts_of(self.fd, "file")
        found = adopt(self.fd, str(self.path), part, "file")
        assert found
        return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    one = Place(tmp_path)
    yield one
    os.close(one.fd)


@pytest.fixture
def xattrs(tmp_path: Path) -> None:
    try:
        os.setxattr(tmp_path, "user.besom.test", b"1")
    except OSError:
        pytest.skip("this file system has no extended attributes")


def test_what_comes_is_what_is_there(mirror: Mirror, place: Place) -> None:
    file = mirror.add("/a", CONTENT, etag='"1"')
    moves: list[tuple[int, int]] = []
    source = read_source(f"{mirror.url}/a", checksum=read_checksum(file.checksum))
    origin = place.fetch(source, moved=lambda done, total: moves.append((done, total)))
    assert place.content == CONTENT
    assert place.names == ["file"]
    assert origin
    assert origin.checksum == file.checksum
    assert moves[-1] == (len(CONTENT), len(CONTENT))


def test_a_wrong_checksum_leaves_nothing(mirror: Mirror, place: Place) -> None:
    mirror.add("/a", CONTENT, etag='"1"')
    wanted = read_checksum("sha256:" + "0" * 64)
    with pytest.raises(BesomError, match=r"/a has the checksum sha256:\w{64}, not sha256:0+; nothing was"):
        place.fetch(read_source(f"{mirror.url}/a", checksum=wanted))
    assert place.names == []
    assert len(mirror.asked) == 1


def test_a_lost_connection_is_taken_up_where_it_broke(mirror: Mirror, place: Place) -> None:
    mirror.add("/a", CONTENT, etag='"1"', vices=[truncated(100_000), truncated(200_000)])
    place.fetch(read_source(f"{mirror.url}/a"))
    assert place.content == CONTENT
    assert [one.range for one in mirror.asked] == ["", "bytes=100000-", "bytes=300000-"]
    assert mirror.asked[1].headers["if-range"] == '"1"'
    assert place.transfer
    assert place.transfer.figures.retries == 2
    assert place.transfer.figures.bytes == len(CONTENT)


def test_what_makes_progress_is_not_given_up(mirror: Mirror, place: Place) -> None:
    mirror.add("/a", CONTENT, etag='"1"', vices=[truncated(100_000)] * 6)
    place.fetch(read_source(f"{mirror.url}/a"), retries=1)
    assert place.content == CONTENT


def test_what_a_failing_server_has_sent_is_left_to_the_next_run(
    mirror: Mirror, place: Place, xattrs: None
) -> None:
    mirror.add("/a", CONTENT, etag='"1"', vices=[truncated(100_000), Status(503), Status(503)])
    source = read_source(f"{mirror.url}/a")
    with pytest.raises(BesomError, match="answers 503"):
        place.fetch(source, retries=1)
    with place.adopted() as one:
        place.go_on(one, source)
    assert place.content == CONTENT
    assert mirror.asked[-1].range == "bytes=100000-"
    assert place.names == ["file"]


class Body:
    """A body that comes byte by byte."""

    status = 200
    headers = email.message_from_string("Content-Length: 1000000\n\n")

    def readinto1(self, buffer: memoryview) -> int:
        buffer[0] = 0
        return 1

    def close(self) -> None:
        """Nothing is open."""


def test_what_crawls_is_given_up(place: Place) -> None:
    clock = itertools.count(0, 20).__next__
    source = read_source("http://host/a")
    with pytest.raises(BesomError, match=r"no more than 2 bytes in 60s \(2 times\)"):
        place.fetch(source, opener=lambda *args, **more: Body(), clock=clock, retries=1)


class Scripted:
    """An opener whose answers are what a server sent, in order, and then hung up."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)

    def __call__(self, _url: str, **_more: Any) -> Any:
        ours, theirs = socket.socketpair()
        with theirs:
            theirs.sendall(self.answers.pop(0).replace("\n", "\r\n").encode())
        with ours:
            response = http.client.HTTPResponse(ours)
            response.begin()
        return response


OK, PART = "HTTP/1.1 200 OK\n", "HTTP/1.1 206 Partial Content\n"


def test_the_length_of_a_chunked_body_is_not_what_a_header_says(place: Place) -> None:
    answer = f"{OK}Content-Length: 3\nTransfer-Encoding: chunked\n\n6\nabcdef\n0\n\n"
    place.fetch(read_source("http://host/a"), opener=Scripted(answer))
    assert place.content == b"abcdef"


@pytest.mark.parametrize(
    "headers",
    ["Content-Length: 6 ", "Content-Length: 6\nTransfer-Encoding: identity", "Content-Length: 6, 6"],
)
def test_a_length_in_any_form_is_heeded(place: Place, headers: str) -> None:
    answers = [f"{OK}{headers}\n\n{body}" for body in ("abc", "abcdef")]
    place.fetch(read_source("http://host/a"), opener=Scripted(*answers))
    assert place.content == b"abcdef"


@pytest.mark.parametrize(
    "headers",
    [
        "Content-Length: +6",
        "Content-Length: -6",
        "Content-Length: 0_6",
        "Content-Length: 5\nContent-Length: 6",
        "Transfer-Encoding: chunked ",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\nTransfer-Encoding: gzip",
        "Transfer-Encoding: gzip",
    ],
)
def test_what_ends_nobody_knows_where_is_refused(place: Place, headers: str) -> None:
    with pytest.raises(
        BesomError, match=r"the server answers (in a transfer coding|with a Content-Length) that"
    ):
        place.fetch(read_source("http://host/a"), opener=Scripted(f"{OK}{headers}\n\n6\nabcdef\n0\n\n"))
    assert place.names == []


FIRST = f'{OK}ETag: "1"\nLast-Modified: Mon\nContent-Length: 6\n\nabc'
ENDLESS = f'{OK}ETag: "1"\nTransfer-Encoding: chunked\n\n3\nabc\n'
REST = "Content-Length: 3\nContent-Range: bytes 3-5/6\n"


@pytest.mark.parametrize(
    ("first", "part", "used"),
    [
        (FIRST, f"{REST}\ndef", True),
        (FIRST, f'ETag: "1"\nLast-Modified: of this mirror\n{REST}\ndef', True),
        (FIRST, f"Last-Modified: Mon\n{REST}\ndef", True),
        (FIRST, f'ETag: W/"2"\n{REST}\nxyz', False),
        (FIRST, f"Last-Modified: Tue\n{REST}\nxyz", False),
        (ENDLESS, f"{REST}\ndef", True),
        (ENDLESS, "Content-Length: 3\nContent-Range: bytes 3-5/*\n\nd", False),
    ],
)
def test_a_part_goes_on_from_what_is_there_if_it_belongs_to_it(
    place: Place, first: str, part: str, used: bool
) -> None:
    opener = Scripted(first, f"{PART}{part}", f"{OK}Content-Length: 6\n\nABCDEF")
    place.fetch(read_source("http://host/a"), opener=opener)
    assert place.content == (b"abcdef" if used else b"ABCDEF")


@pytest.mark.parametrize("etag", ['"1"', '"2"'])
def test_a_whole_orphan_without_a_checksum_is_asked_for(
    mirror: Mirror, place: Place, xattrs: None, etag: str
) -> None:
    mirror.add("/a", CONTENT, etag=etag)
    source = read_source(f"{mirror.url}/a")
    place.leave(CONTENT[::-1], Origin(digest_of(source.url), '"1"', "", True, len(CONTENT)))
    with place.adopted() as one:
        place.go_on(one, source)
    assert place.content == (CONTENT[::-1] if etag == '"1"' else CONTENT)
    assert [one.headers["if-none-match"] for one in mirror.asked] == ['"1"']


def test_a_reset_is_tried_again(mirror: Mirror, place: Place) -> None:
    mirror.add("/a", CONTENT, etag='"1"', vices=[reset(100_000)])
    place.fetch(read_source(f"{mirror.url}/a"))
    assert place.content == CONTENT


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({}, "no validator"),
        ({"etag": 'W/"1"'}, "a weak one"),
        ({"modified": "Thu, 01 Jan 2099 00:00:00 GMT"}, "a date that is not strong"),
        ({"etag": '"1"', "ranges": False}, "a server without ranges"),
    ],
)
def test_without_a_strong_validator_it_begins_anew(
    mirror: Mirror, place: Place, more: dict[str, Any], why: str
) -> None:
    mirror.add("/a", CONTENT, vices=[truncated(100_000)], **more)
    place.fetch(read_source(f"{mirror.url}/a"))
    assert place.content == CONTENT
    assert bool(mirror.asked[1].range) == ("ranges" in more), why


def test_a_date_well_before_today_lets_it_resume(mirror: Mirror, place: Place) -> None:
    date = "Thu, 01 Jan 2015 00:00:00 GMT"
    mirror.add("/a", CONTENT, modified=date, vices=[truncated(100_000)])
    place.fetch(read_source(f"{mirror.url}/a"))
    assert place.content == CONTENT
    assert mirror.asked[1].headers["if-range"] == date


def test_a_file_that_changes_half_way_is_fetched_anew(mirror: Mirror, place: Place) -> None:
    other = CONTENT[::-1]

    def change() -> None:
        file.content, file.etag = other, '"2"'

    file = mirror.add("/a", CONTENT, etag='"1"', vices=[then(truncated(100_000), change)])
    place.fetch(read_source(f"{mirror.url}/a"))
    assert place.content == other


def test_a_server_that_splices_is_caught_by_the_checksum(mirror: Mirror, place: Place) -> None:
    """It says that the part belongs to the same file, which it does not: only the whole will do."""
    other = CONTENT[::-1]

    def change() -> None:
        file.content = other

    file = mirror.add("/a", CONTENT, etag='"1"', vices=[then(truncated(100_000), change)])
    checksum = read_checksum("sha256:" + hashlib.sha256(other).hexdigest())
    place.fetch(read_source(f"{mirror.url}/a", checksum=checksum))
    assert place.content == other
    assert [bool(one.range) for one in mirror.asked] == [False, True, False]


def test_an_orphan_is_gone_on_from(mirror: Mirror, place: Place, xattrs: None) -> None:
    file = mirror.add("/a", CONTENT, etag='"1"')
    source = read_source(f"{mirror.url}/a", checksum=read_checksum(file.checksum))
    with draft(place.fd, str(place.path), "other") as one:
        # What a killed transfer leaves is what one that is cut after so many bytes has written.
        cut = Patient()
        file.vices.append(then(truncated(300_000), cut.cut))
        with pytest.raises(Cut):
            Transfer(source, OPENER, cut).run(one)
        left = read_origin(one.fd)
    mirror.asked.clear()
    place.leave(CONTENT[:300_000], left)
    with place.adopted() as one:
        place.go_on(one, source)
    assert place.content == CONTENT
    assert [one.range for one in mirror.asked] == ["bytes=300000-"]
    assert place.names == ["file"]


@pytest.mark.parametrize("origin", [None, Origin("of another URL", '"1"', "", True, len(CONTENT))])
def test_a_strange_orphan_is_not(mirror: Mirror, place: Place, origin: Origin | None) -> None:
    mirror.add("/a", CONTENT, etag='"1"')
    place.leave(b"x" * 1000, origin)
    with place.adopted() as one:
        place.go_on(one, read_source(f"{mirror.url}/a"))
    assert place.content == CONTENT
    assert not mirror.asked[0].range


def test_one_304_says_that_nothing_changed(mirror: Mirror, place: Place) -> None:
    mirror.add("/a", CONTENT, etag='"1"')
    source = read_source(f"{mirror.url}/a")
    origin = place.fetch(source)
    assert origin
    assert place.fetch(source, origin) is None
    assert look(OPENER, source, origin).unchanged
    mirror.files["/a"].etag = '"2"'
    assert look(OPENER, source, origin).size == len(CONTENT)
    assert place.fetch(source, origin)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(mirror: Mirror, place: Place, status: int) -> None:
    mirror.add("/a", CONTENT, vices=[Status(status), Status(status, {"Retry-After": "7"})])
    place.fetch(read_source(f"{mirror.url}/a"))
    assert place.content == CONTENT
    assert 0.2 <= place.cutoff.pauses[0] <= 0.5
    assert place.cutoff.pauses[1] == 7


def test_retry_after_may_be_a_date(mirror: Mirror, place: Place) -> None:
    date = email.utils.formatdate(1_000_040, usegmt=True)
    mirror.add("/a", CONTENT, vices=[Status(503, {"Retry-After": date})])
    place.fetch(read_source(f"{mirror.url}/a"), now=lambda: 1_000_000.0)
    assert place.cutoff.pauses == [40]


@pytest.mark.parametrize(
    ("vices", "message", "tries"),
    [
        ([Status(503)] * 9, r"/a cannot be fetched: the server answers 503 \(3 times\)", 3),
        ([Status(503, {"Retry-After": "7200"})], "answers 503; try again in 2h", 1),
        ([Status(410)], "the server answers 410", 1),
        ([truncated(5)] * 9, "the connection ended after 5 of 640000 bytes", 3),
    ],
)
def test_in_the_end_it_gives_up(
    mirror: Mirror, place: Place, vices: list[Any], message: str, tries: int
) -> None:
    mirror.add("/a", CONTENT, vices=vices)
    with pytest.raises(BesomError, match=message):
        place.fetch(read_source(f"{mirror.url}/a"), retries=2)
    assert len(mirror.asked) == tries
    assert place.names == []


def test_a_server_that_promises_too_much_is_not_believed(mirror: Mirror, place: Place) -> None:
    mirror.add("/a", CONTENT, length=len(CONTENT) + 1)
    with pytest.raises(BesomError, match="ended after 640000 of 640001 bytes"):
        place.fetch(read_source(f"{mirror.url}/a"), retries=1)
    assert place.names == []


def test_a_server_that_promises_too_little_is_caught_by_the_checksum(mirror: Mirror, place: Place) -> None:
    file = mirror.add("/a", CONTENT, length=len(CONTENT) - 1)
    with pytest.raises(BesomError, match="has the checksum"):
        place.fetch(read_source(f"{mirror.url}/a", checksum=read_checksum(file.checksum)))
    assert place.names == []


def test_a_size_need_not_be_told(mirror: Mirror, place: Place) -> None:
    mirror.add("/a", CONTENT, length=-1)
    source = read_source(f"{mirror.url}/a")
    assert look(OPENER, source).size == -1
    place.fetch(source)
    assert place.content == CONTENT


def test_a_server_that_is_gone_is_said_to_be(place: Place) -> None:
    with serve() as gone:
        pass
    with pytest.raises(BesomError, match="cannot be fetched: Connection refused"):
        place.fetch(read_source(f"{gone.url}/a"), retries=0)


def test_a_cut_wakes_what_waits_for_the_server(mirror: Mirror, place: Place) -> None:
    until = threading.Event()
    mirror.add("/a", CONTENT, etag='"1"', vices=[stalled(1000, until)])
    came = threading.Event()
    errors: list[BaseException] = []

    def fetch() -> None:
        try:
            place.fetch(read_source(f"{mirror.url}/a"), moved=lambda done, total: came.set())
        except Cut as error:
            errors.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    assert came.wait(20)
    place.cutoff.cut()
    thread.join(15)
    alive = thread.is_alive()
    until.set()
    thread.join()
    assert not alive
    assert len(errors) == 1
    assert place.names == []


def test_headers_and_login_are_told_to_their_own_server_only(mirror: Mirror, place: Place) -> None:
    with serve() as other:
        mirror.add("/a", location=f"{other.url}/b")
        other.add("/b", location="/c")
        other.add("/c", CONTENT)
        place.fetch(read_source(f"{mirror.url}/a", headers={"X-Token": "s"}, username="u", login_first=True))
        assert mirror.asked[0].headers["x-token"] == "s"
        assert mirror.asked[0].headers["authorization"].startswith("Basic ")
        assert [one.path for one in other.asked] == ["/b", "/c"]
        for one in other.asked:
            assert not {"x-token", "authorization"} & set(one.headers)
    assert place.content == CONTENT


def test_a_login_is_sent_when_it_is_asked_for(mirror: Mirror, place: Place) -> None:
    mirror.add("/a", CONTENT, authorization="Basic dTo=")
    place.fetch(read_source(mirror.url.replace("//", "//u@") + "/a"))
    assert ["authorization" in one.headers for one in mirror.asked] == [False, True]
    mirror.asked.clear()
    place.fetch(read_source(f"{mirror.url}/a", username="u", login_first=True))
    assert len(mirror.asked) == 1
    with pytest.raises(BesomError, match="answers 401"):
        place.fetch(read_source(f"{mirror.url}/a", username="other"))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("/a", "too many redirects"),
        ("file:///etc/passwd", "redirects to file:///etc/passwd, which is no"),
    ],
)
def test_a_redirect_leads_nowhere_else(mirror: Mirror, place: Place, location: str, message: str) -> None:
    mirror.add("/a", location=location)
    with pytest.raises(BesomError, match=message):
        place.fetch(read_source(f"{mirror.url}/a"))
    assert place.names == []


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("http://example.com/a", "which is not encrypted"),
        ("http://[x/", r"redirects to http://\[x/, which is no"),
    ],
)
def test_https_leads_to_no_http(place: Place, location: str, message: str) -> None:
    def opener(url: str, **_more: Any) -> Any:
        import io
        from email.message import Message
        from urllib.error import HTTPError

        told = Message()
        told["Location"] = location
        raise HTTPError(url, 308, "Found", told, io.BytesIO())

    with pytest.raises(BesomError, match=message):
        place.fetch(read_source("https://example.com/a"), opener=opener)


def test_a_login_that_is_no_text_is_refused() -> None:
    with pytest.raises(UsageError, match="the user name or password is no text"):
        read_source("http://host/", username="\ud800")


@pytest.mark.parametrize("value", ["sha256:" + "a" * 63, "sha256:" + "g" * 64, "a" * 64, None, "crc:00", ""])
def test_a_checksum_that_is_none(value: Any) -> None:
    with pytest.raises(UsageError, match="is no checksum; write sha256"):
        read_checksum(value)


def test_a_weak_checksum_has_to_be_allowed() -> None:
    weak = "md5:" + "a" * 32
    with pytest.raises(UsageError, match="md5 can be forged"):
        read_checksum(weak)
    assert str(read_checksum(weak, allow_weak=True)) == weak
    assert str(read_checksum("SHA512:" + "A" * 128)) == "sha512:" + "a" * 128


@pytest.mark.parametrize("headers", [{"X": "a\r\nY: b"}, {"X Y": "a"}, {"": "a"}, {"X": "ä"}, ["X"]])
def test_a_header_cannot_break_out_of_its_line(headers: Any) -> None:
    with pytest.raises(UsageError, match="headers: ") as error:
        read_headers(headers)
    assert "Y: b" not in str(error.value)


def test_an_origin_vouches_for_the_very_file_only(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"content")
    with file.open("r+b") as stream:
        origin = Origin("x").of_file(stream.fileno(), "sha256:00")
        assert origin.vouches(os.fstat(stream.fileno()))
    st = file.stat()
    file.chmod(0o666)
    assert not origin.vouches(file.stat())
    file.chmod(0o644)
    os.utime(file, ns=(0, st.st_mtime_ns + 1))
    assert not origin.vouches(file.stat())
    os.utime(file, ns=(0, st.st_mtime_ns))
    assert origin.vouches(file.stat())


@pytest.mark.root
def test_an_origin_vouches_for_another_s_file_only_where_that_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    os.chown(file, 1, -1)
    with file.open("r+b") as stream:
        origin = Origin("x").of_file(stream.fileno(), "sha256:00")
    assert [origin.vouches(file.stat(), owner) for owner in (None, 1, 2)] == [False, True, False]


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"source": 1}', b"\xff", b"[" * 2000], ids=lambda raw: raw[:3])
def test_an_origin_that_nobody_wrote_is_none(tmp_path: Path, xattrs: None, raw: bytes) -> None:
    file = tmp_path / "file"
    file.touch()
    with file.open("r+b") as stream:
        os.setxattr(stream.fileno(), "user.besom.origin", raw)
        assert read_origin(stream.fileno()) is None


@pytest.mark.parametrize(
    "answer", [b"H" * 60_000 + b"\r\n\r\n", b"HTTP/1.1 302 F\r\nLocation: x:" + b"/" * 60_000 + b"\r\n\r\n"]
)
def test_a_server_says_what_it_likes_and_only_the_beginning_is_told(place: Place, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            line, _address = listener.accept()
            with line:
                line.sendall(answer)
                line.shutdown(socket.SHUT_WR)
                while line.recv(65536):
                    pass

        server = threading.Thread(target=serve)
        server.start()
        started = time.process_time()
        with pytest.raises(BesomError) as caught:
            place.fetch(read_source(f"http://127.0.0.1:{listener.getsockname()[1]}/a"), retries=0)
        assert len(str(caught.value)) < 1000
        assert time.process_time() - started < 0.5
        server.join()
