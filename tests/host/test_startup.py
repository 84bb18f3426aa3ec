# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a command imports before it does its work: only what that work needs."""

from __future__ import annotations

import re
import subprocess

import pytest

from .host import BESOM, Host


def imported(host: Host, *words: str) -> set[str]:
    """The modules that a command imports, by their whole names."""
    command = [BESOM[0], "-X", "importtime", *host.command(*words)[1:]]
    done = subprocess.run(command, env=host.environment(), capture_output=True, text=True, check=False)
    found = set(re.findall(r"^import time: .*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "besom_host.cli" in found
    return found


@pytest.mark.parametrize(
    ("words", "needless"),
    [
        (["--help"], {"yaml", "besom_host.config", "subprocess", "pathlib"}),
        (
            ["daemon", "trigger"],
            {"subprocess", "urllib.parse", "inotify_simple", "besom.locks", "rich", "pathlib"},
        ),
        (["housekeep"], {"urllib.request", "besom.durable", "besom.sessions", "besom.info", "rich"}),
    ],
)
def test_a_command_imports_only_what_it_needs(host: Host, words: list[str], needless: set[str]) -> None:
    host.configure(max_age="1d")
    assert not needless & imported(host, *words)
