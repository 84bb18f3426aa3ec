# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""As root in a hostile tree: all that is old goes, what must stay is listed, nothing outside is touched."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest

from .conftest import Done, Mount
from .hostile import (
    age,
    make_deep,
    make_links,
    make_names,
    make_outside,
    make_plain,
    make_special,
    make_symlinks,
    state,
)

pytestmark = pytest.mark.root

GOES = ("names", "deep", "special", "links", "symlinks")
MOUNTED = {"bound": "bound/sub", "bound-file": "bound-file/other", "tmpfs": "tmpfs/sub/mnt"}
Besom = Callable[..., Done]


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """The innocent tree; whatever the test does, it must be as it was at its end."""
    outside = tmp_path / "outside"
    make_outside(outside)
    before = state(outside)
    yield outside
    assert state(outside) == before


@pytest.fixture
def hostile(
    tmp_path: Path, outside: Path, mount: Mount, chattr: Callable[[str, Path], None]
) -> Callable[[str], Path]:
    """hostile(prefix): a directory with one hostile directory of each kind, named prefix + kind."""

    def hostile(prefix: str = "") -> Path:
        top = tmp_path / "area"
        make_names(top / f"{prefix}names")
        make_deep(top / f"{prefix}deep")
        make_special(top / f"{prefix}special")
        make_links(top / f"{prefix}links", outside)
        make_symlinks(top / f"{prefix}symlinks", outside)
        for kind in ("immutable", "bound", "bound-file", "tmpfs"):
            make_plain(top / f"{prefix}{kind}")
        (top / f"{prefix}tmpfs/sub/mnt").mkdir()
        age(top)
        chattr("+i", top / f"{prefix}immutable/other")
        mount(top / f"{prefix}bound/sub", "--bind", outside / "directory")
        mount(top / f"{prefix}bound-file/other", "--bind", outside / "file")
        mount(top / f"{prefix}tmpfs/sub/mnt", "-t", "tmpfs", "tmpfs")
        (top / f"{prefix}tmpfs/sub/mnt/old").write_text("old")
        os.utime(top / f"{prefix}tmpfs/sub/mnt/old", (0, 0))
        return top

    return hostile


def mounted_files(top: Path, prefix: str = "") -> list[Path]:
    """One file on each of the three mounts."""
    return [top / f"{prefix}{path}" for path in ("bound/sub/old", "bound-file/other", "tmpfs/sub/mnt/old")]


def test_prune_of_files(besom: Besom, hostile: Callable[[str], Path], outside: Path) -> None:
    top = hostile("")
    dry = besom("prune", top, "--layout", "files", "--max-age", "1d", "--dry-run")
    done = besom("prune", top, "--layout", "files", "--max-age", "1d")

    assert done.status == 0
    special = {str(top / "special" / name) for name in ("fifo", "socket", "character", "block")}
    assert done.noted("kept", "anomalies", "failures") == {
        **{str(top / path): "is a mount point" for path in MOUNTED.values()},
        **dict.fromkeys(special, "is a socket, FIFO or device"),
        str(top / "immutable/other"): "is immutable",
    }
    assert done.noted("anomalies").keys() == {str(top / "immutable/other")}
    left = {str(path) for path in top.rglob("*") if not path.is_dir()}
    assert left == special | {str(path) for path in mounted_files(top)} | {
        str(top / "immutable/other"),
        *(str(path) for path in (top / "bound/sub").rglob("*") if not path.is_dir()),
    }
    assert {path.name for path in top.iterdir()} == {"special", "immutable", *MOUNTED}
    assert dry.report["planned"] == done.report["planned"] == done.report["removed"]
    assert dry.report["bytes_after"] == done.report["bytes_after"]


@pytest.mark.parametrize("prefix", ["", ".temp-"], ids=["prune of trees", "sweep"])
def test_whole_directories(besom: Besom, hostile: Callable[[str], Path], outside: Path, prefix: str) -> None:
    top = hostile(prefix)
    arguments = ["sweep", top] if prefix else ["prune", top, "--layout", "trees", "--max-age", "1d"]
    dry = besom(*arguments, "--dry-run")
    kept = {kind: state(top / f"{prefix}{kind}") for kind in ("immutable", *MOUNTED)}
    done = besom(*arguments)

    assert done.status == 0
    assert {path.name for path in top.iterdir()} == {f"{prefix}{kind}" for kind in ("immutable", *MOUNTED)}
    # What cannot go whole does not go at all.
    assert {kind: state(top / f"{prefix}{kind}") for kind in kept} == kept
    assert done.noted("kept") == {
        str(top / f"{prefix}{path}"): "is a mount point" for path in MOUNTED.values()
    }
    assert done.noted("anomalies") == {str(top / f"{prefix}immutable/other"): "is immutable"}
    assert done.report["failures"] == []
    assert done.report["removed"]["entries"] == len(GOES)
    assert dry.report["planned"] == done.report["planned"] == done.report["removed"]


def test_entries_that_are_themselves_mounts_or_immutable(
    besom: Besom, tmp_path: Path, outside: Path, mount: Mount, chattr: Callable[[str, Path], None]
) -> None:
    top = tmp_path / "area"
    for name in (".temp-bound", ".temp-tmpfs", ".temp-immutable", ".temp-plain"):
        make_plain(top / name)
    (top / ".temp-file").write_text("bound over")
    (top / ".temp-fixed").write_text("immutable")
    age(top)
    mount(top / ".temp-bound", "--bind", outside / "directory")
    mount(top / ".temp-file", "--bind", outside / "file")
    mount(top / ".temp-tmpfs", "-t", "tmpfs", "tmpfs")
    chattr("+i", top / ".temp-immutable")
    chattr("+i", top / ".temp-fixed")

    for arguments in (
        ("sweep", top),
        ("prune", top, "--layout", "trees", "--max-age", "1d"),
        ("prune", top, "--layout", "files", "--max-age", "1d"),
    ):
        done = besom(*arguments)
        assert done.status == 0, done.stderr
        kept, anomalies = done.noted("kept"), done.noted("anomalies")
        assert {str(top / ".temp-bound"), str(top / ".temp-tmpfs")} <= kept.keys()
        assert set(kept.values()) == {"is a mount point"}
        assert str(top / ".temp-immutable") in str(anomalies)
        assert (top / ".temp-immutable/other").exists()
        assert not (top / ".temp-plain").exists()
    assert (top / ".temp-file").exists()
    assert (top / ".temp-fixed").exists()


def test_a_name_cannot_forge_a_line_of_the_report(besom: Besom, tmp_path: Path) -> None:
    top = tmp_path / "area"
    make_names(top)
    age(top)
    done = besom("prune", top, "--layout", "files", "--max-age", "1d", "--dry-run")
    shown = [item["path"] for item in done.report["victims"]]
    assert len(set(shown)) == len(shown) == done.report["victims_total"]
    assert all(path.isprintable() for path in shown)
    assert f"{top}/new\\x0aline" in shown
    assert f"{top}/not utf-8 \\xff\\xfe" in shown
    assert f"{top}/back\\\\slash" in shown
