# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is wrong is refused in one clear sentence, the task fails, and nothing at all is removed."""

from __future__ import annotations

import os
import pwd
import re
from pathlib import Path
from typing import Any, Callable

import pytest

from .play import Play, Result
from .scenes import build
from .snapshot import paths, snapshot

Refusals = dict[str, tuple[str, dict[str, Any], str]]

FILES = {"cache/old": (8, 900), "cache/sub/old": (8, 900), "area/.temp-old/1": (8, 900), "plain": (4, 900)}


def prune(**values: Any) -> dict[str, Any]:
    return {"path": "{here}/cache", "layout": "files", **values}


def sweep(**values: Any) -> dict[str, Any]:
    return {"path": "{here}/area", **values}


def a_home() -> str:
    """A home directory of the password database that only that makes a place to refuse."""
    system = {"/", "/bin", "/dev", "/home", "/root", "/sbin", "/usr", "/usr/sbin", "/var"}
    homes = (user.pw_dir for user in pwd.getpwall())
    return next((home for home in homes if home not in system and os.path.isdir(home)), "/root")


# Limits and patterns that would match nothing, should one of these be taken after all.
HARMLESS = {"max_age": "10000w", "layout": "files"}
NOWHERE = {"pattern": "besom-test-no-such-name-*"}

