"""A /run of its own for a test, in a mount namespace that nobody else sees."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CLONE_FS, CLONE_NEWNS = 0x200, 0x20000


@contextmanager
def own_run(run: Path) -> Iterator[None]:
    """A mount namespace for this thread and its children, in which /run is the directory run.

    The drain flag has a fixed path there, which other tests must not see.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    where = os.getcwd()
    if libc.unshare(CLONE_FS | CLONE_NEWNS):
        pytest.skip(f"no mount namespace here: {os.strerror(ctypes.get_errno())}")
    try:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "--bind", run, "/run"], check=True)
        yield
    finally:
        assert libc.setns(before, CLONE_NEWNS) == 0, os.strerror(ctypes.get_errno())
        os.close(before)
        os.chdir(where)
