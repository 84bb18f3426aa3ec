"""The power goes out at any moment of a busy hour, on ext4 and XFS: what was acknowledged is there, whole.

Writers of files, of several files at once and of trees, and prunes of every layout are at work on a disk that
is recorded (recorder.py), and what they acknowledge is noted beside it. After each cut the next run of each
converges. A few cuts in every run; scripts/test --faults makes hundreds.
"""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable
from unittest.mock import patch

import pytest

from besom import durable_tree
from besom.artifacts import read_artifacts
from besom.durable import write_durably
from besom.durable_tree import remove_orphans, tree_draft
from besom.install import InstallRequest, install
from besom.opener import plain_opener
from besom.policy import read_store
from besom.prune import Request, prune
from besom.report import Report
from besom.root import Root
from besom.run import Run
from besom.sync import SyncRequest, sync
from besom.transfer import read_checksum, read_source

from ..host.conftest import Mount
from .child import Child
from .conftest import ALL, Tried
from .operations import archive, mirror
from .recorder import Recorder
from .test_kills import renaming_in_place

pytestmark = [pytest.mark.root, pytest.mark.timeout(1500 if ALL else 300)]
ROUNDS, CUTS = (40, 300) if ALL else (6, 8)
FILES = 3
# So many a prune leaves; the newest of them are there, however coarse the clock of the file system is.
KEPT, NEWEST = 6, 3
PRUNED = ("files", "trees", "sessions")
BLOBS = ("", ".dat")

# acknowledge(name, version); a prune is noted before it begins.
Acknowledge = Callable[[str, int], None]


def content(name: str, version: int) -> bytes:
    return f"{name} {version} ".encode() * (200 + version % 7 * 500)


def version_in(found: bytes, name: str) -> int:
    """Which version it is, whole; -1 for none."""
    with suppress(ValueError, IndexError):
        version = int(found.split()[1])
        if found == content(name, version):
            return version
    return -1


# What is at work.


def publish_files(top: Path, version: int, acknowledge: Acknowledge) -> None:
    with Root(str(top / "published")) as root:
        for number in range(FILES):
            write_durably(root.fd, root.path, f"{number}", content(f"{number}", version))
            acknowledge(f"published/{number}", version)


def sync_files(top: Path, version: int, acknowledge: Acknowledge) -> None:
    artifacts = []
    for number in range(FILES):
        file = offered(f"/{version}/{number}", content(f"{number}", version))
        artifacts.append(
            {"url": f"{mirror().url}/{version}/{number}", "dest": f"{number}", "checksum": file.checksum}
        )
    opener = plain_opener(timeout=60, redirects=False)
    request = SyncRequest(str(top / "synced"), read_artifacts(artifacts), opener, retries=0)

    def watch(dest: str, what: str, _done: int, _total: int) -> None:
        if what == "fetched":
            acknowledge(f"synced/{dest}", version)

    no_failure(sync(request, Run(), watch))


def install_tree(top: Path, version: int, acknowledge: Acknowledge) -> None:
    file = offered(f"/{version}.tgz", archive(content("app", version)))
    source = read_source(f"{mirror().url}/{version}.tgz", checksum=read_checksum(file.checksum))
    request = InstallRequest(str(top / "installed"), "app", source, keep=1, current="live", retries=0)
    install(request, Run(), plain_opener(timeout=60, redirects=False))
    acknowledge("installed/app", version)


def offered(path: str, what: bytes) -> Any:
    if path not in mirror().files:
        mirror().add(path, what)
    return mirror().files[path]


def offer(rounds: int) -> None:
    """All of it before a child is made, whose mirror is that of its parent."""
    for version in range(1, rounds + 2):
        for number in range(FILES):
            offered(f"/{version}/{number}", content(f"{number}", version))
        offered(f"/{version}.tgz", archive(content("app", version)))


def fill_and_prune(top: Path, version: int, acknowledge: Acknowledge, layout: str) -> None:
    name = f"{version:03}"
    with Root(str(top / layout)) as root:
        if layout == "trees":
            with tree_draft(root, name) as tree:
                for leaf in BLOBS:
                    fd = os.open(f"leaf{leaf}", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=tree.fd)
                    os.write(fd, content(name, version))
                    os.close(fd)
                tree.commit()
        elif layout == "sessions":
            for blob in BLOBS:
                write_durably(root.fd, root.path, f"{name}{blob}", content(name, version))
            write_durably(root.fd, root.path, f"{name}.json", json.dumps({"created_at": version}).encode())
        else:
            write_durably(root.fd, root.path, name, content(name, version))
    acknowledge(layout, version)
    if version % 2:
        acknowledge(f"pruned {layout}", version)
        no_failure(prune_area(top, layout))


