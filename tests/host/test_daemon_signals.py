"""Signals at random, thousands of them, in every state of the daemon: none is lost, nothing is half done."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
from pathlib import Path

import pytest

from .host import PATIENCE_S, Host, Process

LAYOUTS = ("files", "trees")


def fill(host: Host, store: Path, layout: str) -> None:
    if layout == "files":
        host.fill(12, store)
        return
    for number in range(6):
        tree = store / f"tree{number}"
        if not tree.exists():
            # Made beside the store and moved in whole, as a cache that shares its store would.
            ready = host.path / f"ready{number}"
            ready.mkdir()
            host.fill(4, ready)
            ready.rename(tree)


def half_removed(store: Path, layout: str) -> list[Path]:
    """Trees with some of their files gone, and whatever a removal left behind."""
    trash = [path for path in store.iterdir() if path.name.startswith(".besom-")]
    if layout == "files":
        return trash
    return trash + [path for path in store.iterdir() if len(list(path.iterdir())) != 4]


@pytest.mark.parametrize("seed", [1, 2])
def test_no_signal_is_lost_and_nothing_is_left_half_done(host: Host, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311
    stores = {layout: host.path / layout for layout in LAYOUTS}
    configured = []
    for layout, store in stores.items():
        store.mkdir()
        configured.append({"name": layout, "path": str(store), "layout": layout, "max_entries": 2})
    host.configure(stores=configured)
    for _ in range(3):
        daemon = host.popen("daemon", "run", stderr=subprocess.DEVNULL)
        host.until(lambda now, pid=daemon.pid: now["pid"] == pid and now["runs"] > 0)
        for _ in range(3):
            for layout, store in stores.items():
                fill(host, store, layout)
            # Between two signals, sometimes the time in which the daemon gets somewhere.
            for _ in range(150):
                os.kill(daemon.pid, dice.choice((signal.SIGUSR1, signal.SIGUSR1, signal.SIGHUP)))
                select.select([], [], [], dice.choice((0, 0, 0.0005, 0.005)))
            assert host.daemon("trigger").status == 0
            for _ in range(20):
                os.kill(daemon.pid, dice.choice((signal.SIGUSR1, signal.SIGHUP)))
            done = host.daemon("wait", "--timeout", "60s")
            assert done.status == 0, done.stderr
            assert [len(list(store.iterdir())) for store in stores.values()] == [2, 2]
        for layout, store in stores.items():
            fill(host, store, layout)
        for signum in dice.choices((signal.SIGUSR1, signal.SIGHUP), k=dice.randrange(40)):
            os.kill(daemon.pid, signum)
        # Once, or once more for those who cannot wait; the second may find it gone.
        for signum in dice.choices((signal.SIGTERM, signal.SIGINT), k=dice.choice((1, 2))):
            daemon.send_signal(signum)
        assert daemon.wait(PATIENCE_S) == 0
        for layout, store in stores.items():
            assert not half_removed(store, layout)
        assert host.daemon("status")["state"] == "stopped"


def test_a_signal_while_it_starts_ends_it_or_is_heard(host: Host) -> None:
    """TERM at moments spread over the whole start: the daemon ends, and never with a traceback."""
    dice = random.Random(3)  # noqa: S311
    for _ in range(12):
        with Process(host.command("daemon", "run"), env=host.environment(), stderr=subprocess.PIPE) as daemon:
            select.select([], [], [], dice.uniform(0, 0.6))
            daemon.send_signal(signal.SIGTERM)
            _, said = daemon.communicate(timeout=PATIENCE_S)
        # Before Python has got as far as its own handlers, the kernel ends it.
        assert daemon.returncode in (0, -signal.SIGTERM, 143), said
        assert b"Traceback" not in said
