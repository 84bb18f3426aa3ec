"""The configuration of a host: a YAML file, then BESOM_* environment, then flags.

Reading never fails: what is malformed becomes a problem with its line, and its place is taken by the
safe default, which deletes less. Commands of a person refuse a configuration with problems; the
daemon warns of them and goes on.
"""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Callable

from besom.effort import EFFORT_READERS, Effort
from besom.errors import UsageError
from besom.fetch import check_url, redact
from besom.policy import LIMITS, Store, Temps, read_store, read_temps
from besom.run import Run
from besom.units import parse_count, parse_duration, parse_size, printable, shown

from .document import Unreadable, parse_yaml, read_text

KEYS = (
    *("stores", "temps", "mounts", "daemon", "drain", "removal", "log", "metrics"),
    *("lock_timeout", "redis_url"),
)
HOST_FILE = "/etc/besom/besom.yml"
AFTER_FAILURE = ("continue", "stop")
LOG_FORMATS = ("text", "json", "clef")
# Values and characters of a file: more than any host has stores for.
_MOST_NODES = 100_000
_MOST_TEXT = 1 << 20


@dataclass(frozen=True)
class Problem:
    """What is malformed, in a sentence; line: from 1, 0 where there is none; in_file: it is no variable.

    alone: of a variable, the sentence without what is done instead, for who does nothing.
    """

    line: int
    message: str
    in_file: bool = True
    alone: str = ""


@dataclass
class Config:
    """What the file at path and the environment configure.

    stores by name; raw_stores as they were written; durations in seconds; log_file, textfile and seq_url
    are empty where nothing is to be written or sent; log_journal: whether events go to the journal with
    their fields, None: where stderr is the journal's; daemon_, unmount_ and prune_timeout are those of a
    drain's phases; reconcile: how long an index may stand for a walk, 0: never; workers, max_rate and
    io_class are those of effort; problems: what was malformed.
    """

    path: str = ""
    stores: dict[str, Store] = field(default_factory=dict)
    raw_stores: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    temps: list[Temps] = field(default_factory=list)
    mounts: list[str] = field(default_factory=list)
    lock_timeout: float = Run.lock_timeout
    redis_url: str = ""
    interval: float = 3600.0
    reconcile: float = 86400.0
    drain_timeout: float = 30.0
    state_dir: str = ""
    daemon_timeout: float = 60.0
    unmount_timeout: float = 30.0
    prune_timeout: float = 300.0
    unmount_lazy: bool = True
    on_phase_failure: str = "continue"
    workers: int = Effort.workers
    max_rate: int = Effort.max_rate
    io_class: str = Effort.io_class
    log_format: str = "text"
    log_file: str = ""
    log_journal: bool | None = None
    seq_url: str = ""
    seq_api_key: str = ""
    seq_api_key_file: str = ""
    textfile: str = ""
    readable: bool = True  # the file is YAML, or there is none
    problems: list[Problem] = field(default_factory=list)

    def sentence(self, problem: Problem) -> str:
        """The problem with its place."""
        if not problem.in_file:
            return problem.message
        where = f", line {problem.line}:" if problem.line else ""
        return f"{printable(self.path)}{where} {problem.message}"

    @property
    def effort(self) -> Effort:
        """How hard a removal may press this host."""
        return Effort(self.workers, self.max_rate, self.io_class)

    @property
    def stop_timeout(self) -> float:
        """Seconds in which a daemon that is told to stop has finished: its run, and a hook after it."""
        hooks = [store.hooks.timeout for store in self.stores.values() if store.hooks.after]
        return self.drain_timeout + max(hooks, default=0.0)

    def remember(self, run: Run) -> Run:
        """The run, remembering what stores came to, for as long as this says."""
        # For those only that are to remember.
        from besom.survey import Memory

        run.memory = Memory
        run.index_dir, run.reconcile = self.state_dir, int(self.reconcile * 1e9)
        return run

    @property
    def sentences(self) -> list[str]:
        return [self.sentence(problem) for problem in self.problems]


def find(flag: str | None, env: Mapping[str, str]) -> str:
    """The file to read: the flag's, BESOM_CONFIG's, the user's own or the host's; empty: there is none."""
    named = flag if flag is not None else env.get("BESOM_CONFIG")
    if named is not None:
        if not named:
            raise UsageError("The path of the configuration is empty; name a file or leave it out.")
        return os.path.abspath(named)
    places = [HOST_FILE]
    if os.geteuid() != 0:
        home = env.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
        places.insert(0, os.path.join(home, "besom", "besom.yml"))
    return next((place for place in places if os.path.exists(place)), "")


