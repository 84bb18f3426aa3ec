"""besom drain: the phases of a shutdown on a host of its own, whose /run nobody else sees."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from .conftest import Held
from .fuse import Fuse, mounted, stop
from .host import PATIENCE_S, Done, Host
from .own_run import own_run
from .told import told

pytestmark = pytest.mark.root

GUIDE = Path(__file__).parents[2] / "docs/operating.md"
FAST = {"daemon_timeout": "4s", "unmount_timeout": "2s", "prune_timeout": "8s"}


class Draining(Host):
    """A host with a /run of its own."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.run = path / "run"
        self.run.mkdir()

    def drain(self, *words: object) -> Done:
        return self.besom("drain", *words)

    @property
    def flag(self) -> Path:
        return self.run / "besom-drain"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Draining]:
    one = Draining(tmp_path)
    one.configure(drain=FAST)
    with own_run(one.run):
        yield one
        one.close()


@pytest.fixture
def fuse(host: Draining, tmp_path: Path) -> Iterator[Fuse]:
    """FUSE mounts in the host's namespace, which the fixture host has entered."""
    one = Fuse(tmp_path)
    yield one
    one.clear()


def phases(done: Done) -> dict[str, dict[str, Any]]:
    return {phase["name"]: phase for phase in done["phases"]}


def states(done: Done) -> dict[str, str]:
    return {phase["name"]: phase["state"] for phase in done["phases"]}


def test_every_phase_is_gone_through_and_a_second_drain_changes_nothing(host: Draining) -> None:
    host.start()
    host.fill(5)
    done = host.drain()
    assert done.status == 0, done.stderr
    assert set(states(done).values()) == {"done"}
    assert done["changed"] is True
    assert phases(done)["prune"]["report"]["removed"]["entries"] == 2
    assert len(host.names()) == 3
    assert host.flag.exists()
    assert host.daemon("status")["state"] == "stopped"
    for phase in done["phases"]:
        assert phase["started"] <= phase["ended"]
    again = host.drain()
    assert (again.status, again["changed"]) == (0, False)


def test_a_dry_run_says_the_same_and_does_nothing(host: Draining) -> None:
    pid = host.start()
    host.fill(5)
    planned = host.drain("--dry-run")
    assert planned.status == 0
    assert set(states(planned).values()) == {"planned"}
    assert phases(planned)["prune"]["report"]["planned"]["entries"] == 2
    assert [phase["name"] for phase in planned["phases"] if phase["changed"]] == ["refuse", "daemon", "prune"]
    assert len(host.names()) == 5
    assert not host.flag.exists()
    assert host.daemon("status")["pid"] == pid
    done = host.drain()
    assert [phase["changed"] for phase in done["phases"]] == [phase["changed"] for phase in planned["phases"]]


def test_a_draining_host_refuses_new_work_until_it_is_resumed(host: Draining) -> None:
    host.fill(5)
    assert host.drain().status == 0
    store, manifest = str(host.store), host.path / "manifest"
    manifest.write_text(f"{{store: {store}/, artifacts: []}}")
    archive = ("http://127.0.0.1:9/archive", "--into", store, "--name", "app")
    refused = {
        "housekeep": host.besom("housekeep"),
        "prune": host.besom("prune", store, "--layout", "files", "--max-entries", "1"),
        "sweep": host.besom("sweep", store),
        "clean": host.besom("clean"),
        "purge": host.besom("purge", store, "--layout", "files", "--older-than", "1d", "--yes"),
        "sync": host.besom("sync", manifest),
        "install": host.besom("install", *archive),
        "start": host.daemon("start"),
        "trigger": host.daemon("trigger", "--start"),
        "daemon run": host.daemon("run"),
    }
    assert {name: done.status for name, done in refused.items()} == dict.fromkeys(refused, 75)
    for done in refused.values():
        assert "This host drains since" in done["error"]
        assert "--resume" in done["error"]
    (row,) = (line for line in GUIDE.read_text().splitlines() if line.startswith("| refuse |"))
    assert [name for name in refused if f"`{name}`" not in row] == []
    assert host.besom("housekeep", "--dry-run").status == 0
    assert host.besom("info").status == 0
    assert host.drain("--resume")["changed"] is True
    assert host.drain("--resume")["changed"] is False
    assert host.besom("housekeep").status == 0


