"""Signals at random moments into every command: it ends, says so, and leaves nothing half done."""

from __future__ import annotations

import fcntl
import io
import json
import os
import random
import re
import signal
import subprocess
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import pytest

from besom_host.state import IDLE, StateDir

from ..host.conftest import Mount
from ..host.host import PATIENCE_S, Host, await_exit
from ..host.mirror import serve
from ..host.own_run import own_run
from .conftest import ALL, Tried

# How many signals, or pairs of them, for each command; those that fetch take their time.
ROUNDS, FEW_ROUNDS = (12, 4) if ALL else (4, 2)
FILES, TREES, TEMPS, LEAVES = 60, 15, 10, 4
KEPT = 3
OLD_S = 10 * 86400
DRAIN = {"daemon_timeout": "20s", "unmount_timeout": "2s", "prune_timeout": "20s"}
# What Python says, and ends with 1, when SIGINT meets it on its way to the program.
PYTHON_STARTS = ("Fatal Python error: init_import_site", "Could not import runpy module")
VOLLEYS = (
    (signal.SIGTERM,),
    (signal.SIGINT,),
    (signal.SIGTERM, signal.SIGINT),
    (signal.SIGINT, signal.SIGINT),
    (signal.SIGTERM, signal.SIGTERM),
)


class Target(Host):
    """A host with a store of files, one of trees, and a temp area."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        super().__init__(path)
        self.stack, self.offered = ExitStack(), 0
        # Compiled once: what takes the time is to be besom's work.
        self.env = {
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": str(path.parent.parent / "pycache"),
        }
        self.trees, self.temps = path / "trees", path / "temps"
        self.mount = path / "mnt"
        self.fetched, self.apps = path / "fetched", path / "apps"
        for one in (self.trees, self.temps, self.mount, self.fetched, self.apps):
            one.mkdir()
        self.configure(
            stores=[
                {"name": "files", "path": str(self.store), "layout": "files", "max_entries": KEPT},
                {"name": "trees", "path": str(self.trees), "layout": "trees", "max_entries": KEPT},
            ],
            temps=[{"path": str(self.temps)}],
            drain=DRAIN,
        )

    @property
    def state(self) -> StateDir:
        return StateDir(str(self.state_dir))

    def make_work(self) -> None:
        """Far more than the limits allow, all of it old."""
        self.fill(FILES)
        for area, count, prefix in ((self.trees, TREES, "tree"), (self.temps, TEMPS, ".temp-")):
            for number in range(count):
                tree = area / f"{prefix}{number}"
                if not tree.exists():
                    tree.mkdir()
                    self.fill(LEAVES, tree)
                    when = time.time() - OLD_S
                    os.utime(tree, (when, when))

    def offer(self) -> None:
        """A mirror with new versions of what is to be fetched and installed; what is there is old."""
        if not self.offered:
            self.mirror = self.stack.enter_context(serve())
            self.url = f"{self.mirror.url}/app.tgz"
            self.manifest = self.path / "manifest.json"
        self.offered += 1
        names = [f"{number}" for number in range(TREES)]
        for name in names:
            self.mirror.add(f"/{name}", f"{name} {self.offered}".encode() * 1000)
        artifacts = [{"url": f"{self.mirror.url}/{name}", "dest": name} for name in names]
        self.manifest.write_text(json.dumps({"store": str(self.fetched), "artifacts": artifacts}))
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name in names[:LEAVES]:
                info = tarfile.TarInfo(name)
                info.size = 10
                archive.addfile(info, io.BytesIO(f"{self.offered:010}".encode()))
        self.mirror.add("/app.tgz", stream.getvalue())

    def assert_fetched_whole(self) -> None:
        """Each file and tree of one version; nothing half done beside them."""
        for path in self.fetched.iterdir():
            known = {f"{path.name} {version}".encode() * 1000 for version in range(1, self.offered + 1)}
            assert path.read_bytes() in known, path
        for path in self.apps.iterdir():
            assert path.name == "app" or path.name.startswith(".besom-old-app-"), path
            found = [one.read_text() for one in path.iterdir() if one.name.isdecimal()]
            assert len(found) == LEAVES, path
            assert len(set(found)) == 1, path

    def close(self) -> None:
        self.stack.close()
        super().close()

    def assert_whole(self) -> None:
        """Each tree with all that it had, or not there; nothing of besom's own is left."""
        self.assert_fetched_whole()
        for area in (self.trees, self.temps):
            for tree in area.iterdir():
                assert not tree.name.startswith(".besom-"), tree
                assert len(list(tree.iterdir())) == LEAVES, tree
        assert not [name for name in self.names() if name.startswith(".")]

    def assert_unlocked(self) -> None:
        for path in (self.store, self.trees, self.temps, *self.temps.iterdir(), self.fetched, self.apps):
            fd = os.open(path, os.O_RDONLY)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(fd)
        assert not self.state.is_held("housekeep.pid")

    def at_work(self) -> list[str]:
        """The command lines of what runs for this host."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes()
                if str(self.file).encode() in words and b"besom_host" in words:
                    found.append(f"{entry.name}: {words.decode().replace(chr(0), ' ').strip()}")
        return found

    def keep_daemon(self) -> None:
        """Have an idle daemon, whatever the last round made of the one before."""
        now = self.state.observe()
        if now.alive and now.state != IDLE:
            self.end_daemon()
        if not self.state.observe().alive:
            self.popen("daemon", "run", stderr=subprocess.DEVNULL)
            self.until(lambda now: now["state"] == IDLE and now["runs"] > 0)

    def end_daemon(self) -> None:
        now = self.state.observe()
        if now.process is not None:
            now.process.send(signal.SIGTERM)
            await_exit(now.process.pid)

    def ask_daemon(self) -> None:
        self.keep_daemon()
        self.state.ask()
        process = self.state.observe().process
        assert process is not None
        process.send(signal.SIGUSR1)


@dataclass(frozen=True)
class Scene:
    """A command and what stands before it; {x} in a word is the attribute x of the host.

    statuses: of a run that no signal meets. daemon: whether one may run after it.
    """

    words: str
    prepare: Callable[[Target], None] = Target.make_work
    statuses: tuple[int, ...] = (0,)
    daemon: bool = False
    rounds: int = ROUNDS


def nothing(_host: Target) -> None:
    """Nothing to prepare."""


SCENES = {
    scene.words: scene
    for scene in (
        Scene("preflight {store}=1K {trees}=1K --reserve 1%", nothing),
        Scene("sweep {temps}"),
        Scene("prune files"),
        Scene("prune {trees}/ --layout trees --max-entries 3"),
        Scene("clean"),
        Scene("clean --all --yes"),
        Scene("info"),
        Scene("sync {manifest} --parallel 8", Target.offer, rounds=FEW_ROUNDS),
        Scene("install {url} --into {apps} --name app --keep 1", Target.offer, rounds=FEW_ROUNDS),
        Scene("housekeep"),
        Scene("config check", nothing),
        Scene("unmount {path}/absent", nothing),
        Scene("daemon start", Target.end_daemon, daemon=True),
        Scene("daemon trigger --start", Target.end_daemon, daemon=True),
        Scene("daemon stop", Target.keep_daemon, daemon=True),
        Scene("daemon status", Target.keep_daemon, daemon=True),
        Scene("daemon trigger", Target.keep_daemon, daemon=True),
        Scene("daemon wait", Target.ask_daemon, daemon=True),
        Scene("daemon reload", Target.keep_daemon, daemon=True),
    )
}


def words_of(scene: Scene, host: Target) -> list[str]:
    return [word.format(**vars(host)) for word in scene.words.split()]


def is_listening(pid: int) -> bool:
    """Whether besom's own handlers are there, or what was done is done: proc(5), SigCgt and SigIgn."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    masks = [int(mask, 16) for mask in re.findall(r"^Sig(?:Cgt|Ign):\s*(\w+)$", text, re.MULTILINE)]
    return any(mask >> (signal.SIGTERM - 1) & 1 for mask in masks)


