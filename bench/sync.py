"""bench/sync: besom sync beside curl --parallel, aria2c and a loop of get_url, from a server on this host."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Callable

from contests import BESOM, PLAYBOOK, TOP
from stopwatch import Sample, measure

RESULTS = TOP / "bench/RESULTS-sync.md"
CURL, GET_URL = "curl --parallel", "get_url in a loop, by 20 files"
LOOP = 20  # one file of a loop takes as long as the next
MOST, LEAST = 1.3, 10.0


@dataclass(frozen=True)
class Ground:
    """What is to be fetched: digests by name, from url, into a directory of its own for each run."""

    base: Path
    url: str
    digests: dict[str, str]

    @property
    def artifacts(self) -> list[dict[str, str]]:
        return [
            {"url": f"{self.url}/{name}", "dest": name, "checksum": f"sha256:{digest}"}
            for name, digest in self.digests.items()
        ]


def besom(ground: Ground, into: Path) -> list[str]:
    manifest = ground.base / "manifest.json"
    manifest.write_text(json.dumps({"store": f"{into}/", "artifacts": ground.artifacts}))
    return [BESOM, "--json", "sync", str(manifest)]


def curl(ground: Ground, into: Path) -> list[str]:
    config = ground.base / "curl"
    config.write_text(
        "".join(f'url = "{ground.url}/{name}"\noutput = "{into}/{name}"\n' for name in ground.digests)
    )
    return ["curl", "--silent", "--show-error", "--fail", "--parallel", "--config", str(config)]


def curl_and_check(ground: Ground, into: Path) -> list[str]:
    """curl, and what makes it come to the same: verified, and on the disk."""
    sums = ground.base / "sums"
    sums.write_text("".join(f"{digest}  {into}/{name}\n" for name, digest in ground.digests.items()))
    return ["sh", "-c", f"{shlex.join(curl(ground, into))} && sha256sum --quiet -c {sums} && sync {into}/*"]


def bare(ground: Ground, into: Path) -> list[str]:
    """The least that Python can do: see bareloop.py."""
    return [sys.executable, str(TOP / "bench/bareloop.py"), besom(ground, into)[-1]]


def unchecked(ground: Ground, into: Path) -> list[str]:
    argv = besom(ground, into)
    manifest = json.loads(Path(argv[-1]).read_text())
    for artifact in manifest["artifacts"]:
        del artifact["checksum"]
    Path(argv[-1]).write_text(json.dumps(manifest))
    return argv


def aria2c(ground: Ground, into: Path) -> list[str]:
    urls = ground.base / "urls"
    urls.write_text("".join(f"{ground.url}/{name}\n" for name in ground.digests))
    return ["aria2c", "--quiet", "--max-concurrent-downloads=4", f"--dir={into}", f"--input-file={urls}"]


def play(ground: Ground, task: dict[str, object]) -> list[str]:
    file = ground.base / "play.json"
    file.write_text(json.dumps([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    return [
        PLAYBOOK,
        "-i",
        "localhost,",
        "-c",
        "local",
        "-e",
        f"ansible_python_interpreter={sys.executable}",
        str(file),
    ]


def module(ground: Ground, into: Path) -> list[str]:
    return play(ground, {"artifact_sync": {"path": str(into), "artifacts": ground.artifacts}})


def get_url(ground: Ground, into: Path) -> list[str]:
    args = {"url": "{{ item.url }}", "dest": f"{into}/{{{{ item.dest }}}}", "checksum": "{{ item.checksum }}"}
    return play(ground, {"get_url": args, "loop": ground.artifacts, "no_log": True})


# The name, its command, and whether one round has to do.
CONTENDERS: dict[str, tuple[Callable[[Ground, Path], list[str]], bool]] = {
    "besom sync": (besom, False),
    "besom sync, no checksums": (unchecked, False),
    "a bare loop in Python": (bare, False),
    CURL: (curl, False),
    "curl, sha256sum, sync": (curl_and_check, False),
    "aria2c, 4 at a time": (aria2c, False),
    "artifact_sync": (module, False),
    GET_URL: (get_url, True),
}


@contextmanager
def served(base: Path, files: int, size: int) -> Iterator[Ground]:
    """A server of so many files of size bytes."""
    source = base / "source"
    source.mkdir()
    digests = {}
    for number in range(files):
        content = os.urandom(size)
        (source / f"{number:04}").write_bytes(content)
        digests[f"{number:04}"] = hashlib.sha256(content).hexdigest()
    server = subprocess.Popen([sys.executable, TOP / "bench/fileserver.py", source], stdout=-1, text=True)
    assert server.stdout
    try:
        yield Ground(base, f"http://127.0.0.1:{server.stdout.readline().strip()}", digests)
    finally:
        server.kill()
        server.wait()


def check(into: Path, digests: dict[str, str]) -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in into.iterdir()}
    if found != digests:
        raise SystemExit(f"bench/sync: {into} has not what it should have")


def run(ground: Ground, rounds: int, skip: list[str]) -> dict[str, list[Sample]]:
    """Interleaved rounds, each into an empty directory; what is left there is checked every time."""
    samples: dict[str, list[Sample]] = {}
    env = {key: value for key, value in os.environ.items() if not key.startswith(("BESOM_", "ANSIBLE_"))}
    env |= {
        "BESOM_CONFIG": os.devnull,
        "ANSIBLE_LIBRARY": str(TOP / "library"),
        "ANSIBLE_MODULE_UTILS": str(TOP / "module_utils"),
        "ANSIBLE_HOME": str(ground.base / "ansible"),
        "LC_ALL": "C.UTF-8",
    }
    scratch = ground.base / "scratch"
    scratch.mkdir()
    for turn in range(rounds):
        for name, (command, once) in CONTENDERS.items():
            here = replace(ground, digests=dict(list(ground.digests.items())[:LOOP])) if once else ground
            argv = command(here, ground.base / "into")
            if any(word in name for word in skip) or not shutil.which(argv[0]) or (turn and once):
                continue
            into = ground.base / "into"
            into.mkdir()
            os.sync()
            sample = measure(argv, scratch, env)
            sample = replace(sample, wall=sample.wall * len(ground.digests) / len(here.digests))
            samples.setdefault(name, []).append(sample)
            print(f"bench: {name}: {sample.wall:.2f} s (load {sample.load:.1f})", file=sys.stderr)
            check(into, here.digests)
            shutil.rmtree(into)
    return samples


def table(samples: dict[str, list[Sample]]) -> str:
    walls = {name: median(sample.wall for sample in found) for name, found in samples.items()}
    lines = ["| | wall | min to max | user + sys | peak | beside curl |", "|---|---|---|---|---|---|"]
    for name, found in samples.items():
        all_walls = [sample.wall for sample in found]
        cpu = median(sample.user + sample.system for sample in found)
        peak = median(sample.peak_kib for sample in found) / 1024
        lines.append(
            f"| {name} | {walls[name]:.2f} s | {min(all_walls):.2f} to {max(all_walls):.2f} | {cpu:.2f} s "
            f"| {peak:.0f} MiB | {walls[name] / walls[CURL]:.2f} x |"
        )
    ratio = walls["besom sync"] / walls[CURL]
    lines += ["", f"besom sync beside {CURL}: {ratio:.2f} x, bar <= {MOST} x {_met(ratio <= MOST)}."]
    if GET_URL in walls:
        ratio = walls[GET_URL] / walls["artifact_sync"]
        lines.append(
            f"artifact_sync is {ratio:.0f} x as fast as get_url, bar {LEAST:g} x {_met(ratio >= LEAST)}."
        )
    return "\n".join(lines)


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench/sync", description=__doc__)
    parser.add_argument("--files", type=int, default=200, metavar="N", help="to fetch (default 200)")
    parser.add_argument("--kib", type=int, default=1024, metavar="N", help="of each (default 1024)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="(default 5; get_url has one)")
    words = ["get_url", "aria2c", "artifact"]
    parser.add_argument("--skip", action="append", default=[], choices=words, help="leave this out")
    parser.add_argument("--where", default=TOP / ".cache", type=Path, metavar="DIR", help="where to work")
    parser.add_argument("--record", action="store_true", help=f"write {RESULTS.name} as well")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with (
        tempfile.TemporaryDirectory(prefix="besom-bench-", dir=options.where) as name,
        served(Path(name), options.files, options.kib * 1024) as ground,
    ):
        text = table(run(ground, options.rounds, options.skip))
    print(text)
    if options.record:
        when = time.strftime("%Y-%m-%d", time.gmtime())
        head = (
            f"# What it takes to fetch {options.files} files of {options.kib} KiB\n\n"
            f"Written by `bench/sync --record` on {when}; load before {load:.1f}, {os.cpu_count()} cores, "
            "server on the same host. besom and the\nbare loop verify each file (sha256), bring it to "
            "the disk and publish it; curl and aria2c do not.\n"
        )
        RESULTS.write_text(f"{head}\n{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
