# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whatever others have written is read, or said to be wrong in one line and in time; it deletes no more."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..host.host import BESOM, Host
from .conftest import ALL, Tried
from .wild import TooSlow, judge
from .wild_inputs import explore
from .wild_planted import PLANTED
from .wild_targets import ARCHIVES, CONFIG, TARGETS

TOP = Path(__file__).parents[2]
# Inputs of the structured driver to each target; those that take longest get fewer.
EXAMPLES = 1000 if ALL else 25
SLOW = ("command lines", "config", "environment", "archive", "manifest")
# The coverage-guided one: seconds for each target, and which it tries in every run.
SECONDS = 6 if ALL else 1
FUZZED = list(TARGETS) if ALL else ["owner file"]
SEED = 20_26
PROCESSES = 25 if ALL else 3
DOCUMENTED = (0, 1, 2, 3, 75)
PATIENCE_S = 300


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory for what is made anew for each input; on a disk that takes longer than all else."""
    shared = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as path:
        yield Path(path)


@pytest.fixture
def base(memory: Path) -> Path:
    path = memory / "base"
    path.mkdir()
    return path


def test_what_is_changed_is_sound(base: Path) -> None:
    """What breaks at its first line tries nothing behind it."""
    config = TARGETS["config"].feed(CONFIG, base)
    assert config.sentences == []
    assert (len(config.stores), len(config.temps), len(config.mounts)) == (3, 1, 1)
    for seed in TARGETS["manifest"].seeds:
        assert len(TARGETS["manifest"].feed(seed, base).artifacts) == 2
    for seed in ARCHIVES:
        (place := base / str(ARCHIVES.index(seed))).mkdir()
        assert TARGETS["archive"].feed(seed, place)


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_or_refused(name: str, base: Path, tried: Tried) -> None:
    for seed in TARGETS[name].seeds:
        judge(TARGETS[name], seed, base)
    examples = EXAMPLES // 4 if name in SLOW else EXAMPLES
    count = explore(TARGETS[name], examples, lambda data: judge(TARGETS[name], data, base))
    tried(f"wild inputs made by structure: {name}", count)


def fuzz(directory: Path, name: str, runs: int, seconds: int) -> tuple[int, str]:
    """The exit status of the fuzzer and what it has printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.fuzz", directory, str(SEED), str(runs), str(seconds), name],
        cwd=TOP,
        env={**os.environ, "PYTHONPATH": str(TOP)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    # The finding, which is on stdout, last.
    return done.returncode, (done.stderr + done.stdout).decode(errors="replace")


@pytest.mark.parametrize("name", FUZZED)
def test_what_coverage_leads_to_is_read_or_refused(name: str, memory: Path, tried: Tried) -> None:
    status, printed = fuzz(memory / "fuzz", name, 1_000_000, SECONDS)
    finding = memory / "fuzz.finding"
    data = base64.b85encode(zlib.compress(finding.read_bytes())) if finding.exists() else b""
    assert status == 0, f"{printed[-5000:]}\nzlib.decompress(base64.b85decode({data!r}))"
    count = re.search(r"number_of_executed_units: (\d+)", printed)
    assert count
    assert int(count[1]) > len(TARGETS[name].seeds)
    tried(f"wild inputs led by coverage: {name}", int(count[1]))


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found_by_structure(name: str, base: Path) -> None:
    with pytest.raises((AssertionError, IndexError, MemoryError, TooSlow)):
        explore(PLANTED[name], 1000, lambda data: judge(PLANTED[name], data, base))


# Neither a name that leads out nor one wrong value in a sound file is what libFuzzer comes upon in a minute.
BY_COVERAGE = [name for name in PLANTED if name not in ("writes outside", "loses a limit")]


@pytest.mark.parametrize("name", BY_COVERAGE if ALL else ["lets an error out"])
def test_a_planted_fault_is_found_by_coverage(name: str, memory: Path) -> None:
    status, printed = fuzz(memory / "fuzz", name, 1_000_000, 120)
    assert status == 77, printed[-5000:]
    assert (memory / "fuzz.finding").exists()


def samples(count: int) -> list[bytes]:
    """So many wild configurations, the same every time."""
    found: list[bytes] = []

    def keep(data: bytes) -> None:
        # A sound one has nothing to tell; the longest take their time.
        if data not in found and data != CONFIG and len(data) < 5000:
            found.append(data)

    explore(TARGETS["config"], count * 2, keep)
    return found[-count:]


def test_no_configuration_crashes_a_command_or_the_daemon(host: Host, tried: Tried) -> None:
    # Above what the file says: nothing of a wild file is written to.
    host.env = {
        "BESOM_STATE_DIR": str(host.state_dir),
        "BESOM_LOG_FILE": str(host.path / "besom.log"),
        "BESOM_METRICS_TEXTFILE": str(host.path / "besom.prom"),
    }
    sound = host.file.read_bytes()
    pid = host.start()
    for data in samples(PROCESSES):
        host.file.write_bytes(data)
        for words in (("config", "check"), ("housekeep", "--dry-run"), ("daemon", "reload")):
            done = subprocess.run(
                [*BESOM, "--config", host.file, *words],
                env=host.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert done.returncode in DOCUMENTED, (words, data, done)
            assert b"Traceback" not in done.stdout + done.stderr, (words, data, done)
            assert done.returncode != 0 or words[0] != "config" or b"valid" in done.stdout
            tried("processes given a wild configuration")
    host.file.write_bytes(sound)
    assert host.daemon("reload").status == 0
    assert host.daemon_pid() == pid
    host.fill(5)
    assert host.daemon("trigger").status == 0
    assert host.daemon("wait", "--timeout", "60s").status == 0
    assert len(host.names()) == 3
    assert "Traceback" not in host.log
