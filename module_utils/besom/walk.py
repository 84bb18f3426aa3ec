# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Opening a path component by component, so that no mount on the way is used before it answers."""

from __future__ import annotations

import errno
import os
from typing import Callable

from .answer import require_answer
from .errors import UsageError
from .mounts import mnt_id
from .units import is_name, printable

_MAX_LINKS = 40
# on_link(name, descriptor of the link, descriptor of its directory, whether it is the last component)
OnLink = Callable[[str, int, int, bool], None]


def follow(_name: str, _link: int, _parent: int, _last: bool) -> None:
    """Every symlink may be followed."""


def components(path: str) -> list[str]:
    """The components of path, the first one last."""
    return [part for part in path.split("/") if part not in ("", ".")][::-1]


def walk(path: str, on_link: OnLink = follow) -> int:
    """An O_PATH descriptor of an absolute path.

    on_link may refuse to follow a symlink by raising. Raises UsageError for a path that is none,
    NoAnswer for a mount on the way (or at the end) that does not answer, OSError as open(2) does.
    """
    shown = printable(path)
    if not is_name(path) or not path.startswith("/"):
        raise UsageError(f"{shown} is not an absolute path.")
    todo = components(path)
    if len(todo) > 2000:
        raise UsageError(f"{shown[:80]}... has too many components.")
    links = 0
    here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        mount = _arrive(here, -1, path)
        while todo:
            name = todo.pop()
            # Without O_DIRECTORY the last component cannot trigger an automount.
            step = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            try:
                target = os.readlink("", dir_fd=step)
            except OSError:
                # Not a symlink; readlink answers that without asking a file system that may hang.
                os.close(here)
                here = step
                mount = _arrive(here, mount, path)
                continue
            try:
                links += 1
                on_link(name, step, here, not todo)
                if links > _MAX_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            finally:
                os.close(step)
            todo += components(target)
            if target.startswith("/"):
                os.close(here)
                here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                mount = _arrive(here, mount, path)
    except BaseException:
        os.close(here)
        raise
    return here


def _arrive(fd: int, before: int, path: str) -> int:
    """The id of the mount that fd is on, which answers if it is another than before."""
    mount = mnt_id(fd)
    if mount != before:
        require_answer(fd, path)
    return mount
