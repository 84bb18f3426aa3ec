# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""besom sync while the power goes out, and where flock keeps nobody out: what is there is whole."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..host.conftest import COMMAND, Mount, need
from ..host.mirror import Mirror, serve, stalled
from .disk import Disk

PATIENCE_S = 120
FILES, EVERY = 40, 5
ROUNDS = 2


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as one:
        yield one


def content(number: int, version: int = 0) -> bytes:
    return f"{number} {version} ".encode() * 2000


def name(number: int) -> str:
    return f"sub{number % 3}/{number}"


def manifest(path: Path, store: Path, mirror: Mirror, version: int = 0, count: int = FILES) -> Path:
    """A manifest of so many files, of which the mirror has this version; none has a checksum."""
    artifacts = []
    for number in range(count):
        mirror.add(f"/{number}", content(number, version), etag=f'"{version}"')
        artifacts.append({"url": f"{mirror.url}/{number}", "dest": name(number)})
    path.write_text(json.dumps({"store": str(store), "artifacts": artifacts}))
    return path


def start(manifest: Path, *inject: str) -> subprocess.Popen[bytes]:
    """besom sync, and as many calls as are named do nothing, and say that they did it (strace(1))."""
    strace = []
    for calls in inject:
        strace = [need("strace"), "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}"]
        strace += ["-e", f"inject={calls}:retval=0"]
    return subprocess.Popen(
        [*strace, COMMAND, "sync", manifest],
        env={**os.environ, "BESOM_CONFIG": os.devnull},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def acknowledged(said: bytes) -> set[str]:
    """Those of which it has said that they are fetched."""
    lines = said.decode().split("\n")[:-1]
    return {words[1] for line in lines if (words := line.split())[0] == "Fetched" and words[2][0] == "("}


def wrong(store: Path, acked: set[str]) -> list[str]:
    """What of the acknowledged is not there, and what else is there and not whole."""
    found = []
    for number in range(FILES):
        path = store / name(number)
        there = path.read_bytes() if path.exists() else None
        if there != content(number) and (there is not None or name(number) in acked):
            found.append(name(number))
    return found


@pytest.mark.root
def test_what_sync_has_said_is_fetched_survives_a_power_cut(
    tmp_path: Path, mount: Mount, mirror: Mirror
) -> None:
    disk = Disk(tmp_path, mount)
    sync = start(manifest(tmp_path / "manifest", disk.path, mirror))
    assert sync.stdout
    said, cuts = b"", 0
    os.set_blocking(sync.stdout.fileno(), False)
    with sync:
        while select.select([sync.stdout], [], [], PATIENCE_S)[0] and (more := sync.stdout.read()):
            said += more
            if len(acknowledged(said)) < cuts * EVERY:
                continue
            os.kill(sync.pid, signal.SIGSTOP)
            # Each of its threads stands still by then.
            stopped = os.waitid(os.P_PID, sync.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if stopped and stopped.si_code == os.CLD_STOPPED:
                said += sync.stdout.read() or b""
                with disk.after_power_cut() as store:
                    assert wrong(store, acknowledged(said)) == []
                cuts += 1
                os.kill(sync.pid, signal.SIGCONT)
        assert sync.wait() == 0
    with disk.after_power_cut() as store:
        assert wrong(store, {name(number) for number in range(FILES)}) == []
    assert len(acknowledged(said)) == FILES
    assert cuts > 3


@pytest.mark.root
def test_a_sync_that_brings_nothing_to_the_disk_would_be_caught(
    tmp_path: Path, mount: Mount, mirror: Mirror
) -> None:
    disk = Disk(tmp_path, mount)
    sync = start(manifest(tmp_path / "manifest", disk.path, mirror), "?fsync,?fdatasync,?syncfs")
    said, _ = sync.communicate(timeout=PATIENCE_S)
    acked = acknowledged(said)
    assert len(acked) == FILES
    with disk.after_power_cut() as store:
        assert wrong(store, acked)


def test_two_syncs_that_no_lock_keeps_from_each_other_leave_every_file_whole(
    tmp_path: Path, mirror: Mirror
) -> None:
    """A reader finds one version or another of each file all the time, and at the end the newest."""
    store = tmp_path / "store"
    store.mkdir()
    torn, reads, over = [], 0, threading.Event()
    count = 8

    def read() -> None:
        nonlocal reads
        while not over.is_set():
            for number in range(count):
                path = store / name(number)
                if path.exists():
                    reads += 1
                    if path.read_bytes() not in [content(number, version) for version in range(ROUNDS)]:
                        torn.append(name(number))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for version in range(ROUNDS):
            file = manifest(tmp_path / "manifest", store, mirror, version, count)
            until = threading.Event()
            mirror.files["/0"].vices = [stalled(10, until), stalled(10, until)]
            two = [start(file, "flock") for _ in range(2)]
            # Both fetch it at once: their claims keep neither out.
            mirror.wait_for("/0", 2 * (version + 1))
            until.set()
            for one in two:
                _said, error = one.communicate(timeout=PATIENCE_S)
                assert (one.returncode, error) == (0, b"")
            found = {str(path.relative_to(store)) for path in store.rglob("*") if path.is_file()}
            assert found == {name(number) for number in range(count)}
            for number in range(count):
                assert (store / name(number)).read_bytes() == content(number, version)
    finally:
        over.set()
        reader.join()
    assert torn == []
    assert reads > 0
