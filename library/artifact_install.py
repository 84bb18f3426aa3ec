#!/usr/bin/python

# Copyright (c) 2026, the besom founders
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: artifact_install
short_description: Make a directory of an archive from the web, in one step
description:
  - Fetches an archive, verifies and extracts it beside its place, and puts it there in one step.
    Whoever reads finds the old tree or the new one, whole, and so does the next run after a crash.
  - Reads tar (plain, gz, bz2, xz, and zst where Python or the package C(zstandard) can) and zip, told by their content.
  - Refuses hostile archives whole. These have absolute names, C(..), links that lead out, devices, set-id programs,
    or more than O(max_size) and O(max_entries) allow.
author:
  - The besom founders (@besom)
version_added: 0.1.0
attributes:
  check_mode:
    support: full
    description:
      - Predicts what a run does, and asks no more of the server than its headers.
      - Without O(checksum), and where the server gives neither ETag nor Last-Modified, it predicts an upgrade.
  diff_mode:
    support: full
    description: Shows what the tree came from and will come from, the link, and the old versions.
options:
  into:
    description:
      - The directory that it comes into. It has to exist; a symlink is refused, and so are system directories such as /opt itself.
    type: path
    required: true
  name:
    description: Its name there.
    type: str
    required: true
  state:
    description:
      - V(present) has the archive there.
      - V(absent) removes it, its old versions, and O(current) if that leads to it.
    type: str
    choices: [present, absent]
    default: present
  url:
    description: An http or https URL. Needed for O(state=present).
    type: str
  checksum:
    description:
      - Of the archive, such as C(sha256:) and its digits.
      - A tree that came from such an archive is left alone without a request. Without a checksum the server is asked
        whether the archive has changed.
    type: str
  allow_weak_checksum:
    description: Whether to accept md5 and sha1, which can be forged.
    type: bool
    default: false
  store:
    description:
      - A directory in which the archive is kept, and found again by its O(checksum), which it needs then.
      - What is there and has that checksum is installed without a request; ten installs of one archive fetch it once.
      - Its writer lock is held while the archive is published there. Bound it with M(besom.storage.cache_prune).
    type: path
  owner:
    description:
      - Who is to have the tree and all that is in it, a name or a number.
      - A tree whose directory has another owner, group or mode than asked for is installed anew.
    type: str
  group:
    description: The group that is to have the tree and all that is in it, a name or a number.
    type: str
  mode:
    description: The mode of the directory itself, in quotes and octal. What is in it has the modes of the archive.
    type: raw
  keep:
    description: How many old versions stay, as C(.besom-old-NAME-TIME) in O(into).
    type: int
    default: 0
  current:
    description: A symlink in O(into) that is to lead to O(name), switched in one step.
    type: str
  strip:
    description: Whether to leave out the one directory that the archive consists of.
    type: bool
    default: false
  replace:
    description: Whether to replace, or remove, also what besom has not installed.
    type: bool
    default: false
  max_size:
    description: What the archive may unpack to, such as C(2GiB).
    type: str
    default: 20GiB
  max_entries:
    description: How many files, directories and links it may hold.
    type: int
    default: 500000
  allow_setid:
    description: Whether its files may have the set-user-id and set-group-id bits.
    type: bool
    default: false
  expand:
    description: The room that has to be there before anything is fetched, as so many times the download besides it.
    type: float
    default: 3.0
  reserve:
    description: What is to stay free besides, in bytes or as a percentage.
    type: str
  headers:
    description: HTTP headers for the server of O(url), and for no other that it redirects to.
    type: dict
  url_username:
    description: User name for the server of O(url).
    type: str
  url_password:
    description: Password for the server of O(url).
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
    description: Seconds to wait for a server that is silent.
    type: int
    default: 10
  lock_backend:
    description:
      - V(redis) also takes a lock in the Redis at O(redis_url), beside the local one, for a directory that several machines share,
        and likewise for O(store).
      - Its name is the path of the directory, with symlinks resolved, which has to be the same on all of them.
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
      - How long to wait for another writer of O(into), such as C(30s) or C(5m). V(0) does not wait.
      - When the time is over the task fails and names the holder.
    type: str
    default: 30s
seealso:
  - module: besom.storage.disk_preflight
  - module: besom.storage.cache_prune
"""

EXAMPLES = r"""
- name: Install a release
  artifact_install:
    url: https://downloads.example.com/app-2.1.tar.gz
    checksum: "{{ app_checksum }}"
    into: /opt/app
    name: app
    strip: true
    keep: 2

- name: Install what was fetched before, or fetch it for others too
  artifact_install:
    url: https://downloads.example.com/app-2.1.tar.gz
    checksum: "{{ app_checksum }}"
    store: /var/cache/app/archives
    into: /opt/app
    name: app
    owner: app
    group: app
    mode: "0750"

- name: Install a release beside the others, and switch to it
  artifact_install:
    url: https://downloads.example.com/app-2.1.tar.gz
    checksum: "{{ app_checksum }}"
    into: /opt/app
    name: app-2.1
    strip: true
    current: live

- name: Remove one
  artifact_install:
    into: /opt/app
    name: app-1.9
    state: absent
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
tree:
  description: Where it is.
  type: str
  returned: when the work was begun
action:
  description: What became of the tree, C(installed), C(upgraded), C(removed), or nothing.
  type: str
  returned: when the work was begun
url:
  description: What the tree came from, without login and query.
  type: str
  returned: when the work was begun
checksum:
  description: The checksum of that archive.
  type: str
  returned: when the work was begun
