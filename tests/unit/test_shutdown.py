# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The coordinator: what is at work is counted, what was begun is ended, and clean-ups always run."""

from __future__ import annotations

import signal

import pytest

from besom.errors import BesomError, Interrupted
from besom.shutdown import Shutdown


def test_new_work_is_refused_once_a_shutdown_has_begun() -> None:
    shutdown = Shutdown()
    with shutdown.operation("the first"):
        assert shutdown.in_flight == ["the first"]
        shutdown.request(signal.SIGTERM)
        refusal = pytest.raises(Interrupted, match=r"^Interrupted\. SIGTERM came.*the second")
        with refusal, shutdown.operation("the second"):
            raise AssertionError("it was begun")
    assert shutdown.in_flight == []
    assert (shutdown.drained, shutdown.abandoned) == (1, 0)


def test_work_that_is_cut_short_counts_as_abandoned() -> None:
    shutdown = Shutdown()

    def work() -> None:
        with shutdown.operation("it"):
            shutdown.request(signal.SIGINT)
            shutdown.check("at work")

    with pytest.raises(Interrupted) as caught:
        work()
    assert caught.value.status == 130
    assert (shutdown.drained, shutdown.abandoned, shutdown.in_flight) == (0, 1, [])


def test_work_before_a_shutdown_counts_as_neither() -> None:
    shutdown = Shutdown()
    with shutdown.operation("it"):
        pass
    assert (shutdown.drained, shutdown.abandoned) == (0, 0)


def test_a_second_signal_means_now_and_the_first_stays_the_reason() -> None:
    shutdown = Shutdown()
    shutdown.request(signal.SIGTERM)
    assert not shutdown.hurry
    shutdown.request(signal.SIGINT)
    assert (shutdown.hurry, shutdown.signum) == (True, signal.SIGTERM)


def test_cleanups_run_last_in_first_out_and_a_failure_keeps_none_back() -> None:
    shutdown, said = Shutdown(), []

    def fails(_timeout: float) -> None:
        raise BesomError("no")

    def broken(_timeout: float) -> None:
        raise OSError("disk")

    shutdown.push("first", lambda timeout: said.append(("first", timeout)), 1.0)
    shutdown.push("second", fails, 1.0)
    shutdown.push("third", broken, 1.0)
    popped = shutdown.push("popped", lambda timeout: said.append(("popped", timeout)), 1.0)
    shutdown.push("last", lambda timeout: said.append(("last", timeout)), 2.0)
    shutdown.pop(popped)
    shutdown.clean_up()
    assert said == [("last", 2.0), ("first", 1.0)]
    assert shutdown.cleanups_run == 4
    assert shutdown.cleanups_failed == ["third: disk", "second: no"]
    shutdown.clean_up()
    assert shutdown.cleanups_run == 4


def test_a_cleanup_runs_when_its_block_is_left_by_an_interruption() -> None:
    shutdown, said = Shutdown(), []

    def work() -> None:
        with shutdown.cleanup("it", said.append, 3.0):
            shutdown.request()
            shutdown.check()

    with pytest.raises(Interrupted):
        work()
    assert said == [3.0]
    shutdown.clean_up()
    assert said == [3.0]
