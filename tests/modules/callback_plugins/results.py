# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes every task's result as one line of JSON, with a snapshot of what the task could have changed."""

from __future__ import annotations

import json
import os

from ansible.plugins.callback import CallbackBase
from snapshot import snapshot

DOCUMENTATION = """
name: results
type: stdout
short_description: One line of JSON for each result
description: For besom's tests.
"""


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "results"

    def _write(self, status, result):
        host, task = result.host.get_name(), result.task.get_name()
        # The linear strategy starts no next task before this returns, so the snapshot is this task's.
        base = os.environ["BESOM_TEST_BASE"]
        tree = snapshot(os.path.join(base, host, task.split("/")[0]))
        line = {"host": host, "task": task, "status": status, "result": result.result, "tree": tree}
        with open(os.environ["BESOM_TEST_RESULTS"], "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, default=str) + "\n")

    def v2_runner_on_ok(self, result):
        self._write("ok", result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        self._write("failed", result)

    def v2_runner_on_unreachable(self, result):
        self._write("unreachable", result)
