"""Contests over whole stores: what goes by age, what goes by size, and what it costs that nothing goes."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from typing import Callable

from contest import Bar, Contender, Contest
from daemon import Host
from forest import Census, census
from ground import BESOM, COLD, DISK, MEMORY, Ground, Tree, Unfit
from stopwatch import Sample

Command = Callable[[Tree], list[str]]
Leaves = Callable[[Tree], Census]


def nothing(tree: Tree) -> Census:
    return tree.planted.without_oldest(len(tree.planted))


def younger_half(tree: Tree) -> Census:
    return tree.planted.without_oldest(tree.over_half)


def everything(tree: Tree) -> Census:
    return tree.planted


def check(tree: Tree, name: str, leaves: Leaves) -> None:
    left, expected = census(tree.path), leaves(tree)
    if left != expected:
        raise Unfit(
            f"{name} left {len(left):,} files of {len(tree.planted):,}, "
            f"where {len(expected):,} should be left, or others than it should have"
        )


def prune(layout: str, *limits: str) -> Command:
    return lambda tree: [BESOM, "prune", str(tree.path), "--layout", layout, *limits]


def prune_to_half(layout: str, *options: str) -> Command:
    return lambda tree: prune(layout, "--max-size", str(tree.half), *options)(tree)


def find_old(tree: Tree) -> list[str]:
    return ["find", str(tree.path), "-type", "f", "-mtime", "+1", "-delete"]


def find_old_trees(tree: Tree) -> list[str]:
    depth = ("-mindepth", "1", "-maxdepth", "1", "-type", "d")
    return ["find", str(tree.path), *depth, "-mtime", "+1", "-exec", "rm", "-rf", "{}", "+"]


def find_victims(tree: Tree) -> list[str]:
    """find with the victims given to it: as old as the youngest of them, or older."""
    cutoff = tree.scratch / "cutoff"
    cutoff.touch()
    mtime = tree.planted.mtimes[tree.over_half - 1]
    os.utime(cutoff, ns=(mtime, mtime))
    return ["find", str(tree.path), "-type", "f", "!", "-newer", str(cutoff), "-delete"]


def xargs(tree: Tree) -> list[str]:
    """By path, which is not safe; but it shows what the disk gives to eight that wait for it at once."""
    old = shlex.join(find_old(tree)[:-1])
    return ["sh", "-c", f"{old} -print0 | xargs -0 -n 256 -P 8 rm -f"]


def tmpfiles(tree: Tree) -> list[str]:
    conf = tree.scratch / "tmpfiles.conf"
    conf.write_text(f"d {tree.path} - - - m:1d\n")
    return ["systemd-tmpfiles", "--clean", str(conf)]


def tmpreaper(tree: Tree) -> list[str]:
    # By mtime, as the others, and without its limit of 55 seconds.
    return ["tmpreaper", "--mtime", "--runtime=0", "1d", str(tree.path)]


AGE, TO_HALF = "besom prune --max-age", "besom prune --max-size"
FIND, TOLD = "find -mtime +1 -delete", "find ! -newer -delete, told the victims"
OLD = prune("files", "--max-age", "1d")


class Stores:
    """The contests on trees of so many files, on the file system of ground."""

    def __init__(self, ground: Ground, files: int) -> None:
        self.ground, self.files = ground, files
        # Of a tree that takes minutes to make, one round says enough, of those that have a bar.
        self.large = files >= 1_000_000
        self.rounds = 1 if self.large else None
        self.states = (MEMORY,) if ground.fs == "tmpfs" else (DISK, MEMORY)
        # Cold caches are the whole machine's.
        if ground.fs != "tmpfs" and not (ground.quick or self.large) and os.geteuid() == 0:
            self.states += (COLD,)
        # A file system in a file does not wait for a disk as one that lies on it does.
        self.on_a_disk = ground.fs == "here"

    def title(self, what: str, state: str) -> str:
        fs = "" if self.ground.fs == "here" else f", {self.ground.fs}"
        return f"{what}: {self.files:,} files, {state}{fs}"

    def contender(
        self,
        name: str,
        command: Command,
        leaves: Leaves,
        *bars: Bar,
        layout: str = "files",
        state: str = DISK,
        files: int = 0,
        together: bool = False,
    ) -> Contender:
        """One that gets a tree of its own each time, made before and checked after it is timed."""

        def run() -> Sample:
            with self.ground.tree(layout, files or self.files, state) as tree:
                argv = command(tree)
                sample = self.ground.measure(argv, together)
                check(tree, name, leaves)
            return sample

        program = "env" if name.startswith("besom") else name.split()[0]
        return Contender(name, run, bars, program=program)

    def age(self) -> Iterator[Contest]:
        most = {MEMORY: (Bar("ratio", 1.2),)} | ({DISK: (Bar("ratio", 0.3),)} if self.on_a_disk else {})
        for state in self.states:
            yield Contest(
                "age",
                self.title("Age sweep, everything is old", state),
                [
                    self.contender(AGE, OLD, nothing, *most.get(state, ()), state=state),
                    self.contender("systemd-tmpfiles --clean", tmpfiles, nothing, state=state),
                    *(
                        [self.contender("xargs -P 8 rm, from find", xargs, nothing, state=state)]
                        if state == DISK
                        else []
                    ),
                    *(
                        []
                        if self.large
                        else [self.contender("tmpreaper --mtime", tmpreaper, nothing, state=state)]
                    ),
                    self.contender(FIND, find_old, nothing, state=state),
                ],
                rounds=1 if state == COLD else self.rounds,
            )

    def size(self) -> Iterator[Contest]:
        def lru(state: str) -> Contender:
            to_half = prune_to_half("files", "--order", "lru")
            return self.contender(f"{TO_HALF} --order lru", to_half, younger_half, state=state)

        for state in self.states:
            bars = (Bar("ratio", 0.4),) if state == DISK and self.on_a_disk else ()
            yield Contest(
                "size",
                self.title("Size prune to half, oldest first", state),
                [
                    self.contender(TO_HALF, prune_to_half("files"), younger_half, *bars, state=state),
                    *([] if self.large else [lru(state)]),
                    self.contender(TOLD, find_victims, younger_half, state=state),
                ],
                rounds=1 if state == COLD else self.rounds,
            )

    def trees(self) -> Iterator[Contest]:
        if self.large:
            return
        ours = self.contender(AGE, prune("trees", "--max-age", "1d"), nothing, layout="trees")
        theirs = self.contender("find -exec rm -rf", find_old_trees, nothing, layout="trees")
        yield Contest(
            "trees",
            self.title("Trees of 64 files, all of them old", DISK),
            [ours, theirs],
            rounds=1,
        )

    def sessions(self) -> Iterator[Contest]:
        if self.large:
            return
        ours = self.contender(TO_HALF, prune_to_half("sessions"), younger_half, layout="sessions")
        theirs = self.contender(TOLD, find_victims, younger_half, layout="sessions")
        yield Contest(
            "sessions",
            self.title("Sessions to half by `created_at`, one JSON and one file each", DISK),
            [ours, theirs],
            rounds=1,
        )

    def memory(self) -> Iterator[Contest]:
        """Of all processes together, shared pages counted once."""
        tenth = self.files // 10
        limit = Bar("MiB", 64)

        def both(name: str, command: Command, leaves: Leaves, *bars: Bar, files: int = 0) -> Contender:
            return self.contender(name, command, leaves, *bars, state=MEMORY, files=files, together=True)

        yield Contest(
            "memory",
            self.title("Peak memory of all its processes", MEMORY),
            [
                both(f"{TO_HALF}, a tenth of the files", prune_to_half("files"), younger_half, files=tenth),
                both(TO_HALF, prune_to_half("files"), younger_half, limit),
                both(AGE, OLD, nothing, limit, Bar("ratio", 1.1)),
                both(f"{AGE}, a tenth of the files", OLD, nothing, files=tenth),
            ],
            compared="peak",
            rounds=1,
        )

    def idle(self) -> Iterator[Contest]:
        """A store in which nothing is to be done, as a command and inside the daemon."""
        with self.ground.tree("files", self.files, DISK) as tree, self.ground.directory() as base:
            alone, kept = Host(self.ground, base / "alone"), Host(self.ground, base / "kept")
            for host in (alone, kept):
                host.configure({"max_age": "1000d", "max_size": "1024T"}, store=tree.path)

            def timed(argv: list[str]) -> Callable[[], Sample]:
                def run() -> Sample:
                    sample = self.ground.measure(argv)
                    check(tree, argv[0], everything)
                    return sample

                return run

            def first() -> Sample:
                subprocess.run(["rm", "-rf", alone.state], check=True)
                return timed(alone.command("housekeep"))()

            def command(*limits: str) -> Callable[[], Sample]:
                return timed(prune("files", *limits)(tree))

            # What a cycle costs in any case, some 30 ms, is much beside a du of few files.
            bars = (Bar("ratio", 0.05),) if self.files >= 1_000_000 else ()
            # What has changed two seconds before it was read, or later, is read again the next time.
            time.sleep(2.1)
            with kept.daemon():
                yield Contest(
                    "idle",
                    self.title("Nothing to do", "warm caches"),
                    [
                        Contender("the daemon's cycle, nothing changed", kept.cycle, bars),
                        Contender("besom housekeep, the first", first),
                        Contender("besom housekeep, nothing changed", timed(alone.command("housekeep"))),
                        Contender(AGE, command("--max-age", "1000d")),
                        Contender(TO_HALF, command("--max-size", "1024T")),
                        Contender("besom prune --min-free", command("--min-free", "1")),
                        Contender("du -s", timed(["du", "-s", str(tree.path)])),
                    ],
                    rounds=self.rounds,
                )

    def drain(self) -> Iterator[Contest]:
        """SIGTERM in the middle of a prune, drain_timeout 0; the next run then does the rest."""

        # Fewer are gone before the signal is there.
        files = max(self.files, 20_000)

        def run() -> Sample:
            with self.ground.tree("files", files, DISK) as tree, self.ground.directory() as base:
                return Host(self.ground, base / "host").stopped_in_the_middle(tree.path)

        yield Contest(
            "drain",
            self.title("SIGTERM in the middle of a prune to one file, `drain_timeout: 0`", DISK),
            [Contender("until the daemon is gone", run, (Bar("ms", 100),))],
            compared="",
            rounds=1,
        )
