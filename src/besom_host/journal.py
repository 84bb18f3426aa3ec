"""The journal's native protocol: entries with fields, https://systemd.io/JOURNAL_NATIVE_PROTOCOL/."""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"


def is_stderr() -> bool:
    """Whether stderr is the journal's, systemd.exec(5); one that is not may still have the variable."""
    try:
        st = os.fstat(sys.stderr.fileno())
        return os.environ.get("JOURNAL_STREAM") == f"{st.st_dev}:{st.st_ino}"
    except (AttributeError, OSError, ValueError):
        return False


def encode(fields: Mapping[str, str]) -> bytes:
    """The entry. Names: capitals, digits and underscores; values: any text."""
    lines = []
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            lines.append(name.encode() + b"\n" + struct.pack("<Q", len(data)) + data)
        else:
            lines.append(name.encode() + b"=" + data)
    return b"\n".join(lines) + b"\n"


def send(fields: Mapping[str, str]) -> bool:
    """Send an entry without waiting; whether it was sent."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.setblocking(False)
            sock.sendto(encode(fields), SOCKET)
    except OSError:
        return False
    return True
