# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Publication on real file systems: some exchange no names, some sync otherwise, some are in the network."""

from __future__ import annotations

import os
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

pytestmark = pytest.mark.root
# More files than are synced one by one.
FILES = 80


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
