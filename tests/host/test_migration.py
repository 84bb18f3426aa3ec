# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""docs/migration.md: every command in it runs, and each pair of commands leaves the same files."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from ..modules.play import Play
from .conftest import COMMAND, need

TOP = Path(__file__).resolve().parents[2]
PAGE = (TOP / "docs/migration.md").read_text()
DAY = 86400
YAML = re.compile(r"(?ms)^```yaml\n(.*?)^```")
BLOCKS = [yaml.safe_load(block) for block in YAML.findall(PAGE)]
COMMANDS = re.findall(r"(?m)^    (\S.*)$", YAML.sub("", PAGE))
PAIRS = [
    (old, new)
    for old, new in zip(COMMANDS, COMMANDS[1:])
    if not old.startswith(("besom ", "cron-prune")) and new.startswith("besom ")
]
PAIRED = {command for pair in PAIRS for command in pair}


class Tree:
    """A copy of what the page is about, below a directory of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        # Half a day off, so that nobody's rounding decides.
        for days in range(1, 40):
            self._file(f"cache/app/gems/{days % 3}/{days}", days + 0.5, used=0.5 if days % 2 else None)
            self._file(f"cache/app/envs/{days}/lib/x", days + 0.5)
            self._file(f"lib/app/rubies/{'.temp-' if days % 2 else ''}{days}/x", days - 0.5)

    def _file(self, name: str, days: float, used: float | None = None) -> None:
        """A file and the directories above it, last changed and last used so many days ago."""
        file = self.path / "var" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x" * 100)
        for one in (file, *file.parents[: len(Path(name).parts)]):
            os.utime(one, (time.time() - (used or days) * DAY, time.time() - days * DAY))

    @property
    def files(self) -> set[str]:
        return {str(file.relative_to(self.path)) for file in (self.path / "var").rglob("*") if file.is_file()}

    def here(self, text: str) -> str:
        return text.replace("/var/", f"{self.path}/var/")

    def run(self, command: str) -> str:
        """Run a command of the page in this tree; besom and its scripts are those of the checkout."""
        config = self.path / "besom.yml"
        config.write_text(self.here(yaml.safe_dump(BLOCKS[0])))
        if command.startswith("d "):
            (self.path / "conf").write_text(f"{self.here(command)}\n")
            command = f"{need('systemd-tmpfiles')} --clean {self.path}/conf"
        first, *words = shlex.split(self.here(command))
        programs = {"besom": COMMAND, "cron-prune": TOP / "scripts/cron-prune"}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("BESOM_")}
        own = {"CONFIG": config, "COMMAND": COMMAND, "STATE_DIR": self.path / "state"}
        done = subprocess.run(
            [programs.get(first) or need(first), *words],
            env={**clean, **{f"BESOM_{key}": str(value) for key, value in own.items()}},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        return done.stdout


@pytest.mark.root
@pytest.mark.parametrize(("old", "new"), PAIRS, ids=[f"{old} / {new}" for old, new in PAIRS])
def test_what_besom_does_instead_leaves_the_same_files(tmp_path: Path, old: str, new: str) -> None:
    theirs, ours = Tree(tmp_path / "theirs"), Tree(tmp_path / "ours")
    before = ours.files
    theirs.run(old)
    ours.run(new)
    assert set() < ours.files < before
    assert ours.files == theirs.files


def test_every_other_command_and_configuration_of_the_page_works(tmp_path: Path) -> None:
    here = Tree(tmp_path)
    others = [command for command in COMMANDS if command not in PAIRED]
    assert len(others) >= 8
    for command in others:
        here.run(command)
    assert here.files == {name for name in Tree(tmp_path / "all").files if kept(name)}
    task = BLOCKS[1][0]
    play = Play(tmp_path / "play")
    play.add("all/gems", "cache_prune", yaml.safe_load(here.here(yaml.safe_dump(task["cache_prune"]))))
    result = next(iter(play.run().values()))
    assert (result["changed"], result["removed"]["entries"]) == (True, 1)


def kept(name: str) -> bool:
    """Whether the configuration of the page keeps a file."""
    *_, area, one, last = name.replace("/lib/x", "/x").split("/")
    if area == "rubies":
        return not one.startswith(".temp-") or int(one[6:]) - 0.5 < 1
    return float(last if area == "gems" else one) + 0.5 < (8 if area == "gems" else 31)
