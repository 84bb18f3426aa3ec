# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a mount answers: asked in a child, since the question itself may hang."""

from __future__ import annotations

import os
import time
from contextlib import suppress

from .errors import BesomError
from .mounts import MAY_HANG, mnt_id, mount_of
from .units import format_duration, printable

# How long a mount may take to answer, in seconds; less when it did not answer shortly before.
PATIENCE_S, SECOND_PATIENCE_S = 5.0, 0.25
_YES_COUNTS_S, _NO_COUNTS_S = 1.0, 60.0
# By mount id: when it was asked, and whether it answered. Ids are used again, so a no is no verdict.
_asked: dict[int, tuple[float, bool]] = {}


class NoAnswer(BesomError):
    """A mount does not answer; its server hangs, or is gone."""


def require_answer(fd: int, path: str) -> None:
    """Raise NoAnswer when fd (O_PATH) is on a mount that may hang, and does.

    path: what the message is about. Waits for at most PATIENCE_S.
    """
    mount = mount_of(fd)
    if mount is None or not mount.fstype.startswith(MAY_HANG) or answers(fd):
        return
    raise NoAnswer(
        f"{printable(path)} does not answer within {format_duration(PATIENCE_S)} "
        f"(mount {printable(mount.path)} of type {mount.fstype}); see to its server, or unmount it."
    )


def answers(fd: int) -> bool:
    """Whether the mount that fd (O_PATH) is on answers a statfs; an error is an answer, too."""
    key = mnt_id(fd)
    patience = PATIENCE_S
    if key in _asked:
        then, answer = _asked[key]
        since = time.monotonic() - then
        if answer and since < _YES_COUNTS_S:
            return True
        if not answer and since < _NO_COUNTS_S:
            patience = min(patience, SECOND_PATIENCE_S)

    # 5 ms on a module's arrival that only mounts which may hang need.
    from . import children

    def question(_write: object) -> None:
        # Not stat: the kernel may have kept the answer to that.
        with suppress(OSError):
            os.fstatvfs(fd)

    try:
        answer = children.ask(question, patience, keep=(fd,)).status == 0
    except OSError:
        # No child can be had, so nobody knows; besom itself must not be the one to find out.
        return False
    _asked[key] = (time.monotonic(), answer)
    return answer