def test_who_waits_for_a_lock_when_the_host_begins_to_drain_does_not_begin(
    host: Draining, hold: Callable[[Path], Held]
) -> None:
    log = host.path / "log"
    host.configure(drain=FAST, lock_timeout="1h", log={"format": "clef", "file": str(log)})
    host.fill(5)
    before, held = host.names(), hold(host.store)
    waiting = host.popen("housekeep")
    told(log, "lock_awaited")
    host.flag.touch()
    held.release()
    assert waiting.wait(PATIENCE_S) == 75
    assert host.names() == before
    assert "This host drains since" in log.read_text()


def test_mounts_go_and_one_that_is_busy_goes_lazily_with_its_holder_named(host: Draining, fuse: Fuse) -> None:
    idle, busy = host.path / "idle", host.path / "busy"
    host.configure(drain=FAST, mounts=[str(idle), str(busy), str(host.path / "absent")])
    fuse.bindfs(idle)
    fuse.bindfs(busy)
    holder = fuse.hold("file", busy)
    done = host.drain()
    assert done.status == 0, done.stderr
    phase = phases(done)["unmount"]
    assert (phase["state"], phase["forced"]) == ("done", True)
    found = {Path(one["path"]).name: one["state"] for one in phase["report"]["mounts"]}
    assert found == {"idle": "unmounted", "busy": "detached", "absent": "absent"}
    assert f"pid {holder.pid}" in " ".join(phase["messages"])


def test_a_busy_mount_that_may_not_go_lazily_fails_and_the_later_phases_have_their_turn(
    host: Draining, fuse: Fuse
) -> None:
    busy = host.path / "busy"
    host.configure(drain={**FAST, "unmount_lazy": False}, mounts=[str(busy)])
    host.fill(5)
    fuse.bindfs(busy)
    holder = fuse.hold("cwd", busy)
    done = host.drain()
    assert done.status == 1
    assert states(done) == {"refuse": "done", "daemon": "done", "unmount": "failed", "prune": "done"}
    assert f"pid {holder.pid}" in done["error"]
    assert len(host.names()) == 3


def test_on_phase_failure_stop_leaves_the_later_phases_out(host: Draining, fuse: Fuse) -> None:
    busy = host.path / "busy"
    host.configure(drain={**FAST, "unmount_lazy": False, "on_phase_failure": "stop"}, mounts=[str(busy)])
    host.fill(5)
    fuse.bindfs(busy)
    fuse.hold("cwd", busy)
    done = host.drain()
    assert done.status == 1
    assert states(done)["prune"] == "skipped"
    assert "on_phase_failure is stop" in phases(done)["prune"]["summary"]
    assert len(host.names()) == 5


def test_a_hung_server_cannot_hang_a_phase_beyond_its_deadline(host: Draining, fuse: Fuse) -> None:
    hung = host.path / "hung"
    inside = {"name": "inside", "path": str(hung / "sub"), "layout": "files", "max_entries": 1}
    gems = {"name": "gems", "path": str(host.store), "layout": "files", "max_entries": 3}
    host.configure(drain=FAST, mounts=[str(hung)], stores=[inside, gems])
    host.fill(5)
    stop(fuse.bindfs(hung))
    done = host.drain()
    for phase in done["phases"]:
        assert phase["took_s"] <= phase["timeout"] + 1, phase
    assert phases(done)["unmount"]["state"] == "done", done.stderr
    assert len(host.names()) == 3


def test_a_stuck_daemon_is_ended_by_force_at_its_deadline_and_that_is_a_failure(host: Draining) -> None:
    pid = host.start()
    os.kill(pid, signal.SIGSTOP)
    done = host.drain()
    phase = phases(done)["daemon"]
    assert done.status == 1
    assert (phase["state"], phase["timed_out"], phase["forced"]) == ("failed", True, True)
    assert phase["took_s"] <= phase["timeout"] + 1
    assert f"The daemon (pid {pid}) did not drain within 4s" in done["error"]
    assert host.daemon("status")["state"] == "stopped"
    assert states(done)["prune"] == "done"


