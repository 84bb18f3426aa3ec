# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The flag of a draining host: while it is there, nobody begins new work. It is gone at boot."""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress

from .errors import BesomError
from .units import printable

PATH = "/run/besom-drain"


class Draining(BesomError):
    """This host is being drained; new work is refused. The status is that of a temporary refusal."""

    status = 75


def is_draining() -> bool:
    """Whether this host drains: the flag is there, and root's."""
    try:
        st = os.lstat(PATH)
    except OSError:
        return False
    # Root's, or that of a user namespace's root; /run is not for others to write.
    return stat.S_ISREG(st.st_mode) and st.st_uid in (0, os.geteuid())


def refuse_new_work(what: str) -> None:
    """Raise Draining when this host drains."""
    if not is_draining():
        return
    try:
        since = time.strftime(" since %Y-%m-%d %H:%M:%S", time.localtime(os.lstat(PATH).st_mtime))
    except OSError:
        since = ""
    raise Draining(
        f"This host drains{since} ({PATH} exists), so {printable(what)} is refused; "
        "besom drain --resume, or a boot, ends that."
    )


def set_flag() -> bool:
    """Begin to refuse new work; returns whether that is new. Raises BesomError where that is not allowed."""
    try:
        fd = os.open(PATH, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        return False
    except OSError as error:
        raise BesomError(f"{PATH} cannot be written: {error.strerror}; run this as root.") from error
    # Content for people, for which a full disk may have no room; what counts is that it is there.
    with suppress(OSError), os.fdopen(fd, "w") as file:
        file.write(f"besom drain, pid {os.getpid()}\n")
    return True


def clear_flag() -> bool:
    """Take new work again; returns whether it was refused before. Raises BesomError."""
    try:
        os.unlink(PATH)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise BesomError(f"{PATH} cannot be removed: {error.strerror}; run this as root.") from error
    return True
