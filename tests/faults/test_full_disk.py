# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""At 100 % of bytes, and at 100 % of inodes, besom works: it needs no room to make room.

What it cannot write meanwhile (log, metrics, status) is named in a warning, and the work goes on.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import subprocess
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Callable
from unittest.mock import patch

import pytest
import yaml
from inotify_simple import INotify, flags

from besom import session_removal
from besom.run import Run
from besom_host import cycle
from besom_host.config import read
from besom_host.state import StateDir

from ..host.conftest import COMMAND, Done, Mount
from ..host.host import PATIENCE_S, Host, Process
from ..host.hostile import age, make_plain
from .conftest import Tried
from .matrix import run
from .operations import make_house, prune_entries

pytestmark = pytest.mark.root

Besom = Callable[..., Done]


@pytest.fixture(params=["tmpfs bytes", "tmpfs inodes", "ext4 bytes", "ext4 inodes"])
def what(request: pytest.FixtureRequest, tried: Tried) -> str:
    """The file system, and what it runs out of."""
    tried("runs on a full disk")
    return str(request.param)


@pytest.fixture
def empty(what: str, tmp_path: Path, mount: Mount, full_image: Callable[..., Path]) -> Path:
    """A small file system with nothing on it."""
    if what.startswith("ext4"):
        return full_image("-N", "2000" if what == "ext4 bytes" else "128")
    limit = "size=4m" if what == "tmpfs bytes" else "size=64m,nr_inodes=256"
    return mount(tmp_path / "disk", "-t", "tmpfs", "-o", limit, "tmpfs")


@pytest.fixture
def disk(what: str, empty: Path) -> Path:
    """A file system with stores, a temp area and a state directory on it, and room for nothing more."""
    top = empty
    for number in range(4):
        make_plain(top / f"area/.temp-{number}")
    for number in range(8):
        directory = top / f"store/d{number}"
        directory.mkdir(parents=True)
        (directory / "blob").write_bytes(os.urandom(65536))
    (top / "sessions").mkdir()
    for number in range(4):
        (top / f"sessions/{number}.json").write_text(json.dumps({"created_at": number + 1}))
        (top / f"sessions/{number}").write_bytes(bytes(1024))
    for name in ("state", "told"):
        (top / name).mkdir(mode=0o755)
    for name in ("daemon.pid", "housekeep.pid"):
        # What a host has on which besom has run before.
        StateDir(str(top / "state")).acquire(name).close()
    fill_up(top, what)
    age(top)
    for number in range(8):
        os.utime(top / f"store/d{number}/blob", (number, number))
        os.utime(top / f"store/d{number}", (number, number))
    with pytest.raises(OSError, match="No space left"):
        (top / "area/one-more").write_bytes(bytes(65536))
    (top / "area/one-more").unlink(missing_ok=True)
    fill(top / "ballast", 1024)
    return top


def fill_up(top: Path, what: str) -> None:
    """Leave no room, or no inode."""
    fill(top / "ballast", 65536 if what.endswith("bytes") else 0)
    if what.endswith("bytes"):
        fill(top / "crumbs", 1024)


def fill(directory: Path, size: int) -> None:
    """Files of size bytes, until there is no room for one more."""
    try:
        directory.mkdir(exist_ok=True)
        for number in range(100_000):
            (directory / f"{size}-{number}-{os.urandom(4).hex()}").write_bytes(bytes(size))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def test_sweep(besom: Besom, disk: Path) -> None:
    before = os.statvfs(disk)
    done = besom("sweep", disk / "area")
    assert (done.status, done.report["removed"]["entries"]) == (0, 4), done.stderr
    assert list((disk / "area").iterdir()) == []
    assert os.statvfs(disk).f_ffree == before.f_ffree + 4 * 4


@pytest.mark.parametrize("layout", ["files", "trees"])
def test_prune(besom: Besom, disk: Path, layout: str) -> None:
    before = os.statvfs(disk)
    assert before.f_bavail == 0 or before.f_ffree == 0
    done = besom("prune", disk / "store", "--layout", layout, "--max-entries", "3")
    assert (done.status, done.report["removed"]["entries"]) == (0, 5), done.stderr
    assert {path.name for path in (disk / "store").iterdir()} == {"d5", "d6", "d7"}
    after = os.statvfs(disk)
    assert after.f_ffree == before.f_ffree + 10
    assert after.f_bfree * after.f_frsize >= before.f_bfree * before.f_frsize + 5 * 65536


def test_min_free_frees_exactly_what_is_missing(besom: Besom, disk: Path) -> None:
    st = os.statvfs(disk)
    wanted = st.f_bavail * st.f_frsize + 2 * 65536
    done = besom("prune", disk / "store", "--layout", "files", "--min-free", str(wanted))
    assert (done.status, done.report["removed"]["entries"]) == (0, 2), done.stderr
    after = os.statvfs(disk)
    assert after.f_bavail * after.f_frsize >= wanted


def test_prune_of_sessions(besom: Besom, disk: Path) -> None:
    done = besom("prune", disk / "sessions", "--layout", "sessions", "--max-entries", "1")
    assert (done.status, done.report["removed"]["entries"]) == (0, 3), done.stderr
    assert sorted(os.listdir(disk / "sessions")) == ["3", "3.json"]


@pytest.fixture
def file(disk: Path, tmp_path: Path) -> Path:
    """A configuration of all that is on the disk, which is where log, metrics and status are to go."""
    return configure(tmp_path / "besom.yml", disk, disk)


