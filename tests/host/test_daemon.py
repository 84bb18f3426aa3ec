"""The prune daemon without systemd: its life, its answers, and what it survives."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
from inotify_simple import INotify, flags

from besom.run import Run
from besom_host.config import Config, read
from besom_host.cycle import keep_house
from besom_host.state import StateDir, Status

from .conftest import Held
from .host import PATIENCE_S, Host, Process, await_exit


def proc(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def is_gone(pid: int) -> bool:
    """Whether the process is gone, or dead and not yet reaped by whoever has adopted it."""
    try:
        return proc(pid, "stat").rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_start_prunes_at_once_and_is_idempotent(host: Host) -> None:
    host.fill(5)
    first = host.daemon("start")
    assert (first.status, first["changed"]) == (0, True), first.stderr
    assert host.daemon("wait").status == 0
    assert host.names() == ["00002.gem", "00003.gem", "00004.gem"]
    again = host.daemon("start")
    assert (again.status, again["changed"], again["pid"]) == (0, False, first["pid"])


def test_a_started_daemon_is_detached(host: Host) -> None:
    inherited, _ = os.pipe()
    os.set_inheritable(inherited, True)
    subprocess.run(
        host.command("daemon", "start"), env=host.environment(), pass_fds=[inherited], check=True, umask=0o077
    )
    pid = host.daemon("status")["pid"]
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    session = int(proc(pid, "stat").rpartition(")")[2].split()[3])
    assert session not in (pid, os.getsid(0))  # not ours, and not one that could gain a terminal
    assert "Umask:\t0022" in proc(pid, "status")
    targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert not [target for target in targets if target.startswith("pipe:")]
    assert os.readlink(f"/proc/{pid}/fd/0") == os.devnull
    assert "daemon run" in proc(pid, "cmdline").replace("\0", " ")


def test_an_idle_daemon_is_small(host: Host) -> None:
    pid = host.start()
    resident = next(line for line in proc(pid, "status").splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 40 * 1024


def test_a_store_that_does_not_change_is_not_read_again(host: Host) -> None:
    log = host.path / "besom.log"
    host.configure(log={"format": "json", "file": str(log)})
    host.fill(2)
    directories = [host.store / name for name in ("one", "two", "two/three")]
    for directory in directories:
        directory.mkdir()
    before = time.time()
    host.start()
    with INotify() as news:
        names = {news.add_watch(path, flags.ACCESS): path.name for path in [host.store, *directories]}

        def read_by_a_run() -> set[str]:
            assert host.daemon("trigger").status == host.daemon("wait", "--timeout", "60s").status == 0
            # A parent is told of its children as well, by name.
            return {names[event.wd] for event in news.read(timeout=0) if not event.name}

        # What was just made is read until its time stamps tell it from what is made now.
        deadline = time.monotonic() + PATIENCE_S
        while read_by_a_run():
            assert time.monotonic() < deadline
        (host.store / "two/three/new").write_bytes(b"x")
        assert read_by_a_run() == {"three"}
    told = [json.loads(line) for line in log.read_text().splitlines()]
    idle = [event for event in told if event["event"] == "prune_idle"]
    assert [event["measured"] for event in idle] == ["walk"] + ["index"] * (len(idle) - 1)
    assert idle[-1]["entries_after"] == 3
    (index,) = host.state_dir.glob("index-*")
    assert index.stat().st_mode & 0o777 == 0o600
    (store,) = host.besom("info")["stores"]
    assert before <= store["walked"] <= time.time()
    assert store["reconcile_due"] == pytest.approx(store["walked"] + 86400)
    host.configure(daemon={"reconcile": 0}, log={"format": "json", "file": str(log)})
    assert host.daemon("reload").status == 0
    assert host.daemon("trigger").status == host.daemon("wait", "--timeout", "60s").status == 0
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [event["measured"] for event in told if event["event"] == "prune_idle"][-1] == "walk"


def test_status_tells_all_there_is_to_know(host: Host) -> None:
    host.fill(4)
    before = time.time()
    assert host.daemon("status").values.items() >= {"state": "stopped", "pid": None}.items()
    pid = host.start()
    status = host.daemon("status")
    assert status.status == 0
    assert (status["state"], status["pid"], status["in_flight"]) == ("idle", pid, [])
    assert before <= status["since"] <= time.time()
    last = status["last_run"]
    assert (last["outcome"], last["removed_entries"]) == ("done", 1)
    assert before <= last["began"] <= last["ended"] <= time.time()
    assert 3500 < status["next_run"] - last["began"] <= 3601


def test_status_is_for_people_as_well(host: Host) -> None:
    host.start()
    done = subprocess.run(
        host.command("daemon", "status"), env=host.environment(), capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "The daemon is idle (pid" in done.stdout
    assert "Next run: " in done.stdout


def test_trigger_returns_at_once_and_wait_waits_for_that_run(
    host: Host, hold: Callable[[Path], Held]
) -> None:
    host.start()
    host.fill(5)
    held = hold(host.store)
    assert host.daemon("trigger").status == 0
    status = host.until(lambda now: now["in_flight"])
    assert status["state"] == "running"
    (work,) = status["in_flight"]
    assert (work["operation"], work["path"]) == ("prune", str(host.store))
    late = host.daemon("wait", "--timeout", "0.2s")
    assert late.status == 1
    assert f"still running: prune of {host.store}" in late["error"]
    waiting = host.popen("daemon", "wait")
    held.release()
    assert waiting.wait(PATIENCE_S) == 0
    assert len(host.names()) == 3


def test_wait_idle_waits_for_a_run_that_nobody_asked_for_as_well(
    host: Host, hold: Callable[[Path], Held]
) -> None:
    pid = host.start()
    held = hold(host.store)
    # As when the interval is over: no request is counted.
    os.kill(pid, signal.SIGUSR1)
    host.until(lambda now: now["in_flight"])
    assert host.daemon("wait").status == 0
    late = host.daemon("wait", "--idle", "--timeout", "0.2s")
    assert late.status == 1
    assert f"still running: prune of {host.store}" in late["error"]
    held.release()
    done = host.daemon("wait", "--idle")
    assert (done.status, done["state"], done["in_flight"]) == (0, "idle", [])


def test_requests_during_a_run_cause_exactly_one_more(host: Host, hold: Callable[[Path], Held]) -> None:
    host.start()
    held = hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["in_flight"])
    for _ in range(3):
        host.daemon("trigger")
    held.release()
    assert host.daemon("wait").status == 0
    # The first run, the one that was held, and one for all three.
    assert host.daemon("status")["runs"] == 3


def test_trigger_without_a_daemon_says_so_or_starts_one(host: Host) -> None:
    refused = host.daemon("trigger")
    assert refused.status == 1
    assert "--start" in refused["error"]
    host.fill(4)
    started = host.daemon("trigger", "--start")
    assert (started.status, started["changed"]) == (0, True)
    assert host.daemon("wait").status == 0
    assert len(host.names()) == 3


def test_wait_ends_when_the_daemon_is_gone(host: Host, hold: Callable[[Path], Held]) -> None:
    pid = host.start()
    hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["in_flight"])
    waiting = host.popen("daemon", "wait", stderr=subprocess.PIPE)
    assert waiting.stderr
    os.kill(pid, signal.SIGKILL)
    _, said = waiting.communicate(timeout=PATIENCE_S)
    assert waiting.returncode == 1
    assert b"The daemon is gone before the run was completed" in said


def test_wait_where_no_daemon_ever_ran_says_so(host: Host) -> None:
    done = host.daemon("wait")
    assert done.status == 1
    assert "No daemon has run" in done["error"]


def test_stop_is_idempotent_and_returns_when_the_process_is_gone(host: Host) -> None:
    pid = host.start()
    stopped = host.daemon("stop")
    assert (stopped.status, stopped["changed"], stopped["state"]) == (0, True, "stopped")
    assert is_gone(pid)
    again = host.daemon("stop")
    assert (again.status, again["changed"]) == (0, False)


def test_a_drain_lets_a_run_finish(host: Host, hold: Callable[[Path], Held]) -> None:
    host.start()
    host.fill(5)
    held = hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["in_flight"])
    stopping = host.popen("daemon", "stop")
    host.until(lambda now: now["state"] == "draining" or not now["pid"])
    held.release()
    assert stopping.wait(PATIENCE_S) == 0
    assert len(host.names()) == 3


def test_a_drain_ends_a_run_when_its_time_is_up(host: Host, hold: Callable[[Path], Held]) -> None:
    host.configure(daemon={"drain_timeout": "0.2s"}, lock_timeout="1h")
    host.start()
    hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["in_flight"])
    assert host.daemon("stop").status == 0
    last = host.daemon("status")["last_run"]
    assert last["outcome"] == "interrupted"
    assert "SIGTERM" in " ".join(last["messages"])


def test_a_second_signal_ends_a_drain_at_once(host: Host, hold: Callable[[Path], Held]) -> None:
    host.configure(daemon={"drain_timeout": "1h"}, lock_timeout="1h")
    pid = host.start()
    hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["in_flight"])
    late = host.daemon("stop", "--timeout", "0.1s")
    assert late.status == 1
    assert f"still running: prune of {host.store}" in late["error"]
    assert "--force" in late["error"]
    os.kill(pid, signal.SIGTERM)
    await_exit(pid)
    assert host.daemon("status")["last_run"]["outcome"] == "interrupted"


def test_a_stuck_daemon_is_named_and_goes_by_force(host: Host) -> None:
    pid = host.start()
    os.kill(pid, signal.SIGSTOP)
    assert host.daemon("stop", "--timeout", "0.1s").status == 1
    forced = host.popen("daemon", "stop", "--timeout", "0.1s", "--force")
    assert forced.wait(PATIENCE_S) == 0
    assert is_gone(pid)


def test_kill_9_leaves_an_exact_answer_and_a_place_for_the_next(host: Host) -> None:
    host.fill(4)
    pid = host.start()
    os.kill(pid, signal.SIGKILL)
    await_exit(pid)
    status = host.daemon("status")
    assert (status.status, status["state"], status["pid"]) == (1, "stopped", None)
    assert status["last_run"]["removed_entries"] == 1
    assert host.start() != pid


def test_a_pid_that_another_program_has_by_now_is_not_believed_nor_signalled(host: Host) -> None:
    pid = host.start()
    os.kill(pid, signal.SIGKILL)
    await_exit(pid)
    with Process(["cat"], stdin=subprocess.PIPE) as stranger:
        for name in ("daemon.pid", "status.json"):
            path = host.state_dir / name
            path.write_text(path.read_text().replace(str(pid), str(stranger.pid)))
        assert host.daemon("status")["state"] == "stopped"
        for action in ("stop", "trigger", "reload"):
            host.daemon(action)
        assert stranger.communicate() == (None, None)
        assert stranger.returncode == 0


def test_a_second_daemon_is_refused_and_names_the_first(host: Host) -> None:
    pid = host.start()
    second = host.daemon("run")
    assert second.status == 1
    assert f"pid {pid}" in second["error"]
    assert host.daemon("status")["pid"] == pid


def test_many_starts_at_once_make_one_daemon(host: Host) -> None:
    starts = [host.popen("daemon", "start", stdout=subprocess.PIPE) for _ in range(4)]
    assert [start.wait(PATIENCE_S) for start in starts] == [0, 0, 0, 0]
    said = {start.stdout.read() for start in starts if start.stdout}
    assert len(said) == 1
    assert host.log.count("Keeping house") == 1


def test_it_runs_again_when_the_interval_is_over(host: Host) -> None:
    host.configure(daemon={"interval": "1s"})
    host.start()
    host.until(lambda now: now["runs"] >= 3)


def test_a_run_that_frees_nothing_backs_off_and_says_so(host: Host) -> None:
    gems = {"name": "gems", "path": str(host.store), "layout": "files", "max_entries": 3, "min_age": "365d"}
    host.configure(stores=[gems])
    host.fill(5)
    host.start()
    assert f"Nothing could be freed although {host.store} stays over its limit" in host.log
    status = host.daemon("status")
    assert status["next_run"] - status["last_run"]["began"] > 7000
    host.daemon("trigger")
    host.daemon("wait")
    status = host.daemon("status")
    assert status["next_run"] - status["last_run"]["began"] > 14000


def test_reload_takes_a_good_file_and_refuses_a_broken_one(host: Host) -> None:
    host.fill(5)
    host.start()
    good = {"name": "gems", "path": str(host.store), "layout": "files", "max_entries": 1}
    host.env = {"BESOM_STATE_DIR": str(host.state_dir)}  # a file that cannot be parsed names none
    host.configure(stores=[good])
    assert host.daemon("reload").status == 0
    for text, line in (
        ("stores: {", 1),
        (host.file.read_text().replace("max_entries: 1", "max_entries: -1"), 5),
    ):
        host.file.write_text(text)
        broken = host.daemon("reload")
        assert broken.status == 1
        assert f"{host.file}, line {line}:" in broken["error"]
    host.daemon("trigger")
    host.daemon("wait")
    assert len(host.names()) == 1
    host.configure(stores=[good])
    assert host.daemon("reload").status == 0


def test_reload_during_a_run_is_taken_by_the_next(host: Host, hold: Callable[[Path], Held]) -> None:
    host.start()
    held = hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["in_flight"])
    assert host.daemon("reload", "--timeout", "0.1s").status == 1
    held.release()
    host.until(lambda now: now["state"] == "idle" and "The configuration was read again" in host.log)


def limited(path: Path, limit: int, **more: Any) -> dict[str, Any]:
    """A store of so many files, named like its directory."""
    return {"name": path.name, "path": str(path), "layout": "files", "max_entries": limit, **more}


@pytest.mark.parametrize(
    ("changed", "left"),
    [
        pytest.param(lambda other: [limited(other, 4)], 4, id="its limit is raised"),
        pytest.param(lambda other: [limited(other, 1)], 1, id="its limit is lowered"),
        pytest.param(lambda other: [], 5, id="it is gone"),
        pytest.param(
            lambda other: [limited(other, 1), limited(other.parent, 9, name="around")], 5, id="it overlaps"
        ),
        pytest.param(lambda other: [limited(other.parent / "new", 1, name="other")], 5, id="it is elsewhere"),
    ],
)
def test_what_a_reload_says_is_in_force_for_each_store_whose_turn_is_to_come(
    host: Host, hold: Callable[[Path], Held], changed: Callable[[Path], list[dict[str, Any]]], left: int
) -> None:
    other = host.path / "room/other"
    (host.path / "room/new").mkdir(parents=True)
    other.mkdir()
    first = limited(host.store, 3)
    host.configure(stores=[first, limited(other, 3)], lock_timeout="1h")
    host.start()
    for store in (host.store, other):
        host.fill(5, store)
    held = hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["in_flight"])
    host.configure(stores=[first, *changed(other)], lock_timeout="1h")
    assert host.daemon("reload", "--timeout", "0.1s").status == 1
    assert "The configuration was read again" not in host.log
    held.release()
    assert host.daemon("wait", "--timeout", "60s").status == 0
    assert host.log.count("The configuration was read again") == 1
    assert len(host.names()) == 3
    assert len(os.listdir(other)) == left


def test_a_temp_area_that_a_reload_takes_away_keeps_its_temps(host: Host) -> None:
    areas = [host.path / name for name in ("first", "second", "third")]
    for area in areas:
        area.mkdir()
        (area / ".temp-old").write_bytes(b"x")
        os.utime(area / ".temp-old", (1e9, 1e9))
    first, second, third = ({"path": str(area), "older_than": "1h"} for area in areas)

    def configured(*temps: dict[str, str]) -> Config:
        host.configure(temps=list(temps))
        return read(str(host.file), {})

    before = configured(first, second, third)
    after = configured(first, {**third, "older_than": "99999d"})
    # Nothing of a sweep waits for anybody, so no reload of a daemon could be put between two.
    in_force = iter([before, after, after, after])
    found = keep_house(before, Run(), "once", in_force=lambda: (next(in_force), Run()))
    assert found.removed_entries == 1
    assert [os.listdir(area) for area in areas] == [[], [".temp-old"], [".temp-old"]]


def test_malformed_settings_are_survived_and_delete_nothing(host: Host) -> None:
    other = host.path / "other"
    other.mkdir()
    host.fill(5, other)
    host.fill(5)
    bad = {"name": "other", "path": str(other), "layout": "files", "max_entries": "lots"}
    good = {"name": "gems", "path": str(host.store), "layout": "files", "max_entries": 3}
    host.configure(stores=[bad, good, 7], daemon={"interval": "soon", "drain_timeout": -1}, shops=[])
    host.env = {"BESOM_INTERVAL": "", "BESOM_LOCK_TIMEOUT": "-3", "BESOM_MAX_SIZE_MB": "0x"}
    host.start()
    assert len(list(other.iterdir())) == 5
    assert len(host.names()) == 3
    warnings = "\n".join(host.daemon("status")["warnings"])
    for name in ("'lots'", "'soon'", "'-1'", "shops", "BESOM_INTERVAL: ''", "BESOM_LOCK_TIMEOUT: '-3'"):
        assert name in warnings
    assert warnings in "\n".join(
        line.partition(": ")[2] for line in host.log.splitlines() if "warning" in line
    )


def test_a_file_that_cannot_be_parsed_at_start_is_survived(host: Host) -> None:
    text = host.file.read_text()
    host.file.write_text("stores: [")
    host.env = {"BESOM_STATE_DIR": str(host.state_dir)}
    host.fill(5)
    host.start()
    assert len(host.names()) == 5
    host.file.write_text(text)
    assert host.daemon("reload").status == 0
    host.daemon("trigger")
    host.daemon("wait")
    assert len(host.names()) == 3


def test_stores_that_overlap_are_left_alone_and_the_others_are_not(host: Host) -> None:
    outer = host.path / "outer"
    (outer / "inner").mkdir(parents=True)
    for store in (host.store, outer, outer / "inner"):
        host.fill(5, store)
    stores = [
        {"name": store.name, "path": str(store), "layout": "files", "max_entries": 3}
        for store in (outer, outer / "inner", host.store)
    ]
    host.configure(stores=stores)
    host.start()
    assert len(host.names()) == 3
    assert len(list(outer.iterdir())) == 6
    assert len(list((outer / "inner").iterdir())) == 5
    assert "overlap" in " ".join(host.daemon("status")["last_run"]["messages"])


def test_a_locked_store_is_skipped_for_this_run(host: Host, hold: Callable[[Path], Held]) -> None:
    other = host.path / "other"
    other.mkdir()
    host.fill(5, other)
    stores = [
        {"name": store.name, "path": str(store), "layout": "files", "max_entries": 3}
        for store in (host.store, other)
    ]
    host.configure(stores=stores, lock_timeout=0)
    host.fill(5)
    hold(host.store)
    host.start()
    assert len(host.names()) == 5
    assert len(list(other.iterdir())) == 3
    assert f"{host.store} is locked by pid" in host.log


def test_a_state_directory_that_others_can_write_is_refused(host: Host) -> None:
    host.state_dir.mkdir()
    host.state_dir.chmod(0o777)
    for action in ("start", "run"):
        done = host.daemon(action)
        assert done.status == 2
        assert "only its user can write" in done["error"]


@pytest.mark.parametrize("kind", ["json", "clef"])
def test_events_are_lines_that_a_machine_can_read_even_after_rotation(host: Host, kind: str) -> None:
    log = host.path / "besom.log"
    host.configure(log={"format": kind, "file": str(log)})
    host.fill(5)
    host.start()
    log.rename(host.path / "besom.log.1")
    host.daemon("trigger")
    host.daemon("wait")
    host.daemon("stop")
    old, new = (
        [json.loads(line) for line in path.read_text().splitlines()]
        for path in (host.path / "besom.log.1", log)
    )
    assert old[0]["event"] == "daemon_started"
    assert "prune_done" in [line["event"] for line in old]
    assert [line["event"] for line in new] == [
        "run_began",
        "prune_idle",
        "run_ended",
        "next_run",
        "daemon_stopped",
    ]
    assert all(("@t" in line and "@mt" in line) == (kind == "clef") for line in old + new)


def test_a_log_that_cannot_be_written_keeps_nothing_from_its_work(host: Host) -> None:
    host.configure(log={"file": "/proc/besom.log"})
    host.fill(5)
    host.start()
    assert len(host.names()) == 3
    assert "/proc/besom.log cannot be written" in host.log


class Listener:
    """What systemd would hear."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # The kernel picks the name: the path of a test may be too long for one.
        self.socket.bind("")
        self.socket.settimeout(PATIENCE_S)

    @property
    def address(self) -> str:
        return "@" + str(self.socket.getsockname()[1:].decode())

    def until(self, line: str) -> list[str]:
        """The message that has this line."""
        while True:
            lines = self.socket.recv(4096).decode().split("\n")
            if line in lines:
                return lines


