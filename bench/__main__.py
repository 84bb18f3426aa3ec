"""bench/run: besom beside what users would pick instead, in one run on copies of one tree."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NoReturn

from chart import chart
from contest import Contest, hold
from daemon import daemon, startup
from fleet import fleet, module
from ground import MAKE, TOP, Ground, Unfit, check_room, digest, ground
from lock import lock
from report import headlines, markdown, page, summary
from stopwatch import TIME, CommandFailed
from stores import Stores
from sync import sync

BENCH = TOP / "bench"
RESULTS = BENCH / "results.json"
# In the order of the page: those that are held on each file system and for each size of a tree, ...
STORES = ("age", "size", "trees", "sessions", "idle", "memory", "drain")
# ... and those that are held once.
ONCE = {"daemon": daemon, "startup": startup, "lock": lock, "module": module, "fleet": fleet, "sync": sync}
LARGE = 1_000_000
NAMES = (*STORES, *ONCE)
BEGIN, END = "<!-- figures: written by bench/run --record -->", "<!-- end of figures -->"


def main() -> int:
    options = parse()
    for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(signum, leave)
    try:
        run(options)
    except (Unfit, CommandFailed, OSError, subprocess.CalledProcessError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


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
        "the same tree, interleaved over rounds. Prints tables of medians, ratios, peaks and bars.",
        epilog=f"Contests: {', '.join(NAMES)}. Exit status: 0 measured, 1 a contender failed or left behind "
        "something else than it should have, 2 usage. A bar that is missed is not a failure.",
    )
    parser.add_argument(
        "--files",
        type=count,
        action="append",
        metavar="N",
        help="of a tree (default 200000); can be repeated",
    )
    parser.add_argument(
        "--large", action="store_true", help=f"and {LARGE:,} files, one round of what has a bar"
    )
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="of each (default 3)")
    parser.add_argument(
        "--fs",
        choices=("here", *MAKE),
        action="append",
        help="file system of the trees: that of --where (default), or one that is made there, which needs "
        "root; can be repeated",
    )
    parser.add_argument(
        "--where", type=Path, default=TOP / ".cache", metavar="DIR", help="where to work (default .cache)"
    )
    parser.add_argument("--only", choices=NAMES, action="append", help="this contest; can be repeated")
    parser.add_argument("--quick", action="store_true", help="small, and one round: does all of it work?")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument(
        "--record",
        action="store_true",
        help="put the figures into bench/results.json (with --only: among those that are there), and write "
        "bench/RESULTS.md, bench/chart.svg and the table of the README from it",
    )
    options = parser.parse_args()
    if options.quick and options.record:
        parser.error("--quick measures nothing that is worth a record")
    options.files = [2_000] if options.quick else options.files or [200_000]
    options.files += [LARGE] * options.large
    options.rounds = 1 if options.quick else options.rounds
    return options


def count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def run(options: argparse.Namespace) -> None:
    where = options.where.resolve(strict=True)
    if not os.access(TIME, os.X_OK):
        raise Unfit(f"{TIME} is not installed (on Debian: apt-get install time)")
    check_room(where, max(options.files))
    tables: list[dict[str, Any]] = []
    with ground(where, options.rounds, options.quick) as made:
        machine = describe(where, digest(made.besom))
        if options.record and not options.only:
            RESULTS.unlink(missing_ok=True)
        for contest, fs, files in contests(made, options):
            table = {**hold(contest, options.rounds), "fs": fs, "files": files}
            table |= {"date": machine["date"], "besom": machine["besom"]}
            # At once, so that a run that is broken off was not for nothing.
            tables.append(table)
            print(markdown(table), end="\n\n", flush=True)
            if options.record:
                record(machine, table)
        if options.json:
            options.json.write_text(json.dumps({"machine": machine, "tables": tables}, indent=1) + "\n")


def contests(made: Ground, options: argparse.Namespace) -> Iterator[tuple[Contest, str, int]]:
    """Each contest that is asked for, its file system and the files of its tree (0: of another size)."""
    chosen = options.only or NAMES
    for fs in options.fs or ["here"]:
        for files in options.files:
            with made.on(fs, files) as place:
                for name in STORES:
                    if name in chosen:
                        for held in getattr(Stores(place, files), name)():
                            yield held, fs, files
    for name, contest in ONCE.items():
        if name in chosen:
            for held in contest(made):
                yield held, "here", 0


def record(machine: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Put the table among those that are recorded, and write what is made of them."""
    before = json.loads(RESULTS.read_text())["tables"] if RESULTS.exists() else []
    known = {table["title"]: table for table in [*before, fresh]}
    tables = sorted(
        known.values(),
        key=lambda table: (
            NAMES.index(PLACE.get(table["contest"], table["contest"])),
            ("here", *MAKE).index(table["fs"]),
            table["files"],
        ),
    )
    RESULTS.write_text(json.dumps({"machine": machine, "tables": tables}, indent=1) + "\n")
    (BENCH / "RESULTS.md").write_text(page(machine, tables))
    (BENCH / "chart.svg").write_text(chart(headlines(tables)))
    readme = (TOP / "README.md").read_text()
    head, _, rest = readme.partition(BEGIN)
    tail = rest.partition(END)[2]
    (TOP / "README.md").write_text(f"{head}{BEGIN}\n{summary(headlines(tables))}\n{END}{tail}")


# Contests that are held with another.
PLACE = {"loop": "module", "get_url": "sync"}


def describe(where: Path, sources: str) -> dict[str, Any]:
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
        "besom": f"{commit.stdout.strip() or 'no checkout'}, sources {sources}",
        "machine": f"{os.cpu_count()} x {cpu}, {memory} GiB",
        "kernel": platform.release(),
        "file system": " ".join(kind.stdout.split()) or "unknown",
        "python": platform.python_version(),
    }


if __name__ == "__main__":
    sys.exit(main())
