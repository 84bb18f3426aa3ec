"""What besom remembers of a store, on each file system on which it relies on that."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

import besom.survey
from besom.index import FILE_SYSTEMS
from besom.policy import Policy, Store
from besom.prune import Request, prune
from besom.report import INDEX, WALK, Report
from besom.run import Run
from besom.survey import Memory

pytestmark = pytest.mark.root
HOUR_NS = 3600 * 10**9
REALTIME_COARSE = 5  # clock_gettime(2); Python has no name for it


def changes(path: Path) -> Iterator[str]:
    """Change the store, one directory at a time; tells what was done."""
    (path / "a/new").write_bytes(bytes(9000))
    yield "a file is made"
    (path / "a/b/old").unlink()
    yield "a file goes"
    (path / "c/again").hardlink_to(path / "a/one")
    yield "a file gets a second name"
    (path / "a/b").rename(path / "c/b")
    yield "a directory is moved"
    (path / "c/b/d").mkdir()
    (path / "c/b/d/deep").write_bytes(bytes(20000))
    yield "a directory is made"
    (path / "a/other").write_bytes(bytes(60000))
    os.replace(path / "a/other", path / "a/one")
    yield "a file is replaced"


@pytest.mark.parametrize("kind", sorted(FILE_SYSTEMS))
def test_a_change_is_seen_without_a_walk(
    mounted: Callable[[str], Path], tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Times as fine as the kernel's clock are believed after a tick, and not only after two seconds.
    monkeypatch.setattr(besom.survey, "time_ns", lambda: time.time_ns() + HOUR_NS)
    path, state = mounted(kind) / "store", tmp_path / "state"
    state.mkdir(mode=0o700)
    for name in ("a/one", "a/b/old", "a/b/two", "c/three"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(bytes(5000))
    store = Store(str(path), "files", Policy.from_mapping({"max_size": "1G"}))

    def look(**options: object) -> Report:
        # What is on the disk takes as many blocks as it will.
        os.sync()
        before = time.clock_gettime_ns(REALTIME_COARSE)
        while time.clock_gettime_ns(REALTIME_COARSE) == before:
            pass
        return prune(Request(store), Run(**options))  # type: ignore[arg-type]

    def cycle() -> Report:
        return look(memory=Memory, index_dir=str(state), reconcile=24 * HOUR_NS)

    assert cycle().measured == WALK
    assert cycle().measured == INDEX
    for what in changes(path):
        seen, there = cycle(), look(dry_run=True)
        assert (seen.measured, there.measured) == (INDEX, WALK), what
        assert (seen.bytes_before, seen.entries_before) == (there.bytes_before, there.entries_before), what
