# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Two daemons, cron, a shell and a playbook on one store at once: never two of them change it.

Proved by what strace recorded of each of their processes; the same proof finds what breaks the rule.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from ..modules.play import Play, Result
from .conftest import need
from .holds import Record, read, recorder, violations
from .host import BESOM, DAY, PATIENCE_S, Host

ACTORS = ("first daemon", "second daemon", "housekeep", "prune", "playbook")
MOST, MORE, FILES = 4, 6, 5
ROUNDS = 20
TASKS = 3


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """The directory of the recordings."""
    need("strace")
    works = subprocess.run([*recorder(tmp_path / "try"), "true"], capture_output=True, check=False)
    if works.returncode:
        pytest.skip("this kernel lets nobody trace a process")
    path = tmp_path / "records"
    path.mkdir()
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


def fill(store: Path, made: Iterator[int]) -> None:
    """Bring the store well over its limit; each tree is made beside it and moved in whole."""
    for _ in range(len(list(store.glob("[!.]*"))), MOST + MORE):
        number = next(made)
        ready = store.with_name(f"ready{number:06}")
        ready.mkdir()
        when = time.time() - 10 * DAY + number
        for name in range(FILES):
            (ready / str(name)).write_bytes(b"x")
            os.utime(ready / str(name), (when, when))
        os.utime(ready, (when, when))
        ready.rename(store / ready.name)


@dataclass
class Crowd:
    """All that keeps house in one store, each with a configuration and state of its own, recorded."""

    path: Path
    store: Path
    records: Path

    def __post_init__(self) -> None:
        self.hosts = {}
        for name in ("first", "second", "cron"):
            (self.path / name).mkdir()
            self.hosts[name] = Host(self.path / name)
            shared = {"name": "shared", "path": str(self.store), "layout": "trees", "max_entries": MOST}
            log = {"format": "json", "file": str(self.path / name / "log")}
            # One of the daemons waits for its turn, the other skips the store.
            self.hosts[name].configure(stores=[shared], log=log, lock_timeout="60s" if name == "first" else 0)
        self.over = self.path / "over"
        # While this exists the shells pause, so that whoever is slow gets its turn as well.
        self.rest = self.path / "rest"

    def recorded(self, name: str) -> list[str]:
        return recorder(self.records / name)

    def daemon(self, name: str) -> subprocess.Popen[bytes]:
        host = self.hosts[name]
        command = [*self.recorded(f"{name} daemon"), *host.command("daemon", "run")]
        return subprocess.Popen(command, env=host.environment(), stderr=subprocess.DEVNULL)

    def loop(self, name: str, *words: object) -> subprocess.Popen[bytes]:
        """A shell that runs a command again and again; its errors and exit statuses stay in files."""
        command = shlex.join(map(str, words))
        run = f"{command} 2>>errors >>output; echo $? >>statuses"
        again = f"until [ -e over ]; do if [ -e rest ]; then sleep 0.1; else {run}; fi; done"
        here = self.path / name
        here.mkdir(exist_ok=True)
        (here / "over").symlink_to(self.over)
        (here / "rest").symlink_to(self.rest)
        return subprocess.Popen(
            [*self.recorded(name), "sh", "-c", again], cwd=here, env=self.hosts["cron"].environment()
        )

    def play(self) -> list[Result]:
        """A playbook whose module is recorded, over and over until it has removed something."""
        python = self.path / "python"
        command = [*recorder(self.records / "playbook"), sys.executable]
        python.write_text(
            f'#!/bin/sh\nexec {shlex.join(command).replace("/playbook", "/playbook.$$")} "$@"\n'
        )
        python.chmod(0o755)
        results: list[Result] = []
        while not self.over.exists() and not any(result.get("changed") for result in results):
            play = Play(self.path / f"play{len(results)}", {"here": str(python)})
            for number in range(TASKS):
                limits = {"layout": "trees", "max_entries": MOST, "lock_timeout": 60 if number else 0}
                play.add(f"prune/{number}", "cache_prune", {"path": str(self.store), **limits})
            results += play.run().values()
        return results

    def read(self, actor: str = "") -> list[Record]:
        return [read(path, self.store) for path in sorted(self.records.glob(f"{actor}*"))]