def load(flag: str | None, env: Mapping[str, str]) -> Config:
    """The configuration of a command. Raises UsageError for the first problem, naming file, line and key."""
    config = read(find(flag, env), env)
    if config.problems:
        raise UsageError(config.problems[0].alone or config.sentences[0])
    return config


def read(path: str, env: Mapping[str, str]) -> Config:
    """The configuration in the file at path (empty: there is none) under the environment; never raises."""
    reader = _Reader(Config(path), env)
    if path:
        reader.read_file()
    reader.read_settings()
    config = reader.config
    config.state_dir = config.state_dir or _default_state_dir(env)
    return config


def _default_state_dir(env: Mapping[str, str]) -> str:
    if os.geteuid() == 0:
        return "/run/besom"
    runtime = env.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return os.path.join(runtime, "besom")
    return os.path.join(os.path.expanduser("~"), ".local", "state", "besom")


def _minutes(value: Any, name: str) -> float:
    text = str(value).strip()
    return parse_duration(f"{text}m" if re.fullmatch(r"[0-9.]+", text) else value, name)


def _megabytes(value: Any, name: str) -> int:
    return parse_size(f"{parse_count(value, name)}M", name)


def _timeout(value: Any, name: str) -> float:
    return parse_duration(value, name, zero=True)


def _interval(value: Any, name: str) -> float:
    seconds = parse_duration(value, name)
    if seconds < 1:
        raise UsageError(f"{name}: '{shown(value)}' is shorter than a second; give 1s or more.")
    return seconds


def _phase(value: Any, name: str) -> float:
    seconds = parse_duration(value, name)
    if seconds < 2:
        raise UsageError(f"{name}: '{shown(value)}' is too short for a phase; give 2s or more.")
    return seconds


def _truth(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name}: '{shown(value)}' is neither true nor false.")
    return value


def _after_failure(value: Any, name: str) -> str:
    if value not in AFTER_FAILURE:
        raise UsageError(f"{name}: '{shown(value)}' is not one of {', '.join(AFTER_FAILURE)}.")
    return str(value)


def _path(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise UsageError(f"{name}: '{shown(value)}' is not an absolute path.")
    return value


def _key_file(value: Any, name: str) -> str:
    with suppress(UsageError):
        return _path(value, name)
    # Not shown: it may be the key itself.
    raise UsageError(f"{name}: that is not an absolute path; the key itself belongs into seq_api_key.")


def _format(value: Any, name: str) -> str:
    if value not in LOG_FORMATS:
        raise UsageError(f"{name}: '{shown(value)}' is not one of {', '.join(LOG_FORMATS)}.")
    return str(value)


def _yes_or_no(value: Any, name: str) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
    }
    if str(value).strip().lower() not in words:
        raise UsageError(f"{name}: '{shown(value)}' is neither true nor false.")
    return words[str(value).strip().lower()]


def _seq_url(value: Any, name: str) -> str:
    if not isinstance(value, str) or "//" not in value:
        # Not shown: it may be the key.
        raise UsageError(f"{name}: that is not an http or https URL.")
    url = check_url(value, name)
    if any(sign in url for sign in "@?#"):
        raise UsageError(
            f"{name}: {redact(url)} must have no login and no query; the API key has its own place."
        )
    return url


def _redis_url(value: Any, name: str) -> str:
    # Only a host with shared stores needs it.
    from besom.redis_lock import check_redis_url

    return check_redis_url(value, name)


def _api_key(value: Any, name: str) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[!-~]{1,1000}", value):
        # Not shown, whatever it is.
        raise UsageError(f"{name}: that is not an API key; it has only letters, digits and signs.")
    return value