def prune_area(top: Path, layout: str) -> Report:
    values = {"path": str(top / layout), "layout": layout, "max_entries": KEPT}
    return prune(Request(read_store(values)), Run())


def no_failure(report: Report) -> None:
    assert not report.failures.total, report.to_dict()


Work = Callable[[Path, int, Acknowledge], None]


def pruning(layout: str) -> Work:
    return lambda top, version, acknowledge: fill_and_prune(top, version, acknowledge, layout)


LOAD: dict[str, Work] = {
    "published": publish_files,
    "synced": sync_files,
    "installed": install_tree,
    **{layout: pruning(layout) for layout in PRUNED},
}


# What is there.


@dataclass
class Journal:
    """What was acknowledged when, in ns; kept beside the disk."""

    path: Path
    lines: list[tuple[int, str, int]] = field(default_factory=list)

    def read(self) -> None:
        for line in self.path.read_text().splitlines():
            when, version, name = line.split(" ", 2)
            self.lines.append((int(when), name, int(version)))

    def until(self, when: int) -> dict[str, int]:
        """The last version of each name that was acknowledged before."""
        found: dict[str, int] = defaultdict(int)
        for moment, name, version in self.lines:
            if moment < when:
                found[name] = max(found[name], version)
        return found


def wrong(top: Path, acked: dict[str, int], areas: list[str]) -> Iterator[str]:
    """What a reader finds that it should not."""
    for area in areas:
        if area in ("published", "synced"):
            for number in range(FILES):
                name = f"{area}/{number}"
                yield from not_as_acknowledged(name, acked[name], read_file(top / name, f"{number}"))
        elif area == "installed":
            app, live = top / "installed/app", top / "installed/live"
            yield from not_as_acknowledged("installed/app", acked["installed/app"], read_app(app))
            if acked["installed/app"] and not live.exists():
                yield "the link leads nowhere"
        else:
            yield from wrong_entries(top / area, acked[area], acked[f"pruned {area}"], area)


def not_as_acknowledged(name: str, acked: int, found: int) -> Iterator[str]:
    # The next one may be there as well, just not known of.
    if found not in (acked, acked + 1):
        yield f"{name}: {acked} was acknowledged, and there is {'something torn' if found < 0 else found}"


def read_file(path: Path, name: str) -> int:
    return version_in(path.read_bytes(), name) if path.exists() else 0


def read_app(path: Path) -> int:
    if not path.exists():
        return 0
    versions = {read_file(path / leaf, "app") for leaf in ("a", "b")}
    return versions.pop() if len(versions) == 1 else -1


def wrong_entries(area: Path, acked: int, pruned: int, layout: str) -> Iterator[str]:
    """An entry that is there is whole; one that no prune can have taken is there."""
    for version in range(1, acked + 2):
        name = f"{version:03}"
        parts = [f"{name}/leaf{leaf}" for leaf in BLOBS] if layout == "trees" else [name]
        if layout == "sessions":
            parts = [f"{name}{blob}" for blob in BLOBS]
        mark = area / (f"{name}.json" if layout == "sessions" else name)
        if mark.exists():
            torn = [part for part in parts if read_file(area / part, name) != version]
            if torn:
                yield f"{layout}/{name} is torn: {torn}"
        elif version <= acked and version > (pruned - NEWEST if pruned else 0):
            yield f"{layout}/{name} was acknowledged, and is missing"


def converged(top: Path, areas: list[str], rounds: int) -> Iterator[str]:
    """What is amiss after the next run of everything."""
    acked: dict[str, int] = defaultdict(int)
    for area in areas:
        with Root(str(top / area)) as root:
            # A sync goes on with what is left of the same file; else nothing waits for anything.
            report = remove_orphans(root, Run()) if area != "synced" else Report("hygiene", area)
        if report.failures.total or report.anomalies.total:
            yield f"{area}: {report.to_dict()}"
        if area in PRUNED:
            no_failure(prune_area(top, area))
        elif area != "published":
            LOAD[area](top, rounds + 1, lambda name, version: acked.update({name: version}))
    for area in areas:
        if area in PRUNED:
            there = {
                one.name.split(".")[0]
                for one in (top / area).iterdir()
                if area != "sessions" or one.suffix == ".json"
            }
            if len(there) > KEPT:
                yield f"{area}: {sorted(there)} are left"
        left = [
            one.name
            for one in (top / area).iterdir()
            if one.name[0] == "." and not one.name.startswith(".besom-old-app-")
        ]
        if left:
            yield f"{area}: {left} is left"
    yield from wrong(top, acked, [area for area in areas if area in ("synced", "installed")])


