"""Manifests of besom sync: what is no manifest is said in one line, in time."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from besom.errors import UsageError
from besom_host.manifest import read_manifest

ONE = "store: /srv/s\nartifacts:\n- {url: 'http://host/a', dest: %s}\n"
LAUGHS = "store: /srv/s\na: &a [x, x]\n" + "".join(
    f"{key}: &{key} [*{before}, *{before}, *{before}]\n"
    for before, key in zip("abcdefghijklmno", "bcdefghijklmnop")
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS + "artifacts: [{url: 'http://host/a', dest: b, owner: *p}]", "too many values"),
        (ONE % f"b, owner: 0x{'f' * 5000}", "line 1: not valid YAML or JSON"),
        (ONE % f"0x{'f' * 5000}", "line 1: not valid YAML or JSON"),
        (ONE % "b, dest: c", "line 3: dest stands twice"),
        (
            '{"store": "/srv/s", "artifacts": [{"url": "http://host/a", "dest": "a", "dest": "b"}]}',
            "dest stands twice",
        ),
        ("[" * 100_000, "not valid YAML or JSON"),
        (ONE % ("x/" * 5000 + "y"), "is no path of a file"),
        (ONE % "b" + "x" * 900 + ": 1", "unknown key xxx"),
    ],
    ids=["laughs", "huge owner", "huge dest", "twice", "twice in JSON", "deep", "long dest", "long key"],
)
def test_what_is_no_manifest_is_said_in_one_short_line(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "manifest"
    file.write_text(text)
    started = time.process_time()
    with pytest.raises(UsageError, match=says) as caught:
        read_manifest(str(file))
    assert time.process_time() - started < 2
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
