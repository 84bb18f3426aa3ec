"""besom unmount: mounts that go gracefully, or lazily when asked, or stay with their holders named."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace

from besom.errors import Interrupted
from besom.run import Run
from besom.shutdown import Shutdown
from besom.units import parse_duration, printable
from besom.unmount import MountState, UnmountReport, UnmountRequest, unmount

from .output import absolute, say

_VERBS = {
    "would_unmount": "Would unmount {}",
    "unmounted": "Unmounted {}",
    "detached": "Detached {}",
}


def unmount_command(options: Namespace, shutdown: Shutdown) -> int:
    request = UnmountRequest(
        tuple(absolute(path) for path in options.paths),
        parse_duration(options.timeout, "--timeout", zero=True),
        lazy=options.lazy,
        recursive=options.recursive,
    )
    # A mount that one stands in is busy; besom itself shall not be what holds it.
    os.chdir("/")
    report = unmount(request, Run(dry_run=options.dry_run, shutdown=shutdown))
    messages, status = report.messages, 1 if report.messages else 0
    if report.interrupted:
        try:
            shutdown.check("unmounting")
        except Interrupted as error:
            messages, status = [*messages, str(error)], error.status
    for warning in report.warnings:
        say(f"warning: {warning}")
    if options.json:
        failure = {"error": " ".join(messages), "status": status} if status else {}
        print(json.dumps({**report.to_dict(), **failure}))
    else:
        loud = options.dry_run or options.verbose or sys.stdout.isatty()
        _print_text(report, loud)
    for message in messages:
        say(message)
    return status


def _print_text(report: UnmountReport, loud: bool) -> None:
    for one in report.mounts:
        if one.state in _VERBS:
            print(_line(one))
        elif one.state == "absent" and loud:
            print(f"{printable(one.path)} is not mounted.")


def _line(one: MountState) -> str:
    source = printable(one.mount.source) if one.mount else ""
    text = f"{_VERBS[one.state].format(printable(one.path))} ({one.fstype}, {source})"
    if not one.holders:
        return f"{text}."
    return f"{text}, held by {', '.join(map(str, one.holders))}."
