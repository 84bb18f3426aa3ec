# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""disk_preflight through the real ansible-core, against real file systems and a real web server."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from .play import Play, Result
from .snapshot import snapshot

MIB = 1024**2
# More than any disk: so the message is the same wherever the test runs.
HUGE = 7 * 1024**5


def human(size: int) -> str:
    """An independent format of sizes, for the messages."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1023.95:
            return f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} EiB"


class Artifacts(BaseHTTPRequestHandler):
    """Every path is an artifact of 150 MiB, of which only headers are ever asked for."""

    asked: list[str]

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def _note(self) -> None:
        self.server.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())

    def do_HEAD(self) -> None:
        self._note()
        self.send_response(200 if self.path in ("/head", "/unknown", "/with-token") else 405)
        if self.path == "/head" or self.headers.get("X-Token") == "letmein":
            self.send_header("Content-Length", str(150 * MIB))
        self.end_headers()

    def do_GET(self) -> None:
        self._note()
        if self.path == "/range":
            self.send_response(206)
            self.send_header("Content-Range", f"bytes 0-0/{150 * MIB}")
            self.send_header("Content-Length", "1")
            self.end_headers()
            self.wfile.write(b"x")
        else:
            self.send_response(200 if self.path in ("/unknown", "/with-token") else 404)
            self.end_headers()


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Artifacts)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def disk() -> Path:
    """A path that does not exist, two levels below one that does."""
    return Path("/tmp/besom-test-not-there/yet")


@pytest.fixture(scope="module")
def results(play: Play, server: ThreadingHTTPServer, disk: Path) -> dict[str, Result]:
    web = f"http://127.0.0.1:{server.server_port}"
    (play.base / "here/one").mkdir(parents=True)
    (play.base / "here/one/file").write_bytes(b"x")

    def need(**values: object) -> dict[str, object]:
        return {"needs": [{"path": str(disk), **values}]}

    def url(path: str, **values: object) -> dict[str, object]:
        return {"url": web + path, "path": str(disk), **values}

    cases = {
        "enough": need(size="1K", inodes=1),
        "short": need(size=HUGE),
        "reserve": {**need(size="1K"), "reserve": "5%"},
        "reserve-short": {**need(size="1K"), "reserve": "99.9%"},
        "inodes-short": need(inodes=10**15),
        "two-paths": {
            "needs": [{"path": "/tmp", "size": "4G"}, {"path": str(disk), "size": "4G", "inodes": 7}]
        },
        "file": {"needs": [{"path": "{here}/file/below", "size": "1K"}]},
        "head": {"urls": [url("/head"), url("/head", extract=False)]},
        "range": {"urls": [url("/range")], "expand": 0.5},
        "url-short": {"urls": [url("/head")], **need(size=HUGE)},
        "download-short": {"urls": [url("/head", extract=False)], **need(size=HUGE)},
        "unknown": {"urls": [url("/unknown?secret=1"), url("/unknown")], **need(size="1K")},
        "unknown-only": {"urls": [url("/unknown")]},
        "unknown-fails": {"urls": [url("/unknown?secret=1")], "on_unknown": "fail"},
        "gone": {"urls": [url("/gone")]},
        "no-server": {"urls": [{"url": "http://127.0.0.1:1/x", "path": str(disk)}]},
        "token": {"urls": [url("/with-token")], "headers": {"X-Token": "letmein"}},
    }
    for name, args in cases.items():
        play.add(f"one/{name}", "disk_preflight", args, check=name in ("short", "head"))
    before = snapshot(str(play.base / "here/one"))
    found = {name.partition("/")[2]: result for (_, name), result in play.run().items()}
    assert all(result.tree == before for result in found.values())
    return found


def one(result: Result) -> dict[str, object]:
    (figures,) = result["file_systems"]
    return dict(figures)


def test_it_never_reports_a_change(results: dict[str, Result], disk: Path) -> None:
    assert {result["changed"] for result in results.values()} == {False}
    assert not disk.parent.exists()


def test_enough_room_passes(results: dict[str, Result]) -> None:
    result = results["enough"]
    assert result.status == "ok"
    assert result.msg == "There is enough space."
    assert result["sufficient"] is True
    st = os.statvfs("/tmp")
    figures = one(result)
    assert figures["total_bytes"] == st.f_blocks * st.f_frsize
    assert (figures["required_bytes"], figures["inodes_required"]) == (1024, 1)
    assert (figures["short_bytes"], figures["inodes_short"], figures["sufficient"]) == (0, 0, True)


def test_a_path_that_does_not_exist_is_judged_by_its_first_existing_parent(
    results: dict[str, Result],
) -> None:
    st = os.stat("/tmp")
    assert one(results["enough"])["device"] == f"{os.major(st.st_dev)}:{os.minor(st.st_dev)}"
    assert results["file"].status == "ok"


def test_too_little_room_fails_and_says_how_much_more_is_needed(
    results: dict[str, Result], disk: Path
) -> None:
    result = results["short"]
    figures = one(result)
    assert result.status == "failed"
    assert result["sufficient"] is False
    available = int(str(figures["available_bytes"]))
    assert figures["short_bytes"] == HUGE - available
    assert result.msg == (
        f"Insufficient disk space on {disk}: required 7.0 PiB, available {human(available)}, "
        f"{human(HUGE - available)} more needed. Free up space or choose another location."
    )


def test_the_message_names_download_and_extract(results: dict[str, Result]) -> None:
    assert ": required 7.0 PiB (download + extract), available " in results["url-short"].msg
    assert ": required 7.0 PiB (download), available " in results["download-short"].msg


def test_a_reserve_in_percent_is_of_the_whole_file_system(results: dict[str, Result], disk: Path) -> None:
    figures = one(results["reserve"])
    assert results["reserve"].status == "ok"
    assert figures["reserve_bytes"] == int(str(figures["total_bytes"])) * 5 // 100
    short = results["reserve-short"]
    assert short.status == "failed"
    reserve = human(int(str(one(short)["reserve_bytes"])))
    assert f"on {disk}: required 1.0 KiB and {reserve} in reserve, available " in short.msg


def test_too_few_inodes_fail(results: dict[str, Result], disk: Path) -> None:
    result = results["inodes-short"]
    available = one(result)["inodes_available"]
    if available is None:
        pytest.skip("the file system of /tmp has no limit on inodes")
    assert result.status == "failed"
    assert result.msg == (
        f"Insufficient inodes on {disk}: required {10**15}, available {available}, "
        f"{10**15 - int(str(available))} more needed. Remove files or choose another location."
    )


def test_two_paths_on_one_file_system_add_up(results: dict[str, Result]) -> None:
    figures = one(results["two-paths"])
    assert figures["required_bytes"] == 8 * 1024**3
    assert figures["inodes_required"] == 7
    assert figures["path"] == "/tmp"


def test_a_url_needs_its_download_and_expand_times_it(
    results: dict[str, Result], server: ThreadingHTTPServer
) -> None:
    assert one(results["head"])["required_bytes"] == (150 + 3 * 150 + 150) * MIB
    assert "GET /head bytes=0-0" not in server.asked  # type: ignore[attr-defined]


def test_a_server_without_head_is_asked_for_one_byte(
    results: dict[str, Result], server: ThreadingHTTPServer
) -> None:
    assert one(results["range"])["required_bytes"] == (150 + 75) * MIB
    asked = [line for line in server.asked if "/range" in line]  # type: ignore[attr-defined]
    assert asked == ["HEAD /range", "GET /range bytes=0-0"]


def test_headers_reach_the_server(results: dict[str, Result]) -> None:
    assert one(results["token"])["required_bytes"] == 600 * MIB


@pytest.mark.parametrize("name", ["unknown", "unknown-only", "gone", "no-server"])
def test_an_unknown_size_is_left_out_with_a_warning(results: dict[str, Result], name: str) -> None:
    result = results[name]
    assert result.status == "ok"
    assert one(result)["required_bytes"] == (1024 if name == "unknown" else 0)
    assert all(" is unknown, so its space is not checked." in warning for warning in result["warnings"])
    assert "secret" not in str(result["warnings"])


def test_an_unknown_size_fails_where_that_is_asked_for(
    results: dict[str, Result], server: ThreadingHTTPServer
) -> None:
    result = results["unknown-fails"]
    assert result.status == "failed"
    assert result.msg == (
        f"The size of http://127.0.0.1:{server.server_port}/unknown is unknown; "
        "allow that with on_unknown: warn."
    )


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs needs root")
def test_the_message_word_for_word(
    tmp_path: Path, server: ThreadingHTTPServer, request: pytest.FixtureRequest
) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=312m,nr_inodes=64", "tmpfs", tmp_path], check=True)
    request.addfinalizer(lambda: subprocess.run(["umount", tmp_path], check=True))
    data = tmp_path / "data"
    url = f"http://127.0.0.1:{server.server_port}/head"
    play = Play(tmp_path.with_name(tmp_path.name + "-play"))
    play.add("one/run", "disk_preflight", {"urls": [{"url": url, "path": str(data)}]})
    (result,) = play.run().values()
    assert result.msg == (
        f"Insufficient disk space on {data}: required 600.0 MiB (download + extract), "
        "available 312.0 MiB, 288.0 MiB more needed. Free up space or choose another location."
    )
