#!/usr/bin/python

# Copyright (c) 2026, the besom founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: cache_info
short_description: Show the usage of stores and temp areas
description:
  - Measures stores and temp areas, shows the file systems that they are on and who holds the writer lock.
  - Never changes anything, not even an access time.
author:
  - The besom founders (@besom)
version_added: 0.1.0
attributes:
  check_mode:
    support: full
    description: Does the same, since it never changes anything.
  diff_mode:
    support: none
    description: Nothing changes.
options:
  stores:
    description: Stores to measure.
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
          - V(redis) also takes a lock in a Redis, beside the local one, for a store that several machines share.
          - Its name is the path of the store, with symlinks resolved, which has to be the same on all of them.
        type: str
        choices: [flock, redis]
        default: flock
      before_prune:
        description:
          - A command for C(/bin/sh), which this module does not run.
        type: str
      after_prune:
        description:
          - A command for C(/bin/sh), which this module does not run.
        type: str
      hook_timeout:
        description: How long each of the two may take; see M(besom.storage.housekeep).
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
    description: Temp areas to look at.
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
seealso:
  - module: besom.storage.cache_prune
  - module: besom.storage.housekeep
"""

EXAMPLES = r"""
- name: See how full the caches are
  cache_info:
    stores:
      - path: /var/cache/app/gems
        layout: files
    temps:
      - path: /var/lib/app/rubies
  register: caches
"""

RETURN = r"""
stores:
  description: One for each store that exists.
  type: list
  elements: dict
  returned: success
  contains:
    store:
      description: The directory.
      type: str
    bytes:
      description: Usage.
      type: int
    kept:
      description: What besom would keep and why, at most 100.
      type: list
      elements: dict
    kept_total:
      description: How many those are.
      type: int
    anomalies:
      description: What somebody should look at, at most 100.
      type: list
      elements: dict
    anomalies_total:
      description: How many those are.
      type: int
    file_system:
      description: Mount point, type, and bytes and inodes in all and available.
      type: dict
    name:
      description: The name given.
      type: str
    layout:
      description: What one entry is.
      type: str
    entries:
      description: How many entries there are.
      type: int
    oldest:
      description: Time of the oldest entry, in seconds since the epoch; null when there is none.
      type: float
    newest:
      description: Time of the newest entry, in seconds since the epoch; null when there is none.
      type: float
    limits:
      description: The limits given, in bytes and seconds.
      type: dict
    holder:
      description: Process that holds the writer lock (pid, command, since); null when it is free or cannot be seen.
      type: dict
temps:
  description: One for each temp area that exists.
  type: list
  elements: dict
  returned: success
  contains:
    temps:
      description: The directory.
      type: str
    bytes:
      description: Usage.
      type: int
    kept:
      description: What besom would keep and why, at most 100.
      type: list
      elements: dict
    kept_total:
      description: How many those are.
      type: int
    anomalies:
      description: What somebody should look at, at most 100.
      type: list
      elements: dict
    anomalies_total:
      description: How many those are.
      type: int
    file_system:
      description: Mount point, type, and bytes and inodes in all and available.
      type: dict
    pattern:
      description: The globs.
      type: list
      elements: str
    older_than:
      description: Age from which a temp is stale, in seconds.
      type: float
    stale:
      description: Entries and bytes that a sweep would remove.
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.besom.info import inspect
from ..module_utils.besom.policy import read_store, read_temps
from ..module_utils.besom_module import STORE, TEMPS, one_sentence, run_of


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            stores=dict(type="list", elements="dict", default=[], options=STORE),
            temps=dict(type="list", elements="dict", default=[], options=TEMPS),
        ),
        supports_check_mode=True,
    )
    with one_sentence(module):
        stores = [read_store(values, "stores: ", limits_required=False) for values in module.params["stores"]]
        temps = [read_temps(values, "temps: ") for values in module.params["temps"]]
        found = inspect(stores, temps, run_of(module))
        for warning in found.pop("warnings"):
            module.warn(warning)
        module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
