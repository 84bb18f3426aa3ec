"""bench/lock: how soon who waits for a store has its lock once it is released, beside flock(1)."""

from __future__ import annotations

import argparse
import fcntl
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Callable

from contests import TOP

from besom.guard import guarded
from besom.owner_file import OwnerFile
from besom.root import Root
from besom.run import Run

RESULTS = TOP / "bench/RESULTS-lock.md"
BAR_S = 0.02

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
    "besom, flock": (flock, besom),
    "flock(1)": (flock, flock_1),
    "besom, owner file": (owner_file, lambda store: besom(store, "owner file")),
}


def hand_over(store: str, way: str) -> float:
    """Seconds from the release to the word of the waiter that it has the lock."""
    hold, wait = WAYS[way]
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
    return took


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


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/lock", description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="of each way (default 40)")
    parser.add_argument("--record", action="store_true", help="write bench/RESULTS-lock.md too")
    options = parser.parse_args()
    rounds, load = max(2, options.rounds), os.getloadavg()[0]
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="besom-bench-") as store:
        for _ in range(rounds):
            for way in WAYS:
                times[way].append(hand_over(store, way))
        uncontended = free(store, 500)
    lines = [
        "# How soon a lock changes hands",
        "",
        "Written by `bench/lock --record`; do not edit. From the release to the word of the one that waited,",
        f"read by the one that released; {rounds} rounds, interleaved; load before: {load:.1f}.",
        f"Taking and giving back a lock that is free: {uncontended * 1e6:.0f} us.",
        "",
        "| | median | 90 % | most | bar |",
        "|---|---|---|---|---|",
    ]
    for way, all_of in times.items():
        middle = median(all_of)
        bar = (
            f"<= {BAR_S * 1000:.0f} ms {'met' if middle <= BAR_S else 'MISSED'}"
            if way == "besom, flock"
            else ""
        )
        figures = (middle, quantiles(all_of, n=10)[-1], max(all_of))
        lines.append(f"| {way} | {' | '.join(f'{figure * 1000:.1f} ms' for figure in figures)} | {bar} |")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.record:
        RESULTS.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
