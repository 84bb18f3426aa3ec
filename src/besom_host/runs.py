"""What the commands have in common, without the rooms of any: how to run, and what a word names."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from dataclasses import replace
from typing import Any

from besom.effort import EFFORT_READERS
from besom.errors import UsageError
from besom.run import Progress, Run
from besom.shutdown import Shutdown
from besom.units import parse_duration, printable

from .config import Config
from .output import absolute, say
from .progress import Bar
from .shared_lock import redis_locks_of


def run_of(
    options: Namespace, config: Config, shutdown: Shutdown, progress: Progress | None, dry_run: bool
) -> Run:
    """How this command is to run; what the flags say stands above the configuration.

    progress: what shows it on a terminal, where waits are told as well; None elsewhere.
    """
    timeout = config.lock_timeout
    if options.lock_timeout is not None:
        timeout = parse_duration(options.lock_timeout, "--lock-timeout", zero=True)
    run = Run(dry_run=dry_run, lock_timeout=timeout, lock_option="--lock-timeout", shutdown=shutdown)
    run.effort = config.effort
    for key, read in EFFORT_READERS.items():
        if (value := getattr(options, key, None)) is not None:
            run.effort = replace(run.effort, **{key: read(value, f"--{key.replace('_', '-')}")})
    run.shared_lock = redis_locks_of(config)
    if options.verbose:
        run.output = lambda hook, text: say(f"{hook}: {text}")
    if progress is not None:
        run.progress = progress
        run.waiting = say
        run.waited = lambda path, seconds: say(f"Got the lock of {printable(path)} after {seconds:.1f}s.")
    return run


def bar_of(options: Namespace) -> Bar | None:
    """A bar on a terminal; nothing of it in a pipe or cron."""
    return Bar(color=not options.no_color and "NO_COLOR" not in os.environ) if sys.stderr.isatty() else None


def named(config: Config, name: str) -> Any:
    """The mapping of the configured store of that name. Raises UsageError."""
    try:
        return config.raw_stores[name]
    except KeyError:
        known = ", ".join(map(printable, config.stores)) or "none"
        raise UsageError(
            f"No store is named {printable(name)} (configured: {known}); "
            f"a directory needs a slash, as in ./{printable(name)}."
        ) from None


def path_of(config: Config, word: str) -> str:
    """The directory that a STORE or PATH of the command line names. Raises UsageError."""
    return absolute(word) if "/" in word else str(named(config, word)["path"])
