"""Trees to measure on: the same one from the same seed, as often as it is asked for."""

from __future__ import annotations

import json
import os
import random
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

SEED = 20260727
# Files in a directory, and in an entry of the layout trees.
PER_DIRECTORY, PER_TREE = 256, 64
DAY_US = 24 * 60 * 60 * 1_000_000
# The bytes of a file, some in one block and some in two.
SIZES = (64, 700, 2_000, 4_000, 6_000)
# The mtimes of one run are the same in all of its trees.
NOW_US = time.time_ns() // 1000
# A directory, and the name, bytes and mtime (us) of each file that is to be in it.
Bed = tuple[str, list[tuple[str, bytes, int]]]


def plant(path: Path, files: int, layout: str) -> None:
    """Make a tree of so many files, 3 to 40 days old: each entry of the layout has an age of its own."""
    path.mkdir()
    beds, workers = list(_LAYOUTS[layout](files)), os.cpu_count() or 1
    for directory in dict.fromkeys(directory for directory, _ in beds):
        (path / directory).mkdir(parents=True, exist_ok=True)
    children = []
    for number in range(workers):
        child = os.fork()
        if not child:
            status = 1
            try:
                for directory, content in beds[number::workers]:
                    _fill(path / directory, content)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    if any(statuses):
        raise OSError(f"the tree {path} could not be made")


def _fill(directory: Path, content: list[tuple[str, bytes, int]]) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for name, data, mtime in content:
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd)
        os.write(file, data)
        os.utime(file, ns=(mtime * 1000, mtime * 1000))
        os.close(file)
    # Of a tree that goes by age the directory has one, too.
    os.utime(fd, ns=(content[0][2] * 1000, content[0][2] * 1000))
    os.close(fd)


def _entries(count: int, size: int) -> Iterator[tuple[int, random.Random, list[tuple[bytes, int]]]]:
    """So many entries of size files: number, what is random in it, and bytes and mtime of each file."""
    rng = random.Random(SEED)  # noqa: S311  # to be the same every time
    data = rng.randbytes(max(SIZES))
    for number, age in enumerate(rng.sample(range(3 * DAY_US, 40 * DAY_US), count)):
        yield number, rng, [(data[: rng.choice(SIZES)], NOW_US - age) for _ in range(size)]


def _files(count: int) -> Iterator[Bed]:
    bed: list[tuple[str, bytes, int]] = []
    for number, rng, [(data, mtime)] in _entries(count, 1):
        bed.append((f"{rng.getrandbits(64):016x}.bin", data, mtime))
        if len(bed) == PER_DIRECTORY or number == count - 1:
            place = number // PER_DIRECTORY
            yield f"{place // 16:03x}/{place % 16:x}", bed
            bed = []


def _trees(count: int) -> Iterator[Bed]:
    for number, _, content in _entries(-(-count // PER_TREE), PER_TREE):
        yield f"entry-{number:06}", [(f"{at:03}", *file) for at, file in enumerate(content)]


def _sessions(count: int) -> Iterator[Bed]:
    for number, _, [(data, mtime), _] in _entries(count // 2, 2):
        told = json.dumps({"created_at": mtime / 1e6}).encode()
        yield ".", [(f"s{number:07}.json", told, mtime), (f"s{number:07}.data", data, mtime)]


_LAYOUTS = {"files": _files, "trees": _trees, "sessions": _sessions}


@dataclass(frozen=True)
class Census:
    """What is in a tree: mtime and allocated bytes of each file, the oldest first."""

    mtimes: array[int]
    bytes: array[int]

    def __len__(self) -> int:
        return len(self.mtimes)

    @property
    def usage(self) -> int:
        return sum(self.bytes)

    def without_oldest(self, count: int) -> Census:
        return Census(self.mtimes[count:], self.bytes[count:])

    def oldest_over(self, limit: int, together: int = 1) -> int:
        """How many of the oldest, so many at a time, have to go until no more than limit bytes are left."""
        shed = self.usage - limit
        gone = list(accumulate(self.bytes, initial=0))
        return next(count for count in range(0, len(gone), together) if gone[count] >= shed)


def census(path: Path) -> Census:
    found = []
    todo = [os.fspath(path)]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                else:
                    st = entry.stat(follow_symlinks=False)
                    found.append((st.st_mtime_ns, st.st_blocks * 512))
    found.sort()
    return Census(array("q", (mtime for mtime, _ in found)), array("q", (size for _, size in found)))
