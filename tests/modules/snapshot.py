# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A directory tree as plain values that compare equal only if nothing at all was done to it."""

from __future__ import annotations

import os
import stat

FIELDS = ("mode", "uid", "gid", "ino", "nlink", "size", "blocks", "mtime_ns", "ctime_ns", "atime_ns")


def _look(path: str) -> list[int]:
    st = os.lstat(path)
    values = [getattr(st, "st_" + field) for field in FIELDS]
    if stat.S_ISLNK(st.st_mode):
        values[-1] = 0  # to follow a symlink is to date it, and no flag of open(2) prevents that
    return values


def snapshot(top: str) -> dict[str, list[int]]:
    """lstat of everything below top, by relative path; taking it leaves every time as it was."""
    found: dict[str, list[int]] = {}
    todo = [top] if os.path.isdir(top) else []
    while todo:
        path = todo.pop()
        found[os.path.relpath(path, top)] = _look(path)
        if stat.S_ISDIR(os.lstat(path).st_mode):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
            try:
                todo += [os.path.join(path, name) for name in os.listdir(fd)]
            finally:
                os.close(fd)
    return found


def paths(tree: dict[str, list[int]]) -> set[str]:
    return set(tree) - {"."}


def usage(tree: dict[str, list[int]], directories: bool) -> int:
    """Allocated bytes of files (and directories) below the top, each inode once."""
    blocks = {}
    for path, values in tree.items():
        one = dict(zip(FIELDS, values))
        if path != "." and (directories or not stat.S_ISDIR(one["mode"])):
            blocks[one["ino"]] = one["blocks"]
    return 512 * sum(blocks.values())
