# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a daemon outlives: errors that nobody has foreseen, and settings of any kind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from .host import Host, Process
from .told import told

# Each run meets the next of these, wherever that may come from; then all is well.
PLANTED = """
import errno, sys
import besom_host.cycle as cycle, besom_host.daemon as daemon
from besom_host.start import main

def deep():
    return deep()

def eio():
    raise OSError(errno.EIO, "Input/output error")

def memory():
    raise MemoryError

def odd():
    raise KeyError("\\n\\u2028")

def planted(room, name, misfortunes):
    well = getattr(room, name)
    def work(*words, **more):
        if misfortunes:
            misfortunes.pop(0)()
        return well(*words, **more)
    setattr(room, name, work)

no = lambda: None
planted(cycle, "prune", [memory, deep, eio, odd])
planted(cycle, "perform", [no, no, no, no, memory, deep])
planted(daemon, "keep_house", [no, no, no, no, no, no, memory, odd])
main()
"""


def test_a_daemon_outlives_any_error_of_a_run_and_keeps_to_its_interval(host: Host) -> None:
    log = host.path / "besom.clef"
    host.configure(log={"format": "clef", "file": str(log)})
    host.fill(5)
    command = [sys.executable, "-c", PLANTED, *host.command("daemon", "run")[3:]]
    daemon = Process(command, env=host.environment(), stderr=subprocess.DEVNULL)
    host.processes.append(daemon)
    for runs in range(1, 7):
        host.until(lambda now, runs=runs: now["runs"] == runs and now["state"] == "idle")
        assert len(host.names()) == 5
        daemon.send_signal(signal.SIGUSR1)
    # The next two do not even become runs.
    for crashes in (3, 4):
        told(log, "run_crashed", crashes)
        daemon.send_signal(signal.SIGUSR1)
    now = host.until(lambda now: now["runs"] == 7 and now["state"] == "idle")
    assert len(host.names()) == 3
    assert 3000 < now["next_run"] - time.time() <= 3600
    events = [line["event"] for line in told(log)]
    assert (events.count("work_crashed"), events.count("work_failed")) == (3, 1)
    assert host.daemon("stop").status == 0


WILD = [
    {
        "BESOM_INTERVAL_MINUTES": "\udcff\n",
        "BESOM_MAX_SIZE_MB": "1e400",
        "BESOM_LOG_FILE": "/dev/full",
        "BESOM_SEQ_URL": "http://[",
    },
    {
        "BESOM_INTERVAL": "106751d",
        "BESOM_DRAIN_TIMEOUT": "99999999999",
        "BESOM_LOCK_TIMEOUT": "15250w",
        "BESOM_LOG_FILE": "/" + "x" * 300,
        "BESOM_LOG_JOURNAL": "true",
        "BESOM_METRICS_TEXTFILE": "/proc/\udcff",
    },
    {
        "BESOM_INTERVAL_MINUTES": "0.0001",
        "BESOM_MAX_SIZE": "-0",
        "BESOM_LOG_FORMAT": "\x1b[2J",
        "BESOM_SEQ_URL": "http://127.0.0.1:1",
        "BESOM_SEQ_API_KEY": "\r\nX-Evil: 1",
        "BESOM_METRICS_TEXTFILE": "/",
    },
]


@pytest.mark.parametrize("number", range(len(WILD)))
def test_a_daemon_runs_under_any_environment(host: Host, number: int) -> None:
    host.env = WILD[number]
    host.fill(5)
    host.start()
    assert len(host.names()) == 3
    assert host.daemon("status")["last_run"]["outcome"] == "done"
    assert host.daemon("stop").status == 0
    assert "Traceback" not in host.log
    assert all(line.isprintable() for line in host.log.split("\n"))
