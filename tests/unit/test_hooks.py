# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Commands around a prune: real shells, under the real lock."""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable

import pytest

from besom import entry_removal, file_removal, inventory
from besom.effort import Effort
from besom.errors import BesomError, Interrupted, UsageError
from besom.policy import read_store
from besom.prune import Ahead, Request, prune
from besom.report import Report
from besom.root import Root
from besom.run import Run


@pytest.fixture
def pruning(area: Any, make_run: Callable[..., Run]) -> Callable[..., Report]:
    """pruning(max_entries, **hooks): the report of a prune of area with these hooks."""

    def run(max_entries: int = 1, **keys: Any) -> Report:
        values = {"path": str(area.path), "layout": "files", "max_entries": max_entries}
        return prune(Request(read_store({**values, **keys})), run.how)

    run.how = make_run()
    return run


def test_both_run_under_the_lock_and_are_told(
    area: Any, tmp_path: Path, pruning: Callable[..., Report]
) -> None:
    area.file("old", 3)
    area.file("new", 1)
    said = tmp_path / "said"
    locked = f"flock -n {area.path} true; echo locked=$?"
    report = pruning(
        before_prune=f"{{ ls {area.path}; {locked}; }} >> {said}",
        after_prune=f"{{ ls {area.path}; {locked}; env | grep ^BESOM_ | sort; }} >> {said}",
    )
    assert report.removed.entries == 1
    assert said.read_text().split() == [
        *("new", "old", "locked=1", "new", "locked=1"),
        *("BESOM_FREED_BYTES=4096", "BESOM_OUTCOME=done", "BESOM_REMOVED_ENTRIES=1"),
        f"BESOM_STORE={area.path}",
    ]


def test_neither_runs_when_nothing_goes_nor_in_a_dry_run(
    area: Any, tmp_path: Path, pruning: Any, make_run: Callable[..., Run]
) -> None:
    area.file("one", 3)
    said = tmp_path / "said"
    hooks = {"before_prune": f"touch {said}", "after_prune": f"touch {said}"}
    pruning(**hooks)
    area.file("two", 2)
    pruning.how = make_run(dry_run=True)
    assert pruning(**hooks).planned.entries == 1
    assert not said.exists()


def test_a_store_is_left_alone_when_the_hook_before_fails(area: Any, pruning: Callable[..., Report]) -> None:
    area.file("old", 3)
    area.file("new", 1)
    with pytest.raises(BesomError) as caught:
        pruning(before_prune="echo the service is busy >&2; exit 7")
    assert "before_prune ended with status 7: the service is busy" in str(caught.value)
    assert str(area.path) in str(caught.value)
    assert area.names() == ["new", "old"]


def test_the_failure_of_the_hook_after_is_one_of_the_prune(area: Any, pruning: Callable[..., Report]) -> None:
    area.file("old", 3)
    area.file("new", 1)
    report = pruning(after_prune="exit 3")
    assert report.removed.entries == 1
    assert [item["reason"] for item in report.failures.items] == ["after_prune ended with status 3"]


def test_a_hook_that_takes_too_long_goes_with_all_that_it_started(
    area: Any, tmp_path: Path, pruning: Callable[..., Report]
) -> None:
    area.file("old", 3)
    area.file("new", 1)
    pid = tmp_path / "pid"
    with pytest.raises(BesomError, match=r"did not end within 300ms \(hook_timeout\) and was killed"):
        pruning(
            before_prune=f"sh -c 'echo $$ > {pid}; trap \"\" TERM; sleep 600' & wait", hook_timeout="0.3s"
        )
    # KILL was sent; the kernel says when it has come to its end.
    with suppress(ProcessLookupError):
        fd = os.pidfd_open(int(pid.read_text()))
        assert select.select([fd], [], [], 20)[0]
        os.close(fd)
    assert area.names() == ["new", "old"]


def test_a_signal_ends_the_hook_before_and_the_prune(area: Any, tmp_path: Path, pruning: Any) -> None:
    area.file("old", 3)
    area.file("new", 1)
    shutdown = pruning.how.shutdown
    before = signal.signal(signal.SIGTERM, shutdown.request)
    try:
        with pytest.raises(Interrupted, match="running before_prune"):
            pruning(before_prune=f"kill -TERM {os.getpid()}; sleep 600")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert area.names() == ["new", "old"]


