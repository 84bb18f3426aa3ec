"""besom drain: the shutdown of this host in phases, with a summary; and its end."""

from __future__ import annotations

import json
import os
import time
from argparse import Namespace

from besom import drain_flag
from besom.errors import BesomError, Interrupted
from besom.shutdown import Shutdown
from besom.units import format_duration

from . import log
from .config import Config, find, read
from .cycle import LAST_WORDS_S, write_metrics
from .drain import Drain, Phase
from .metrics import Metrics
from .output import say, table
from .service import is_service, systemctl


def drain_command(options: Namespace, shutdown: Shutdown) -> int:
    config = read(find(options.config, os.environ), os.environ)
    for sentence in config.sentences:
        say(f"warning: {sentence}")
    if options.resume:
        return _resume(options, config)
    # A mount that one stands in is busy; besom itself shall not be what holds it.
    os.chdir("/")
    started = time.monotonic()
    phases = Drain(config, shutdown, options.dry_run).run()
    messages = [message for phase in phases if phase.state == "failed" for message in phase.messages]
    status = 1 if messages else 0
    try:
        shutdown.check("draining")
    except Interrupted as error:
        messages.append(f"{error} Until then, or besom drain --resume, new work is refused.")
        status = error.status
    if not options.dry_run:
        _tell(config, phases, time.monotonic() - started)
    if options.json:
        result = {
            "operation": "drain",
            "changed": any(phase.changed for phase in phases),
            "dry_run": options.dry_run,
            "phases": [phase.to_dict() for phase in phases],
        }
        if status:
            result.update(error=" ".join(messages), status=status)
        print(json.dumps(result))
    else:
        print("\n".join(_lines(phases)))
    for message in messages:
        say(message)
    return status


def _tell(config: Config, phases: list[Phase], seconds: float) -> None:
    """Tell how the phases went, in the log and in the metrics."""
    for refusal in log.configure(config, once=True):
        say(refusal)
    for phase in phases:
        log.tell(
            "drain_phase",
            phase=phase.name,
            state=phase.state,
            took_s=round(phase.took, 3),
            summary=phase.summary,
            timed_out=phase.timed_out,
            forced=phase.forced,
            drained=phase.drained,
            abandoned=phase.abandoned,
        )
        for message in phase.messages if phase.state == "failed" else ():
            log.tell("drain_failed", phase=phase.name, reason=message)
    metrics = Metrics()
    metrics.of_drain(sum(phase.state == "failed" for phase in phases), seconds, time.time())
    write_metrics(config, metrics)
    log.close(LAST_WORDS_S)


def _lines(phases: list[Phase]) -> list[str]:
    rows = [("PHASE", "STATE", "TOOK", "OF", "DRAINED", "ABANDONED", "WHAT")]
    for phase in phases:
        state = f"{phase.state}, forced" if phase.forced else phase.state
        took = format_duration(round(phase.took, 1)) if phase.started else "-"
        rows.append(
            (
                *(phase.name, state, took, format_duration(phase.timeout)),
                *(str(phase.drained), str(phase.abandoned), phase.summary),
            )
        )
    notes = [message for phase in phases if phase.state != "failed" for message in phase.messages]
    return [*table(rows, (2, 3, 4, 5)), *notes]


def _resume(options: Namespace, config: Config) -> int:
    changed = drain_flag.is_draining() if options.dry_run else drain_flag.clear_flag()
    sentence = "New work is taken again." if changed else "This host did not drain."
    if changed and not options.dry_run and is_service(config):
        try:
            systemctl("start")
            sentence += " The daemon runs."
        except BesomError as error:
            raise BesomError(f"{sentence} But the daemon does not start: {error}") from error
    if options.json:
        print(
            json.dumps({"operation": "drain", "changed": changed, "dry_run": options.dry_run, "phases": []})
        )
    else:
        print(sentence)
    return 0
