# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Real directories, real lock holders and one fixed clock for the engine's tests."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from besom.policy import Policy, Store, Temps
from besom.prune import Request, prune
from besom.report import Report
from besom.run import Run
from besom.sweep import sweep

DAY = 86400 * 10**9
# Every test's "now": ages in tests are days before it.
NOW = 20_000 * DAY

FIXTURES_ARE_FINE = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
# The same examples every time: a failure in CI is one that anybody can have again.
settings.register_profile(
    "besom", deadline=None, derandomize=True, database=None, suppress_health_check=FIXTURES_ARE_FINE
)
# On every Python but one: what a value or a tree makes of besom rarely depends on the Python.
settings.register_profile("few", settings.get_profile("besom"), max_examples=20)
settings.register_profile(
    "explore", deadline=None, max_examples=1500, database=None, suppress_health_check=FIXTURES_ARE_FINE
)
settings.load_profile("besom")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if os.geteuid() != 0 and item.get_closest_marker("root"):
        pytest.skip(f"{item.name} needs root (mounts, device nodes, attributes, other users)")


class Area:
    """A directory to be filled; names may be bytes, ages are days before now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()

    def at(self, name: str | bytes) -> str:
        return os.path.join(str(self.path), os.fsdecode(name))

    def file(self, name: str | bytes, days: float = 0, size: int = 4096, used: float | None = None) -> str:
        """A file of size bytes, last written days ago and last read used days ago (if not given: days)."""
        path = self.at(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(b"x" * size)
        return age(path, days, used)

    def dir(self, name: str | bytes, days: float = 0) -> str:
        path = self.at(name)
        os.makedirs(path, exist_ok=True)
        return age(path, days)

    def symlink(self, name: str | bytes, target: str, days: float = 0) -> str:
        path = self.at(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(target, path)
        return age(path, days)

    def tree(self, name: str, days: float = 0, files: dict[str, int] | None = None) -> str:
        """A directory with files (path: size), all of it last written days ago."""
        os.makedirs(self.at(name), exist_ok=True)
        for path, size in ({"data": 4096} if files is None else files).items():
            self.file(os.path.join(name, path), days, size)
        return age_tree(self.at(name), days)

    def names(self) -> list[str]:
        """Everything below, as sorted relative paths; changes no atime."""
        found = []
        todo = [""]
        while todo:
            directory = todo.pop()
            fd = os.open(self.at(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_NOATIME)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        found.append(os.path.join(directory, entry.name))
                        if entry.is_dir(follow_symlinks=False):
                            todo.append(found[-1])
            finally:
                os.close(fd)
        return sorted(found)

    def files(self) -> set[str]:
        """Everything below that is no directory, as relative paths."""
        return {name for name in self.names() if not stat.S_ISDIR(os.lstat(self.at(name)).st_mode)}


def age(path: str, days: float, used: float | None = None) -> str:
    read = days if used is None else used
    os.utime(path, ns=(NOW - int(read * DAY), NOW - int(days * DAY)), follow_symlinks=False)
    return path


def age_tree(path: str, days: float) -> str:
    for top, dirs, files in os.walk(path, topdown=False):
        for name in dirs + files:
            age(os.path.join(top, name), days)
    return age(path, days)


@pytest.fixture
def now() -> int:
    return NOW


@pytest.fixture
def area(tmp_path: Path) -> Area:
    """The directory that is to be pruned or swept."""
    return Area(tmp_path / "area")


@pytest.fixture
def outside(tmp_path: Path) -> Area:
    """A directory beside it, of which nothing may ever change."""
    return Area(tmp_path / "outside")


@pytest.fixture
def make_area(tmp_path: Path) -> Callable[[str], Area]:
    return lambda name: Area(tmp_path / name)


@pytest.fixture
def session(now: int) -> Callable[..., None]:
    """session(area, id, days=1, blobs={'.dat': 4096}, **values): one created days ago; `/` ends a tree."""

    def make(area: Any, id_: str, days: float = 1, blobs: Any = None, **values: Any) -> None:
        values = {"created_at": (now - int(days * DAY)) / 1e9, **values}
        with open(area.at(f"{id_}.json"), "w") as stream:
            json.dump(values, stream)
        for name, size in ({".dat": 4096} if blobs is None else blobs).items():
            if name.endswith("/"):
                area.tree(id_ + name[:-1], days, {"one": size, "sub/two": size})
            else:
                area.file(id_ + name, days, size)
        os.utime(area.at(f"{id_}.json"), ns=(now, now - int(days * DAY)))

    return make


@pytest.fixture
def make_run() -> Callable[..., Run]:
    """A Run at the tests' now, that does not wait for locks unless told to."""
    return lambda **options: Run(**{"now": lambda: NOW, "lock_timeout": 0.0, **options})


@pytest.fixture
def request_for() -> Callable[..., Request]:
    """request_for(area, layout='files', empty=False, **limits), limits as a user writes them."""

    def make(area: Area, layout: str = "files", empty: bool = False, **limits: Any) -> Request:
        return Request(Store(str(area.path), layout, Policy.from_mapping(limits, layout=layout)), empty=empty)

    return make


@pytest.fixture
def pruned(make_run: Callable[..., Run], request_for: Callable[..., Request]) -> Callable[..., Report]:
    """pruned(area, layout='files', dry_run=False, **limits): the report of one prune."""

    def run(area: Area, layout: str = "files", dry_run: bool = False, **limits: Any) -> Report:
        return prune(request_for(area, layout, **limits), make_run(dry_run=dry_run))

    return run