def judge(scene: Scene, status: int, stderr: str, volley: Iterable[signal.Signals], listening: bool) -> None:
    """What a command that was met by signals may come to, and what it has to say then."""
    if "Traceback" in stderr or "KeyboardInterrupt" in stderr or status < 0:
        # Python itself was still starting: the kernel's default, or Python's own handler of SIGINT.
        assert not listening, (status, stderr)
        cut = any(said in stderr for said in PYTHON_STARTS)
        # Where Python can raise nothing it says so and goes on, and so does the command.
        went_on = "Exception ignored in" in stderr and status in scene.statuses
        assert -status in volley or cut or went_on, (status, stderr)
        assert not re.search(r'/(besom|besom_host)/\w+\.py", line \d+, in (?!<module>)', stderr), stderr
        return
    if status in scene.statuses:
        return
    assert status - 128 in volley, (status, stderr)
    lines = [line for line in stderr.splitlines() if "Interrupted." in line]
    assert lines, stderr
    assert lines[0].startswith("besom: Interrupted. "), stderr
    assert "another run goes on from there" in stderr or "run it again" in stderr, stderr


def strike(process: subprocess.Popen[bytes], delay: float, volley: Sequence[int], gap: float) -> bool:
    """Send the signals after so many seconds, unless it has ended; whether besom listened by then.

    A delay of 0: as soon as besom listens.
    """
    with suppress(subprocess.TimeoutExpired):
        process.wait(delay)
    while not delay and process.poll() is None and not is_listening(process.pid):
        os.sched_yield()
    listening = is_listening(process.pid)
    for number, signum in enumerate(volley):
        if number and gap:
            with suppress(subprocess.TimeoutExpired):
                process.wait(gap)
        process.send_signal(signum)
    return listening


