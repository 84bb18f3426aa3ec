"""A disk of which a copy at any moment is what a power cut would leave."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ..host.conftest import Mount, need, unmount

# The kernel is to write nothing by itself: no early allocation at a rename, no commit every five seconds.
OPTIONS = "loop,noauto_da_alloc,commit=600"


def make_ext4(memory: Path, at: Path, mount: Mount) -> Path:
    """A new ext4 of 128 MiB, mounted there, in a file below memory."""
    image = memory / "ground"
    with image.open("wb") as stream:
        stream.truncate(128 * 1024**2)
    subprocess.run(["mkfs.ext4", "-qF", image], check=True)
    return mount(at, "-o", "loop", image)


class Disk:
    """An ext4 in a file on tmpfs. The file at any moment is what a power cut at that moment leaves."""

    def __init__(self, tmp_path: Path, mount: Mount) -> None:
        need("mkfs.ext4")
        memory = mount(tmp_path / "memory", "-t", "tmpfs", "-o", "size=4g", "tmpfs")
        self.image, self._at, self._cuts = memory / "image", tmp_path / "after", count()
        with self.image.open("wb") as stream:
            stream.truncate(16 * 1024**2)
        subprocess.run(["mkfs.ext4", "-qF", self.image], check=True)
        self.path = mount(tmp_path / "disk", "-o", OPTIONS, self.image) / "store"
        self.path.mkdir()
        subprocess.run(["sync", "--file-system", self.path], check=True)
        self._at.mkdir()

    @contextmanager
    def after_power_cut(self) -> Iterator[Path]:
        """The store as it would be found after the power had gone out now."""
        # A file of its own: another mount namespace may keep the last one mounted, and mount(8) would take
        # its loop device, with what that still knows.
        copy = self.image.with_name(f"cut-{next(self._cuts)}")
        shutil.copyfile(self.image, copy)
        subprocess.run(["mount", "-o", "loop", copy, self._at], check=True)
        try:
            yield self._at / "store"
        finally:
            unmount(self._at)
            copy.unlink()
