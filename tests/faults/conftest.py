"""What the tests of faults share: parts of those on real parts, and how much of each fault they try.

Every run tries a selection; `scripts/test --faults` sets BESOM_FAULTS=all and tries the whole.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Callable, Protocol

import pytest

from ..host.conftest import Mount, besom, full_image, hold, host, mount, pytest_runtest_setup
from .disk import make_ext4

__all__ = ["besom", "full_image", "hold", "host", "mount", "pytest_runtest_setup"]

ALL = os.environ.get("BESOM_FAULTS") == "all"


class Tried(Protocol):
    def __call__(self, what: str, count: int = 1) -> None:
        """Note that a test has tried something so many times, for the figures that the run ends with."""


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Tried:
    return lambda what, count=1: record_property(f"tried: {what}", count)


@pytest.fixture
def ground(tmp_path: Path, mount: Mount) -> Path:
    """Where a matrix has its areas: an ext4 in memory, since an fsync of each of them waits for the disk."""
    if os.geteuid() or not shutil.which("mkfs.ext4"):
        return tmp_path
    return make_ext4(mount(tmp_path / "memory", "-t", "tmpfs", "tmpfs"), tmp_path / "ground", mount)


def pytest_sessionfinish() -> None:
    from .operations import SERVERS

    SERVERS.close()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was tried, of all processes together: the figures of docs/guarantees.md."""
    figures: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for name, count in report.user_properties:
                    if name.startswith("tried: "):
                        figures[name[len("tried: ") :]] += count
    if figures:
        terminalreporter.section("what was tried")
        for name in sorted(figures):
            terminalreporter.line(f"{figures[name]:>12,}  {name}")
