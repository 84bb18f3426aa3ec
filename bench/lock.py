"""The contest of who waits: how soon a lock that is released is taken, beside flock(1)."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Callable

from contest import Bar, Contender, Contest
from ground import Ground
from stopwatch import Sample

from besom.guard import guarded
from besom.owner_file import OwnerFile
from besom.root import Root
from besom.run import Run

WAITER = """
import fcntl, sys
from besom.guard import guarded
from besom.root import Root
from besom.run import Run
if sys.argv[2:]:
    fcntl.flock = lambda fd, operation: None  # as where it does nothing
tell = lambda text: print(text, flush=True)
with Root(sys.argv[1]) as root, guarded(root, Run(lock_timeout=60, waiting=tell)):
    tell("won")
"""


@contextmanager
def flock(store: str) -> Iterator[Callable[[], None]]:
    """The store, held by flock; gives what releases it."""
    fd = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


@contextmanager
def owner_file(store: str) -> Iterator[Callable[[], None]]:
    """The same, held by an owner file."""
    with Root(store) as root:
        file = OwnerFile(root.fd, root.path)
        assert file.attempt()
        yield file.release


def besom(store: str, *words: str) -> subprocess.Popen[str]:
    """A writer of besom that waits."""
    process = start([sys.executable, "-c", WAITER, store, *words])
    assert process.stdout
    assert process.stdout.readline().startswith("Waiting")
    return process


def flock_1(store: str) -> subprocess.Popen[str]:
    """flock(1), asleep in the kernel; it says so when it has the lock."""
    process = start(["stdbuf", "-oL", "flock", "--verbose", store, "true"])
    inode = str(os.stat(store).st_ino)
    while not any(
        "->" in line and f":{inode} " in line for line in Path("/proc/locks").read_text().splitlines()
    ):
        time.sleep(0.001)
    return process


def start(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


WAYS = {
    "besom, flock": (flock, besom, (Bar("ms", 20),)),
    "besom, owner file": (owner_file, lambda store: besom(store, "owner file"), ()),
    "flock(1)": (flock, flock_1, ()),
}


def hand_over(store: str, way: str) -> Sample:
    """From the release to the word of the waiter that it has the lock."""
    hold, wait, _ = WAYS[way]
    with hold(store) as release:
        process = wait(store)
        # Anywhere between two looks of a waiter that looks.
        time.sleep(random.uniform(0, 0.25))  # noqa: S311
        began = time.perf_counter()
        release()
        assert process.stdout
        assert process.stdout.readline()
        took = time.perf_counter() - began
        process.communicate(timeout=60)
    return Sample(took)


def free(store: str, rounds: int) -> float:
    """Seconds to take and give back a lock that nobody holds, in the median."""
    took = []
    with Root(store) as root:
        for _ in range(rounds):
            began = time.perf_counter()
            with guarded(root, Run(lock_timeout=0)):
                pass
            took.append(time.perf_counter() - began)
    return median(took)


def lock(ground: Ground) -> Iterator[Contest]:
    with ground.directory() as store:

        def contender(way: str) -> Contender:
            return Contender(way, lambda: hand_over(str(store), way), WAYS[way][2])

        yield Contest(
            "lock",
            "Hand-over of a lock, from its release to the word of who waited",
            [contender(way) for way in WAYS],
            compared="",
            rounds=2 if ground.quick else 40,
            notes=lambda: [
                f"A lock that is free is taken and given back in {free(str(store), 500) * 1e6:.0f} us."
            ],
        )