installed:
  description: When it was installed, in UTC.
  type: str
  returned: when the work was begun
files:
  description: What the archive held; nothing is known of it in check mode.
  type: dict
  returned: when the work was begun
  contains:
    entries:
      description: Files, directories and links.
      type: int
    bytes:
      description: Bytes of the files.
      type: int
switched:
  description: Whether the link was made, changed or removed.
  type: bool
  returned: when the work was begun
old_versions:
  description: The old versions that are there now, oldest first.
  type: list
  elements: str
  returned: when the work was begun
fetched_bytes:
  description: Bytes that came from the server.
  type: int
  returned: when the work was begun
retries:
  description: Requests that had to be repeated.
  type: int
  returned: when the work was begun
retry_wait_s:
  description: Seconds waited before those.
  type: float
  returned: when the work was begun
renames:
  description: Renames that the file system refused for a while.
  type: dict
  returned: when the work was begun
  contains:
    tries:
      description: Tries beyond the first.
      type: int
    elapsed_s:
      description: Seconds that took.
      type: float
    longest_wait_s:
      description: The longest of them for one rename.
      type: float
dry_run:
  description: Whether this only says what would be done.
  type: bool
  returned: when the work was begun
planned:
  description: What the plan removes, old versions or the tree that is to be absent.
  type: dict
  returned: when the work was begun
  contains:
    entries:
      description: Trees.
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
      description: Trees.
      type: int
    bytes:
      description: Bytes that the file system got back.
      type: int
freed_bytes:
  description: Bytes that the file system got back.
  type: int
  returned: when the work was begun
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
      description: Always C(tree).
      type: str
    bytes:
      description: Bytes that the file system gets back for it.
      type: int
victims_total:
  description: How many there are, listed or not.
  type: int
  returned: when the work was begun
kept:
  description: What was kept and why, at most 100 (in use, a mount).
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

from ansible.module_utils.basic import AnsibleModule

from ..module_utils.besom.artifacts import read_access
from ..module_utils.besom.drain_flag import refuse_new_work
from ..module_utils.besom.extract import Limits
from ..module_utils.besom.housekeep import perform
from ..module_utils.besom.install import InstallReport, InstallRequest, install
from ..module_utils.besom.transfer import read_checksum, read_headers, read_source
from ..module_utils.besom.units import Share, parse_count, parse_factor, parse_size
from ..module_utils.besom_module import (
    LOCK_TIMEOUT,
    REDIS_URL,
    STORE,
    one_sentence,
    run_of,
)
from ..module_utils.besom_transfer import FETCH, transfer_opener


def request_of(params: dict) -> InstallRequest:
    source = None
    if params["state"] == "present":
        checksum = params["checksum"]
        source = read_source(
            params["url"],
            checksum=checksum and read_checksum(checksum, allow_weak=params["allow_weak_checksum"]),
            headers=read_headers(params["headers"]),
            username=params["url_username"] or "",
            password=params["url_password"] or "",
            login_first=params["force_basic_auth"],
        )
    keep = params["keep"]
    mode, uid, gid = read_access(params)
    return InstallRequest(
        params["into"],
        params["name"],
        source,
        keep=parse_count(keep, "keep") if keep else 0,
        current=params["current"] or "",
        strip=params["strip"],
        replace=params["replace"],
        limits=Limits(
            parse_count(params["max_entries"], "max_entries"),
            parse_size(params["max_size"], "max_size"),
            setid=params["allow_setid"],
        ),
        expand=parse_factor(params["expand"], "expand"),
        reserve=Share(params["reserve"], "reserve") if params["reserve"] is not None else None,
        store=params["store"] or "",
        mode=mode,
        uid=uid,
        gid=gid,
        lock_backend=params["lock_backend"],
        store_backend=params["lock_backend"],
    )


def main() -> None:
    module = AnsibleModule(
        argument_spec=dict(
            into=dict(type="path", required=True),
            name=dict(type="str", required=True),
            state=dict(type="str", choices=["present", "absent"], default="present"),
            url=dict(type="str"),
            checksum=dict(type="str"),
            allow_weak_checksum=dict(type="bool", default=False),
            store=dict(type="path"),
            owner=dict(type="str"),
            group=dict(type="str"),
            mode=dict(type="raw"),
            keep=dict(type="int", default=0),
            current=dict(type="str"),
            strip=dict(type="bool", default=False),
            replace=dict(type="bool", default=False),
            max_size=dict(type="str", default="20GiB"),
            max_entries=dict(type="int", default=500000),
            allow_setid=dict(type="bool", default=False),
            expand=dict(type="float", default=3.0),
            reserve=dict(type="str"),
            lock_backend=STORE["lock_backend"],
            redis_url=REDIS_URL,
            lock_timeout=LOCK_TIMEOUT,
            **FETCH,
        ),
        required_if=[("state", "present", ["url"])],
        supports_check_mode=True,
    )
    with one_sentence(module):
        refuse_new_work("this task")
        request, run = request_of(module.params), run_of(module)
        work = partial(install, request, run, transfer_opener(module.params))
        outcome = perform([(request.into, work)], run, skip_missing=False)
        report = next((one for one in outcome.reports if isinstance(one, InstallReport)), None)
        result = report.to_dict() if report else {"changed": False}
        for warning in result.pop("warnings", []):
            module.warn(warning)
        if module._diff and report:
            result["diff"] = [report.diff] if report.changed else []
        if outcome.messages:
            module.fail_json(msg=" ".join(outcome.messages), **result)
        module.exit_json(msg=report.summary, **result)


if __name__ == "__main__":
    main()
