# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Real FUSE mounts: idle, with a server that hangs, or with one that takes requests and never answers."""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest

from besom.mounts import mounts

from .conftest import need

HOLD = """
import os, sys
kind, path = sys.argv[1:]
if kind == "cwd":
    os.chdir(path)
elif kind == "root":
    os.chroot(path)
else:
    kept = open(path + "/file")
print("held", flush=True)
sys.stdin.read()
"""
MS_NOSUID, MS_NODEV = 2, 4


def mounted(top: Path) -> list[str]:
    """Mount points at top and below, as mountinfo lists them."""
    return [mount.path for mount in mounts() if f"{mount.path}/".startswith(f"{top}/")]


class Fuse:
    """Mounts, and processes that hold them, below top; all of it goes with clear()."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.source = top / "source"
        self.source.mkdir()
        (self.source / "file").write_text("text\n")
        (self.source / "sub").mkdir()
        shutil.copy(need("cat"), self.source / "cat")
        self._servers: list[subprocess.Popen[bytes]] = []
        self._holders: list[subprocess.Popen[bytes]] = []

    def bindfs(self, at: Path, *options: str, user: int | None = None) -> subprocess.Popen[bytes]:
        at.mkdir(parents=True, exist_ok=True)
        if user is not None:
            os.chown(at, user, user)
        command = [need("bindfs"), "-f", *options, self.source, at]
        groups = None if user is None else []
        return self._serve(at, lambda: subprocess.Popen(command, user=user, group=user, extra_groups=groups))

    def fuse2fs(self, at: Path) -> subprocess.Popen[bytes]:
        at.mkdir(parents=True, exist_ok=True)
        image = self.top / "image"
        with image.open("wb") as stream:
            stream.truncate(4 * 1024**2)
        subprocess.run([need("mkfs.ext4"), "-qF", "-d", self.source, image], check=True)
        command = [need("fuse2fs"), "-f", image, at]
        null = subprocess.DEVNULL
        return self._serve(at, lambda: subprocess.Popen(command, stdout=null, stderr=null))

    def _serve(self, at: Path, start: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
        before = mounted(self.top).count(str(at))
        with open("/proc/self/mountinfo") as stream:
            # The kernel tells of every change since the file was opened (proc(5)).
            poll = select.poll()
            poll.register(stream, select.POLLERR | select.POLLPRI)
            server = start()
            self._servers.append(server)
            while mounted(self.top).count(str(at)) == before:
                assert poll.poll(20_000), f"nothing was mounted on {at}"
        return server

    def tmpfs(self, at: Path) -> None:
        at.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "besom-test", at], check=True)
        (at / "file").write_text("text\n")

    def hold(self, kind: str, at: Path) -> subprocess.Popen[bytes]:
        """A process that holds the mount at (cwd, root, file or mmap) until its stdin is closed."""
        # A copy of cat that runs from the mount has its program mapped.
        command = [at / "cat"] if kind == "mmap" else [sys.executable, "-c", HOLD, kind, at]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self._holders.append(holder)
        assert holder.stdin is not None
        assert holder.stdout is not None
        if kind == "mmap":
            holder.stdin.write(b"held\n")
        assert holder.stdout.readline() == b"held\n"
        return holder

    def clear(self) -> None:
        for path in reversed(mounted(self.top)):
            subprocess.run(["umount", "-c", "--lazy", path], check=False)
        # The servers first: nothing that waits for one of them can end before.
        for process in (*self._servers, *self._holders):
            process.kill()
            process.wait(20)
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()
        assert mounted(self.top) == []


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop a server, so that its mount hangs."""
    server.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, server.pid, os.WSTOPPED)


@contextmanager
def silent(at: Path) -> Iterator[int]:
    """A mount whose server reads requests and answers none; gives its device. It goes when that is closed.

    Who waits for an answer to a request that was read cannot be killed.
    """
    at.mkdir(parents=True, exist_ok=True)
    device = os.open("/dev/fuse", os.O_RDWR)
    try:
        options = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"besom-test", os.fsencode(at), b"fuse.silent", MS_NOSUID | MS_NODEV, options):
            pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
        # FUSE_INIT: what the kernel asks first, or it asks nothing at all (linux/fuse.h).
        unique = struct.unpack_from("Q", os.read(device, 1 << 17), 8)[0]
        answer = struct.pack("IIIIHHIIHHI28x", 7, 31, 4096, 0, 0, 0, 4096, 1, 0, 0, 0)
        os.write(device, struct.pack("IiQ", 16 + len(answer), 0, unique) + answer)
        yield device
    finally:
        os.close(device)
        subprocess.run(["umount", "-c", "--lazy", at], check=False, stderr=subprocess.DEVNULL)
