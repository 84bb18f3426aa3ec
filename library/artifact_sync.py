#!/usr/bin/python

# Copyright (c) 2026, the besom founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact_sync
short_description: Fetch files into a store, in parallel, verified, and published whole
description:
  - Fetches what is missing or has changed, several files at a time, in one task.
  - A file with a checksum that is there and verified is left alone without asking any server.
  - One without is asked for with its ETag or date, which costs one short answer.
  - What is fetched goes to a locked temp beside its place, is verified, brought to the disk and renamed.
  - So a reader sees the old file or the new one, whole, through crashes and power cuts.
  - A broken connection is taken up where it broke, where the server allows it. Two refreshes of one file at once fetch it once.
  - The writer lock of the store is held for publication only, never while a mirror is slow.
  - A file's mtime is the time it was fetched, so that a store pruned by age keeps what is new in it.
author:
  - The besom founders (@besom)
version_added: 0.1.0
attributes:
  check_mode:
    support: full
    description: Looks at what is there and asks the servers, and says what a run would fetch.
  diff_mode:
    support: full
    description: Shows what is fetched and why.
options:
  path:
    description:
      - The store. It has to exist; a symlink is refused, and so are system directories and homes.
    type: path
    required: true
  artifacts:
    description: What is to be in it.
    type: list
    elements: dict
    required: true
    suboptions:
      url:
        description:
          - An http or https URL. A redirect is followed, but not from https to http.
        type: str
        required: true
      dest:
        description:
          - The file, relative to O(path); missing directories are made.
          - Neither C(..) nor a symlink on the way leads out of the store.
        type: str
        required: true
      checksum:
        description:
          - What the content has to come to, as C(sha256:) and its hex digits. Stronger ones are accepted as well.
        type: str
      headers:
        description: HTTP headers for this URL, beside O(headers). They are told to its own server only.
        type: dict
      owner:
        description: The owner, a name or a number.
        type: str
      group:
        description: The group, a name or a number.
        type: str
      mode:
        description:
          - The permissions, in quotes and octal, such as C("0644"). A number is refused.
          - Without it a file keeps the mode of the one it replaces, and a new one gets what the umask leaves.
          - A file with the right content and another owner, group or mode is replaced by a copy.
        type: raw
  parallel:
    description: Transfers at a time.
    type: int
    default: 4
  retries:
    description:
      - How often a transfer is tried again after 408, 429, 500, 502, 503, 504 or a lost connection, with growing pauses, or those that the server asks for.
    type: int
    default: 4
  drain_timeout:
    description:
      - How long transfers in flight may go on after a signal, or after the connection to the target was lost.
    type: str
    default: 30s
  reserve:
    description: What is to stay free on the file system, in bytes or as a percentage.
    type: str
  full_check:
    description:
      - Read what is there already to verify it.
      - Otherwise a file that has the size, mtime and inode with which it was fetched is trusted, unless others own it or may write to it.
      - Without a checksum the O(artifacts[].owner) asked for is no other in this sense.
      - Without a checksum, and from a server that gives neither ETag nor date, check mode may predict a fetch that turns out to change nothing.
    type: bool
    default: false
  allow_weak_checksum:
    description: Accept checksums that can be forged, such as md5 and sha1.
    type: bool
    default: false
  lock_backend:
    description:
      - V(redis) also takes a lock in the Redis at O(redis_url), beside the local one, for a store that several machines share.
      - Its name is the path of the store, with symlinks resolved, which has to be the same on all of them.
    type: str
    choices: [flock, redis]
    default: flock
  redis_url:
    description:
      - The Redis for O(lock_backend=redis), such as C(redis://:password@host:6379/0).
      - The target then needs the Python packages C(redis) and C(portalocker), 4.2 or newer.
    type: str
  lock_timeout:
    description:
      - How long to wait for another writer of the same store, or another refresh of the same file, such as C(30s). V(0) does not wait.
    type: str
    default: 30s
  headers:
    description: HTTP headers for all O(artifacts), each told to the server of its URL only.
    type: dict
  url_username:
    description: User name for all O(artifacts). One in a URL stands above it.
    type: str
  url_password:
    description: Password for all O(artifacts).
    type: str
  force_basic_auth:
    description: Send the credentials with the first request, instead of when the server asks.
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
  http_agent:
    description: What the client is called.
    type: str
    default: besom
  client_cert:
    description: A PEM file with a client certificate, and the key if O(client_key) is not given.
    type: path
  client_key:
    description: A PEM file with the key of O(client_cert).
    type: path
  ca_path:
    description: A PEM file with the certificates to trust.
    type: path
  timeout:
    description: Seconds that a server may be silent.
    type: int
    default: 10
seealso:
  - module: besom.storage.cache_prune
  - module: besom.storage.disk_preflight
"""

EXAMPLES = r"""
- name: Fetch a release and its index into a cache
  artifact_sync:
    path: /var/cache/app/downloads
    artifacts:
      - url: https://downloads.example.com/app-2.1.tar.gz
        dest: releases/app-2.1.tar.gz
        checksum: sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
      - url: https://downloads.example.com/index.json
        dest: index.json
        mode: "0644"

- name: Fetch many with a token, eight at a time
  artifact_sync:
    path: /var/cache/app/downloads
    artifacts: "{{ downloads }}"
    parallel: 8
    headers:
      Authorization: Bearer {{ token }}
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
  description: What is to be fetched.
  type: dict
  returned: when the work was begun
  contains:
    entries:
      description: Files.
      type: int
    bytes:
      description: Their size, as far as the servers tell it.
      type: int
fetched:
  description: What was fetched, or would be, and why, at most 100.
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The O(artifacts[].dest), one line; bytes that do not print are written C(\\xNN).
      type: str
    reason:
      description: The reason.
      type: str
    bytes:
      description: Its size, 0 where the server does not tell it in advance.
      type: int
fetched_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
adjusted:
  description: Files of which only the owner, group or mode was set, or would be, at most 100.
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The O(artifacts[].dest), one line; bytes that do not print are written C(\\xNN).
      type: str
    reason:
      description: The reason.
      type: str
adjusted_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
unchanged:
  description: What was there, and current, at most 100.
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The O(artifacts[].dest), one line; bytes that do not print are written C(\\xNN).
      type: str
    reason:
      description: The reason.
      type: str
unchanged_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
failures:
  description: What could not be had; the task fails, at most 100.
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The O(artifacts[].dest), one line; bytes that do not print are written C(\\xNN).
      type: str
    reason:
      description: The reason.
      type: str
failures_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
not_done:
  description: What was not done, since a signal came or others held a lock; the task fails, at most 100.
  type: list
  elements: dict
  returned: when the work was begun
  contains:
    path:
      description: The O(artifacts[].dest), one line; bytes that do not print are written C(\\xNN).
      type: str
    reason:
      description: The reason.
      type: str
not_done_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
fetched_bytes:
  description: Bytes that came.
  type: int
  returned: when the work was begun
retries:
  description: What was tried again.
  type: dict
  returned: when the work was begun
  contains:
    requests:
      description: Requests.
      type: int
    waited_s:
      description: Seconds waited before them, summed over all transfers.
      type: float
    renames:
      description: Renames that were refused for a while.
      type: dict
      contains:
        tries:
          description: How often.
          type: int
        elapsed_s:
          description: Seconds they took.
          type: float
        longest_wait_s:
          description: The longest of them.
          type: float
lock_wait_s:
  description: Seconds waited for the writer lock.
  type: float
  returned: when the work was begun
duration_s:
  description: Seconds it took.
  type: float
  returned: when the work was begun
interrupted:
  description: Whether a signal ended it before all was done.
  type: bool
  returned: when the work was begun
"""

from functools import partial
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.besom.artifacts import Common, read_artifacts
from ..module_utils.besom.drain_flag import refuse_new_work
from ..module_utils.besom.housekeep import perform
from ..module_utils.besom.policy import read_path
from ..module_utils.besom.sync import SyncReport, SyncRequest, sync
from ..module_utils.besom.transfer import read_headers
from ..module_utils.besom.units import Share, format_size, parse_count, parse_duration
from ..module_utils.besom_module import (
    LOCK_TIMEOUT,
    REDIS_URL,
    STORE,
    one_sentence,
    run_of,
)
from ..module_utils.besom_transfer import FETCH, transfer_opener

ARTIFACT = dict(
    url=dict(type="str", required=True),
    dest=dict(type="str", required=True),
    checksum=dict(type="str"),
    headers=dict(type="dict"),
    owner=dict(type="str"),
    group=dict(type="str"),
    mode=dict(type="raw"),
)


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            path=dict(type="path", required=True),
            artifacts=dict(type="list", elements="dict", required=True, options=ARTIFACT),
            parallel=dict(type="int", default=4),
            retries=dict(type="int", default=4),
            drain_timeout=dict(type="str", default="30s"),
            reserve=dict(type="str"),
            full_check=dict(type="bool", default=False),
            allow_weak_checksum=dict(type="bool", default=False),
            lock_backend=STORE["lock_backend"],
            redis_url=REDIS_URL,
            lock_timeout=LOCK_TIMEOUT,
            **FETCH,
        ),
        supports_check_mode=True,
    )
    with one_sentence(module):
        refuse_new_work("this task")
        request, run = _request(module.params), run_of(module)
        outcome = perform([(request.path, partial(sync, request, run))], run, skip_missing=False)
        reports = [report for report in outcome.reports if isinstance(report, SyncReport)]
        result: dict[str, Any] = {}
        for report in reports:
            outcome.errors += report.held
            result = report.to_dict()
            for warning in result.pop("warnings"):
                module.warn(warning)
            if module._diff and report.changed:
                result["diff"] = _diff(report)
        if outcome.messages:
            module.fail_json(msg=" ".join(outcome.messages), **result)
        module.exit_json(msg=_summary(reports[0]), **result)


def _request(params: dict[str, Any]) -> SyncRequest:
    common = Common(
        read_headers(params["headers"]),
        params["url_username"] or "",
        params["url_password"] or "",
        params["force_basic_auth"],
        params["allow_weak_checksum"],
    )
    return SyncRequest(
        read_path(params),
        read_artifacts(params["artifacts"], common),
        transfer_opener(params),
        parse_count(params["parallel"], "parallel"),
        max(0, params["retries"]),
        parse_duration(params["drain_timeout"], "drain_timeout", zero=True),
        Share(params["reserve"], "reserve") if params["reserve"] is not None else None,
        params["full_check"],
        params["lock_backend"],
    )


def _summary(report: SyncReport) -> str:
    done = "Would fetch" if report.dry_run else "Fetched"
    size = report.planned.bytes if report.dry_run else report.figures.bytes
    count = report.fetched.total
    return f"{done} {count} {'file' if count == 1 else 'files'}, {format_size(size)}; {report.unchanged.total} unchanged."


def _diff(report: SyncReport) -> dict[str, str]:
    items = sorted(report.fetched.items + report.adjusted.items, key=lambda item: str(item["path"]))
    more = report.fetched.total + report.adjusted.total - len(items)
    lines = [f"{item['path']} ({item['reason']})\n" for item in items]
    header = report.to_dict()["store"]
    after = "".join(lines) + (f"and {more} more\n" if more else "")
    return {"before_header": header, "after_header": header, "before": "", "after": after}


if __name__ == "__main__":
    main()
