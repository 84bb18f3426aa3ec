# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The shutdown flag: signals set it, work looks at it between two entries."""

from __future__ import annotations

import signal
from typing import Any

from .errors import Interrupted


class Shutdown:
    """Set by SIGINT, SIGTERM or SIGHUP once listen() was called; never interrupts a removal."""

    def __init__(self) -> None:
        self.signum = 0

    @property
    def requested(self) -> bool:
        return self.signum != 0

    def request(self, signum: int = signal.SIGTERM, _frame: Any = None) -> None:
        self.signum = self.signum or signum

    def listen(self) -> Shutdown:
        """Take SIGINT, SIGTERM and SIGHUP (a lost connection) as requests to stop. Main thread only."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # What the parent ignores on purpose (nohup) stays ignored.
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self.request)
        return self

    def check(self, doing: str = "") -> None:
        """Raise Interrupted if a shutdown was requested."""
        if self.signum:
            name = signal.Signals(self.signum).name
            where = f" while {doing}" if doing else ""
            raise Interrupted(f"Interrupted by {name}{where}; nothing was left half done.", self.signum)
