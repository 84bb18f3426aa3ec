"""Telling whoever started the daemon how it is: sd_notify(3), over the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

# Set by who listens until the daemon is ready, and no longer.
ONCE = "BESOM_NOTIFY_ONCE"


def notify(*lines: str) -> None:
    """Send the lines as one message; nobody listening is no error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.connect("\0" + address[1:] if address[0] == "@" else address)
        # Nobody who listens and does not read shall keep besom waiting.
        sock.sendmsg(["\n".join(lines).encode("utf-8", "backslashreplace")], (), socket.MSG_DONTWAIT)


def notify_reloading() -> None:
    """notify-reload wants both in one message."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def watchdog_s() -> float:
    """Seconds after which systemd is to hear of this process; 0: never (sd_watchdog_enabled(3))."""
    try:
        wanted = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
        pid = int(os.environ.get("WATCHDOG_PID") or os.getpid())
    except ValueError:
        return 0.0
    return wanted / 2 if wanted > 0 and pid == os.getpid() else 0.0