def play_round(
    scene: Scene, host: Target, dice: random.Random, delay: float, after: Callable[[Target], None]
) -> int:
    """One run of the command, met by signals; the state after it; and one run more. Gives the status."""
    scene.prepare(host)
    words = words_of(scene, host)
    volley = dice.choice(VOLLEYS)
    with host.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        listening = strike(process, delay, volley, dice.choice((0, 0, dice.uniform(0, 0.03))))
        _, said = process.communicate(timeout=PATIENCE_S)
    host.processes.remove(process)
    judge(scene, process.returncode, said.decode(), volley, listening)
    after(host)
    left = leftovers(scene, host)
    assert not left, (left, volley, delay, process.returncode, said)
    if not scene.daemon:
        host.assert_whole()
        host.assert_unlocked()
    again = host.besom(*words)
    assert again.status in scene.statuses, (again.status, again.stderr)
    return process.returncode


def leftovers(scene: Scene, host: Target) -> list[str]:
    """What runs and should not: anything but a daemon that status knows, or that is at its end."""
    found = host.at_work()
    daemons = [one for one in found if scene.daemon and one.endswith("daemon run")]
    if not host.state.observe().alive:
        for daemon in daemons:
            await_exit(int(daemon.partition(":")[0]))
    return [one for one in found if one not in daemons]


