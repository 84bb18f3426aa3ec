"""The manifest of besom sync: a store, and the artifacts that are to be in it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from besom.artifacts import Artifact, Common, read_artifacts
from besom.errors import UsageError
from besom.policy import read_mapping
from besom.transfer import read_headers
from besom.units import is_name, printable

KEYS = ("store", "artifacts", "headers", "url_username", "url_password", "force_basic_auth")
# Aliases of YAML can stand for more than any memory holds.
_MOST_ALIASES = 1000


@dataclass(frozen=True)
class Manifest:
    """store: the name of a configured one, or an absolute path."""

    store: str
    artifacts: list[Artifact]


def read_manifest(path: str, allow_weak: bool = False) -> Manifest:
    """The manifest at path, YAML or JSON; a relative store is one beside it. Raises UsageError."""
    where = f"{printable(path)}: "
    values = read_mapping(_parse(path), where, KEYS)
    store = values.get("store")
    if not isinstance(store, str) or not store or not is_name(store):
        raise UsageError(f"{where}store: name a configured store, or a directory (with a slash).")
    if "/" in store:
        store = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(path)), store))
    login = {key: values.get(key) for key in ("url_username", "url_password")}
    for key, value in login.items():
        if value is not None and not isinstance(value, str):
            raise UsageError(f"{where}{key}: is not a text; put it in quotes.")
    if values.get("force_basic_auth") not in (None, True, False):
        raise UsageError(f"{where}force_basic_auth: is true or false.")
    common = Common(
        read_headers(values.get("headers"), where + "headers"),
        login["url_username"] or "",
        login["url_password"] or "",
        bool(values.get("force_basic_auth")),
        allow_weak,
    )
    return Manifest(store, read_artifacts(values.get("artifacts"), common, where + "artifacts: "))


def _parse(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(f"{printable(path)} cannot be read: {reason}.") from error
    try:
        # Most manifests that programs write are JSON, which json reads a hundred times as fast.
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return _load(text)
    except Exception as error:  # noqa: BLE001 (PyYAML's constructors raise what comes, as for !!int "")
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        line = mark.line + 1 if mark else 1
    raise UsageError(f"{printable(path)}, line {line}: not valid YAML or JSON: {printable(problem)}.")


def _load(text: str) -> Any:
    # 20 ms that only YAML needs.
    import yaml

    aliases = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        aliases += isinstance(token, yaml.AliasToken)
        if aliases > _MOST_ALIASES:
            raise ValueError("too many aliases")
    return yaml.safe_load(text)
