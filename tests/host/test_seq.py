# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Events for a Seq server: they arrive once it is there, and a server that is not costs nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from besom_host import log, seq
from besom_host.config import Config
from besom_host.seq import Seq

from .host import PATIENCE_S, Host
from .told import check


class Server:
    """What a Seq server would get: (path, headers, lines). statuses: its next answers, and then 201."""

    def __init__(self, port: int = 0) -> None:
        self.got: queue.Queue[tuple[str, dict[str, str], list[str]]] = queue.Queue()
        self.statuses: list[int] = []
        self.refused: queue.Queue[int] = queue.Queue()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                """Say nothing."""

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = outer.statuses.pop(0) if outer.statuses else 201
                if status == 201:
                    outer.got.put((self.path, dict(self.headers), body.decode().split("\n")[:-1]))
                else:
                    outer.refused.put(status)
                self.send_response(status)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lines(self, count: int) -> list[str]:
        """The next lines, so many of them."""
        found: list[str] = []
        while len(found) < count:
            found += self.got.get(timeout=PATIENCE_S)[2]
        return found

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server()) as one:
        yield one


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seq, "LINGER_S", 0.01)
    monkeypatch.setattr(seq, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(seq, "LONGEST_PAUSE_S", 0.05)


class Told(queue.Queue[tuple[str, dict[str, Any]]]):
    def __call__(self, event: str, **fields: Any) -> None:
        self.put((event, fields))

    def next(self) -> tuple[str, dict[str, Any]]:
        return self.get(timeout=PATIENCE_S)


def one(server_url: str, path: Path, told: Told | None = None, key: str = "") -> Seq:
    return Seq(server_url, key, str(path / "seq"), told or Told())


def test_lines_travel_together_with_the_key(server: Server, tmp_path: Path) -> None:
    shipper = one(server.url + "/", tmp_path, key="k3y")
    for number in range(50):
        shipper.write(f'{{"@t":"{number}"}}')
    shipper.close(PATIENCE_S)
    path, headers, lines = server.got.get(timeout=PATIENCE_S)
    assert (path, headers["X-Seq-ApiKey"], headers["Content-Type"]) == (
        *("/ingest/clef", "k3y"),
        "application/vnd.serilog.clef",
    )
    assert lines == [f'{{"@t":"{number}"}}' for number in range(50)]
    assert os.listdir(tmp_path / "seq") == []


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("status", [200, 302, 401, 429, 503])
def test_what_is_not_accepted_is_sent_again_and_that_is_told_once(
    server: Server, tmp_path: Path, status: int
) -> None:
    # 200 is what a login page in between answers.
    server.statuses = [status] * 4
    told = Told()
    shipper = one(server.url, tmp_path, told)
    shipper.write("{}")
    assert server.lines(1) == ["{}"]
    event, fields = told.next()
    assert (event, fields["reason"]) == ("seq_failed", f"the answer is {status} instead of 201")
    assert told.next() == ("seq_recovered", {})
    shipper.close(PATIENCE_S)
    assert told.empty()


@pytest.mark.usefixtures("quick")
def test_what_the_server_will_never_take_is_counted_and_stops_nothing(server: Server, tmp_path: Path) -> None:
    server.statuses = [400]
    told = Told()
    shipper = one(server.url, tmp_path, told)
    shipper.write("{}")
    event, fields = told.next()
    assert (event, fields["events"]) == ("seq_dropped", 1)
    shipper.write('{"a":1}')
    assert server.lines(1) == ['{"a":1}']
    shipper.close(PATIENCE_S)


def test_what_one_process_could_not_send_the_next_does(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        told = Told()
        shipper = one(f"http://127.0.0.1:{port}", tmp_path, told)
        shipper.write("{}")
        assert told.next()[0] == "seq_failed"
        shipper.write('{"a":1}')
        shipper.close(PATIENCE_S)  # returns at once: it is known to be away
    # Half a line of a writer that was killed.
    (tmp_path / "seq/00000000000000000001-1.clef").write_text('{"b":2}\n{"c"')
    with contextlib.closing(Server(port)) as server:
        shipper = one(server.url, tmp_path)
        assert server.lines(3) == ['{"b":2}', "{}", '{"a":1}']
        shipper.close(PATIENCE_S)
    assert os.listdir(tmp_path / "seq") == []


@pytest.mark.usefixtures("quick")
def test_the_buffer_is_bounded_and_what_is_dropped_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seq, "FILE_BYTES", 1000)
    monkeypatch.setattr(seq, "BUFFER_BYTES", 4000)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        told = Told()
        shipper = one(f"http://127.0.0.1:{port}", tmp_path, told)
        line = "x" * 99
        for _ in range(200):
            shipper.write(line)
        kept = sum(path.stat().st_size for path in (tmp_path / "seq").iterdir())
        # One may be on its way, and is not taken away then.
        assert kept <= 5 * 1000
        # Not only when the server is there again, which may be never.
        seen = [told.next(), told.next()]
        assert sorted(event for event, _ in seen) == ["seq_dropped", "seq_failed"]
    with contextlib.closing(Server(port)) as server:
        while seen[-1][0] != "seq_recovered":
            seen.append(told.next())
        shipper.close(PATIENCE_S)
        while not told.empty():
            seen.append(told.next())
        sent = 0
        while not server.got.empty():
            sent += len(server.got.get()[2])
        dropped = [fields["events"] for event, fields in seen if event == "seq_dropped"]
        assert len(dropped) == 2
        assert sum(dropped) + sent == 200


@pytest.mark.usefixtures("quick")
def test_what_is_told_of_lost_events_is_not_told_of_for_ever(server: Server, tmp_path: Path) -> None:
    server.statuses = [400, 400]
    told = Told()
    shipper = one(server.url, tmp_path, told)

    def tell(event: str, **fields: Any) -> None:
        told(event, **fields)
        shipper.write(event)

    shipper.tell = tell
    shipper.write("first")
    # The second is what was told of the first.
    for _ in range(2):
        server.refused.get(timeout=PATIENCE_S)
    shipper.write("last")
    assert server.lines(1) == ["last"]
    assert server.lines(1) == ["seq_dropped"]
    shipper.close(PATIENCE_S)
    assert [told.next()[1]["events"] for _ in range(2)] == [1, 1]
    assert told.empty()


def test_half_a_line_of_a_full_disk_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    shipper = one("http://127.0.0.1:1", tmp_path, told)
    shipper.write("first")
    whole = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: whole(fd, data[:3]))
        shipper.write("second")
    shipper.write("third")
    shipper.close(0)
    found = sorted((tmp_path / "seq").iterdir())
    assert "".join(file.read_text() for file in found) == "first\nthird\n"
    assert (
        "seq_dropped",
        {"events": 1, "reason": f"the buffer cannot be written: {os.strerror(errno.ENOSPC)}"},
    ) in told.queue


