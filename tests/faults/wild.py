# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whatever is read that others have written: how bytes get there, and what must hold whatever they are.

One table for two drivers: hypothesis (test_wild.py) and a coverage-guided fuzzer (fuzz.py).
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

from besom.errors import BesomError

# The longest input. What takes too long at this length does not grow in step with it.
MOST = 1 << 16
# What one input may take of memory beyond what is in use already.
MOST_MEMORY = 512 << 20
SECONDS = 1.0


@dataclass(frozen=True)
class Target:
    """Something that reads what others have written.

    feed(data, place) hands the bytes to it, as a file in the directory place where it reads one, and
    returns what it makes of them; check(data, place, result) raises AssertionError for what must not be.
    answers: the errors that say what is wrong with the input, each in one line; any other is a finding.
    seeds, tokens: what is sound, and what its grammar is made of. mend: what makes checksums right again.
    seconds: of CPU, for an input of `most` bytes.
    """

    name: str
    feed: Callable[[bytes, Path], Any]
    seeds: tuple[bytes, ...]
    tokens: tuple[bytes, ...] = ()
    check: Callable[[bytes, Path, Any], None] = lambda _data, _place, _result: None
    answers: tuple[type[BaseException], ...] = (BesomError,)
    mend: Callable[[bytes], bytes] = bytes
    seconds: float = SECONDS
    most: int = MOST


class TooSlow(BaseException):
    """It took more time than an input of its length may; no `except Exception` is to catch this."""


def judge(target: Target, data: bytes, base: Path) -> None:
    """Give data to target; what is raised is a finding. base: a directory of this process alone."""
    try:
        _judge(target, data, base)
    except TooSlow:
        # The time in which a virtual machine is halted may count as its own; what is slow is so twice.
        _judge(target, data, base)


def _judge(target: Target, data: bytes, base: Path) -> None:
    place = base / "here"
    place.mkdir()
    try:
        # What is slow takes a multiple of its time; what reads little has a moment all the same.
        with _bounded(target.seconds * max(0.3, len(data) / target.most)):
            try:
                result = target.feed(data, place)
            except target.answers as error:
                said = str(error)
                assert said, "an error that says nothing"
                assert said.isprintable(), f"no line of text: {said!r}"
                assert len(said) < 3000, f"{len(said)} characters for one mistake"
                return
        target.check(data, place, result)
    finally:
        left = os.listdir(base)
        # The next input finds nothing of this one.
        shutil.rmtree(base)
        base.mkdir()
        assert left == ["here"], "something was written outside"


@contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    def over(_signum: int, _frame: object) -> None:
        raise TooSlow(f"more than {seconds:.2f} s of CPU")

    before = signal.signal(signal.SIGVTALRM, over)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as stream:
        now = int(stream.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY, hard))
    # Of the process, whatever else the machine does; nor is what earlier ones have left an input's,
    # which is collected between them.
    gc.disable()
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        gc.enable()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGVTALRM, before)


def swollen(data: bytes, start: int, length: int, most: int) -> bytes:
    """Data in which the slice at start stands as often as fits: what shows a reader that is not linear."""
    piece = data[start : start + max(length, 1)]
    if not piece:
        return data
    times = max(1, (most - len(data)) // len(piece))
    return data[:start] + piece * times + data[start:]
