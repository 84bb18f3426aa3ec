"""besom housekeep: what the daemon does, once, for cron."""

from __future__ import annotations

import os
from argparse import Namespace
from functools import partial

from besom.drain_flag import refuse_new_work
from besom.errors import LockHeld
from besom.shutdown import Shutdown

from . import log
from .commands import finish
from .config import find, read
from .cycle import LAST_WORDS_S, keep_house
from .output import say
from .progress import Bar
from .runs import bar_of, run_of
from .state import AlreadyRuns, StateDir


def housekeep_command(options: Namespace, shutdown: Shutdown) -> int:
    config = read(find(options.config, os.environ), os.environ)
    # Unattended, so one bad setting keeps only what it is about from its turn; the status tells.
    for sentence in config.sentences:
        say(sentence)
    if not options.dry_run:
        for refusal in log.configure(config, once=True):
            say(refusal)
    bar = bar_of(options)
    run = run_of(options, config, shutdown, bar, options.dry_run)
    # The last prune of a drain, as a preview, is never refused, and goes by nothing but what is there.
    if not (options.dry_run or options.while_draining):
        run.admit = partial(refuse_new_work, "besom housekeep")
        run.admit()
        config.remember(run)
    with bar or Bar():
        if options.dry_run:
            found = keep_house(config, run, "once")
        else:
            state = StateDir(config.state_dir)
            if state.is_held():
                raise LockHeld(f"The daemon (pid {state.observe().pid}) keeps house already.")
            try:
                with state.acquire("housekeep.pid"):
                    found = keep_house(config, run, "once")
            except AlreadyRuns as error:
                raise LockHeld(str(error)) from None
    log.close(LAST_WORDS_S)
    nouns = {store.path: store.noun for store in config.stores.values()}
    figures = {"cleanups_run": shutdown.cleanups_run, "cleanups_failed": shutdown.cleanups_failed}
    status = finish(options, found.outcome, nouns, figures)
    return status or (2 if config.problems else 0)
