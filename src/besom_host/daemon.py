"""The prune daemon: housekeeping at an interval and on request, until it is told to drain.

Signals are taken where they cannot be lost: while idle they are blocked and waited for with
sigtimedwait(2); while at work a handler notes them, and work looks between two entries.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import IO, Any

from besom.drain_flag import PATH as FLAG
from besom.drain_flag import is_draining
from besom.errors import BesomError, Interrupted
from besom.run import Run
from besom.shutdown import Shutdown
from besom.units import format_duration, format_size, printable

from . import log
from .config import Config, find, read
from .cycle import housekeeping, missed, summary
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
            warnings=config.sentences,
        )
        self.asked = self.reload_asked = False
        self.drain_signal = 0
        self.drain_deadline = 0.0
        self.back_off = 1
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
        refusal = log.configure(self.config.log_format, self.config.log_file)
        log.info(
            "daemon_started",
            "Keeping house every {interval}, pid {pid}, configuration {path}.",
            pid=os.getpid(),
            interval=format_duration(self.config.interval),
            path=printable(self.config.path) or "(none)",
            stores=len(self.config.stores),
            temps=len(self.config.temps),
        )
        if refusal:
            log.warning("log_refused", "{reason}", reason=refusal)
        self._warn_of_config()
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
                self._turn()
        finally:
            self._publish(DRAINING)
            log.info("daemon_stopped", "Stopped after {runs} runs.", runs=self.status.runs)
        return 0

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
            log.warning("run_refused", "No run begins, since this host drains ({path} exists).", path=FLAG)
            self._publish(IDLE)
            return
        cause = "asked" if self.asked else "due"
        self.asked = False
        # Read after the flag is taken back: a request that comes later causes one more run.
        number = self.state.asked()
        began, started = time.time(), time.monotonic()
        log.info("run_began", "A run begins ({cause}).", cause=cause)
        self._publish(RUNNING)
        run = Run(
            lock_timeout=self.config.lock_timeout,
            lock_option="lock_timeout",
            shared_lock=redis_locks_of(self.config),
            shutdown=self.shutdown,
            output=lambda hook, text: log.info("hook_output", "{hook}: {text}", hook=hook, text=text),
        )
        signal.setitimer(signal.ITIMER_REAL, _TICK_S, _TICK_S)
        entries = freed = 0
        short: list[str] = []
        try:
            outcome = housekeeping(self.config, run, self._watch)
            entries, freed = summary(outcome)
            short = missed(outcome)
            messages = outcome.messages
            interrupted = any(isinstance(error, Interrupted) for error in outcome.errors)
            result = "interrupted" if interrupted else "failed" if messages else "done"
        except Exception as error:  # noqa: BLE001 (a daemon outlives whatever a run ends in)
            log.error("run_crashed", "The run ended in {error}.", error=repr(error))
            messages, result = [printable(repr(error))], "failed"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        log.info(
            "run_ended",
            "The run is over ({outcome}): removed {removed_entries}, freed {freed}, in {took}.",
            outcome=result,
            removed_entries=entries,
            freed=format_size(freed),
            freed_bytes=freed,
            took=format_duration(round(time.monotonic() - started, 1)),
        )
        self.status.last_run = {
            "began": began,
            "ended": time.time(),
            "outcome": result,
            "removed_entries": entries,
            "freed_bytes": freed,
            "messages": messages[:_MOST_MESSAGES],
        }
        if result != "interrupted":
            self.status.answered = number
            self.status.runs += 1
        self._plan_next(started, bool(short) and not freed, short)
        self._publish(IDLE)

    def _plan_next(self, started: float, in_vain: bool, short: list[str]) -> None:
        self.back_off = min(self.back_off * 2, _MOST_BACK_OFF) if in_vain else 1
        wait = self.config.interval * self.back_off
        self.due = max(time.monotonic(), started + wait)
        if in_vain:
            log.warning(
                "backing_off",
                "Nothing could be freed although {stores} stays over its limit; the next run is in {wait}.",
                stores=", ".join(short),
                wait=format_duration(wait),
            )
        elif not self.drain_signal:
            log.info("next_run", "The next run is in {wait}.", wait=format_duration(wait))

    def _watch(self, operation: str, path: str) -> None:
        """Told by the run what it begins and ends."""
        self.status.in_flight = (
            [{"operation": operation, "path": printable(path), "since": time.time()}] if operation else []
        )
        if operation:
            self._attend()
        self._publish(RUNNING)

    def _attend(self) -> None:
        """Do what was asked for and disturbs no work."""
        if self.reload_asked:
            self.reload_asked = False
            self._reload()

    def _reload(self) -> None:
        notify_reloading()
        config = read(self.config.path or find(None, self.env), self.env)
        in_file = [config.sentence(problem) for problem in config.problems if problem.in_file]
        if in_file:
            self.status.reload_error = " ".join(in_file[:_MOST_MESSAGES])
            log.error(
                "reload_refused",
                "The configuration in force stays, since the new one is broken: {reason}",
                reason=self.status.reload_error,
            )
        else:
            self._take(config)
        self.status.reloads += 1
        self._publish(self.status.state)
        notify("READY=1")

    def _take(self, config: Config) -> None:
        if config.state_dir != self.config.state_dir:
            log.warning(
                "restart_needed", "state_dir stays {path} until a restart.", path=printable(self.state.path)
            )
        if config.interval != self.config.interval:
            self.due = min(self.due, time.monotonic() + config.interval)
        config.state_dir = self.config.state_dir
        self.config = config
        self.status.reload_error = ""
        self.status.warnings = config.sentences
        self.status.stop_timeout = config.stop_timeout
        refusal = log.configure(config.log_format, config.log_file)
        log.info("reloaded", "The configuration was read again.", stores=len(config.stores))
        if refusal:
            log.warning("log_refused", "{reason}", reason=refusal)
        self._warn_of_config()

    def _warn_of_config(self) -> None:
        for sentence in self.config.sentences:
            log.warning("config_problem", "{problem}", problem=sentence)

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
                log.warning(
                    "status_unwritten",
                    "The status cannot be written in {path}: {reason}.",
                    path=printable(self.state.path),
                    reason=error.strerror or str(error),
                )

    def _sentence(self) -> str:
        state = self.status.state.capitalize()
        for one in self.status.in_flight:
            return f"{state}: {one['operation']} of {one['path']}."
        if self.status.next_run:
            return (
                f"{state}; the next run is in {format_duration(max(0, round(self.due - time.monotonic())))}."
            )
        return f"{state}."


def run_daemon(config: Config, env: Mapping[str, str], shutdown: Shutdown) -> int:
    """Be the daemon. Why it cannot be one is told to whoever started it."""
    try:
        return Daemon(config, env, shutdown).run()
    except BesomError as error:
        notify(f"STATUS={error}")
        raise