REFUSED: Refusals = {
    "size": ("cache_prune", prune(max_size="10Q"), r"max_size: '10Q' is not a size above zero; .*"),
    "size-zero": ("cache_prune", prune(max_size="0"), r"max_size: '0' is not a size above zero; .*"),
    "target-size": ("cache_prune", prune(max_size="1K", target_size="-1"), r"target_size: '-1' is not .*"),
    "target-above": ("cache_prune", prune(max_size="1K", target_size="2K"), r"target_size is above.*"),
    "target-alone": ("cache_prune", prune(max_age="1d", target_size="1K"), r"target_size needs max_size.*"),
    "age": ("cache_prune", prune(max_age="3 fortnights"), r"max_age: '3 fortnights' is not .*"),
    "age-negative": ("cache_prune", prune(max_age="-1d"), r"max_age: '-1d' is not a duration above zero.*"),
    "age-zero": ("cache_prune", prune(max_age="0"), r"max_age: '0' is not a duration above zero.*"),
    "grace": ("cache_prune", prune(max_age="1d", min_age="2d"), r"min_age is above max_age.*"),
    "free": ("cache_prune", prune(min_free="120%"), r"min_free: '120%' is not between 0% and 100%\."),
    "entries": ("cache_prune", prune(max_entries=0), r"max_entries: '0' is not a whole number above zero\."),
    "entries-word": ("cache_prune", prune(max_entries="many"), r".*max_entries.*"),
    "order": (
        "cache_prune",
        prune(max_age="1d", order="created"),
        r"order: created needs the layout sessions; use oldest or lru here\.",
    ),
    "order-word": ("cache_prune", prune(max_age="1d", order="newest"), r"value of order must be one of: .*"),
    "no-limit": ("cache_prune", prune(), r"no limit is set; give at least one of max_size, max_age, .*"),
    "no-layout": ("cache_prune", {"path": "{here}/cache", "max_age": "1d"}, r"missing required .*: layout"),
    "key": ("cache_prune", prune(max_age="1d", max_files=3), r"Unsupported parameters .*: max_files\..*"),
    "timeout": ("cache_prune", prune(max_age="1d", lock_timeout="soon"), r"lock_timeout: 'soon' is not .*"),
    "backend": (
        "cache_prune",
        prune(max_age="1d", lock_backend="nfs"),
        r"value of lock_backend must be one of: .*",
    ),
    "redis-none": (
        "cache_prune",
        prune(max_age="1d", lock_backend="redis"),
        r"lock_backend: redis needs redis_url; set it\.",
    ),
    "redis-url": (
        "cache_prune",
        prune(max_age="1d", lock_backend="redis", redis_url="http://:secret@host"),
        r"redis_url: that is not a URL of Redis; write redis://HOST:6379/0, .*",
    ),
    "redis-away": (
        "housekeep",
        {
            "stores": [prune(max_age="1d", lock_backend="redis")],
            "redis_url": "redis://:secret@127.0.0.1:1/0",
        },
        r".*/cache cannot be locked: Redis at redis://127\.0\.0\.1:1/0 says .*; start it, or correct .*",
    ),
    "relative": ("cache_prune", prune(max_age="1d", path="cache"), r"path: cache is not an absolute path\."),
    "empty": ("cache_prune", prune(max_age="1d", path=""), r"path: .* is not an absolute path\."),
    "symlink": ("cache_prune", prune(max_age="1d", path="{here}/link"), r".*/link is a symlink; name the .*"),
    "symlink-slash": ("cache_prune", prune(max_age="1d", path="{here}/link/"), r".*/link/ is a symlink; .*"),
    "way": (
        "cache_prune",
        prune(max_age="1d", path="{here}/open/way/cache"),
        r".* leads through the symlink way, which others could redirect; name the real directory\.",
    ),
    "missing": ("cache_prune", prune(max_age="1d", path="{here}/none"), r".*/none does not exist; .*"),
    "file": ("cache_prune", prune(max_age="1d", path="{here}/plain"), r".*/plain is not a directory\."),
    "root": ("cache_prune", {"path": "/", **HARMLESS}, r"/ is refused: it is a system directory; name .*"),
    "root-spelt": ("cache_prune", {"path": "/usr/..", **HARMLESS}, r"/usr/\.\. is refused: it is .*"),
    "usr": ("cache_prune", {"path": "/usr", **HARMLESS}, r"/usr is refused: it is a system .*"),
    "etc": ("cache_prune", {"path": "/etc/", **HARMLESS}, r"/etc/ is refused: it is a system .*"),
    "home": ("cache_prune", {"path": a_home(), **HARMLESS}, r".* is refused: it is .*"),
    "sweep-age": ("stale_temp_sweep", sweep(older_than="old"), r"older_than: 'old' is not .*"),
    "sweep-slash": (
        "stale_temp_sweep",
        sweep(pattern=[".temp-*", "../area/.temp-*"]),
        r"pattern: '\.\./area/\.temp-\*' is not the glob of a name; it cannot be empty or contain a slash\.",
    ),
    "sweep-none": ("stale_temp_sweep", sweep(pattern=[]), r"pattern: give a glob such as .*"),
    "sweep-key": ("stale_temp_sweep", sweep(age="1d"), r"Unsupported parameters .*: age\..*"),
    "sweep-relative": ("stale_temp_sweep", sweep(path="area"), r"path: area is not an absolute path\."),
    "sweep-symlink": ("stale_temp_sweep", sweep(path="{here}/arealink"), r".*/arealink is a symlink; .*"),
    "sweep-missing": (
        "stale_temp_sweep",
        {"paths": ["{here}/area", "{here}/none"]},
        r".*/none does not exist; create it, or correct the path\.",
    ),
    "sweep-root": ("stale_temp_sweep", {"path": "/", **NOWHERE}, r"/ is refused: it is a system .*"),
    "sweep-usr": ("stale_temp_sweep", {"path": "/usr", **NOWHERE}, r"/usr is refused: .*"),
    "sweep-home": ("stale_temp_sweep", {"path": a_home(), **NOWHERE}, r".* is refused: it is .*"),
    "host-store": (
        "housekeep",
        {
            "stores": [prune(max_age="1d"), {"name": "two", **prune(max_age="never", path="{here}/area")}],
            "temps": [sweep()],
        },
        r"stores: two: max_age: 'never' is not a duration above zero.*",
    ),
    "host-temps": (
        "housekeep",
        {"stores": [prune(max_age="1d")], "temps": [sweep(pattern="a/b")]},
        r"temps: pattern: 'a/b' is not the glob of a name.*",
    ),
    "host-overlap": (
        "housekeep",
        {"stores": [prune(max_age="1d"), prune(max_age="1d", path="{here}/cache/sub")]},
        r"Stores .*/cache and .*/cache/sub overlap; give each a directory of its own\.",
    ),
    "host-symlink": (
        "housekeep",
        {"stores": [prune(max_age="1d"), prune(max_age="1d", path="{here}/arealink")], "temps": [sweep()]},
        r".*/arealink is a symlink; .*",
    ),
    "host-root": (
        "housekeep",
        {"stores": [prune(max_age="1d")], "temps": [{"path": "/", **NOWHERE}]},
        r"/ is refused: it is a system .*",
    ),
    "host-key": (
        "housekeep",
        {"stores": [prune(max_age="1d", keep=3)]},
        r"Unsupported parameters .*: stores\.keep\..*",
    ),
    "host-needs": (
        "housekeep",
        {"stores": [prune(max_age="1d")], "needs": [{"path": "{here}", "size": "lots"}]},
        r"needs: size: 'lots' is not a size above zero.*",
    ),
    "gate-nothing": ("disk_preflight", {}, r"Nothing is needed; give needs, urls or both\."),
    "gate-size": (
        "disk_preflight",
        {"needs": [{"path": "/tmp", "size": "5%"}]},
        r"needs: size: '5%' is not .*",
    ),
    "gate-empty": ("disk_preflight", {"needs": [{"path": "/tmp"}]}, r"needs: /tmp needs nothing; .*"),
    "gate-inodes": (
        "disk_preflight",
        {"needs": [{"path": "/tmp", "inodes": -1}]},
        r"needs: inodes: '-1' is not a whole number above zero\.",
    ),
    "gate-relative": (
        "disk_preflight",
        {"needs": [{"path": "tmp", "size": "1K"}]},
        r"needs: path: tmp is not an absolute path\.",
    ),
    "gate-url": (
        "disk_preflight",
        {"urls": [{"url": "ftp://user:secret@example.com/x?token=secret", "path": "/tmp"}]},
        r"urls: url: ftp://example\.com/x is not an http or https URL\.",
    ),
    "gate-reserve": (
        "disk_preflight",
        {"needs": [{"path": "/tmp", "size": "1K"}], "reserve": "100%"},
        r"reserve: '100%' is not between 0% and 100%\.",
    ),
    "gate-expand": (
        "disk_preflight",
        {"needs": [{"path": "/tmp", "size": "1K"}], "expand": -1},
        r"expand: '-1\.0' is not a number from 0 to 1000\.",
    ),
    "info-relative": (
        "cache_info",
        {"stores": [{"path": "cache", "layout": "files"}]},
        r"stores: path: cache is not an absolute path\.",
    ),
    "info-symlink": ("cache_info", {"temps": [{"path": "{here}/arealink"}]}, r".*/arealink is a symlink; .*"),
}


