"""The power goes out after every single system call: what was acknowledged is there, byte for byte."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Callable

import pytest

from besom import durable_tree
from besom.artifacts import read_artifacts
from besom.durable import draft, sync_directory, write_durably
from besom.durable_tree import remove_orphans, tree_draft
from besom.install import InstallRequest, install
from besom.opener import plain_opener
from besom.root import Root
from besom.run import Run
from besom.sync import SyncRequest, sync
from besom.transfer import read_checksum, read_source

from ..host.conftest import Mount
from .child import CHANGING, Child
from .disk import Disk
from .operations import mirror

pytestmark = pytest.mark.root
VERSIONS = 2
BATCH = ("batch-a", "batch-b")


@pytest.fixture
def disk(tmp_path: Path, mount: Mount) -> Disk:
    return Disk(tmp_path, mount)


def text(version: int) -> str:
    return f"{version} " * 3000


def publish(path: Path, acknowledge: Callable[[str], None]) -> None:
    """Publish a file, two with one sync, and a tree, again and again."""
    with Root(str(path)) as root:
        for version in range(1, VERSIONS + 1):
            content = text(version).encode()
            write_durably(root.fd, root.path, "file", content)
            acknowledge("file")
            with ExitStack() as stack:
                drafts = [stack.enter_context(draft(root.fd, root.path, name)) for name in BATCH]
                for one in drafts:
                    one.write(content)
                    one.publish()
                sync_directory(root.fd)
                acknowledge(BATCH[0])
                acknowledge(BATCH[1])
            durable_tree._FEW = version % 2 * 64  # an fsync for each file, or syncfs
            with tree_draft(root, "tree") as tree:
                for name in ("one", "two"):
                    fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=tree.fd)
                    os.write(fd, content)
                    os.close(fd)
                tree.commit()
                acknowledge("tree")


def violations(disk: Disk, work: Callable[[Path, Callable[[str], None]], None], calls: str) -> list[str]:
    """Cut the power after each of these calls that work makes; returns what was not as acknowledged."""
    acked, acking = os.pipe()
    os.set_blocking(acked, False)
    versions: dict[str, int] = {}
    found = []
    cuts = 0
    try:
        with Child(
            lambda: work(disk.path, lambda name: os.write(acking, f"{name}\n".encode()) and None)
        ) as child:
            child.trace(disk.image.parent / "log", f"{calls}:signal=STOP")
            child.go()
            while (status := child.wait(stopped=True)) == -signal.SIGSTOP:
                cuts += 1
                with suppress(BlockingIOError):
                    for name in os.read(acked, 10_000).decode().split():
                        versions[name] = versions.get(name, 0) + 1
                with disk.after_power_cut() as path:
                    found += check(path, versions)
                os.kill(child.pid, signal.SIGCONT)
            assert status == 0, child.said()
    finally:
        os.close(acked)
        os.close(acking)
    assert versions == dict.fromkeys(["file", *BATCH, "tree"], VERSIONS)
    assert cuts > VERSIONS * len(versions)
    return found


def check(path: Path, versions: dict[str, int]) -> Iterator[str]:
    """What is wrong, after the next start, with a store in which these versions were acknowledged."""
    with Root(str(path)) as root:
        report = remove_orphans(root, Run())
    if report.failures.total or report.anomalies.total:
        yield f"hygiene: {report.to_dict()}"
    for name in ("file", *BATCH, "tree"):
        acked = versions.get(name, 0)
        # The next one may be there as well, just not known of.
        allowed = {text(acked) if acked else "missing", text(acked + 1)}
        one = read(path / name)
        if one not in allowed:
            yield f"{name}: {acked} was acknowledged, and there is {one[:10]!r} ({len(one)})"
    left = {*os.listdir(path)} - {"file", *BATCH, "tree"}
    if left:
        yield f"left: {left}"


def read(path: Path) -> str:
    try:
        if stat.S_ISDIR(path.stat().st_mode):
            one, two = (path / "one").read_text(), (path / "two").read_text()
            return one if one == two else "torn"
        return path.read_text()
    except FileNotFoundError:
        return "torn" if path.exists() else "missing"


def test_what_was_acknowledged_survives_a_power_cut_at_any_moment(disk: Disk) -> None:
    assert violations(disk, publish, ",".join(f"?{name}" for name in CHANGING if "open" not in name)) == []


@pytest.mark.parametrize("left_out", ["of files", "of directories"])
def test_an_fsync_left_out_would_be_caught(disk: Disk, left_out: str) -> None:
    def careless(path: Path, acknowledge: Callable[[str], None]) -> None:
        real = os.fsync

        def fsync(fd: int) -> None:
            if stat.S_ISDIR(os.fstat(fd).st_mode) == (left_out == "of files"):
                real(fd)

        os.fsync = fsync
        durable_tree._call = lambda *_arguments: None
        publish(path, acknowledge)

    found = violations(disk, careless, "?write")
    # The fsync of the second file of a batch commits the rename of the first.
    for name in ("file", BATCH[1], "tree"):
        assert any(one.startswith(name) for one in found), found


def sync_one(path: Path) -> bool:
    """Whether it changed something."""
    offered = mirror()
    artifacts = [{"url": f"{offered.url}/new", "dest": "file", "checksum": offered.files["/new"].checksum}]
    opener = plain_opener(timeout=60, redirects=False)
    return sync(SyncRequest(str(path), read_artifacts(artifacts), opener), Run()).changed


def install_one(path: Path) -> bool:
    offered = mirror()
    checksum = read_checksum(offered.files["/new.tgz"].checksum)
    source = read_source(f"{offered.url}/new.tgz", checksum=checksum)
    opener = plain_opener(timeout=60, redirects=False)
    return install(InstallRequest(str(path), "file", source), Run(), opener).changed


@pytest.mark.parametrize("work", [sync_one, install_one])
def test_what_is_called_unchanged_survives_a_power_cut(
    disk: Disk, work: Callable[[Path], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run that gave it its name was killed before it brought that to the disk."""
    with monkeypatch.context() as patch:
        store, real = disk.path.stat(), os.fsync
        patch.setattr(os, "fsync", lambda fd: None if os.path.samestat(os.fstat(fd), store) else real(fd))
        assert work(disk.path)
    with disk.after_power_cut() as path:
        assert not (path / "file").exists()
    assert not work(disk.path)
    with disk.after_power_cut() as path:
        assert (path / "file").exists()
