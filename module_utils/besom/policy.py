# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What users ask for: stores with a policy, temp areas, needs. The same keys in modules, config and roles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable

from .errors import UsageError
from .units import Share, is_name, parse_count, parse_duration, parse_size, shown

LAYOUTS = ("files", "trees", "sessions")
ORDERS = ("oldest", "lru", "created")
SORTS = ("age", "size", "id", "group")
DEFAULT_PATTERN = ".temp-*"
DEFAULT_OLDER_THAN = "24h"
LIMITS = ("max_size", "max_age", "min_free", "max_entries")
POLICY_KEYS = (*LIMITS, "target_size", "min_age", "order")
# Of ionice(1).
IO_CLASSES = ("best-effort", "idle")
LOCK_BACKENDS = ("flock", "redis")
HOOK_KEYS = ("before_prune", "after_prune", "hook_timeout")
STORE_KEYS = ("name", "path", "layout", "group_key", "lock_backend", *POLICY_KEYS, *HOOK_KEYS)


def _ns(value: Any, name: str) -> int:
    return int(parse_duration(value, name) * 1e9)


@dataclass(frozen=True)
class Policy:
    """Limits of one store: sizes in bytes, ages in ns; None where there is no limit."""

    max_size: int | None = None
    target_size: int | None = None
    max_age: int | None = None
    min_free: Share | None = None
    max_entries: int | None = None
    min_age: int | None = None
    order: str = "oldest"

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], where: str = "", layout: str = "files") -> Policy:
        """A policy from the keys of the design; a value of None counts as not given.

        where: put before each key in messages; layout: that of the store, whose default order it is.
        Raises UsageError for a malformed value or a combination that makes no sense.
        """
        readers: dict[str, Callable[[Any, str], Any]] = {
            "max_size": parse_size,
            "target_size": parse_size,
            "max_age": _ns,
            "min_free": Share,
            "max_entries": parse_count,
            "min_age": _ns,
        }
        given: dict[str, Any] = {
            key: read(values[key], where + key)
            for key, read in readers.items()
            if values.get(key) is not None
        }
        order = values.get("order")
        if order is None:
            order = "created" if layout == "sessions" else "oldest"
        if order not in ORDERS:
            raise UsageError(f"{where}order: {shown(order)} is not one of {', '.join(ORDERS)}.")
        if order == "created" and layout != "sessions":
            raise UsageError(f"{where}order: created needs the layout sessions; use oldest or lru here.")
        policy = cls(order=order, **given)
        if policy.target_size is not None:
            if policy.max_size is None:
                raise UsageError(f"{where}target_size needs max_size, the limit at which pruning starts.")
            if policy.target_size > policy.max_size:
                raise UsageError(
                    f"{where}target_size is above max_size; it is where pruning stops, so make it smaller."
                )
        if policy.min_age is not None and policy.max_age is not None and policy.min_age > policy.max_age:
            raise UsageError(f"{where}min_age is above max_age: nothing would ever be old enough to go.")
        return policy

    @property
    def limited(self) -> bool:
        return any(getattr(self, key) is not None for key in LIMITS)

    @property
    def only_min_free(self) -> bool:
        """Whether the free space of the file system alone says that nothing is to go."""
        return [key for key in LIMITS if getattr(self, key) is not None] == ["min_free"]


@dataclass(frozen=True)
class Hooks:
    """Commands for /bin/sh around a prune that removes something; timeout in seconds, for each."""

    before: str = ""
    after: str = ""
    timeout: float = 60.0


@dataclass(frozen=True)
class Store:
    """A directory that besom bounds; lock_backend: `redis` where several machines share it.

    group_key: the key of a session's metadata that names its group.
    """

    path: str
    layout: str
    policy: Policy
    name: str = ""
    hooks: Hooks = Hooks()
    lock_backend: str = "flock"
    group_key: str = "group"

    @property
    def noun(self) -> str:
        """What its entries are called, in the plural."""
        return self.layout


