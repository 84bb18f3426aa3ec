"""Where it is measured: a copy of besom, file systems, trees, and the environment of what is run."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from forest import Census, census, plant
from stopwatch import Sample, measure

TOP = Path(__file__).resolve().parent.parent
VENV = Path(sys.prefix)
BESOM, PLAYBOOK = str(VENV / "bin/besom"), str(VENV / "bin/ansible-playbook")
# What besom is made of.
PARTS = ("library", "module_utils", "playbooks", "requirements", "roles", "scripts", "src")
DISK, MEMORY, COLD = "on disk (`sync` before)", "in memory (just made)", "on disk, caches cold"
# What a file of a tree takes at most: its blocks, its inode and its name.
BYTES_A_FILE = 6_000
# Those that --fs can make, and how; `here` is the file system of --where.
MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-i", "4096"],
    "xfs": ["mkfs.xfs", "-q", "-f"],
    "btrfs": ["mkfs.btrfs", "-q", "-f"],
    "tmpfs": [],
}


class Unfit(Exception):
    """The bench cannot run here, or a contender did not do what it was to do."""


@dataclass(frozen=True)
class Tree:
    """One copy of a tree, as it was planted, and a directory for what a contender needs beside it."""

    path: Path
    scratch: Path
    planted: Census
    # How many files are one entry.
    together: int = 1

    @property
    def half(self) -> int:
        return self.planted.usage // 2

    @property
    def over_half(self) -> int:
        """How many of the oldest are over half the usage."""
        return self.planted.oldest_over(self.half, self.together)


@dataclass(frozen=True)
class Ground:
    """A directory on the file system that is measured, on which trees stand, one at a time.

    quick: small, and without what the rest of the machine would feel.
    """

    base: Path
    env: Mapping[str, str]
    rounds: int
    quick: bool
    fs: str = "here"
    place: Path = Path()
    _seen: dict[tuple[str, int, str], Census] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        return self.base / "scratch"

    @property
    def besom(self) -> Path:
        """The copy, so that besom stays the same to the end of the run, whoever works in the checkout."""
        return self.base / "besom"

    def measure(self, argv: Sequence[str], together: bool = False) -> Sample:
        return measure(argv, self.scratch, self.env, together)

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """An empty one of its own, on the file system that is measured."""
        with tempfile.TemporaryDirectory(dir=self.place, ignore_cleanup_errors=True) as name:
            yield Path(name)

    @contextmanager
    def tree(self, layout: str, files: int, state: str) -> Iterator[Tree]:
        path = self.place / "tree"
        # What the last contender left to be written is not the next one's to wait for.
        self._sync()
        try:
            plant(path, files, layout)
            if state != MEMORY:
                self._sync()
            # The same seed: counted once, and again after each contender.
            key = (layout, files, state)
            if key not in self._seen:
                self._seen[key] = census(path)
            if state == COLD:
                Path("/proc/sys/vm/drop_caches").write_text("3")
            yield Tree(path, self.scratch, self._seen[key], 2 if layout == "sessions" else 1)
        finally:
            subprocess.run(["rm", "-rf", path], check=False)

    def _sync(self) -> None:
        subprocess.run(["sync", "-f", self.place], check=True)

    @contextmanager
    def on(self, fs: str, files: int) -> Iterator[Ground]:
        """The same ground with another file system below, with room for a tree of so many files."""
        if fs == "here":
            yield Ground(self.base, self.env, self.rounds, self.quick, fs, self.base)
            return
        place, image = self.base / fs, self.base / f"{fs}.img"
        place.mkdir()
        size = files * BYTES_A_FILE * 3 // 2 + (1 << 30)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size},nr_inodes=0", "tmpfs", str(place)]
        if MAKE[fs]:
            image.touch()
            os.truncate(image, size)
            subprocess.run([*MAKE[fs], str(image)], check=True, stdout=subprocess.DEVNULL)
            mount = ["mount", "-o", "loop", str(image), str(place)]
        subprocess.run(mount, check=True)
        try:
            yield Ground(self.base, self.env, self.rounds, self.quick, fs, place)
        finally:
            subprocess.run(["umount", place], check=False)
            image.unlink(missing_ok=True)
            place.rmdir()


@contextmanager
def ground(where: Path, rounds: int, quick: bool) -> Iterator[Ground]:
    """A directory of its own below where, with a copy of besom that has been compiled."""
    with tempfile.TemporaryDirectory(prefix="besom-bench-", dir=where, ignore_cleanup_errors=True) as name:
        base = Path(name)
        for part in PARTS:
            shutil.copytree(TOP / part, base / "besom" / part, ignore=shutil.ignore_patterns("__pycache__"))
        # Settings of besom, Ansible and Python that somebody has are not what is measured.
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("BESOM_", "ANSIBLE_", "PYTHON"))
        }
        env |= {
            "LC_ALL": "C.UTF-8",
            "BESOM_CONFIG": os.devnull,
            "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
            "ANSIBLE_HOME": str(base / "ansible"),
            "ANSIBLE_LIBRARY": str(base / "besom/library"),
            "ANSIBLE_MODULE_UTILS": str(base / "besom/module_utils"),
            "ANSIBLE_ROLES_PATH": str(base / "besom/roles"),
            # Comes before the editable installation of the checkout.
            "PYTHONPATH": f"{base / 'besom/module_utils'}:{base / 'besom/src'}",
            "PYTHONPYCACHEPREFIX": str(base / "pycache"),
        }
        made = Ground(base, env, rounds, quick, place=base)
        made.scratch.mkdir()
        # As on a host where it ran before: compiled.
        made.measure([sys.executable, "-m", "compileall", "-q", str(made.besom)])
        yield made


def digest(besom: Path) -> str:
    """Which besom it is, also where the checkout has changes that are not committed."""
    found = hashlib.sha256()
    for part in ("library", "module_utils", "src"):
        for file in sorted((besom / part).rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()[:12]


def check_room(where: Path, files: int) -> None:
    st = os.statvfs(where)
    if st.f_bavail * st.f_frsize < files * BYTES_A_FILE or 0 < st.f_favail < files * 1.1:
        raise Unfit(f"{where} has no room for a tree of {files:,} files; choose another with --where")
