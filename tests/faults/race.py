"""An arena of its own: besom removes, an attacker exchanges what it is about to meet, an innocent looks on.

race.py TOP OPERATION ATTACK --swapper PROGRAM --runs N --swaps N [--fault NAME]

Run it in a mount namespace of its own: whatever is mounted goes with it. Each run is besom's own command
in a forked child; one that takes too long hangs. It goes on until there were so many runs, and so many
swaps *while besom was at work*; tells as JSON what happened, `wrong` being a sentence for each promise
that was broken.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

# Loaded once, and not in each child.
from besom_host import commands, purge_command  # noqa: F401
from besom_host.cli import main as besom

from ..host.hostile import THEN, age, state
from .mutants import MUTANTS, replacing

ENTRIES, FILES, DEEP = 4, 3, 20  # deeper than the directories that besom holds open at once
SLOW_S = 30.0
USER = 65534
OPERATIONS = {
    "files": ("prune", "victim"),
    "trees": ("prune", "victim"),
    "sessions": ("prune", "victim"),
    "sweep": ("sweep", "--older-than", "1d"),
    "purge": ("purge", "victim", "--older-than", "1d", "--yes"),
    "clean": ("clean", "victim", "--all", "--yes"),
    # What a script does instead: each of them loses what is outside.
    "find and xargs": (),
    "removal by path": (),
}
ATTACKS = ("links", "files", "away", "mounts", "trash", "fresh", "root", "all")


def fill(directory: Path, depth: int) -> None:
    directory.mkdir(parents=True)
    for number in range(FILES):
        (directory / f"f{number}").write_text("x")
    for name in "ab" if depth else "":
        fill(directory / name, depth - 1)


@dataclass
class Found:
    """What all runs came to. met: entries that were not removed, each with a reason."""

    runs: int = 0
    swaps: int = 0
    removed: int = 0
    met: int = 0
    wrong: list[str] = field(default_factory=list)


class Arena:
    """store, which besom is to empty; outside, which is innocent, with the same names; aside, for spares."""

    def __init__(self, top: Path, operation: str, attack: str) -> None:
        self.operation, self.attack = operation, attack
        self.home, self.aside, self.outside = top / "user/home", top / "aside", top / "outside"
        # In a directory that an ordinary user owns, so that no symlink on the way is to be trusted.
        self.store = self.home / "store"
        self.entries = [(f".temp-{n}" if operation == "sweep" else f"e{n}") for n in range(ENTRIES)]
        self.config = top / "besom.yml"
        store = {"name": "victim", "path": str(self.store), "layout": self.layout, "max_age": "1d"}
        self.config.write_text(json.dumps({"stores": [store]}))
        self.make(self.outside / "store")
        age(self.outside)
        self.before = state(self.outside)

    @property
    def layout(self) -> str:
        layouts = {"trees": "trees", "sessions": "sessions", "sweep": "trees", "purge": "trees"}
        return layouts.get(self.operation, "files")

    def make(self, store: Path) -> None:
        for number, name in enumerate(self.entries):
            if number:
                fill(store / name, 2)
            else:
                fill(store / name / "/".join("d" * DEEP), 0)
            if self.layout == "sessions":
                (store / f"{name}.json").write_text('{"created_at": "2001-01-01T00:00:00Z"}')
                (store / f"{name}.log").write_text("x")
        (store / (".temp-file" if self.operation == "sweep" else "file")).write_text("x")

    def reset(self) -> None:
        # Never through a symlink that the attacker has left in the place of the store or its parent.
        for path in (self.home.parent, self.aside):
            shutil.rmtree(path, ignore_errors=True)
        self.aside.mkdir()
        self.home.mkdir(parents=True)
        for path in (self.home, self.home.parent):
            os.chown(path, USER, USER)
        self.make(self.store)
        age(self.store)

    def targets(self) -> list[tuple[str, Path, str]]:
        """What the attacker works on: how, what, and what for; its spares are made."""
        kinds = {
            "links": ("link",),
            "files": ("fifo", "file link", "device"),
            "away": ("away",),
            "mounts": ("bind", "tmpfs", "bind"),
            "trash": ("trash",),
            "fresh": ("fresh", "rotate"),
            "root": ("link",),
            "all": ("link", "away", "bind", "link", "fifo", "file link", "trash"),
        }[self.attack]
        if self.attack == "root":
            paths = [self.store, self.home]
        elif self.attack == "fresh":
            # What tells the age of an entry: the tree itself, or the metadata.
            end = ".json" if self.layout == "sessions" else ""
            paths = [self.store / (name + end) for name in self.entries]
        elif self.attack == "files":
            paths = [path for path in sorted(self.store.rglob("*")) if path.is_file()]
        elif self.attack == "mounts":
            paths = sorted(self.store.rglob("*"))[::3]
        elif self.attack == "trash":
            paths = [self.store / "-"]
        else:
            paths = sorted(self.store.rglob("*"))
        found = []
        for number, path in enumerate(paths):
            kind = kinds[number % len(kinds)]
            if self.attack == "all" and kind in ("link", "away") and not path.is_dir():
                kind = "file link"
            elif self.attack == "all" and kind in ("fifo", "file link") and path.is_dir():
                kind = "link"
            found.append(self._target(kind, path, self.aside / str(number)))
        return found

    def _target(self, kind: str, path: Path, spare: Path) -> str:
        innocent = self.outside / path.relative_to(self.home)
        word, other = "swap", spare
        if kind in ("link", "file link"):
            spare.symlink_to(innocent)
            os.chown(spare, USER, USER, follow_symlinks=False)
        elif kind == "fifo":
            os.mkfifo(spare)
        elif kind == "device":
            os.mknod(spare, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        elif kind in ("fresh", "rotate"):
            word = "swap" if kind == "fresh" else kind
            text = json.dumps({"created_at": time.time(), "text": f"fresh {spare.name}"})
            if self.layout == "sessions":
                spare.write_text(text)
            else:
                fill(spare, 1)
                (spare / "a/f0").write_text(text)
        elif kind == "trash":
            word = "trash"
            path = path.parent / "-"
            spare.symlink_to(self.outside / "store" / self.entries[1])
        elif kind == "bind":
            word, other = "bind", innocent
        else:
            word = kind
        if self.attack != "fresh" and os.path.lexists(spare):
            os.utime(spare, (THEN, THEN), follow_symlinks=False)
        return f"{word}\t{path.parent}\t{path.name}\t{other}\n"

    def unmount(self) -> None:
        """Unmount what the attacker could not: mounted on a tree just as that got a name of the trash."""
        with open("/proc/self/mountinfo") as stream:
            paths = [line.split()[4] for line in stream]
        for path in reversed(paths):
            if path.startswith(f"{self.store}/"):
                subprocess.run(["umount", "--lazy", path], check=True)

    def wrong(self) -> Iterator[str]:
        """What must not be, once all is unmounted."""
        after = state(self.outside)
        for path in sorted({*self.before, *after}):
            if self.before.get(path) != after.get(path):
                yield f"outside changed: {path}"
        if self.attack == "fresh":
            texts = [
                path.read_text()
                for top in (self.store, self.aside)
                for path in top.rglob("*")
                if path.is_file()
            ]
            for number in range(ENTRIES):
                if not any(f"fresh {number}" in text for text in texts):
                    yield f"fresh tree {number} is lost"


class Attack:
    """The attacker at work on targets, until it is stopped; counter: how many swaps it has made so far."""

    def __init__(self, program: str, top: Path, targets: list[str], pause: int) -> None:
        counter = top / "counter"
        counter.write_bytes(bytes(mmap.PAGESIZE))
        with counter.open("r+b") as stream:
            self._map = mmap.mmap(stream.fileno(), mmap.PAGESIZE)
        command = [program, str(counter), str(THEN), str(pause)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("".join(targets))
        self._process.stdin.close()
        assert self._process.stdout.readline() == "begun\n"

    @property
    def counter(self) -> int:
        return int.from_bytes(self._map[:8], sys.byteorder)

    def stop(self) -> None:
        self._process.terminate()
        status = self._process.wait(SLOW_S)
        assert status == 0, status


def remove_by_path(top: Path) -> None:
    """What a script does: look what is there, then remove it by its path."""
    for path in top.iterdir():
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                remove_by_path(path)
                path.rmdir()
            else:
                path.unlink()


def naive(operation: str, store: Path) -> int:
    """The same work by what users would take instead; its errors are the attacker's doing."""
    if operation == "removal by path":
        remove_by_path(store)
    else:
        script = 'find "$1" -type f -mtime +1 -print0 | xargs -0 rm -f'
        subprocess.run(["sh", "-c", script, "sh", store], stderr=subprocess.DEVNULL, check=False)
    print("{}")
    return 0


