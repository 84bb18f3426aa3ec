# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import types

import pytest

from besom.errors import UsageError
from besom.redis_lock import check_redis_url, redis_locks


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
