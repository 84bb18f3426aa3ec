"""Who may do what: besom does all that the kernel lets its user do, says what it does not, and loses nothing.

What may be removed is not taken from a rule here: rm(1) tries it afterwards, as the same user.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest

# Loaded before a child becomes somebody who cannot read them.
from besom_host import commands, list_command, purge_command, stats_command  # noqa: F401
from besom_host.cli import main

from ..host.hostile import age
from ..host.own_run import CLONE_NEWNS
from .conftest import ALL, Tried
from .mutants import replacing

pytestmark = pytest.mark.root

USER, OTHER = 65534, 65533
_DUMPABLE, _BOUNDING_DROP, _NO_NEW_PRIVS = 4, 24, 38  # prctl(2)
_DAC_OVERRIDE, _FOWNER = 1, 3  # capabilities(7)
_CAPABILITIES, _VERSION_3 = 41, 0x20080522
LIBC = ctypes.CDLL(None, use_errno=True)


def keep_capabilities(*kept: int) -> None:
    for number in range(_CAPABILITIES):
        if number not in kept:
            LIBC.prctl(_BOUNDING_DROP, number, 0, 0, 0)
    mask = sum(1 << number for number in kept)
    header = (ctypes.c_uint32 * 2)(_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(mask, mask, 0, 0, 0, 0)
    assert LIBC.capset(header, data) == 0, os.strerror(ctypes.get_errno())


def become_root(_store: Path) -> None:
    """With all powers."""


def become_user(_store: Path) -> None:
    os.setgroups([])
    os.setgid(USER)
    os.setuid(USER)
    # Else the kernel gives this process's own /proc to root; a program that is executed has it.
    LIBC.prctl(_DUMPABLE, 1, 0, 0, 0)


def become_weak_root(_store: Path) -> None:
    """Root without a capability, as in many a container: what modes say holds for it."""
    keep_capabilities()


def become_unit(store: Path) -> None:
    """As the unit runs: two capabilities, and all but the store read-only."""
    assert LIBC.unshare(CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
    for words in (["--make-rprivate", "/"], ["--bind", store, store], ["-o", "remount,bind,ro", "/"]):
        subprocess.run(["mount", *words], check=True)
    LIBC.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    keep_capabilities(_DAC_OVERRIDE, _FOWNER)


ACTORS = {
    "root": become_root,
    "a user": become_user,
    "root without capabilities": become_weak_root,
    "the unit": become_unit,
}


@dataclass(frozen=True)
class Place:
    """A store: whose it is, its mode, and whose its entries are."""

    owner: int
    mode: int
    entries: tuple[int, ...]
    inner: int = 0o755  # of the directories in it
    readonly: bool = False


PLACES = {
    "root's own": Place(0, 0o755, (0, 0)),
    "a user's own": Place(USER, 0o755, (USER, USER)),
    "private": Place(OTHER, 0o700, (OTHER, OTHER)),
    "readable": Place(OTHER, 0o755, (OTHER, USER)),
    "writable": Place(OTHER, 0o777, (OTHER, USER, 0)),
    "sticky": Place(0, 0o1777, (OTHER, USER, 0)),
    "a user's own, sticky": Place(USER, 0o1777, (OTHER, USER, 0)),
    "with closed directories": Place(USER, 0o777, (OTHER, USER, 0), inner=0o700),
    "with directories that nobody may write": Place(USER, 0o777, (OTHER, USER, 0), inner=0o555),
    "read-only": Place(USER, 0o777, (OTHER, USER, 0), readonly=True),
}
OPERATIONS = {
    "files": ("prune", "STORE", "--layout", "files", "--max-age", "1d"),
    "trees": ("prune", "STORE", "--layout", "trees", "--max-age", "1d"),
    "sessions": ("prune", "STORE", "--layout", "sessions", "--max-age", "1d"),
    "sweep": ("sweep", "STORE", "--older-than", "1d"),
    "purge": ("purge", "STORE", "--layout", "trees", "--older-than", "1d", "--yes"),
}


@dataclass
class Outcome:
    status: int
    report: dict[str, Any]
    errors: str


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can reach; pytest's own are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="besom-privilege-"))
    path.chmod(0o755)
    yield path
    subprocess.run(["umount", path / "store"], capture_output=True, check=False)
    shutil.rmtree(path)


def child(become: Callable[[Path], None], store: Path, work: Callable[[], int]) -> int:
    """The exit status of work as somebody."""
    pid = os.fork()
    if not pid:
        status = 70
        try:
            become(store)
            status = work()
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(become: Callable[[Path], None], store: Path, words: list[str]) -> Outcome:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:

        def work() -> int:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
            return main([*words, "--json", "--config", os.devnull])

        status = child(become, store, work)
        out.seek(0)
        err.seek(0)
        text, errors = out.read(), err.read()
    assert "Traceback" not in errors, errors
    return Outcome(status, json.loads(text or "{}"), errors)


def make(store: Path, place: Place, operation: str) -> dict[str, list[Path]]:
    """Old entries of the owners named, and one that is new: all that belongs to each, by name."""
    store.mkdir()
    entries = {}
    for number, owner in enumerate((*place.entries, USER)):
        name = f"{'.temp-' if operation == 'sweep' else ''}{number}"
        tops = [store / name]
        if operation == "files":
            tops[0].write_text("x")
        else:
            (tops[0] / "sub").mkdir(parents=True)
            (tops[0] / "sub/file").write_text("x")
            (tops[0] / "file").write_text("x")
        if operation == "sessions":
            old = number < len(place.entries)
            tops.append(store / f"{name}.json")
            tops[1].write_text(json.dumps({"created_at": "2001-01-01" if old else time.time()}))
        entries[name] = [path for top in tops for path in (top, *top.rglob("*"))]
        for path in entries[name]:
            os.chown(path, owner, owner)
            if path.is_dir():
                path.chmod(place.inner)
    age(store)
    for path in entries[name]:
        os.utime(path)
    os.chown(store, place.owner, place.owner)
    store.chmod(place.mode)
    if place.readonly:
        subprocess.run(["mount", "--bind", store, store], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", store], check=True)
    return entries


@pytest.mark.parametrize("actor", ACTORS)
@pytest.mark.parametrize("operation", OPERATIONS if ALL else ["files", "trees"])
def test_all_that_the_kernel_allows_and_not_a_name_more(
    place: Path, tried: Tried, actor: str, operation: str
) -> None:
    try_all_places(place, tried, actor, operation)


def try_all_places(place: Path, tried: Tried, actor: str, operation: str) -> None:
    become = ACTORS[actor]
    for name, kind in PLACES.items():
        if kind.readonly and actor == "the unit":
            continue  # its own mount of the store is what makes it writable
        store = place / "store"
        entries = make(store, kind, operation)
        *old, new = entries
        words = [word.replace("STORE", str(store)) for word in OPERATIONS[operation]]
        where = f"{actor}, {operation}, {name}"

        dry = run(become, store, [*words, "--dry-run"])
        assert all(os.path.lexists(path) for paths in entries.values() for path in paths), where
        real = run(become, store, words)
        # Nothing is half there, and nothing young is gone.
        left = {entry: [path for path in paths if os.path.lexists(path)] for entry, paths in entries.items()}
        for entry, paths in left.items():
            assert paths in ([], entries[entry]), (where, paths, real)
        assert left[new], where
        gone = [entry for entry in old if not left[entry]]
        assert not [one for one in os.listdir(store) if one.startswith(".besom")], (where, real)

        # The dry run has said so.
        assert (dry.status, real.status) in ((0, 0), (1, 1), (2, 2)), (where, dry, real)
        if real.status == 2:
            assert gone == [], where
            assert real.report["error"].endswith("."), where
        else:
            removed = [real.report[key]["entries"] for key in ("planned", "removed")]
            assert [dry.report["planned"]["entries"], *removed] == [len(gone)] * 3, (where, dry, real)
            told = sum(real.report[f"{kind}_total"] for kind in ("kept", "anomalies", "failures"))
            # Of the new one a sweep says that it is not stale yet, and a purge what is wrong with it.
            told -= sum(
                one["path"] == str(store / new) for one in real.report["kept"] + real.report["anomalies"]
            )
            assert (len(gone) < len(old)) == (told > 0), (where, real)
            assert (real.status == 1) == (real.report["failures_total"] > 0), (where, real)

        # What stays is what this user cannot remove.
        for entry in old:
            tops = [path for path in left[entry] if path.parent == store]
            if tops:
                child(become, store, lambda tops=tops: rm(tops))  # type: ignore[misc]
                assert [path for path in tops if os.path.lexists(path)], f"{where}: {entry} might have gone"
        tried("privilege: entries that somebody was to remove", len(old))
        tried("privilege: runs of somebody in somebody's store", 2)
        if kind.readonly:
            subprocess.run(["umount", store], check=True)
        shutil.rmtree(store)


@pytest.mark.parametrize("fault", ["root taken for all-powerful", "the owner forgotten"])
def test_a_wrong_idea_of_what_is_allowed_is_noticed(place: Path, tried: Tried, fault: str) -> None:
    with replacing(fault), pytest.raises(AssertionError):
        try_all_places(place, lambda what, count=1: None, "root without capabilities", "files")
    tried("privilege: planted faults that were noticed")


@pytest.mark.parametrize(
    ("name", "operation", "status", "sentence"),
    [
        ("private", "files", 2, "STORE cannot be opened: Permission denied."),
        ("readable", "files", 0, "2 files kept: their directory cannot be written"),
        ("readable", "trees", 0, "cannot be removed: the store cannot be written"),
        ("sticky", "files", 0, "2 files kept: their directory is sticky, and they belong to others"),
        ("with closed directories", "trees", 0, "cannot be read: Permission denied"),
        ("with directories that nobody may write", "trees", 0, "cannot be written"),
        ("read-only", "files", 0, "3 files kept: their directory cannot be written"),
    ],
)
def test_a_user_is_told_what_it_may_not(
    place: Path, name: str, operation: str, status: int, sentence: str
) -> None:
    store = place / "store"
    make(store, PLACES[name], operation)
    words = [word.replace("STORE", str(store)) for word in OPERATIONS[operation]]
    found = run(become_user, store, words)
    assert found.status == status, found
    told = [item["reason"] for item in found.report.get("anomalies", [])] + [found.report.get("error")]
    assert sentence.replace("STORE", str(store)) in told, told


def rm(paths: list[Path]) -> int:
    return subprocess.run(["rm", "-rf", *paths], stderr=subprocess.DEVNULL, check=False).returncode