@pytest.fixture
def listener(host: Host) -> Iterator[Listener]:
    one = Listener()
    host.env = {"NOTIFY_SOCKET": one.address, "WATCHDOG_USEC": "200000"}
    yield one
    one.socket.close()


def test_systemd_hears_of_everything_it_wants_to_know(host: Host, listener: Listener) -> None:
    daemon = host.popen("daemon", "run", stderr=subprocess.DEVNULL)
    listener.until("READY=1")
    listener.until("WATCHDOG=1")
    daemon.send_signal(signal.SIGHUP)
    reloading = listener.until("RELOADING=1")
    assert any(line.startswith("MONOTONIC_USEC=") for line in reloading)
    listener.until("READY=1")
    daemon.send_signal(signal.SIGTERM)
    listener.until("STOPPING=1")
    assert daemon.wait(PATIENCE_S) == 0


def test_the_watchdog_is_fed_while_work_waits(
    host: Host, hold: Callable[[Path], Held], listener: Listener
) -> None:
    hold(host.store)
    host.popen("daemon", "run", stderr=subprocess.DEVNULL)
    listener.until(f"STATUS=Running: prune of {host.store}.")
    listener.until("WATCHDOG=1")


def test_term_in_the_middle_of_a_large_prune_leaves_a_store_that_the_next_run_finishes(host: Host) -> None:
    host.configure(daemon={"drain_timeout": 0})
    trees = [host.store / f"{number:02}" for number in range(40)]
    for tree in trees:
        tree.mkdir()
        host.fill(200, tree)
    daemon = host.popen("daemon", "run", stderr=subprocess.DEVNULL)
    while all(tree.exists() for tree in trees):
        assert daemon.poll() is None
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(PATIENCE_S) == 0
    status = host.daemon("status")
    assert status["last_run"]["outcome"] in ("interrupted", "done")
    host.start()
    assert sum(len(files) for _, _, files in os.walk(host.store)) == 3


