"""besom daemon: be the daemon, start and stop it, see it, poke it, wait for it."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable

from besom.drain_flag import is_draining, refuse_new_work
from besom.errors import BesomError
from besom.shutdown import Shutdown
from besom.units import format_duration, format_size, parse_duration, printable

from .config import find, read
from .service import is_main, is_service, systemctl
from .state import DRAINING, IDLE, STARTING, STOPPED, StateDir, Status
from .waiting import Deadline, wait_for

START_TIMEOUT = 30.0
# Beyond its drain_timeout a daemon needs a moment to finish an entry and to go.
STOP_MARGIN = 10.0
# With --no-block it only takes a job down.
SYSTEMCTL_S = 10.0


class Control:
    """One command that acts on the daemon: what it sees, how long it has waited, what it prints."""

    def __init__(self, options: Namespace, shutdown: Shutdown) -> None:
        self.options, self.shutdown = options, shutdown
        self.config = read(find(options.config, os.environ), os.environ)
        self.state = StateDir(self.config.state_dir)
        self.changed = False
        self.started = time.monotonic()

    def nobody(self) -> str:
        """That no daemon runs there; and why that may be the wrong place to look."""
        why = [self.config.sentence(problem) for problem in self.config.problems if problem.in_file]
        text = f"No daemon runs in {printable(self.state.path)}"
        return f"{text} (the configuration is broken: {why[0].rstrip('.')})" if why else text

    def timeout(self, default: float | None) -> float | None:
        given = getattr(self.options, "timeout", None)
        return default if given is None else parse_duration(given, "--timeout", zero=True)

    def finish(self, status: Status, sentence: str, code: int = 0) -> int:
        """Print what came of it; returns the exit status."""
        if self.options.json:
            result = self.to_dict(status)
            if code:
                result.update(error=sentence, status=code)
            print(json.dumps(result))
        elif not code:
            print(sentence)
        if code:
            print(f"besom: {sentence}", file=sys.stderr)
        return code

    def to_dict(self, status: Status) -> dict[str, Any]:
        return {
            "operation": f"daemon {self.options.action}",
            "changed": self.changed,
            **status.to_dict(),
            "refusing": is_draining(),
            "waited_s": round(time.monotonic() - self.started, 3),
        }

    @contextmanager
    def watching(self) -> Iterator[Callable[[Deadline, str], bool]]:
        """Give a function that waits for news of the daemon; False when the deadline is over.

        The watch stands before anything is looked at, so that no news is missed.
        """
        # Finding the C library takes longer than most commands.
        from inotify_simple import INotify, flags

        try:
            with INotify() as news:
                mask = flags.MOVED_TO | flags.CLOSE_WRITE | flags.CREATE | flags.DELETE_SELF
                news.add_watch(self.state.path, mask)

                def wait(deadline: Deadline, doing: str) -> bool:
                    status = self.state.observe()
                    fd = status.process.open() if status.process else None
                    if fd is None and status.alive:
                        # The lock outlives its process by the time that the kernel takes to close its files.
                        return wait_for([news.fd], Deadline(0.005), self.shutdown, doing) or not deadline.over
                    try:
                        heard = wait_for([news.fd, fd] if fd else [news.fd], deadline, self.shutdown, doing)
                    finally:
                        if fd is not None:
                            os.close(fd)
                    news.read(timeout=0)
                    return heard

                yield wait
        except FileNotFoundError:
            raise BesomError(f"No daemon has run in {printable(self.state.path)}; start it first.") from None


def run(control: Control) -> int:
    from .daemon import run_daemon

    refuse_new_work("the daemon")
    return run_daemon(control.config, os.environ, control.shutdown)


def start(control: Control) -> int:
    status = control.state.observe()
    if not status.alive or status.state == STARTING:
        status = _start(control)
    if status.state in (STOPPED, STARTING):
        where = printable(control.state.path)
        return control.finish(
            status, f"The daemon has not become ready in time; look at its log, and at {where}.", 1
        )
    return control.finish(status, f"The daemon runs (pid {status.pid}).")


def _start(control: Control) -> Status:
    refuse_new_work("starting the daemon")
    timeout = control.timeout(START_TIMEOUT)
    assert timeout is not None  # noqa: S101 (for mypy: the default is a number)
    deadline = Deadline(timeout)
    control.state.prepare()
    if is_service(control.config):
        systemctl("start", "--no-block", timeout=SYSTEMCTL_S)
        control.changed = True
    else:
        from .detach import start_detached

        output = os.path.join(control.state.path, "daemon.log")
        try:
            start_detached(control.config.path, output, timeout, control.shutdown)
            control.changed = True
        except BesomError:
            # Somebody else has started it meanwhile: that is what was asked for.
            if not control.state.observe().alive or control.shutdown.requested:
                raise
    return _until(control, deadline, "starting the daemon", lambda now: now.alive and now.state != STARTING)


def _until(control: Control, deadline: Deadline, doing: str, reached: Callable[[Status], bool]) -> Status:
    """Wait until the daemon's status is as wanted, or the deadline is over; returns the last status."""
    with control.watching() as wait:
        while True:
            status = control.state.observe()
            if reached(status) or not wait(deadline, doing):
                return status


