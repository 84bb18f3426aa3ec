# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The command line of a process as it may be shown: others read it in messages, logs and stores."""

from __future__ import annotations

import os
import re

_LONGEST = 120
# A header is as likely a token as anything; where its words end, a joined line does not tell.
_HEADER = re.compile(r"(?:(?<!\S)-H|(?<!\w)--head(?:er?)?(?![\w-])).*", re.DOTALL)
# Scheme, login, host and path, then query or fragment; a password may hold any sign.
_URL = re.compile(r"(://)(?:\S*@)?([^\s?#]*)\S*")


def command_of(pid: int | None = None, most: int | None = None) -> str:
    """The first words (most: how many) of the process' command line, as without_secrets() shows them.

    pid: this process if None. Empty for a kernel thread and a zombie. Raises OSError, proc(5).
    """
    with open(f"/proc/{'self' if pid is None else pid}/cmdline", "rb") as stream:
        words = stream.read(4096).rstrip(b"\0").split(b"\0")
    return without_secrets(os.fsdecode(b" ".join(words[:most])).strip())


def without_secrets(command: str) -> str:
    """At most 120 characters of the command line: no HTTP headers, of URLs only host and path."""
    return _URL.sub(r"\1\2", _HEADER.sub("...", command))[:_LONGEST]
