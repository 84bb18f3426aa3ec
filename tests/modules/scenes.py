# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Every state of the modules that remove: what is there, what is asked for, what exactly leaves."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DAY = 86400


@dataclass(frozen=True)
class Scene:
    """files: {path: (KiB, age in days)}, a path ending in / is an empty directory, one in .json metadata.

    gone: every path that the run removes, directories included. held: locked by another process
    meanwhile. kept: {path: pattern in the reason}. warning: part of the one warning.
    """

    name: str
    module: str
    args: dict[str, Any]
    files: dict[str, tuple[int, float]]
    gone: set[str] = field(default_factory=set)
    held: tuple[str, ...] = ()
    kept: dict[str, str] = field(default_factory=dict)
    warning: str = ""

    def build(self, here: Path) -> None:
        build(here, self.files)


def build(here: Path, files: dict[str, tuple[int, float]]) -> None:
    """Make the files; a directory gets the time of the newest file in it."""
    newest: dict[Path, float] = {}
    now = time.time()
    here.mkdir(parents=True, exist_ok=True)
    for name, (size, age) in files.items():
        path = here / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"created_at": now - age * DAY}).encode()
            path.write_bytes(content if name.endswith(".json") else os.urandom(size * 1024))
            os.utime(path, (now - age * DAY, now - age * DAY))
        for folder in (path, *path.parents) if name.endswith("/") else path.parents:
            if folder == here:
                break
            newest[folder] = max(newest.get(folder, 0), now - age * DAY)
    for folder, then in newest.items():
        os.utime(folder, (then, then))


def _prune(layout: str, **policy: Any) -> dict[str, Any]:
    return {"path": "{here}/cache", "layout": layout, **policy}


FIVE = {f"cache/{name}": (64, age) for name, age in zip("abcde", (5, 4, 3, 2, 1))}
NESTED = {
    "cache/a/1": (64, 5),
    "cache/a/2": (64, 4),
    "cache/b/deep/1": (64, 3),
    "cache/b/2": (64, 1),
    "cache/hollow/": (0, 9),
    "outside/1": (64, 9),
}
TREES = {
    "cache/a/1": (60, 5),
    "cache/a/sub/2": (60, 9),
    "cache/b/1": (120, 4),
    "cache/c/1": (120, 3),
    "cache/d/sub/deep/1": (120, 1),
    "cache/loose": (4, 9),
    "outside/1": (64, 9),
}
TREE_A = {"cache/a", "cache/a/1", "cache/a/sub", "cache/a/sub/2"}
TREE_B = {"cache/b", "cache/b/1"}
TREE_C = {"cache/c", "cache/c/1"}
TREE_D = {"cache/d", "cache/d/sub", "cache/d/sub/deep", "cache/d/sub/deep/1"}
TEMPS = {
    "area/.temp-old/data/1": (64, 3),
    "area/.temp-old/2": (8, 4),
    "area/.temp-file": (16, 2),
    "area/.temp-young/1": (4, 0),
    "area/.temp-written/old": (4, 9),
    "area/.temp-written/sub/new": (4, 0.5),
    "area/plain/1": (4, 9),
    "area/nested/.temp-deep/1": (4, 9),
    "outside/1": (4, 9),
}
STALE = {
    "area/.temp-old",
    "area/.temp-old/data",
    "area/.temp-old/data/1",
    "area/.temp-old/2",
    "area/.temp-file",
}
NOT_STALE = {
    "area/.temp-young": "not stale yet",
    "area/.temp-written": r"not stale yet: 12(\.\d)?h old, it goes after 24h",
}