def test_a_log_whose_directory_is_gone_ends_nothing(host: Host) -> None:
    place = host.path / "log"
    place.mkdir()
    host.configure(log={"file": str(place / "besom.log")})
    pid = host.start()
    shutil.rmtree(place)
    host.fill(5)
    host.daemon("trigger")
    assert host.daemon("wait", "--timeout", "60s").status == 0
    assert host.daemon("status")["pid"] == pid
    assert len(host.names()) == 3
    assert "A run begins (asked)" in host.log


def test_the_hook_after_a_prune_has_its_time_although_the_drain_is_over(host: Host) -> None:
    hook = f"touch {host.path}/began; flock {host.path}/gate true; touch {host.path}/ended"
    gems = {"name": "gems", "path": str(host.store), "layout": "files", "max_entries": 3, "after_prune": hook}
    host.configure(stores=[gems], daemon={"drain_timeout": 0})
    gate = host.path / "gate"
    gate.touch()
    held = Held(gate)
    host.fill(5)
    with INotify() as news:
        news.add_watch(host.path, flags.CREATE)
        daemon = host.popen("daemon", "run", stderr=subprocess.DEVNULL)
        while not (host.path / "began").exists():
            assert news.read(timeout=60_000)
    daemon.send_signal(signal.SIGTERM)
    host.until(lambda now: now["state"] == "draining")
    held.release()
    assert daemon.wait(PATIENCE_S) == 0
    assert (host.path / "ended").exists()


