# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Killed before any change, a prune of sessions leaves each whole or without metadata, and converges."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

from besom.policy import read_store
from besom.prune import Request, prune
from besom.report import Report
from besom.run import Run

from .test_install_kills import die_at

BLOBS = ("", ".dat", ".d")


def fill(store: Path) -> None:
    """Two sessions that are to go, one that stays, and anomalies."""
    store.mkdir()
    for id_, created in (("a", 1), ("a.b", 2), ("c", 3)):
        (store / f"{id_}.json").write_text(json.dumps({"created_at": created}))
        for end in ("", ".dat"):
            (store / f"{id_}{end}").write_text(id_)
        (store / f"{id_}.d" / "sub").mkdir(parents=True)
        (store / f"{id_}.d" / "sub" / "file").write_text(id_)
    (store / "lone").write_text("lone")
    (store / "alone.json").write_text('{"created_at": 1}')
    tick(store.parent)


def tick(path: Path) -> None:
    """Wait until the clock of the file system that a directory is on has moved on."""
    os.utime(path)
    first = os.stat(path).st_ctime_ns
    while os.stat(path).st_ctime_ns == first:
        os.utime(path)


def prune_store(store: Path) -> Report:
    return prune(Request(read_store({"path": str(store), "layout": "sessions", "max_entries": 1})), Run())


def names(store: Path) -> list[str]:
    return sorted(str(path.relative_to(store)) for path in store.rglob("*"))


def killed_at(event: int, store: Path) -> int:
    """The exit code of a prune that is killed before its so manieth change."""
    pid = os.fork()
    if not pid:
        # Neither pytest's clean-up nor besom's.
        try:
            die_at(event)
            prune_store(store)
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_killed_before_any_change(tmp_path: Path) -> None:
    model = tmp_path / "model"
    fill(model)
    staying = [name for name in names(model) if name[0] == "c" or name.startswith(("lone", "alone"))]
    seen = set()
    code, events = -1, 0
    while code:
        store = tmp_path / str(events)
        fill(store)
        code = killed_at(events, store)
        assert code in (0, -signal.SIGKILL)
        for again in (False, True):
            found = names(store)
            assert [name for name in found if name in staying] == staying
            for id_ in ("a", "a.b"):
                if f"{id_}.json" in found:
                    assert {f"{id_}{end}" for end in BLOBS} <= set(found)
                    assert f"{id_}.d/sub/file" in found
            seen.add(tuple(name for name in found if name in ("a.json", "a.b.json")))
            # The finishing of what was begun is killed as well, at another moment.
            if not again:
                assert killed_at(events % 5, store) in (0, -signal.SIGKILL)
        prune_store(store)
        assert names(store) == staying
        assert not prune_store(store).changed
        shutil.rmtree(store)
        events += 1
    assert seen == {("a.b.json", "a.json"), ("a.json",), ()}
    assert events > 18