def test_the_hook_after_runs_when_the_prune_is_interrupted(
    area: Any, tmp_path: Path, make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        area.tree(str(number), number + 1)
    monkeypatch.setattr(entry_removal, "_WORK", 1)
    run = make_run(effort=Effort(workers=1))
    # A signal after the first entry.
    run.progress = lambda phase, done, total: (
        run.shutdown.request() if phase == "remove" and not run.shutdown.requested else None
    )
    said = tmp_path / "said"
    values = {"path": str(area.path), "layout": "trees", "max_entries": 1}
    hook = f"echo $BESOM_OUTCOME $BESOM_REMOVED_ENTRIES > {said}"
    report = prune(Request(read_store({**values, "after_prune": hook})), run)
    assert (report.interrupted, report.removed.entries) == (True, 1)
    assert said.read_text() == "interrupted 1\n"


def test_what_a_hook_prints_is_handed_on_as_one_line(
    area: Any, pruning: Any, make_run: Callable[..., Run]
) -> None:
    area.file("old", 3)
    area.file("new", 1)
    said: list[tuple[str, str]] = []
    pruning.how = make_run(output=lambda hook, text: said.append((hook, text)))
    pruning(before_prune="echo one; echo two >&2", after_prune="true")
    assert said == [(f"before_prune of {area.path}", "one\\x0atwo")]


@pytest.mark.parametrize(
    "keys", [{"before_prune": 3}, {"after_prune": " "}, {"before_prune": "a\0b"}, {"hook_timeout": 0}]
)
def test_a_malformed_hook_is_refused(area: Any, pruning: Any, keys: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        pruning(**keys)


@pytest.mark.parametrize("limits", [{"max_age": "1d"}, {"max_entries": 1}], ids=["by age", "by number"])
def test_the_hook_after_is_told_of_an_error_and_of_what_is_known_to_be_gone(
    area: Any,
    tmp_path: Path,
    make_run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, Any],
) -> None:
    monkeypatch.setattr(inventory, "CHUNK", 2)
    for number in range(40):
        area.file(f"{number % 4}/{number}", days=9)
    left, alone = iter(range(5)), os.getpid()

    def unlink(name: str, **options: Any) -> None:
        if next(left, None) is None and os.getpid() != alone:
            os.kill(os.getpid(), signal.SIGKILL)
        os.remove(name, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    said = tmp_path / "said"
    hook = f"echo $BESOM_OUTCOME $BESOM_REMOVED_ENTRIES > {said}"
    values = {"path": str(area.path), "layout": "files", "after_prune": hook, **limits}
    with pytest.raises(BesomError, match="ended by signal 9"):
        prune(Request(read_store(values)), make_run())
    outcome, removed = said.read_text().split()
    assert outcome == "failed"
    assert 5 <= int(removed) <= 40 - len(area.files())


@pytest.mark.parametrize(
    ("error", "outcome"),
    [(Interrupted("so it was", signal.SIGTERM), "interrupted"), (MemoryError(), "failed")],
    ids=["signal", "error"],
)
def test_the_hook_after_is_told_what_ended_the_prune(
    area: Any, tmp_path: Path, make_run: Callable[..., Run], error: BaseException, outcome: str
) -> None:
    said = tmp_path / "said"
    hook = f"echo $BESOM_OUTCOME $BESOM_REMOVED_ENTRIES > {said}"
    values = {"path": str(area.path), "layout": "files", "max_entries": 1, "after_prune": hook}
    request = Request(read_store(values))

    def be_ended(root: Root) -> None:
        with Ahead(request, root, make_run()) as ahead:
            ahead.begin()
            raise error

    with Root(str(area.path)) as root, pytest.raises(type(error)):
        be_ended(root)
    assert said.read_text() == f"{outcome} 0\n"


def test_a_failure_after_the_reading_counts_no_removal_twice(
    area: Any,
    tmp_path: Path,
    make_run: Callable[..., Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(20):
        area.file(f"{number % 2}/{number}", days=9)
    os.link(area.at("0/0"), area.at("1/also"))
    add = file_removal.FileRemover.add

    def fail(self: Any, chunk: Any, listed: Any) -> None:
        if chunk in self.found.chunks:
            raise BesomError("so it was")
        add(self, chunk, listed)

    monkeypatch.setattr(file_removal.FileRemover, "add", fail)
    said = tmp_path / "said"
    hook = f"echo $BESOM_OUTCOME $BESOM_REMOVED_ENTRIES > {said}"
    values = {"path": str(area.path), "layout": "files", "max_age": "1d", "after_prune": hook}
    with pytest.raises(BesomError, match="so it was"):
        prune(Request(read_store(values)), make_run())
    assert said.read_text() == "failed 19\n"
    assert area.files() == {"0/0", "1/also"}
