"""The command line as a person, a script and cron meet it: real processes, real signals, a real terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .host import Process

BESOM = [sys.executable, "-m", "besom_host"]
DAY = 86400


def besom(*words: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("BESOM_")}
    return subprocess.run(
        [*BESOM, *map(str, words)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**clean, **(env or {})},
    )


def age(path: Path, days: float) -> None:
    """Make path, and all below it, so many days old."""
    when = time.time() - days * DAY
    for where, _, files in os.walk(path, topdown=False):
        for name in (*files, "."):
            os.utime(os.path.join(where, name), (when, when))
    os.utime(path, (when, when))


def fill(path: Path, size: int, days: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    age(path, days)
    return path


def files(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*") if found.is_file())


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Another program holds path with flock; gives its pid."""
    with Process(["flock", path, "sh", "-c", "echo held; read _"], stdin=-1, stdout=-1) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        yield holder.pid
        holder.communicate()


class Terminal:
    """besom on a real terminal."""

    def __init__(self, *words: object, command: list[str] | None = None) -> None:
        self.pid, self.fd = pty.fork()
        if not self.pid:
            line = [*(command or BESOM), *map(str, words)]
            os.execvp(line[0], line)
        self.status = -1
        self.text = b""

    def until(self, wanted: bytes) -> bytes:
        while wanted not in self.text:
            self.text += os.read(self.fd, 65536)
        return self.text

    def end(self) -> bytes:
        while True:
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                break
            if not data:
                break
            self.text += data
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return self.text


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A configured host: stores gems (files) and envs (trees), a temp area rubies."""
    for n in range(4):
        fill(tmp_path / f"gems/{n % 2}/gem-{n}", 40_000, days=n + 1)
    for n in range(3):
        fill(tmp_path / f"envs/env-{n}/bin/python", 10_000, days=n + 1)
        age(tmp_path / f"envs/env-{n}", n + 1)
    fill(tmp_path / "rubies/.temp-abc123/ruby.tar", 50_000, 3)
    fill(tmp_path / "rubies/.temp-new/ruby.tar", 50_000, 0)
    age(tmp_path / "rubies/.temp-abc123", 3)
    (tmp_path / "besom.yml").write_text(
        f"stores:\n"
        f"  - {{name: gems, path: {tmp_path}/gems, layout: files, max_size: 100K}}\n"
        f"  - {{name: envs, path: {tmp_path}/envs, layout: trees, max_age: 36h}}\n"
        f"temps:\n  - path: {tmp_path}/rubies\n"
    )
    return tmp_path


def test_the_dry_run_of_clean_reads_as_designed_and_removes_nothing(host: Path) -> None:
    before = files(host)
    run = besom("clean", "--all", "--dry-run", "--config", host / "besom.yml")
    text = re.sub(r"[\d.]+ KiB", "N KiB", run.stdout.replace(str(host), ""))
    assert text.splitlines()[:5] == [
        "Would remove:",
        "  /gems/                (4 files, N KiB)",
        "  /envs/                (3 trees, N KiB)",
        "  /rubies/.temp-abc123/ (stale, N KiB)",
        "Total: N KiB",
    ]
    assert (run.returncode, files(host)) == (0, before)


def test_clean_removes_stale_temps_and_own_orphans_and_no_other_tools_part(host: Path) -> None:
    orphan = fill(host / "gems/0/.gem.0123456789abcdef.part", 10, days=3)
    young = fill(host / "gems/0/.gem.0123456789abcde0.part", 10, days=0)
    others = [
        fill(host / "gems/0" / name, 10, days=9) for name in ("video.part", ".gem.part", ".a.b1c2.part")
    ]
    live = fill(host / "gems/0/.gem.fedcba9876543210.part", 10, days=3)
    with held(live) as pid:
        run = besom("clean", "--config", host / "besom.yml")
    assert run.returncode == 0
    assert not orphan.exists()
    assert not (host / "rubies/.temp-abc123").exists()
    assert all(path.exists() for path in (young, live, *others, host / "rubies/.temp-new"))
    assert f"pid {pid}" in run.stdout
    assert len(files(host / "gems")) == 4 + 5
    assert len(files(host / "envs")) == 3


def test_clean_all_refuses_without_a_terminal_and_without_yes(host: Path) -> None:
    before = files(host)
    run = besom("clean", "--all", "--config", host / "besom.yml")
    assert (run.returncode, files(host)) == (2, before)
    assert "--yes" in run.stderr
    assert besom("clean", "--all", "--yes", "--config", host / "besom.yml").returncode == 0
    assert files(host / "gems") + files(host / "envs") == []


@pytest.mark.parametrize(("answer", "left"), [(b"n\n", 7), (b"\n", 7), (b"y\n", 0)])
def test_clean_all_asks_on_a_terminal_after_showing_what_would_go(
    host: Path, answer: bytes, left: int
) -> None:
    run = Terminal("clean", "--all", "--config", host / "besom.yml")
    assert b"(4 files" in run.until(b"[y/N] ")
    os.write(run.fd, answer)
    run.end()
    assert run.status == 0
    assert len(files(host / "gems") + files(host / "envs")) == left


def test_ctrl_c_at_the_question_ends_with_130_and_removes_nothing(host: Path) -> None:
    before = files(host)
    run = Terminal("clean", "--all", "--config", host / "besom.yml")
    run.until(b"[y/N] ")
    os.write(run.fd, b"\x03")
    text = run.end()
    assert (run.status, files(host)) == (130, before)
    assert b"Traceback" not in text


BAR = (
    "import sys, besom_host.progress as progress; progress.PATIENCE_S = 0;"
    "from besom_host.cli import main; sys.exit(main(sys.argv[1:]))"
)


def test_a_bar_is_drawn_on_a_terminal_and_not_in_a_pipe(host: Path) -> None:
    words = ("prune", f"{host}/gems", "--layout", "files", "--max-size", "50K")
    piped = subprocess.run([sys.executable, "-c", BAR, *words, "--dry-run"], capture_output=True, check=True)
    run = Terminal(*words, command=[sys.executable, "-c", BAR])
    text = run.end()
    assert run.status == 0
    assert b"remove" in text
    assert b"\x1b[" in text
    assert b"\x1b" not in piped.stdout
    assert piped.stderr == b""


def test_prune_by_name_removes_the_oldest_and_a_second_run_is_silent(host: Path) -> None:
    first = besom("prune", "gems", "--config", host / "besom.yml")
    second = besom("prune", "gems", "--config", host / "besom.yml")
    assert files(host / "gems") == ["0/gem-0", "1/gem-1"]
    assert first.stdout.splitlines()[1] == f"  {host}/gems/ (2 files, 80.0 KiB)"
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_flags_stand_above_the_configured_limits(host: Path) -> None:
    run = besom("--json", "--config", host / "besom.yml", "prune", "gems", "--max-size", "50K")
    assert json.loads(run.stdout)["removed"]["entries"] == 3


def test_json_is_one_object_with_the_options_before_or_after_the_command(host: Path) -> None:
    for words in (("--json", "sweep", "--dry-run", f"{host}/rubies"), ("sweep", f"{host}/rubies", "--json")):
        report = json.loads(besom(*words, "--config", host / "besom.yml").stdout)
        assert report["planned"]["entries"] == 1
        assert [one["operation"] for one in report["reports"]] == ["sweep"]


def test_info_shows_usage_and_who_holds_the_store(host: Path) -> None:
    with held(host / "gems") as pid:
        found = json.loads(besom("info", "--json", "--config", host / "besom.yml").stdout)
        text = besom("info", "--config", host / "besom.yml").stdout
    gems, envs = found["stores"]
    assert (gems["entries"], gems["bytes"], gems["holder"]["pid"]) == (4, 163840, pid)
    assert (envs["entries"], envs["holder"]) == (3, None)
    # Nobody has kept house here so far.
    assert (gems["walked"], gems["reconcile_due"]) == (None, None)
    assert found["temps"][0]["stale"]["entries"] == 1
    assert f"pid {pid}" in text
    assert "160.0 KiB" in text


def test_a_held_store_ends_in_75_and_names_the_holder_and_the_option(host: Path) -> None:
    before = files(host)
    prune = ("prune", "gems", "--config", host / "besom.yml")
    with held(host / "gems") as pid:
        run = besom(*prune, "--lock-timeout", "0")
        dry = besom(*prune, "--dry-run")
        env = besom(*prune, env={"BESOM_LOCK_TIMEOUT": "0"})
    assert (run.returncode, env.returncode, dry.returncode, files(host)) == (75, 75, 0, before)
    for word in (f"pid {pid}", "--lock-timeout", str(host / "gems")):
        assert word in run.stderr


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_while_waiting_for_the_lock_ends_the_wait(host: Path, signum: int, status: int) -> None:
    with held(host / "gems"):
        run = Terminal("prune", "gems", "--config", host / "besom.yml", "--lock-timeout", "1h")
        run.until(b"Waiting for ")
        os.kill(run.pid, signum)
        text = run.end()
    assert run.status == status
    assert b"Interrupted" in text
    assert len(files(host / "gems")) == 4


def test_every_exit_status_is_in_the_help_and_in_the_guide() -> None:
    statuses = {"0", "1", "2", "3", "75", "129", "130", "143"}
    told = besom("--help").stdout.partition("Exit status:")[2]
    assert set(re.findall(r"\b\d+\b", told)) == statuses
    guide = (Path(__file__).parents[2] / "docs/operating.md").read_text()
    _, _, section = guide.partition("\n## Exit status\n")
    rows = re.findall(r"^\| ([\d, ]+) \|", section.partition("\n## ")[0], re.MULTILINE)
    assert {status for row in rows for status in row.split(", ")} == statuses


def test_a_parent_that_blocks_signals_takes_none_away(host: Path) -> None:
    """A mask is inherited through exec(2), and what it blocks would never be heard."""
    block = "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))"
    going_on = f"{block}; print('blocked', flush=True); os.execv(sys.executable, sys.argv[1:])"
    words = [*BESOM, "prune", str(host / "gems"), "--layout", "files", "--max-entries", "1"]
    with held(host / "gems"):
        command = [sys.executable, "-c", going_on, *words, "--lock-timeout", "20s", "--config", os.devnull]
        with Process(command, stdout=-1, stderr=-1, text=True) as waiting:
            assert waiting.stdout
            assert waiting.stdout.readline() == "blocked\n"
            waiting.send_signal(signal.SIGTERM)
            _, said = waiting.communicate(timeout=60)
    assert waiting.returncode == 128 + signal.SIGTERM, said


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_a_prune_between_two_entries_and_the_next_run_goes_on(
    tmp_path: Path, signum: int, status: int
) -> None:
    store, directories = tmp_path / "store", 20
    for n in range(directories):
        (store / str(n)).mkdir(parents=True)
        for m in range(500):
            (store / str(n) / str(m)).touch()
    age(store, 9)
    words = ("prune", f"{store}/", "--layout", "files", "--max-age", "1d", "--json")
    process = subprocess.Popen([*BESOM, *words], stdout=-1, stderr=-1, text=True)
    while process.poll() is None and len(os.listdir(store)) == directories:
        pass  # until the first directory was emptied and removed
    process.send_signal(signum)
    out, err = process.communicate()
    report = json.loads(out)
    assert process.returncode == status, "over before the signal came? then make the store larger"
    assert report["interrupted"]
    assert report["removed"]["entries"] == directories * 500 - len(files(store))
    assert "Interrupted" in err
    assert "Traceback" not in err
    assert besom(*words).returncode == 0
    assert files(store) == []


BAD = [
    (("prune", "{}/gems"), "--layout"),
    (("prune", "{}/gems", "--layout", "files"), "no limit is set"),
    (("prune", "{}/gems", "--layout", "files", "--max-size", "10X"), "max_size: '10X'"),
    (("prune", "{}/gems", "--layout", "files", "--max-size", "0"), "max_size: '0'"),
    (("prune", "{}/gems", "--layout", "files", "--max-age", "-3d"), "--max-age"),
    (("prune", "{}/gems", "--layout", "files", "--max-age", "3 moons"), "max_age: '3 moons'"),
    (("prune", "{}/gems", "--layout", "files", "--min-free", "100%"), "min_free"),
    (("prune", "{}/gems", "--layout", "blobs", "--max-size", "1"), "--layout"),
    (("prune", "{}/gems", "--layout", "files", "--target-size", "1M"), "target_size needs max_size"),
    (("prune", "{}/nowhere", "--layout", "files", "--max-age", "1d"), "does not exist"),
    (("prune", "{}/gems/0/gem-0", "--layout", "files", "--max-age", "1d"), "is not a directory"),
    (("prune", "{}/link/", "--layout", "files", "--max-age", "1d"), "is a symlink"),
    (("prune", "/", "--layout", "files", "--max-age", "1d"), "is refused"),
    (("prune", "/usr/../etc", "--layout", "files", "--max-age", "1d"), "is refused"),
    (("prune", "nobody", "--max-age", "1d"), "No store is named nobody"),
    (("sweep", "{}/rubies", "--pattern", "a/b"), "pattern: 'a/b'"),
    (("sweep", "{}/rubies", "--pattern", ""), "pattern"),
    (("sweep", "{}/rubies", "--older-than", "0"), "older_than: '0'"),
    (("sweep", "/home"), "is refused"),
    (("sweep", "{}/nowhere"), "does not exist"),
    (("sweep",), "PATH"),
    (("preflight", "{}"), "Nothing is needed"),
    (("preflight", "{}=much"), "'much'"),
    (("preflight", "{}=1M", "--url", "ftp://x/y"), "not an http"),
    (("info", "--config", "{}/nowhere.yml"), "nowhere.yml cannot be read"),
    (("clean", "nobody", "--config", "{}/besom.yml"), "No store is named nobody"),
    (("frobnicate",), "invalid choice"),
    (("prune", "gems", "--lock-timeout", "soon", "--config", "{}/besom.yml"), "--lock-timeout: 'soon'"),
]


@pytest.mark.parametrize(("words", "says"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_sentence_and_exit_2_and_nothing_is_removed(
    host: Path, words: tuple[str, ...], says: str
) -> None:
    (host / "link").symlink_to(host / "gems")
    before = files(host)
    run = besom(*(word.replace("{}", str(host)) for word in words))
    assert (run.returncode, run.stdout, files(host)) == (2, "", before)
    assert says in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_preflight_exits_3_and_says_how_much_more_is_needed(tmp_path: Path) -> None:
    run = besom("preflight", f"{tmp_path}/new/dir=8191P")
    assert run.returncode == 3
    assert re.search(
        r"Insufficient disk space on \S+/new/dir: required 8\.0 EiB, available [\d.]+ \wiB, "
        r"[\d.]+ \wiB more needed\. Free up space or choose another location\.",
        run.stderr,
    )
    assert besom("preflight", f"{tmp_path}=1K", "--inodes", "1").returncode == 0


def test_a_hostile_name_cannot_break_a_line_of_the_output(tmp_path: Path) -> None:
    area = tmp_path / "area"
    os.makedirs(os.fsencode(area) + b"/.temp-\n\x1b[31mRemoved: etc\xff")
    age(area, 3)
    run = besom("sweep", area, "--dry-run")
    assert run.stdout.splitlines()[1].startswith(f"  {area}/.temp-\\x0a\\x1b[31mRemoved: etc\\xff/ (stale, ")
    assert len(run.stdout.splitlines()) == 3


def test_a_reader_that_goes_away_is_no_traceback(host: Path) -> None:
    line = " ".join(BESOM) + f" info --config {host}/besom.yml --json | true"
    run = subprocess.run(["sh", "-c", line], capture_output=True, text=True)
    assert "Traceback" not in run.stderr


def test_help_answers_for_every_command() -> None:
    text = besom("--help").stdout
    for command in ("preflight", "sweep", "prune", "clean", "info", "list", "stats", "purge"):
        assert command in text
        assert "Exit status" in besom(command, "--help").stdout
