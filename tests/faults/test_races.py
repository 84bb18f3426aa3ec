"""An attacker exchanges what besom is about to meet, at full speed; what is outside stays as it is.

See race.py for the arena, swapper.c for the attacker. The same attacks break what users would take
instead, and besom with one of its safeguards left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import pytest

from besom_host.cli import main

from ..host.conftest import OLD, need
from .conftest import ALL, Tried
from .mutants import replacing
from .race import ATTACKS, OPERATIONS

TOP = Path(__file__).parents[2]
# So much at least for each pair of an operation and an attack.
RUNS, SWAPS = (25, 4000) if ALL else (4, 500)
# A machine that is busy with other tests has that long for one pair.
SECONDS = 240.0
BESOM = [name for name in OPERATIONS if OPERATIONS[name]]
NAIVE = [name for name in OPERATIONS if not OPERATIONS[name]]
# Where entries are files nothing goes through a trash; what empties a store takes what is young as well.
POINTLESS = {("files", "trash"), ("clean", "trash"), ("clean", "fresh")}
PAIRS = [(one, attack) for one in BESOM for attack in ATTACKS if (one, attack) not in POINTLESS]
SELECTION = [(operation, "all") for operation in BESOM] + [("trees", "fresh"), ("files", "links")]

pytestmark = pytest.mark.root

Race = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def swapper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("swapper") / "swapper"
    source = Path(__file__).with_name("swapper.c")
    subprocess.run([need("gcc"), "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    return program


@pytest.fixture
def race(tmp_path: Path, swapper: Path) -> Race:
    """race(operation, attack, runs, swaps, fault): what it came to, in a mount namespace of its own."""

    def race(operation: str, attack: str, runs: int, swaps: int, *fault: str) -> dict[str, Any]:
        command = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            sys.executable,
            "-m",
            "tests.faults.race",
        ]
        command += [str(tmp_path), operation, attack, "--swapper", str(swapper), "--seconds", str(SECONDS)]
        command += ["--runs", str(runs), "--swaps", str(swaps), *fault]
        done = subprocess.run(
            command, cwd=TOP, capture_output=True, text=True, check=False, timeout=SECONDS + 120
        )
        if "unshare failed" in done.stderr:
            pytest.skip(f"no mount namespace to be had here: {done.stderr}")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    return race


@pytest.mark.parametrize(("operation", "attack"), PAIRS if ALL else SELECTION)
def test_nothing_outside_changes(race: Race, tried: Tried, operation: str, attack: str) -> None:
    found = race(operation, attack, RUNS, SWAPS)
    assert not found["wrong"], "\n".join(found["wrong"])
    assert found["runs"] >= RUNS
    assert found["swaps"] >= SWAPS, "the attack is too slow to prove anything"
    assert found["met"], "besom never met the attacker"
    assert found["removed"], "nothing was removed, so nothing was tried"
    tried("races: swaps while besom was removing", found["swaps"])
    tried("races: runs under attack", found["runs"])
    tried("races: entries that met the attacker, and stayed", found["met"])


@pytest.mark.parametrize("attack", ["links", "mounts"])
@pytest.mark.parametrize("operation", NAIVE)
def test_the_attack_breaks_what_users_would_take_instead(race: Race, operation: str, attack: str) -> None:
    found = race(operation, attack, 10**6, 0)
    assert any(sentence.startswith("outside changed") for sentence in found["wrong"]), found


@pytest.mark.parametrize(
    ("fault", "operation", "attack", "consequence"),
    [
        ("O_NOFOLLOW dropped", "files", "links", "outside changed"),
        ("O_NOFOLLOW dropped", "trees", "links", "outside changed"),
        ("O_NOFOLLOW dropped", "sweep", "links", "outside changed"),
        ("mount check dropped", "files", "mounts", "outside changed"),
        ("re-check of the trash dropped", "trees", "fresh", "fresh tree"),
        ("re-check of the trash dropped", "sweep", "fresh", "fresh tree"),
        ("O_NONBLOCK dropped", "sweep", "files", "it hung"),
    ],
)
def test_a_safeguard_left_out_is_noticed(
    race: Race, tried: Tried, fault: str, operation: str, attack: str, consequence: str
) -> None:
    found = race(operation, attack, 10**6, 0, "--fault", fault, "--slow", "5")
    assert any(sentence.startswith(consequence) for sentence in found["wrong"]), found
    tried("races: planted faults that were noticed")


def exchanged(tmp_path: Path, besom: Callable[..., Any]) -> bool:
    """Whether a file is still there that was put in an old one's place between plan and removal."""
    store, young = tmp_path / "store", tmp_path / "young"
    store.mkdir()
    for path in (store / "old", young):
        path.write_text(path.name)
    # All of it is the same but the file itself.
    young.write_text("old")
    for path in (store / "old", young):
        os.utime(path, (os.stat(store).st_mtime - OLD,) * 2)
    victim = {"path": str(store), "layout": "files", "max_age": "1d", "name": "victim"}
    victim["before_prune"] = f"mv {young} {store}/old"
    (tmp_path / "besom.yml").write_text(json.dumps({"stores": [victim]}))
    inode = young.stat().st_ino
    assert besom(["prune", "victim", "--config", str(tmp_path / "besom.yml")]) == 0
    assert not young.exists(), "the hook did not run"
    return (store / "old").exists() and (store / "old").stat().st_ino == inode


def test_a_file_exchanged_after_the_plan_stays(tmp_path: Path) -> None:
    assert exchanged(tmp_path, main)


def test_the_re_check_of_files_left_out_is_noticed(tmp_path: Path) -> None:
    with replacing("re-check of files dropped"):
        assert not exchanged(tmp_path, main)
