# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""At 100 % of bytes, and at 100 % of inodes, sweep and prune still work: besom needs no room to make room."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Callable

import pytest

from .conftest import Done, Mount
from .hostile import age, make_plain

pytestmark = pytest.mark.root

Besom = Callable[..., Done]


@pytest.fixture(params=["tmpfs bytes", "tmpfs inodes", "ext4 bytes", "ext4 inodes"])
def disk(
    request: pytest.FixtureRequest, tmp_path: Path, mount: Mount, full_image: Callable[..., Path]
) -> Path:
    """A file system with a store and a temp area on it, and room for nothing more."""
    kind, what = request.param.split()
    if kind == "ext4":
        top = full_image("-N", "2000" if what == "bytes" else "128")
    else:
        limit = "size=4m" if what == "bytes" else "size=64m,nr_inodes=256"
        top = mount(tmp_path / "disk", "-t", "tmpfs", "-o", limit, "tmpfs")
    for number in range(4):
        make_plain(top / f"area/.temp-{number}")
    for number in range(8):
        directory = top / f"store/d{number}"
        directory.mkdir(parents=True)
        (directory / "blob").write_bytes(os.urandom(65536))
    fill(top / "ballast", 65536 if what == "bytes" else 0)
    if what == "bytes":
        fill(top / "crumbs", 1024)
    age(top)
    for number in range(8):
        os.utime(top / f"store/d{number}/blob", (number, number))
        os.utime(top / f"store/d{number}", (number, number))
    with pytest.raises(OSError, match="No space left"):
        (top / "area/one-more").write_bytes(bytes(65536))
    (top / "area/one-more").unlink(missing_ok=True)
    fill(top / "ballast", 1024)
    return top


def fill(directory: Path, size: int) -> None:
    """Files of size bytes, until there is no room for one more."""
    try:
        directory.mkdir(exist_ok=True)
        for number in range(100_000):
            (directory / f"{size}-{number}-{os.urandom(4).hex()}").write_bytes(bytes(size))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


def test_sweep(besom: Besom, disk: Path) -> None:
    before = os.statvfs(disk)
    done = besom("sweep", disk / "area")
    assert (done.status, done.report["removed"]["entries"]) == (0, 4), done.stderr
    assert list((disk / "area").iterdir()) == []
    assert os.statvfs(disk).f_ffree == before.f_ffree + 4 * 4


@pytest.mark.parametrize("layout", ["files", "trees"])
def test_prune(besom: Besom, disk: Path, layout: str) -> None:
    before = os.statvfs(disk)
    assert before.f_bavail == 0 or before.f_ffree == 0
    done = besom("prune", disk / "store", "--layout", layout, "--max-entries", "3")
    assert (done.status, done.report["removed"]["entries"]) == (0, 5), done.stderr
    assert {path.name for path in (disk / "store").iterdir()} == {"d5", "d6", "d7"}
    after = os.statvfs(disk)
    assert after.f_ffree == before.f_ffree + 10
    assert after.f_bfree * after.f_frsize >= before.f_bfree * before.f_frsize + 5 * 65536


def test_min_free_frees_exactly_what_is_missing(besom: Besom, disk: Path) -> None:
    st = os.statvfs(disk)
    wanted = st.f_bavail * st.f_frsize + 2 * 65536
    done = besom("prune", disk / "store", "--layout", "files", "--min-free", str(wanted))
    assert (done.status, done.report["removed"]["entries"]) == (0, 2), done.stderr
    after = os.statvfs(disk)
    assert after.f_bavail * after.f_frsize >= wanted
