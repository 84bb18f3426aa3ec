"""Processes by pid *and* start: a pid alone may belong to another program by now (CVE-2018-16888)."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

from besom.errors import BesomError


def start_token(pid: int) -> str:
    """What tells this process from any other that has had its pid: the boot and the start, proc(5).

    Empty when there is no such process.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id") as stream:
            boot = stream.read().strip()
        with open(f"/proc/{pid}/stat", "rb") as stream:
            return f"{boot}/{stream.read().rpartition(b')')[2].split()[19].decode()}"
    except (OSError, IndexError):
        return ""


def own_command() -> list[str]:
    """What started this program, whether a script, a zipapp or a module."""
    program = os.path.abspath(sys.argv[0])
    if os.path.basename(program) == "__main__.py":
        return [sys.executable, "-m", "besom_host"]
    # As isolated from its surroundings as this one is.
    isolation = ["-I"] * sys.flags.isolated + ["-S"] * sys.flags.no_site
    return [sys.executable, *isolation, program]


@dataclass(frozen=True)
class Process:
    """A process that is, or was, running."""

    pid: int
    token: str

    @classmethod
    def current(cls) -> Process:
        return cls(os.getpid(), start_token(os.getpid()))

    @property
    def runs(self) -> bool:
        """Whether it is there still."""
        return bool(self.token) and start_token(self.pid) == self.token

    def open(self) -> int | None:
        """A pidfd, readable once the process is gone; None when it is gone already."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        except (AttributeError, OSError) as error:
            raise BesomError(
                f"This system has no pidfd_open(2), which besom's daemon needs: {error}."
            ) from error
        # The descriptor stands for one process for ever: what is checked now stays true.
        if self.runs:
            return fd
        os.close(fd)
        return None

    def send(self, signum: int) -> bool:
        """Send it a signal; False when it is gone. Raises BesomError where that is not allowed."""
        fd = self.open()
        if fd is None:
            return False
        try:
            signal.pidfd_send_signal(fd, signum)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise BesomError(
                f"The daemon (pid {self.pid}) belongs to another user; run this as that user or as root."
            ) from None
        finally:
            os.close(fd)
        return True
