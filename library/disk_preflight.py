#!/usr/bin/python

# Copyright (c) 2026, the besom founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: disk_preflight
short_description: Fail early when a file system has not enough room
description:
  - Compares what is about to be written with what each file system has, in bytes and in inodes.
  - Needs are summed per file system, so two paths on one file system add up.
  - Never changes anything.
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
seealso:
  - module: besom.storage.housekeep
"""

EXAMPLES = r"""
- name: Make sure that a release fits before anything is downloaded
  disk_preflight:
    urls:
      - url: https://downloads.example.com/app-2.1.tar.gz
        path: /opt/app
    needs:
      - path: /var/lib/app
        size: 2GiB
        inodes: 50000
    reserve: 5%
"""

RETURN = r"""
msg:
  description: The outcome in a sentence, or what is wrong and what to do.
  type: str
  returned: always
sufficient:
  description: Whether there is room for all of it.
  type: bool
  returned: always, unless an option is wrong
file_systems:
  description: The figures of each file system concerned.
  type: list
  elements: dict
  returned: always, unless an option is wrong
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

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.besom.errors import UsageError
from ..module_utils.besom_module import GATE, Gate, one_sentence, run_of


def main() -> None:
    module = AnsibleModule(argument_spec=GATE, supports_check_mode=True)
    with one_sentence(module):
        gate = Gate(module, run_of(module))
        if not gate.needs:
            raise UsageError("Nothing is needed; give needs, urls or both.")
        verdict = gate()
        figures = verdict.to_dict()
        result = {key: figures[key] for key in ("changed", "sufficient", "file_systems")}
        for warning in verdict.warnings:
            module.warn(warning)
        if not verdict.sufficient:
            module.fail_json(msg=verdict.message, **result)
        known = "" if not verdict.warnings else " for what could be sized"
        module.exit_json(msg=f"There is enough space{known}.", **result)


if __name__ == "__main__":
    main()
