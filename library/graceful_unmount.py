#!/usr/bin/python

# Copyright (c) 2026, the besom founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: graceful_unmount
short_description: Unmount gracefully, within a time limit, and name who holds what stays
description:
  - Unmounts each of O(paths), trying again while it is busy until O(timeout) is over. What is not mounted is done already.
  - FUSE mounts go by C(fusermount3) or C(fusermount), also for an ordinary user, others by C(umount).
  - What is still busy then is detached with O(lazy), or fails the task. Either way the processes that hold it are named.
  - A mount whose server hangs does not hang the task; no path inside a mount is looked at.
  - All layers that are mounted on one path go. What became of each is read from C(/proc/self/mountinfo).
  - C(/), system directories such as C(/usr), what contains one, and all below C(/proc), C(/sys) and C(/dev) are refused.
author:
  - The besom founders (@besom)
version_added: 0.2.0
attributes:
  check_mode:
    support: full
    description: Predicts from C(/proc/self/mountinfo) what would be unmounted; it cannot know whether that will be busy.
  diff_mode:
    support: full
    description: Shows which mounts go.
options:
  paths:
    description: The mount points.
    type: list
    elements: path
    required: true
    aliases: [path]
  timeout:
    description: How long to try, for all O(paths) together, such as C(90s) or C(5m). With V(0) each is tried once.
    type: str
    default: 30s
  lazy:
    description: Detach what is busy when O(timeout) is over. It is gone for good when the last process has let go of it.
    type: bool
    default: false
  recursive:
    description: Unmount what is mounted below O(paths) as well, from the deepest up. Without it such a mount fails the task.
    type: bool
    default: false
seealso:
  - module: besom.storage.housekeep
"""

EXAMPLES = r"""
- name: Unmount before maintenance, or say who is still there
  graceful_unmount:
    path: /mnt/torrents
    timeout: 1m

- name: Unmount two trees of mounts, and detach what is busy after half a minute
  graceful_unmount:
    paths:
      - /mnt/media
      - /srv/remote
    recursive: true
    lazy: true
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
dry_run:
  description: Whether this only says what would be done.
  type: bool
  returned: when the work was begun
mounts:
  description: Each mount concerned, in the order in which they go.
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The mount point, one line; bytes that do not print are written C(\\xNN).
      type: str
    fstype:
      description: The type of the file system; empty when nothing is mounted there.
      type: str
    source:
      description: What is mounted; empty when nothing is mounted there.
      type: str
    state:
      description: What became of it, one of C(absent), C(unmounted), C(detached), C(busy), C(failed) and C(would_unmount).
      type: str
    tries:
      description: How often it was tried.
      type: int
    duration_s:
      description: Seconds after which it was gone, or given up.
      type: float
    holders:
      description: Processes that hold it, or held it when it was detached, at most 100.
      type: list
      elements: dict
      contains:
        pid:
          description: The process id.
          type: int
        command:
          description: The name of its command.
          type: str
        kind:
          description: What holds the mount, its C(cwd), its C(root), an open C(file) or a mapped one (C(mmap)).
          type: str
        path:
          description: The path that it holds.
          type: str
    message:
      description: Why it stays, or whom it waits for; empty when there is nothing to say.
      type: str
duration_s:
  description: Seconds it took.
  type: float
  returned: when the work was begun
interrupted:
  description: Whether a signal ended it between two tries.
  type: bool
  returned: when the work was begun
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.besom.units import parse_duration, printable
from ..module_utils.besom.unmount import GONE, UnmountReport, UnmountRequest, unmount
from ..module_utils.besom_module import one_sentence, run_of


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            paths=dict(type="list", elements="path", required=True, aliases=["path"]),
            timeout=dict(type="str", default="30s"),
            lazy=dict(type="bool", default=False),
            recursive=dict(type="bool", default=False),
        ),
        supports_check_mode=True,
    )
    params = module.params
    with one_sentence(module):
        request = UnmountRequest(
            tuple(params["paths"]),
            parse_duration(params["timeout"], "timeout", zero=True),
            lazy=params["lazy"],
            recursive=params["recursive"],
        )
        # A mount that this process stands in is busy.
        os.chdir("/")
        finish(module, unmount(request, run_of(module)))


def finish(module: AnsibleModule, report: UnmountReport) -> None:
    """End the module with the report of an unmount, failed if anything that should have gone stays."""
    result = report.to_dict()
    if module._diff:
        gone = [one for one in report.mounts if one.state in GONE]
        lines = [f"{printable(one.path)} ({one.fstype})\n" for one in gone]
        result["diff"] = {"before": "".join(lines), "after": ""}
    for warning in result.pop("warnings"):
        module.warn(warning)
    if report.messages:
        module.fail_json(msg=" ".join(report.messages), **result)
    module.exit_json(msg=summary(report), **result)


def summary(report: UnmountReport) -> str:
    done = [one for one in report.mounts if one.state in GONE]
    if not done:
        return "Nothing is mounted there."
    lazily = [f"{printable(one.path)}: {one.message}" for one in done if one.state == "detached"]
    count = f"{len(done)} {'mount' if len(done) == 1 else 'mounts'}"
    text = f"Would unmount {count}." if report.dry_run else f"Unmounted {count}."
    return " ".join([f"{text[:-1]}, {len(lazily)} of them lazily.", *lazily] if lazily else [text])


if __name__ == "__main__":
    main()
