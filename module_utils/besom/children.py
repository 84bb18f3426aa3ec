# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Children that may hang: commands, and questions to the kernel. Each has its own session and deadline.

A process that waits in the kernel for a server that is gone cannot be killed (D, proc(5)). What such a
child does not get: a descriptor of a lock, the terminal, or somebody's pipe. It is waited for no longer
than its deadline, and reaped when it ends at last.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Callable, cast

from .errors import BesomError
from .shutdown import Shutdown

# Between TERM and KILL, and how long a killed child may take to be gone, in seconds.
GRACE_S = 2.0
GONE_S = 0.2
# Where the kernel has no pidfd (before 5.3) the end of a child is asked for as often as that.
_WAKE_S, _WAKE_WITHOUT_PIDFD_S = 0.05, 0.01
_OUTPUT = 1 << 16
_left_behind: set[int] = set()


class CommandMissing(BesomError):
    """There is no such program on PATH."""


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    status: its exit status, -N when signal N ended it, None when it is left behind: it was killed and
    is still not gone. output: the first 64 KiB of what it wrote to stdout and stderr.
    """

    status: int | None
    output: bytes
    timed_out: bool
    interrupted: bool
    duration_s: float

    @property
    def text(self) -> str:
        return os.fsdecode(self.output).strip()


def run(
    command: Sequence[str],
    timeout: float,
    shutdown: Shutdown | None = None,
    grace: float = GRACE_S,
    env: Mapping[str, str] | None = None,
    limit: int = _OUTPUT,
) -> Ended:
    """Run a command in / to its end, or to timeout (seconds) or a shutdown: TERM, then KILL after grace.

    limit: bytes of its output that are kept. Signals go to all processes of its group. Raises
    CommandMissing, and BesomError where it cannot start.
    """
    # 10 ms that most runs of besom need not pay.
    import subprocess

    reap()
    began = time.monotonic()
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            cwd="/",
            env=env,
            close_fds=True,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise CommandMissing(f"{command[0]} is not installed here, or not on PATH.") from None
    except OSError as error:
        raise BesomError(f"{command[0]} cannot be started: {error.strerror}.") from error
    with cast(IO[bytes], process.stdout) as stream:
        ended = _attend(process.pid, stream.fileno(), began, timeout, shutdown, grace, limit)
    # It was reaped here, or is in _left_behind: nothing is left to do for Popen.
    process.returncode = ended.status if ended.status is not None else -signal.SIGKILL
    return ended


def ask(
    question: Callable[[Callable[[bytes], None]], None],
    timeout: float,
    keep: Sequence[int] = (),
    limit: int = 1 << 20,
) -> Ended:
    """Let a forked child run question(write); what it wrote is there even if it did not come to its end.

    keep: descriptors that it needs; it gets no other. status is 0 when the question was answered in full.
    timeout in seconds. Raises OSError where no child can be forked.
    """
    reap()
    began = time.monotonic()
    source, sink = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(source)
        os.close(sink)
        raise
    if not pid:
        status = 1
        try:
            os.setsid()
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_DFL)
            _let_go({sink, *keep})
            question(lambda data: _write(sink, data))
            status = 0
        finally:
            # Never back into the parent's program, whose clean-up is not this process's to do.
            os._exit(status)
    os.close(sink)
    try:
        return _attend(pid, source, began, timeout, None, 0.0, limit)
    finally:
        os.close(source)


def reap() -> None:
    """Reap children that were left behind and have ended since."""
    for pid in list(_left_behind):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG) == (0, 0):
                continue
        _left_behind.discard(pid)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _let_go(keep: set[int]) -> None:
    """Close all descriptors but those to keep; the standard ones lead to /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in keep:
            with suppress(OSError):
                os.close(fd)


def _attend(
    pid: int,
    source: int,
    began: float,
    timeout: float,
    shutdown: Shutdown | None,
    grace: float,
    limit: int,
) -> Ended:
    """Read source until child pid is gone, end the child when its time is up, and reap it."""
    os.set_blocking(source, False)
    poll = select.poll()
    poll.register(source, select.POLLIN)
    pidfd = _pidfd(pid)
    if pidfd >= 0:
        poll.register(pidfd, select.POLLIN)
    wake = _WAKE_S if pidfd >= 0 else _WAKE_WITHOUT_PIDFD_S
    output = bytearray()
    timed_out = interrupted = False
    until = began + timeout
    steps = [(signal.SIGKILL, GONE_S)]
    if grace:
        steps.insert(0, (signal.SIGTERM, grace))
    try:
        while not (gone := _gone(pid)):
            if not (timed_out or interrupted) and shutdown is not None and shutdown.requested:
                interrupted, until = True, time.monotonic()
            left = until - time.monotonic()
            if left <= 0:
                timed_out = timed_out or not interrupted
                if not steps:
                    break
                signum, length = steps.pop(0)
                _kill(pid, signum)
                until = time.monotonic() + length
                continue
            heard = [fd for fd, _event in poll.poll(int(min(wake, left) * 1000) + 1)]
            if source in heard and not _read(source, output, limit):
                poll.unregister(source)
        if gone and (timed_out or interrupted):
            # The group outlives its leader, whose number nobody gets before it is reaped.
            _kill(pid, signal.SIGKILL)
        _read(source, output, limit)
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    status = _reaped(pid) if gone else None
    if status is None:
        _left_behind.add(pid)
    return Ended(status, bytes(output), timed_out, interrupted, time.monotonic() - began)


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return -1


def _gone(pid: int) -> bool:
    """Whether the child has ended; it stays to be reaped."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        # SIGCHLD is ignored here: the kernel reaps.
        return True


def _kill(pid: int, signum: int) -> None:
    # A forked child has its group only once it got as far as setsid.
    for kill in (os.killpg, os.kill):
        with suppress(ProcessLookupError, PermissionError):
            kill(pid, signum)


def _read(source: int, output: bytearray, limit: int) -> bool:
    """Take over what there is to read, and forget what is above the limit; False at the end."""
    while True:
        try:
            block = os.read(source, 1 << 16)
        except BlockingIOError:
            return True
        if not block:
            return False
        output += block[: limit - len(output)]


def _reaped(pid: int) -> int:
    """The exit status of a child that has ended; 0 where the kernel reaped it."""
    try:
        status = os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return 0
    return os.waitstatus_to_exitcode(status)
