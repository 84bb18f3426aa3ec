"""Locks that several machines see, for stores with `lock_backend: redis`."""

from __future__ import annotations

from contextlib import suppress
from typing import Callable

from besom.errors import BesomError, UsageError
from besom.redis_lock import RedisLock, redis_locks
from besom.root import Root

from .config import Config


def backend_of(config: Config, path: str) -> str:
    """The lock_backend of the configured store that the directory at path is, whatever its spelling."""
    shared = [store for store in config.stores.values() if store.lock_backend != "flock"]
    asked = _ident(path) if shared else None
    for store in shared:
        if store.path == path or (asked and _ident(store.path) == asked):
            return store.lock_backend
    return "flock"


def _ident(path: str) -> tuple[int, int] | None:
    # What cannot be opened cannot be changed either; whoever tries says why.
    with suppress(BesomError), Root(path) as root:
        return root.ident
    return None


def redis_locks_of(config: Config) -> Callable[[str], RedisLock] | None:
    """What makes the shared lock of a store from its path; None where no redis_url is configured."""
    return (lambda path: _lock(config.redis_url, path)) if config.redis_url else None


def _lock(url: str, path: str) -> RedisLock:
    # 100 ms that only such a store needs.
    try:
        from .state import import_portalocker

        portalocker = import_portalocker()
        import redis
    except ImportError:
        raise UsageError(
            "lock_backend: redis needs the Python packages redis and portalocker 4.2 or newer; install them."
        ) from None
    return redis_locks(url, redis, portalocker)(path)
