"""Starting the daemon without systemd, detached as daemon(7) wants it."""

from __future__ import annotations

import os
import select
import signal
import socket
from contextlib import suppress

from besom.errors import BesomError
from besom.shutdown import Shutdown
from besom.units import format_duration, printable

from .notify import ONCE
from .process import Process, own_command, start_token
from .waiting import Deadline, wait_for

# How long one that is told to stop before it was ready may take to be gone, in seconds.
_GONE_S = 5.0


def start_detached(config: str, output: str, timeout: float, shutdown: Shutdown) -> None:
    """Start `besom daemon run` with the configuration at config, and return once it is ready.

    output: where what it prints is appended. timeout in seconds. Raises BesomError with its own reason
    when it ends before that, or is not ready in time; Interrupted on a signal, and ends it then.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        # An abstract name that the kernel picks: nothing to clean up.
        listener.bind("")
        listener.setblocking(False)
        address = "@" + os.fsdecode(listener.getsockname()[1:])
        process = _spawn(
            [*own_command(), *(["--config", config] if config else []), "daemon", "run"], output, address
        )
        fd = process.open()
        reason = ""
        try:
            deadline = Deadline(timeout)
            while True:
                gone = fd is None or not wait_for(
                    [listener.fileno(), fd], deadline, shutdown, "starting the daemon"
                )
                said = _messages(listener)
                if any("READY=1" in lines for lines in said):
                    return
                for lines in said:
                    for line in lines:
                        if line.startswith("STATUS="):
                            reason = line.partition("=")[2]
                shutdown.check("starting the daemon")
                if fd is None or select.select([fd], [], [], 0)[0]:
                    raise BesomError(reason or f"The daemon ended at once; {printable(output)} says why.")
                if gone:
                    raise BesomError(
                        f"The daemon (pid {process.pid}) has not become ready within "
                        f"{format_duration(timeout)}; see {printable(output)}."
                    )
        except BaseException:
            # Nobody is left who would know of a daemon that is half started.
            with suppress(BesomError):
                if process.send(signal.SIGTERM) and fd is not None:
                    select.select([fd], [], [], _GONE_S)
            raise
        finally:
            if fd is not None:
                os.close(fd)


def _messages(listener: socket.socket) -> list[list[str]]:
    found = []
    with suppress(BlockingIOError):
        while True:
            found.append(listener.recv(65536).decode("utf-8", "replace").split("\n"))
    return found


def _spawn(command: list[str], output: str, address: str) -> Process:
    """Run the command in a session of its own, with no descriptor of ours and no way back to a terminal."""
    source, sink = os.pipe()
    child = os.fork()
    if child:
        os.close(sink)
        os.waitpid(child, 0)
        with open(source, "rb") as stream:
            pid = int(stream.read() or b"0")
        return Process(pid, start_token(pid))
    try:
        os.setsid()
        # A handler of Python's would only note what comes before execve, and forget it there.
        for signum in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, signal.SIG_DFL)
        grandchild = os.fork()
        if grandchild:
            os.write(sink, str(grandchild).encode())
            os._exit(0)
        _detach(output)
        os.execve(command[0], command, {**os.environ, "NOTIFY_SOCKET": address, ONCE: "1"})  # noqa: S606
    finally:
        os._exit(1)


def _detach(output: str) -> None:
    os.chdir("/")
    os.umask(0o022)
    null = os.open(os.devnull, os.O_RDWR)
    try:
        log = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o640)
    except OSError:
        log = null
    for fd, target in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, target)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2:
            with suppress(OSError):
                os.close(int(name))
