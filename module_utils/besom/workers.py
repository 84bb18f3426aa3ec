# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One kind of work shared between this process and forked children.

Threads would fight over the interpreter, and every unlink waits for the disk; processes do neither.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Callable, TypeVar

from .shutdown import Shutdown

Share = TypeVar("Share")
Result = TypeVar("Result")
_WAKE_MS = 50


def spread(
    shares: Sequence[Share], work: Callable[[Share], Result], shutdown: Shutdown
) -> list[Result | None]:
    """work(share) for each share: the first here, the others in children; results in order.

    None stands for a child that died before it could tell. A shutdown is passed on to the children,
    which end as this process does; where no child can be forked, the work is done here.
    """
    children = [_fork(share, work, shutdown) for share in shares[1:]]
    results: list[Result | None] = [work(shares[0])] if shares else []
    for share, child in zip(shares[1:], children):
        results.append(work(share) if child is None else _collect(*child, shutdown))
    return results


def orphaned(parent: int) -> bool:
    """Whether this process is a child whose parent, the process parent, is gone."""
    return os.getpid() != parent and os.getppid() != parent


def _fork(share: Share, work: Callable[[Share], Result], shutdown: Shutdown) -> tuple[int, int] | None:
    """The pid of a child that does the work, and the pipe that its result comes through."""
    source, sink = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(source)
        os.close(sink)
        return None
    if pid:
        os.close(sink)
        return pid, source
    try:
        shutdown.listen()
        # Those reach a whole group from a terminal; what this process is to do, its parent tells it.
        for signum in (signal.SIGINT, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        with open(sink, "wb") as stream:
            pickle.dump(work(share), stream)
    finally:
        # Never back into the parent's program, whose clean-up is not this process's to do.
        os._exit(0)


def _collect(pid: int, source: int, shutdown: Shutdown) -> Result | None:
    """The result of the child; tells it to stop when this process is to."""
    data = b""
    poll = select.poll()
    poll.register(source, select.POLLIN)
    told = False
    while True:
        if shutdown.requested and not told:
            told = True
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        if poll.poll(_WAKE_MS):
            block = os.read(source, 1 << 16)
            if not block:
                break
            data += block
    os.close(source)
    os.waitpid(pid, 0)
    try:
        result: Result = pickle.loads(data)  # noqa: S301 (this program wrote it)
    except (EOFError, pickle.UnpicklingError):
        return None
    return result
