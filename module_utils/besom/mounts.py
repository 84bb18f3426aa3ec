# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which mount a descriptor is on, and which mounts there are, without touching what may hang.

stat, fstat and statvfs on a FUSE mount whose server is stopped block for ever. Opening with O_PATH,
and reading /proc/self/fdinfo and /proc/self/mountinfo (proc(5)), do not ask the server.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_MNT_ID = re.compile(rb"^mnt_id:\s*(\d+)", re.MULTILINE)
# The kernel's ids are of 32 bits.
_ID = re.compile(rb"[0-9]{1,18}")
_OCTAL = re.compile(rb"\\([0-7]{3})")
# Beginnings of the types of file systems that may wait for a server, so that even a stat of them can hang.
MAY_HANG = (
    *("9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse", "gfs2", "gluster"),
    *("gpfs", "lustre", "ncp", "nfs", "ocfs2", "orangefs", "prl_fs", "smb", "vboxsf", "virtiofs"),
)


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo; device is the `major:minor` of the whole file system."""

    id: int
    parent: int
    device: str
    path: str
    options: str
    fstype: str
    source: str


def mnt_id(fd: int, pid: str = "self") -> int:
    """The id of the mount that fd (O_PATH will do) of a process is on.

    Raises OSError where /proc is not mounted, or shows this user no such descriptor.
    """
    info = os.open(f"/proc/{pid}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        match = _MNT_ID.search(os.read(info, 512))
    finally:
        os.close(info)
    if match is None:
        raise OSError(f"/proc/{pid}/fdinfo/{fd} has no mnt_id")
    return int(match.group(1))


def parse_mountinfo(text: bytes) -> list[Mount]:
    """The mounts in the text of a mountinfo file; lines that do not fit the format are left out."""
    mounts = []
    for line in text.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        head, tail = before.split(b" "), after.split(b" ")
        if not separator or len(head) < 6 or len(tail) < 2 or not all(map(_ID.fullmatch, head[:2])):
            continue
        path, source = (
            os.fsdecode(_OCTAL.sub(lambda m: bytes([int(m.group(1), 8) & 255]), b))
            for b in (head[4], tail[1])
        )
        words = [os.fsdecode(b) for b in (head[2], head[5], tail[0])]
        mounts.append(Mount(int(head[0]), int(head[1]), words[0], path, words[1], words[2], source))
    return mounts


def mounts() -> list[Mount]:
    """The mounts of this process's mount namespace."""
    with open("/proc/self/mountinfo", "rb") as stream:
        return parse_mountinfo(stream.read())


def mount_of(fd: int) -> Mount | None:
    """The mount that fd is on; None when this namespace does not list it."""
    with open("/proc/self/mountinfo", "rb") as stream:
        lines = re.findall(b"^%d .*" % mnt_id(fd), stream.read(), re.MULTILINE)
    return next(iter(parse_mountinfo(b"\n".join(lines))), None)


def names_mounted_on(parent: int) -> frozenset[str]:
    """Last components of the mount points directly on the mount with id parent.

    A file can be a mount point as well, and a stat of it asks the file system mounted there: a name
    in this set is looked at by O_PATH first.
    """
    return frozenset(os.path.basename(m.path) for m in mounts() if m.parent == parent and m.id != parent)