def test_short_commands_lose_nothing_while_the_server_is_away(tmp_path: Path) -> None:
    for _ in range(50):
        shipper = one("http://127.0.0.1:1", tmp_path)
        shipper.write("{}")
        shipper.close(0)
    assert len(list((tmp_path / "seq").iterdir())) == 50


def test_a_thread_that_is_told_to_stop_at_any_moment_does(tmp_path: Path) -> None:
    shipper = one("http://127.0.0.1:1", tmp_path)
    clear = shipper._news.clear

    def told_just_then() -> None:
        shipper.close(0)
        clear()

    shipper._news.clear = told_just_then  # type: ignore[method-assign]
    shipper._thread.join(PATIENCE_S)
    assert not shipper._thread.is_alive()


def test_a_directory_that_cannot_be_written_loses_events_and_nothing_else(
    server: Server, tmp_path: Path
) -> None:
    shipper = one(server.url, tmp_path)
    (tmp_path / "seq").rmdir()
    shipper.write("{}")
    shipper.close(PATIENCE_S)
    assert server.got.empty()


def test_a_daemon_sends_its_events_and_hears_every_signal_at_once(host: Host, server: Server) -> None:
    host.configure(log={"seq_url": server.url, "seq_api_key": "k3y-of-mine"})
    host.fill(5)
    pid = host.start()
    # Signals go to the thread that waits for them, however many threads there are.
    for runs in range(2, 7):
        os.kill(pid, signal.SIGUSR1)
        host.until(lambda now, runs=runs: now["runs"] >= runs)
    assert host.daemon("stop").status == 0
    found: list[str] = []
    while "daemon_stopped" not in "".join(found):
        found += [check(line)["event"] for line in server.lines(1)]
    assert found.count("run_began") == 6
    assert "prune_done" in found
    assert "k3y-of-mine" not in host.log


