# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Mount points by name: what a path means, which must stay mounted, and in which order mounts go.

All from mountinfo; nothing is looked up on a mount that does not answer.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence

from .answer import answers
from .errors import UsageError
from .mounts import MAY_HANG, Mount, mounts
from .root import SYSTEM, trust_link
from .units import printable
from .walk import components

# Mounts at these, and those at whatever contains them, carry the running system.
_STAYS = (*SYSTEM, "/tmp", "/var/tmp", "/var/lib", "/var/log", "/var/cache")  # noqa: S108
# So do all mounts below these.
_STAYS_BELOW = ("/dev", "/proc", "/sys")
_MAX_LINKS = 40


def resolve(path: str) -> str:
    """The mount point that path names: without symlinks, `.`, `..` and needless slashes.

    Raises UsageError for a path that is not absolute, or leads through a symlink that others could
    redirect.
    """
    shown = printable(path)
    if "\0" in path or not path.startswith("/"):
        raise UsageError(f"{shown} is not an absolute path.")
    points = {mount.path: mount for mount in mounts()}  # the last one at a path is the one on top
    todo = components(path)
    real, links = "", 0
    while todo:
        name = todo.pop()
        if name == "..":
            real = os.path.dirname(real).rstrip("/")
            continue
        here = f"{real}/{name}"
        # No symlink is a mount point, and a mount point need not be asked.
        if here not in points:
            if not _answers(real or "/", points):
                return "/".join([here, *reversed(todo)])
            try:
                target = os.readlink(here)
            except OSError:
                pass  # no symlink, or nothing at all
            else:
                links += 1
                if links > _MAX_LINKS:
                    raise UsageError(f"{shown} leads through too many symlinks.")
                _trust(shown, here, real or "/")
                todo += components(target)
                real = "" if target.startswith("/") else real
                continue
        real = here
    return real or "/"


def _answers(path: str, points: dict[str, Mount]) -> bool:
    """Whether the mount that path is on can be asked without hanging."""
    on = path
    while on not in points and on != "/":
        on = os.path.dirname(on)
    mount = points.get(on)
    if mount is None or not mount.fstype.startswith(MAY_HANG):
        return True
    try:
        # All on the way to it answers by now.
        fd = os.open(on, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return answers(fd)
    finally:
        os.close(fd)


def _trust(shown: str, link: str, parent: str) -> None:
    flags = os.O_PATH | os.O_CLOEXEC
    directory = os.open(parent, flags)
    try:
        fd = os.open(os.path.basename(link), flags | os.O_NOFOLLOW, dir_fd=directory)
        try:
            trust_link(shown, os.path.basename(link), fd, directory)
        finally:
            os.close(fd)
    finally:
        os.close(directory)


def refuse(path: str) -> None:
    """Raise UsageError for a mount point (resolved) that carries the running system."""
    for system in (*_STAYS, *glob.glob("/lib*")):
        below = system in _STAYS_BELOW and path.startswith(system + "/")
        if path == system:
            how = "it is a system directory"
        elif below:
            how = f"it is below {system}"
        elif system.startswith(path.rstrip("/") + "/"):
            how = f"it contains {system}, a system directory"
        else:
            continue
        raise UsageError(f"{printable(path)} is refused: {how}; besom leaves it mounted.")


def order(target: str, listed: Sequence[Mount]) -> list[Mount]:
    """The mounts at target and below, in the order in which they can be unmounted.

    Of what is mounted on one mount, the shortest path goes first, since it may hide the others; a mount
    stacked on the same path is the shortest of all. A trigger of autofs stays.
    """
    ordered: dict[int, Mount] = {}

    def add(mount: Mount) -> None:
        children = [one for one in listed if one.parent == mount.id and one.id != mount.id]
        for child in sorted(children, key=lambda one: len(one.path)):
            add(child)
        if mount.fstype != "autofs":
            ordered[mount.id] = mount

    at = [mount for mount in listed if mount.path == target]
    ids = {mount.id for mount in at}
    for mount in at:
        if mount.parent not in ids or mount.parent == mount.id:
            add(mount)
    return list(ordered.values())
