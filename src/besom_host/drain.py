"""The shutdown of this host in phases, each with a deadline: refuse, daemon, unmount, prune.

Every phase ends at its deadline (plus at most a second): first gracefully, then by the means that are
left to it. What fails in one phase does not keep the next from its turn, unless that is configured.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Callable

from besom import children, drain_flag
from besom.errors import BesomError, Interrupted
from besom.run import Run
from besom.shutdown import Shutdown
from besom.units import format_duration, format_size, printable
from besom.unmount import UnmountRequest, unmount

from .config import Config
from .process import Process, own_command
from .service import is_main, is_service, systemctl
from .state import DRAINING, StateDir, Status
from .waiting import Deadline, wait_for

# What a phase keeps of its time for its last means: at most this, and never more than a quarter.
_LAST_MEANS_S = 5.0
_REPORT_BYTES = 16 << 20
_REFUSE_TIMEOUT_S = 5.0


@dataclass
class Phase:
    """One phase and how it went. Times are seconds since the epoch, timeout is in seconds.

    state: done, failed, skipped, or planned in a dry run; forced: the graceful way took too long;
    drained and abandoned: operations that came to their end, or were cut short between two entries.
    """

    name: str
    timeout: float
    state: str = "skipped"
    started: float | None = None
    ended: float | None = None
    changed: bool = False
    timed_out: bool = False
    forced: bool = False
    drained: int = 0
    abandoned: int = 0
    cleanups_run: int = 0
    cleanups_failed: int = 0
    summary: str = ""
    messages: list[str] = field(default_factory=list)
    report: dict[str, Any] | None = None

    @property
    def took(self) -> float:
        return (self.ended or 0.0) - (self.started or 0.0)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "took_s": round(self.took, 3)}

    def fail(self, message: str) -> None:
        self.state = "failed"
        self.messages.append(message)


class Drain:
    """One drain of this host under a configuration."""

    def __init__(self, config: Config, shutdown: Shutdown, dry_run: bool = False) -> None:
        self.config, self.shutdown, self.dry_run = config, shutdown, dry_run
        self.state = StateDir(config.state_dir)
        self.phases: list[Phase] = []

    def run(self) -> list[Phase]:
        """Go through the phases; a signal ends the one at work, and those after it are not begun."""
        steps: list[tuple[Phase, Callable[[Phase], None]]] = [
            (Phase("refuse", _REFUSE_TIMEOUT_S), self._refuse),
            (Phase("daemon", self.config.daemon_timeout), self._daemon),
            (Phase("unmount", self.config.unmount_timeout), self._unmount),
            (Phase("prune", self.config.prune_timeout), self._prune),
        ]
        self.phases = [phase for phase, _ in steps]
        stopped = ""
        for phase, work in steps:
            if self.shutdown.requested or stopped:
                phase.summary = stopped or "interrupted before"
                continue
            with _timed(phase, self.dry_run):
                work(phase)
            if phase.state == "failed" and self.config.on_phase_failure == "stop":
                stopped = f"{phase.name} failed, and on_phase_failure is stop"
        return self.phases

    def _refuse(self, phase: Phase) -> None:
        refusing = drain_flag.is_draining()
        phase.changed = not refusing if self.dry_run else drain_flag.set_flag()
        phase.summary = "new work is refused" if phase.changed else "new work is refused already"

    def _daemon(self, phase: Phase) -> None:
        status = self.state.observe()
        if not status.alive or status.process is None:
            phase.summary = "no daemon runs"
            if not self.config.readable:
                phase.fail(
                    f"Where the daemon is, and what to unmount, cannot be known: {self.config.sentences[0]}"
                )
            return
        phase.changed = True
        phase.summary = f"pid {status.pid} is {status.state}"
        if self.dry_run:
            return
        at_work = [f"{one['operation']} of {one['path']}" for one in status.in_flight]
        fd = status.process.open()
        try:
            gone = fd is None or self._stop(phase, status, status.process, fd)
        finally:
            if fd is not None:
                os.close(fd)
        after = self.state.observe()
        if at_work:
            cut = phase.forced or (after.last_run or {}).get("outcome") == "interrupted"
            phase.abandoned, phase.drained = (len(at_work), 0) if cut else (0, len(at_work))
        phase.summary = f"pid {status.pid} stopped" if gone else f"pid {status.pid} is still there"
        if phase.timed_out:
            what = ", ".join(at_work) or status.state
            end = "was ended" if gone else "could not be ended"
            phase.fail(
                f"The daemon (pid {status.pid}) did not drain within {format_duration(phase.timeout)} "
                f"({what}); it {end} by force."
            )

    def _stop(self, phase: Phase, status: Status, process: Process, fd: int) -> bool:
        """TERM, TERM again when the time is nearly up, KILL when it is; whether it is gone."""
        whole = Deadline(phase.timeout)
        last = min(_LAST_MEANS_S, phase.timeout / 4)

        def gone(seconds: float) -> bool:
            return wait_for([fd], Deadline(seconds), self.shutdown, "draining the daemon")

        try:
            if is_service(self.config) and is_main(status.pid):
                # Or systemd would start it again.
                systemctl("stop", "--no-block", timeout=last)
            elif status.state != DRAINING:
                process.send(signal.SIGTERM)
        except BesomError as error:
            phase.messages.append(str(error))
            process.send(signal.SIGTERM)
        if gone(max(0.0, (whole.left or 0.0) - last)):
            return True
        phase.timed_out = phase.forced = True
        process.send(signal.SIGTERM)
        if gone(whole.left or 0.0):
            return True
        process.send(signal.SIGKILL)
        return gone(0.5)

    def _unmount(self, phase: Phase) -> None:
        config = self.config
        if not config.mounts:
            phase.summary = "no mount is configured"
            return
        request = UnmountRequest(
            tuple(config.mounts), phase.timeout, lazy=config.unmount_lazy, recursive=True
        )
        report = unmount(request, Run(dry_run=self.dry_run, shutdown=self.shutdown))
        phase.report, phase.changed = report.to_dict(), report.changed
        counts = dict.fromkeys(("would_unmount", "unmounted", "detached", "absent", "busy", "failed"), 0)
        for one in report.mounts:
            counts[one.state] = counts.get(one.state, 0) + 1
            if one.state == "detached":
                phase.forced = True
                phase.messages.append(f"{printable(one.path)} was detached lazily: {one.message}")
        phase.timed_out = bool(counts["detached"] or counts["busy"])
        phase.summary = ", ".join(
            f"{count} {state.replace('_', ' ')}" for state, count in counts.items() if count
        )
        for message in report.messages:
            phase.fail(message)
        if report.interrupted:
            self.shutdown.check("unmounting")

    def _prune(self, phase: Phase) -> None:
        """In a child, so that not even a hung file system keeps it beyond its deadline."""
        config = ["--config", self.config.path] if self.config.path else []
        how = ["--dry-run"] if self.dry_run else ["--while-draining"]
        last = min(_LAST_MEANS_S, phase.timeout / 4)
        ended = children.run(
            [*own_command(), *config, "--json", "housekeep", *how],
            phase.timeout - last,
            self.shutdown,
            grace=last,
            env={**os.environ, "BESOM_STATE_DIR": self.config.state_dir},
            limit=_REPORT_BYTES,
        )
        report: dict[str, Any] = {}
        with suppress(ValueError):
            # What it says on stderr may stand around its one object.
            report, _end = json.JSONDecoder().raw_decode(ended.text[ended.text.find('{"operation"') :])
        phase.report = report or None
        phase.cleanups_run = report.get("cleanups_run", 0)
        phase.cleanups_failed = len(report.get("cleanups_failed", ()))
        phase.changed = bool(report.get("changed"))
        phase.timed_out = phase.forced = ended.timed_out
        phase.abandoned = 1 if ended.timed_out or ended.interrupted else 0
        figures = report.get("planned" if self.dry_run else "removed") or {"entries": 0, "bytes": 0}
        verb = "would remove" if self.dry_run else "removed"
        phase.summary = f"{verb} {figures['entries']}, {format_size(figures['bytes'])}"
        if ended.interrupted:
            self.shutdown.check("pruning once more")
        if ended.timed_out:
            phase.fail(
                f"The last prune was not over within {format_duration(phase.timeout)}; "
                "it was ended between two entries."
            )
        elif ended.status != 0:
            said = "" if report else printable(ended.text[-400:])
            warnings = " ".join(self.config.sentences)
            phase.fail(report.get("error") or said or f"It ended with {ended.status}. {warnings}".strip())


@contextmanager
def _timed(phase: Phase, dry_run: bool) -> Iterator[None]:
    """Note when the phase began and ended; an error is its failure, and nothing beyond it."""
    phase.started = time.time()
    phase.state = "planned" if dry_run else "done"
    try:
        yield
    except Interrupted as error:
        phase.fail(str(error))
    except BesomError as error:
        phase.fail(str(error))
    except OSError as error:
        phase.fail(f"{error.filename or phase.name}: {error.strerror or error}.")
    finally:
        phase.ended = time.time()
