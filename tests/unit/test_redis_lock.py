# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import types
from typing import Any

import pytest

from besom.errors import UsageError
from besom.redis_lock import RedisLock, check_redis_url, redis_locks


@pytest.mark.parametrize(
    "url", ["redis://host:6379/0", "rediss://:secret@[::1]/1", "unix:///run/redis.sock?db=0"]
)
def test_a_url_of_redis_is_taken_as_it_is(url: str) -> None:
    assert check_redis_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "http://:sesame@host:1/0",
        "redis://:sesame@:x",
        "redis:///0",
        "unix://",
        "",
        7,
        None,
        "redis://:pa/sesame@host",
        ":sesame@host:6379",
        "redis://u:12#34sesame@h",
        "redis://u:12/34sesame@h",
        "redis://u:12?34sesame@h",
        "redis://:sesame[::1]x",
    ],
)
def test_any_other_is_refused_without_its_secrets(url: object) -> None:
    with pytest.raises(UsageError, match=r"redis_url: that is not a URL of Redis") as refused:
        check_redis_url(url)
    assert "sesame" not in str(refused.value)


def test_a_portalocker_that_does_not_tell_of_a_loss_is_refused() -> None:
    old = types.SimpleNamespace(RedisLock=object)
    with pytest.raises(UsageError, match=r"needs portalocker 4\.2 or newer"):
        redis_locks("redis://host", None, old)


@pytest.mark.parametrize(
    "changes",
    [
        {"since": float("inf")},
        {"since": float("nan")},
        {"since": 1e300},
        {"since": "1"},
        {"pid": float("inf")},
        {"pid": 2**40},
        {"host": None},
        {"command": ["x"]},
        {"host": "h" * 10**6},
    ],
)
def test_a_holder_whose_record_cannot_be_is_not_named(changes: dict[str, Any]) -> None:
    """Whoever may write to Redis may have written it."""
    lock = object.__new__(RedisLock)
    record = {"pid": 5, "command": "c", "since": 1.5, "host": "h", "id": "i", **changes}
    lock._asking = types.SimpleNamespace(get=lambda _key: json.dumps(record))
    lock._channel, lock._at, lock._errors = "besom:/srv", "redis://host", ()
    assert lock.holder() == "a process that Redis at redis://host does not name"
    lock._asking = types.SimpleNamespace(get=lambda _key: "[" * 100_000)
    assert "does not name" in lock.holder()
