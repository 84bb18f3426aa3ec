# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from besom.errors import UsageError
from besom.housekeep import housekeep, perform, tasks_of
from besom.policy import Policy, Store, Temps
from besom.preflight import Need, preflight


def store_of(area: Any, **limits: Any) -> Store:
    return Store(str(area.path), "files", Policy.from_mapping(limits))


@pytest.fixture
def temps(make_area: Callable[[str], Any]) -> Any:
    return make_area("temps")


def test_temps_are_swept_and_stores_pruned_in_one_go(
    area: Any, temps: Any, make_run: Callable[..., Any]
) -> None:
    for number in range(4):
        area.file(str(number), days=number)
    temps.tree(".temp-a", days=9)
    outcome = housekeep([store_of(area, max_entries=3)], [Temps(str(temps.path))], make_run())
    assert (area.files(), temps.names()) == ({"0", "1", "2"}, [])
    assert [report.operation for report in outcome.reports] == ["sweep", "prune"]
    assert (outcome.changed, outcome.status, outcome.messages) == (True, 0, [])
    result = outcome.to_dict("housekeep")
    assert result["removed"] == {"entries": 2, "bytes": 3 * 4096}
    assert len(result["reports"]) == 2
    again = housekeep([store_of(area, max_entries=3)], [Temps(str(temps.path))], make_run())
    assert not again.changed


def test_a_root_that_is_refused_is_found_before_anything_is_removed(
    area: Any, temps: Any, make_run: Callable[..., Any]
) -> None:
    area.file("old", days=9)
    temps.file(".temp-old", days=9)
    link = temps.symlink("link", str(area.path))
    for bad in (Store("/etc", "files", Policy(max_entries=1)), Store(link, "files", Policy(max_entries=1))):
        with pytest.raises(UsageError):
            housekeep([store_of(area, max_age="1d"), bad], [Temps(str(temps.path))], make_run())
    with pytest.raises(UsageError):
        housekeep([store_of(area, max_age="1d")], [Temps(str(temps.path)), Temps("/usr")], make_run())
    assert (area.files(), temps.files()) == ({"old"}, {".temp-old", "link"})


def test_stores_that_overlap_are_refused_before_anything_is_removed(
    area: Any, make_run: Callable[..., Any]
) -> None:
    area.file("sub/old", days=9)
    inner = Store(area.at("sub"), "files", Policy(max_entries=1))
    with pytest.raises(UsageError, match="overlap"):
        housekeep([store_of(area, max_age="1d"), inner], [], make_run())
    assert area.files() == {"sub/old"}


def test_temps_may_lie_in_a_store_and_go_first(area: Any, make_run: Callable[..., Any]) -> None:
    area.file(".temp-a", days=2, size=50_000)
    area.file("oldest", days=9)
    stores, areas = [store_of(area, max_size="4K")], [Temps(str(area.path))]
    dry = housekeep(stores, areas, make_run(dry_run=True))
    assert [report.planned.entries for report in dry.reports] == [1, 0]
    housekeep(stores, areas, make_run())
    assert area.files() == {"oldest"}


def test_a_dry_run_knows_that_trash_of_one_store_shares_its_bytes_with_another(
    area: Any, temps: Any, make_run: Callable[..., Any], allocated: Callable[..., int]
) -> None:
    trash = area.tree(".besom-trash-0123456789abcdef", days=9, files={})
    os.link(temps.file("old", days=9, size=50_000), os.path.join(trash, "link"))
    stores = [store_of(area, max_age="1d"), store_of(temps, max_age="1d")]
    dry = housekeep(stores, [], make_run(dry_run=True))
    before = allocated(area, temps, directories=True)
    real = housekeep(stores, [], make_run())
    assert [report.planned for report in dry.reports] == [report.removed for report in real.reports]
    freed = sum(report.removed.bytes for report in real.reports)
    assert freed == before - allocated(area, temps, directories=True) > 50_000


