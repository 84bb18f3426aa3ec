# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""As many at work as pay: the most that may be where that gets on faster, and a few where it does not.

What waits for a disk waits side by side, in threads; but one Python computes in one thread at a time, so
there are as many forked processes as processors first. One that is to be at one job at a time works in one
thread: where nothing waits, two hand the interpreter to and fro, which takes longer than the calls.
"""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import queue
import resource
import select
import signal
import struct
import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_UN, fcntl, lockf
from io import BufferedWriter
from types import TracebackType
from typing import Any, Callable, Generic, Protocol, TypeVar

from .errors import BesomError
from .guard import STOPPED
from .locks import LockTable
from .shutdown import Shutdown

Job = TypeVar("Job")
Result = TypeVar("Result")
_Given_contra = TypeVar("_Given_contra", contravariant=True)
_Found_co = TypeVar("_Found_co", covariant=True)

_FIRST = 2
# Long enough to tell a gain from chance, short enough to be there within the first half second.
_WINDOW_S = 0.1
_LEAST = 50
_GAIN = 1.05
# A trial, and what is between two of them, in windows: soon after one that was lost, which may have been by
# chance, later after one that was won, and less and less often.
_LOOK, _SOON, _REST, _LONGEST_REST = 2, 5, 30, 240
_TELL_MS = 20
# Jobs that one process has beside those at hand: enough that nobody waits for somebody else at every turn.
_AHEAD = 5
# Room for them, F_SETPIPE_SZ of fcntl(2): who gives one out should not wait for who takes it.
_SET_SIZE, _SIZE = 1031, 1 << 18
# For the process that began the work, wherever they are sent: to its group, or to all of a service.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# What a process tells: one job is done, or is, and a part of a result follows; it has failed, and waits for
# the end of its jobs; the rest of its results follows. What follows has its length before it.
_DONE, _PART, _FAILED, _RESULTS = b".+!="
_WITH_CONTENT = (_PART, _RESULTS)
_LENGTH = struct.Struct("=Q")


class Pace:
    """How many should be at work: a few or the most, whichever gets more done in a second."""

    def __init__(self, most: int) -> None:
        self.size, self._other = min(_FIRST, most), most
        # What was reached since the last change; by those before it, when that was for a trial.
        self._rates: list[float] = []
        self._before = 0.0
        # Processes come up in the first window, and threads in that after it.
        self._rest, self._next_rest = _LOOK, _SOON

    def observe(self, rate: float) -> int:
        """Take note of a rate that was reached by so many; returns how many there should be now."""
        self._rates.append(rate)
        if len(self._rates) < self._rest:
            return self.size
        # In the first after a change, as many as before were at work in a part of the time.
        recent = (self._rates[1:] or self._rates)[-_REST:]
        reached = sum(recent) / len(recent)
        trial, better = self._before > 0, reached > self._before * _GAIN
        if trial and better:
            self._before, self._rest, self._next_rest = 0.0, _REST, 2 * _REST
        elif trial:
            self._before, self._rest = 0.0, self._next_rest
            self._next_rest = min(2 * self._next_rest, _LONGEST_REST)
        else:
            self._before, self._rest = reached, _LOOK
        if not (trial and better):
            self.size, self._other = self._other, self.size
        self._rates = []
        return self.size


class Worker(Protocol[_Given_contra, _Found_co]):
    """Who does jobs, one after the other."""

    def work(self, job: _Given_contra) -> _Found_co | None:
        """Do a job, or what a shutdown leaves of it; returns what is to be handed over already, if any."""

    def result(self) -> _Found_co:
        """What came of all jobs, but for what was handed over."""

    def close(self) -> None:
        """Let go of what it holds, whatever has come of its jobs; the last that is asked for."""


# The number of what is done so far, to be counted up by the worker; what stops it; the process that its own
# works for, without which it stops as well, 0 where that is its own.
Hire = Callable[["memoryview[int]", Shutdown, int], "Worker[Job, Result]"]


def shared_numbers(count: int) -> memoryview[int]:
    """So many numbers, 0 at first, in memory that all processes share that are forked from here."""
    return memoryview(mmap.mmap(-1, 8 * count)).cast("q")


class Turn:
    """One at a time, of all threads of this process and of those that are forked from it.

    It falls with who has it, who may take it again meanwhile. A context manager, any number of times; close
    it at the end.
    """

    def __init__(self) -> None:
        self._pipe, self._here, self._times = os.pipe(), threading.RLock(), 0

    def __enter__(self) -> Turn:
        self._here.acquire()
        try:
            lockf(self._pipe[1], LOCK_EX)
        except BaseException:
            self._here.release()
            raise
        self._times += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._times -= 1
        try:
            if not self._times:
                lockf(self._pipe[1], LOCK_UN)
        finally:
            self._here.release()

    def close(self) -> None:
        for fd in self._pipe:
            os.close(fd)


@dataclass
class _Process:
    number: int
    pid: int
    # -1: it gets no more.
    jobs: int
    news: int
    # How many jobs it may be at at a time, a number that it sees as well.
    share: memoryview[int]
    # Jobs that it has.
    given: int = 0
    # What it has told, as far as that is not all there.
    told: bytearray = field(default_factory=bytearray)
    results: Any = None

    @property
    def over(self) -> int:
        """How many jobs it has that it may not begin yet; below 0: how many it could begin at once."""
        return self.given - self.share[0]

    def dismiss(self) -> None:
        """Give it no more jobs."""
        if self.jobs >= 0:
            os.close(self.jobs)
            self.jobs = -1


@dataclass
class _Failed:
    error: BaseException


class _Stop(Shutdown):
    """The shutdown of all processes that are forked from here: a flag in memory that they share."""

    def __init__(self) -> None:
        self._flag = shared_numbers(1)
        super().__init__()

    @property
    def signum(self) -> int:
        return self._flag[0]

    @signum.setter
    def signum(self, signum: int) -> None:
        self._flag[0] = signum


class _Hands(Generic[Job, Result]):
    """The threads of one process, as many as it may be at jobs at a time, each with a worker of its own."""

    def __init__(
        self,
        hire: Callable[[int], Worker[Job, Result]],
        most: memoryview[int],
        done: Callable[[Result | None], None],
        failed: Callable[[], None],
    ) -> None:
        """hire makes the worker of a thread, by its number; done is called after each job, with what is to be
        handed over, failed once.

        most: how many may be at work, a number that changes.
        """
        self._hire, self._most, self._done, self._failed = hire, most, done, failed
        self._workers: list[Worker[Job, Result]] = []
        self._threads: list[threading.Thread] = []
        self._todo: queue.SimpleQueue[tuple[Job] | None] = queue.SimpleQueue()
        self._busy, self._fewer = 0, threading.Condition()
        self._refused = False
        self._error: BaseException | None = None

    def give(self, job: Job) -> None:
        """Have a job done, as soon as less than may be are being done; none after an error."""
        with self._fewer:
            # What is here already is done, even if nothing more is to come.
            self._fewer.wait_for(lambda: self._busy < max(self._most[0], 1) or self._error)
            if self._error is not None:
                return
            self._busy += 1
        if self._busy > len(self._threads) and not self._refused:
            self._start()
        if self._threads:
            self._todo.put((job,))
        else:
            self._do(self._workers[0], job)

    def _start(self) -> None:
        """Start a thread, or do with those that are there; without any the work is done by who gives it."""
        worker = self._hire(len(self._threads))
        thread = threading.Thread(target=self._run, args=(worker,), daemon=True)
        try:
            thread.start()
        except RuntimeError:  # this user may have no more of them
            self._refused = True
            if self._threads:
                return
        else:
            self._threads.append(thread)
        self._workers.append(worker)

    def _do(self, worker: Worker[Job, Result], job: Job) -> None:
        self._done(worker.work(job))
        with self._fewer:
            self._busy -= 1
            self._fewer.notify()

    def _run(self, worker: Worker[Job, Result]) -> None:
        try:
            while (todo := self._todo.get()) is not None:
                self._do(worker, *todo)
        except BaseException as error:  # noqa: BLE001  # raised again by results()
            with self._fewer:
                first, self._error = self._error is None, self._error or error
                self._fewer.notify()
            if first:
                self._failed()

    def wait(self) -> None:
        """Wait until all that was begun is done; the last but results() that is called."""
        for _thread in self._threads:
            self._todo.put(None)
        for thread in self._threads:
            thread.join()

    def results(self) -> list[Result]:
        """What came of all jobs. Raises the first error of any."""
        try:
            if self._error is not None:
                raise self._error
            return [worker.result() for worker in self._workers]
        finally:
            for worker in self._workers:
                worker.close()


def _tell(news: BufferedWriter, what: int, content: Any = None) -> None:
    """Tell one thing by a pipe that threads share. Raises OSError."""
    told = bytes([what])
    if what in _WITH_CONTENT:
        pickled = pickle.dumps(content, 5)
        told += _LENGTH.pack(len(pickled)) + pickled
    news.write(told)
    news.flush()


class Workers(Generic[Job, Result]):
    """Does each job that is added, as many at a time as pay, and at most most; a context manager.

    They are done in forked processes, but here with most = 1, where no process can be started, and if there
    is one alone. hire makes a worker, in the process and for the thread that works. tell is called now and
    then by who adds. A shutdown is passed on to all; signals to one of them say nothing. What a job raises
    ends all: add() or finish() raises it again, an OSError as BesomError, which is raised as well where a
    process was killed.
    """

    def __init__(
        self, hire: Hire[Job, Result], tell: Callable[[], None], shutdown: Shutdown, most: int
    ) -> None:
        self._hire, self._tell, self._shutdown, self._most = hire, tell, shutdown, most
        self._pace = Pace(most)
        self._processors = min(most, len(os.sched_getaffinity(0)))
        # Of one process, and seen by all: what each of its threads has done. The first number is of this one.
        self._most_each = -(-most // self._processors)
        self._counts = shared_numbers(1 + self._processors * self._most_each)
        self._shares = shared_numbers(self._processors)
        # Of this process and those that it forks, while they are there.
        self._pids = shared_numbers(1 + self._processors)
        self._pids[0] = os.getpid()
        self._processes: list[_Process] = []
        self._started = 0
        self._poll = select.poll()
        self._first: Job | None = None
        self._here: Worker[Job, Result] | None = None
        self._results: list[Result] = []
        self._stop = _Stop()
        self._since, self._before = 0.0, 0

    @property
    def done(self) -> int:
        """How much of all jobs is done so far."""
        return sum(self._counts)

    def add(self, job: Job) -> None:
        """Have job done; waits while many others are to be done before it."""
        if self._most == 1:
            self._do_here(job)
        elif self._processes or self._first is not None:
            first, self._first = self._first, None
            if first is not None:
                self._start()
                self._give(first)
            self._give(job)
        else:
            self._first = job

    def finish(self) -> list[Result]:
        """What came of all jobs, in parts, once every job is done and every process has ended.

        More may be added then, whose results are those of the next time.
        """
        if self._first is not None:
            self._do_here(self._first)
            self._first = None
        self._dismiss()
        while self._processes:
            self._wait()
        results, self._results, self._started = self._results, [], 0
        if self._here is not None:
            results.append(self._here.result())
            self._here.close()
            self._here = None
        self._tell()
        return results

    def _do_here(self, job: Job) -> None:
        if self._here is None:
            self._here = self._hire(self._counts[:1], self._shutdown, 0)
        part = self._here.work(job)
        if part is not None:
            self._results.append(part)
        self._tell()

    def _give(self, job: Job) -> None:
        """Give a job to a process that has room for it, or do it here if there is none at all."""
        if not self._processes:
            self._do_here(job)
            return
        # Those that wait for jobs are slow by no fault of theirs.
        waited = all(process.over >= 0 for process in self._processes)
        while not self._stop.signum:
            chosen = min(
                (process for process in self._processes if process.share[0]), key=lambda process: process.over
            )
            if chosen.over < _AHEAD:
                chosen.given += 1
                self._send(chosen, memoryview(pickle.dumps(job, 5)))
                break
            self._wait()
        self._hear(0)
        self._observe(waited)

    def _send(self, process: _Process, data: memoryview) -> None:
        """Write a job to a pipe, which may not have room for all of it at once."""
        jobs = process.jobs
        self._poll.register(jobs, select.POLLOUT)
        try:
            while data and process.jobs >= 0:
                with suppress(BlockingIOError):
                    data = data[os.write(jobs, data) :]
                    continue
                self._wait()
        except BrokenPipeError:
            pass  # why, comes with its news
        finally:
            self._poll.unregister(jobs)

    def _observe(self, waited: bool) -> None:
        now = time.monotonic()
        if now - self._since < _WINDOW_S:
            return
        done = self.done
        self._tell()
        if waited and done - self._before < _LEAST:
            return
        if waited and not self._stop.signum:
            self._pace.observe((done - self._before) / (now - self._since))
            self._start()
        self._since, self._before = now, done

    def _wait(self) -> None:
        """Wait a moment for news, and pass a shutdown on."""
        if self._shutdown.signum:
            self._stop.request()
        self._hear(_TELL_MS)
        self._tell()

    def _start(self) -> None:
        """Start processes until there are as many as there should be, or can be; share the work out."""
        size = self._pace.size
        while self._started < min(size, self._processors):
            try:
                process = self._fork()
            except OSError:  # this user may have no more of them, or of files
                break
            self._started += 1
            self._processes.append(process)
            self._poll.register(process.news, select.POLLIN)
        for number, process in enumerate(self._processes):
            share = size // len(self._processes) + (number < size % len(self._processes))
            process.share[0] = min(share, self._most_each)
        self._since, self._before = time.monotonic(), self.done

    def _fork(self) -> _Process:
        fds = [*os.pipe()]
        try:
            fds += os.pipe()
            jobs, to_jobs, news, to_news = fds
            for fd in (to_jobs, to_news):
                with suppress(OSError):
                    fcntl(fd, _SET_SIZE, _SIZE)
            # In the child they stay blocked.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                parent, pid = os.getpid(), os.fork()
                if not pid:
                    self._serve(jobs, to_news, [to_jobs, news], parent)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except OSError:
            for fd in fds:
                os.close(fd)
            raise
        os.close(jobs)
        os.close(to_news)
        os.set_blocking(to_jobs, False)
        number = self._started
        self._pids[1 + number] = pid
        return _Process(number, pid, to_jobs, news, self._shares[number : number + 1])

    def _serve(self, source: int, sink: int, others: list[int], parent: int) -> None:
        """Do the jobs that come from source, in the child, and end."""
        try:
            # Of a page that is not touched there is one for all processes.
            gc.disable()
            signal.set_wakeup_fd(-1)
            # What was one process's own is now for all of its threads.
            with suppress(OSError, ValueError):
                most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            # Held on to here, the others would never see the end of their jobs, nor that nobody listens.
            for process in self._processes:
                others += (process.jobs, process.news)
            for fd in others:
                if fd >= 0:
                    os.close(fd)
            results: Any
            with os.fdopen(sink, "wb") as news:
                try:
                    results = self._do_jobs(source, news, parent)
                except (OSError, BesomError) as error:
                    results = _Failed(BesomError(str(error)))
                except MemoryError as error:
                    results = _Failed(error)
                except BaseException:  # noqa: BLE001  # raised again in the parent
                    results = _Failed(RuntimeError(traceback.format_exc()))
                _tell(news, _RESULTS, results)
        finally:
            # Never back into the parent's program, whose clean-up is not this process's to do.
            os._exit(0)

    def _do_jobs(self, source: int, news: BufferedWriter, parent: int) -> list[Result]:
        """Do the jobs that come from source, and tell of each; returns what came of all."""
        first = 1 + self._started * self._most_each
        most = self._shares[self._started : self._started + 1]

        def hire(number: int) -> Worker[Job, Result]:
            return self._hire(self._counts[first + number : first + number + 1], self._stop, parent)

        def done(part: Result | None) -> None:
            _tell(news, _DONE if part is None else _PART, part)

        def failed() -> None:
            self._stop.request()
            # Where nobody listens any more, nobody is to be told.
            with suppress(OSError):
                _tell(news, _FAILED)

        hands: _Hands[Job, Result] = _Hands(hire, most, done, failed)
        try:
            with os.fdopen(source, "rb", closefd=False) as jobs:
                while True:
                    hands.give(pickle.load(jobs))  # noqa: S301  # from the process that this was forked from
        except (EOFError, pickle.UnpicklingError):
            pass  # there are no more, or nobody is to do this one
        except BaseException:
            self._stop.request()
            raise
        finally:
            # Nothing is to be left in the middle.
            hands.wait()
        return hands.results()

    def _dismiss(self) -> None:
        """Give no more jobs to any."""
        for process in self._processes:
            process.dismiss()

    def _hear(self, timeout_ms: int) -> None:
        """Take in what the processes tell, as soon as one does."""
        for fd, _event in self._poll.poll(timeout_ms):
            process = next((process for process in self._processes if process.news == fd), None)
            if process is None:
                continue  # a pipe that has room again
            news = os.read(fd, 1 << 16)
            if not news:
                self._end(process)
                continue
            process.told += news
            self._take_in(process)

    def _take_in(self, process: _Process) -> None:
        """Take in what a process has told, as far as it is all there."""
        told, at = process.told, 0
        while at < len(told):
            what, start = told[at], at + 1
            if what in _WITH_CONTENT:
                start += _LENGTH.size
                end = start + _LENGTH.unpack_from(told, at + 1)[0] if start <= len(told) else start
                if end > len(told):
                    break
                with memoryview(told) as all_told:
                    content = pickle.loads(all_told[start:end])  # noqa: S301  # from a fork of this process
                if what == _PART:
                    self._results.append(content)
                else:
                    process.results = content
                start = end
            if what in (_DONE, _PART):
                process.given -= 1
            elif what == _FAILED:
                process.dismiss()
            at = start
        del told[:at]

    def _end(self, process: _Process) -> None:
        self._processes.remove(process)
        self._pids[1 + process.number] = 0
        self._poll.unregister(process.news)
        os.close(process.news)
        process.dismiss()
        how = "left"
        with suppress(ChildProcessError):  # SIGCHLD is ignored here: the kernel has reaped it
            status = os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1])
            how = f"was ended by signal {-status}" if status < 0 else how
        if process.results is None:
            raise BesomError(f"A process of this run (PID {process.pid}) {how}; {STOPPED}.")
        if isinstance(process.results, _Failed):
            raise process.results.error
        self._results += process.results

    def __enter__(self) -> Workers[Job, Result]:
        LockTable.company = self._pids
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._dismiss()
        self._stop.request()
        while self._processes:
            # The first error is the one that counts.
            with suppress(Exception):
                self._hear(-1)
        LockTable.company = ()
        if self._here is not None:
            self._here.close()
