"""A disk that remembers each write and each flush in order, so that the power can go out at any of them.

A file of FUSE below a loop device: what the file system above sends to its disk is written to a log, as
dm-log-writes would. A cut after so many of them leaves all that came before the last flush, and of what
came after it either everything or, as a disk with a cache does, any of it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import stat
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..host.conftest import Mount, need, unmount, wait_for_mount

MiB = 1024**2
# Size of the image; how it is made and mounted. No early allocation at a rename helps who forgets an fsync.
KINDS = {
    "ext4": (64 * MiB, ["mkfs.ext4", "-qF", "-E", "nodiscard"], "noauto_da_alloc,commit=1"),
    "xfs": (300 * MiB, ["mkfs.xfs", "-qfK"], "logbufs=2"),
}
_NAME = b"image"
_MOST = 128 * 1024
_PATIENCE_S = 30.0
# linux/fuse.h
_HEADER, _ANSWER = struct.Struct("<IIQQIIIHH"), struct.Struct("<IiQ")
_ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
_LOOKUP, _FORGET, _GETATTR, _SETATTR, _OPEN, _READ, _WRITE, _STATFS = 1, 2, 3, 4, 14, 15, 16, 17
_RELEASE, _FSYNC, _FLUSH, _INIT, _OPENDIR, _RELEASEDIR, _DESTROY = 18, 20, 25, 26, 27, 29, 38
_UNANSWERED = (_FORGET, 36, 42)
_BIG_WRITES, _MAX_PAGES, _DIRECT_IO = 1 << 5, 1 << 22, 1
# A record of the log: ns of the monotonic clock, where, and how much follows; a flush has no place.
_RECORD = struct.Struct("<QQI")
_NOWHERE = 2**64 - 1


class _Server:
    """Answers what the kernel asks of the one file, until it is unmounted."""

    def __init__(self, device: int, image: Path, log: Path) -> None:
        self.device, self.size = device, image.stat().st_size
        self.image = os.open(image, os.O_RDWR)
        self.log = log.open("wb", buffering=0)

    def serve(self) -> None:
        while True:
            try:
                request = os.read(self.device, _MOST + 4096)
            except OSError as error:
                if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
                    continue
                return  # unmounted
            _length, code, unique, node, *_rest = _HEADER.unpack_from(request)
            if code in _UNANSWERED:
                continue
            number, answer = 0, b""
            try:
                answer = self._answer(code, node, memoryview(request)[_HEADER.size :])
            except OSError as error:
                number = error.errno or errno.EIO
            with suppress(OSError):
                os.write(self.device, _ANSWER.pack(_ANSWER.size + len(answer), -number, unique) + answer)

    def _answer(self, code: int, node: int, body: memoryview) -> bytes:
        if code == _INIT:
            flags = _BIG_WRITES | _MAX_PAGES
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, _MOST, flags, 16, 12, _MOST, 1, _MOST // 4096, 0, 0)
        if code == _LOOKUP:
            if bytes(body).rstrip(b"\0") != _NAME:
                raise OSError(errno.ENOENT, "")
            return struct.pack("<QQQQII", 2, 1, 1000, 1000, 0, 0) + self._attributes(2)
        if code in (_GETATTR, _SETATTR):
            return struct.pack("<QII", 1000, 0, 0) + self._attributes(node)
        if code in (_OPEN, _OPENDIR):
            return struct.pack("<QIi", node, _DIRECT_IO if code == _OPEN else 0, 0)
        if code == _READ:
            _handle, offset, size = struct.unpack_from("<QQI", body)
            return os.pread(self.image, size, offset)
        if code == _WRITE:
            _handle, offset, size = struct.unpack_from("<QQI", body)
            data = body[40 : 40 + size]
            self._note(offset, data)
            os.pwrite(self.image, data, offset)
            return struct.pack("<II", size, 0)
        if code == _FSYNC:
            self._note(_NOWHERE, memoryview(b""))
            return b""
        if code == _STATFS:
            return struct.pack("<QQQQQIIII24x", 1 << 20, 1 << 20, 1 << 20, 100, 100, 4096, 255, 4096, 0)
        if code in (_RELEASE, _RELEASEDIR, _FLUSH, _DESTROY):
            return b""
        raise OSError(errno.ENOSYS, "")

    def _note(self, offset: int, data: memoryview) -> None:
        self.log.write(_RECORD.pack(time.monotonic_ns(), offset, len(data)) + bytes(data))

    def _attributes(self, node: int) -> bytes:
        mode = stat.S_IFDIR | 0o700 if node == 1 else stat.S_IFREG | 0o600
        size = 0 if node == 1 else self.size
        return _ATTRIBUTES.pack(node, size, size // 512, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


@dataclass(frozen=True)
class Written:
    """What the disk was told: when (ns), where to write, and where in the log its content is; or to flush."""

    when: int
    offset: int
    place: int
    size: int

    @property
    def is_flush(self) -> bool:
        return self.offset == _NOWHERE


class Recorder:
    """A file system of a kind on a disk that is recorded from the first write after its making."""

    def __init__(self, kind: str, tmp_path: Path, mount: Mount) -> None:
        size, command, self._options = KINDS[kind]
        # A mount namespace that another process has made meanwhile may keep the last one alive.
        self._again = ",nouuid" if kind == "xfs" else ""
        need(command[0])
        memory = mount(tmp_path / "memory", "-t", "tmpfs", "-o", "size=3g", "tmpfs")
        self._before, self._log = memory / "before", memory / "log"
        self._after, self._at = memory / "after", tmp_path / "after"
        self._file, self.path = tmp_path / "file", tmp_path / "disk"
        for one in (self._at, self._file, self.path):
            one.mkdir()
        with self._before.open("wb") as stream:
            stream.truncate(size)
        subprocess.run([*command, self._before], check=True)
        copy(self._before, memory / "image")
        self._image = memory / "image"

    @contextmanager
    def recording(self) -> Iterator[Path]:
        """The file system, mounted; recorded until this is left."""
        device = os.open("/dev/fuse", os.O_RDWR)
        server = 0
        try:
            options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mount(b"besom-test", os.fsencode(self._file), b"fuse.recorder", 0, options):
                pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
            server = os.fork()
            if not server:
                try:
                    _Server(device, self._image, self._log).serve()
                finally:
                    os._exit(0)
            os.close(device)
            device = -1
            image = self._file / os.fsdecode(_NAME)
            subprocess.run(["mount", "-o", f"loop,{self._options}", image, self.path], check=True)
            wait_for_mount(self.path)
            yield self.path
        finally:
            if os.path.ismount(self.path):
                unmount(self.path)
            unmount(self._file)
            if device >= 0:
                os.close(device)
            if server:
                # The loop device lets go of the file in its own time.
                os.kill(server, signal.SIGKILL)
                os.waitpid(server, 0)

    def written(self) -> list[Written]:
        """What the disk was told, in order."""
        found, place, size = [], 0, self._log.stat().st_size
        with self._log.open("rb") as stream:
            while place + _RECORD.size <= size:
                stream.seek(place)
                when, offset, length = _RECORD.unpack(stream.read(_RECORD.size))
                found.append(Written(when, offset, place + _RECORD.size, length))
                place += _RECORD.size + length
        return found

    def cuts(
        self, written: list[Written], chosen: list[int], dice: random.Random
    ) -> Iterator[tuple[int, Path]]:
        """For each of these counts: when the power goes out, and what is mounted after it was cut there.

        Every other time all that was written is there, else only some of what was not flushed.
        """
        flushed = 0
        with self._log.open("rb") as log:
            for number, count in enumerate(sorted(chosen)):
                last = max(
                    (place + 1 for place in range(flushed, count) if written[place].is_flush), default=flushed
                )
                self._apply(self._before, log.fileno(), written[flushed:last])
                flushed = last
                # A new file: the last one may be alive still, and written to.
                self._after.unlink(missing_ok=True)
                copy(self._before, self._after)
                unflushed = written[flushed:count]
                if number % 2:
                    unflushed = [one for one in unflushed if dice.random() < 0.5]
                self._apply(self._after, log.fileno(), unflushed)
                subprocess.run(["mount", "-o", f"loop{self._again}", self._after, self._at], check=True)
                try:
                    yield written[count].when, self._at
                finally:
                    unmount_whole(self._at)

    def _apply(self, image: Path, log: int, written: list[Written]) -> None:
        fd = os.open(image, os.O_WRONLY)
        try:
            for one in written:
                if not one.is_flush:
                    os.pwrite(fd, os.pread(log, one.size, one.place), one.offset)
        finally:
            os.close(fd)


def unmount_whole(at: Path) -> None:
    """Unmount it once nothing uses it any more: threads and mount's own helpers end in their own time.

    Never lazily: what is still alive below would write to the file of the next cut.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while (done := subprocess.run(["umount", at], capture_output=True, text=True, check=False)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.02)


def copy(source: Path, target: Path) -> None:
    """Copy a file with its holes."""
    subprocess.run(["cp", "--sparse=always", source, target], check=True)
