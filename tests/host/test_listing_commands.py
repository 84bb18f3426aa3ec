# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""besom list, stats and purge as a person, a script and a terminal meet them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from .conftest import COMMAND
from .host import Process
from .test_command_line import Terminal, age, besom, files, fill


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


@pytest.mark.parametrize("json_", [False, True])
def test_a_signal_ends_a_long_list(tmp_path: Path, json_: bool) -> None:
    """Its output, more than a pipe holds, is not read before the signal."""
    many = 5000
    for number in range(many):
        (tmp_path / f"{number:040}").touch()
    words = [COMMAND, "list", f"{tmp_path}/", "--layout", "files", *["--json"] * json_]
    with Process(words, stdout=-1, stderr=-1, text=True) as lister:
        assert lister.stdout
        assert lister.stderr
        out = lister.stdout.read(1)
        lister.send_signal(signal.SIGINT)
        out, err = out + lister.stdout.read(), lister.stderr.read()
    assert (lister.returncode, "Interrupted" in err, "Traceback" in err) == (130, True, False)
    assert out.count("0" * 36) < many
    if json_:
        assert json.loads(out)["status"] == 130


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
    (("list", "gems", "--group", "red"), "Groups are those of sessions"),
    (("purge", "gems"), "Nothing is named"),
    (("purge", "gems", "a.gem"), "confirm that with --yes"),
    (("purge", "gems", "--older-than", "0", "--yes"), "--older-than: '0'"),
    (("purge", "gems", "--yes", "a\\gem"), "lone backslash"),
    (("purge", "gems", "--yes", "--group", "red"), "group needs the layout sessions"),
    (("purge", "gems", "--yes", "--group", ""), "--group is empty"),
    (("purge", "{}/gems", "a.gem", "--yes"), "A PATH needs --layout files"),
    (("stats", "--config", "/dev/null"), "No store is configured"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_2(host: Path, words: tuple[str, ...], says: str) -> None:
    before = files(host)
    status, out, err = run(host, *(word.replace("{}", str(host)) for word in words))
    assert files(host) == before
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert says in err


def test_listing_changes_nothing_and_needs_no_lock(host: Path) -> None:
    paths = [*host.glob("gems/**/*"), *host.glob("envs/**/*")]
    before = [os.lstat(path).st_atime_ns for path in paths]
    for words in (("list", "gems"), ("stats",), ("list", "envs", "--anomalies")):
        assert run(host, *words, "--lock-timeout", "0")[0] == 0
    assert [path for path, atime in zip(paths, before) if os.lstat(path).st_atime_ns != atime] == []


def test_purge_removes_what_is_named_and_says_what_is_not_there(host: Path) -> None:
    odd = fill(host / "gems/sub/x\n\\y", 1, days=5)
    id_ = json.loads(run(host, "list", "gems", "--json", "--smaller-than", "5K")[1])["entries"][0]["id"]
    status, out, err = run(host, "purge", "gems", id_, "--yes", "sub/b.gem", "sub")
    assert (status, err) == (1, f"besom: {host}/gems/sub is no entry.\n")
    assert out == f"Removed:\n  {host}/gems/ (2 files, 24.0 KiB)\nTotal: 24.0 KiB\n"
    assert not odd.exists()
    assert files(host / "gems") == ["a.gem", "c.gem"]


def test_an_id_may_begin_with_a_dash_after_two(host: Path) -> None:
    fill(host / "gems/-rf", 1, days=1)
    assert run(host, "purge", "gems", "--yes", "c.gem", "--", "-rf", "--")[0] == 1
    assert files(host / "gems") == ["a.gem", "sub/b.gem"]


def test_purge_by_age_previews_exactly_what_it_removes_and_keeps_the_young(host: Path) -> None:
    words = ("purge", "gems", "--older-than", "25d", "--json")
    dry = json.loads(run(host, *words, "--dry-run")[1])
    assert len(files(host / "gems")) == 3
    done = json.loads(run(host, *words, "--yes")[1])
    assert (dry["planned"], dry["victims"]) == (done["removed"], done["victims"])
    assert (done["operation"], done["changed"], files(host / "gems")) == ("purge", True, ["c.gem"])
    again = json.loads(run(host, *words, "--yes")[1])
    assert (again["changed"], again["planned"]["entries"]) == (False, 0)
    # env-0 is 72 hours old, and the store keeps what is younger than 80.
    status, _, err = run(host, "purge", "envs", "env-0", "env-1", "--yes")
    assert (status, os.listdir(host / "envs")) == (0, ["env-0"])
    assert "younger than min_age" in err


@pytest.mark.parametrize(("answer", "status", "left"), [("n\n", 0, 3), ("\x03", 130, 3), ("y\n", 0, 1)])
def test_purge_asks_on_a_terminal(host: Path, answer: str, status: int, left: int) -> None:
    terminal = Terminal("--config", host / "besom.yml", "purge", "gems", "--older-than", "25d")
    assert b"(2 files, 32.0 KiB)" in terminal.until(b"[y/N] ")
    # What has grown old enough since the question was put was not in it.
    age(host / "gems/c.gem", 25)
    os.write(terminal.fd, answer.encode())
    assert b"Traceback" not in terminal.end()
    assert (terminal.status, len(files(host / "gems"))) == (status, left)


def test_purge_that_is_answered_with_no_tells_of_ids_that_are_not_there(host: Path) -> None:
    terminal = Terminal("--config", host / "besom.yml", "purge", "gems", "a.gem", "nope")
    terminal.until(b"[y/N] ")
    os.write(terminal.fd, b"n\n")
    assert b"nope is no entry" in terminal.end()
    assert (terminal.status, len(files(host / "gems"))) == (1, 3)


def test_sessions_are_listed_counted_and_purged_by_group(tmp_path: Path) -> None:
    for number, group in enumerate(("red", "blue", "red")):
        (tmp_path / f"{number}.json").write_text(
            json.dumps({"created_at": f"2020-01-0{9 - number}", "team": group})
        )
        (tmp_path / f"{number}.tar").write_bytes(b"x")
    (tmp_path / "lone.tar").write_bytes(b"x")
    store = (f"{tmp_path}/", "--layout", "sessions", "--group-key", "team")
    listed = besom("list", *store).stdout.splitlines()
    assert re.split(" {2,}", listed[0].strip()) == ["AGE", "SIZE", "BLOBS", "GROUP", "ID"]
    assert [line.split()[-2:] for line in listed[1:4]] == [["red", "2"], ["blue", "1"], ["red", "0"]]
    anomalies = json.loads(besom("list", *store, "--anomalies", "--json").stdout)
    assert [item["path"] for item in anomalies["anomalies"]] == [f"{tmp_path}/lone.tar"]
    groups = json.loads(besom("stats", *store, "--json").stdout)["stores"][0]["groups"]
    assert [(one["group"], one["entries"]) for one in groups] == [("red", 2), ("blue", 1)]
    assert re.search(r"^  red +2 +16.0 KiB$", besom("stats", *store).stdout, re.MULTILINE)
    done = besom("purge", *store, "--group", "red", "--yes")
    assert (done.returncode, files(tmp_path)) == (0, ["1.json", "1.tar", "lone.tar"])


def test_storage_manager_with_settings_from_a_file_does_the_same(host: Path) -> None:
    (host / "env").write_text(f"\ufeff# here\r\nexport BESOM_CONFIG='{host}/besom.yml'\r\n")

    def manage(*words: str) -> subprocess.CompletedProcess[str]:
        script = Path(__file__).resolve().parents[2] / "scripts/storage-manager"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("BESOM_")}
        return subprocess.run(
            [script, "--env", host / "env", *words],
            env={**clean, "BESOM_COMMAND": str(COMMAND)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert "a.gem" in manage("list", "gems").stdout
    assert "envs (" in manage("stats").stdout
    refused = manage("purge", "gems", "a.gem")
    assert (refused.returncode, len(files(host / "gems"))) == (2, 3)
    assert "--yes" in refused.stderr
    assert manage("purge", "gems", "a.gem", "--yes").returncode == 0
    assert files(host / "gems") == ["c.gem", "sub/b.gem"]
    for command in (("list", "gems"), ("stats",), ("prune-size", "40K", "gems")):
        assert manage(*command, "--yes").returncode == 2
    pruned = manage("prune-size", "40K", "gems")
    assert (pruned.returncode, files(host / "gems")) == (0, ["c.gem"])
