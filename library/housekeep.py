#!/usr/bin/python

# Copyright (c) 2026, the besom founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: housekeep
short_description: Gate, sweep and prune a whole host in one task
description:
  - Sweeps every temp area, then brings every store under its policy, then judges whether what is needed fits.
  - Does the work of the modules for each of these for the price of one task.
  - Where space is short at first, housekeeping goes on, since that may make room; the task fails if it is still short at the end.
  - A store that is locked or fails does not keep the next one from its turn; the task then fails and names each reason.
  - A path that does not exist yet is skipped with a warning.
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
  stores:
    description: Stores to bring under their policy.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: What to call the store.
        type: str
      path:
        description: The directory.
        type: path
        required: true
      layout:
        description:
          - What one entry is.
          - V(files) is every regular file and symlink, however deep; V(trees) every directory directly in O(stores[].path), whole.
          - V(sessions) is every C(<id>.json) with a C(created_at) (ISO 8601 or seconds since the epoch) and every file or directory
            C(<id>) and C(<id>.*) beside it. What has no sound metadata is reported and never removed.
        type: str
        choices: [files, trees, sessions]
        required: true
      group_key:
        description: The key of a session's metadata that names its group; C(group) when not given. For O(stores[].layout=sessions) only.
        type: str
      lock_backend:
        description:
          - V(redis) also takes a lock in the Redis at O(redis_url), beside the local one, for a store that several machines share.
          - Its name is the path of the store, with symlinks resolved, which has to be the same on all of them.
        type: str
        choices: [flock, redis]
        default: flock
      before_prune:
        description:
          - A command for C(/bin/sh), run under the writer lock when something is about to go. The store is left alone when it fails.
          - The variable C(BESOM_STORE) holds the store's path.
        type: str
      after_prune:
        description:
          - A command for C(/bin/sh), run under the writer lock afterwards, whatever came of it, an interruption included.
          - It is told C(BESOM_STORE), C(BESOM_OUTCOME) (done, failed or interrupted), C(BESOM_REMOVED_ENTRIES) and C(BESOM_FREED_BYTES).
        type: str
      hook_timeout:
        description: How long each of the two may take; then it and all that it started are ended.
        type: str
        default: 60s
      max_size:
        description:
          - The usage at which pruning starts, such as C(10GiB). K, KB and KiB all mean 1024 bytes.
          - Usage is what the entries allocate on disk, each inode once.
        type: str
      target_size:
        description: The usage at which pruning stops; O(stores[].max_size) when not given.
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
  temps:
    description: Temp areas to sweep.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The directory whose direct children are looked at.
        type: path
        required: true
      pattern:
        description: Globs of names; a temp matches at least one of them. A glob with a slash is refused.
        type: list
        elements: str
        default: [.temp-*]
      older_than:
        description: Only temps in which nothing was written for so long are stale, such as C(24h) or C(7d).
        type: str
        default: 24h
  needs:
    description: What will be written, summed per file system.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Where it will be written. A path that does not exist yet is judged by its first existing parent.
        type: path
        required: true
      size:
        description: Bytes needed, such as C(600MiB).
        type: str
      inodes:
        description: Inodes needed. They are not checked where the file system reports none.
        type: int
  urls:
    description: Artifacts that will be downloaded; sized by their Content-Length (HEAD, then a ranged GET).
    type: list
    elements: dict
    default: []
    suboptions:
      url:
        description: An http or https URL.
        type: str
        required: true
      path:
        description: Where it will be written.
        type: path
        required: true
      extract:
        description: Whether it will be extracted as well, which needs O(expand) times its size in addition.
        type: bool
        default: true
  reserve:
    description: What is to stay free beside the needs on each file system concerned, in bytes or as a percentage.
    type: str
  expand:
    description: How many times its download an extracted artifact needs in addition.
    type: float
    default: 3.0
  on_unknown:
    description: What to do about an artifact whose size the server does not tell, V(warn) and leave it out, or V(fail).
    type: str
    choices: [warn, fail]
    default: warn
  headers:
    description: HTTP headers for O(urls).
    type: dict
  url_username:
    description: User name for O(urls).
    type: str
  url_password:
    description: Password for O(urls).
    type: str
  force_basic_auth:
    description: Send the credentials with the first request.
    type: bool
    default: false
  validate_certs:
    description: Whether to verify TLS certificates.
    type: bool
    default: true
  use_proxy:
    description: Whether to use the proxies of the target's environment.
    type: bool
    default: true
  timeout:
    description: Seconds to wait for a server.
    type: int
    default: 10
  redis_url:
    description:
      - The Redis of stores with O(stores[].lock_backend=redis), such as C(redis://:password@host:6379/0).
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
  - module: besom.storage.disk_preflight
  - module: besom.storage.stale_temp_sweep
  - module: besom.storage.cache_prune
  - module: besom.storage.cache_info
"""

EXAMPLES = r"""
- name: Keep a build host's disk in order
  housekeep:
    temps:
      - path: /var/lib/app/rubies
        older_than: 24h
    stores:
      - name: gems
        path: /var/cache/app/gems
        layout: files
        max_size: 10GiB
      - name: envs
        path: /var/cache/app/envs
        layout: trees
        max_age: 30d
    needs:
      - path: /var/lib/app
        size: 2GiB
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
reports:
  description: The same figures for each temp area and store.
  type: list
  elements: dict
  returned: when the work was begun
sufficient:
  description: Whether there is room for all of it.
  type: bool
  returned: when something is needed
file_systems:
  description: The figures of each file system concerned.
  type: list
  elements: dict
  returned: when something is needed
  contains:
    path:
      description: The first path that was asked about.
      type: str
    mount:
      description: Where the file system is mounted.
      type: str
    device:
      description: Major and minor number.
      type: str
    total_bytes:
      description: Its size.
      type: int
    available_bytes:
      description: What is available to users who are not root.
      type: int
    required_bytes:
      description: The sum of the needs.
      type: int
    reserve_bytes:
      description: What is to stay free.
      type: int
    short_bytes:
      description: How much more is needed.
      type: int
    inodes_available:
      description: Inodes available; null where the file system has no limit.
      type: int
    inodes_required:
      description: Inodes needed.
      type: int
    inodes_short:
      description: How many more inodes are needed.
      type: int
    sufficient:
      description: Whether it has room.
      type: bool
"""

from functools import partial

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.besom.drain_flag import refuse_new_work
from ..module_utils.besom.housekeep import housekeep
from ..module_utils.besom.policy import read_store, read_temps
from ..module_utils.besom_module import (
    GATE,
    LOCK_TIMEOUT,
    REDIS_URL,
    REMOVAL,
    STORE,
    TEMPS,
    Gate,
    finish,
    one_sentence,
    run_of,
)


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            stores=dict(type="list", elements="dict", default=[], options=STORE),
            temps=dict(type="list", elements="dict", default=[], options=TEMPS),
            lock_timeout=LOCK_TIMEOUT,
            removal=REMOVAL,
            redis_url=REDIS_URL,
            **GATE,
        ),
        supports_check_mode=True,
    )
    params = module.params
    with one_sentence(module):
        run = run_of(module)
        run.admit = partial(refuse_new_work, "this task")
        run.admit()
        gate = Gate(module, run)
        stores = [read_store(values, "stores: ") for values in params["stores"]]
        temps = [read_temps(values, "temps: ") for values in params["temps"]]
        outcome = housekeep(stores, temps, run, gate if gate.needs else None)
        finish(module, outcome, outcome.to_dict("housekeep"))


if __name__ == "__main__":
    main()
