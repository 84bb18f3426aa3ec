# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lock of a store that several machines share: portalocker's RedisLock, held beside the local one.

The engine imports neither redis nor portalocker: whoever has them hands them over.
"""

from __future__ import annotations

import json
import os
import re
import time
from contextlib import suppress
from typing import Any, Callable

from .command_line import command_of
from .errors import BesomError, UsageError
from .fetch import is_host, redact
from .units import printable

SCHEMES = ("redis", "rediss", "unix")
# A Redis that does not answer a question for so long is away, in seconds: neither a signal nor a timeout
# ends the wait for it.
_ANSWER_S = 1.5
# A holder, or a connection that holds, is given up only after so long.
_PATIENCE_S = 5.0
# How often a holder makes sure that its connection still carries something, in seconds.
_SELF_CHECK_S = 10.0
_PAUSE_S = 0.25
# What a holder tells of itself is shorter than this: a host's name, a command of 120 characters.
_LONGEST = 1000


def check_redis_url(url: Any, name: str = "redis_url") -> str:
    """The url, if it is one of Redis. Raises UsageError, which shows nothing of it."""
    import urllib.parse

    text = url if isinstance(url, str) else ""
    try:
        parts = urllib.parse.urlsplit(text)
        local = parts.scheme == "unix"
        place = parts.path if local else parts.hostname
        good = parts.scheme in SCHEMES and bool(place) and (parts.port or 1) > 0
        good = good and (local or is_host(parts.netloc))
    except ValueError:
        good = False
    # A password with a sign of its own puts its rest, and the host, elsewhere.
    good = good and "#" not in text and "@" not in parts.path + parts.query
    good = good and (local or re.fullmatch("/?[0-9]*", parts.path) is not None)
    if not good or any(char <= " " for char in text):
        # Where a password begins and ends in it nobody can tell.
        raise UsageError(
            f"{name}: that is not a URL of Redis; write redis://HOST:6379/0, and in a password "
            "%2F %3F %23 %40 %3A %25 for the signs / ? # @ : %."
        )
    return text


def redis_locks(url: str, redis: Any, portalocker: Any) -> Callable[[str], RedisLock]:
    """What makes the lock of a store from its path, on the server at url, with these two packages.

    Raises UsageError for a portalocker older than 4.2, which does not tell when a lock is lost.
    """
    lock_class = getattr(portalocker, "RedisLock", None)
    if lock_class is None or not hasattr(lock_class, "ensure_held"):
        raise UsageError("lock_backend: redis needs portalocker 4.2 or newer (Python 3.10); install it.")
    # What is lost is told by the engine, once and in a sentence.
    import logging

    logging.getLogger("portalocker").propagate = False
    logging.getLogger("portalocker").addHandler(logging.NullHandler())
    return lambda path: RedisLock(path, url, redis, portalocker)


class RedisLock:
    """One store's lock, a locks.Lock; machines that share the store have it at the same path."""

    longest_pause_s = _PAUSE_S

    def __init__(self, path: str, url: str, redis: Any, portalocker: Any) -> None:
        self._at = redact(url)
        self._path = path
        self._channel = f"besom:{path}"
        self._errors = (redis.RedisError, portalocker.LockException, OSError)
        self._held_by_others = portalocker.AlreadyLocked
        self._acquired = False

        def connect(patience: float) -> Any:
            return redis.Redis.from_url(
                url,
                decode_responses=True,
                health_check_interval=_PATIENCE_S,
                socket_timeout=patience,
                socket_connect_timeout=patience,
                retry=None,
            )

        try:
            self._asking, self._holding = connect(_ANSWER_S), connect(_PATIENCE_S)
        except (ValueError, redis.RedisError):
            raise UsageError(f"redis_url: {self._at} has an option that redis does not know.") from None
        self._lock = portalocker.RedisLock(
            self._channel,
            connection=self._holding,
            unavailable_timeout=_PATIENCE_S,
            self_check_interval=_SELF_CHECK_S,
            interrupt_on_lost=False,
        )

    def attempt(self) -> bool:
        """Take it; False when another has it. Raises BesomError where Redis cannot be asked."""
        try:
            # portalocker takes a server that is away for a lock that is held.
            self._asking.ping()
            self._lock.acquire(timeout=0, fail_when_locked=True)
            self._acquired = True
            self._asking.set(self._channel, json.dumps(self._mine()))
        except self._held_by_others:
            return False
        except self._errors as error:
            self.release()
            raise BesomError(
                f"{printable(self._path)} cannot be locked: Redis at {self._at} says "
                f"'{printable(str(error))}'; start it, or correct redis_url."
            ) from None
        return True

    def _mine(self) -> dict[str, Any]:
        return {
            "id": self._lock.holder_id,
            "host": os.uname().nodename,
            "pid": os.getpid(),
            "command": printable(command_of()),
            "since": time.time(),
        }

    def _record(self) -> dict[str, Any]:
        """What the holder has told of itself; empty when that cannot be had."""
        try:
            found = json.loads(self._asking.get(self._channel) or "{}")
            pid, since = found["pid"], found["since"]
            texts = {name: found[name] for name in ("command", "host", "id")}
        except (*self._errors, ValueError, TypeError, KeyError, RecursionError):
            return {}
        # Whoever may write to Redis may have written it.
        sound = (
            isinstance(pid, int)
            and 0 < pid < 2**31
            and isinstance(since, (int, float))
            and 0 <= since < 2**40
        )
        if not sound or not all(isinstance(text, str) and len(text) <= _LONGEST for text in texts.values()):
            return {}
        return {"pid": pid, "since": since, **{name: printable(text) for name, text in texts.items()}}

    def seen(self) -> dict[str, Any] | None:
        """Who has it, without asking for it: None when it is free, empty when the holder is unknown.

        Raises BesomError where Redis cannot be asked.
        """
        try:
            ((_channel, count),) = self._asking.pubsub_numsub(self._channel)
        except self._errors as error:
            raise BesomError(f"Redis at {self._at} says '{printable(str(error))}'; start it.") from None
        return {key: value for key, value in self._record().items() if key != "id"} if count else None

    def holder(self) -> str:
        found = self._record()
        if not found:
            return f"a process that Redis at {self._at} does not name"
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found["since"]))
        return (
            f"pid {found['pid']} ({found['command']}) on {found['host']}, since {since} (Redis at {self._at})"
        )

    def remedy(self) -> str:
        """Nothing: the lock of one that is gone goes with its connection."""
        return ""

    def lost(self) -> str:
        return f"the connection to Redis at {self._at} broke" if self._lock.lost else ""

    def release(self) -> None:
        if self._acquired:
            self._acquired = False
            with suppress(*self._errors):
                if not self._lock.lost and self._record().get("id") == self._lock.holder_id:
                    self._asking.delete(self._channel)
            with suppress(*self._errors):
                self._lock.release()
        for connection in (self._asking, self._holding):
            with suppress(*self._errors):
                connection.close()
