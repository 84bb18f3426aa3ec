# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Killed at any moment, an install leaves the old tree or the new one, whole; the next one clears up."""

from __future__ import annotations

import io
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.host.mirror import Mirror, serve

from besom.fetch import plain_opener
from besom.install import InstallRequest, install
from besom.run import Run
from besom.transfer import read_checksum, read_source

# What changes a file system, as Python's audit events name it; renameat2 has none, and is between two.
EVENTS = {
    f"os.{name}" for name in ("mkdir", "rename", "remove", "rmdir", "symlink", "chmod", "truncate", "utime")
}
CONTENTS = {
    "0": {"x": b"0"},
    "1": {"a": b"1" * 5000, "b/c": b"1"},
    "2": {"a": b"2" * 9000, "d": b"2"},
}


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as one:
        for version, files in CONTENTS.items():
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w:gz") as archive:
                for name, content in files.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
            one.add(f"/{version}.tgz", stream.getvalue())
        yield one


def put(mirror: Mirror, into: Path, version: str) -> None:
    file = mirror.files[f"/{version}.tgz"]
    source = read_source(f"{mirror.url}/{version}.tgz", checksum=read_checksum(file.checksum))
    request = InstallRequest(str(into), "app", source, keep=1, current="live")
    install(request, Run(), plain_opener(timeout=60, redirects=False))


def die_at(event: int) -> None:
    """Kill this process just before its so manieth event."""
    left = event

    def hear(name: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        writes = name == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_CREAT
        if name in EVENTS or writes:
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hear)


def version_of(tree: Path) -> str:
    """Which version it is, whole and with nothing else in it."""
    found = {
        str(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and path.name != ".besom-installed"
    }
    (version,) = [version for version, content in CONTENTS.items() if content == found]
    return version


def test_killed_before_any_change(mirror: Mirror, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for version in ("0", "1"):
        put(mirror, model, version)
    seen: list[str] = []
    code = -1
    while code:
        into = tmp_path / f"{len(seen)}"
        shutil.copytree(model, into, symlinks=True)
        pid = os.fork()
        if not pid:
            # Neither pytest's clean-up nor besom's.
            try:
                die_at(len(seen))
                put(mirror, into, "2")
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert code in (0, -signal.SIGKILL)
        seen.append(version_of(into / "app"))
        assert os.readlink(into / "live") == "app"
        put(mirror, into, "2")
        assert version_of(into / "app") == "2"
        others = [path for path in into.iterdir() if path.name not in ("app", "live")]
        # That which was replaced, also where nothing but the exchange was done.
        assert [path.name[:14] for path in others] == [".besom-old-app"]
        assert version_of(others[0]) == "1"
        shutil.rmtree(into)
    # The old one up to some moment, and the new one from then on.
    assert seen == sorted(seen)
    assert set(seen) == {"1", "2"}
    assert len(seen) > 15