def length_of(scene: Scene, host: Target) -> float:
    """How long an uninterrupted run takes, in seconds."""
    scene.prepare(host)
    began = time.monotonic()
    done = subprocess.run(
        host.command(*words_of(scene, host)),
        env=host.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    assert done.returncode in scene.statuses, done.stderr
    return time.monotonic() - began


def play(
    scene: Scene,
    host: Target,
    seed: str,
    rounds: int,
    after: Callable[[Target], None] = nothing,
) -> Counter[int]:
    """Rounds whose moments are spread over a run; gives how often each exit status was seen."""
    dice = random.Random(seed)  # noqa: S311
    # The first run may have to compile.
    length = min(length_of(scene, host) for _ in range(2))
    moments = [0.0, *((number + dice.random()) / rounds * length for number in range(1, rounds))]
    dice.shuffle(moments)
    return Counter(play_round(scene, host, dice, moment, after) for moment in moments)


@pytest.mark.parametrize("words", SCENES)
def test_a_signal_leaves_nothing_half_done(tmp_path: Path, words: str, tried: Tried) -> None:
    hosts = [Target(tmp_path / name) for name in "ab"]
    try:
        with ThreadPoolExecutor(len(hosts)) as pool:
            runs = [
                pool.submit(
                    play, SCENES[words], host, f"{words} {host.path.name}", SCENES[words].rounds // len(hosts)
                )
                for host in hosts
            ]
            seen = sum((run.result() for run in runs), Counter())
    finally:
        for host in hosts:
            host.end_daemon()
            host.close()
    assert seen[130] + seen[143] > 0, seen
    tried("commands met by signals", sum(seen.values()))


def test_a_signal_while_the_daemon_runs_is_its_normal_end(tmp_path: Path) -> None:
    host = Target(tmp_path / "host")
    scene = Scene("daemon run")
    dice = random.Random("daemon run")  # noqa: S311
    try:
        host.make_work()
        began = time.monotonic()
        host.keep_daemon()
        length = time.monotonic() - began
        host.end_daemon()
        for number in range(ROUNDS):
            host.make_work()
            volley = dice.choice(VOLLEYS)
            with host.popen("daemon", "run", stderr=subprocess.PIPE) as daemon:
                moment = (number + dice.random()) / ROUNDS * length
                listening = strike(daemon, moment, volley, dice.choice((0, 0, dice.uniform(0, 0.03))))
                _, said = daemon.communicate(timeout=PATIENCE_S)
            host.processes.remove(daemon)
            judge(scene, daemon.returncode, said.decode(), volley, listening)
            assert not host.at_work()
            assert not host.state.observe().alive
            host.assert_whole()
            host.assert_unlocked()
        host.keep_daemon()
        assert len(host.names()) == KEPT
    finally:
        host.end_daemon()
        host.close()


@pytest.mark.root
def test_a_signal_while_a_mount_is_busy_leaves_it_mounted(tmp_path: Path, mount: Mount, tried: Tried) -> None:
    host = Target(tmp_path / "host")
    mount(host.mount, "-t", "tmpfs", "tmpfs")
    scene = Scene("unmount {mount} --timeout 0.4s", nothing, statuses=(1,))
    holder = subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=host.mount)
    try:
        seen = play(scene, host, scene.words, ROUNDS, after=lambda host: _assert_mounted(host.mount))
        assert seen[130] + seen[143] > 0, seen
        tried("commands met by signals", sum(seen.values()))
    finally:
        holder.communicate()
        host.close()
    assert host.besom("unmount", host.mount).status == 0


def _assert_mounted(path: Path) -> None:
    assert path.is_mount()


@pytest.mark.root
@pytest.mark.parametrize("words", ["drain", "drain --resume"])
def test_a_signal_into_a_drain_leaves_a_host_that_drains_or_not(
    tmp_path: Path, words: str, tried: Tried
) -> None:
    host = Target(tmp_path / "host")
    run = tmp_path / "run"
    run.mkdir()
    flag = run / "besom-drain"

    def prepare(host: Target) -> None:
        flag.unlink(missing_ok=True)
        host.make_work()
        if words != "drain":
            flag.write_text("besom drain\n")

    with own_run(run):
        try:
            seen = play(Scene(words, prepare), host, words, ROUNDS)
            assert flag.exists() == (words == "drain")
            assert seen[130] + seen[143] > 0, seen
            tried("commands met by signals", sum(seen.values()))
        finally:
            host.close()
