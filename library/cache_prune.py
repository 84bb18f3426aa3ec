#!/usr/bin/python

# Copyright (c) 2026, the besom founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cache_prune
short_description: Bring a cache under its limits, oldest first
description:
  - Removes the oldest (or least recently used) entries until the store is under every limit, and not one more.
  - Holds the writer lock of the store, flock on the directory itself, so no two runs ever prune it at once.
  - Entries in use, mounts, and what changed since it was planned are kept and listed.
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
  path:
    description:
      - The store. It has to exist; a symlink is refused, and so are system directories and homes.
    type: path
    required: true
  layout:
    description:
      - What one entry is.
      - V(files) is every regular file and symlink, however deep; V(trees) every directory directly in O(path), whole.
      - V(sessions) is every C(<id>.json) with a C(created_at) (ISO 8601 or seconds since the epoch) and every file or directory
        C(<id>) and C(<id>.*) beside it. What has no sound metadata is reported and never removed.
    type: str
    choices: [files, trees, sessions]
    required: true
  state:
    description:
      - V(pruned) brings the store under its limits, of which at least one is needed.
      - V(emptied) removes every entry that is not in use (or younger than O(min_age)).
    type: str
    choices: [pruned, emptied]
    default: pruned
  max_size:
    description:
      - The usage at which pruning starts, such as C(10GiB). K, KB and KiB all mean 1024 bytes.
      - Usage is what the entries allocate on disk, each inode once.
    type: str
  target_size:
    description: The usage at which pruning stops; O(max_size) when not given.
    type: str
  max_age:
    description: Older entries go, such as C(30d).
    type: str
  min_free:
    description: What the file system is to have available, in bytes or as a percentage such as C(10%).
    type: str
  max_entries:
    description: The number of entries that may stay.
    type: int
  min_age:
    description: Younger entries are never removed, whatever the other limits say.
    type: str
  order:
    description:
      - Which entries go first.
      - V(oldest) goes by mtime, V(lru) by the later of atime and mtime. The age of a tree is that of the newest time in it.
      - V(created) goes by the C(created_at) of sessions, which is the default for them; for the others it is V(oldest).
    type: str
    choices: [oldest, lru, created]
  group_key:
    description: The key of a session's metadata that names its group; C(group) when not given. For O(layout=sessions) only.
    type: str
  lock_backend:
    description:
      - V(redis) also takes a lock in the Redis at O(redis_url), beside the local one, for a store that several machines share.
      - Its name is the path of the store, with symlinks resolved, which has to be the same on all of them.
    type: str
    choices: [flock, redis]
    default: flock
  redis_url:
    description:
      - The Redis of stores with O(lock_backend=redis), such as C(redis://:password@host:6379/0).
      - The target then needs the Python packages C(redis) and C(portalocker), 4.2 or newer.
    type: str
  lock_timeout:
    description:
      - How long to wait for another writer of the same store, such as C(30s) or C(5m). V(0) does not wait.
      - When the time is over the task fails and names the holder.
    type: str
    default: 30s
  removal:
    description:
      - How hard removals may press the host.
      - Nothing of it changes what goes, only how fast.
    type: dict
    suboptions:
      workers:
        description:
          - At most so many entries are removed, or of a large store read, at a time; V(auto) is as many as pay, and the default.
          - Where each removal waits for the disk they wait side by side; two are at work where more get on no faster.
        type: str
      max_rate:
        description: At most so many entries go in a second; there is no limit when not given.
        type: int
      io_class:
        description:
          - Lets the I/O of the removal wait behind that of others, as C(ionice) does. V(idle) waits for everybody.
          - Only the schedulers bfq and mq-deadline heed it. Where the kernel refuses nothing changes.
        type: str
        choices: [best-effort, idle]
seealso:
  - module: besom.storage.stale_temp_sweep
  - module: besom.storage.housekeep
  - module: besom.storage.cache_info
"""

EXAMPLES = r"""
- name: Keep a download cache under 10 GiB
  cache_prune:
    path: /var/cache/app/gems
    layout: files
    max_size: 10GiB
    target_size: 8GiB
    order: lru

- name: Keep a month of build environments
  cache_prune:
    path: /var/cache/app/envs
    layout: trees
    max_age: 30d

- name: Empty a cache
  cache_prune:
    path: /var/cache/app/scratch
    layout: files
    state: emptied
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
  description: The directory.
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
      description: Whether it is a C(file), a C(tree) or a C(session).
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
  description: Usage before, in bytes; null where RV(measured=statvfs) or RV(measured=part).
  type: int
  returned: when the work was begun
bytes_after:
  description: Usage after, in bytes; in check mode what it would be. Null where RV(measured=statvfs) or RV(measured=part).
  type: int
  returned: when the work was begun
measured:
  description:
    - How this is known. V(walk) is that everything was read.
    - V(part) is what was read before a signal ended it.
    - V(statvfs) is that C(min_free) is the only limit and so much is free, so that nothing was looked at.
      Then usage is null, and what would be kept is not listed.
    - V(index) is that only what has changed was read, which is for the daemon of besom and no module.
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
"""

from functools import partial

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.besom.drain_flag import refuse_new_work
from ..module_utils.besom.housekeep import perform
from ..module_utils.besom.policy import read_store
from ..module_utils.besom.prune import Request, prune
from ..module_utils.besom_module import (
    LOCK_TIMEOUT,
    POLICY,
    REDIS_URL,
    REMOVAL,
    STORE,
    finish,
    one_sentence,
    policy_values,
    run_of,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            path=STORE["path"],
            layout=STORE["layout"],
            group_key=STORE["group_key"],
            lock_backend=STORE["lock_backend"],
            redis_url=REDIS_URL,
            state=dict(type="str", choices=["pruned", "emptied"], default="pruned"),
            lock_timeout=LOCK_TIMEOUT,
            removal=REMOVAL,
            **POLICY,
        ),
        supports_check_mode=True,
    )
    params = module.params
    empty = params["state"] == "emptied"
    with one_sentence(module):
        own = {key: params[key] for key in ("path", "layout", "group_key", "lock_backend")}
        values = {**own, **policy_values(params)}
        store = read_store(values, limits_required=not empty)
        run = run_of(module)
        run.admit = partial(refuse_new_work, "this task")
        run.admit()
        work = partial(prune, Request(store, empty=empty), run)
        outcome = perform([(store.path, work)], run, skip_missing=False)
        finish(module, outcome, outcome.reports[0].to_dict() if outcome.reports else {"warnings": []})


if __name__ == "__main__":
    main()
