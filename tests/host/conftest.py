# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Shared by the tests on real parts: the command, mounts that always go again, tools that may be missing."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

from .host import Host

COMMAND = Path(sys.executable).with_name("besom")
OLD = 10 * 86400  # how old what is to go is made, in seconds

Mount = Callable[..., Path]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root (mounts, device nodes, file attributes)")


def need(tool: str) -> str:
    """The path of a tool. Without it the test is skipped; in CI, where bootstrap installs it, it fails."""
    path = shutil.which(tool)
    if path is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{tool} is missing: run scripts/bootstrap --test")
        pytest.skip(f"{tool} is missing")
    return path


@dataclass(frozen=True)
class Done:
    """What a run of the command came to."""

    status: int
    report: dict[str, Any]
    stderr: str

    def noted(self, *kinds: str) -> dict[str, str]:
        """{path: reason} of the lists named: kept, anomalies, failures."""
        return {item["path"]: item["reason"] for kind in kinds for item in self.report[kind]}


@pytest.fixture
def besom() -> Callable[..., Done]:
    """besom(argument...) runs the command for real; it fails the test when it does not end in time."""

    def besom(*arguments: str | Path, timeout: float = 60) -> Done:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("BESOM_")}
        done = subprocess.run(
            [COMMAND, "--json", *arguments],
            env={**environment, "BESOM_CONFIG": os.devnull},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return Done(done.returncode, json.loads(done.stdout or "{}"), done.stderr)

    return besom


def is_mounted(path: Path) -> bool:
    with open("/proc/self/mountinfo") as stream:
        return any(line.split()[4] == str(path) for line in stream)


def wait_for_mount(path: Path) -> None:
    """Wait until path is a mount point; the kernel tells of every change (proc(5), mountinfo)."""
    with open("/proc/self/mountinfo") as stream:
        poll = select.poll()
        poll.register(stream, select.POLLERR | select.POLLPRI)
        while not is_mounted(path):
            assert poll.poll(20_000), f"nothing was mounted on {path}"


@pytest.fixture
def mount(request: pytest.FixtureRequest) -> Mount:
    """mount(at, option...) mounts something there until the test is over, however it ends."""

    def mount(at: Path, *options: str | Path) -> Path:
        if not os.path.lexists(at):
            at.mkdir(parents=True)
        done = subprocess.run(["mount", *options, at], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this kernel does not mount it: {done.stderr.strip()}")
        request.addfinalizer(lambda: unmount(at))
        return at

    return mount


@pytest.fixture
def mounted(tmp_path: Path, mount: Mount) -> Callable[[str], Path]:
    """mounted(kind): a new, empty file system of this kind."""

    def image(kind: str, mebibytes: int, *options: str) -> Path:
        memory = mount(tmp_path / "memory", "-t", "tmpfs", "-o", "size=256m", "tmpfs")
        with (memory / "image").open("wb") as stream:
            stream.truncate(mebibytes * 1024**2)
        subprocess.run([need(f"mkfs.{kind}"), "-q", *options, memory / "image"], check=True)
        return mount(tmp_path / kind, "-o", "loop", memory / "image")

    def mounted(kind: str) -> Path:
        at = tmp_path / kind
        if kind.startswith("ext"):
            return image(kind, 32, "-F")
        if kind == "xfs":
            return image(kind, 320)
        if kind == "btrfs":
            return image(kind, 128)
        if kind == "tmpfs":
            return mount(at, "-t", "tmpfs", "-o", "size=32m", "tmpfs")
        for name in ("lower", "upper", "work"):
            (tmp_path / name).mkdir()
        if kind == "fuse.bindfs":
            need("bindfs")
            return mount(at, "-t", kind, tmp_path / "upper")
        layers = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        return mount(at, "-t", "overlay", "-o", layers, "overlay")

    return mounted


def unmount(at: Path) -> None:
    if subprocess.run(["umount", at], capture_output=True, check=False).returncode:
        subprocess.run(["umount", "--lazy", at], capture_output=True, check=False)


@pytest.fixture
def chattr(request: pytest.FixtureRequest) -> Callable[[str, Path], None]:
    """chattr("+i", path), undone when the test is over."""
    need("chattr")

    def chattr(flag: str, path: Path) -> None:
        done = subprocess.run(["chattr", flag, path], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"this file system has no attributes: {done.stderr.strip()}")
        request.addfinalizer(lambda: subprocess.run(["chattr", flag.replace("+", "-"), path], check=False))

    return chattr


@pytest.fixture
def full_image(tmp_path: Path, mount: Mount) -> Callable[..., Path]:
    """full_image(option of mkfs.ext4...) mounts a new ext4 of 16 MiB in a file."""
    need("mkfs.ext4")

    def full_image(*options: str) -> Path:
        image = tmp_path / "image"
        with image.open("wb") as stream:
            stream.truncate(16 * 1024**2)
        subprocess.run(["mkfs.ext4", "-qF", "-m", "0", *options, image], check=True)
        return mount(tmp_path / "disk", "-o", "loop", image)

    return full_image


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host with one store and a daemon that the test may start."""
    one = Host(tmp_path)
    yield one
    one.close()


class Held:
    """A directory that another program holds with flock until release()."""

    def __init__(self, path: Path) -> None:
        command = ["flock", path, "sh", "-c", "echo held; exec cat"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout
        assert self._process.stdout.readline() == b"held\n"

    @property
    def pid(self) -> int:
        return self._process.pid

    def release(self) -> None:
        if self._process.poll() is None:
            self._process.communicate(timeout=60)


@pytest.fixture
def hold(request: pytest.FixtureRequest) -> Callable[[Path], Held]:
    """hold(path): locked by another program until .release(), or until the test is over."""

    def hold(path: Path) -> Held:
        held = Held(path)
        request.addfinalizer(held.release)
        return held

    return hold
