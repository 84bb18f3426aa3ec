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
from typing import Any, TextIO

import pytest

from .play import TOP

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
