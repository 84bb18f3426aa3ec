"""besom lock: who holds a store, and the end of an owner file whose owner is surely gone."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from typing import Any

from besom.errors import UsageError
from besom.info import lock_info
from besom.owner_file import OwnerFile
from besom.root import Root
from besom.shutdown import Shutdown
from besom.units import printable

from .commands import confirmed
from .config import Config, load
from .output import say
from .runs import path_of
from .shared_lock import backend_of, redis_locks_of


def lock_command(options: Namespace, shutdown: Shutdown) -> int:
    config = load(options.config, os.environ)
    with Root(path_of(config, options.store)) as root:
        return (
            _break(root, options, shutdown) if options.action == "break" else _status(root, options, config)
        )


def _status(root: Root, options: Namespace, config: Config) -> int:
    found = lock_info(root)
    shared = _shared(root, config)
    if options.json:
        more = {} if shared is None else {"shared": shared}
        print(json.dumps({"operation": "lock status", "changed": False, **found, **more}))
        return 0
    note = found["note"]
    if found["state"] == "held":
        print(f"{found['store']} is locked ({found['mechanism']}) by {note}.")
    else:
        print(f"{found['store']} is free ({found['mechanism']}{', ' if note else ''}{note}).")
    if shared is not None:
        state = f"{shared['state']}{_who(shared['holder'])}"
        print(f"Among the machines that share it as {shared['name']}, it is {state} (redis).")
    return 0


def _shared(root: Root, config: Config) -> dict[str, Any] | None:
    """The lock that other machines see, of a store that has one; asks Redis and takes nothing."""
    locks = redis_locks_of(config)
    if backend_of(config, root.path) != "redis" or locks is None:
        return None
    holder = locks(root.real).seen()
    state = "free" if holder is None else "held"
    return {"name": printable(root.real), "state": state, "holder": holder or None}


def _who(holder: dict[str, Any] | None) -> str:
    return f" by pid {holder['pid']} ({holder['command']}) on {holder['host']}" if holder else ""


def _break(root: Root, options: Namespace, shutdown: Shutdown) -> int:
    shown = printable(root.path)
    file = OwnerFile(root.fd, root.path)
    owner, which = file.breakable()
    if not options.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{shown} is locked by {owner}; confirm with --yes that it is gone.")
        question = f"{shown} is locked by {owner}.\nTwo writers at once can harm what is in it."
        if not confirmed(question, "Is that owner surely gone, and its lock to be broken?", shutdown):
            say("The lock was left as it is.")
            return 0
    file.break_up(which)
    if options.json:
        print(json.dumps({"operation": "lock break", "changed": True, "store": shown, "owner": owner}))
    else:
        print(f"{shown} is free: the lock of {owner} was broken.")
    return 0
