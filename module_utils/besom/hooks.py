# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Commands of a store's owner around a prune: before anything goes, and after, whatever came of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Callable

from .errors import BesomError
from .policy import Hooks
from .report import Report
from .run import Run
from .shutdown import Shutdown
from .units import format_duration, printable

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SHOWN = 400


class HookFailed(BesomError):
    """A hook did not end well; its store was left alone if it was the one before."""


class _Hurry(Shutdown):
    """The flag for what is to run after a signal as well: only a second one ends it."""

    def __init__(self, shutdown: Shutdown) -> None:
        super().__init__()
        self._shutdown = shutdown

    @property
    def requested(self) -> bool:
        return self._shutdown.hurry


@contextmanager
def around(hooks: Hooks, store: str, report: Callable[[], Report], run: Run) -> Iterator[None]:
    """Run hooks.before, and hooks.after when the block is left, also by an interruption.

    report gives the figures as they are by then. Raises HookFailed when the one before fails, and
    Interrupted when a signal ends it (the block is not entered then); what the one after fails in is a
    failure in the report.
    """
    if hooks.before:
        try:
            _run("before_prune", hooks.before, {"BESOM_STORE": store}, hooks.timeout, run.shutdown, run)
        except HookFailed as error:
            run.shutdown.check(f"running before_prune of {printable(store)}")
            raise HookFailed(f"{printable(store)} was left alone: {error}.") from None
    if not hooks.after:
        yield
        return

    def after(timeout: float) -> None:
        found = report()
        outcome = "interrupted" if found.interrupted else "failed" if found.failures.total else "done"
        told = {
            "BESOM_STORE": store,
            "BESOM_OUTCOME": outcome,
            "BESOM_REMOVED_ENTRIES": str(found.removed.entries),
            "BESOM_FREED_BYTES": str(found.removed.bytes),
        }
        try:
            _run("after_prune", hooks.after, told, timeout, _Hurry(run.shutdown), run)
        except HookFailed as error:
            found.failures.add(store, str(error))
            raise

    with run.shutdown.cleanup(f"after_prune of {printable(store)}", after, hooks.timeout):
        yield


def _run(
    key: str, command: str, told: Mapping[str, str], timeout: float, shutdown: Shutdown, run: Run
) -> None:
    # 10 ms that only a hook needs.
    from .children import run as run_command

    env = {"PATH": _PATH, "LC_ALL": "C.UTF-8", "HOME": os.environ.get("HOME", "/"), **told}
    ended = run_command(["/bin/sh", "-c", command], timeout, shutdown, env=env)
    if ended.text:
        run.output(f"{key} of {printable(told['BESOM_STORE'])}", printable(ended.text))
    if ended.status == 0 and not ended.timed_out:
        return
    if ended.timed_out:
        what = f"did not end within {format_duration(timeout)} (hook_timeout) and was killed"
    elif ended.interrupted:
        what = "was ended by a signal to besom"
    else:
        what = f"ended with status {ended.status}"
    said = printable(" ".join(ended.text.split())[-_SHOWN:])
    raise HookFailed(f"{key} {what}{': ' + said if said else ''}")
