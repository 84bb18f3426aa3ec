"""Locks that several machines see, for stores with `lock_backend: redis`."""

from __future__ import annotations

import tempfile
from typing import Callable

from besom.errors import UsageError
from besom.redis_lock import RedisLock, redis_locks

from .config import Config


def redis_locks_of(config: Config) -> Callable[[str], RedisLock] | None:
    """What makes the shared lock of a store from its path; None where no redis_url is configured."""
    return (lambda path: _lock(config.redis_url, path)) if config.redis_url else None


def _lock(url: str, path: str) -> RedisLock:
    # 100 ms that only such a store needs.
    tempfile.tempdir = tempfile.tempdir or "/tmp"  # noqa: S108 (as in state.py)
    try:
        import portalocker
        import redis
    except ImportError:
        raise UsageError(
            "lock_backend: redis needs the Python packages redis and portalocker 4.2 or newer; install them."
        ) from None
    return redis_locks(url, redis, portalocker)(path)