@pytest.fixture(scope="module")
def attempts(play: Play) -> dict[str, tuple[dict[str, list[int]], Result]]:
    """The tree before each attempt, and what came of it."""
    before = {}
    for name, (module, args, _) in REFUSED.items():
        here = play.base / "here" / name
        build(here, FILES)
        (here / "link").symlink_to("cache")
        (here / "arealink").symlink_to("area")
        (here / "open").mkdir()
        (here / "open").chmod(0o777)
        (here / "open/way").symlink_to("..")
        before[name] = snapshot(str(here))
        play.add(f"{name}/run", module, args)
    found = play.run()
    return {name: (before[name], found["here", f"{name}/run"]) for name in REFUSED}


@pytest.fixture(params=REFUSED)
def attempt(
    request: pytest.FixtureRequest, attempts: dict[str, tuple[dict[str, list[int]], Result]]
) -> tuple[dict[str, list[int]], Result, str]:
    return (*attempts[request.param], REFUSED[request.param][2])


def test_it_fails_with_one_clear_sentence(attempt: tuple[dict[str, list[int]], Result, str]) -> None:
    _, result, expected = attempt
    assert result.status == "failed"
    assert re.fullmatch(expected, result.msg), result.msg
    assert "secret" not in result.msg


def test_it_shows_no_traceback(attempt: tuple[dict[str, list[int]], Result, str]) -> None:
    _, result, _ = attempt
    shown = " ".join(
        str(result.get(key, "")) for key in ("msg", "exception", "module_stderr", "module_stdout")
    )
    assert "Traceback" not in shown
    assert "module_stderr" not in result.values


def test_it_removes_and_touches_nothing(attempt: tuple[dict[str, list[int]], Result, str]) -> None:
    before, result, _ = attempt
    assert result.tree == before
    assert result["changed"] is False


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory, hold: Callable[[Path], int]) -> dict[str, Result]:
    """Attempts on a store whose writer lock another process holds."""
    play = Play(tmp_path_factory.mktemp("locked"))
    for name in ("lock", "zero", "host"):
        here = play.base / "here" / name
        build(here, {**FILES, "other/old": (8, 900)})
        hold(here / "cache")
    play.add("lock/check", "cache_prune", prune(max_age="1d"), check=True)
    play.add("lock/run", "cache_prune", prune(max_age="1d", lock_timeout="1s"))
    play.add("zero/run", "cache_prune", prune(max_age="1d", lock_timeout=0))
    stores = [prune(max_age="1d"), prune(max_age="1d", path="{here}/other")]
    play.add("host/run", "housekeep", {"stores": stores, "lock_timeout": "0"})
    return {task: result for (_, task), result in play.run().items()}


def test_a_held_store_fails_after_lock_timeout_naming_holder_and_option(locked: dict[str, Result]) -> None:
    for task, waited in (("lock/run", "1(\\.\\d)?s"), ("zero/run", "0s")):
        result = locked[task]
        assert result.status == "failed"
        assert re.fullmatch(
            r"/\S+/cache is locked by pid \d+ \(flock \S+/cache sh -c\), running since [-0-9]+ [:0-9]+; "
            rf"waited {waited}\. Let it finish, or raise lock_timeout\.",
            result.msg,
        ), result.msg
        assert {"cache/old", "cache/sub/old"} <= paths(result.tree)


def test_check_mode_needs_no_lock(locked: dict[str, Result]) -> None:
    assert locked["lock/check"].status == "ok"
    assert locked["lock/check"]["planned"]["entries"] == 2


def test_one_held_store_does_not_keep_the_next_from_its_turn(locked: dict[str, Result]) -> None:
    result = locked["host/run"]
    assert result.status == "failed"
    assert "is locked by pid" in result.msg
    assert result["changed"] is True
    assert "other/old" not in paths(result.tree)
    assert {"cache/old", "cache/sub/old"} <= paths(result.tree)
