#!/usr/bin/python

# Copyright (c) 2026, the besom founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: prune_daemon
short_description: Start, stop, drain, poke and wait for a host's prune daemon
description:
  - Runs the command C(besom daemon) of the host, so playbooks, scripts and people get the same answers.
  - The command belongs to the host; the role C(besom) installs it.
  - Where the wait is cut short, by a signal or a lost connection, nothing is left behind that goes on waiting.
author:
  - The besom founders (@besom)
version_added: 0.1.0
attributes:
  check_mode:
    support: full
    description: Asks for the state of the daemon and says what would change. Does not wait.
  diff_mode:
    support: full
    description: Shows the state before, and the one asked for.
options:
  state:
    description:
      - V(started) starts the daemon where none runs, and waits until it is ready.
      - V(stopped) lets it end the run in flight; when the time is up it is stopped between two entries.
      - V(drained) lets it end the run in flight; when the time is up the task fails, names what is still in flight and
        leaves the daemon to drain, or, with O(force), the daemon is stopped between two entries.
      - V(restarted) is V(stopped), then V(started).
      - V(reloaded) makes it read its configuration anew. A broken one fails the task, and the old one stays in force.
      - V(triggered) asks for a run now and does not wait for it. Several that are asked for during one run become one.
      - V(idle) asks for nothing; it waits until the run that was asked for last, or else the first run, is over, and no
        other is in flight.
      - All but V(started), V(stopped), V(drained) and V(restarted) need a daemon that runs.
    type: str
    choices: [started, stopped, drained, restarted, reloaded, triggered, idle]
    default: started
  timeout:
    description:
      - How long to wait, such as C(90s) or C(15m). V(restarted) may take it twice, to stop and to start.
      - Not given, it is 30 seconds for V(started) and V(reloaded), ten seconds more than the daemon's own C(drain_timeout)
        for V(stopped), V(drained) and V(restarted), and without end for V(idle).
    type: str
  force:
    description: With V(drained), stop the daemon between two entries when the time is up, instead of failing.
    type: bool
    default: false
  config:
    description: The configuration, where it is not in its usual place, C(/etc/besom/besom.yml).
    type: path
  command:
    description: The besom command; looked for in the C(PATH) and in C(/usr/local/bin) when not given.
    type: path
seealso:
  - module: besom.storage.housekeep
"""

EXAMPLES = r"""
- name: Have the daemon run
  prune_daemon:

- name: Prune now, and go on
  prune_daemon:
    state: triggered

- name: Wait until that is done
  prune_daemon:
    state: idle
    timeout: 15m

- name: Drain before maintenance, in five minutes at most
  prune_daemon:
    state: drained
    timeout: 5m
    force: true
"""

RETURN = r"""
msg:
  description: The outcome in a sentence, or what is wrong and what to do.
  type: str
  returned: always
state:
  description: The state of the daemon afterwards, or in check mode now, C(stopped), C(starting), C(idle), C(running) or C(draining).
  type: str
  returned: when the command answered
pid:
  description: The process of the daemon; null where none runs.
  type: int
  returned: when the command answered
since:
  description: When the daemon was started, in seconds since the epoch; null where none runs.
  type: float
  returned: when the command answered
last_run:
  description: The last run that ended; null where none did.
  type: dict
  returned: when the command answered
  contains:
    began:
      description: When it began, in seconds since the epoch.
      type: float
    ended:
      description: When it ended, in seconds since the epoch.
      type: float
    outcome:
      description: How it ended, C(done), C(failed) or C(interrupted).
      type: str
    removed_entries:
      description: How many entries it removed.
      type: int
    freed_bytes:
      description: Bytes that the file systems got back.
      type: int
    messages:
      description: What went wrong in it.
      type: list
      elements: str
next_run:
  description: When the next run is due, in seconds since the epoch; null where none is.
  type: float
  returned: when the command answered
in_flight:
  description: What the daemon is at work on.
  type: list
  elements: dict
  returned: when the command answered
  contains:
    operation:
      description: What it does.
      type: str
    path:
      description: Where.
      type: str
    since:
      description: Since when, in seconds since the epoch.
      type: float
waited_s:
  description: Seconds waited; 0 in check mode.
  type: float
  returned: when the command answered