def test_work_in_flight_is_counted(host: Draining, hold: Callable[[Path], Held]) -> None:
    host.configure(drain=FAST, lock_timeout="1h", daemon={"drain_timeout": "0.1s"})
    host.start()
    held = hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["in_flight"])
    draining = host.popen("drain", "--json", stdout=subprocess.PIPE)
    host.until(lambda now: now["state"] == "stopped")
    held.release()
    out, _ = draining.communicate(timeout=PATIENCE_S)
    assert draining.returncode == 0
    assert b'"drained": 0, "abandoned": 1' in out


def test_a_last_prune_that_takes_too_long_is_ended_between_two_entries(
    host: Draining, hold: Callable[[Path], Held]
) -> None:
    host.configure(drain={**FAST, "prune_timeout": "3s"}, lock_timeout="1h")
    hold(host.store)
    done = host.drain()
    phase = phases(done)["prune"]
    assert done.status == 1
    assert (phase["state"], phase["timed_out"]) == ("failed", True)
    assert phase["took_s"] <= phase["timeout"] + 1
    assert "was not over within 3s" in done["error"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_the_drain_and_says_how_to_go_on(
    host: Draining, hold: Callable[[Path], Held], name: str
) -> None:
    host.configure(drain={**FAST, "prune_timeout": "10m"}, lock_timeout="1h")
    held = hold(host.store)
    draining = host.popen("drain", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    # The last prune waits for the store: its process shows in /proc/locks' waiters, or as a child.
    children = Path(f"/proc/{draining.pid}/task/{draining.pid}/children")
    deadline = time.monotonic() + PATIENCE_S
    while not children.read_text().strip():
        assert time.monotonic() < deadline
        assert draining.poll() is None
    draining.send_signal(signal.Signals[name])
    out, said = draining.communicate(timeout=PATIENCE_S)
    assert draining.returncode == 128 + signal.Signals[name]
    assert b"Interrupted." in said
    assert b"--resume" in said
    assert b"Traceback" not in said
    assert b"prune" in out
    held.release()
    assert host.drain().status == 0


def test_the_summary_is_a_table_for_people(host: Draining) -> None:
    done = subprocess.run(host.command("drain"), env=host.environment(), capture_output=True, text=True)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["PHASE", "STATE", "TOOK", "OF", "DRAINED", "ABANDONED", "WHAT"]
    assert [line.split()[0] for line in lines[1:]] == ["refuse", "daemon", "unmount", "prune"]


def test_nothing_is_mounted_any_more(host: Draining, fuse: Fuse) -> None:
    top = host.path / "top"
    host.configure(drain=FAST, mounts=[str(top)])
    fuse.tmpfs(top)
    fuse.tmpfs(top / "sub")
    done = host.drain()
    assert done.status == 0, done.stderr
    assert [Path(one["path"]).name for one in phases(done)["unmount"]["report"]["mounts"]] == ["sub", "top"]
    assert mounted(top) == []


def test_a_drain_is_told_phase_by_phase_and_counted(host: Draining) -> None:
    log, textfile = host.path / "besom.clef", host.path / "besom.prom"
    host.configure(drain=FAST, log={"format": "clef", "file": str(log)}, metrics={"textfile": str(textfile)})
    host.fill(5)
    assert host.drain("--dry-run").status == 0
    assert not textfile.exists()
    assert host.drain().status == 0
    lines = told(log)
    assert [line["event"] for line in lines] == [
        *("run_began", "prune_done", "run_ended"),
        *["drain_phase"] * 4,
    ]
    assert [line["phase"] for line in lines[-4:]] == ["refuse", "daemon", "unmount", "prune"]
    text = textfile.read_text()
    for line in ("besom_drains_total 1", "besom_drain_failed_phases 0", 'besom_runs_total{outcome="done"} 1'):
        assert f"{line}\n" in text