def test_a_second_stop_does_not_cut_the_first_one_short(host: Host, hold: Callable[[Path], Held]) -> None:
    host.configure(daemon={"drain_timeout": "1h"}, lock_timeout="1h")
    host.start()
    host.fill(5)
    held = hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["in_flight"])
    assert host.daemon("stop", "--timeout", "0.1s").status == 1
    assert host.daemon("stop", "--timeout", "0.1s").status == 1
    held.release()
    assert host.daemon("stop").status == 0
    assert host.daemon("status")["last_run"]["outcome"] == "done"
    assert len(host.names()) == 3


def test_stop_does_not_claim_what_a_broken_file_keeps_it_from_knowing(host: Host) -> None:
    pid = host.start()
    text = host.file.read_text()
    host.file.write_text("stores: [")
    refused = host.daemon("stop")
    assert refused.status == 1
    assert "BESOM_STATE_DIR" in refused["error"]
    host.file.write_text(text)
    assert host.daemon("status")["pid"] == pid


WILD = [
    *("", "[]", "7", "\xff", '{"process": null}', '{"process": null, "answered": null}'),
    *('{"last_run": "x", "process": null}', '{"process": {"pid": 1}}'),
    *('{"process": {"pid": "x", "token": 3}}', '{"in_flight": [3], "process": null}'),
]


