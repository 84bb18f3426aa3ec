"""The time that a daemon tells ages by: a clock that jumps forward makes nothing old.

A wrong clock (a bad hardware clock, a typing error, a broken time server) would make all that is there
older than any limit at once. What has passed since is told by CLOCK_BOOTTIME (clock_gettime(2)), which
nobody sets, and which goes on while a machine is suspended.
"""

from __future__ import annotations

import time
from typing import Callable

HOUR_NS = 3600 * 10**9
# A clock that is put forward by no more than this is believed at once, and after it has stood for a day.
TOLERANCE_NS, PROBATION_NS = HOUR_NS, 24 * HOUR_NS


def _boot_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Clock:
    """now() is the wall clock; after a jump forward, what it would show without that, until it is trusted.

    A clock that is put back is believed at once: things get younger by it.
    """

    def __init__(self, wall: Callable[[], int] = time.time_ns, steady: Callable[[], int] = _boot_ns) -> None:
        """wall: ns since the epoch; steady: ns since any moment, set by nobody."""
        self._wall, self._steady = wall, steady
        self.trust()

    def trust(self) -> None:
        """Take the wall clock for right as it is now."""
        self._offset = self._wall() - self._steady()
        # The offset that is not believed, and since when (steady).
        self._doubted: tuple[int, int] | None = None

    def now(self) -> int:
        """ns since the epoch, for ages."""
        wall, ahead = self._read()
        return wall - ahead

    def ahead(self) -> int:
        """By how many ns the wall clock has jumped forward and is not believed; 0 while it is."""
        return self._read()[1]

    def _read(self) -> tuple[int, int]:
        wall, steady = self._wall(), self._steady()
        offset = wall - steady
        if offset - self._offset > TOLERANCE_NS:
            # One jump more begins its day anew.
            if self._doubted is None or abs(offset - self._doubted[0]) > TOLERANCE_NS:
                self._doubted = offset, steady
            if steady - self._doubted[1] < PROBATION_NS:
                return wall, offset - self._offset
        self._offset, self._doubted = offset, None
        return wall, 0