SCENES = [
    Scene(
        "files-max-size",
        "cache_prune",
        _prune("files", max_size="200K"),
        FIVE,
        gone={"cache/a", "cache/b"},
    ),
    Scene(
        "files-target-size",
        "cache_prune",
        _prune("files", max_size="300K", target_size="100K"),
        FIVE,
        gone={"cache/a", "cache/b", "cache/c", "cache/d"},
    ),
    Scene(
        "files-max-age",
        "cache_prune",
        _prune("files", max_age="60h"),
        NESTED,
        gone={"cache/a", "cache/a/1", "cache/a/2", "cache/b/deep", "cache/b/deep/1"},
    ),
    Scene(
        "files-max-entries",
        "cache_prune",
        _prune("files", max_entries=2),
        FIVE,
        gone={"cache/a", "cache/b", "cache/c"},
    ),
    Scene(
        "files-min-free",
        "cache_prune",
        _prune("files", min_free="99.9%", min_age="36h"),
        FIVE,
        gone={"cache/a", "cache/b", "cache/c", "cache/d"},
        warning="short of min_free: nothing else in it can go (kept: 1 younger than min_age)",
    ),
    Scene(
        "files-lru",
        "cache_prune",
        _prune("files", max_entries=3, order="lru"),
        FIVE,
        gone={"cache/b", "cache/c"},
    ),
    Scene(
        "files-held",
        "cache_prune",
        _prune("files", max_entries=3),
        FIVE,
        gone={"cache/b", "cache/c"},
        held=("cache/a",),
        kept={"cache/a": "in use: locked by pid"},
    ),
    Scene(
        "files-emptied",
        "cache_prune",
        _prune("files", state="emptied"),
        NESTED,
        gone={"cache/" + name for name in ("a", "a/1", "a/2", "b", "b/2", "b/deep", "b/deep/1")},
    ),
    Scene(
        "trees-max-size",
        "cache_prune",
        _prune("trees", max_size="300K"),
        TREES,
        gone=TREE_A | TREE_B,
    ),
    Scene(
        "trees-max-age", "cache_prune", _prune("trees", max_age="60h"), TREES, gone=TREE_A | TREE_B | TREE_C
    ),
    Scene("trees-max-entries", "cache_prune", _prune("trees", max_entries=3), TREES, gone=TREE_A),
    Scene(
        "trees-held",
        "cache_prune",
        _prune("trees", max_entries=2),
        TREES,
        gone=TREE_B | TREE_C,
        held=("cache/a/sub",),
        kept={"cache/a/sub": "in use: locked by pid"},
    ),
    Scene(
        "trees-emptied",
        "cache_prune",
        _prune("trees", state="emptied"),
        TREES,
        gone=TREE_A | TREE_B | TREE_C | TREE_D,
    ),
    Scene(
        "sessions",
        "cache_prune",
        _prune("sessions", max_entries=2),
        {
            "cache/a.json": (1, 5),
            "cache/a/1": (64, 0),
            "cache/a.log": (8, 0),
            "cache/b.json": (1, 4),
            "cache/b": (64, 9),
            "cache/c.json": (1, 3),
            "cache/c": (64, 9),
            "cache/d.json": (1, 2),
            "cache/d": (64, 9),
            "cache/lone": (4, 99),
            "outside/a.json": (1, 9),
        },
        gone={"cache/a.json", "cache/a", "cache/a/1", "cache/a.log", "cache/c.json", "cache/c"},
        held=("cache/b.json",),
        kept={"cache/b.json": "in use: locked by pid"},
    ),
    Scene(
        "sweep-held",
        "stale_temp_sweep",
        {"path": "{here}/area", "older_than": "1h"},
        TEMPS,
        gone={
            "area/.temp-written",
            "area/.temp-written/old",
            "area/.temp-written/sub",
            "area/.temp-written/sub/new",
        },
        held=("area/.temp-old", "area/.temp-file"),
        kept={
            "area/.temp-young": "not stale yet",
            "area/.temp-old": "in use: locked by pid",
            "area/.temp-file": "in use: locked by pid",
        },
    ),
    Scene(
        "sweep-patterns",
        "stale_temp_sweep",
        {"paths": ["{here}/one", "{here}/two"], "pattern": ["tmp-?", "*.partial"], "older_than": "1d"},
        {
            "one/tmp-1/x": (4, 2),
            "one/tmp-10/x": (4, 2),
            "two/a.partial": (4, 2),
            "two/.temp-x": (4, 2),
        },
        gone={"one/tmp-1", "one/tmp-1/x", "two/a.partial"},
    ),
    Scene(
        "host",
        "housekeep",
        {
            "stores": [
                {"name": "blobs", "path": "{here}/cache/blobs", "layout": "files", "max_entries": 1},
                {"path": "{here}/cache/envs", "layout": "trees", "max_age": "60h"},
                {"path": "{here}/cache/later", "layout": "files", "max_age": "1d"},
            ],
            "temps": [{"path": "{here}/area"}],
            "needs": [{"path": "{here}/cache/later", "size": "1K", "inodes": 1}],
        },
        {
            **TEMPS,
            "cache/blobs/a": (64, 5),
            "cache/blobs/b": (64, 1),
            "cache/envs/a/1": (64, 5),
            "cache/envs/b/1": (64, 1),
        },
        gone=STALE | {"cache/blobs/a", "cache/envs/a", "cache/envs/a/1"},
        kept=NOT_STALE,
        warning="/cache/later does not exist yet; it was skipped.",
    ),
    Scene(
        "host-temps-in-a-store",
        "housekeep",
        {
            "stores": [{"path": "{here}/area", "layout": "trees", "max_entries": 4}],
            "temps": [{"path": "{here}/area", "older_than": "1h"}],
        },
        TEMPS,
        gone=STALE
        | {
            "area/.temp-written",
            "area/.temp-written/old",
            "area/.temp-written/sub",
            "area/.temp-written/sub/new",
        },
        kept={"area/.temp-young": "not stale yet"},
    ),
]


def touch_read(here: Path) -> None:
    """Of the scene files-lru: its oldest file was read just now."""
    path = here / "cache/a"
    os.utime(path, (time.time(), path.stat().st_mtime))
