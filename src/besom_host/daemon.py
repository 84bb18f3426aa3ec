"""The prune daemon: housekeeping at an interval and on request, until it is told to drain.

Signals are taken where they cannot be lost: while idle they are blocked and waited for with
sigtimedwait(2); while at work a handler notes them, and work looks between two entries.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pkgutil import iter_modules
from typing import IO, Any

import besom
from besom.drain_flag import PATH as FLAG
from besom.drain_flag import is_draining
from besom.errors import BesomError
from besom.run import Run
from besom.shutdown import Shutdown
from besom.units import format_duration, printable

from . import log
from .clock import Clock
from .config import Config, find, read
from .cycle import Round, keep_house
from .notify import ONCE, notify, notify_reloading, watchdog_s
from .process import Process
from .shared_lock import redis_locks_of
from .state import DRAINING, IDLE, RUNNING, STARTING, StateDir, Status

SIGNALS = (signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
# A run that frees nothing although it should doubles the interval, up to this many times it.
_MOST_BACK_OFF = 16
_TICK_S = 0.05
_REFUSED_S = 60.0  # a host that drains is asked again after this
_LONGEST_WAIT_S = 86400.0  # the system call cannot wait for every interval that can be configured
_MOST_MESSAGES = 20
# Events that are on their way when the daemon ends get this long.
_LAST_WORDS_S = 1.0


class Daemon:
    """One daemon's life: run() from its start to its drain."""

    def __init__(self, config: Config, env: Mapping[str, str], shutdown: Shutdown) -> None:
        self.config, self.env, self.shutdown = config, env, shutdown
        self.state = StateDir(config.state_dir)
        self.status = Status(
            STARTING,
            Process.current(),
            since=time.time(),
            config=config.path,
            stop_timeout=config.stop_timeout,
        )
        self.asked = self.reload_asked = False
        self.drain_signal = 0
        self.drain_deadline = 0.0
        self.back_off = 1
        self.clock = Clock()
        # The monotonic time of the next run; the first is due at once.
        self.due = time.monotonic()
        self.told_watchdog = time.monotonic()
        self.unwritten = self.news = self.publishing = False
        self.place: IO[str] | None = None

    def run(self) -> int:
        """Keep house until drained; returns the exit status. Raises AlreadyRuns, UsageError."""
        # Before anybody can learn of this process: the default of these signals is death.
        for signum in SIGNALS:
            signal.signal(signum, self.heard)
        early, self.shutdown.signum = self.shutdown.signum, 0
        if early:
            self.heard(early)
        # Not given back before the process ends: a place that is free is that of a daemon that is gone.
        self.place = self.state.acquire()
        refusals = log.configure(self.config)
        log.tell(
            "daemon_started",
            interval=format_duration(self.config.interval),
            path=printable(self.config.path) or "(none)",
            stores=len(self.config.stores),
            temps=len(self.config.temps),
        )
        self._warn_of_config(refusals)
        previous = self.state.observe()
        self.status.answered = min(previous.answered, self.state.asked())
        self.status.last_run = previous.last_run
        self._publish(IDLE)
        notify("READY=1", "STATUS=Ready.")
        if os.environ.pop(ONCE, ""):
            # Whoever has started it listens no longer, and somebody else may on that name.
            os.environ.pop("NOTIFY_SOCKET", None)
        try:
            while not self.drain_signal:
                try:
                    self._turn()
                except Exception as error:  # noqa: BLE001 (nothing ends a daemon but a signal)
                    self._survive(error)
        finally:
            self._publish(DRAINING)
            log.tell("daemon_stopped", runs=self.status.runs)
            log.close(_LAST_WORDS_S)
        return 0

    def _survive(self, error: Exception) -> None:
        """Go on after an error that nobody has foreseen, at the time of the next run and not before."""
        self.due = max(self.due, time.monotonic() + min(self.config.interval, _REFUSED_S))
        log.tell("run_crashed", error=repr(error))
        with suppress(Exception):
            self._publish(IDLE)
        # Whatever it is, it shall not keep a processor busy.
        time.sleep(1.0)

    def heard(self, signum: int, _frame: Any = None) -> None:
        """Note a signal; what it asks for is done where work can be left."""
        if signum == signal.SIGUSR1:
            self.asked = True
        elif signum == signal.SIGHUP:
            self.reload_asked = True
        elif signum == signal.SIGALRM:
            self._tick()
        elif self.drain_signal:
            self.shutdown.request(signum)
        else:
            self.drain_signal = signum
            self.drain_deadline = time.monotonic() + self.config.drain_timeout
            if not self.config.drain_timeout:
                self.shutdown.request(signum)
            with suppress(Exception):  # it would be raised in the midst of whatever is at work
                notify("STOPPING=1")
                self._publish(DRAINING)

    def _tick(self) -> None:
        """What has its time while work goes on: the watchdog, and the end of a drain's patience."""
        now = time.monotonic()
        if self.drain_signal and not self.shutdown.requested and now >= self.drain_deadline:
            self.shutdown.request(self.drain_signal)
        every = watchdog_s()
        if every and now - self.told_watchdog >= every:
            self.told_watchdog = now
            notify("WATCHDOG=1")

    def _turn(self) -> None:
        """One run if it is time for one, else one wait for the next or for a signal."""
        # Blocked from before the flags are looked at until the wait is over: nothing falls in between.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._attend()
            now = time.monotonic()
            if not (self.drain_signal or self.asked or now >= self.due):
                every = watchdog_s()
                heard = signal.sigtimedwait(SIGNALS, min(self.due - now, every or _LONGEST_WAIT_S))
                self._tick()
                if heard is not None:
                    self.heard(heard.si_signo)
                return
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if not self.drain_signal:
            self._run_once()

    def _run_once(self) -> None:
        if is_draining():
            # What was asked for is answered by the first run after that.
            self.asked = False
            self.due = time.monotonic() + min(self.config.interval, _REFUSED_S)
            log.tell("run_refused", path=FLAG)
            self._publish(IDLE)
            return
        cause = "asked" if self.asked else "due"
        self.asked = False
        # Read after the flag is taken back: a request that comes later causes one more run.
        number = self.state.asked()
        began, started = time.time(), time.monotonic()
        # Whatever becomes of this run, the next is not before its time.
        self.due = started + self.config.interval
        self._publish(RUNNING)
        ahead = self.clock.ahead() // 10**9
        if ahead:
            log.tell("clock_doubted", ahead=format_duration(ahead), ahead_s=ahead)
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)
        try:
            found = keep_house(*self._in_force(), cause, self._watch, self._in_force)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.status.in_flight = []
        self.status.last_run = {
            "began": began,
            "ended": time.time(),
            "outcome": found.result,
            "removed_entries": found.removed_entries,
            "freed_bytes": found.freed_bytes,
            "messages": [log.shown(message) for message in found.outcome.messages[:_MOST_MESSAGES]],
        }
        if found.result != "interrupted":
            self.status.answered = number
            self.status.runs += 1
        self._plan_next(started, found)
        self._publish(IDLE)

    def _in_force(self) -> tuple[Config, Run]:
        """The configuration and how to run under it, once what was asked for meanwhile is done."""
        self._attend()
        run = Run(
            lock_timeout=self.config.lock_timeout,
            lock_option="lock_timeout",
            effort=self.config.effort,
            shared_lock=redis_locks_of(self.config),
            shutdown=self.shutdown,
            output=lambda hook, text: log.tell("hook_output", hook=hook, text=text),
            now=self.clock.now,
        )
        return self.config, self.config.remember(run)

    def _plan_next(self, started: float, found: Round) -> None:
        in_vain = bool(found.missed) and not found.freed_bytes
        self.back_off = min(self.back_off * 2, _MOST_BACK_OFF) if in_vain else 1
        wait = self.config.interval * self.back_off
        self.due = max(time.monotonic(), started + wait)
        figures = {"wait": format_duration(wait), "wait_s": wait}
        if in_vain:
            log.tell("backing_off", paths=", ".join(found.missed), **figures)
        elif not self.drain_signal:
            log.tell("next_run", at=_utc(time.time() + self.due - time.monotonic()), **figures)

    def _watch(self, operation: str, path: str) -> None:
        """Told by the run what it begins and ends."""
        self.status.in_flight = (
            [{"operation": operation, "path": printable(path), "since": time.time()}] if operation else []
        )
        self._publish(RUNNING)

    def _attend(self) -> None:
        """Do what was asked for, where no work is under way that it would come too late for."""
        if self.reload_asked:
            self.reload_asked = False
            self._reload()

    def _reload(self) -> None:
        notify_reloading()
        # Whoever has set the clock, and meant it, says so by this.
        self.clock.trust()
        config = read(self.config.path or find(None, self.env), self.env)
        in_file = [config.sentence(problem) for problem in config.problems if problem.in_file]
        if in_file:
            self.status.reload_error = log.shown(" ".join(in_file[:_MOST_MESSAGES]))
            log.tell("reload_refused", reason=self.status.reload_error)
        else:
            self._take(config)
        self.status.reloads += 1
        self._publish(self.status.state)
        notify("READY=1")

    def _take(self, config: Config) -> None:
        if config.state_dir != self.config.state_dir:
            log.tell("restart_needed", path=printable(self.state.path))
        if config.interval != self.config.interval:
            self.due = min(self.due, time.monotonic() + config.interval)
        config.state_dir = self.config.state_dir
        self.config = config
        self.status.reload_error = ""
        self.status.stop_timeout = config.stop_timeout
        refusals = log.configure(config)
        log.tell("reloaded", stores=len(config.stores))
        self._warn_of_config(refusals)

    def _warn_of_config(self, refusals: list[str]) -> None:
        for sentence in refusals:
            log.tell("log_refused", reason=sentence)
        for sentence in self.config.sentences:
            log.tell("config_problem", problem=sentence)
        # Anybody may read the status.
        self.status.warnings = [log.shown(sentence) for sentence in self.config.sentences]

    def _publish(self, state: str) -> None:
        """Tell whoever asks how the daemon is."""
        self.status.state = DRAINING if self.drain_signal else state
        self.status.next_run = None
        if self.status.state == IDLE:
            self.status.next_run = time.time() + self.due - time.monotonic()
        # A signal may come in the middle of this and want to tell something as well.
        self.news = True
        if self.publishing or self.place is None:
            return
        self.publishing = True
        try:
            while self.news:
                self.news = False
                self._write()
        finally:
            self.publishing = False

    def _write(self) -> None:
        notify(f"STATUS={self._sentence()}")
        try:
            self.state.write(self.status)
            self.unwritten = False
        except OSError as error:
            if not self.unwritten:
                self.unwritten = True
                reason = error.strerror or str(error)
                log.tell("status_unwritten", path=printable(self.state.path), reason=reason)

    def _sentence(self) -> str:
        state = self.status.state.capitalize()
        for one in self.status.in_flight:
            return f"{state}: {one['operation']} of {one['path']}."
        if self.status.next_run:
            return (
                f"{state}; the next run is in {format_duration(max(0, round(self.due - time.monotonic())))}."
            )
        return f"{state}."


def _utc(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    except (OSError, OverflowError, ValueError):
        return "the end of the calendar"  # an interval may be 292 years


def _load_all() -> None:
    """Import what rooms import late: while a daemon lives, the file that besom runs from may be replaced."""
    for room in iter_modules(besom.__path__, "besom."):
        import_module(room.name)
    for name in ("besom_host.seq", "besom_host.shared_lock", "yaml"):
        import_module(name)


def run_daemon(config: Config, env: Mapping[str, str], shutdown: Shutdown) -> int:
    """Be the daemon. Why it cannot be one is told to whoever started it."""
    _load_all()
    try:
        return Daemon(config, env, shutdown).run()
    except BesomError as error:
        notify(f"STATUS={error}")
        raise