@dataclass(frozen=True)
class Temps:
    """A temp area: a directory whose direct children that match a pattern are temps."""

    path: str
    patterns: tuple[str, ...] = (DEFAULT_PATTERN,)
    older_than: int = field(default_factory=lambda: _ns(DEFAULT_OLDER_THAN, "older_than"))


def read_store(values: Any, where: str = "", limits_required: bool = True) -> Store:
    """A store from a mapping with path, layout and the keys of a policy. Raises UsageError."""
    values = read_mapping(values, where, STORE_KEYS)
    name = values.get("name")
    if name is not None and (not isinstance(name, str) or not name or "/" in name):
        raise UsageError(f"{where}name: {shown(name)} is not a name; use one without a slash.")
    where = f"{where}{shown(name)}: " if name else where
    layout = values.get("layout")
    if layout not in LAYOUTS:
        raise UsageError(f"{where}layout: {shown(layout)} is not one of {', '.join(LAYOUTS)}.")
    backend = values.get("lock_backend")
    backend = "flock" if backend is None else backend
    if backend not in LOCK_BACKENDS:
        known = ", ".join(LOCK_BACKENDS)
        raise UsageError(f"{where}lock_backend: {shown(backend)} is not one of {known}.")
    group_key = values.get("group_key")
    if group_key is not None and (not isinstance(group_key, str) or not group_key):
        raise UsageError(f"{where}group_key: {shown(group_key)} is not the name of a key.")
    if group_key is not None and layout != "sessions":
        raise UsageError(f"{where}group_key needs the layout sessions, whose metadata it is a key of.")
    policy, hooks = Policy.from_mapping(values, where, layout), _read_hooks(values, where)
    path = read_path(values, where)
    store = Store(path, layout, policy, name or "", hooks, backend, group_key or Store.group_key)
    if limits_required and not store.policy.limited:
        raise UsageError(f"{where}no limit is set; give at least one of {', '.join(LIMITS)}.")
    return store


def _read_hooks(values: Mapping[str, Any], where: str) -> Hooks:
    for key in HOOK_KEYS[:2]:
        command = values.get(key)
        if command is not None and (not isinstance(command, str) or not command.strip() or "\0" in command):
            raise UsageError(f"{where}{key}: {shown(command)!r} is not a command for /bin/sh.")
    timeout = values.get("hook_timeout")
    seconds = Hooks.timeout if timeout is None else parse_duration(timeout, where + "hook_timeout")
    return Hooks(values.get("before_prune") or "", values.get("after_prune") or "", seconds)


def read_temps(values: Any, where: str = "") -> Temps:
    """A temp area from a mapping with path, pattern (glob or list) and older_than. Raises UsageError."""
    values = read_mapping(values, where, ("path", "pattern", "older_than"))
    patterns = values.get("pattern")
    patterns = DEFAULT_PATTERN if patterns is None else patterns
    patterns = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(patterns, (list, tuple)) or not patterns:
        raise UsageError(f"{where}pattern: give a glob such as {DEFAULT_PATTERN}, or a list of them.")
    for pattern in patterns:
        if not isinstance(pattern, str) or not pattern or "/" in pattern or "\0" in pattern:
            raise UsageError(
                f"{where}pattern: '{shown(pattern)}' is not the glob of a name; "
                "it cannot be empty or contain a slash."
            )
    older_than = values.get("older_than")
    older_than = DEFAULT_OLDER_THAN if older_than is None else older_than
    return Temps(read_path(values, where), tuple(patterns), _ns(older_than, where + "older_than"))


def read_path(values: Mapping[str, Any], where: str = "") -> str:
    """The absolute path under the key `path`. Raises UsageError."""
    path = values.get("path")
    if not isinstance(path, str) or not path.startswith("/") or not is_name(path):
        raise UsageError(f"{where}path: {shown(path)} is not an absolute path.")
    return path


def read_mapping(values: Any, where: str, keys: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise UsageError(f"{where or 'this '}must be a mapping with the keys {', '.join(keys)}.")
    unknown = [key for key in values if key not in keys]
    if unknown:
        raise UsageError(f"{where}unknown key {shown(unknown[0])}; the keys are {', '.join(keys)}.")
    return values