def configure(file: Path, work: Path, told: Path) -> Path:
    values = {
        "stores": [
            {"name": "trees", "path": str(work / "store"), "layout": "trees", "max_entries": 3},
            {"name": "sessions", "path": str(work / "sessions"), "layout": "sessions", "max_entries": 1},
        ],
        "temps": [{"path": str(work / "area")}],
        "daemon": {"state_dir": str(told / "state")},
        "log": {"file": str(told / "told/besom.log")},
        "metrics": {"textfile": str(told / "told/besom.prom")},
    }
    file.write_text(yaml.safe_dump(values))
    return file


def assert_kept_house(top: Path) -> None:
    assert list((top / "area").iterdir()) == []
    assert sorted(os.listdir(top / "store")) == ["d5", "d6", "d7"]
    assert sorted(os.listdir(top / "sessions")) == ["3", "3.json"]


def test_clean(besom: Besom, disk: Path, file: Path) -> None:
    done = besom("--config", file, "clean", "--all", "--yes")
    assert done.status == 0, done.stderr
    assert [list((disk / name).iterdir()) for name in ("area", "store", "sessions")] == [[], [], []]


def test_housekeep(besom: Besom, disk: Path, file: Path) -> None:
    done = besom("--config", file, "housekeep")
    assert done.status == 0, done.stderr
    assert_kept_house(disk)
    # By then there was room.
    assert "besom_runs_total" in (disk / "told/besom.prom").read_text()


def is_kept(top: Path) -> bool:
    left = [len(os.listdir(top / name)) for name in ("area", "store", "sessions")]
    return left == [0, 3, 2]


def await_kept(top: Path) -> None:
    """Wait until house is kept, woken by each removal."""
    deadline = time.monotonic() + PATIENCE_S
    with INotify() as news:
        for name in ("area", "store", "sessions"):
            news.add_watch(top / name, flags.DELETE | flags.MOVED_FROM)
        while not is_kept(top):
            left = deadline - time.monotonic()
            assert left > 0
            news.read(timeout=int(left * 1000))


def test_the_daemon(disk: Path, file: Path) -> None:
    with daemon(file) as process:
        await_kept(disk)
        said = end(process)
    assert_kept_house(disk)
    assert "Traceback" not in said


def test_what_cannot_be_written_is_named_and_the_work_goes_on(disk: Path, what: str, tmp_path: Path) -> None:
    """The stores are elsewhere, so that nothing makes room for it."""
    for number in range(8):
        (tmp_path / f"store/d{number}").mkdir(parents=True)
        os.utime(tmp_path / f"store/d{number}", (number, number))
    for name in ("area", "sessions"):
        (tmp_path / name).mkdir()
    (tmp_path / "sessions/3.json").write_text('{"created_at": 1}')
    (tmp_path / "sessions/3").touch()
    log, metrics = disk / "told/besom.log", disk / "told/besom.prom"
    sentences = [
        f"The status cannot be written in {disk / 'state'}: No space left on device.",
        f"The metrics cannot be written to {metrics}: ",
        # Only a log that is told on stderr instead says so.
        "The run is over (done): removed 5, ",
    ]
    if what.endswith("inodes"):
        sentences.append(f"{log} cannot be written: No space left on device; events go to stderr.")
    with daemon(configure(tmp_path / "besom.yml", tmp_path, disk)) as process:
        assert process.stderr
        said = ""
        while not all(sentence in said for sentence in sentences):
            assert select.select([process.stderr], [], [], PATIENCE_S)[0], said
            more = os.read(process.stderr.fileno(), 65536).decode()
            assert more, said
            said += more
        said += end(process)
    assert_kept_house(tmp_path)
    assert "Traceback" not in said


def test_a_disk_that_fills_up_under_the_daemon(empty: Path, what: str) -> None:
    host = Host(empty)
    try:
        host.start()
        # The file that counts requests is there from the first of them on.
        assert host.daemon("trigger").status == 0
        assert host.daemon("wait", "--timeout", "60s").status == 0
        host.fill(9)
        fill_up(empty, what)
        assert host.daemon("trigger").status == 0
        done = host.daemon("wait", "--timeout", "60s")
        assert done.status == 0, done.stderr
        assert len(host.names()) == 3
        assert host.daemon("stop").status == 0
    finally:
        host.close()


def daemon(file: Path) -> Process:
    command = [COMMAND, "--config", file, "daemon", "run"]
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("BESOM_", "NOTIFY_"))
    }
    return Process(command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)


def end(process: Process) -> str:
    """Drain it; what else it has said."""
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, said
    return str(said.decode())


# The tests of the test: each of these faults, planted in besom, has to be found.


def insisting_on_a_trash() -> AbstractContextManager[Any]:
    return patch.object(session_removal, "_FULL", ())


def insisting_on_figures() -> AbstractContextManager[Any]:
    def write(config: Any, metrics: Any) -> None:
        metrics.write(config.textfile, [])

    return patch.object(cycle, "write_metrics", write)


@pytest.mark.parametrize("what", ["tmpfs inodes", "ext4 inodes"], indirect=True)
def test_a_prune_that_needs_room_would_be_noticed(disk: Path) -> None:
    with insisting_on_a_trash():
        status, said = run(lambda: prune_entries(disk / "sessions", "sessions", 1))
    assert (status, "No space left" in said) == (1, True)


def test_a_round_that_needs_room_would_be_noticed(disk: Path, tmp_path: Path) -> None:
    make_house(tmp_path)
    config = read(str(tmp_path / "besom.yml"), {})
    config.textfile = str(disk / "told/besom.prom")
    with insisting_on_figures():
        status, said = run(lambda: cycle.keep_house(config, Run(), "once") and None)
    assert (status, "No space left" in said) == (3, True)
