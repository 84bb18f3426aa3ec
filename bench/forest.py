"""Trees to measure on: the same one from the same seed, as often as it is asked for."""

from __future__ import annotations

import os
import random
import subprocess
from array import array
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

SEED = 20260727
PER_DIRECTORY = 256
DAY_US = 24 * 60 * 60 * 1_000_000
# The bytes of a file, some in one block and some in two.
SIZES = (64, 700, 2_000, 4_000, 6_000)


def plant(path: Path, files: int, now_us: int) -> None:
    """Make a tree of so many files, 256 in a directory, each with an mtime of its own 3 to 40 days ago."""
    rng = random.Random(SEED)  # noqa: S311  # to be the same every time
    ages = rng.sample(range(3 * DAY_US, 40 * DAY_US), files)
    content = rng.randbytes(max(SIZES))
    path.mkdir()
    for start in range(0, files, PER_DIRECTORY):
        number = start // PER_DIRECTORY
        leaf = path / f"{number // 16:03x}" / f"{number % 16:x}"
        leaf.mkdir(parents=True)
        directory = os.open(leaf, os.O_RDONLY | os.O_DIRECTORY)
        for age in ages[start : start + PER_DIRECTORY]:
            name = f"{rng.getrandbits(64):016x}.bin"
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory)
            os.write(fd, content[: rng.choice(SIZES)])
            mtime = (now_us - age) * 1000
            os.utime(fd, ns=(mtime, mtime))
            os.close(fd)
        os.close(directory)


def clear(path: Path) -> None:
    """Remove what is left of a tree."""
    subprocess.run(["rm", "-rf", path], check=False)


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

    def oldest_over(self, limit: int) -> int:
        """How many of the oldest have to go until no more than limit bytes are left."""
        shed = self.usage - limit
        return next(n for n, gone in enumerate(accumulate(self.bytes, initial=0)) if gone >= shed)


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