# Field of Config: its keys in the file, how it is read, and its variables with how those are read.
_Read = Callable[[Any, str], Any]
_SETTINGS: dict[str, tuple[tuple[str, ...], _Read, dict[str, _Read]]] = {
    "lock_timeout": (("lock_timeout",), _timeout, {"BESOM_LOCK_TIMEOUT": _timeout}),
    "redis_url": (("redis_url",), _redis_url, {"BESOM_REDIS_URL": _redis_url}),
    "interval": (
        ("daemon", "interval"),
        _interval,
        {"BESOM_INTERVAL": _interval, "BESOM_INTERVAL_MINUTES": _minutes},
    ),
    "reconcile": (("daemon", "reconcile"), _timeout, {"BESOM_RECONCILE": _timeout}),
    "drain_timeout": (("daemon", "drain_timeout"), _timeout, {"BESOM_DRAIN_TIMEOUT": _timeout}),
    "state_dir": (("daemon", "state_dir"), _path, {"BESOM_STATE_DIR": _path}),
    "daemon_timeout": (("drain", "daemon_timeout"), _phase, {}),
    "unmount_timeout": (("drain", "unmount_timeout"), _phase, {}),
    "prune_timeout": (("drain", "prune_timeout"), _phase, {}),
    "unmount_lazy": (("drain", "unmount_lazy"), _truth, {}),
    "on_phase_failure": (("drain", "on_phase_failure"), _after_failure, {}),
    **{name: (("removal", name), read, {}) for name, read in EFFORT_READERS.items()},
    "log_format": (("log", "format"), _format, {"BESOM_LOG_FORMAT": _format}),
    "log_file": (("log", "file"), _path, {"BESOM_LOG_FILE": _path}),
    "log_journal": (("log", "journal"), _truth, {"BESOM_LOG_JOURNAL": _yes_or_no}),
    "seq_url": (("log", "seq_url"), _seq_url, {"BESOM_SEQ_URL": _seq_url}),
    "seq_api_key": (("log", "seq_api_key"), _api_key, {"BESOM_SEQ_API_KEY": _api_key}),
    "seq_api_key_file": (("log", "seq_api_key_file"), _key_file, {"BESOM_SEQ_API_KEY_FILE": _key_file}),
    "textfile": (("metrics", "textfile"), _path, {"BESOM_METRICS_TEXTFILE": _path}),
}
_SECTIONS = {
    section: tuple(keys[1] for keys, _, _ in _SETTINGS.values() if keys[0] == section)
    for section in ("daemon", "drain", "removal", "log", "metrics")
}
_MAX_SIZE: dict[str, _Read] = {"BESOM_MAX_SIZE": parse_size, "BESOM_MAX_SIZE_MB": _megabytes}


