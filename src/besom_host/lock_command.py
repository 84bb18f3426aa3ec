"""besom lock: who holds a store, and the end of an owner file whose owner is surely gone."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace

from besom.errors import UsageError
from besom.info import lock_info
from besom.owner_file import OwnerFile
from besom.root import Root
from besom.shutdown import Shutdown
from besom.units import printable

from .commands import confirmed, path_of
from .config import load
from .output import say


def lock_command(options: Namespace, shutdown: Shutdown) -> int:
    path = path_of(load(options.config, os.environ), options.store)
    with Root(path) as root:
        return {"status": _status, "break": _break}[options.action](root, options, shutdown)


def _status(root: Root, options: Namespace, _shutdown: Shutdown) -> int:
    found = lock_info(root)
    if options.json:
        print(json.dumps({"operation": "lock status", "changed": False, **found}))
    elif found["state"] == "held":
        print(f"{found['store']} is locked ({found['mechanism']}) by {found['note']}.")
    else:
        print(
            f"{found['store']} is free ({found['mechanism']}){': ' if found['note'] else ''}{found['note']}."
        )
    return 0


def _break(root: Root, options: Namespace, shutdown: Shutdown) -> int:
    shown = printable(root.path)
    file = OwnerFile(root.fd, root.path)
    owner = file.breakable()
    if not options.yes:
        if not sys.stdin.isatty():
            raise UsageError(f"{shown} is locked by {owner}; confirm with --yes that it is gone.")
        question = f"{shown} is locked by {owner}.\nTwo writers at once can harm what is in it."
        if not confirmed(question, "Is that owner surely gone, and its lock to be broken?", shutdown):
            say("The lock was left as it is.")
            return 0
    file.break_up()
    if options.json:
        print(json.dumps({"operation": "lock break", "changed": True, "store": shown, "owner": owner}))
    else:
        print(f"{shown} is free: the lock of {owner} was broken.")
    return 0
