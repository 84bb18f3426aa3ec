# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which processes keep a mount busy: their cwd, root, open files and mappings, read from /proc.

The mount itself is never asked anything. Open files are known by the mnt_id in /proc/PID/fdinfo; a cwd
or root by the text of its link, and by opening it with O_PATH where that asks no server; a mapping by
its text and device in /proc/PID/maps (all of proc(5)).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Callable

from . import children
from .locks import SEVERAL_NUMBERS
from .mounts import MAY_HANG, Mount, mnt_id
from .units import printable

KINDS = ("cwd", "root", "file", "mmap")
# Opening with O_PATH through a link of /proc asks the server of NFS and 9p once more
# (d_weak_revalidate); FUSE is not asked.
_BY_TEXT = (*(kind for kind in MAY_HANG if kind != "fuse"), "overlay")


@dataclass(frozen=True)
class MountHolder:
    """A process that keeps a mount busy: kind is cwd, root, file or mmap; path is one such file."""

    pid: int
    command: str
    kind: str
    path: str

    def __str__(self) -> str:
        where = f" {printable(self.path)}" if self.kind in ("file", "mmap") else ""
        return f"pid {self.pid} ({printable(self.command)}: {self.kind}{where})"

    def to_dict(self) -> dict[str, object]:
        return {
            "pid": self.pid,
            "command": printable(self.command),
            "kind": self.kind,
            "path": printable(self.path),
        }


@dataclass
class Holders:
    """Holders by mount id; unseen counts processes that this user may not look at."""

    by_mount: dict[int, list[MountHolder]] = field(default_factory=dict)
    unseen: int = 0
    complete: bool = True

    @property
    def pids(self) -> set[int]:
        return {one.pid for found in self.by_mount.values() for one in found}

    def of(self, mount: int) -> list[MountHolder]:
        return self.by_mount.get(mount, [])


def find_holders(mounts: Sequence[Mount], timeout: float = 2.0) -> Holders:
    """Who holds each of these mounts of this namespace; ends after timeout (seconds) with what was found.

    A child looks: /proc/PID/maps of a process that waits for a hung server can hang as well.
    """
    if not mounts:
        return Holders()
    deepest_first = sorted(mounts, key=lambda mount: -len(mount.path))
    try:
        answer = children.ask(lambda write: _search(deepest_first, write), timeout)
    except OSError:
        return Holders(complete=False)
    found = Holders(complete=answer.status == 0)
    held: dict[tuple[int, int, str], str] = {}
    commands: dict[int, str] = {}
    for line in answer.output.split(b"\n"):
        with suppress(ValueError):
            record = json.loads(line)
            if "unseen" in record:
                found.unseen = record["unseen"]
            elif "command" in record:
                commands[record["pid"]] = record["command"]
            else:
                held.setdefault((record["mount"], record["pid"], record["kind"]), record["path"])
    for (mount, pid, kind), path in sorted(held.items(), key=_by_pid):
        found.by_mount.setdefault(mount, []).append(MountHolder(pid, commands.get(pid, ""), kind, path))
    return found


def _by_pid(item: tuple[tuple[int, int, str], str]) -> tuple[int, int]:
    (_mount, pid, kind), _path = item
    return pid, KINDS.index(kind)


def _search(mounts: Sequence[Mount], write: Callable[[bytes], None]) -> None:
    """Write a line of JSON for each find: {mount, pid, kind, path}, {pid, command} or {unseen}."""

    def tell(**values: object) -> None:
        write(json.dumps(values).encode() + b"\n")

    ids = frozenset(mount.id for mount in mounts)
    own, namespace = os.getpid(), os.readlink("/proc/self/ns/mnt")
    pids = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != own]
    unseen = 0
    named: set[str] = set()
    # What can hang comes last.
    looks: list[Callable[[str], Iterator[tuple[int, str, str]]]] = [
        lambda pid: _links(pid, mounts, namespace),
        lambda pid: _files(pid, ids),
        lambda pid: _mappings(pid, mounts, namespace),
    ]
    for number, look in enumerate(looks):
        for pid in pids:
            try:
                for mount, kind, path in look(pid):
                    if pid not in named:
                        named.add(pid)
                        tell(pid=int(pid), command=_command(pid))
                    tell(mount=mount, pid=int(pid), kind=kind, path=path)
            except PermissionError:
                unseen += number == 0
            except OSError:
                continue  # it has ended since
    tell(unseen=unseen)


def _command(pid: str) -> str:
    with open(f"/proc/{pid}/comm", "rb") as stream:
        return os.fsdecode(stream.read().rstrip(b"\n"))


def _links(pid: str, mounts: Sequence[Mount], namespace: str) -> Iterator[tuple[int, str, str]]:
    for kind in ("cwd", "root"):
        link = f"/proc/{pid}/{kind}"
        path = os.readlink(link)
        below = [mount for mount in mounts if is_below(path, mount.path)]
        # In another namespace the same text is a mount of its own.
        if not below or os.readlink(f"/proc/{pid}/ns/mnt") != namespace:
            continue
        if any(mount.fstype.startswith(_BY_TEXT) for mount in below):
            yield below[0].id, kind, path
            continue
        fd = os.open(link, os.O_PATH | os.O_CLOEXEC)
        try:
            exact = mnt_id(fd)
        finally:
            os.close(fd)
        if any(mount.id == exact for mount in below):
            yield exact, kind, path


def _files(pid: str, ids: Collection[int]) -> Iterator[tuple[int, str, str]]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            mount = mnt_id(int(name), pid)
            if mount in ids:
                yield mount, "file", os.readlink(f"/proc/{pid}/fd/{name}")
        except FileNotFoundError:
            continue  # closed since


def _mappings(pid: str, mounts: Sequence[Mount], namespace: str) -> Iterator[tuple[int, str, str]]:
    # The kernel writes a newline as \012 here, and nothing else in another way (proc(5)).
    texts = [(os.fsencode(mount.path).replace(b"\n", b"\\012"), mount) for mount in mounts]
    seen = set()
    with open(f"/proc/{pid}/maps", "rb") as stream:
        for line in stream:
            words = line.rstrip(b"\n").split(None, 5)
            if len(words) < 6 or (words[3], words[5]) in seen:
                continue
            seen.add((words[3], words[5]))
            for text, mount in texts:
                if is_below(words[5], text) and (
                    mount.fstype in SEVERAL_NUMBERS or _device(words[3]) == mount.device
                ):
                    if os.readlink(f"/proc/{pid}/ns/mnt") == namespace:
                        yield mount.id, "mmap", os.fsdecode(words[5].replace(b"\\012", b"\n"))
                    break


def _device(text: bytes) -> str:
    """`major:minor` in decimal, as mountinfo has it, of the hexadecimal one of maps."""
    major, _colon, minor = text.partition(b":")
    return f"{int(major, 16)}:{int(minor, 16)}"


def is_below(path: str | bytes, top: str | bytes) -> bool:
    """Whether path is top or lies below it, by its text."""
    one, other = os.fsencode(path), os.fsencode(top).rstrip(b"/")
    return one == other or one.startswith(other + b"/")