def cut_everywhere(
    kind: str,
    tmp_path: Path,
    mount: Mount,
    areas: list[str],
    rounds: int,
    cuts: int,
    plant: Callable[[], AbstractContextManager[Any]] = nullcontext,
    enough: bool = False,
) -> tuple[int, list[str], int]:
    """How many cuts there were (0: one at each write), what was found, and how much was acknowledged."""
    recorder = Recorder(kind, tmp_path, mount)
    journal = Journal(tmp_path / "memory" / "journal")
    offer(rounds)

    def work(top: Path, area: str) -> None:
        fd = os.open(journal.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

        def acknowledge(name: str, version: int) -> None:
            os.write(fd, f"{time.monotonic_ns()} {version} {name}\n".encode())

        with plant():
            for version in range(1, rounds + 1):
                LOAD[area](top, version, acknowledge)

    with recorder.recording() as top, ExitStack() as stack:
        for area in areas:
            (top / area).mkdir()
        subprocess.run(["sync", "--file-system", top], check=True)
        began = time.monotonic_ns()
        children = [stack.enter_context(Child(lambda area=area: work(top, area))) for area in areas]
        for child in children:
            child.go()
        for child in children:
            assert child.wait() == 0, child.said()
    journal.read()
    written = recorder.written()
    first = next(number for number, one in enumerate(written) if one.when > began)
    moments = range(first, len(written))
    dice = random.Random(f"{kind} {cuts}")  # noqa: S311
    chosen = dice.sample(moments, min(cuts, len(moments))) if cuts else list(moments)
    found, made = [], 0
    for when, after in recorder.cuts(written, chosen, dice):
        made += 1
        now = [*wrong(after, journal.until(when), areas)]
        found += now or ([] if enough else converged(after, areas, rounds))
        if enough and found:
            break
    return made, found, len(journal.lines)


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_what_was_acknowledged_survives_a_power_cut(
    tmp_path: Path, mount: Mount, kind: str, tried: Tried
) -> None:
    made, found, acknowledged = cut_everywhere(kind, tmp_path, mount, list(LOAD), ROUNDS, CUTS)
    assert found == []
    assert made == CUTS
    assert acknowledged > ROUNDS * len(LOAD)
    tried(f"power cuts, {kind}", made)
    tried("publications acknowledged before power cuts", acknowledged)


# The tests of the test: each of these faults, planted in besom, has to be found.


@contextmanager
def syncing_only(directories: bool) -> Iterator[None]:
    real = os.fsync

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) == directories:
            real(fd)

    with patch.object(os, "fsync", fsync), patch.object(durable_tree, "_call", lambda *_arguments: None):
        yield


def syncing_no_file() -> AbstractContextManager[Any]:
    return syncing_only(directories=True)


def syncing_no_directory() -> AbstractContextManager[Any]:
    return syncing_only(directories=False)


def syncing_no_tree() -> AbstractContextManager[Any]:
    return patch.object(durable_tree, "_sync_tree", lambda *_arguments: None)


PLANTED = [
    ("ext4", "published", syncing_no_file, "published/"),
    ("ext4", "published", syncing_no_directory, "published/"),
    ("ext4", "published", renaming_in_place, "torn"),
    ("ext4", "installed", syncing_no_tree, "torn"),
    ("xfs", "published", syncing_no_file, "published/"),
    ("xfs", "published", syncing_no_directory, "published/"),
]


@pytest.mark.parametrize(
    ("kind", "area", "plant", "said"), PLANTED, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_planted_fault_is_found(
    tmp_path: Path,
    mount: Mount,
    kind: str,
    area: str,
    plant: Callable[[], AbstractContextManager[Any]],
    said: str,
) -> None:
    _made, found, _acknowledged = cut_everywhere(kind, tmp_path, mount, [area], 3, 0, plant, enough=True)
    assert found
    assert said in found[0]
