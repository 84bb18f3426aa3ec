# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""playbooks/shutdown.yml takes real daemons down, prunes once more, and says what came of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .daemons import COMMAND, Host
from .play import PLAYBOOK, TOP

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (a /run for each host)")
OFF = ["-e", "besom_poweroff=true"]
DRAIN = """
drain: {daemon_timeout: 4s, prune_timeout: 20s}
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Host]]:
    """Two hosts: the daemon of one is idle, that of the other does not answer any more."""
    base = tmp_path_factory.mktemp("hosts")
    hosts = {name: Host(base / name) for name in ("idle", "stuck")}
    for host in hosts.values():
        host.config.write_text(host.config.read_text() + DRAIN)
        host.besom("daemon", "start")
        host.besom("daemon", "wait")
        for name in ("one", "two"):
            (host.store / name).touch()
    os.kill(int((hosts["stuck"].state / "daemon.pid").read_text().split()[0]), signal.SIGSTOP)
    yield hosts
    for host in hosts.values():
        host.end()


@pytest.fixture(scope="module")
def inventory(hosts: dict[str, Host], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An inventory of the hosts, which share one machine but each have a /run and a configuration."""
    control = tmp_path_factory.mktemp("control")
    found = {}
    with ExitStack() as stack:
        for name, host in hosts.items():
            run = control / f"{name}.run"
            run.mkdir()
            script = f"mount --bind {run} /run && echo ready && exec cat"
            namespace = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            stack.callback(namespace.communicate)
            assert namespace.stdout
            assert namespace.stdout.readline() == b"ready\n"
            enter = ["nsenter", "--mount", f"--target={namespace.pid}", "--"]
            command = control / name
            besom = shlex.join([*enter, str(COMMAND), "--config", str(host.config)])
            command.write_text(f'#!/bin/sh\nexec {besom} "$@"\n')
            command.chmod(0o755)
            found[name] = {
                "ansible_connection": "local",
                "ansible_python_interpreter": sys.executable,
                "besom_command": str(command),
            }
        fake = control / "bin/shutdown"
        fake.parent.mkdir()
        fake.write_text(f'#!/bin/sh\necho "$@" >> {control}/powered-off\n')
        fake.chmod(0o755)
        file = control / "inventory.json"
        file.write_text(json.dumps({"all": {"hosts": found}}))
        yield file


def play(inventory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PLAYBOOK, "-i", inventory, "-e", "besom_serial=2", *options, "playbooks/shutdown.yml"],
        cwd=TOP,
        env={
            **os.environ,
            "ANSIBLE_HOME": str(inventory.parent / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            # This machine is to stay: the fake comes first.
            "PATH": f"{inventory.parent / 'bin'}:{os.environ['PATH']}",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def runs(inventory: Path) -> dict[str, subprocess.CompletedProcess[str]]:
    """The playbook in check mode, for real, and again."""
    return {
        name: play(inventory, *options)
        for name, options in {"check": ["--check", *OFF], "run": OFF, "again": []}.items()
    }


def summary(done: subprocess.CompletedProcess[str], host: str) -> list[str]:
    """The lines that the summary has for host, without what changes from run to run."""
    text = re.search(rf"^ok: \[{host}\] => \n    msg: \|-\n((?:        .*\n)+)", done.stdout, re.MULTILINE)
    assert text, done.stdout + done.stderr
    plain = text[1]
    for changing, word in ((r"pid \d+", "pid N"), (r" +\d+\.\d+s of", " Ns of"), (r"/\S+/store", "STORE")):
        plain = re.sub(changing, word, plain)
    return [" ".join(line.split()) for line in plain.splitlines()]


def test_an_idle_host_goes_through_every_phase(runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert summary(runs["run"], "idle") == [
        "idle: drained; powers off in a minute",
        "refuse done Ns of 5s new work is refused",
        "daemon done Ns of 4s pid N stopped",
        "unmount done Ns of 30s no mount is configured",
        "prune done Ns of 20s removed 1, 0 B",
    ]


def test_check_mode_says_what_the_run_then_does(runs: dict[str, subprocess.CompletedProcess[str]]) -> None:
    assert runs["check"].returncode == 0, runs["check"].stdout
    assert summary(runs["check"], "idle") == [
        "idle: would be drained",
        "refuse planned Ns of 5s new work is refused",
        "daemon planned Ns of 4s pid N is idle",
        "unmount planned Ns of 30s no mount is configured",
        "prune planned Ns of 20s would remove 1, 0 B",
    ]
    # Powering off is the second change of the run; in check mode a command is skipped.
    for name, changed in (("check", 1), ("run", 2)):
        found = re.search(r"^idle +: ok=\d+ +changed=(\d+) ", runs[name].stdout, re.MULTILINE)
        assert found, runs[name].stdout
        assert int(found[1]) == changed


def test_a_stuck_daemon_fails_its_host_and_is_named(
    runs: dict[str, subprocess.CompletedProcess[str]],
) -> None:
    lines = summary(runs["run"], "stuck")
    assert lines[0] == "stuck: FAILED"
    assert lines[2] == "daemon failed Ns of 4s pid N stopped (forced)"
    assert lines[3].startswith("The daemon (pid N) did not drain within 4s")
    assert lines[-1] == "prune done Ns of 20s removed 1, 0 B"
    assert runs["run"].returncode == 2
    assert re.search(r"^stuck +:.* failed=1 ", runs["run"].stdout, re.MULTILINE)


def test_only_a_host_whose_phases_went_well_is_powered_off(
    inventory: Path, runs: dict[str, subprocess.CompletedProcess[str]]
) -> None:
    assert (inventory.parent / "powered-off").read_text() == "-P +1\n"
    assert summary(runs["run"], "stuck")[0] == "stuck: FAILED"


def test_a_second_run_finds_nothing_to_do_on_either(
    runs: dict[str, subprocess.CompletedProcess[str]],
) -> None:
    assert runs["again"].returncode == 0, runs["again"].stdout
    for host in ("idle", "stuck"):
        assert re.search(rf"^{host} +: ok=\d+ +changed=0 ", runs["again"].stdout, re.MULTILINE)
