"""The clock is put forward and back, in every time zone, under besom's own command and its daemon.

What is there, and what passes, is real: clock.c adds to the wall clock of the program under test, and to
nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from besom_host.clock import Clock as SteadyClock

from ..host.conftest import Held, need
from ..host.host import BESOM, DAY, PATIENCE_S, Host, Process
from ..host.told import told
from .conftest import ALL, Tried

TOP = Path(__file__).parents[2]
YEAR = 365 * DAY
STEPS = 100 if ALL else 5


class Clock:
    """The wall clock of whatever runs with env: the real one, and what set() adds to it, in seconds."""

    def __init__(self, library: Path, file: Path) -> None:
        self.file = file
        self.env = {"LD_PRELOAD": str(library), "TEST_CLOCK": str(file)}
        file.write_bytes(bytes(8))

    def set(self, ahead: float) -> None:
        with self.file.open("r+b") as stream:
            stream.write(int(ahead).to_bytes(8, sys.byteorder, signed=True))

    def at(self, date: str) -> None:
        """Set it to a date such as 2099-12-31T23:59:00."""
        done = subprocess.run(["date", "-u", "-d", f"{date}Z", "+%s"], capture_output=True, check=True)
        self.set(int(done.stdout) - time.time())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("clock") / "clock.so"
    source = Path(__file__).with_name("clock.c")
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([need("gcc"), *flags, "-o", made, source, "-ldl"], check=True)
    return made


@pytest.fixture
def clock(tmp_path: Path, library: Path) -> Clock:
    return Clock(library, tmp_path / "clock")


def besom(clock: Clock, *words: object, **env: str) -> dict[str, object]:
    """The report of a command that came to its end."""
    done = subprocess.run(
        [*BESOM, *map(str, words), "--json"],
        env={**os.environ, **clock.env, "BESOM_CONFIG": os.devnull, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    return dict(json.loads(done.stdout))


def names(report: dict[str, object]) -> list[str]:
    victims = report["victims"]
    assert isinstance(victims, list)
    return sorted(Path(one["path"]).name for one in victims)


# 1901 and 2446 are the ends of what ext4 holds; 2038 is that of 32 bits.
MOMENTS = (-(2**31), -DAY, -1, 0, 1, 2**31 - 1, 2**31, 2**32 + 5, 4102444800, 2**33)


def make(top: Path, layout: str, moments: Iterable[float]) -> dict[str, float]:
    """One entry for each moment, which is its mtime; the moments that this file system holds, by name."""
    found = {}
    for number, moment in enumerate(moments):
        path = top / f"{'.temp-' if layout == 'sweep' else ''}{number:02}"
        if layout == "files":
            path.write_text("x")
        else:
            path.mkdir(parents=True)
        os.utime(path, (moment, moment))
        found[path.name] = path.stat().st_mtime
    return found


@pytest.mark.parametrize("layout", ["files", "trees", "sweep"])
@pytest.mark.parametrize("date", ["", "1970-01-01T12:00:00", "2038-01-19T03:14:08", "2099-12-31T23:59:59"])
def test_by_age_goes_what_is_older_and_nothing_else(
    tmp_path: Path, clock: Clock, tried: Tried, layout: str, date: str
) -> None:
    if date:
        clock.at(date)
    offset = int.from_bytes(clock.file.read_bytes(), sys.byteorder, signed=True)
    now = time.time() + offset
    store = tmp_path / "store"
    store.mkdir()
    entries = make(store, layout, (*MOMENTS, now - DAY - 600, now - DAY + 600, now, now + DAY, now + YEAR))
    old = sorted(name for name, moment in entries.items() if moment < now - DAY)
    words: tuple[object, ...] = ("prune", store, "--layout", layout, "--max-age", "1d")
    if layout == "sweep":
        words = ("sweep", store, "--older-than", "1d")
    assert names(besom(clock, *words, "--dry-run")) == old
    assert names(besom(clock, *words)) == old
    assert sorted(path.name for path in store.iterdir()) == sorted(set(entries) - set(old))
    tried("time: entries with odd mtimes, judged at odd dates", len(entries))


ZONES = ("UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Kiritimati", "Asia/Kathmandu", "Not/There", ":")
# Europe/Berlin: an hour twice, an hour left out; St John's: half an hour off.
CHANGES = ("2026-10-25T00:30:00", "2026-10-25T01:30:00", "2027-03-28T00:59:58", "2027-03-14T05:30:00")


@pytest.mark.parametrize("date", CHANGES if ALL else CHANGES[1:2])
def test_no_time_zone_changes_what_goes(tmp_path: Path, clock: Clock, tried: Tried, date: str) -> None:
    clock.at(date)
    now = time.time() + int.from_bytes(clock.file.read_bytes(), sys.byteorder, signed=True)
    files, sessions = tmp_path / "files", tmp_path / "sessions"
    files.mkdir()
    sessions.mkdir()
    make(files, "files", (now - DAY + age for age in (-5400, -3000, -600, 600, 3000, 5400)))
    for number, age in enumerate((-5400, -3000, -600, 600, 3000, 5400)):
        for zone, shift in (("", 0), ("Z", 0), ("+02:00", 7200), ("-03:30", -12600)):
            at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now - DAY + age + shift))
            id_ = f"{number}{zone.replace(':', '') or 'none'}"
            (sessions / f"{id_}.json").write_text(json.dumps({"created_at": at + zone}))
            (sessions / f"{id_}.log").write_text("x")
    for zone in ZONES:
        found = besom(clock, "prune", files, "--layout", "files", "--max-age", "1d", "--dry-run", TZ=zone)
        assert names(found) == ["00", "01", "02"], zone
        words = ("prune", sessions, "--layout", "sessions", "--max-age", "1d", "--dry-run")
        found = besom(clock, *words, TZ=zone)
        assert {name[0] for name in names(found)} == {"0", "1", "2"}, zone
        assert len(names(found)) == 12, zone
        tried("time: plans in other time zones", 2)


@pytest.mark.parametrize("step", [YEAR, -YEAR, 80 * YEAR])
def test_a_clock_that_is_set_makes_no_wait_longer_or_shorter(
    tmp_path: Path, clock: Clock, tried: Tried, step: int
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    words = ["prune", str(store), "--layout", "files", "--max-age", "1d", "--lock-timeout", "2s"]
    held, began, sets = Held(store), time.monotonic(), 0
    try:
        with Process(
            [*BESOM, *words], env={**os.environ, **clock.env}, stderr=subprocess.PIPE, text=True
        ) as one:
            while True:
                # Back and forth all the time that it waits.
                sets += 1
                clock.set(step * (sets % 2))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    errors = one.communicate(timeout=0.05)[1]
                    break
                assert time.monotonic() < began + PATIENCE_S, "it waits for ever"
    finally:
        held.release()
    assert one.returncode == 75, errors
    assert re.search(rf"locked by pid {held.pid} .*; waited 2(\.\d)?s\. ", errors), errors
    assert time.monotonic() - began >= 2
    tried("time: settings of the clock while a lock was waited for", sets)


HOUR = 3600


@pytest.mark.parametrize(
    "steps",
    [
        # (hours since boot, hours by which the wall clock is ahead, hours that are not believed)
        [(1, 0.9, 0), (2, 1.8, 0), (3, 2.7, 0)],
        [(1, 1.1, 1.1), (24, 1.1, 1.1), (25.1, 1.1, 0), (26, 2, 0)],
        [(1, 99, 99), (2, 0, 0), (3, 99, 99), (26, 99, 99), (27, 99, 0)],
        [(1, 2, 2), (24, 99, 99), (26, 99, 99), (48, 99, 0)],
        [(1, -99, 0), (2, 0, 99), (26, 0, 0)],
    ],
)
def test_a_jump_is_believed_after_a_day(steps: list[tuple[float, float, float]]) -> None:
    now = {"steady": 0, "wall": 10**18}
    clock = SteadyClock(lambda: now["wall"], lambda: now["steady"])
    for hours, ahead, doubted in steps:
        now["steady"] = int(hours * HOUR * 10**9)
        now["wall"] = 10**18 + now["steady"] + int(ahead * HOUR * 10**9)
        assert clock.ahead() == pytest.approx(doubted * HOUR * 10**9), (hours, ahead)
        assert clock.now() == now["wall"] - clock.ahead()


class Keeper:
    """A host whose daemon removes by age, under a clock that can be set."""

    def __init__(self, host: Host, clock: Clock, command: list[str]) -> None:
        self.host, self.clock = host, clock
        self.temps, self.sessions = host.path / "temps", host.path / "sessions"
        self.log = host.path / "log"
        for path in (self.temps, self.sessions):
            path.mkdir()
        gems = {"name": "gems", "path": str(host.store), "layout": "files", "max_age": "1d"}
        sessions = {"name": "sessions", "path": str(self.sessions), "layout": "sessions", "max_age": "1d"}
        host.configure(
            stores=[gems, sessions],
            temps=[{"path": str(self.temps), "older_than": "1d"}],
            log={"format": "clef", "file": str(self.log)},
        )
        host.env = {**clock.env, "PYTHONPATH": str(TOP)}
        host.fill(3)
        self.fresh()
        words = ["--config", str(host.file), "daemon", "run"]
        host.processes.append(subprocess.Popen([*command, *words], env=host.environment()))
        host.until(lambda now: now["runs"] == 1)
        self.runs = 1

    def fresh(self) -> None:
        (self.host.store / "fresh").write_text("x")
        (self.temps / ".temp-fresh").mkdir()
        (self.sessions / "fresh.log").write_text("x")
        (self.sessions / "fresh.json").write_text(json.dumps({"created_at": time.time()}))

    def left(self) -> list[str]:
        paths = (self.host.store, self.temps, self.sessions)
        return sorted(path.name for top in paths for path in top.iterdir())

    def run_once(self) -> None:
        """A run that was asked for, and waited for, through the command."""
        assert self.host.daemon("trigger").status == 0
        assert self.host.daemon("wait", "--timeout", "60s").status == 0
        self.runs += 1

    def doubts(self) -> int:
        return sum(line["event"] == "clock_doubted" for line in told(self.log))


FRESH = [".temp-fresh", "fresh", "fresh.json", "fresh.log"]


@pytest.mark.parametrize("step", [2 * DAY, 12 * YEAR, 80 * YEAR] if ALL else [80 * YEAR])
def test_a_clock_that_jumps_forward_makes_nothing_old(
    host: Host, clock: Clock, tried: Tried, step: int
) -> None:
    keeper = Keeper(host, clock, BESOM)
    assert keeper.left() == FRESH
    clock.set(step)
    for _ in range(2):
        keeper.run_once()
    assert keeper.left() == FRESH
    assert keeper.doubts() == 2
    # What was old before that goes as before.
    host.fill(2)
    keeper.run_once()
    assert keeper.left() == FRESH
    assert host.daemon("reload").status == 0
    keeper.run_once()
    assert keeper.left() == [], "a person who says that the clock is right is believed"
    assert keeper.doubts() == 3
    tried("time: runs of a daemon whose clock was set", keeper.runs)


def test_a_clock_that_is_put_back_removes_nothing_and_stops_nothing(
    host: Host, clock: Clock, tried: Tried
) -> None:
    keeper = Keeper(host, clock, BESOM)
    for step in (-3600, -40 * YEAR, -80 * YEAR):
        clock.set(step)
        keeper.run_once()
        assert keeper.left() == FRESH
        # A session of the future is an anomaly, which somebody is to look at: no reason to fail.
        assert host.daemon("status")["last_run"]["outcome"] == "done"
        shown = subprocess.run(host.command("daemon", "status"), env=host.environment(), check=False)
        assert shown.returncode == 0
    clock.set(0)
    keeper.run_once()
    assert keeper.left() == FRESH
    assert host.daemon("stop").status == 0
    tried("time: runs of a daemon whose clock was set", keeper.runs)


def test_a_clock_that_is_set_at_random_costs_nothing_young(host: Host, clock: Clock, tried: Tried) -> None:
    keeper = Keeper(host, clock, BESOM)
    chance = random.Random(7)  # noqa: S311
    for _ in range(STEPS):
        clock.set(chance.choice((-1, 1)) * chance.choice((0, 2 * 3600, DAY, 40 * DAY, YEAR, 80 * YEAR)))
        keeper.run_once()
        assert keeper.left() == FRESH
    tried("time: runs of a daemon whose clock was set", keeper.runs)


def test_a_daemon_that_believes_every_clock_is_noticed(host: Host, clock: Clock, tried: Tried) -> None:
    keeper = Keeper(host, clock, [sys.executable, "-m", "tests.faults.mutants", "every clock believed"])
    assert keeper.left() == FRESH
    clock.set(80 * YEAR)
    keeper.run_once()
    assert keeper.left() != FRESH
    tried("time: planted faults that were noticed")