def test_a_server_that_never_answers_holds_nothing_up(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host.configure(log={"seq_url": f"http://127.0.0.1:{silent.getsockname()[1]}"})
        host.fill(5)
        began = time.monotonic()
        done = subprocess.run(
            host.command("housekeep"), env=host.environment(), capture_output=True, text=True, check=False
        )
        # Its last words have two seconds; the silence has no end.
        assert time.monotonic() - began < PATIENCE_S
    assert (done.returncode, done.stderr) == (0, "")
    assert len(host.names()) == 3
    assert len(os.listdir(host.state_dir / "seq")) == 1


def test_a_key_is_read_from_a_file_and_a_file_that_cannot_be_read_is_told(host: Host, server: Server) -> None:
    key = host.path / "seq.key"
    key.write_text("k3y\n")
    host.configure(log={"seq_url": server.url, "seq_api_key_file": str(key)})
    assert host.besom("housekeep").status == 0
    assert server.got.get(timeout=PATIENCE_S)[1]["X-Seq-ApiKey"] == "k3y"
    key.unlink()
    done = host.besom("housekeep")
    assert done.status == 0
    assert f"Seq gets no events: {key}: No such file or directory." in done.stderr


def test_whatever_keeps_seq_away_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(state_dir: Path, key: str = "") -> str:
        config = Config(seq_url="http://127.0.0.1:1", seq_api_key_file=key, state_dir=str(state_dir))
        (sentence,) = log.configure(config, once=True)
        log.close()
        assert sentence.startswith("Seq gets no events: ")
        return sentence

    assert refusal(tmp_path, str(tmp_path)).endswith(f"{tmp_path}: Is a directory.")
    # Others could put there what they want.
    others = tmp_path / "others"
    others.mkdir()
    others.chmod(0o777)
    assert "that only its user can write" in refusal(others)
    (tmp_path / "seq").symlink_to(others)
    assert "that only its user can write" in refusal(tmp_path)
    assert os.listdir(others) == []

    def no_more(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", no_more)
    assert "can't start new thread" in refusal(tmp_path / "mine")


def test_the_state_directory_is_made_as_the_daemon_wants_it(host: Host) -> None:
    host.configure(log={"seq_url": "http://127.0.0.1:1"})
    before = os.umask(0o002)
    try:
        done = host.besom("housekeep")
    finally:
        os.umask(before)
    assert (done.status, done.stderr) == (0, "")


def test_what_lies_in_the_place_of_a_new_file_holds_nothing_up(tmp_path: Path) -> None:
    (tmp_path / "seq").mkdir(mode=0o755)
    os.mkfifo(tmp_path / f"seq/.{os.getpid()}.new")
    shipper = one("http://127.0.0.1:1", tmp_path)
    shipper.write("{}")
    shipper.close(0)
    assert [file.read_text() for file in (tmp_path / "seq").iterdir()] == ["{}\n"]
