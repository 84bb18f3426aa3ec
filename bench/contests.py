"""What is compared with what, and what has to be true of a tree afterwards."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

from forest import Census

TOP = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
BESOM = str(VENV / "bin/besom")
PLAYBOOK = str(VENV / "bin/ansible-playbook")
DISK, MEMORY = "disk", "memory"


@dataclass(frozen=True)
class Tree:
    """One copy of the tree, as it was planted, and a directory for what a contender needs beside it."""

    path: Path
    scratch: Path
    planted: Census

    @property
    def half(self) -> int:
        return self.planted.usage // 2

    @property
    def over_half(self) -> int:
        """How many of the oldest are over half the usage."""
        return self.planted.oldest_over(self.half)


@dataclass(frozen=True)
class Contender:
    """A command, and what it must leave of a tree.

    program is what has to be installed; files how many it gets, where not those of the contest.
    """

    name: str
    argv: Callable[[Tree], list[str]]
    leaves: Callable[[Tree], Census]
    program: str = BESOM
    files: int | None = None

    @property
    def installed(self) -> bool:
        return shutil.which(self.program) is not None


@dataclass(frozen=True)
class Contest:
    """Contenders on copies of one tree; the last one is what the others are compared with.

    bars: what besom may take at most, as a ratio of wall times, by state; peak_mib: what it may hold.
    per_file: the trees differ in size, so times are compared by the file. large: of --large files,
    and the peak is that of all processes together. once: one round is enough.
    """

    name: str
    title: str
    contenders: tuple[Contender, ...]
    states: tuple[str, ...] = (DISK, MEMORY)
    bars: dict[str, float] = field(default_factory=dict)
    peak_mib: int | None = None
    per_file: bool = False
    large: bool = False
    once: bool = False


def nothing(tree: Tree) -> Census:
    return tree.planted.without_oldest(len(tree.planted))


def younger_half(tree: Tree) -> Census:
    return tree.planted.without_oldest(tree.over_half)


def everything(tree: Tree) -> Census:
    return tree.planted


def prune(*limits: str) -> Callable[[Tree], list[str]]:
    return lambda tree: [BESOM, "prune", str(tree.path), "--layout", "files", *limits]


def prune_to_half(tree: Tree) -> list[str]:
    return prune("--max-size", str(tree.half))(tree)


def find_old(tree: Tree) -> list[str]:
    return ["find", str(tree.path), "-type", "f", "-mtime", "+1", "-delete"]


def find_victims(tree: Tree) -> list[str]:
    """find with the victims given to it: as old as the youngest of them, or older."""
    cutoff = tree.scratch / "cutoff"
    cutoff.touch()
    mtime = tree.planted.mtimes[tree.over_half - 1]
    os.utime(cutoff, ns=(mtime, mtime))
    return ["find", str(tree.path), "-type", "f", "!", "-newer", str(cutoff), "-delete"]


def tmpfiles(tree: Tree) -> list[str]:
    conf = tree.scratch / "tmpfiles.conf"
    conf.write_text(f"d {tree.path} - - - m:1d\n")
    return ["systemd-tmpfiles", "--clean", str(conf)]


def tmpreaper(tree: Tree) -> list[str]:
    # By mtime, as the others, and without its limit of 55 seconds.
    return ["tmpreaper", "--mtime", "--runtime=0", "1d", str(tree.path)]


def du(tree: Tree) -> list[str]:
    return ["du", "-s", str(tree.path)]


def playbook(name: str) -> Callable[[Tree], list[str]]:
    play = TOP / "bench/playbooks" / name
    options = ("-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}")
    return lambda tree: [PLAYBOOK, *options, "-e", f"path={tree.path}", str(play)]


def contests(files: int) -> list[Contest]:
    """All of them; files is how many a tree has."""
    few, many = min(files, 100), min(files, 10_000)
    age, size = prune("--max-age", "1d"), "besom prune --max-size"
    return [
        Contest(
            "age",
            "Age sweep, everything is old",
            (
                Contender("besom prune --max-age", age, nothing),
                Contender("systemd-tmpfiles --clean", tmpfiles, nothing, "systemd-tmpfiles"),
                Contender("tmpreaper --mtime", tmpreaper, nothing, "tmpreaper"),
                Contender("find -mtime +1 -delete", find_old, nothing, "find"),
            ),
            bars={DISK: 1.3, MEMORY: 1.8},
        ),
        Contest(
            "size",
            "Size prune to half, oldest first",
            (
                Contender(size, prune_to_half, younger_half),
                Contender("find ! -newer -delete, told the victims", find_victims, younger_half, "find"),
            ),
            bars={DISK: 1.8, MEMORY: 1.8},
        ),
        Contest(
            "idle",
            "Nothing to do",
            (
                Contender("besom prune --max-age", prune("--max-age", "1000d"), everything),
                Contender(size, prune("--max-size", "1024T"), everything),
                Contender("du -s", du, everything, "du"),
            ),
            states=(MEMORY,),
        ),
        Contest(
            "ansible",
            "By the file, from a playbook (local connection)",
            (
                Contender("besom prune --max-age", age, nothing, files=many),
                Contender("cache_prune", playbook("cache_prune.yml"), nothing, PLAYBOOK, many),
                Contender("find + file loop", playbook("find_and_loop.yml"), nothing, PLAYBOOK, few),
            ),
            states=(MEMORY,),
            per_file=True,
            once=True,
        ),
        Contest(
            "memory",
            "Peak memory of a large store",
            (
                Contender("besom prune --max-age", age, nothing),
                Contender(size, prune_to_half, younger_half),
            ),
            states=(MEMORY,),
            peak_mib=120,
            large=True,
            once=True,
        ),
    ]
