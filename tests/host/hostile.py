# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A tree with everything in it that ever broke a removal, and an innocent tree beside it."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import time
from pathlib import Path

from .conftest import OLD

LONG = b"x" * 255
NAMES = [b"new\nline", b"not utf-8 \xff\xfe", LONG, b"-rf", b"esc\x1b[31m", b"back\\slash", b" ", b"*"]
THEN = int(time.time()) - OLD
DEPTH = 60  # times 255 bytes: more than three times PATH_MAX


def make_outside(top: Path) -> None:
    """What must come through it all: files, a directory, names that besom would love to remove."""
    (top / "directory/sub").mkdir(parents=True)
    for name in ("file", "linked", "directory/old", "directory/.temp-old", "directory/sub/old"):
        (top / name).write_text(name)
    age(top)


def state(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a tree but link counts: a removal inside may take away a name of a file outside."""
    found = {}
    for path in [top, *sorted(top.rglob("*"))]:
        st = path.lstat()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(st.st_mode) else ""
        found[str(path)] = (st.st_mode, st.st_uid, st.st_gid, st.st_ino, st.st_size, st.st_mtime_ns, content)
    return found


def age(top: Path) -> None:
    """Make all that top holds, and top, old. For any name and depth; follows no symlink, enters no mount."""
    device = top.lstat().st_dev
    # Directories are opened relative to each other: their paths are longer than the kernel takes.
    todo = [os.open(top, os.O_RDONLY)]
    while todo:
        fd = todo.pop()
        for name in map(os.fsencode, os.listdir(fd)):
            st = os.lstat(name, dir_fd=fd)
            if stat.S_ISDIR(st.st_mode) and st.st_dev == device:
                todo.append(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=fd))
            else:
                os.utime(name, (THEN, THEN), dir_fd=fd, follow_symlinks=False)
        os.utime(fd, (THEN, THEN))
        os.close(fd)


def write(directory: int, name: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory)
    os.write(fd, b"content")
    os.close(fd)


def make_names(top: Path) -> None:
    """A file of each name, and a directory of each name with a file of that name in it."""
    (top / "directories").mkdir(parents=True)
    files, directories = os.open(top, os.O_RDONLY), os.open(top / "directories", os.O_RDONLY)
    for name in NAMES:
        write(files, name)
        os.mkdir(name, dir_fd=directories)
        inner = os.open(name, os.O_RDONLY, dir_fd=directories)
        write(inner, name)
        os.close(inner)
    os.close(files)
    os.close(directories)


def make_deep(top: Path) -> None:
    top.mkdir(parents=True)
    fd = os.open(top, os.O_RDONLY)
    for _ in range(DEPTH):
        os.mkdir(LONG, dir_fd=fd)
        write(fd, b"f")
        deeper = os.open(LONG, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    write(fd, b"bottom")
    os.close(fd)


def make_special(top: Path) -> None:
    top.mkdir(parents=True)
    os.mkfifo(top / "fifo")
    # A path of a socket has at most 108 bytes; one through /proc always fits.
    fd = os.open(top, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{fd}/socket")
    os.close(fd)
    os.mknod(top / "character", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(top / "block", 0o600 | stat.S_IFBLK, os.makedev(7, 250))


def make_links(top: Path, outside: Path) -> None:
    top.mkdir(parents=True)
    (top / "one").write_text("two names inside")
    os.link(top / "one", top / "two")
    os.link(outside / "linked", top / "linked")


def make_symlinks(top: Path, outside: Path) -> None:
    top.mkdir(parents=True)
    (top / "to-directory").symlink_to(outside / "directory")
    (top / "to-file").symlink_to(outside / "file")
    (top / "dangling").symlink_to(outside / "nothing")
    (top / "loop").symlink_to("loop")
    (top / "up").symlink_to("../../../..")


def make_plain(top: Path) -> None:
    (top / "sub").mkdir(parents=True)
    (top / "sub/old").write_text("old")
    (top / "other").write_text("other")
