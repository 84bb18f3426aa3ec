"""Contests of transfers: besom sync beside curl --parallel and aria2c, artifact_sync beside get_url."""

from __future__ import annotations

import hashlib
import json
import random
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from contest import Bar, Contender, Contest
from fleet import play
from forest import SEED
from ground import BESOM, TOP, Ground, Unfit
from stopwatch import Sample


@dataclass(frozen=True)
class Served:
    """What is to be fetched from url: digests by name; base for what a contender needs beside it."""

    base: Path
    url: str
    digests: dict[str, str]

    @property
    def artifacts(self) -> list[dict[str, str]]:
        return [
            {"url": f"{self.url}/{name}", "dest": name, "checksum": f"sha256:{digest}"}
            for name, digest in self.digests.items()
        ]


def manifest(served: Served, into: Path, checked: bool = True) -> str:
    keys = ("url", "dest", "checksum") if checked else ("url", "dest")
    artifacts = [{key: artifact[key] for key in keys} for artifact in served.artifacts]
    file = served.base / "manifest.json"
    file.write_text(json.dumps({"store": f"{into}/", "artifacts": artifacts}))
    return str(file)


def besom(served: Served, into: Path) -> list[str]:
    return [BESOM, "--json", "sync", manifest(served, into)]


def unchecked(served: Served, into: Path) -> list[str]:
    return [BESOM, "--json", "sync", manifest(served, into, checked=False)]


def bare(served: Served, into: Path) -> list[str]:
    """The least that Python can do: see bareloop.py."""
    return [sys.executable, str(TOP / "bench/bareloop.py"), manifest(served, into)]


def curl(served: Served, into: Path) -> list[str]:
    config = served.base / "curl"
    config.write_text(
        "".join(f'url = "{served.url}/{name}"\noutput = "{into}/{name}"\n' for name in served.digests)
    )
    return ["curl", "--silent", "--show-error", "--fail", "--parallel", "--config", str(config)]


def curl_and_check(served: Served, into: Path) -> list[str]:
    """curl, and what makes it come to the same: verified, and on the disk."""
    sums = served.base / "sums"
    sums.write_text("".join(f"{digest}  {into}/{name}\n" for name, digest in served.digests.items()))
    return ["sh", "-c", f"{shlex.join(curl(served, into))} && sha256sum --quiet -c {sums} && sync {into}/*"]


def aria2c(served: Served, into: Path) -> list[str]:
    urls = served.base / "urls"
    urls.write_text("".join(f"{served.url}/{name}\n" for name in served.digests))
    return ["aria2c", "--quiet", "--max-concurrent-downloads=4", f"--dir={into}", f"--input-file={urls}"]


def artifact_sync(served: Served, into: Path) -> list[str]:
    return play(served.base, {"artifact_sync": {"path": str(into), "artifacts": served.artifacts}})


def get_url(served: Served, into: Path) -> list[str]:
    args = {"url": "{{ item.url }}", "dest": f"{into}/{{{{ item.dest }}}}", "checksum": "{{ item.checksum }}"}
    return play(served.base, {"ansible.builtin.get_url": args, "loop": served.artifacts, "no_log": True})


@contextmanager
def serving(base: Path, files: int, size: int) -> Iterator[Served]:
    """A server of so many files of size bytes."""
    source = base / "source"
    source.mkdir()
    digests = {}
    rng = random.Random(SEED)  # noqa: S311  # to be the same every time
    for number in range(files):
        content = rng.randbytes(size)
        (source / f"{number:04}").write_bytes(content)
        digests[f"{number:04}"] = hashlib.sha256(content).hexdigest()
    server = subprocess.Popen([sys.executable, TOP / "bench/fileserver.py", source], stdout=-1, text=True)
    assert server.stdout
    try:
        yield Served(base, f"http://127.0.0.1:{server.stdout.readline().strip()}", digests)
    finally:
        server.kill()
        server.wait()


def sync(ground: Ground) -> Iterator[Contest]:
    files, kib, few = (20, 64, 1) if ground.quick else (200, 1024, 20)
    with ground.directory() as base, serving(base, files, kib * 1024) as served:
        loop = Served(base, served.url, dict(list(served.digests.items())[:few]))

        def contender(
            name: str,
            command: Callable[[Served, Path], list[str]],
            *bars: Bar,
            of: Served = served,
            by_file: bool = False,
        ) -> Contender:
            def run() -> Sample:
                into = base / "into"
                into.mkdir()
                subprocess.run(["sync", "-f", base], check=True)
                sample = ground.measure(command(of, into))
                found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in into.iterdir()}
                shutil.rmtree(into)
                if found != of.digests:
                    raise Unfit(f"{name} has not fetched what it should have")
                return sample

            program = name.split()[0].strip(",") if name.startswith(("curl", "aria2c")) else "env"
            return Contender(name, run, bars, len(of.digests) if by_file else 1, program)

        what = f"{files} files of {kib} KiB from a server on this host"
        yield Contest(
            "sync",
            f"Transfer of {what}",
            [
                contender("besom sync", besom, Bar("ratio", 1.3)),
                contender("besom sync, no checksums", unchecked),
                contender("a bare loop in Python, verified and synced", bare),
                contender("curl, then sha256sum and sync", curl_and_check),
                contender("aria2c, 4 at a time", aria2c),
                contender("curl --parallel", curl),
            ],
        )
        yield Contest(
            "get_url",
            f"The same from a playbook, {files} files or {few}",
            [
                contender("artifact_sync", artifact_sync, Bar("ratio", 0.1), by_file=True),
                contender("get_url in a loop", get_url, of=loop, by_file=True),
            ],
            unit="file",
            rounds=1,
        )
