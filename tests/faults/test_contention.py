# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Two daemons, cron, a shell and a playbook on one store at once: never two of them change it.

Proved by what strace recorded of each of their processes; the same proof finds what breaks the rule.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from besom_host.state import StateDir

from ..host.conftest import need
from ..host.host import BESOM, DAY, PATIENCE_S, Host
from ..host.mirror import Mirror, serve
from ..modules.play import Play, Result
from .conftest import ALL, Tried
from .holds import Record, read, recorder, violations

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

    def had_a_turn(self, name: str) -> bool:
        """Whether a process has come to a good end of its work, which it did under the lock."""
        host, _space, daemon = name.partition(" ")
        if daemon:
            # A run that gave the lock up is one, too.
            last = StateDir(str(self.hosts[host].state_dir)).observe().last_run
            return bool(last) and last["outcome"] == "done"
        statuses = self.path / name / "statuses"
        return statuses.exists() and "0" in statuses.read_text().split()

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


# How many of each kind, and for how long at least.
CROWD = {"housekeep": 4, "prune": 8, "shell": 6, "threads": 2, "sync": 4, "install": 4}
OWN_TEMP = re.compile(
    r'unlinkat\(\d+<[^>]*>, "\.[^/"]+\.[0-9a-f]{16}\.part", 0\) at [\d.]+ without the lock$'
)
# The unpacked tree of an installation that waited for the store's lock in vain.
GIVEN_UP = re.compile(
    r"(install\d+): renameat\("
    r'\d+<[^>]*>, "\.temp-installed\d+-[0-9a-f]{16}", \d+<[^>]*>, "(\.besom-trash-[0-9a-f]{16})"\) at'
)
LASTING_S = 150.0 if ALL else 5.0
# Under its lock, as any script may: the oldest tree goes.
SHELL = 'cd "$1" && for one in ready*; do [ ! -d "$one" ] || rm -r "$one"; break; done'
# One process whose threads keep house each for itself.
THREADS = """
import os, sys, threading
from besom.policy import Policy, Store
from besom.prune import Request, prune
from besom.run import Run
request = Request(Store(sys.argv[1], "trees", Policy(max_entries=int(sys.argv[2]))))
def work():
    for _ in range(3):
        prune(request, Run(lock_timeout=300))
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


def words_of(kind: str, number: int, crowd: Crowd, mirror: Mirror) -> list[object]:
    """The command of one of many that is begun again and again."""
    store, config = crowd.store, ["--config", os.devnull, "--lock-timeout", ("60s", "20s")[number % 2]]
    if kind == "housekeep":
        return [*crowd.hosts["cron"].command("housekeep", "--lock-timeout", "60s")]
    if kind == "prune":
        return [*BESOM, "prune", store, "--layout", "trees", "--max-entries", MOST, *config]
    if kind == "shell":
        return ["flock", store, "sh", "-c", SHELL, "sh", store]
    if kind == "threads":
        return [sys.executable, "-c", THREADS, store, MOST]
    if kind == "sync":
        manifest = crowd.path / f"manifest{number}.json"
        mirror.add(f"/file{number}", b"x")
        artifact = {"url": f"{mirror.url}/file{number}", "dest": f"synced{number}/file"}
        manifest.write_text(json.dumps({"store": str(store), "artifacts": [artifact]}))
        return [*BESOM, "sync", manifest, *config]
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name in range(FILES):
            archive.addfile(tarfile.TarInfo(f"{name}"))
    mirror.add(f"/{number}.tar.gz", stream.getvalue())
    return [
        *BESOM,
        "install",
        f"{mirror.url}/{number}.tar.gz",
        "--into",
        store,
        "--name",
        f"installed{number}",
        *config,
    ]


def rule_breakers(found: list[Record]) -> list[str]:
    """Violations, but for what is fetched or unpacked: until it is published that has a lock of its own."""
    broken = [one for one in violations(found) if not OWN_TEMP.search(one)]
    given_up = {match.groups() for match in map(GIVEN_UP.match, broken) if match}
    return [
        one
        for one in broken
        if not any(one.startswith(f"{who}: ") and trash in one for who, trash in given_up)
    ]


def test_dozens_at_once_never_two_change_a_store(
    tmp_path: Path, store: Path, records: Path, tried: Tried
) -> None:
    """More of everything, also of what publishes, until all of them had a turn."""
    crowd, made = Crowd(tmp_path, store, records), iter(range(10**6))
    counts = CROWD if ALL else dict.fromkeys(CROWD, 1)
    daemons = [crowd.hosts[name] for name in ("first", "second")]
    fill(store, made)
    with contextlib.ExitStack() as stack:
        mirror = stack.enter_context(serve())
        news = stack.enter_context(INotify())
        news.add_watch(store, flags.MOVED_FROM | flags.DELETE)
        stack.callback(crowd.over.touch)
        processes = {f"{name} daemon": crowd.daemon(name) for name in ("first", "second")}
        for kind, count in counts.items():
            for number in range(count):
                name = f"{kind}{number}"
                processes[name] = crowd.loop(name, *words_of(kind, number, crowd, mirror))
        for process in processes.values():
            stack.callback(process.wait)
            stack.callback(process.kill)
        for host in daemons:
            stack.callback(host.close)
            host.until(lambda now: now["pid"])
        began = time.monotonic()
        left = set(processes)
        while left or time.monotonic() < began + LASTING_S:
            news.read(timeout=500)
            assert time.monotonic() < began + LASTING_S + 5 * PATIENCE_S, f"these have no turn: {left}"
            fill(store, made)
            left = {name for name in left if not crowd.had_a_turn(name)}
            for host in daemons:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(host.daemon_pid(), signal.SIGUSR1)
        crowd.over.touch()
        for host in daemons:
            assert host.daemon("stop").status == 0
        for name, process in processes.items():
            assert process.wait(3 * PATIENCE_S) == 0, name

    found = crowd.read()
    assert [one.name for one in found if not one.holds] == []
    assert rule_breakers(found) == []
    for path in store.iterdir():
        expected = 1 if path.name.startswith("synced") else FILES
        assert len([one for one in path.iterdir() if one.name.isdigit() or one.name == "file"]) == expected
    statuses = []
    for path in tmp_path.glob("*/statuses"):
        those, errors = path.read_text().split(), path.with_name("errors").read_text()
        assert set(those) <= {"0", "75"}, f"{path.parent.name}: {errors}"
        assert "Traceback" not in errors
        statuses += those
    tried("contention: processes that took turns on one store", len(statuses) + len(daemons))
    tried("contention: holds recorded, of which no two overlap", sum(len(one.holds) for one in found))
    tried("contention: changes, each in a hold of its own", sum(len(one.changes) for one in found))


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
        (10, 100.4, 101.1),
        (11, 101.8, 101.9),
        (13, 101.95, 101.95),
    ]
    assert [change.lineage for change in record.changes] == [(12, 10), (12, 10), (11,), (10,)]
    (late,) = violations([record])
    assert '"d"' in late
