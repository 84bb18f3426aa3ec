# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removal shared between processes: the same outcome as in one, and none of them outlives its parent."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from besom import inventory, prune, removal
from besom.run import Run
from besom.shutdown import Shutdown

SEVERAL = "from besom import inventory, removal; inventory.CHUNK = 2; removal._WORTH_FORKING = 1;"


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a small store is worth several processes, with a few files each."""
    monkeypatch.setattr(inventory, "CHUNK", 2)
    monkeypatch.setattr(removal, "_WORTH_FORKING", 1)


def deep_store(area: Any) -> None:
    """Old files on all levels of a few branches, a young one, and directories that were empty before."""
    for branch in "abc":
        for level in range(1, 7):
            for number in range(3):
                area.file("/".join([branch] * level) + f"/{number}", days=9)
    area.file("b/b/b/young", days=0)
    area.dir("a/a/empty")
    area.dir("empty")


def everything(area: Any) -> list[str]:
    return sorted(
        os.path.relpath(os.path.join(d, n), area.path) for d, ds, fs in os.walk(area.path) for n in ds + fs
    )


@pytest.mark.usefixtures("several")
def test_what_several_processes_leave_is_what_one_leaves(
    area: Any, make_area: Callable[[str], Any], pruned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_area("other")
    deep_store(area)
    deep_store(other)
    children: list[int] = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: children.append(fork()) or children[-1])
    report = pruned(area, max_age="1d")
    assert len(children) == 3
    monkeypatch.setattr(removal, "_WORTH_FORKING", 10**9)
    alone = pruned(other, max_age="1d")
    assert (
        everything(area)
        == everything(other)
        == ["a", "a/a", "a/a/empty", "b", "b/b", "b/b/b", "b/b/b/young", "empty"]
    )
    one, two = report.to_dict(), alone.to_dict()
    for key in (
        "removed",
        "planned",
        "bytes_before",
        "bytes_after",
        "victims_total",
        "failures",
        "kept",
        "anomalies",
    ):
        assert one[key] == two[key], key
    assert one["removed"]["entries"] == 54


@pytest.mark.usefixtures("several")
def test_directories_emptied_together_by_several_processes_go(area: Any, pruned: Callable[..., Any]) -> None:
    for number in range(16):
        area.file(f"top/{number % 4}/{number}", days=9)
    report = pruned(area, max_age="1d")
    assert (report.removed.entries, everything(area)) == (16, [])


@pytest.mark.usefixtures("several")
def test_what_changed_is_kept_by_every_process(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any]
) -> None:
    for number in range(16):
        area.file(f"{number % 4}/{number}", days=9)
    run = make_run()
    with prune.Root(str(area.path)) as root:
        planned = prune.plan(request_for(area, max_age="1d"), root, run)
        for number in range(8):
            area.file(f"{number % 4}/{number}", days=9, size=100)
        report = prune._Execution(planned, run).execute()
    assert report.removed.entries == report.kept.total == report.victims.total == 8
    assert {os.path.basename(item["path"]) for item in report.kept.items} == {str(n) for n in range(8)}
    assert {os.path.basename(item["path"]) for item in report.victims.items} == {str(n) for n in range(8, 16)}


@pytest.mark.usefixtures("several")
def test_a_worker_that_dies_is_a_failure_and_the_next_run_converges(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any], pruned: Callable[..., Any]
) -> None:
    deep_store(area)
    parent = os.getpid()

    def die(phase: str, done: int, total: int) -> None:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    report = prune.prune(request_for(area, max_age="1d"), make_run(progress=die))
    assert report.failures.total == 3
    assert "a worker process died" in report.failures.items[0]["reason"]
    assert pruned(area, max_age="1d").failures.total == 0
    assert "b/b/b/young" in everything(area)
    assert len([name for name in everything(area) if name[-1].isdigit()]) == 0


@pytest.mark.usefixtures("several")
def test_a_shutdown_ends_every_process_and_the_figures_are_what_is_gone(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any]
) -> None:
    for number in range(400):
        area.file(f"{number % 20}/{number}", days=9)
    shutdown = Shutdown()
    parent = os.getpid()

    def stop(phase: str, done: int, total: int) -> None:
        if phase == "remove" and os.getpid() == parent:
            shutdown.request(signal.SIGTERM)
        elif phase == "remove":
            # Slow enough to be told before it is done.
            signal.sigtimedwait([], 0.01)

    report = prune.prune(request_for(area, max_age="1d"), make_run(progress=stop, shutdown=shutdown))
    left = len([name for name in everything(area) if "/" in name])
    assert report.interrupted
    assert 0 < report.removed.entries == 400 - left < 400
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_workers_end_and_free_the_store_when_their_parent_is_killed(area: Any) -> None:
    for number in range(4000):
        area.file(f"{number % 20}/{number}", days=9)
    program = f"""{SEVERAL}
import os, signal
from besom.policy import Policy, Store
from besom.prune import Request, prune
from besom.run import Run
parent = os.getpid()
def die(phase, done, total):
    if phase == "remove" and os.getpid() == parent:
        os.kill(parent, signal.SIGKILL)
prune(Request(Store({str(area.path)!r}, "files", Policy(max_age=1))), Run(progress=die))
"""
    killed = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    store = os.open(area.path, os.O_RDONLY)
    signal.alarm(20)  # no sleep: flock returns when the last worker is gone
    fcntl.flock(store, fcntl.LOCK_EX)
    signal.alarm(0)
    os.close(store)
    assert len(everything(area)) > 2000