"""

import json
import select
import signal
import threading
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.besom.errors import BesomError
from ..module_utils.besom.shutdown import Shutdown
from ..module_utils.besom.units import parse_duration
from ..module_utils.besom_module import one_sentence

FACTS = ("state", "pid", "since", "last_run", "next_run", "in_flight", "waited_s")
# What besom daemon is told for each state, in turn.
COMMANDS = {
    "started": [["start"]],
    "stopped": [["stop", "--force"]],
    "drained": [["stop"]],
    "restarted": [["stop", "--force"], ["start"]],
    "reloaded": [["reload"]],
    "triggered": [["trigger"]],
    "idle": [["wait", "--idle"]],
}
# What a host that drains refuses.
NEW_WORK = ("started", "restarted", "triggered")
# What a daemon has to run for.
NEEDS_ONE = ("reloaded", "triggered", "idle")


class Connection(Shutdown):
    """The shutdown flag, set by the end of the connection as well; sets an end to the process that is waited for."""

    process: Any = None

    def request(self, signum: int = signal.SIGTERM, _frame: Any = None) -> None:
        super().request(signum)
        if self.process:
            self.process.terminate()

    def waits_for(self, process: Any) -> None:
        """Called by run_command with what it has started."""
        self.process = process
        if self.requested:
            process.terminate()

    def watch(self) -> None:
        """Notice when nobody reads the result any more: without a terminal, no signal tells of that."""
        poll = select.poll()
        poll.register(1, 0)
        poll.poll()
        self.request(signal.SIGHUP)


class Daemon:
    """The prune daemon of this host, through the besom command."""

    def __init__(self, module: AnsibleModule) -> None:
        self._module = module
        name = module.params["command"] or "besom"
        command = module.get_bin_path(name, opt_dirs=["/usr/local/bin"])
        if not command:
            raise BesomError(f"There is no command {name} on this host; install it with the role besom.")
        config = module.params["config"]
        self._command = [command, *(["--config", config] if config else []), "--json", "daemon"]
        self._connection = Connection()
        self._connection.listen()
        threading.Thread(target=self._connection.watch, daemon=True).start()

    def tell(self, words: list[str]) -> dict[str, Any]:
        """The command's answer, with the key `error` where it failed. Raises Interrupted and BesomError."""
        status, out, err = self._module.run_command(
            [*self._command, *words], before_communicate_callback=self._connection.waits_for
        )
        self._connection.check("waiting for the prune daemon")
        try:
            answer: dict[str, Any] = json.loads(out)
        except ValueError:
            said = ((err.strip() or out.strip()).splitlines() or ["nothing"])[-1]
            raise BesomError(
                f"{self._command[0]} daemon {words[0]} ended with {status}, saying: {said}"
            ) from None
        return answer

    def look(self) -> dict[str, Any]:
        """The answer to status: none running is no failure."""
        answer = self.tell(["status"])
        if "state" not in answer:
            raise BesomError(answer["error"])
        return {key: answer[key] for key in (*FACTS, "refusing") if key in answer}


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            state=dict(type="str", choices=[*COMMANDS], default="started"),
            timeout=dict(type="str"),
            force=dict(type="bool", default=False),
            config=dict(type="path"),
            command=dict(type="path"),
        ),
        supports_check_mode=True,
    )
    with one_sentence(module):
        if module.params["timeout"] is not None:
            parse_duration(module.params["timeout"], "timeout", zero=True)
        daemon = Daemon(module)
        restarts = module.params["state"] == "restarted"
        before = daemon.look() if module.check_mode or module._diff or restarts else {}
        # What could not be started again is not stopped.
        if module.check_mode or (restarts and before["refusing"]):
            finish(module, before, predict(module.params["state"], before))
        finish(module, before, perform(module.params, daemon))


def predict(state: str, before: dict[str, Any]) -> dict[str, Any]:
    """What would be answered if a daemon that is as before were asked for state."""
    runs = before["pid"] is not None
    if before["refusing"] and state in NEW_WORK and not (state == "started" and runs):
        return {
            **before,
            "changed": False,
            "error": "This host drains; besom drain --resume, or a boot, ends that.",
        }
    if state in NEEDS_ONE and not runs:
        return {**before, "changed": False, "error": "No daemon runs; start it first."}
    changed = {"started": not runs, "stopped": runs, "drained": runs, "idle": False}
    return {**before, "changed": changed.get(state, True), "waited_s": 0.0}


def perform(params: dict[str, Any], daemon: Daemon) -> dict[str, Any]:
    """Ask for the state, and wait for it where that is to be waited for."""
    state = params["state"]
    options = ["--force"] if state == "drained" and params["force"] else []
    if params["timeout"] is not None and state != "triggered":
        options += ["--timeout", params["timeout"]]
    answers: list[dict[str, Any]] = []
    for words in COMMANDS[state]:
        answers.append(daemon.tell([*words, *options]))
        if "error" in answers[-1]:
            break
    return {
        **answers[-1],
        "changed": any(answer["changed"] for answer in answers),
        "waited_s": sum(answer.get("waited_s") or 0.0 for answer in answers),
    }


def finish(module: AnsibleModule, before: dict[str, Any], answer: dict[str, Any]) -> None:
    """End the module with the answer."""
    result = {key: answer[key] for key in ("changed", *FACTS) if key in answer}
    if module._diff and result["changed"]:
        result["diff"] = {"before": {"state": before["state"]}, "after": {"state": module.params["state"]}}
    if "error" in answer:
        module.fail_json(msg=answer["error"], **result)
    module.exit_json(msg=sentence(answer), **result)


def sentence(answer: dict[str, Any]) -> str:
    if answer["pid"] is None:
        return "No daemon runs."
    work = ", ".join(f"{one['operation']} {one['path']}" for one in answer["in_flight"])
    return f"The daemon is {answer['state']}, pid {answer['pid']}{': ' + work if work else ''}."


if __name__ == "__main__":
    main()