def stop(control: Control) -> int:
    status = control.state.observe()
    if not status.alive:
        if not control.config.readable and "BESOM_STATE_DIR" not in os.environ:
            return control.finish(status, f"{control.nobody()}; name its place with BESOM_STATE_DIR.", 1)
        return control.finish(status, "No daemon runs.")
    allowed = control.timeout(status.stop_timeout + STOP_MARGIN)
    control.changed = True
    # Opened before it is told: the descriptor answers for this process and no later one.
    fd = status.process.open() if status.process else None
    if is_service(control.config) and is_main(status.pid):
        # Or systemd would start it again.
        systemctl("stop", "--no-block", timeout=SYSTEMCTL_S)
    elif status.state != DRAINING:
        # A second signal would cut short what a first one lets finish.
        _send(status, signal.SIGTERM)
    try:
        gone = _gone(control, fd, allowed)
        if not gone and control.options.force:
            for signum in (signal.SIGTERM, signal.SIGKILL):
                if not gone:
                    _send(status, signum)
                    gone = _gone(control, fd, STOP_MARGIN)
    finally:
        if fd is not None:
            os.close(fd)
    status = control.state.observe()
    if not gone:
        return control.finish(
            status,
            f"The daemon (pid {status.pid}) has not stopped within {format_duration(allowed or 0)}, "
            f"{status.what_runs()}; wait longer (--timeout), or end it between two entries (--force).",
            1,
        )
    return control.finish(status, "The daemon has stopped.")


def _gone(control: Control, fd: int | None, seconds: float | None) -> bool:
    doing = "waiting for the daemon to stop"
    return fd is None or wait_for([fd], Deadline(seconds), control.shutdown, doing)


def _send(status: Status, signum: int) -> None:
    if status.process is not None:
        status.process.send(signum)


def status(control: Control) -> int:
    now = control.state.observe()
    if control.options.json:
        print(json.dumps(control.to_dict(now)))
    else:
        print("\n".join(_status_lines(now)))
    return 0 if now.alive else 1


def _status_lines(now: Status) -> list[str]:
    lines = [
        f"The daemon is {now.state}" + (f" (pid {now.pid}, since {_clock(now.since)})." if now.pid else ".")
    ]
    if now.in_flight:
        lines.append(now.what_runs().capitalize() + ".")
    if now.last_run:
        last = now.last_run
        freed = format_size(last["freed_bytes"])
        lines.append(
            f"Last run: {_clock(last['ended'])}, {last['outcome']}; "
            f"removed {last['removed_entries']}, freed {freed}."
        )
        lines += [f"  {message}" for message in last["messages"]]
    if now.next_run:
        lines.append(f"Next run: {_clock(now.next_run)}.")
    lines += [f"Warning: {warning}" for warning in now.warnings]
    if now.reload_error:
        lines.append(f"The last reload was refused: {now.reload_error}")
    return lines


def _clock(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


def trigger(control: Control) -> int:
    refuse_new_work("a run of the daemon")
    now = control.state.observe()
    if not now.alive and not control.options.start:
        return control.finish(now, f"{control.nobody()}; start it, or add --start.", 1)
    if not now.alive:
        control.state.prepare()
    control.state.ask()
    control.changed = True
    if now.alive and now.process is not None and now.process.send(signal.SIGUSR1):
        return control.finish(now, f"Asked the daemon (pid {now.pid}) for a run.")
    if not control.options.start:
        return control.finish(control.state.observe(), "The daemon is gone; start it, or add --start.", 1)
    # Its first run answers the request.
    now = _start(control)
    return control.finish(now, f"Started the daemon (pid {now.pid}), which begins with a run.")


def wait(control: Control) -> int:
    wanted = control.state.asked()
    deadline = Deadline(control.timeout(None))

    def over(now: Status) -> bool:
        if not now.alive:
            return True
        answered = now.runs > 0 and now.answered >= wanted and now.state != STARTING
        return answered and (now.state == IDLE or not control.options.idle)

    now = _until(control, deadline, "waiting for the daemon's run", over)
    if not now.alive:
        return control.finish(now, "The daemon is gone before the run was completed; start it again.", 1)
    if not over(now):
        waited = format_duration(round(deadline.waited, 1))
        return control.finish(now, f"The run is not over after {waited}, {now.what_runs()}; wait longer.", 1)
    last = now.last_run or {}
    freed = format_size(last.get("freed_bytes", 0))
    sentence = (
        f"The run is over ({last.get('outcome')}): removed {last.get('removed_entries')}, freed {freed}."
    )
    return control.finish(now, sentence)


def reload(control: Control) -> int:
    now = control.state.observe()
    if not now.alive or now.process is None:
        return control.finish(now, f"{control.nobody()}; start it.", 1)
    allowed = control.timeout(START_TIMEOUT)
    before = now.reloads
    # Not through systemctl, which is what the unit's own ExecReload may call.
    now.process.send(signal.SIGHUP)
    now = _until(
        control,
        Deadline(allowed),
        "waiting for the reload",
        lambda now: not now.alive or now.reloads > before,
    )
    if not now.alive:
        return control.finish(now, "The daemon is gone; start it again.", 1)
    if now.reloads <= before:
        return control.finish(
            now,
            f"The configuration is not in force after {format_duration(allowed or 0)}, {now.what_runs()}.",
            1,
        )
    if now.reload_error:
        return control.finish(
            now, f"The new configuration is broken, so the old one stays in force: {now.reload_error}", 1
        )
    control.changed = True
    return control.finish(now, "The daemon has read its configuration again.")


ACTIONS: dict[str, Callable[[Control], int]] = {
    "run": run,
    "start": start,
    "stop": stop,
    "status": status,
    "trigger": trigger,
    "wait": wait,
    "reload": reload,
}


def daemon_command(options: Namespace, shutdown: Shutdown) -> int:
    return ACTIONS[options.action](Control(options, shutdown))
