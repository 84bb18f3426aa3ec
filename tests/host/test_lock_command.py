# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""besom lock, and besom where flock(2) does nothing: strace answers it instead of the kernel."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from inotify_simple import INotify, flags

from besom.owner_file import NAME, Owner

from .conftest import Done, Held, need
from .host import BESOM, DAY, Host

NO_FLOCK = [
    "-f",
    "-qq",
    "--seccomp-bpf",
    "-o",
    os.devnull,
    "-e",
    "trace=flock",
    "-e",
    "inject=flock:retval=0",
]
ELSEWHERE = replace(Owner.current(), host="barn", host_id="other", boot_id="other", command="sweeper")

Run = Callable[..., Done]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    path.mkdir()
    return path


@pytest.fixture
def without_flock(host: Host) -> Run:
    """without_flock(word...): besom --json with them, where every flock succeeds."""

    def run(*words: str | Path) -> Done:
        command = [need("strace"), *NO_FLOCK, *BESOM, "--json", "--config", os.devnull, *words]
        done = subprocess.run(
            command,
            env=host.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr
        return Done(done.returncode, json.loads(done.stdout or "{}"), done.stderr)

    return run


def leave(store: Path, owner: Owner) -> None:
    (store / NAME).write_text(json.dumps(asdict(owner)))


def test_status_names_whoever_holds_a_store(besom: Run, store: Path, hold: Callable[[Path], Held]) -> None:
    free = besom("lock", "status", store)
    assert (free.status, free.report["state"], free.report["mechanism"]) == (0, "free", "flock")
    held = hold(store)
    found = besom("lock", "status", store)
    assert (found.status, found.report["state"]) == (0, "held")
    assert found.report["holder"]["pid"] == held.pid
    held.release()


def test_status_takes_the_name_of_a_store_and_speaks_to_people(host: Host) -> None:
    command = [*BESOM, "--config", str(host.file), "lock", "status", "gems"]
    done = subprocess.run(command, env=host.environment(), capture_output=True, text=True, check=True)
    assert done.stdout == f"{host.store} is free (flock).\n"


def test_without_flock_an_owner_elsewhere_holds_a_store_until_its_lock_is_broken(
    without_flock: Run, store: Path
) -> None:
    (store / "entry").mkdir()
    os.utime(store / "entry", (DAY, DAY))
    leave(store, ELSEWHERE)
    prune = ("prune", store, "--layout", "trees", "--max-age", "1d", "--lock-timeout", "0")
    refused = without_flock(*prune)
    assert refused.status == 75
    assert f"locked by pid {os.getpid()} (sweeper) on barn, since 2" in refused.stderr
    assert f"besom lock break {store}" in refused.stderr
    status = without_flock("lock", "status", store)
    assert (status.report["state"], status.report["mechanism"]) == ("held", "owner file")
    assert status.report["holder"]["host"] == "barn"

    unconfirmed = without_flock("lock", "break", store)
    assert (unconfirmed.status, (store / NAME).exists()) == (2, True)
    assert "confirm with --yes" in unconfirmed.stderr
    broken = without_flock("lock", "break", store, "--yes")
    assert (broken.status, broken.report["changed"], (store / NAME).exists()) == (0, True, False)
    pruned = without_flock(*prune)
    assert (pruned.status, pruned.report["removed"]["entries"]) == (0, 1)
    assert list(store.iterdir()) == []


def test_the_lock_of_an_owner_that_lives_here_is_not_broken(besom: Run, store: Path) -> None:
    leave(store, Owner.current())
    refused = besom("lock", "break", store, "--yes")
    assert (refused.status, (store / NAME).exists()) == (75, True)
    assert "which lives: end that process instead" in refused.stderr


def test_there_is_nothing_to_break_where_flock_holds_a_store(
    besom: Run, store: Path, hold: Callable[[Path], Held]
) -> None:
    hold(store)
    refused = besom("lock", "break", store, "--yes")
    assert refused.status == 2
    assert "nothing to break" in refused.stderr


@pytest.mark.parametrize(("answer", "stays"), [("n\n", True), ("\n", True), ("y\n", False)])
def test_a_person_is_asked_before_a_lock_is_broken(store: Path, host: Host, answer: str, stays: bool) -> None:
    leave(store, ELSEWHERE)
    ours, theirs = pty.openpty()
    command = [*BESOM, "--config", os.devnull, "lock", "break", str(store)]
    options: dict[str, Any] = {"stdin": theirs, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=host.environment(), text=True, **options) as process:
        os.write(ours, answer.encode())
        _, said = process.communicate(timeout=60)
    os.close(ours)
    os.close(theirs)
    assert process.returncode == 0
    assert "on barn" in said
    assert "[y/N]" in said
    assert (store / NAME).exists() == stays


def test_a_terminal_shows_a_wait_as_it_lasts(store: Path, host: Host, hold: Callable[[Path], Held]) -> None:
    held = hold(store)
    ours, theirs = pty.openpty()
    words = ["prune", str(store), "--layout", "files", "--max-age", "1d", "--lock-timeout", "61s"]
    command = [*BESOM, "--config", os.devnull, *words]
    environment = {**host.environment(), "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while b"/61" not in said:  # the seconds, in the live line
            said += os.read(ours, 4096)
        held.release()
        while b"Got the lock" not in said:
            said += os.read(ours, 4096)
        assert process.wait(60) == 0
    os.close(ours)
    line = f"Waiting for {store}, locked by pid {held.pid} (flock {store} sh -c), running since "
    assert said.startswith(f"besom: {line}".encode())
    assert said.count(b"Got the lock") == 1


def test_a_log_has_one_event_as_a_wait_begins_and_one_as_it_ends(
    host: Host, hold: Callable[[Path], Held]
) -> None:
    file = host.path / "log"
    host.configure(lock_timeout="1h", log={"format": "json", "file": str(file)})
    file.touch()
    held = hold(host.store)
    with INotify() as news:
        news.add_watch(file, flags.MODIFY)
        run = host.popen("housekeep")
        while "lock_awaited" not in file.read_text():
            assert news.read(timeout=60_000), "nothing was logged"
        held.release()
        assert run.wait(60) == 0
    events = [json.loads(line) for line in file.read_text().splitlines()]
    (begun,) = (event for event in events if event["event"] == "lock_awaited")
    (ended,) = (event for event in events if event["event"] == "lock_won")
    assert f"locked by pid {held.pid} (flock" in begun["message"]
    assert (ended["path"], ended["lock_wait_s"] > 0) == (str(host.store), True)


def test_the_time_to_wait_is_the_flags_then_the_environments_then_the_files(
    host: Host, hold: Callable[[Path], Held]
) -> None:
    hold(host.store)
    # What does not obey waits for an hour.
    for file, env, flag in (("1h", "1h", ["--lock-timeout", "0"]), ("1h", "0", []), (0, "", [])):
        host.configure(lock_timeout=file)
        host.env = {"BESOM_LOCK_TIMEOUT": env} if env else {}
        refused = host.besom("prune", "gems", *flag)
        assert refused.status == 75
        assert "waited 0s" in refused.stderr
