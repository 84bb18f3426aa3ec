"""Holders that stop, die, fork, execute and have threads: the lock of a store is theirs alone."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from besom.guard import guarded
from besom.root import Root
from besom.run import Run

from ..host.host import BESOM, DAY, PATIENCE_S, Process, await_exit
from ..host.told import told
from .conftest import ALL, Tried
from .mutants import replacing

CYCLES = 20 if ALL else 2
PRUNE = ["--layout", "trees", "--max-age", "1d"]


def fill(store: Path) -> Path:
    for number in range(3):
        (store / f"tree{number}").mkdir(parents=True)
        (store / f"tree{number}/file").write_text("x")
        for path in (store / f"tree{number}/file", store / f"tree{number}"):
            os.utime(path, (time.time() - 10 * DAY,) * 2)
    return store


def is_free(store: Path) -> bool:
    fd = os.open(store, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def environment() -> dict[str, str]:
    return {**os.environ, "BESOM_CONFIG": os.devnull}


def prune(store: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BESOM, "prune", str(store), *PRUNE, *words],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


class Holder:
    """besom in the midst of a prune of store, whose hook has opened gate and waits for its other end."""

    def __init__(self, store: Path, hook: str = "true") -> None:
        self.store, gate = store, store.with_name("gate")
        config = store.with_name("besom.yml")
        gate.unlink(missing_ok=True)
        os.mkfifo(gate)
        victim = {
            "name": "victim",
            "path": str(store),
            "layout": "trees",
            "max_age": "1d",
            "hook_timeout": "1h",
        }
        # Opening a FIFO waits for its other end.
        victim["before_prune"] = f"{hook}; : > {gate}; cat {gate}"
        config.write_text(json.dumps({"stores": [victim]}))
        self.gate = gate
        self.process = Process([*BESOM, "--config", str(config), "prune", "victim"], env=environment())
        with gate.open("rb"):
            # The hook is at work, so the lock is held.
            pass
        assert not is_free(store)

    def go_on(self) -> None:
        self.gate.write_bytes(b"")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        # Its hook goes as well: it finds no one at the other end any more.
        with contextlib.suppress(OSError):
            os.close(os.open(self.gate, os.O_WRONLY | os.O_NONBLOCK))


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    made: list[Holder] = []
    yield made
    for holder in made:
        holder.close()


def test_one_that_is_stopped_is_named_and_goes_on_later(
    tmp_path: Path, tried: Tried, holders: list[Holder]
) -> None:
    for number in range(CYCLES):
        store = fill(tmp_path / f"{number}/store")
        holder = Holder(store)
        holders.append(holder)
        os.kill(holder.process.pid, signal.SIGSTOP)
        os.waitpid(holder.process.pid, os.WUNTRACED)
        refused = prune(store, "--lock-timeout", "0.2s")
        assert refused.returncode == 75
        assert f"locked by pid {holder.process.pid} (" in refused.stderr
        assert len(list(store.iterdir())) == 3
        os.kill(holder.process.pid, signal.SIGCONT)
        holder.go_on()
        assert holder.process.wait(PATIENCE_S) == 0
        assert list(store.iterdir()) == []
        tried("contention: holders that were stopped or killed")


def test_one_that_is_killed_holds_nobody_up(tmp_path: Path, tried: Tried, holders: list[Holder]) -> None:
    for number in range(CYCLES):
        store = fill(tmp_path / f"{number}/store")
        holder = Holder(store)
        holders.append(holder)
        config, log = tmp_path / f"{number}/waiting.yml", tmp_path / f"{number}/log"
        shared = {"name": "shared", "path": str(store), "layout": "trees", "max_age": "1d"}
        values = {"stores": [shared], "log": {"format": "clef", "file": str(log)}}
        config.write_text(json.dumps({**values, "daemon": {"state_dir": str(tmp_path / "state")}}))
        command = [*BESOM, "--config", str(config), "housekeep", "--lock-timeout", f"{PATIENCE_S}s"]
        with Process(command, env=environment(), stderr=subprocess.PIPE, text=True) as waiting:
            told(log, "lock_awaited")
            # The others wait in their turn, and not for the children of the dead one, which live on.
            holder.process.kill()
            _out, errors = waiting.communicate(timeout=PATIENCE_S)
        assert waiting.returncode == 0, errors
        assert list(store.iterdir()) == []
        tried("contention: holders that were stopped or killed")


def test_a_child_that_outlives_its_hook_holds_nothing(
    tmp_path: Path, tried: Tried, holders: list[Holder]
) -> None:
    """It has a session of its own, so that it is not ended with the hook."""
    store, pids = fill(tmp_path / "store"), tmp_path / "pid"
    holder = Holder(store, f"setsid sh -c 'echo $$ > {pids}; exec sleep 3600' >/dev/null 2>&1 & sleep 0")
    holders.append(holder)
    holder.go_on()
    assert holder.process.wait(PATIENCE_S) == 0
    pid = int(pids.read_text())
    try:
        assert Path(f"/proc/{pid}").exists()
        assert is_free(store)
        assert str(store) not in {os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()}
    finally:
        os.kill(pid, signal.SIGKILL)
        await_exit(pid)
    tried("contention: children that lived on without the lock")


@pytest.mark.parametrize("close", [True, False])
def test_a_program_that_is_executed_has_no_lock(tmp_path: Path, tried: Tried, close: bool) -> None:
    """Also where nobody has closed descriptors before, as a library might start one."""
    store = fill(tmp_path / "store")
    with Root(str(store)) as root:
        with guarded(root, Run()):
            child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=close)
        assert is_free(store)
    try:
        assert str(store) not in {os.readlink(one) for one in Path(f"/proc/{child.pid}/fd").iterdir()}
    finally:
        child.communicate()
    tried("contention: children that lived on without the lock")


def test_a_forked_child_does_not_keep_the_lock_of_one_that_gives_it_up(tmp_path: Path, tried: Tried) -> None:
    store = fill(tmp_path / "store")
    source, sink = os.pipe()
    with Root(str(store)) as root, guarded(root, Run()):
        pid = os.fork()
        if not pid:
            os.close(sink)
            os.read(source, 1)
            os._exit(0)
    try:
        assert is_free(store)
    finally:
        os.close(sink)
        os.close(source)
        os.waitpid(pid, 0)
    tried("contention: children that lived on without the lock")


def threads_overlap(store: Path) -> int:
    """How many of the holds of eight threads, four each, overlap with another."""
    holds: list[tuple[float, float]] = []

    def work() -> None:
        for _ in range(4 if not ALL else 40):
            with Root(str(store)) as root, guarded(root, Run(lock_timeout=PATIENCE_S)):
                began = time.monotonic()
                # Not for an event: long enough for another to come in, were it let in.
                time.sleep(0.001)
                holds.append((began, time.monotonic()))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    holds.sort()
    return sum(later[0] < one[1] for one, later in zip(holds, holds[1:]))


def test_threads_of_one_process_keep_each_other_out(tmp_path: Path, tried: Tried) -> None:
    assert threads_overlap(fill(tmp_path / "store")) == 0
    tried("contention: holds of threads of one process, of which no two overlap", 320 if ALL else 32)


def test_a_lock_that_is_skipped_is_noticed(tmp_path: Path, tried: Tried) -> None:
    with replacing("lock skipped"), replacing("proof of the lock skipped"):
        assert threads_overlap(fill(tmp_path / "store"))
    tried("contention: planted faults that were noticed")
