# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""besom list, stats and purge as a person, a script and a terminal meet them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from .test_command_line import Terminal, age, besom, fill


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Stores gems (files, a.gem the oldest and smallest) and envs (trees)."""
    for number, name in enumerate(("a.gem", "sub/b.gem", "c.gem")):
        fill(tmp_path / "gems" / name, 10_000 * (number + 1), days=40 - 10 * number)
    for number in range(2):
        fill(tmp_path / f"envs/env-{number}/bin/python", 10_000, days=3)
        age(tmp_path / f"envs/env-{number}", 3 + number)
    (tmp_path / "besom.yml").write_text(
        f"stores:\n"
        f"  - {{name: gems, path: {tmp_path}/gems, layout: files, max_size: 1G}}\n"
        f"  - {{name: envs, path: {tmp_path}/envs, layout: trees, max_age: 100d, min_age: 80h}}\n"
        f"  - {{name: later, path: {tmp_path}/later, layout: files, max_age: 100d}}\n"
    )
    return tmp_path


def run(host: Path, *words: object) -> tuple[int, str, str]:
    done = besom("--config", host / "besom.yml", *words)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def test_list_prints_a_table_with_the_oldest_first(host: Path) -> None:
    fill(host / "gems/x\n\x1b[31m", 1, days=5)
    status, out, err = run(host, "list", "gems")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "     AGE        SIZE  ID",
        "     40d    12.0 KiB  a.gem",
        "     30d    20.0 KiB  sub/b.gem",
        "     20d    32.0 KiB  c.gem",
        "      5d     4.0 KiB  x\\x0a\\x1b[31m",
        "In all 4 files, 68.0 KiB.",
    ]


def test_list_takes_filters_and_orders_and_says_of_how_many(host: Path) -> None:
    words = ("--older-than", "21d", "--sort", "size", "--limit", "1")
    _, out, _ = run(host, "list", f"{host}/gems", "--layout", "files", *words)
    assert out.splitlines()[1:] == [
        "     30d    20.0 KiB  sub/b.gem",
        "2 files, 32.0 KiB, of 3 files, 64.0 KiB.",
    ]


def test_list_as_json_is_one_object_of_all_entries(host: Path) -> None:
    found = json.loads(run(host, "list", "envs", "--json", "--sort", "id", "--reverse")[1])
    assert [entry["id"] for entry in found["entries"]] == ["env-1", "env-0"]
    assert found["total"] == found["matched"] == {"entries": 2, "bytes": found["total"]["bytes"]}
    assert 4 * 86400 <= found["entries"][0]["age_s"] < 4 * 86400 + 3600
    assert (found["operation"], found["changed"], found["layout"]) == ("list", False, "trees")
    empty = json.loads(run(host, "list", "envs", "--json", "--older-than", "9d")[1])
    assert (empty["entries"], empty["matched"]["entries"]) == ([], 0)


def test_stats_sums_up_stores_and_draws_bars_on_a_terminal_only(host: Path) -> None:
    status, out, err = run(host, "stats")
    assert (status, err) == (0, f"besom: warning: {host}/later does not exist yet; it was skipped.\n")
    assert f"gems ({host}/gems): 3 files, 64.0 KiB" in out
    assert re.search(r"^  7d to 30d +1 +32.0 KiB$", out, re.MULTILINE)
    assert "#" not in out
    terminal = Terminal("--config", host / "besom.yml", "stats", "gems")
    text = terminal.end().decode()
    assert re.search(r"30d to 90d +2 +32.0 KiB  #{40}\r", text)
    assert re.search(r"7d to 30d +1 +32.0 KiB  #{20}\r", text)
    found = json.loads(run(host, "stats", "--json")[1])
    assert found["total"]["entries"] == 5
    assert [store["name"] for store in found["stores"]] == ["gems", "envs"]
    assert sum(bar["entries"] for store in found["stores"] for bar in store["ages"]) == 5


BAD = [
    (("list", "{}/gems"), "A PATH needs --layout files"),
    (("list", "later"), "does not exist"),
    (("list", "/etc", "--layout", "files"), "is refused"),
    (("list", "gems", "--older-than", "soon"), "--older-than: 'soon'"),
    (("list", "gems", "--smaller-than", "-1"), "--smaller-than"),
    (("list", "gems", "--limit", "0"), "--limit: '0'"),
    (("list", "gems", "--yes"), "--yes"),
    (("stats", "--config", "/dev/null"), "No store is configured"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_2(host: Path, words: tuple[str, ...], says: str) -> None:
    status, out, err = run(host, *(word.replace("{}", str(host)) for word in words))
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert says in err


def test_listing_changes_nothing_and_needs_no_lock(host: Path) -> None:
    paths = [*host.glob("gems/**/*"), *host.glob("envs/**/*")]
    before = [os.lstat(path).st_atime_ns for path in paths]
    for words in (("list", "gems"), ("stats",), ("list", "envs", "--anomalies")):
        assert run(host, *words, "--lock-timeout", "0")[0] == 0
    assert [path for path, atime in zip(paths, before) if os.lstat(path).st_atime_ns != atime] == []
