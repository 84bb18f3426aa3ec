# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Publication on real file systems: some exchange no names, some sync otherwise, some are in the network."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from besom import durable_tree
from besom.durable import draft, write_durably
from besom.durable_tree import old_name, remove_orphans, tree_draft
from besom.installed import read_state, remove_left_links
from besom.inventory import Inventory, read_files, read_trees
from besom.root import Root
from besom.run import Run

from .conftest import Mount, need

pytestmark = pytest.mark.root
MIB = 1024**2
# More files than are synced one by one.
FILES = 80


@pytest.fixture
def mounted(tmp_path: Path, mount: Mount) -> Callable[[str], Path]:
    """mounted(kind): a new, empty file system of this kind."""

    def image(kind: str, mebibytes: int, *options: str) -> Path:
        memory = mount(tmp_path / "memory", "-t", "tmpfs", "-o", "size=256m", "tmpfs")
        with (memory / "image").open("wb") as stream:
            stream.truncate(mebibytes * MIB)
        subprocess.run([need(f"mkfs.{kind}"), "-q", *options, memory / "image"], check=True)
        return mount(tmp_path / kind, "-o", "loop", memory / "image")

    def mounted(kind: str) -> Path:
        at = tmp_path / kind
        if kind == "ext4":
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


def install(root: Root, content: str, aside: str | None = None) -> None:
    with tree_draft(root, "tree") as one:
        for number in range(FILES):
            fd = os.open(str(number), os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=one.fd)
            os.write(fd, content.encode())
            os.close(fd)
        one.commit(aside)


def texts(path: Path) -> set[str]:
    return {one.read_text() for one in path.iterdir()}


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "fuse.bindfs"])
def test_files_and_trees_are_published_and_cleared_up_after(
    mounted: Callable[[str], Path], kind: str, record_property: Callable[[str, object], None]
) -> None:
    path = mounted(kind) / "store"
    path.mkdir()
    with Root(str(path)) as root:
        for text in ("old", "new"):
            write_durably(root.fd, root.path, "file", text.encode())
        for text, aside in (("1", None), ("2", None), ("3", ".besom-old-tree-2")):
            install(root, text, aside)
        (path / ".file.0123456789abcdef.part").touch()
        (path / ".temp-tree-0123456789abcdef" / "sub").mkdir(parents=True)
        with draft(root.fd, root.path, "file") as file, tree_draft(root, "tree") as tree:
            report = remove_orphans(root, Run())
            assert report.removed.entries == 2, report.kept.items
            assert {file.name, tree.name} < set(os.listdir(path))
        record_property("exchanges", durable_tree._exchange(root.fd, "tree", ".besom-old-tree-2"))
        record_property("syncfs", durable_tree._syncfs_is_sound(root.fd))
    assert sorted(os.listdir(path)) == [".besom-old-tree-2", "file", "tree"]
    assert (path / "file").read_text() == "new"
    assert {*texts(path / "tree"), *texts(path / ".besom-old-tree-2")} == {"2", "3"}


@pytest.mark.parametrize("read", [read_files, read_trees])
def test_a_store_is_seen_as_it_is_and_not_as_it_was_when_it_was_opened(
    mounted: Callable[[str], Path], read: Callable[..., Inventory]
) -> None:
    path = mounted("btrfs") / "store"
    path.mkdir()
    with Root(str(path)) as root:
        (path / "entry").touch() if read is read_files else (path / "entry").mkdir()
        assert read(root, Run()).entries == 1


def test_what_came_beside_a_tree_is_seen_as_well(mounted: Callable[[str], Path]) -> None:
    path = mounted("btrfs") / "store"
    path.mkdir()
    old = old_name("app", 0)
    with Root(str(path)) as root:
        (path / old).mkdir()
        (path / ".besom-link-0123456789abcdef").symlink_to("app")
        assert read_state(root, "app").old == (old,)
        remove_left_links(root)
    assert os.listdir(path) == [old]
