#!/usr/bin/python

# Copyright (c) 2026, the besom founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: stale_temp_sweep
short_description: Remove stale temporary files and directories, never live ones
description:
  - Removes what is older than O(older_than) and matches O(pattern) and is not held by a process with flock.
  - The age of a directory is that of the newest mtime anywhere in it.
  - A live temp is kept and listed with the reason. A directory goes whole or not at all.
author:
  - The besom founders (@besom)
version_added: 0.1.0
attributes:
  check_mode:
    support: full
    description: Runs the same plan as a real run and stops before its execution, so it predicts what that run does.
  diff_mode:
    support: full
    description: Shows what leaves, with the reason, and the usage before and after.
options:
  paths:
    description: The directories whose direct children are looked at.
    type: list
    elements: path
    required: true
    aliases: [path]
  pattern:
    description: Globs of names; a temp matches at least one of them. A glob with a slash is refused.
    type: list
    elements: str
    default: [.temp-*]
  older_than:
    description: Only temps in which nothing was written for so long are stale, such as C(24h) or C(7d).
    type: str
    default: 24h
seealso:
  - module: besom.storage.cache_prune
  - module: besom.storage.housekeep
"""

EXAMPLES = r"""
- name: Remove temps that crashed downloads left behind
  stale_temp_sweep:
    paths: /var/lib/app/rubies
    older_than: 24h

- name: Sweep two areas with patterns of their own
  stale_temp_sweep:
    paths:
      - /srv/build
      - /srv/upload
    pattern:
      - .temp-*
      - "*.partial"
    older_than: 7d
"""

RETURN = r"""
msg:
  description: The outcome in a sentence, or what is wrong and what to do.
  type: str
  returned: always
operation:
  description: What was run.
  type: str
  returned: when the work was begun
store:
  description: Empty; RV(reports) has one each.
  type: str
  returned: when the work was begun
dry_run:
  description: Whether this only says what would be done.
  type: bool
  returned: when the work was begun
planned:
  description: What the plan removes, or would remove.
  type: dict
  returned: when the work was begun
  contains:
    entries:
      description: Entries.
      type: int
    bytes:
      description: Bytes that the file system gets back.
      type: int
removed:
  description: What was removed.
  type: dict
  returned: when the work was begun
  contains:
    entries:
      description: Entries.
      type: int
    bytes:
      description: Bytes that the file system got back.
      type: int
victims:
  description: What goes and why, at most 100.
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The path, one line; bytes that do not print are written C(\\xNN).
      type: str
    reason:
      description: The reason.
      type: str
    kind:
      description: Whether it is a C(file) or a C(tree).
      type: str
    bytes:
      description: Bytes that the file system gets back for it.
      type: int
victims_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
kept:
  description: What was kept and why, at most 100 (in use, a mount, changed since the plan).
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The path, one line; bytes that do not print are written C(\\xNN).
      type: str
    reason:
      description: The reason.
      type: str
kept_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
anomalies:
  description: What somebody should look at, at most 100 (immutable, unreadable, unfinished).
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The path, one line; bytes that do not print are written C(\\xNN).
      type: str
    reason:
      description: The reason.
      type: str
anomalies_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
failures:
  description: What should have gone and could not, at most 100; the task fails.
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The path, one line; bytes that do not print are written C(\\xNN).
      type: str
    reason:
      description: The reason.
      type: str
failures_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
bytes_before:
  description: Usage before, in bytes.
  type: int
  returned: when the work was begun
bytes_after:
  description: Usage after, in bytes; in check mode what it would be.
  type: int
  returned: when the work was begun
measured:
  description: How this is known; V(walk), everything was read.
  type: str
  returned: when the work was begun
freed_bytes:
  description: Bytes that the file system got back.
  type: int
  returned: when the work was begun
lock_wait_s:
  description: Seconds waited for the writer lock.
  type: float
  returned: when the work was begun
duration_s:
  description: Seconds it took.
  type: float
  returned: when the work was begun
interrupted:
  description: Whether a signal ended it between two entries.
  type: bool
  returned: when the work was begun
reports:
  description: The same figures for each of O(paths).
  type: list
  elements: dict
  returned: when the work was begun
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.besom.drain_flag import refuse_new_work
from ..module_utils.besom.housekeep import check_roots, perform, tasks_of
from ..module_utils.besom.policy import read_temps
from ..module_utils.besom_module import TEMPS, finish, one_sentence, run_of


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            paths=dict(type="list", elements="path", required=True, aliases=["path"]),
            pattern=TEMPS["pattern"],
            older_than=TEMPS["older_than"],
        ),
        supports_check_mode=True,
    )
    params = module.params
    with one_sentence(module):
        refuse_new_work("this task")
        temps = [
            read_temps({"path": path, "pattern": params["pattern"], "older_than": params["older_than"]})
            for path in params["paths"]
        ]
        run = run_of(module)
        check_roots([], temps, skip_missing=False)
        outcome = perform(tasks_of([], temps, run), run, skip_missing=False)
        finish(module, outcome, outcome.to_dict("sweep"))


if __name__ == "__main__":
    main()
