# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is to be fetched into a store, as users write it: url, dest, checksum, headers, owner, group, mode."""

from __future__ import annotations

import grp
import os
import pwd
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable

from .archive import LONGEST_NAME
from .errors import UsageError
from .own_names import ORPHAN
from .policy import read_mapping
from .transfer import Source, read_checksum, read_headers, read_source
from .units import is_name, shown

KEYS = ("url", "dest", "checksum", "headers", "owner", "group", "mode")


@dataclass(frozen=True)
class Artifact:
    """A file of a store and where it comes from; mode, uid and gid are None where they are left alone."""

    dest: str
    source: Source
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None

    @property
    def directory(self) -> str:
        """Where it lies, relative to the store; empty: directly in it."""
        return os.path.dirname(self.dest)

    @property
    def name(self) -> str:
        return os.path.basename(self.dest)


@dataclass(frozen=True)
class Common:
    """What holds for all artifacts of a request: headers and a login beside their own."""

    headers: Mapping[str, str] | None = None
    username: str = ""
    password: str = ""
    login_first: bool = False
    allow_weak: bool = False


def read_artifacts(values: Any, common: Common | None = None, where: str = "artifacts: ") -> list[Artifact]:
    """Artifacts from a list of mappings. Raises UsageError, also for two with one dest."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise UsageError(f"{where}must be a list of mappings with the keys {', '.join(KEYS)}.")
    common = common or Common()
    found: dict[str, Artifact] = {}
    for value in values:
        artifact = _read(value, common, where)
        if artifact.dest in found:
            raise UsageError(f"{where}dest: {shown(artifact.dest)} is named twice; remove one of them.")
        found[artifact.dest] = artifact
    for dest in found:
        parent = os.path.dirname(dest)
        while parent:
            if parent in found:
                raise UsageError(f"{where}dest: {shown(parent)} cannot be a file and a directory.")
            parent = os.path.dirname(parent)
    return list(found.values())


def _read(value: Any, common: Common, where: str) -> Artifact:
    value = read_mapping(value, where, KEYS)
    dest = read_dest(value.get("dest"), where + "dest")
    where = f"{where}{shown(dest)}: "
    checksum = value.get("checksum")
    headers = {**(common.headers or {}), **read_headers(value.get("headers"), where + "headers")}
    return Artifact(
        dest,
        read_source(
            value.get("url"),
            where,
            None if checksum is None else read_checksum(checksum, where + "checksum", common.allow_weak),
            headers,
            common.username,
            common.password,
            common.login_first,
        ),
        *read_access(value, where),
    )


def read_dest(value: Any, name: str = "dest") -> str:
    """A path relative to the store, without `.` and doubled slashes. Raises UsageError for any other."""
    text = value if isinstance(value, str) else ""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    said = shown(value)
    if not parts or not is_name(text) or text.endswith("/") or len(os.fsencode(text)) > LONGEST_NAME:
        raise UsageError(f"{name}: '{said}' is no path of a file; write one relative to the store.")
    if text.startswith("/") or ".." in parts:
        raise UsageError(
            f"{name}: '{said}' may lead out of the store; write a path relative to it, without `..`."
        )
    if any(ORPHAN.fullmatch(part) or part.startswith((".besom-", ".temp-")) for part in parts):
        raise UsageError(f"{name}: '{said}' is named as besom names its own temps; choose another name.")
    return "/".join(parts)


def read_access(values: Mapping[str, Any], where: str = "") -> tuple[int | None, int | None, int | None]:
    """Mode, uid and gid from the keys mode, owner and group of values; None for what is not given.

    Raises UsageError.
    """
    return (
        _read_mode(values.get("mode"), where + "mode"),
        _read_id(values.get("owner"), where + "owner", lambda name: pwd.getpwnam(name).pw_uid),
        _read_id(values.get("group"), where + "group", lambda name: grp.getgrnam(name).gr_gid),
    )


def _read_mode(value: Any, name: str) -> int | None:
    """Permissions as a text of octal digits: of a number nobody knows whether it was 0644 or 644 in YAML."""
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"[0-7]{3,5}", value) and int(value, 8) <= 0o7777:
        return int(value, 8)
    raise UsageError(f"{name}: '{shown(value)}' is no mode; write it in quotes and octal, as in \"0644\".")


def _read_id(value: Any, name: str, look_up: Callable[[str], int]) -> int | None:
    if value is None:
        return None
    text = value if isinstance(value, str) else shown(value)
    try:
        return look_up(text)
    except (KeyError, ValueError):
        if re.fullmatch(r"[0-9]{1,9}", text):
            return int(text)
    raise UsageError(f"{name}: this host knows nobody named '{shown(text)}'.") from None
