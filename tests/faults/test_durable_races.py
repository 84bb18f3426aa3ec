"""Readers that take no lock, while writers publish: every read is whole, and none waits."""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Callable

import pytest

from besom.durable import draft, sync_directory
from besom.guard import guarded
from besom.root import Root
from besom.run import Run

from .child import Child
from .conftest import ALL, Tried

# With fifty reads for each publication.
PUBLICATIONS = 2000 if ALL else 100
READS = 50 * PUBLICATIONS
READERS, WRITERS, TARGETS, STOPS = 8, 4, 4, 5
READS_PER_LINE = 20
PATIENCE_S = 120

Put = Callable[[Root, str, bytes], None]
Say = Callable[..., None]


def dice(number: int) -> random.Random:
    """The same chances every time."""
    return random.Random(number)  # noqa: S311 - for no secrets


def document(writer: int, number: int, chance: random.Random) -> bytes:
    body = f"{writer}:{number} " * chance.randrange(1, 8000)
    digest = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({"body": body, "sha256": digest}).encode()


def is_whole(raw: bytes) -> bool:
    try:
        value = json.loads(raw)
        return bool(hashlib.sha256(value["body"].encode()).hexdigest() == value["sha256"])
    except (ValueError, KeyError, TypeError):
        return False


def publish(root: Root, name: str, content: bytes) -> None:
    """Written outside the writer lock and published inside it, as besom does."""
    with draft(root.fd, root.path, name) as one:
        one.write(content)
        one.seal()
        with guarded(root, Run(lock_timeout=PATIENCE_S)):
            one.publish()
            sync_directory(root.fd)


def write_in_place(root: Root, name: str, content: bytes) -> None:
    with open(os.path.join(root.path, name), "wb", buffering=0) as file:
        file.write(content[:1000])
        file.write(content[1000:])


class Member:
    """One of a crowd, and what it has told last: how much it has done, and what was wrong."""

    def __init__(self, work: Callable[[Say], None], stack: ExitStack) -> None:
        self.fd, saying = os.pipe()

        def say(done: int, torn: int = 0, seen: int = 0) -> None:
            os.write(saying, json.dumps({"done": done, "torn": torn, "seen": seen}).encode() + b"\n")

        self.child = stack.enter_context(Child(lambda: work(say)))
        os.close(saying)
        stack.callback(os.close, self.fd)
        self.done = self.torn = self.seen = 0
        self._text = b""

    def hear(self) -> bool:
        """Take in what it has said; False when it is at its end."""
        text = os.read(self.fd, 100_000)
        *lines, self._text = (self._text + text).split(b"\n")
        if lines:
            vars(self).update(json.loads(lines[-1]))
        return bool(text)


class Crowd:
    """Readers and writers at work in one directory."""

    def __init__(self, path: Path, stack: ExitStack, put: Put) -> None:
        self.path, self._put = path, put
        self._stop, self._stopping = os.pipe()
        stack.callback(os.close, self._stop)
        self.readers = [Member(partial(self._read, number), stack) for number in range(READERS)]
        self.writers = [Member(partial(self._write, number), stack) for number in range(WRITERS)]
        self._all = {member.fd: member for member in self.readers + self.writers}
        for member in self._all.values():
            member.child.go()

    def _is_over(self) -> bool:
        return bool(select.select([self._stop], [], [], 0)[0])

    def _write(self, number: int, say: Say) -> None:
        os.close(self._stopping)
        chance = dice(number)
        with Root(str(self.path)) as root:
            for done in count(1):
                name = f"target-{chance.randrange(TARGETS)}"
                self._put(root, name, document(number, done, chance))
                say(done)
                if self._is_over():
                    return

    def _read(self, number: int, say: Say) -> None:
        os.close(self._stopping)
        chance = dice(number)
        torn, seen = 0, set()
        for done in count(1):
            raw = (self.path / f"target-{chance.randrange(TARGETS)}").read_bytes()
            torn += not is_whole(raw)
            seen.add(raw[:40])
            if done % READS_PER_LINE == 0:
                say(done, torn, len(seen))
                if self._is_over():
                    return

    def listen(self, until: Callable[[], bool]) -> None:
        """Hear what they say until that is so; fails when nobody says anything for long."""
        while not until():
            ready = select.select(list(self._all), [], [], PATIENCE_S)[0]
            assert ready, "all of them wait for something"
            for fd in ready:
                if not self._all[fd].hear():
                    del self._all[fd]

    def stop_writers(self) -> None:
        """Stop them wherever they are, locks and all, and see that every reader goes on."""
        for member in self.writers:
            os.kill(member.child.pid, signal.SIGSTOP)
            assert member.child.wait(stopped=True) == -signal.SIGSTOP
        # What they have said before is heard before; after that, the second line is news.
        for fd in select.select(list(self._all), [], [], 0)[0]:
            self._all[fd].hear()
        goals = [(member, member.done + 2 * READS_PER_LINE) for member in self.readers]
        self.listen(lambda: all(member.done >= goal for member, goal in goals))
        for member in self.writers:
            os.kill(member.child.pid, signal.SIGCONT)

    def end(self) -> None:
        os.close(self._stopping)
        self.listen(lambda: not self._all)
        for member in self.readers + self.writers:
            assert member.child.wait() == 0, member.child.said()


def total(members: list[Member], what: str) -> int:
    return sum(getattr(member, what) for member in members)


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Callable[[Put], Crowd]]:
    """crowd(put): readers, and writers that put documents with it."""
    for number in range(TARGETS):
        (tmp_path / f"target-{number}").write_bytes(document(0, 0, dice(number)))
    with ExitStack() as stack:
        yield lambda put: Crowd(tmp_path, stack, put)


def test_every_read_is_whole_and_no_reader_waits(
    tmp_path: Path, crowd: Callable[[Put], Crowd], tried: Tried
) -> None:
    one, chance = crowd(publish), dice(1)
    for _ in range(STOPS):
        moment = one.readers[0].done + chance.randrange(10 * READS_PER_LINE)
        one.listen(lambda moment=moment: one.readers[0].done > moment)
        one.stop_writers()
    one.listen(lambda: total(one.readers, "done") >= READS and total(one.writers, "done") >= PUBLICATIONS)
    one.end()
    assert total(one.readers, "torn") == 0
    # They have seen what was published meanwhile, each of them.
    assert min(member.seen for member in one.readers) > TARGETS
    assert sorted(os.listdir(tmp_path)) == [f"target-{number}" for number in range(TARGETS)]
    tried("reads while files are published", total(one.readers, "done"))
    tried("publications while files are read", total(one.writers, "done"))


def test_a_torn_read_would_be_noticed(crowd: Callable[[Put], Crowd]) -> None:
    one = crowd(write_in_place)
    one.listen(lambda: total(one.readers, "torn") > 0)
    one.end()
