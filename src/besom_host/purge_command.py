"""besom purge: remove entries of one store by id, age or group."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from dataclasses import replace

from besom.errors import UsageError
from besom.housekeep import check_roots
from besom.prune import Request, prune
from besom.report import Report
from besom.run import Run
from besom.shutdown import Shutdown
from besom.units import from_printable, parse_duration

from .commands import Work, carry_out, confirmed, finish, store_of
from .config import load
from .output import removal_text, say


def purge_command(options: Namespace, shutdown: Shutdown) -> int:
    ids = frozenset(map(from_printable, options.ids))
    age = None if options.older_than is None else parse_duration(options.older_than, "--older-than")
    group = None if options.group is None else from_printable(options.group)
    if not ids and age is None and group is None:
        raise UsageError(
            "Nothing is named; give an ID, --older-than or --group (clean --all empties stores)."
        )
    if group == "":
        # An unset variable of a shell, more likely than what has no group.
        raise UsageError("--group is empty; name a group.")
    config = load(options.config, os.environ)
    store = store_of(options, config, options.store, limits_required=False)
    check_roots([store], [], skip_missing=False)
    sure = options.dry_run or options.yes
    if not sure and not sys.stdin.isatty():
        raise UsageError("purge removes for good; confirm that with --yes, or look first with --dry-run.")
    request = Request(store, ids=ids or None, group=group, older_than=None if age is None else int(age * 1e9))
    # What grows old enough while the question stands is not what was asked.
    now = time.time_ns()

    def purge(run: Run) -> Report:
        return prune(request, replace(run, now=lambda: now))

    work: list[Work] = [(store.path, purge)]
    nouns = {store.path: store.noun}
    if not sure:
        preview = carry_out(options, config, shutdown, work, dry_run=True, skip_missing=False)
        text = removal_text(preview.reports, nouns, dry_run=True)
        if text and not confirmed(text, "Remove all of this?", shutdown):
            for message in ("Nothing was removed.", *preview.messages):
                say(message)
            return preview.status
    return finish(
        options, carry_out(options, config, shutdown, work, options.dry_run, skip_missing=False), nouns
    )
