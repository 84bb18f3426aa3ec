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
from besom.units import is_name, printable, shown

from .document import Unreadable, parse_yaml, read_text

KEYS = ("store", "artifacts", "headers", "url_username", "url_password", "force_basic_auth")
# Values and characters: some 250,000 artifacts.
_MOST_NODES = 1_000_000
_MOST_TEXT = 64 << 20


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
        text = read_text(path, _MOST_TEXT)
        try:
            # Most manifests that programs write are JSON, which json reads a hundred times as fast.
            return json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError):
            document = parse_yaml(text, _MOST_NODES)
    except OSError as error:
        raise UsageError(f"{printable(path)} cannot be read: {error.strerror}.") from error
    except Unreadable as error:
        if error.line is None:
            raise UsageError(f"{printable(path)} cannot be read: {error}.") from None
        problem = shown(error)
        raise UsageError(
            f"{printable(path)}, line {error.line}: not valid YAML or JSON: {problem}."
        ) from None
    for place, line in document.twice.items():
        key = shown(place[-1])
        raise UsageError(f"{printable(path)}, line {line}: {key} stands twice; remove one of them.")
    return document.values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        # YAML's reader names the line.
        raise ValueError("a key stands twice")
    return values
