"""What besom does to a file system, each with a judgement of what is there: one table for all faults.

An operation that is added here is killed and failed at each of its calls (test_kills.py, test_errors.py).
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Callable
from unittest.mock import patch

import yaml
from ansible.module_utils import basic

from besom import drain_flag, durable_tree
from besom.artifacts import read_artifacts
from besom.crew import Crew
from besom.durable import write_durably
from besom.durable_tree import remove_orphans, tree_draft
from besom.errors import BesomError
from besom.housekeep import perform
from besom.install import InstallRequest, install
from besom.installed import MARK
from besom.opener import plain_opener
from besom.origin import digest_of
from besom.policy import read_store, read_temps
from besom.prune import Request, prune
from besom.report import Report
from besom.root import Root
from besom.run import Run
from besom.sweep import sweep
from besom.sync import SyncRequest, sync
from besom.transfer import read_checksum, read_source
from besom_host import log
from besom_host.config import read
from besom_host.cycle import keep_house
from besom_host.metrics import Metrics
from besom_host.seq import Seq
from besom_host.state import IDLE, RUNNING, StateDir, Status

from ..host.mirror import Mirror, serve

OLD, NEW = b"old" * 5000, b"new" * 7000
DAY = 86400
NAMES = ("0", "1", "2", "3", "4")
KEPT = 2
HEX = "0123456789abcdef"
SERVERS = ExitStack()


class Failed(BesomError):
    """What a command would say and end with."""


@dataclass(frozen=True)
class Operation:
    """make prepares a directory, work changes it; wrong says what is amiss after work was met by a fault.

    done: how the directory looks when all is done. full: it needs space, and ends with 3 where there is none.
    living: temps of writers that live, which it has to leave alone; a directory's name ends with a slash.
    resumes: it leaves what the next run goes on with. told: an error of it is told of, and is not its status.
    """

    make: Callable[[Path], object]
    work: Callable[[Path], None]
    wrong: Callable[[Path], str]
    done: Callable[[Path], bool]
    full: bool = False
    living: tuple[str, ...] = ()
    resumes: bool = False
    told: bool = False


def told(path: Path, work: Callable[[], Report]) -> None:
    """Work as commands and modules do it."""
    outcome = perform([(str(path), work)], Run(lock_timeout=0.0), skip_missing=False)
    fail(outcome.status, outcome.messages)


def fail(status: int, messages: list[str]) -> None:
    if status:
        error = Failed(" ".join(messages))
        error.status = status
        raise error


def age(path: Path, days: int) -> None:
    for one in [*path.rglob("*"), path]:
        os.utime(one, (time.time() - days * DAY,) * 2)


def names(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*"))


# Publication.


def publish(path: Path) -> Report:
    with Root(str(path)) as root:
        report = remove_orphans(root, Run())
        write_durably(root.fd, root.path, "file", NEW)
        return report


def file_wrong(path: Path, name: str = "file") -> str:
    found = (path / name).read_bytes()
    return "" if found in (OLD, NEW) else f"{name} is torn: {len(found)} bytes"


def publish_tree(path: Path) -> Report:
    with Root(str(path)) as root:
        report = remove_orphans(root, Run())
        aside = ".besom-old-tree-20260101T000000.000000"
        with tree_draft(root, "tree") as one:
            for name in ("a", "b"):
                fd = os.open(name, os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=one.fd)
                os.write(fd, NEW)
                os.close(fd)
            one.commit(None if (path / aside).exists() else aside)
        return report


def publish_tree_synced_whole(path: Path) -> Report:
    # With so few for each, one syncfs does for all files.
    with patch.object(durable_tree, "_FEW", 1):
        return publish_tree(path)


def publish_tree_in_steps(path: Path) -> Report:
    """Where the kernel exchanges nothing."""
    with patch.object(durable_tree, "_exchange", lambda *_arguments: False):
        return publish_tree(path)


def make_tree(path: Path, name: str = "tree", content: bytes = OLD) -> None:
    (path / name).mkdir()
    for leaf in ("a", "b"):
        (path / name / leaf).write_bytes(content)


def tree_content(path: Path) -> set[bytes]:
    return {(path / leaf).read_bytes() if (path / leaf).exists() else b"" for leaf in ("a", "b")}


def tree_wrong(path: Path) -> str:
    if not (path / "tree").exists():
        return "the tree is missing"
    found = tree_content(path / "tree")
    if found not in ({OLD}, {NEW}):
        return f"the tree is torn: {[len(one) for one in found]}"
    # What was replaced is somewhere, under one name or the other.
    trees = [one for one in path.iterdir() if (one / "b").exists()]
    return "" if {OLD} in map(tree_content, trees) else "the old tree is lost"


def tree_wrong_in_steps(path: Path) -> str:
    """Its name may be gone for an instant, and comes back; nothing of either is lost."""
    if (path / "tree").exists():
        return tree_wrong(path)
    whole = [tree_content(one) for one in path.iterdir() if (one / "b").exists()]
    return "" if {OLD} in whole else "the old tree is lost"


def tree_done(path: Path) -> bool:
    others = {one.name for one in path.iterdir()} - {"tree"}
    return tree_content(path / "tree") == {NEW} and all(one.startswith(".besom-old-tree-") for one in others)


# Removal.


def make_entries(path: Path, trees: bool) -> None:
    for number, name in enumerate(NAMES):
        if trees:
            make_tree(path, name)
        else:
            (path / name).write_bytes(OLD)
        age(path / name, len(NAMES) - number)


def prune_entries(path: Path, layout: str, entries: int = KEPT) -> None:
    store = read_store({"path": str(path), "layout": layout, "max_entries": entries})
    told(path, partial(prune, Request(store), Run(lock_timeout=0.0)))


def entries_wrong(path: Path, trees: bool) -> str:
    """Each entry that has its name is whole, and none of those that stay is gone."""
    there = {one.name for one in path.iterdir() if not one.name.startswith(".besom-trash-")}
    if not set(NAMES[-KEPT:]) <= there <= set(NAMES):
        return f"there is {there}"
    for name in there:
        content = tree_content(path / name) if trees else {(path / name).read_bytes()}
        if content != {OLD}:
            return f"{name} is torn"
    return ""


def entries_done(path: Path) -> bool:
    return {one.name for one in path.iterdir()} == set(NAMES[-KEPT:])


def make_temps(path: Path) -> None:
    for name in (".temp-a", ".temp-b", "data"):
        make_tree(path, name)
        age(path / name, 3)
    make_tree(path, ".temp-new")


def sweep_temps(path: Path) -> None:
    told(path, partial(sweep, read_temps({"path": str(path)}), Run(lock_timeout=0.0)))


def temps_wrong(path: Path) -> str:
    torn = [name for name in ("data", ".temp-new") if tree_content(path / name) != {OLD}]
    return f"{torn} are torn" if torn else ""


def temps_done(path: Path) -> bool:
    return {one.name for one in path.iterdir()} == {"data", ".temp-new"}


# Sessions: two that are to go, one that stays, and anomalies.

BLOBS = ("", ".d", ".d/sub", ".d/sub/file", ".dat")
STAYING = sorted(["alone.json", "c.json", "lone", *(f"c{end}" for end in BLOBS)])


def make_sessions(path: Path) -> None:
    for id_, created in (("a", 1), ("a.b", 2), ("c", 3)):
        (path / f"{id_}.json").write_text(json.dumps({"created_at": created}))
        (path / f"{id_}.d" / "sub").mkdir(parents=True)
        for end in ("", ".dat", ".d/sub/file"):
            (path / f"{id_}{end}").write_text(id_)
    (path / "lone").write_text("lone")
    (path / "alone.json").write_text('{"created_at": 1}')
    # Names of a removal that is cut are told from later ones by their ctime.
    tick(path.parent)


def tick(path: Path) -> None:
    """Wait until the clock of the file system that a directory is on has moved on."""
    os.utime(path)
    first = os.stat(path).st_ctime_ns
    while os.stat(path).st_ctime_ns == first:
        os.utime(path)


def sessions_wrong(path: Path) -> str:
    there = set(names(path))
    if not set(STAYING) <= there:
        return f"lost: {set(STAYING) - there}"
    for id_ in ("a", "a.b"):
        if f"{id_}.json" in there and not {f"{id_}{end}" for end in BLOBS} <= there:
            return f"{id_} is torn: {sorted(there)}"
    return ""


def sessions_done(path: Path) -> bool:
    return names(path) == STAYING


# Fetching.


class InOneThread:
    """A crew whose jobs are done by who waits for them: the calls are those of the thread that is traced."""

    def __init__(self, jobs: Any, work: Callable[[Any], Any], _size: int) -> None:
        self._todo, self._work = deque(jobs), work
        self.outstanding = len(self._todo)

    def wait(self, _seconds: float) -> tuple[Any, Any] | None:
        job = self._todo.popleft()
        self.outstanding -= 1
        try:
            return job, self._work(job)
        except BaseException as error:  # noqa: BLE001 (as Crew does)
            return job, error

    def stop(self) -> list[Any]:
        left = list(self._todo)
        self._todo.clear()
        self.outstanding -= len(left)
        return left


@contextmanager
def in_one_thread() -> Iterator[None]:
    with ExitStack() as stack:
        for name in ("__init__", "wait", "stop"):
            stack.enter_context(patch.object(Crew, name, getattr(InOneThread, name)))
        yield


def archive(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as one:
        for leaf in ("a", "b"):
            info = tarfile.TarInfo(leaf)
            info.size = len(content)
            one.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@cache
def mirror() -> Mirror:
    """A server until the session is over (conftest.py closes it); children reach it as well."""
    one = SERVERS.enter_context(serve())
    for name, content in (("older", OLD[3:]), ("old", OLD), ("new", NEW)):
        one.add(f"/{name}", content)
        one.add(f"/{name}.tgz", archive(content))
    one.files["/again.tgz"] = one.files["/new.tgz"]
    return one


FETCHED = ("0", "1", "sub/2")


def sync_files(path: Path) -> None:
    offered = mirror()
    artifacts = [
        {"url": f"{offered.url}/new", "dest": name, "checksum": offered.files["/new"].checksum}
        for name in FETCHED
    ]
    opener = plain_opener(timeout=60, redirects=False)
    request = SyncRequest(str(path), read_artifacts(artifacts), opener, retries=0)
    with in_one_thread():
        told(path, partial(sync, request, Run(lock_timeout=0.0)))


def make_files(path: Path) -> None:
    # The last one is not there yet, nor is its directory.
    for name in FETCHED[:-1]:
        (path / name).write_bytes(OLD)


def files_wrong(path: Path) -> str:
    wrong = (file_wrong(path, name) for name in FETCHED if name in FETCHED[:-1] or (path / name).exists())
    return next(filter(None, wrong), "")


def files_done(path: Path) -> bool:
    return names(path) == sorted(["sub", *FETCHED]) and all(
        (path / name).read_bytes() == NEW for name in FETCHED
    )


def install_from(path: Path, name: str = "new.tgz", keep: int = 1, checked: bool = True) -> None:
    """Install /name of the mirror, without a name what is to be absent."""
    offered = mirror()
    source = None
    if name:
        checksum = read_checksum(offered.files[f"/{name}"].checksum) if checked else None
        source = read_source(f"{offered.url}/{name}", checksum=checksum)
    request = InstallRequest(str(path), "tree", source, keep=keep, current="live", retries=0)
    opener = plain_opener(timeout=60, redirects=False)
    with in_one_thread():
        told(path, partial(install, request, Run(lock_timeout=0.0), opener))


def make_installed(path: Path, *versions: str, checked: bool = True) -> None:
    for name in versions:
        install_from(path, f"{name}.tgz", checked=checked)


def fresh_wrong(path: Path) -> str:
    for name in ("tree", "live"):
        if (path / name).exists() and tree_content(path / name) != {NEW}:
            return f"{name} is torn"
    return "the link leads nowhere" if os.path.lexists(path / "live") and not (path / "live").exists() else ""


def fresh_done(path: Path) -> bool:
    there = sorted(one.name for one in path.iterdir())
    return there == ["live", "tree"] and tree_content(path / "live") == {NEW}


def installed_wrong(path: Path) -> str:
    return tree_wrong(path) or ("" if os.readlink(path / "live") == "tree" else "the link is wrong")


def same_wrong(path: Path) -> str:
    torn = tree_content(path / "tree") != {NEW} or not (path / "tree" / MARK).exists()
    return "the tree is torn" if torn or os.readlink(path / "live") != "tree" else ""


def same_done(path: Path) -> bool:
    """Its mark names where the same has come from again."""
    there = sorted(os.listdir(path)) + sorted(os.listdir(path / "tree"))
    source = json.loads((path / "tree" / MARK).read_text())["origin"]["source"]
    return there == ["live", "tree", MARK, "a", "b"] and source == digest_of(f"{mirror().url}/again.tgz")


def absent_wrong(path: Path) -> str:
    torn = (path / "tree").exists() and tree_content(path / "tree") != {NEW}
    return "the tree is torn" if torn else ""


def installed_done(path: Path) -> bool:
    """The new one, and one that it has replaced."""
    there = sorted(one.name[:15] for one in path.iterdir())
    return tree_content(path / "live") == {NEW} and there == [".besom-old-tree", "live", "tree"]


# What the host side keeps: status, requests, place, metrics, events on their way, the drain flag.


def tell(path: Path, state: str = RUNNING) -> None:
    try:
        StateDir(str(path)).write(Status(state, answered=7))
    except OSError as error:
        # As the daemon does, which goes on without.
        raise Failed(str(error.strerror)) from error


def told_state(path: Path) -> str:
    status = StateDir(str(path))._read()
    return status.state if status.answered == 7 else "lost"


def ask(path: Path) -> None:
    StateDir(str(path)).ask()


def take_place(path: Path) -> None:
    try:
        StateDir(str(path)).acquire().close()
    except OSError as error:
        raise Failed(str(error.strerror)) from error


def count_drain(path: Path) -> None:
    metrics = Metrics()
    metrics.of_drain(0, 1.0, 1e9)
    try:
        metrics.write(str(path / "besom.prom"), [])
    except OSError as error:
        # As besom does, which goes on without.
        raise Failed(str(error.strerror)) from error


def drains(path: Path) -> float:
    lines = (path / "besom.prom").read_text().splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("besom_drains_total")), -1)


def keep_event(path: Path) -> None:
    """An event that nobody takes yet is kept; what earlier runs have left is taken up."""
    lost: list[dict[str, Any]] = []
    with patch.object(Seq, "_work", lambda _self: None):
        seq = Seq("http://127.0.0.1:9", "", str(path / "seq"), lambda _name, **fields: lost.append(fields))
        seq.write('{"@t":"now"}')
        seq.close(0.0)
    if lost:
        raise Failed(" ".join(str(fields.get("reason", "")) for fields in lost))


def events_wrong(path: Path) -> str:
    for one in (path / "seq").glob("*.clef"):
        if one.read_bytes() not in (b"", b'{"@t":"now"}\n'):
            return f"{one.name} is torn"
    return ""


def events_done(path: Path) -> bool:
    there = list((path / "seq").iterdir())
    return all(one.suffix == ".clef" for one in there) and any(one.stat().st_size for one in there)


def set_flag(path: Path) -> None:
    with patch.object(drain_flag, "PATH", str(path / "besom-drain")):
        drain_flag.set_flag()
        if not drain_flag.is_draining():
            raise Failed("the flag is not there")


# A whole round: sweep, prune, log, metrics, status.


def make_house(path: Path, layout: str = "trees") -> None:
    for name in ("store", "temps", "log", "metrics", "state"):
        (path / name).mkdir(mode=0o755)
    make_entries(path / "store", trees=layout == "trees")
    make_temps(path / "temps")
    values = {
        "stores": [{"name": "store", "path": str(path / "store"), "layout": layout, "max_entries": KEPT}],
        "temps": [{"path": str(path / "temps")}],
        "daemon": {"state_dir": str(path / "state")},
        "log": {"format": "clef", "file": str(path / "log" / "besom.clef")},
        "metrics": {"textfile": str(path / "metrics" / "besom.prom")},
    }
    (path / "besom.yml").write_text(yaml.safe_dump(values))


def keep(path: Path) -> None:
    config = read(str(path / "besom.yml"), {})
    log.configure(config)
    try:
        outcome = keep_house(config, config.remember(Run(lock_timeout=0.0)), "once").outcome
    finally:
        log.close()
    fail(outcome.status, outcome.messages)
    tell(path / "state")


def make_remembered(path: Path) -> None:
    """A round has left an index of the store, and since then there is more in it."""
    make_house(path, "files")
    keep(path)
    assert list((path / "state").glob("index-*"))
    make_entries(path / "store", trees=False)


def house_wrong(path: Path, trees: bool = True) -> str:
    wrong = entries_wrong(path / "store", trees) or temps_wrong(path / "temps")
    text = path / "metrics" / "besom.prom"
    if text.exists() and not text.read_text().endswith("\n"):
        return "the metrics are torn"
    events = path / "log" / "besom.clef"
    for line in events.read_text().split("\n")[:-1] if events.exists() else []:
        # Half a line, of a writer that was killed, has an end before the next begins.
        if line and not line.endswith("}"):
            wrong = wrong or ("a line of the log is torn" if line.count('"@t"') > 1 else "")
    return wrong


def house_done(path: Path) -> bool:
    return (
        entries_done(path / "store")
        and temps_done(path / "temps")
        and names(path / "metrics") in ([], ["besom.prom"])
        and not [name for name in names(path / "state") if os.path.basename(name).startswith(".")]
    )


# The configuration, which the role besom replaces by ansible-core's template.


def configure(path: Path, entries: int = KEPT) -> None:
    values = {"stores": [{"name": "store", "path": "/srv/store", "layout": "files", "max_entries": entries}]}
    new = path.with_name(f"{path.name}.new")
    new.write_text(yaml.safe_dump(values) + "# comment\n" * 1000)
    with patch.multiple(basic, _ANSIBLE_ARGS=b'{"ANSIBLE_MODULE_ARGS": {}}', _ANSIBLE_PROFILE="legacy"):
        basic.AnsibleModule({}).atomic_move(str(new), str(path / "besom.yml"))


def configured(path: Path) -> int:
    config = read(str(path / "besom.yml"), {})
    store = config.stores.get("store")
    return store.policy.max_entries or 0 if store and not config.problems else 0


def copied(model: Callable[[Path], object]) -> Callable[[Path], object]:
    """make, done once and copied from then on."""
    made: list[Path] = []

    def make(path: Path) -> None:
        if not made or not made[0].exists():
            made[:] = [path.with_name(f"{path.name}-model")]
            made[0].mkdir()
            model(made[0])
        shutil.copytree(made[0], path, symlinks=True, dirs_exist_ok=True)

    return make


# What happens when a call of it fails is ansible-core's to say.
CONFIGURATION = Operation(
    configure,
    partial(configure, entries=KEPT + 1),
    lambda path: "" if configured(path) in (KEPT, KEPT + 1) else "the configuration is torn",
    lambda path: configured(path) == KEPT + 1 and os.listdir(path) == ["besom.yml"],
)

_LIVING_FILE, _LIVING_TREE = f".file.{HEX}.part", f".temp-tree-{HEX}/"

OPERATIONS = {
    "publish a file": Operation(
        lambda path: (path / "file").write_bytes(OLD),
        lambda path: told(path, lambda: publish(path)),
        file_wrong,
        lambda path: os.listdir(path) == ["file"] and (path / "file").read_bytes() == NEW,
        full=True,
        living=(_LIVING_FILE,),
    ),
    "publish a tree": Operation(
        make_tree,
        lambda path: told(path, lambda: publish_tree(path)),
        tree_wrong,
        tree_done,
        full=True,
        living=(_LIVING_TREE,),
    ),
    "publish a tree, synced as a whole": Operation(
        make_tree,
        lambda path: told(path, lambda: publish_tree_synced_whole(path)),
        tree_wrong,
        tree_done,
        full=True,
        living=(_LIVING_TREE,),
    ),
    "publish a tree where nothing is exchanged": Operation(
        make_tree,
        lambda path: told(path, lambda: publish_tree_in_steps(path)),
        tree_wrong_in_steps,
        tree_done,
        full=True,
        living=(_LIVING_TREE,),
    ),
    "prune files": Operation(
        partial(make_entries, trees=False),
        partial(prune_entries, layout="files"),
        partial(entries_wrong, trees=False),
        entries_done,
    ),
    "prune trees": Operation(
        partial(make_entries, trees=True),
        partial(prune_entries, layout="trees"),
        partial(entries_wrong, trees=True),
        entries_done,
    ),
    "prune sessions": Operation(
        make_sessions,
        partial(prune_entries, layout="sessions", entries=1),
        sessions_wrong,
        sessions_done,
    ),
    "sweep": Operation(make_temps, sweep_temps, temps_wrong, temps_done, living=(".temp-living/",)),
    "sync": Operation(
        make_files,
        sync_files,
        files_wrong,
        files_done,
        full=True,
        living=(f".other.{HEX}.part",),
        resumes=True,
    ),
    "install": Operation(
        lambda path: None,
        install_from,
        fresh_wrong,
        fresh_done,
        full=True,
        living=(_LIVING_TREE,),
        resumes=True,
    ),
    "upgrade": Operation(
        copied(lambda path: make_installed(path, "old")),
        install_from,
        installed_wrong,
        installed_done,
        full=True,
        living=(_LIVING_TREE,),
        resumes=True,
    ),
    "upgrade, one version too many": Operation(
        copied(lambda path: make_installed(path, "older", "old")),
        install_from,
        installed_wrong,
        installed_done,
        full=True,
        living=(_LIVING_TREE,),
        resumes=True,
    ),
    "install the same again": Operation(
        copied(lambda path: make_installed(path, "new", checked=False)),
        partial(install_from, name="again.tgz", checked=False),
        same_wrong,
        same_done,
        full=True,
        living=(_LIVING_TREE,),
        resumes=True,
    ),
    "install nothing any more": Operation(
        copied(lambda path: make_installed(path, "old", "new")),
        partial(install_from, name=""),
        absent_wrong,
        lambda path: os.listdir(path) == [],
        full=True,
    ),
    "tell the status": Operation(
        lambda path: tell(path, IDLE),
        tell,
        lambda path: "" if told_state(path) in (IDLE, RUNNING) else "the status is torn",
        lambda path: told_state(path) == RUNNING and os.listdir(path) == ["status.json"],
    ),
    "ask for a run": Operation(
        ask,
        ask,
        lambda path: "" if StateDir(str(path)).asked() >= 1 else "the requests are lost",
        lambda path: StateDir(str(path)).asked() >= 2 and os.listdir(path) == ["trigger"],
    ),
    "become the daemon": Operation(
        lambda path: None,
        take_place,
        lambda path: "its place is taken" if StateDir(str(path)).is_held() else "",
        lambda path: (
            os.listdir(path) == ["daemon.pid"] and (path / "daemon.pid").read_text().count("\n") == 2
        ),
        full=True,
        # The place counts, not what its file says.
        told=True,
    ),
    "write metrics": Operation(
        count_drain,
        count_drain,
        lambda path: "" if drains(path) >= 1 else "the metrics are torn",
        lambda path: drains(path) >= 2 and os.listdir(path) == ["besom.prom"],
        full=True,
        living=(f".besom.prom.{HEX}.part",),
    ),
    "keep an event for Seq": Operation(keep_event, keep_event, events_wrong, events_done, told=True),
    "set the drain flag": Operation(
        lambda path: None,
        set_flag,
        lambda path: "",
        lambda path: os.listdir(path) == ["besom-drain"],
    ),
    "keep house": Operation(make_house, keep, house_wrong, house_done),
    "keep house by the index": Operation(
        make_remembered, keep, partial(house_wrong, trees=False), house_done
    ),
}
