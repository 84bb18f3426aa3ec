# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A FUSE mount whose server is stopped hangs whoever asks it anything; a run of besom it does not hang."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from .conftest import COMMAND, Done, need, unmount, wait_for_mount
from .hostile import age, make_plain

pytestmark = pytest.mark.root

SECONDS = 20  # on a machine under load; without a load it is one


@pytest.fixture
def hang(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """hang(at) mounts bindfs there and stops its server."""
    bindfs = need("bindfs")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing")
    source = tmp_path / "source"
    make_plain(source)
    age(source)
    servers: list[tuple[subprocess.Popen[bytes], Path]] = []

    def hang(at: Path) -> None:
        at.mkdir(parents=True)
        server = subprocess.Popen([bindfs, "-f", source, at])
        servers.append((server, at))
        wait_for_mount(at)
        server.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, server.pid, os.WSTOPPED)

    yield hang
    for server, at in servers:
        server.send_signal(signal.SIGCONT)
        unmount(at)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    assert (source / "sub/old").exists()


@pytest.fixture
def area(tmp_path: Path, hang: Callable[[Path], None]) -> Path:
    """One temp with a hung mount in it, one that is a hung mount, one that is in nobody's way."""
    area = tmp_path / "area"
    for name in (".temp-with", ".temp-plain", "plain"):
        make_plain(area / name)
    age(area)
    hang(area / ".temp-with/sub/hung")
    hang(area / ".temp-hung")
    for path in (area / ".temp-with/sub", area / ".temp-with", area):
        os.utime(path, (0, 0))
    return area


def test_the_mount_really_hangs(area: Path) -> None:
    asked = subprocess.Popen(["stat", area / ".temp-hung"], stdout=subprocess.DEVNULL)
    with pytest.raises(subprocess.TimeoutExpired):
        asked.wait(1)
    asked.kill()
    asked.wait()


@pytest.mark.parametrize(
    "arguments",
    [
        ("sweep",),
        ("prune", "--layout", "trees", "--max-age", "1d"),
        ("prune", "--layout", "files", "--max-age", "1d"),
    ],
    ids=lambda arguments: "-".join(arguments[:3]),
)
def test_a_run_ends_and_keeps_the_mounts(
    besom: Callable[..., Done], area: Path, arguments: tuple[str, ...]
) -> None:
    command, *options = arguments
    dry = besom(command, area, *options, "--dry-run", timeout=SECONDS)
    done = besom(command, area, *options, timeout=SECONDS)

    assert done.status == 0
    assert done.noted("kept", "anomalies", "failures") == {
        str(area / ".temp-with/sub/hung"): "is a mount point",
        str(area / ".temp-hung"): "is a mount point",
    }
    assert dry.report["planned"] == done.report["removed"]
    assert not (area / ".temp-plain").exists()
    # Whole or not at all; in layout files what lies beside the mount goes.
    assert (area / ".temp-with/other").exists() is ("files" not in arguments)


def test_looking_ends_as_well(besom: Callable[..., Done], area: Path, tmp_path: Path) -> None:
    config = tmp_path / "besom.yml"
    config.write_text(
        f"stores:\n  - {{name: one, path: {area}, layout: trees, max_age: 1d}}\n"
        f"temps:\n  - {{path: {area}}}\n"
    )
    done = besom("info", "--config", config, timeout=SECONDS)
    assert done.status == 0
    done = besom("clean", "--dry-run", "--config", config, timeout=SECONDS)
    assert done.status == 0
    done = besom("preflight", area, "--require", "1K", timeout=SECONDS)
    assert done.status == 0


def test_a_path_on_a_mount_that_does_not_answer_is_a_sentence_and_not_a_hang(
    hang: Callable[[Path], None], tmp_path: Path
) -> None:
    hung, well = tmp_path / "hung", tmp_path / "well"
    hang(hung)
    make_plain(well)
    age(well)
    config = tmp_path / "besom.yml"
    config.write_text(
        f"stores:\n  - {{name: hung, path: {hung}/sub, layout: files, max_age: 1d}}\n"
        f"  - {{name: well, path: {well}, layout: files, max_age: 1d}}\n"
        f"temps:\n  - {{path: {hung}}}\n"
    )
    commands = {
        "sweep": ("sweep", hung),
        "sweep-below": ("sweep", hung / "sub"),
        "prune": ("prune", hung / "sub", "--layout", "trees", "--max-age", "1d"),
        "preflight": ("preflight", hung / "sub/new", "--require", "1K"),
        "info": ("info", "--config", config),
        "clean": ("clean", "--config", config),
        "housekeep": ("housekeep", "--config", config),
        "list": ("list", hung / "sub", "--layout", "files"),
        "stats": ("stats", "--json", "--config", config),
    }
    # All at once: each waits for five seconds.
    environment = {**os.environ, "BESOM_CONFIG": os.devnull, "BESOM_STATE_DIR": str(tmp_path / "state")}
    pipe = subprocess.PIPE
    runs = {
        name: subprocess.Popen([COMMAND, *words], env=environment, text=True, stdout=pipe, stderr=pipe)
        for name, words in commands.items()
    }
    try:
        printed = {name: run.communicate(timeout=60) for name, run in runs.items()}
    finally:
        for run in runs.values():
            run.kill()
    for name, (_, said) in printed.items():
        assert "does not answer within 5s" in said, name
        assert f"(mount {hung} of type fuse)" in said, name
        assert "Traceback" not in said
        assert runs[name].returncode == (0 if name == "info" else 1), name
    report = json.loads(printed["stats"][0])
    assert report["status"] == 1
    assert "does not answer within 5s" in report["error"]
    # The store that answers has its turn.
    assert [store["name"] for store in report["stores"]] == ["well"]
    assert not (well / "sub/old").exists()