def test_what_does_not_exist_yet_is_skipped_with_a_note(
    area: Any, tmp_path: Path, make_run: Callable[..., Any]
) -> None:
    area.file("old", days=9)
    missing = Store(str(tmp_path / "missing"), "files", Policy(max_entries=1))
    outcome = housekeep([missing, store_of(area, max_age="1d")], [], make_run())
    assert (outcome.status, area.files()) == (0, set())
    assert outcome.notes == [f"{tmp_path}/missing does not exist yet; it was skipped."]


def test_a_store_that_is_locked_fails_with_75_and_the_next_has_its_turn(
    area: Any, temps: Any, make_run: Callable[..., Any], hold: Callable[..., Any]
) -> None:
    for one in (area, temps):
        one.file("old", days=9)
    held = hold(area.path)
    outcome = housekeep([store_of(area, max_age="1d"), store_of(temps, max_age="1d")], [], make_run())
    assert (area.files(), temps.files()) == ({"old"}, set())
    assert outcome.status == 75
    assert f"pid {held.pid} " in outcome.messages[0]


def test_a_failure_beside_a_held_lock_is_not_taken_for_contention(
    area: Any, temps: Any, make_run: Callable[..., Any], hold: Callable[..., Any], tmp_path: Path
) -> None:
    area.file("old", days=9)
    hold(area.path)
    (tmp_path / "file").touch()
    tasks = tasks_of(
        [store_of(area, max_age="1d"), Store(str(tmp_path / "file"), "files", Policy())], [], make_run()
    )
    outcome = perform(tasks, make_run())
    assert [error.status for error in outcome.errors] == [75, 2]
    assert outcome.status == 2


def test_a_signal_ends_it_between_two_tasks_with_its_own_status(
    area: Any, temps: Any, make_run: Callable[..., Any]
) -> None:
    for one in (area, temps):
        one.file("old", days=9)
        one.file("old2", days=9)

    def stop(phase: str, _done: int, _total: int) -> None:
        if phase == "remove":
            run.shutdown.request(signal.SIGINT)

    run = make_run(progress=stop)
    outcome = housekeep([store_of(area, max_age="1d"), store_of(temps, max_age="1d")], [], run)
    assert outcome.status == 130
    assert len(temps.files()) == 2
    assert "Interrupted. SIGINT came" in outcome.messages[0]


@pytest.mark.root
@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(("need", "status"), [(3, 0), (4, 3)])
def test_the_gate_is_judged_by_the_room_that_housekeeping_makes(
    area: Any, mount: Callable[..., None], make_run: Callable[..., Any], dry_run: bool, need: int, status: int
) -> None:
    mount("-t", "tmpfs", "-o", "size=4M,mode=755", "besom-test", area.path)
    area.file("old", days=9, size=2 * 1024**2)
    area.file("new", days=0, size=1024**2)
    run = make_run(dry_run=dry_run)

    def gate() -> Any:
        return preflight([Need(str(area.path), need * 1024**2)], lambda: None, forecast=run.forecast)

    outcome = housekeep([store_of(area, max_age="1d")], [], run, gate)
    assert outcome.status == status
    assert [message.split(" on ")[0] for message in outcome.messages] == ["Insufficient disk space"] * (
        status == 3
    )
    result = outcome.to_dict("housekeep")
    assert result["sufficient"] == (status == 0)
    assert result["file_systems"][0]["available_bytes"] == 3 * 1024**2


def test_a_store_whose_directory_cannot_be_read_fails_in_one_sentence(
    area: Any, temps: Any, make_run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    area.file("old", days=9)
    temps.file("not-a-directory")
    wrong = Store(temps.at("not-a-directory"), "files", Policy(max_entries=1))
    with pytest.raises(UsageError, match="is not a directory"):
        housekeep([wrong, store_of(area, max_age="1d")], [], make_run())
    assert os.listdir(area.path) == ["old"]