@pytest.mark.parametrize("text", WILD)
def test_whatever_stands_in_the_status_file_is_survived(host: Host, text: str) -> None:
    host.state_dir.mkdir()
    (host.state_dir / "status.json").write_text(text, encoding="latin-1")
    assert host.daemon("status").status == 1
    pid = host.start()
    assert host.daemon("status")["pid"] == pid


LAST = {"began": 1, "ended": 2, "outcome": "done", "removed_entries": 1, "freed_bytes": 1, "messages": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"config": 5},
        {"state": ["idle"]},
        {"warnings": 5},
        {"warnings": ["two\nlines"]},
        {"next_run": 1e300},
        {"since": "x"},
        {"last_run": {**LAST, "ended": "x"}},
        {"last_run": {**LAST, "freed_bytes": None}},
        {"last_run": {**LAST, "messages": 7}},
        {"in_flight": [{"operation": "prune", "path": "/srv", "since": "x"}]},
        {"runs": -1},
        {"stop_timeout": float("nan")},
    ],
    ids=str,
)
def test_a_status_that_cannot_be_is_none(host: Host, changes: dict[str, Any]) -> None:
    state = StateDir(str(host.state_dir))
    state.prepare()
    sound = {"process": None, "state": "idle", "last_run": LAST, "config": "/etc/x"}
    (host.state_dir / "status.json").write_text(json.dumps(sound))
    assert state.observe().last_run == LAST
    (host.state_dir / "status.json").write_text(json.dumps({**sound, **changes}))
    assert state.observe() == Status()


