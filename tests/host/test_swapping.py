# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Directories are exchanged for symlinks at full speed while besom removes; nothing outside is touched.

The same attack breaks a removal by path within seconds, so these tests can fail.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from besom.policy import Policy, Store, Temps
from besom.prune import Request, prune
from besom.report import Report
from besom.run import Run
from besom.sweep import sweep

from .host import Process
from .hostile import THEN, age, state

SWAPPER = Path(__file__).with_name("swapper.py")
DIRECTORIES, FILES, ROUNDS = 12, 12, 40
DAY = 86400 * 10**9
POLICY = Policy(max_age=DAY)


class Arena:
    """outside, which is innocent; parent, whose directories are exchanged for symlinks to outside."""

    def __init__(self, top: Path, parent: Path) -> None:
        self.outside, self.parent, self.aside = top / "outside", parent, top / "aside"
        fill(self.outside / "d")
        age(self.outside)
        self.before = state(self.outside)
        self.aside.mkdir()
        self.reset()

    def reset(self) -> None:
        """As at the beginning: whole directories in their places, symlinks to the innocent one aside."""
        shutil.rmtree(self.aside)
        self.aside.mkdir()
        shutil.rmtree(self.parent, ignore_errors=True)
        for number in range(DIRECTORIES):
            fill(self.parent / f"d{number}")
            (self.aside / str(number)).symlink_to(self.outside / "d")
        age(self.aside)
        age(self.parent)

    @contextlib.contextmanager
    def attack(self) -> Iterator[None]:
        """Exchange all the while; that it really did is asserted at the end."""
        directories = [self.parent / f"d{number}" for number in range(DIRECTORIES)]
        command = [sys.executable, SWAPPER, str(THEN), self.aside, *directories]
        with Process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "begun\n"
                yield
                assert int(process.communicate("\n", timeout=20)[0]) > 1000
            finally:
                process.kill()

    @property
    def untouched(self) -> bool:
        return state(self.outside) == self.before


def fill(directory: Path) -> None:
    directory.mkdir(parents=True)
    for number in range(FILES):
        (directory / f"f{number}").write_text("x")


def remove_by_path(top: Path) -> None:
    """What a script does: look what is there, then remove it by its path."""
    for path in top.iterdir():
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                remove_by_path(path)
                path.rmdir()
            else:
                path.unlink()


def test_the_attack_breaks_a_removal_by_path(tmp_path: Path) -> None:
    arena = Arena(tmp_path, tmp_path / "store")
    deadline = time.monotonic() + 60
    while arena.untouched:
        assert time.monotonic() < deadline, "the attack is too slow to prove anything"
        arena.reset()
        with arena.attack():
            remove_by_path(arena.parent)


def test_the_attack_breaks_find_exec(tmp_path: Path) -> None:
    arena = Arena(tmp_path, tmp_path / "store")
    deadline = time.monotonic() + 60
    while arena.untouched:
        assert time.monotonic() < deadline, "the attack is too slow to prove anything"
        arena.reset()
        with arena.attack():
            command = ["find", arena.parent, "-type", "f", "-mtime", "+1", "-exec", "rm", "-f", "{}", "+"]
            subprocess.run(command, stderr=subprocess.DEVNULL, check=False)


def test_prune_of_files(tmp_path: Path) -> None:
    arena = Arena(tmp_path, tmp_path / "store")
    store = Store(str(arena.parent), "files", POLICY)
    removed = noticed = 0
    for _ in range(ROUNDS):
        arena.reset()
        with arena.attack():
            report = prune(Request(store), Run())
        removed += report.removed.entries
        noticed += report.kept.total + report.anomalies.total
        assert arena.untouched
    assert removed
    assert noticed, "besom never met the attacker"


def test_prune_of_trees(tmp_path: Path) -> None:
    """The entries themselves are exchanged, so that an entry is a symlink by the time it is removed."""
    arena = Arena(tmp_path, tmp_path / "store")
    store = Store(str(arena.parent), "trees", POLICY)
    removed = 0
    for _ in range(ROUNDS):
        arena.reset()
        with arena.attack():
            removed += prune(Request(store), Run()).removed.entries
        assert arena.untouched
    assert removed


@pytest.mark.parametrize("operation", ["prune", "sweep"])
def test_inside_a_tree_that_goes_whole(tmp_path: Path, operation: str) -> None:
    """Exchanged are the directories inside the one entry, in its trash as well."""
    arena = Arena(tmp_path, tmp_path / "area/.temp-entry")
    area = arena.parent.parent

    def run() -> Report:
        if operation == "prune":
            return prune(Request(Store(str(area), "trees", POLICY)), Run())
        return sweep(Temps(str(area)), Run())

    for _ in range(ROUNDS // 2):
        arena.reset()
        with arena.attack():
            report = run()
        assert arena.untouched
        # Whole, or not at all; and never left as trash, unless besom says so.
        left = {path.name for path in area.iterdir()}
        assert left <= {".temp-entry"} or report.failures.total, (left, report.to_dict())
        age(area)
        assert run().failures.total == 0
        assert list(area.iterdir()) == []
        assert arena.untouched