def hold(path: Path, records: Path) -> subprocess.Popen[bytes]:
    """Another program, recorded as well, that holds path until its standard input ends."""
    command = [*recorder(records / "holder"), "flock", path, "sh", "-c", "echo held; exec cat"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout
    assert holder.stdout.readline() == b"held\n"
    return holder


def wait_for(path: Path) -> None:
    """Return once there is something in the file."""
    with INotify() as news:
        news.add_watch(path.parent, flags.MODIFY | flags.CREATE | flags.MOVED_TO)
        while not path.exists() or not path.stat().st_size:
            assert news.read(timeout=int(PATIENCE_S * 1000)), f"nothing is written to {path}"


def test_of_many_at_once_never_two_change_a_store(tmp_path: Path, store: Path, records: Path) -> None:
    crowd = Crowd(tmp_path, store, records)
    made = iter(range(10**6))
    fill(store, made)
    daemons = [crowd.hosts[name] for name in ("first", "second")]
    with contextlib.ExitStack() as stack:
        news = stack.enter_context(INotify())
        news.add_watch(store, flags.MOVED_FROM | flags.DELETE)
        stack.callback(crowd.over.touch)
        # Held to begin with, so that all of them meet a lock.
        holder = stack.enter_context(hold(store, records))
        cron = crowd.hosts["cron"]
        prune = ("prune", store, "--layout", "trees", "--max-entries", MOST, "--lock-timeout", 0)
        processes = [
            crowd.daemon("first"),
            crowd.daemon("second"),
            crowd.loop("housekeep", *cron.command("housekeep", "--lock-timeout", "60s")),
            crowd.loop("prune", *BESOM, *prune, "--config", os.devnull),
        ]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        for host in daemons:
            stack.callback(host.close)
            host.until(lambda now: now["pid"])
        wait_for(tmp_path / "prune/statuses")
        assert holder.communicate(timeout=PATIENCE_S)
        with ThreadPoolExecutor() as pool, contextlib.ExitStack() as turn:
            turn.callback(crowd.over.touch)
            play = pool.submit(crowd.play)
            left, rounds, patience = set(ACTORS[:-1]), 0, time.monotonic() + 2 * PATIENCE_S
            while left or rounds < ROUNDS or not play.done():
                # The end of the play is no event of the store.
                news.read(timeout=500)
                if rounds > ROUNDS and not play.done():
                    crowd.rest.touch()
                else:
                    crowd.rest.unlink(missing_ok=True)
                if len(list(store.glob("[!.]*"))) > MOST:
                    assert time.monotonic() < patience, f"nobody prunes; left: {left}"
                    continue
                patience = time.monotonic() + 2 * PATIENCE_S
                rounds += 1
                left = {actor for actor in left if not any(one.changes for one in crowd.read(actor))}
                fill(store, made)
                for name, host in zip(ACTORS, daemons):
                    # In the end nobody is called who had a turn already.
                    if rounds <= ROUNDS or name in left:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(host.daemon_pid(), signal.SIGUSR1)
            results = play.result()
        crowd.over.touch()
        for process in processes[2:]:
            assert process.wait(PATIENCE_S) == 0
        for host in daemons:
            assert host.daemon("trigger").status == 0
            assert host.daemon("wait", "--timeout", "60s").status == 0
            assert host.daemon("stop").status == 0
        for process in processes[:2]:
            assert process.wait(PATIENCE_S) == 0

    found = crowd.read()
    assert violations(found) == []
    for actor in ACTORS:
        assert any(one.changes for one in found if one.name.startswith(actor)), actor
    # Whole trees are left, no more than may be, and nothing of a removal.
    assert [len(list(path.iterdir())) for path in store.iterdir()] == [FILES] * MOST

    honest = re.compile(
        rf"(besom: )?{re.escape(str(store))} is locked by .*; waited .*\. Let it finish, or raise .*\."
    )
    refusals = [result.msg for result in results if result.status == "failed"]
    for name in ("housekeep", "prune"):
        assert set((tmp_path / name / "statuses").read_text().split()) <= {"0", "75"}
        refusals += (tmp_path / name / "errors").read_text().splitlines()
    for name in ("first", "second", "cron"):
        for line in map(json.loads, (tmp_path / name / "log").read_text().splitlines()):
            if line["level"] not in ("debug", "info"):
                refusals.append(line["message"])
    assert refusals
    assert [sentence for sentence in refusals if not honest.fullmatch(sentence)] == []


def test_the_proof_finds_one_that_thinks_it_has_the_lock(store: Path, records: Path) -> None:
    """Its first flock(2) is answered by strace and not by the kernel, while another really holds the lock."""
    fill(store, iter(range(99)))
    holder = hold(store, records)
    recording = [*recorder(records / "rogue"), "-e", "inject=flock:retval=0:when=1"]
    words = ["prune", str(store), "--layout", "trees", "--max-entries", str(MOST), "--config", os.devnull]
    done = subprocess.run([*recording, *BESOM, *words], capture_output=True, text=True, check=False)
    holder.communicate(timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert len(list(store.iterdir())) == MOST
    (sentence,) = violations(read(path, store) for path in records.iterdir())
    assert re.fullmatch(r"holder \(pid \d+\) and rogue \(pid \d+\) held it at [\d.]+", sentence)


def test_the_proof_finds_one_that_takes_no_lock(store: Path, records: Path) -> None:
    fill(store, iter(range(99)))
    subprocess.run([*recorder(records / "rogue"), "rm", "-r", store / "ready000000"], check=True)
    found = violations([read(records / "rogue", store)])
    assert len(found) == FILES + 1
    assert all(sentence.endswith("without the lock") for sentence in found)


def test_the_proof_reads_what_several_processes_did_at_once(tmp_path: Path) -> None:
    recording = tmp_path / "recording"
    recording.write_text(
        """\
10 100.0 flock(3</store>, LOCK_EX|LOCK_NB <unfinished ...>
11 100.1 flock(3</store>, LOCK_EX|LOCK_NB <unfinished ...>
10 100.2 <... flock resumed>)            = 0 <0.200000>
11 100.3 <... flock resumed>)            = -1 EAGAIN (Resource temporarily unavailable) <0.200000>
10 100.4 flock(4</store>, LOCK_EX|LOCK_NB) = -1 EAGAIN (Resource temporarily unavailable) <0.000010>
10 100.5 clone(child_stack=NULL, flags=SIGCHLD) = 12 <0.000100>
12 100.6 unlinkat(5</store/a>, "b", 0)   = 0 <0.000010>
12 100.7 close(3</store>)                = 0 <0.000010>
12 100.8 unlinkat(6</store>, "a", AT_REMOVEDIR) = 0 <0.000010>
12 100.9 +++ exited with 0 +++
11 101.0 unlinkat(5</store/a>, "b", 0)   = -1 ENOENT (No such file or directory) <0.000010>
10 101.1 flock(3</store>, LOCK_UN)       = 0 <0.000010>
11 101.2 flock(3</store>, LOCK_EX)       = 0 <0.500000>
11 101.8 renameat(3</store>, "x", 3</store>, ".besom-trash-x") = 0 <0.000010>
11 101.9 +++ killed by SIGKILL +++
13 101.92 flock(3</store>, LOCK_EX|LOCK_NB) = 0 <0.000010>
13 101.95 exit_group(0)                   = ?
13 101.99 +++ exited with 0 +++
10 102.0 unlinkat(5</store/c>, "d", 0)   = 0 <0.000010>
"""
    )
    record = read(recording, Path("/store"))
    assert [(hold.pid, hold.began, hold.ended) for hold in record.holds] == [
        (10, pytest.approx(100.2), 101.1),
        (11, pytest.approx(101.7), 101.9),
        (13, pytest.approx(101.92), 101.95),
    ]
    assert [change.lineage for change in record.changes] == [(12, 10), (12, 10), (11,), (10,)]
    (late,) = violations([record])
    assert '"d"' in late
