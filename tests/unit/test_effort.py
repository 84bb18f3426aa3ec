# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How hard a removal presses its host: what is accepted, and that the kernel is told."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

from besom import prune
from besom.effort import Effort, io_class, read_effort
from besom.errors import UsageError
from besom.run import Run


@pytest.mark.parametrize(
    ("values", "effort"),
    [
        ({}, Effort()),
        ({"workers": None, "max_rate": None, "io_class": None}, Effort()),
        ({"workers": "auto"}, Effort()),
        ({"workers": "3", "max_rate": 500, "io_class": "idle"}, Effort(3, 500, "idle")),
    ],
)
def test_an_effort_is_read(values: dict[str, Any], effort: Effort) -> None:
    assert read_effort(values) == effort


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"workers": 0}, "removal: workers: '0' is neither auto nor a count."),
        ({"workers": "many"}, "removal: workers: 'many' is neither auto nor a count."),
        ({"workers": 65}, "removal: workers: 65 are too many; give 64 or less."),
        ({"max_rate": -1}, "removal: max_rate: '-1' is not a whole number above zero."),
        ({"io_class": "realtime"}, "removal: io_class: 'realtime' is not one of best-effort, idle."),
        ({"speed": 1}, "removal: unknown key speed; the keys are workers, max_rate, io_class."),
        ([], "removal: must be a mapping with the keys workers, max_rate, io_class."),
    ],
)
def test_what_is_malformed_is_refused_in_a_sentence(values: Any, sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_effort(values, "removal: ")
    assert str(refused.value) == sentence


def ionice(thread: int) -> str:
    if not shutil.which("ionice"):
        pytest.skip("ionice is not installed")
    done = subprocess.run(["ionice", "-p", str(thread)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_thread_and_those_that_it_starts_wait_behind_others_for_so_long() -> None:
    before, seen = ionice(threading.get_native_id()), []

    def look() -> None:
        seen.append(ionice(threading.get_native_id()))

    with io_class("idle"):
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    with io_class("best-effort"):
        look()
    with io_class(""):
        look()
    assert seen == ["idle", "idle", "best-effort: prio 7", before]
    assert ionice(threading.get_native_id()) == before


def test_a_prune_removes_in_the_class_that_it_is_given(
    area: Any, make_run: Callable[..., Run], request_for: Callable[..., Any]
) -> None:
    area.file("old", days=9)
    seen = []
    run = make_run(effort=Effort(io_class="idle"))
    run.progress = lambda phase, *_: seen.append((phase, ionice(threading.get_native_id())))
    prune.prune(request_for(area, max_age="1d"), run)
    assert set(seen) == {("scan", "idle"), ("remove", "idle")}