@pytest.fixture
def swept(make_run: Callable[..., Run]) -> Callable[..., Report]:
    """swept(area, *patterns, days=1, dry_run=False): the report of one sweep."""

    def run(area: Area, *patterns: str, days: float = 1, dry_run: bool = False) -> Report:
        temps = Temps(str(area.path), patterns or (".temp-*",), int(days * DAY))
        return sweep(temps, make_run(dry_run=dry_run))

    return run


def reasons(noted: Any) -> dict[str, str]:
    """{name: reason} of what a report kept; the name without its directory."""
    return {os.path.basename(item["path"]): item["reason"] for item in noted.items}


@pytest.fixture(name="reasons")
def reasons_fixture() -> Callable[[Any], dict[str, str]]:
    return reasons


@pytest.fixture
def snapshot() -> Callable[[Area], dict[str, tuple[Any, ...]]]:
    """snapshot(area): all that stat tells of everything in it, atimes included."""

    def take(area: Area) -> dict[str, tuple[Any, ...]]:
        found = {}
        for name in [".", *area.names()]:
            st = os.lstat(area.at(name))
            found[name] = (
                *(st.st_ino, st.st_mode, st.st_uid, st.st_nlink, st.st_size, st.st_blocks),
                *(st.st_atime_ns, st.st_mtime_ns, st.st_ctime_ns),
            )
        return found

    return take


@pytest.fixture
def allocated() -> Callable[..., int]:
    """allocated(*areas, directories=False): bytes of all inodes in them, each once, as du counts."""

    def count(*areas: Area, directories: bool = False) -> int:
        inodes = {}
        for one in areas:
            for name in one.names():
                st = os.lstat(one.at(name))
                if directories or not stat.S_ISDIR(st.st_mode):
                    inodes[st.st_dev, st.st_ino] = st.st_blocks * 512
        return sum(inodes.values())

    return count


class Held:
    """A path locked by `flock PATH ...` of util-linux until release()."""

    def __init__(self, path: str, *options: str) -> None:
        # The line comes once the lock is won; the command ends when its input does.
        command = ["flock", *options, path, "sh", "-c", "echo held; exec cat"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"held\n"

    @property
    def pid(self) -> int:
        return self.process.pid

    def release(self) -> None:
        self.process.communicate(timeout=10)


@pytest.fixture
def hold() -> Iterator[Callable[..., Held]]:
    """hold(path, *options): keep path locked by a process of its own, until .release() or the test's end."""
    with ExitStack() as stack:

        def start(path: str | os.PathLike[str], *options: str) -> Held:
            held = Held(os.fspath(path), *options)
            stack.callback(lambda: held.process.poll() is None and held.release())
            return held

        yield start


@pytest.fixture
def is_locked() -> Callable[[str], bool]:
    """is_locked(path): whether flock on it is held by anybody."""

    def ask(path: str) -> bool:
        fd = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(fd)
        return False

    return ask


@pytest.fixture
def mount() -> Iterator[Callable[..., None]]:
    """mount(*arguments): mount(8) with them; the last is the mount point, unmounted at the end."""
    with ExitStack() as stack:

        def do(*arguments: str | os.PathLike[str]) -> None:
            subprocess.run(["mount", *arguments], check=True)
            stack.callback(subprocess.run, ["umount", arguments[-1]], check=True)

        yield do


@pytest.fixture
def chattr(tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """chattr('+i', path) until the end of the test."""

    def do(mode: str, path: str) -> None:
        result = subprocess.run(["chattr", mode, path], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(f"chattr {mode} does not work on this file system: {result.stderr.strip()}")

    yield do
    # Wherever it is by now, it could not be removed.
    subprocess.run(["chattr", "-Rf", "-ia", tmp_path])


class Saboteur:
    """Acts just before a system call of this process: Python's audit events stand at each that matters."""

    CALLS = ("open", "os.scandir", "os.remove", "os.rmdir", "os.rename")

    def __init__(self) -> None:
        self._act: Callable[[], None] | None = None
        self._event, self._left = "", 0
        sys.addaudithook(self._hear)

    def _hear(self, event: str, _arguments: tuple[Any, ...]) -> None:
        if self._act and (event == self._event or (not self._event and event in self.CALLS)):
            self._left -= 1
            if self._left < 0:
                act, self._act = self._act, None
                act()

    @contextmanager
    def before(self, nth: int, act: Callable[[], None], event: str = "") -> Iterator[Callable[[], bool]]:
        """Run act before the nth event (of CALLS, or of the one named); gives what tells whether it ran."""
        self._act, self._event, self._left = act, event, nth
        try:
            yield lambda: self._act is None
        finally:
            self._act = None

    def then(self, event: str, act: Callable[[], None]) -> None:
        """For use in an act: run another before the next such event."""
        self._act, self._event, self._left = act, event, 0


@pytest.fixture(scope="session")
def saboteur() -> Saboteur:
    # An audit hook stays for the life of the process.
    return Saboteur()


@contextmanager
def _deep(top: str, depth: int, name: str) -> Iterator[int]:
    fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(depth):
            os.mkdir(name, dir_fd=fd)
            step = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = step
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def deep() -> Iterator[Callable[..., Any]]:
    """with deep(top, depth, name) as fd: a chain of directories, fd open on the deepest; removed by rm(1)."""
    tops: list[str] = []

    def make(top: str, depth: int, name: str = "d") -> Any:
        tops.append(top)
        return _deep(top, depth, name)

    yield make
    for top in tops:
        # pytest's own removal of old temporary directories cannot go that deep.
        subprocess.run(["rm", "-rf", "--", top], check=True)
