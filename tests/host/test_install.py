# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""besom install as a person and a script meet it: real processes, a real server, real signals."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from besom.errors import UsageError
from besom.shutdown import Shutdown
from besom_host.cli import build_parser
from besom_host.install_command import install_command

from .conftest import COMMAND, Done, Held
from .host import Host
from .mirror import Mirror, serve, stalled

Besom = Callable[..., Done]


def app(version: str, size: int = 10) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as archive:
        for name, content in {"version": version.encode(), "data": bytes(size)}.items():
            info = tarfile.TarInfo(f"app-{version}/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as one:
        yield one


@pytest.fixture
def into(tmp_path: Path) -> Path:
    path = tmp_path / "opt"
    path.mkdir()
    return path


def test_the_life_of_a_tree(besom: Besom, mirror: Mirror, into: Path) -> None:
    place = ("--into", into, "--name", "app", "--current", "live")
    for version in ("1", "2"):
        file = mirror.add("/app.tar.xz", app(version))
        words = (f"{mirror.url}/app.tar.xz", *place, "--checksum", file.checksum, "--strip", "--keep", "1")
        dry = besom("install", *words, "--dry-run")
        done = besom("install", *words)
        again = besom("install", *words)
        assert [one.status for one in (dry, done, again)] == [0, 0, 0], done.stderr
        assert [one.report["changed"] for one in (dry, done, again)] == [True, True, False]
        assert (
            dry.report["action"] == done.report["action"] == ("upgraded" if version == "2" else "installed")
        )
        assert (into / "live/version").read_text() == version
    assert mirror.counts["GET"] == 2
    (old,) = done.report["old_versions"]
    assert (into / old / "version").read_text() == "1"
    done = besom("install", "--absent", *place)
    assert (done.status, done.report["action"], done.report["removed"]["entries"]) == (0, "removed", 2)
    assert list(into.iterdir()) == []


def test_what_it_says(mirror: Mirror, into: Path) -> None:
    mirror.add("/app.tar.xz", app("1"), etag='"1"')
    words = [COMMAND, "install", f"{mirror.url}/app.tar.xz", "--into", into, "--name", "app"]

    def said(*more: str) -> tuple[str, str]:
        done = subprocess.run([*words, *more], capture_output=True, text=True, check=True)
        return done.stdout, done.stderr

    assert said("--dry-run") == (f"Would have installed {into}/app.\n", "")
    assert said() == (f"Installed {into}/app.\n", "")
    assert said() == ("", "")
    assert said("-v") == (f"{into}/app is as it should be.\n", "")
    mirror.add("/app.tar.xz", app("2"), head=405)
    assert said("--current", "live") == (
        f"Upgraded {into}/app; switched the link; removed 1 old version.\n",
        f"besom: warning: The size of {mirror.url}/app.tar.xz is unknown, so its space is not checked.\n",
    )


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        # What the engine refuses is proven in its own tests; here each status, and what the options say.
        (["URL", "--header", "secret"], 2, "--header: write it as NAME: VALUE"),
        ([b"http://user:/secret@h/\xff"], 2, "is not an http or https URL"),
        (["URL", "--reserve", "99.99%"], 3, "Insufficient disk space"),
        (["URL", "--checksum", "sha256:" + "0" * 64], 1, "has the checksum sha256:"),
        (["URL", "--max-size", "10K"], 1, "unpacks to more than 10.0 KiB; raise max_size"),
        (["http://127.0.0.1:1/x", "--dry-run"], 0, "unknown"),
    ],
)
def test_how_it_fails(
    besom: Besom, mirror: Mirror, into: Path, words: list[str | bytes], status: int, said: str
) -> None:
    mirror.add("/app.tar.xz", app("1", size=20_000))
    url = f"{mirror.url}/app.tar.xz"
    done = besom(
        "install", "--into", into, "--name", "app", *(url if word == "URL" else word for word in words)
    )
    assert done.status == status, done.stderr
    assert said in done.stderr
    assert "secret" not in done.stderr
    assert list(into.iterdir()) == []
    if status:
        assert done.report["error"] in done.stderr


def test_it_works_where_the_encoding_is_ascii(mirror: Mirror, into: Path) -> None:
    mirror.add("/app.tar.xz", app("é"))
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ["install", f"{mirror.url}/app.tar.xz", "--into", into, "--name", "ö", "-v"]
    done = subprocess.run([COMMAND, *words], env={**os.environ, **locale}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Installed " + os.fsencode(into) + rb"/\xf6.")
    assert (into / "ö/app-é/version").read_text() == "é"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checksum", "md5:" + "0" * 32, "http://h/x"], "md5 can be forged; give a sha256"),
        (["--absent", "http://h/x"], "--absent needs no URL"),
        ([], "give a URL, or --absent"),
        (["--keep", "-1", "--absent"], "--keep: '-1' is not a whole number"),
        (["--max-entries", "0", "--absent"], "--max-entries: '0' is not a whole number"),
    ],
)
def test_options_that_do_not_go_together_are_refused(into: Path, words: list[str], said: str) -> None:
    """In this process, where a run takes no time."""
    options = build_parser().parse_args(["install", "--into", str(into), "--name", "app", *words])
    with pytest.raises(UsageError, match=re.escape(said)):
        install_command(options, Shutdown())
    assert list(into.iterdir()) == []


