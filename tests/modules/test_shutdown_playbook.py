# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""playbooks/shutdown.yml drains real daemons, prunes once more, and says what came of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from .daemons import COMMAND, Host
from .play import PLAYBOOK, TOP


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, hold: Callable[[Path], int]) -> Iterator[dict[str, Host]]:
    """Three hosts: the daemon of one is idle, those of the others are at work that does not end."""
    base = tmp_path_factory.mktemp("hosts")
    hosts = {name: Host(base / name) for name in ("idle", "forced", "stuck")}
    for name, host in hosts.items():
        if name != "idle":
            hold(host.store)
        host.besom("daemon", "start")
    hosts["idle"].besom("daemon", "wait")
    for name in ("one", "two"):
        (hosts["idle"].store / name).touch()
    yield hosts
    for host in hosts.values():
        host.end()


@pytest.fixture(scope="module")
def said(hosts: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the playbook prints."""
    control = tmp_path_factory.mktemp("control")
    inventory = {}
    for name, host in hosts.items():
        # The playbook takes the host's own configuration; these hosts share one machine.
        besom = shlex.join([str(COMMAND), "--config", str(host.config)])
        command = control / name
        command.write_text(f'#!/bin/sh\nexec {besom} "$@"\n')
        command.chmod(0o755)
        inventory[name] = {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "besom_command": str(command),
            "besom_force": name == "forced",
        }
    (control / "inventory.json").write_text(json.dumps({"all": {"hosts": inventory}}))
    options = ["-i", control / "inventory.json", "-e", "besom_serial=3", "-e", "besom_wait=0.2"]
    environment = {
        **os.environ,
        "ANSIBLE_HOME": str(control / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
        # The last prune of a host whose store stays locked is not waited for.
        "BESOM_LOCK_TIMEOUT": "0",
    }
    done = subprocess.run(
        [PLAYBOOK, *options, "playbooks/shutdown.yml"],
        cwd=TOP,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2, done.stdout + done.stderr
    return done.stdout


def summary(said: str, host: str) -> list[str]:
    """The lines that the summary has for host, without what changes from run to run."""
    text = re.search(rf"^ok: \[{host}\] => \n    msg: \|-\n((?:        .*\n)+)", said, re.MULTILINE)
    assert text, said
    plain = text[1]
    for changing, word in ((r"pid \d+", "pid N"), (r"\d+(\.\d+)? ?s\b", "Ns"), (r"/\S+/store", "STORE")):
        plain = re.sub(changing, word, plain)
    return [line.strip() for line in plain.splitlines()]


def test_an_idle_daemon_is_drained_and_its_store_pruned_once_more(said: str, hosts: dict[str, Host]) -> None:
    assert summary(said, "idle")[0] == "idle: drained"
    assert summary(said, "idle")[-1] == "last prune: removed 1, 0 B; kept 0"
    assert len(list(hosts["idle"].store.iterdir())) == 1
    assert hosts["idle"].besom("daemon", "status").returncode == 1


def test_work_that_does_not_end_fails_the_host_and_is_named(said: str, hosts: dict[str, Host]) -> None:
    lines = summary(said, "stuck")
    assert lines[0] == "stuck: FAILED"
    assert "still running: prune of STORE for Ns" in lines[1]
    assert lines[-1] == "last prune: not done"
    assert hosts["stuck"].besom("daemon", "status").returncode == 0


def test_force_stops_it_and_a_store_that_stays_locked_is_named(said: str, hosts: dict[str, Host]) -> None:
    lines = summary(said, "forced")
    assert lines[0] == "forced: FAILED"
    assert lines[1].startswith("daemon:     No daemon runs.")
    assert lines[-1].startswith("last prune: FAILED: STORE is locked by pid N")
    assert hosts["forced"].besom("daemon", "status").returncode == 1
