# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Shared by the tests of the modules: a play to fill, Pythons to run it on, holders of locks."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from .play import Play

VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Play:
    """A play on one host, with the Python that the tests run on."""
    return Play(tmp_path_factory.mktemp("play"))


@pytest.fixture(scope="session")
def pythons() -> dict[str, str]:
    """The path of each Python from 3.9 to 3.13 that is found on PATH or in pyenv."""
    found = {}
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    for version in VERSIONS:
        candidates = [shutil.which(f"python{version}"), *pyenv.glob(f"versions/{version}.*/bin/python")]
        for candidate in filter(None, candidates):
            # A pyenv shim may lead nowhere; one that works names the real path.
            asked = [candidate, "-c", "import sys; print(sys.executable)"]
            answer = subprocess.run(asked, capture_output=True, text=True, check=False)
            if answer.returncode == 0:
                found[version] = answer.stdout.strip()
                break
    return found


@pytest.fixture(scope="module")
def hold() -> Iterator[Callable[[Path], int]]:
    """hold(path): another process holds flock on path until the tests of this file are over; its pid."""
    with contextlib.ExitStack() as stack:

        def hold(path: Path) -> int:
            command = ["flock", path, "sh", "-c", "echo held; exec sleep infinity"]
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
            )
            stack.callback(os.killpg, process.pid, 9)
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            return process.pid

        yield hold