def test_what_is_locked_cannot_be_opened_by_others(host: Host) -> None:
    host.start()
    host.daemon("trigger")
    modes = {path.name: path.stat().st_mode & 0o077 for path in host.state_dir.iterdir()}
    assert (modes["daemon.pid"], modes["trigger"]) == (0, 0)
    assert modes["status.json"] == 0o044


def test_hup_at_any_moment_of_the_start_leaves_a_daemon_that_prunes(host: Host) -> None:
    dice = random.Random(5)  # noqa: S311
    for _ in range(6):
        with Process(
            host.command("daemon", "run"), env=host.environment(), stderr=subprocess.DEVNULL
        ) as daemon:
            select.select([], [], [], dice.uniform(0.1, 0.5))
            daemon.send_signal(signal.SIGHUP)
            # Before Python has got as far as besom, the kernel ends it.
            fd = os.pidfd_open(daemon.pid)
            if not select.select([fd], [], [], 0.5)[0]:
                host.until(lambda now, pid=daemon.pid: now["pid"] == pid and now["runs"] > 0)
                assert host.daemon("status")["last_run"]["outcome"] == "done"
            os.close(fd)
            daemon.terminate()


def test_a_full_disk_for_its_answer_is_no_traceback(host: Host) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*host.command("daemon", "status"), "--json"],
            env=host.environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