def run(work: Callable[[], int], top: Path, slow: float) -> tuple[int | None, dict[str, object], str]:
    """Exit status (None: it hung), report and errors of besom's command in a forked child."""
    out, err = top / "stdout", top / "stderr"
    pid = os.fork()
    if not pid:
        status = 70
        try:
            for number, path in ((1, out), (2, err)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            status = work()
            sys.stdout.flush()
        except SystemExit as error:
            status = int(error.code or 0)
        except BaseException:  # noqa: BLE001 - it must never return into the arena
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    fd = os.pidfd_open(pid)
    ended = select.select([fd], [], [], slow)[0]
    os.close(fd)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    text = out.read_text()
    with contextlib.suppress(ValueError):
        return (status if ended else None), json.loads(text or "{}"), err.read_text()
    return status, {}, f"no JSON: {text!r} " + err.read_text()


def race(options: argparse.Namespace) -> Found:
    top, operation, attack = options.top, options.operation, options.attack
    until = time.monotonic() + options.seconds
    arena, found = Arena(top, operation, attack), Found()
    words = [*OPERATIONS[operation], "--config", str(arena.config), "--json"]
    if operation == "sweep":
        words.insert(1, str(arena.store))

    def work() -> int:
        return besom(words) if OPERATIONS[operation] else naive(operation, arena.store)

    # And until besom and the attacker have both had a success: else nothing was tried.
    while found.runs < options.runs or found.swaps < options.swaps or not (found.removed and found.met):
        if found.wrong or time.monotonic() > until:
            break
        arena.reset()
        # Every other run at full speed; else with pauses, so that besom gets further into a tree.
        pause = (0, 1000, 0, 20000)[found.runs % 4]
        attacker = Attack(options.swapper, top, arena.targets(), pause)
        before = attacker.counter
        status, report, errors = run(work, top, options.slow)
        found.swaps += attacker.counter - before
        attacker.stop()
        arena.unmount()
        found.runs += 1
        found.wrong += [*judge(status, report, errors), *arena.wrong()]
        for kind in ("kept", "anomalies", "failures"):
            found.met += int(report.get(f"{kind}_total", 0))  # type: ignore[call-overload]
        found.met += status == 2
        found.removed += report.get("removed", {}).get("entries", 0)  # type: ignore[attr-defined]
        if attack != "root" and not found.wrong:
            # In peace the next run finishes whatever was begun, and nothing is left under a name of besom's.
            if attack != "fresh":
                age(arena.store)
            status, report, errors = run(work, top, options.slow)
            found.wrong += [f"afterwards: {one}" for one in judge(status, report, errors)]
            left = [path.name for path in arena.store.iterdir() if path.name.startswith(".besom-trash")]
            if status != 0 or left:
                found.wrong.append(f"afterwards: status {status}, {left} left: {errors}{report}")
            found.wrong += arena.wrong()
    return found


def judge(status: int | None, report: dict[str, object], errors: str) -> Iterator[str]:
    if status is None:
        yield "it hung"
    elif status not in (0, 1, 2) or "Traceback" in errors:
        yield f"status {status}: {errors}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("top", type=Path)
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("attack", choices=ATTACKS)
    parser.add_argument("--swapper", required=True)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--swaps", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fault", choices=MUTANTS)
    parser.add_argument(
        "--slow", type=float, default=SLOW_S, help="a run that takes longer hangs, in seconds"
    )
    options = parser.parse_args()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "arena", options.top], check=True)
    options.top.chmod(0o755)
    with replacing(options.fault) if options.fault else contextlib.nullcontext():
        print(json.dumps(asdict(race(options))))


if __name__ == "__main__":
    main()