def test_a_held_directory_fails_with_75_and_names_the_holder(
    besom: Besom, mirror: Mirror, into: Path, hold: Callable[[Path], Held]
) -> None:
    mirror.add("/app.tar.xz", app("1"))
    hold(into)
    words = (f"{mirror.url}/app.tar.xz", "--into", into, "--name", "app", "--lock-timeout", "0")
    done = besom("install", *words)
    assert done.status == 75
    assert "is locked by pid" in done.stderr
    assert "raise --lock-timeout" in done.stderr
    assert list(into.iterdir()) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_transfer_that_has_stalled(
    mirror: Mirror, into: Path, signum: signal.Signals
) -> None:
    release = threading.Event()
    mirror.add("/app.tar.xz", app("1"), vices=[stalled(50, release)])
    words = ["install", f"{mirror.url}/app.tar.xz", "--into", into, "--name", "app"]
    process = subprocess.Popen(
        [COMMAND, "--json", *words, "--timeout", "1h"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    mirror.wait_for("/app.tar.xz")
    process.send_signal(signum)
    output, errors = process.communicate(timeout=60)
    release.set()
    assert process.returncode == 128 + signum
    assert "Interrupted." in errors
    assert "Traceback" not in errors
    assert json.loads(output)["status"] == 128 + signum
    assert list(into.iterdir()) == []


def test_a_signal_ends_the_wait_for_a_server_that_says_nothing(into: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/app.tar.xz"
        words = ["install", url, "--into", into, "--name", "app", "--timeout", "1h"]
        process = subprocess.Popen([COMMAND, *words], stderr=subprocess.PIPE, text=True)
        connection, _address = silent.accept()
        with connection:
            assert connection.recv(4) == b"HEAD"
            process.terminate()
            _output, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.startswith("besom: Interrupted. SIGTERM came while asking for http://127.0.0.1")
    assert list(into.iterdir()) == []


def test_a_configured_store_keeps_the_archive_for_others(mirror: Mirror, host: Host) -> None:
    host.configure(stores=[{"name": "gems", "path": str(host.store), "layout": "files", "max_size": "1G"}])
    file = mirror.add("/app.tar.xz", app("1"))
    common = (f"{mirror.url}/app.tar.xz", "--checksum", file.checksum, "--store", "gems", "--strip")
    for name in ("one", "two"):
        (host.path / name).mkdir()
        done = host.besom("install", *common, "--into", host.path / name, "--name", "app", "--mode", "0700")
        assert (done.status, done["action"]) == (0, "installed"), done.stderr
        assert stat.S_IMODE((host.path / name / "app").stat().st_mode) == 0o700
    assert mirror.counts["GET"] == 1
    assert host.names() == [file.checksum.replace(":", "-")]
    refused = host.besom("install", *common, "--into", host.path / "one", "--name", "b", "--owner", "nobody!")
    assert (refused.status, refused.stderr) == (
        2,
        "besom: --owner: this host knows nobody named 'nobody!'.\n",
    )


def test_two_at_once_fetch_it_once(mirror: Mirror, into: Path) -> None:
    """The second waits for the first, and finds that there is nothing left to do; or it waits in vain."""
    release = threading.Event()
    mirror.add("/app.tar.xz", app("1"), etag='"1"', vices=[stalled(50, release)])
    words = [COMMAND, "--json", "install", f"{mirror.url}/app.tar.xz", "--into", into, "--name", "app"]
    first = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    mirror.wait_for("/app.tar.xz")
    refused = subprocess.run([*words, "--lock-timeout", "0"], capture_output=True, text=True, check=False)
    assert refused.returncode == 75
    assert f"opt/app is being refreshed by pid {first.pid}" in refused.stderr
    second = subprocess.Popen([*words, "--lock-timeout", "5m"], stdout=subprocess.PIPE, text=True)
    mirror.wait_for("/app.tar.xz", 3, "HEAD")
    release.set()
    reports = [json.loads(one.communicate(timeout=120)[0]) for one in (first, second)]
    assert [one.returncode for one in (first, second)] == [0, 0]
    assert [report["action"] for report in reports] == ["installed", ""]
    assert mirror.counts["GET"] == 1
    assert sorted(path.name for path in into.iterdir()) == ["app"]


def test_memory_does_not_grow_with_the_archive(mirror: Mirror, into: Path) -> None:
    """For 64 MiB in 10 KB the process needs about as much as for nothing."""

    def most(content: bytes, name: str) -> int:
        mirror.add("/app.tar.xz", content)
        words = ["install", f"{mirror.url}/app.tar.xz", "--into", str(into), "--name", name]
        code = (
            "import sys; from besom_host.cli import main; status = main(sys.argv[1:]); "
            "print(open('/proc/self/status').read()); sys.exit(status)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        return int(done.stdout.partition("VmHWM:")[2].split()[0])

    small = most(app("1"), "small")
    assert most(app("1", size=64 * 1024**2), "large") < small + 24 * 1024
    assert (into / "large/app-1/data").stat().st_size == 64 * 1024**2
