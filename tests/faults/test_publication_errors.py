"""What a publication says of an error: the old one stays and no temp, or the error is overcome."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import pytest

from besom import durable_tree
from besom.durable import write_durably
from besom.durable_tree import tree_draft
from besom.root import Root

from .child import Child

OLD, NEW = "old" * 5000, "new" * 7000
ASIDE = ".besom-old-app-1"
LEAVES = ("version", "lib/code")


def publish_file(path: Path) -> None:
    with Root(str(path)) as root:
        write_durably(root.fd, root.path, "target", NEW.encode())


def publish_tree(path: Path, aside: str | None = None) -> None:
    with Root(str(path)) as root, tree_draft(root, "target") as one:
        os.mkdir("lib", dir_fd=one.fd)
        for leaf in LEAVES:
            fd = os.open(leaf, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=one.fd)
            os.write(fd, NEW.encode())
            os.close(fd)
        one.commit(aside)


def put_tree_aside(path: Path) -> None:
    # With so few for each, syncfs is tried as well.
    durable_tree._FEW = 1
    publish_tree(path, ASIDE)


Work = Callable[[Path], None]


def prepare(path: Path, tree: bool) -> Path:
    path.mkdir()
    if tree:
        (path / "target" / "lib").mkdir(parents=True)
    for name in [f"target/{leaf}" for leaf in LEAVES] if tree else ["target"]:
        (path / name).write_text(OLD)
    return path


def version(path: Path) -> str:
    """Which one is there: old or new, or what is wrong with it."""
    try:
        texts = {(path / leaf).read_text() for leaf in LEAVES} if path.is_dir() else {path.read_text()}
    except FileNotFoundError:
        return "missing" if not path.exists() else "torn"
    return {OLD: "old", NEW: "new"}.get(texts.pop() if len(texts) == 1 else "", "torn")


NOT_SYNCED, NOT_PUBLISHED = "target cannot be brought to the disk: ", "target cannot be published: "
RENAMES = "?rename,?renameat,?renameat2"


@pytest.mark.parametrize(
    ("work", "fault", "status", "message"),
    [
        (publish_file, "?write:error=ENOSPC:when=1", 3, "target cannot be written: No space left"),
        (
            publish_file,
            "?fsync:error=EIO:when=1",
            1,
            NOT_SYNCED + "Input/output error",
        ),
        (publish_file, "?fchmod:error=EPERM:when=1", 1, "target cannot be given its owner and mode"),
        (
            publish_file,
            f"{RENAMES}:error=EROFS:when=1",
            1,
            NOT_PUBLISHED + "Read-only file system",
        ),
        (publish_file, f"{RENAMES}:error=EBUSY:when=1", 0, ""),
        (publish_file, f"{RENAMES}:error=ESTALE:when=1", 0, ""),
        (publish_file, f"{RENAMES}:error=ETXTBSY:when=1", 0, ""),
        (publish_tree, "?mkdirat:error=ENOSPC:when=1", 3, "target cannot be written: No space left"),
        (
            publish_tree,
            "?fsync:error=EIO:when=3",
            1,
            NOT_SYNCED + "Input/output error",
        ),
        (put_tree_aside, "?syncfs:error=EIO:when=1", 1, NOT_SYNCED),
        (publish_tree, "?renameat2:error=EIO:when=1", 1, NOT_PUBLISHED + "Input/output error"),
        (publish_tree, "?renameat2:error=EBUSY:when=1", 0, ""),
        (publish_tree, "?renameat2:error=EINVAL:when=1", 0, ""),
    ],
)
def test_an_error_leaves_the_old_one_and_no_temp_or_is_overcome(
    tmp_path: Path, work: Work, fault: str, status: int, message: str
) -> None:
    area = prepare(tmp_path / "area", tree=work is not publish_file)
    with Child(lambda: work(area)) as child:
        child.trace(tmp_path / "log", fault)
        child.go()
        assert child.wait() == status
        said = child.said()
    assert "INJECTED" in (tmp_path / "log").read_text()
    assert message in said
    assert bool(message) == bool(said)
    assert version(area / "target") == ("old" if status else "new")
    assert os.listdir(area) == ["target"]