class _Reader:
    """Reads one file under one environment into config."""

    def __init__(self, config: Config, env: Mapping[str, str]) -> None:
        self.config, self.env = config, env
        self.values: Mapping[Any, Any] = {}
        # The line of each value by its path of keys and indexes.
        self.lines: dict[tuple[Any, ...], int] = {}
        # Keys that stand twice, and all that is around one: nobody can tell what was meant.
        self.twice: Mapping[tuple[Any, ...], int] = {}
        self.unsure: set[tuple[Any, ...]] = set()
        self.told: set[str] = set()
        # How often each name of a store stands there.
        self.names: Counter[str] = Counter()
        # Index and name of the stores that several machines share.
        self.shared: list[tuple[int, str]] = []

    def problem(self, message: str, *place: Any) -> None:
        """Note a problem at the value with this path of keys, or the nearest one around it."""
        while place and place not in self.lines:
            place = place[:-1]
        self.config.problems.append(Problem(self.lines.get(place, 1), message))

    @contextmanager
    def noting(self, *place: Any) -> Iterator[None]:
        """Note what a reader refuses, at the key inside place that its message begins with."""
        try:
            yield
        except UsageError as error:
            message = str(error)
            words = re.findall(r"[\w]+", message.partition("; ")[0])
            self.problem(
                message, *place, next((word for word in words if (*place, word) in self.lines), None)
            )

    def read_file(self) -> None:
        values = self._parse()
        if values is None:
            return
        if not isinstance(values, Mapping):
            self.problem(f"The file must be a mapping with the keys {', '.join(KEYS)}.")
            return
        self.values = values
        for key in values:
            if key not in KEYS:
                name = shown(key)
                self.problem(f"unknown key {name}; the keys are {', '.join(KEYS)}.", key)
        for section, keys in _SECTIONS.items():
            inner = values.get(section)
            if inner is not None and not isinstance(inner, Mapping):
                self.problem(f"{section} must be a mapping with the keys {', '.join(keys)}.", section)
            for key in inner if isinstance(inner, Mapping) else ():
                if key not in keys:
                    name = shown(key)
                    self.problem(
                        f"{section}: unknown key {name}; the keys are {', '.join(keys)}.", section, key
                    )
        stores = list(self._entries("stores"))
        named = (entry.get("name") for _, entry in stores if isinstance(entry, Mapping))
        self.names.update(name for name in named if isinstance(name, str))
        for index, entry in stores:
            with self.noting("stores", index):
                store = self._add_store(entry)
                if store.lock_backend == "redis":
                    self.shared.append((index, store.name))
        for index, entry in self._entries("temps"):
            with self.noting("temps", index):
                self.config.temps.append(read_temps(entry, "temps: "))
        for index, entry in self._entries("mounts"):
            with self.noting("mounts", index):
                self.config.mounts.append(_path(entry, "mounts"))

    def _parse(self) -> Any:
        """The values of the file; None when it is empty or cannot be read, which is noted."""
        try:
            document = parse_yaml(read_text(self.config.path, _MOST_TEXT), _MOST_NODES)
        except OSError as error:
            self.config.readable = False
            self.config.problems.append(Problem(0, f"cannot be read: {error.strerror}."))
            return None
        except Unreadable as error:
            self.config.readable = False
            # A key that begins with * or ! is taken for one of these.
            problem = re.sub(r"(alias|tag|handle|anchor) .*", r"\1", str(error))
            self.config.problems.append(Problem(error.line or 1, f"not valid YAML: {shown(problem)}."))
            return None
        self.lines = document.lines
        self.twice = document.twice
        for place, line in self.twice.items():
            sentence = f"{shown(place[-1])} stands twice; remove one of them."
            self.config.problems.append(Problem(line, sentence))
            self.unsure.update(place[:length] for length in range(1, len(place) + 1))
        return document.values

    def _entries(self, key: str) -> Iterator[tuple[int, Any]]:
        found = self.values.get(key)
        if (key,) in self.twice:
            return  # which of the two was meant nobody can tell
        if isinstance(found, list):
            # Nor what an entry means in which a key stands twice.
            yield from ((index, one) for index, one in enumerate(found) if (key, index) not in self.unsure)
        elif found is not None:
            self.problem(f"{key} must be a list.", key)

    def _add_store(self, entry: Any) -> Store:
        config = self.config
        if isinstance(entry, Mapping) and not any(entry.get(key) is not None for key in LIMITS):
            # The environment gives a limit to stores that have none of their own.
            for name, reading in _MAX_SIZE.items():
                if name in self.env:
                    with self.noting_variable(name, "A store without a limit of its own is left alone."):
                        entry = {**entry, "max_size": reading(self.env[name], name)}
                    break
        store = read_store(entry, "stores: ")
        if not store.name:
            raise UsageError(f"stores: path: {shown(store.path)} has no name; give it one.")
        if self.names[store.name] > 1:
            raise UsageError(f"stores: name: two stores are named {shown(store.name)}; rename one.")
        config.stores[store.name] = store
        config.raw_stores[store.name] = entry
        return store

    @contextmanager
    def noting_variable(self, name: str, instead: str) -> Iterator[None]:
        try:
            yield
        except UsageError as error:
            sentence = f"{error} {instead}"
            if sentence not in self.told:
                self.told.add(sentence)
                self.config.problems.append(Problem(0, sentence, in_file=False, alone=str(error)))

    def read_settings(self) -> None:
        for name, (keys, reading, variables) in _SETTINGS.items():
            values: Any = self.values
            for key in keys[:-1]:
                values = values.get(key)
                values = values if isinstance(values, Mapping) else {}
            if values.get(keys[-1]) is not None and not any(keys[:n] in self.twice for n in (1, 2)):
                with self.noting(*keys[:-1]):
                    setattr(self.config, name, reading(values[keys[-1]], ": ".join(keys)))
            for variable, reading_variable in variables.items():
                if variable in self.env:
                    now = "" if name == "seq_api_key" else getattr(self.config, name)
                    with self.noting_variable(variable, f"It is ignored; {_shown(now)} is in force."):
                        setattr(self.config, name, reading_variable(self.env[variable], variable))
                    break
        if not self.config.redis_url:
            for index, store in self.shared:
                where = f"stores: {shown(store)}: lock_backend: redis"
                self.problem(
                    f"{where} needs redis_url, or BESOM_REDIS_URL; set it.", "stores", index, "lock_backend"
                )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{math.floor(value) if value == math.floor(value) else value}s"
    text = "" if value is None else str(value)
    # A URL can hold a password.
    return (redact(text) if "://" in text else printable(text)) or "the default"
