# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one family of errors that the engine raises; each is one sentence that says what to do."""

from __future__ import annotations


class BesomError(Exception):
    """Work failed. str() is one sentence for a person; status is the exit status of the command line."""

    status = 1


class UsageError(BesomError):
    """The request itself is wrong: a malformed value, a path that is missing, not a directory or refused."""

    status = 2


class MissingPath(UsageError):
    """The path does not exist (yet)."""


class NoSpace(BesomError):
    """A file system has not enough bytes or inodes."""

    status = 3


class LockHeld(BesomError):
    """Somebody else held a lock until the time allowed for waiting was over."""

    status = 75


class LockLost(BesomError):
    """A lock went away while work was done under it; the work stopped between two entries."""


class Interrupted(BesomError):
    """A signal ended the work between two entries; status is 128 + the signal (129, 130, 143)."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.status = 128 + signum


def reason_of(error: BaseException) -> str:
    """Why, as part of a sentence: without the number and path of an OSError, and without a full stop."""
    told = error.strerror if isinstance(error, OSError) else None
    return (told or str(error)).rstrip(".")
