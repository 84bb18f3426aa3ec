"""bench/run: besom beside what users would pick instead, in one run on copies of one tree."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from contests import BESOM, DISK, TOP, Contender, Contest, Tree, contests
from forest import census, clear, plant
from stopwatch import TIME, CommandFailed, Sample, measure
from tables import Result, Table, report

BENCH = TOP / "bench"
# What besom is made of.
PARTS = ("library", "module_utils", "src")
NAMES = [contest.name for contest in contests(1)]
# What a file of a tree takes at most: its blocks, its inode and its name.
BYTES_A_FILE = 6_000
# The mtimes of one run are the same in all of its trees.
NOW_US = time.time_ns() // 1000


class Unfit(Exception):
    """The bench cannot run here, or a contender did not do what it was to do."""


def main() -> int:
    options = parse()
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, leave)
    try:
        return run(options)
    except (Unfit, CommandFailed, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


def leave(signum: int, _frame: Any) -> NoReturn:
    """Let what is open clean up behind itself, undisturbed."""
    for each in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    print(f"bench: ended by {signal.Signals(signum).name}; what it made is removed", file=sys.stderr)
    raise SystemExit(128 + signum)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run",
        description="Measure besom side by side with what users would pick instead: in one run, on copies of "
        "the same tree, interleaved over rounds. Prints tables of medians and ratios and writes JSON.",
        epilog=f"Contests: {', '.join(NAMES)}. Exit status: 0 measured, 1 a contender failed or left behind "
        "something else than it should have, 2 usage. A bar that is missed is not a failure.",
    )
    parser.add_argument(
        "--files", type=count, default=200_000, metavar="N", help="of a tree (default 200000)"
    )
    parser.add_argument(
        "--large",
        type=count,
        default=1_000_000,
        metavar="N",
        help="of the tree of `memory` (default 1000000)",
    )
    parser.add_argument(
        "--rounds", type=count, default=3, metavar="N", help="runs of each contender (default 3)"
    )
    parser.add_argument(
        "--where",
        type=Path,
        default=TOP / ".cache",
        metavar="DIR",
        help="directory for the trees (default .cache)",
    )
    parser.add_argument("--only", choices=NAMES, action="append", help="this contest; can be repeated")
    parser.add_argument(
        "--quick", action="store_true", help="small trees and one round: does all of it work?"
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=BENCH / "results/last.json",
        metavar="FILE",
        help="where the figures go (default bench/results/last.json)",
    )
    parser.add_argument("--record", action="store_true", help="write the tables to bench/RESULTS.md too")
    options = parser.parse_args()
    if options.quick:
        options.files, options.large, options.rounds = 2_000, 5_000, 1
    return options


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def run(options: argparse.Namespace) -> int:
    chosen = [one for one in contests(options.files) if one.name in (options.only or NAMES)]
    where = options.where.resolve(strict=True)
    check_room(where, options, chosen)
    tables: list[Table] = []
    with tempfile.TemporaryDirectory(prefix="besom-bench-", dir=where, ignore_cleanup_errors=True) as name:
        ground = Ground(Path(name))
        machine = describe(where, options, ground.digest())
        for contest in chosen:
            for state in contest.states:
                tables.append(hold(ground, contest, state, options))
                # At once, so that a run that is broken off was not for nothing.
                save(options.json, machine, tables)
                print(tables[-1].markdown(), end="\n\n", flush=True)
    if options.record:
        (BENCH / "RESULTS.md").write_text(report(machine, tables))
    return 0


def save(file: Path, machine: dict[str, Any], tables: list[Table]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figures = {"machine": machine, "tables": [table.to_dict() for table in tables]}
    file.write_text(json.dumps(figures, indent=2) + "\n")


def check_room(where: Path, options: argparse.Namespace, chosen: list[Contest]) -> None:
    if not os.access(TIME, os.X_OK):
        raise Unfit(f"{TIME} is not installed (on Debian: apt-get install time)")
    files = max(options.large if contest.large else options.files for contest in chosen)
    st = os.statvfs(where)
    if st.f_bavail * st.f_frsize < files * BYTES_A_FILE or 0 < st.f_favail < files * 1.1:
        raise Unfit(f"{where} has no room for a tree of {files:,} files; choose another with --where")


def describe(where: Path, options: argparse.Namespace, digest: str) -> dict[str, Any]:
    """What the figures depend on."""
    kind = subprocess.run(["findmnt", "-nT", where, "-o", "FSTYPE,OPTIONS"], capture_output=True, text=True)
    with open("/proc/cpuinfo") as lines:
        cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "cpu")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    commit = subprocess.run(
        ["git", "-C", TOP, "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "besom": f"{commit.stdout.strip() or 'no checkout'}, sources {digest}",
        "machine": f"{os.cpu_count()} x {cpu}, {memory} GiB",
        "kernel": platform.release(),
        "file system": " ".join(kind.stdout.split()) or "unknown",
        "python": platform.python_version(),
        "rounds": options.rounds,
        "load before": f"{os.getloadavg()[0]:.1f} (other work on this machine widens min to max)",
    }


class Ground:
    """The directory in which trees stand, one at a time."""

    def __init__(self, base: Path) -> None:
        self.scratch = base / "scratch"
        self.scratch.mkdir()
        self._tree = base / "tree"
        # A copy, so that besom stays the same to the end of the run, whoever works in the checkout meanwhile.
        self.besom = base / "besom"
        for part in PARTS:
            shutil.copytree(TOP / part, self.besom / part, ignore=shutil.ignore_patterns("__pycache__"))
        # Settings of besom, Ansible and Python that somebody has are not what is measured.
        self.env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("BESOM_", "ANSIBLE_", "PYTHON"))
        }
        self.env |= {
            "LC_ALL": "C.UTF-8",
            "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.scratch / "ansible"),
            "ANSIBLE_LIBRARY": str(self.besom / "library"),
            "ANSIBLE_MODULE_UTILS": str(self.besom / "module_utils"),
            # Comes before the editable installation of the checkout.
            "PYTHONPATH": f"{self.besom / 'module_utils'}:{self.besom / 'src'}",
            "PYTHONPYCACHEPREFIX": str(base / "pycache"),
        }
        # As on a host where it ran before: compiled.
        measure(
            [BESOM, "prune", f"{self.scratch}/", "--layout", "files", "--max-age", "1d"],
            self.scratch,
            self.env,
        )

    def digest(self) -> str:
        """Which besom it is, also where the checkout has changes that are not committed."""
        found = hashlib.sha256()
        for file in sorted(self.besom.rglob("*.py")):
            found.update(file.read_bytes())
        return found.hexdigest()[:12]

    @contextmanager
    def tree(self, files: int, state: str) -> Iterator[Tree]:
        # What the last contender left to be written is not the next one's to wait for.
        os.sync()
        try:
            plant(self._tree, files, NOW_US)
            if state == DISK:
                os.sync()
            yield Tree(self._tree, self.scratch, census(self._tree))
        finally:
            clear(self._tree)

    def time(self, contender: Contender, tree: Tree, together: bool) -> Sample:
        """Run the contender on a tree, and check what it left."""
        sample = measure(contender.argv(tree), self.scratch, self.env, together)
        left, expected = census(tree.path), contender.leaves(tree)
        if left != expected:
            raise Unfit(
                f"{contender.name} left {len(left):,} files of {len(tree.planted):,}, "
                f"where {len(expected):,} should be left, or others than it should have"
            )
        return sample


def hold(ground: Ground, contest: Contest, state: str, options: argparse.Namespace) -> Table:
    """One contest in one state: every contender once a round, each round beginning with another."""
    results = []
    for contender in contest.contenders:
        if contender.installed:
            size = contender.files or (options.large if contest.large else options.files)
            results.append(Result(contender, size))
        else:
            print(f"bench: {contender.program} is not installed and left out", file=sys.stderr)
    for turn in range(1 if contest.once else options.rounds):
        for result in results[turn % len(results) :] + results[: turn % len(results)]:
            with ground.tree(result.files, state) as tree:
                result.samples.append(ground.time(result.contender, tree, contest.large))
            sample = result.samples[-1]
            print(
                f"bench: {contest.name}, {state}, round {turn + 1}: {result.contender.name} "
                f"{sample.wall:.2f} s, {sample.peak_kib / 1024:.1f} MiB (load {sample.load:.1f})",
                file=sys.stderr,
            )
    return Table(contest, state, results)


if __name__ == "__main__":
    sys.exit(main())
