# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module prune_daemon: every state with a real daemon, and what becomes of a wait that is cut short."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, TextIO

import pytest

from .play import TOP, Play, Result

COMMAND = Path(sys.executable).with_name("besom")

# Each state, whether asking for it changes anything, and whether asking again does; in the order of the play.
QUARTETS = {
    "started": (True, False),
    "triggered": (True, True),
    "idle": (False, False),
    "reloaded": (True, True),
    "restarted": (True, True),
    "drained": (True, False),
    "stopped": (True, False),
}
STEPS = {"check": True, "run": False, "again": False, "check-again": True}
NEED_ONE = ("reloaded", "triggered", "idle")

# The module in a process of its own, as AnsiballZ runs it.
ALONE = f"""
import importlib, sys, types
from ansible.module_utils import basic
package = types.ModuleType("besom_checkout")
package.__path__ = [{str(TOP)!r}]
sys.modules["besom_checkout"] = package
basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = sys.argv[1].encode(), "legacy"
importlib.import_module("besom_checkout.library.prune_daemon").main()
"""

# Tells its pid to whoever reads the FIFO, which it holds open for as long as it lives.
WAITS = """#!/bin/sh
exec 3>"${0%/*}/fifo"
echo $$ >&3
exec sleep infinity
"""


def alone(**args: Any) -> subprocess.Popen[str]:
    """The module as a process; stdout is its connection."""
    words = [sys.executable, "-c", ALONE, json.dumps({"ANSIBLE_MODULE_ARGS": args})]
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answer(**args: Any) -> dict[str, Any]:
    with alone(**args) as module:
        out, err = module.communicate(timeout=60)
    assert not err
    result: dict[str, Any] = json.loads(out)
    return result


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """A besom command of the test's own."""
    path = tmp_path / "besom"
    path.touch(0o755)
    return path


@dataclass
class Waiter:
    """The command that a module waits for."""

    pid: int
    life: TextIO

    def has_ended(self) -> bool:
        """Whether it ends, in a time that is long even on a busy machine: then the FIFO has no writer."""
        return bool(select.select([self.life], [], [], 30)[0]) and not self.life.read()


@contextmanager
def waiting(command: Path) -> Iterator[tuple[subprocess.Popen[str], Waiter]]:
    """A module that waits for a command."""
    command.write_text(WAITS)
    fifo = command.with_name("fifo")
    os.mkfifo(fifo)
    with alone(state="idle", command=str(command)) as module, fifo.open() as life:
        waiter = Waiter(int(life.readline()), life)
        try:
            yield module, waiter
        finally:
            module.kill()
            with suppress(ProcessLookupError):
                os.kill(waiter.pid, signal.SIGKILL)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_wait_and_leaves_no_orphan(command: Path, signum: signal.Signals) -> None:
    with waiting(command) as (module, waiter):
        module.send_signal(signum)
        result = json.loads(module.communicate(timeout=60)[0])
        assert result["failed"] is True
        assert result["msg"].startswith(f"Interrupted by {signum.name} while waiting for the prune daemon")
        assert waiter.has_ended()


def test_a_lost_connection_ends_the_wait_and_leaves_no_orphan(command: Path) -> None:
    with waiting(command) as (module, waiter):
        assert module.stdout
        module.stdout.close()
        assert waiter.has_ended()
        module.wait(timeout=60)


def test_without_the_command_it_says_how_to_get_it(tmp_path: Path) -> None:
    result = answer(command=str(tmp_path / "besom"))
    assert result["failed"] is True
    assert result["msg"] == (
        f"There is no command {tmp_path}/besom on this host; install it with the role besom."
    )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ('echo \'{"error": "It is so.", "changed": false}\'; exit 2', "It is so."),
        ("echo one >&2; echo two >&2; exit 1", "{} daemon start ended with 1, saying: two"),
        ("exit 127", "{} daemon start ended with 127, saying: nothing"),
    ],
)
def test_what_the_command_says_is_the_message(command: Path, script: str, message: str) -> None:
    command.write_text(f"#!/bin/sh\n{script}\n")
    result = answer(command=str(command))
    assert (result["failed"], result["msg"]) == (True, message.format(command))


def test_a_malformed_timeout_is_refused_before_anything_is_run(command: Path) -> None:
    command.write_text("#!/bin/sh\ntouch $0.ran\n")
    result = answer(command=str(command), timeout="soon")
    assert result["failed"] is True
    assert result["msg"].startswith("timeout: 'soon' is not a duration")
    assert not command.with_name("besom.ran").exists()


@dataclass
class Host:
    """A configuration with a state directory and a store of its own."""

    here: Path

    def __post_init__(self) -> None:
        (self.here / "store").mkdir(parents=True)
        self.config.write_text(
            f"""
stores: [{{name: store, path: {self.here}/store, layout: files, max_entries: 1}}]
daemon: {{interval: 1h, drain_timeout: 1h, state_dir: {self.here}/state}}
log: {{file: {self.here}/log}}
lock_timeout: 1h
"""
        )

    @property
    def config(self) -> Path:
        return self.here / "besom.yml"

    def options(self, state: str, **more: Any) -> dict[str, Any]:
        return {"state": state, "config": str(self.config), "command": str(COMMAND), **more}

    def end(self) -> None:
        subprocess.run(
            [COMMAND, "daemon", "stop", "--force", "--timeout", "0", "--config", self.config],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )


@pytest.fixture(scope="module")
def results(play: Play, hold: Callable[[Path], int]) -> Iterator[dict[str, Result]]:
    """Everything on real daemons, in one play."""
    free, stuck = Host(play.base / "free"), Host(play.base / "stuck")
    for state in QUARTETS:
        if state == "stopped":
            for needy in NEED_ONE:
                play.add(f"none/{needy}-check", "prune_daemon", free.options(needy), check=True)
                play.add(f"none/{needy}", "prune_daemon", free.options(needy))
            play.add("stopped/start", "prune_daemon", free.options("started"))
        for step, check in STEPS.items():
            play.add(f"{state}/{step}", "prune_daemon", free.options(state), check=check)
    # A run that waits for a lock for an hour is work that does not end.
    hold(stuck.here / "store")
    play.add("stuck/start", "prune_daemon", stuck.options("started"))
    play.add("stuck/idle", "prune_daemon", stuck.options("idle", timeout="0.2"))
    play.add("stuck/drained", "prune_daemon", stuck.options("drained", timeout="0.2"))
    play.add("stuck/forced", "prune_daemon", stuck.options("drained", timeout="0.2", force=True))
    try:
        yield {task: result for (_, task), result in play.run().items()}
    finally:
        free.end()
        stuck.end()


@pytest.fixture(params=QUARTETS)
def quartet(request: pytest.FixtureRequest, results: dict[str, Result]) -> dict[str, Result]:
    found = {step: results[f"{request.param}/{step}"] for step in STEPS}
    return {"asked": request.param, **found}


def test_every_step_succeeds_and_changes_what_it_should(results: dict[str, Result]) -> None:
    for state, (first, second) in QUARTETS.items():
        steps = [results[f"{state}/{step}"] for step in STEPS]
        assert [step.status for step in steps] == ["ok"] * 4, state
        assert [step["changed"] for step in steps] == [first, first, second, second], state


def test_check_mode_predicts_the_diff(results: dict[str, Result]) -> None:
    for state, (first, second) in QUARTETS.items():
        for check, run, changed in (("check", "run", first), ("check-again", "again", second)):
            predicted, seen = results[f"{state}/{check}"], results[f"{state}/{run}"]
            assert ("diff" in predicted.values, "diff" in seen.values) == (changed, changed), state
            if changed:
                assert predicted["diff"]["after"] == seen["diff"]["after"] == {"state": state}


def test_check_mode_changes_nothing(results: dict[str, Result]) -> None:
    running = results["triggered/check"]["pid"]
    assert results["started/check"]["pid"] is None
    assert running is not None
    assert {results[f"{state}/check"]["pid"] for state in ("idle", "reloaded", "restarted")} == {running}
    assert results["drained/check"]["pid"] == results["restarted/again"]["pid"]


def test_what_is_started_runs_and_what_is_stopped_is_gone(results: dict[str, Result]) -> None:
    assert results["started/run"].msg.startswith("The daemon is ")
    assert results["started/run"]["pid"] == results["started/again"]["pid"] != None  # noqa: E711
    for state in ("drained", "stopped"):
        gone = results[f"{state}/run"]
        assert (gone["state"], gone["pid"], gone["in_flight"]) == ("stopped", None, [])
        assert gone.msg == "No daemon runs."
        with pytest.raises(ProcessLookupError):
            os.kill(results[f"{state}/check"]["pid"], 0)


def test_each_restart_is_another_daemon(results: dict[str, Result]) -> None:
    pids = [results[f"restarted/{step}"]["pid"] for step in ("check", "run", "again")]
    assert len(set(pids)) == 3
    assert results["restarted/run"]["state"] != "stopped"


def test_idle_waits_for_the_run_that_was_asked_for(results: dict[str, Result]) -> None:
    asked, idle = results["triggered/again"], results["idle/run"]
    assert idle["last_run"]["outcome"] == "done"
    assert asked["pid"] == idle["pid"]
    assert idle["runs"] >= 2


@pytest.mark.parametrize("state", NEED_ONE)
def test_where_no_daemon_runs_check_mode_predicts_the_failure(results: dict[str, Result], state: str) -> None:
    predicted, seen = results[f"none/{state}-check"], results[f"none/{state}"]
    assert (predicted.status, seen.status) == ("failed", "failed")
    assert (predicted["changed"], seen["changed"]) == (False, False)
    assert predicted.msg == "No daemon runs; start it first."
    assert "; start it" in seen.msg


@pytest.mark.parametrize("step", ["idle", "drained"])
def test_when_the_time_is_up_the_failure_names_what_still_runs(results: dict[str, Result], step: str) -> None:
    result = results[f"stuck/{step}"]
    assert result.status == "failed"
    assert "prune of " in result.msg
    assert "/stuck/store" in result.msg
    assert [one["path"][-12:] for one in result["in_flight"]] == ["/stuck/store"]
    assert result["waited_s"] >= 0.2


def test_force_ends_a_drain_that_does_not_end(results: dict[str, Result]) -> None:
    result = results["stuck/forced"]
    assert (result.status, result["changed"], result["state"]) == ("ok", True, "stopped")
    assert result["last_run"]["outcome"] == "interrupted"
    with pytest.raises(ProcessLookupError):
        os.kill(results["stuck/start"]["pid"], 0)
