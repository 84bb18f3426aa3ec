# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module prune_daemon: every state with a real daemon, and what becomes of a wait that is cut short."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, TextIO

import pytest

from .daemons import Host, is_gone
from .play import TOP

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

# The module as AnsiballZ runs it, without the second that a playbook needs for each task: a process for each
# argument, one after the other, and the last of them in this very process.
ALONE = f"""
import importlib, os, sys, types
from ansible.module_utils import basic
package = types.ModuleType("besom_checkout")
package.__path__ = [{str(TOP)!r}]
sys.modules["besom_checkout"] = package
module = importlib.import_module("besom_checkout.library.prune_daemon")
for left, args in zip(range(len(sys.argv) - 2, -1, -1), sys.argv[1:]):
    if not left or not os.fork():
        basic._ANSIBLE_ARGS, basic._ANSIBLE_PROFILE = args.encode(), "legacy"
        module.main()
    os.wait()
"""

# Tells its pid to whoever reads the FIFO, which it holds open for as long as it lives.
WAITS = """#!/bin/sh
exec 3>"${0%/*}/fifo"
echo $$ >&3
exec sleep infinity
"""


Answer = dict[str, Any]
Answers = dict[str, Answer]


def alone(*calls: dict[str, Any], within: Sequence[str] = ()) -> subprocess.Popen[str]:
    """The module as a process; stdout is its connection. within: a command that runs its arguments."""
    words = [json.dumps({"ANSIBLE_MODULE_ARGS": args}) for args in calls]
    return subprocess.Popen(
        [*within, sys.executable, "-c", ALONE, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(module: subprocess.Popen[str]) -> list[Answer]:
    """Its answers, in order."""
    out, err = module.communicate(timeout=600)
    assert not err
    return [json.loads(line) for line in out.splitlines() if line]


def answer(**args: Any) -> Answer:
    with alone(args) as module:
        (found,) = told(module)
    return found


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
    with alone({"state": "idle", "command": str(command)}) as module, fifo.open() as life:
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
        assert result["msg"].startswith(f"Interrupted. {signum.name} came while waiting for the prune daemon")
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


class Chain:
    """What is asked of one host's daemon, call by call."""

    def __init__(self, here: Path) -> None:
        self.host = Host(here)
        self.asked: Answers = {}

    def ask(self, name: str, state: str, check: bool = False, diff: bool = False, **more: Any) -> None:
        options = {**self.host.options, "state": state, **more}
        self.asked[name] = {**options, "_ansible_check_mode": check, "_ansible_diff": diff}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, hold: Callable[[Path], int]) -> Iterator[Answers]:
    """Everything that is asked of real daemons, by name; of several hosts at once."""
    base = tmp_path_factory.mktemp("daemons")
    chains = [Chain(base / name) for name in ("runs", "stops", "stuck")]
    runs, stops, stuck = chains
    for state in NEED_ONE:
        stops.ask(f"none/{state}-check", state, check=True)
        stops.ask(f"none/{state}", state)
    for state in QUARTETS:
        chain = runs
        if state in ("drained", "stopped"):
            chain = stops
            chain.ask(f"{state}/start", "started")
        for step, check in STEPS.items():
            chain.ask(f"{state}/{step}", state, check=check, diff=step in ("check", "run"))
    # A run that waits for a lock for an hour is work that does not end.
    hold(stuck.host.store)
    stuck.ask("stuck/start", "started")
    stuck.ask("stuck/idle", "idle", timeout="0.2")
    stuck.ask("stuck/drained", "drained", timeout="0.2")
    stuck.ask("stuck/forced", "drained", timeout="0.2", force=True)
    with ExitStack() as stack:
        for chain in chains:
            stack.callback(chain.host.end)
        modules = [stack.enter_context(alone(*chain.asked.values())) for chain in chains]
        found: Answers = {}
        for chain, module in zip(chains, modules):
            found.update(zip(chain.asked, told(module)))
        requests = runs.host.state / "trigger"
        found["requests"] = {"count": int(requests.read_text()), "last": requests.stat().st_mtime}
        yield found


def has_failed(result: Answer) -> bool:
    return bool(result.get("failed", False))


def test_every_step_succeeds_and_changes_what_it_should(results: Answers) -> None:
    for state, (first, second) in QUARTETS.items():
        steps = [results[f"{state}/{step}"] for step in STEPS]
        assert not any(map(has_failed, steps)), state
        assert [step["changed"] for step in steps] == [first, first, second, second], state


def test_check_mode_predicts_the_diff(results: Answers) -> None:
    for state, (changed, _) in QUARTETS.items():
        predicted, seen = results[f"{state}/check"], results[f"{state}/run"]
        assert ("diff" in predicted, "diff" in seen) == (changed, changed), state
        if changed:
            assert predicted["diff"]["after"] == seen["diff"]["after"] == {"state": state}


def test_check_mode_changes_nothing(results: Answers) -> None:
    running = results["triggered/check"]["pid"]
    assert results["started/check"]["pid"] is None
    assert running is not None
    assert {results[f"{state}/check"]["pid"] for state in ("idle", "reloaded", "restarted")} == {running}
    for state in ("drained", "stopped"):
        assert results[f"{state}/check"]["pid"] == results[f"{state}/start"]["pid"]
    # One by each of the steps that are no check, and none by those that are.
    assert results["requests"]["count"] == 2


def test_what_is_started_runs_and_what_is_stopped_is_gone(results: Answers) -> None:
    assert results["started/run"]["msg"].startswith("The daemon is ")
    assert results["started/run"]["pid"]
    assert results["started/run"]["pid"] == results["started/again"]["pid"]
    for state in ("drained", "stopped"):
        gone = results[f"{state}/run"]
        assert (gone["state"], gone["pid"], gone["in_flight"]) == ("stopped", None, [])
        assert gone["msg"] == "No daemon runs."
        assert is_gone(results[f"{state}/check"]["pid"])


def test_each_restart_is_another_daemon(results: Answers) -> None:
    pids = [results[f"restarted/{step}"]["pid"] for step in ("check", "run", "again")]
    assert len(set(pids)) == 3
    assert results["restarted/run"]["state"] != "stopped"


def test_idle_waits_for_the_run_that_was_asked_for(results: Answers) -> None:
    idle = results["idle/run"]
    assert idle["last_run"]["outcome"] == "done"
    assert idle["last_run"]["began"] >= results["requests"]["last"]


@pytest.mark.parametrize("state", NEED_ONE)
def test_where_no_daemon_runs_check_mode_predicts_the_failure(results: Answers, state: str) -> None:
    predicted, seen = results[f"none/{state}-check"], results[f"none/{state}"]
    assert has_failed(predicted)
    assert has_failed(seen)
    assert (predicted["changed"], seen["changed"]) == (False, False)
    assert predicted["msg"] == "No daemon runs; start it first."
    assert "; start it" in seen["msg"]


@pytest.mark.parametrize("step", ["idle", "drained"])
def test_when_the_time_is_up_the_failure_names_what_still_runs(results: Answers, step: str) -> None:
    result = results[f"stuck/{step}"]
    assert has_failed(result)
    assert "prune of " in result["msg"]
    assert "/stuck/store" in result["msg"]
    (one,) = result["in_flight"]
    assert one.keys() == {"operation", "path", "since"}
    assert result["waited_s"] >= 0.2


def test_force_ends_a_drain_that_does_not_end(results: Answers) -> None:
    result = results["stuck/forced"]
    assert (has_failed(result), result["changed"], result["state"]) == (False, True, "stopped")
    assert result["last_run"]["outcome"] == "interrupted"
    assert is_gone(results["stuck/start"]["pid"])


@pytest.mark.root
def test_on_a_host_that_drains_a_restart_stops_nothing(tmp_path: Path) -> None:
    """In a mount namespace with a /run of its own, so that nobody else's host seems to drain."""
    if os.geteuid():
        pytest.skip("needs root (a mount namespace)")
    own_run = 'mount -t tmpfs tmpfs /run && touch /run/besom-drain && exec "$@"'
    drains = ["unshare", "--mount", "sh", "-c", own_run, "-"]
    tried = subprocess.run([*drains, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no mount namespace here: {tried.stderr.strip()}")
    host = Host(tmp_path)
    host.besom("daemon", "start")
    try:
        with alone({**host.options, "state": "restarted"}, within=drains) as module:
            (result,) = told(module)
        assert has_failed(result)
        assert result["changed"] is False
        assert "This host drains" in result["msg"]
        assert host.besom("daemon", "status").returncode == 0
    finally:
        host.end()
