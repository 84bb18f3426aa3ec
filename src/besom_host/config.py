"""The configuration of a host: a YAML file, then BESOM_* environment, then flags."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from besom.errors import UsageError
from besom.policy import LIMITS, Store, Temps, read_store, read_temps
from besom.run import Run
from besom.units import parse_count, parse_duration, parse_size, printable

KEYS = ("stores", "temps", "mounts", "daemon", "log", "metrics", "lock_timeout")


@dataclass
class Config:
    """What the file at path configures: stores by name, temp areas in order, lock_timeout in seconds."""

    path: str = ""
    stores: dict[str, Store] = field(default_factory=dict)
    raw_stores: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    temps: list[Temps] = field(default_factory=list)
    lock_timeout: float = Run.lock_timeout


def find(flag: str | None, env: Mapping[str, str]) -> str | None:
    """The file to read: the flag's, BESOM_CONFIG's, the user's own or the host's; None: there is none."""
    named = flag if flag is not None else env.get("BESOM_CONFIG")
    if named is not None:
        if not named:
            raise UsageError("The path of the configuration is empty; name a file or leave it out.")
        return named
    places = ["/etc/besom/besom.yml"]
    if os.geteuid() != 0:
        home = env.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        places.insert(0, os.path.join(home, "besom", "besom.yml"))
    return next((place for place in places if os.path.exists(place)), None)


def load(flag: str | None, env: Mapping[str, str]) -> Config:
    """Read the configuration. Raises UsageError, a sentence that names the file (or variable) and the key."""
    path = find(flag, env)
    values = _read(path) if path else {}
    where = f"{printable(path)}: " if path else ""
    unknown = [key for key in values if key not in KEYS]
    if unknown:
        raise UsageError(f"{where}unknown key {printable(str(unknown[0]))}; the keys are {', '.join(KEYS)}.")
    config = Config(path=path or "")
    for entry in _list(values, "stores", where):
        _add_store(config, entry, f"{where}stores: ", env)
    for entry in _list(values, "temps", where):
        config.temps.append(read_temps(entry, f"{where}temps: "))
    if values.get("lock_timeout") is not None:
        config.lock_timeout = parse_duration(values["lock_timeout"], f"{where}lock_timeout", zero=True)
    if "BESOM_LOCK_TIMEOUT" in env:
        config.lock_timeout = parse_duration(env["BESOM_LOCK_TIMEOUT"], "BESOM_LOCK_TIMEOUT", zero=True)
    return config


def _read(path: str) -> Mapping[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            values = yaml.safe_load(stream)
    except OSError as error:
        raise UsageError(f"{printable(path)} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UsageError(f"{printable(path)} is not valid YAML{line}: {printable(str(problem))}.") from error
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise UsageError(f"{printable(path)} must be a mapping with the keys {', '.join(KEYS)}.")
    return values


def _list(values: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = values.get(key)
    if found is not None and not isinstance(found, list):
        raise UsageError(f"{where}{key} must be a list.")
    return found or []


def _add_store(config: Config, entry: Any, where: str, env: Mapping[str, str]) -> None:
    if isinstance(entry, Mapping) and not any(entry.get(key) is not None for key in LIMITS):
        # The environment gives a limit to stores that have none of their own.
        if "BESOM_MAX_SIZE" in env:
            entry = {**entry, "max_size": parse_size(env["BESOM_MAX_SIZE"], "BESOM_MAX_SIZE")}
        elif "BESOM_MAX_SIZE_MB" in env:
            megabytes = parse_count(env["BESOM_MAX_SIZE_MB"], "BESOM_MAX_SIZE_MB")
            entry = {**entry, "max_size": parse_size(f"{megabytes}M", "BESOM_MAX_SIZE_MB")}
    store = read_store(entry, where)
    if not store.name:
        raise UsageError(f"{where}{printable(store.path)} has no name; give it one.")
    if store.name in config.stores:
        raise UsageError(f"{where}two stores are named {printable(store.name)}.")
    config.stores[store.name] = store
    config.raw_stores[store.name] = entry
