"""systemd, where the daemon is a unit of it."""

from __future__ import annotations

import os
import subprocess

from besom.errors import BesomError

from .config import HOST_FILE, Config

UNIT = "besom.service"
# systemd answers at once, or something is wrong with it.
_ANSWER_S = 5.0


def is_service(config: Config) -> bool:
    """Whether this configuration's daemon is the host's unit: then systemd is to start and stop it."""
    if os.geteuid() != 0 or config.path != HOST_FILE or not os.path.isdir("/run/systemd/system"):
        return False
    return _show("LoadState") == "loaded" and "BESOM_STATE_DIR" not in os.environ


def is_main(pid: int | None) -> bool:
    """Whether the unit's process is that one, and not one that was started beside it."""
    return pid is not None and _show("MainPID") == str(pid)


def _show(what: str) -> str:
    command = ["systemctl", "show", "--property", what, "--value", UNIT]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def systemctl(verb: str, *options: str, timeout: float | None = None) -> None:
    """Run systemctl on the unit. Raises BesomError with what systemd has to say."""
    command = ["systemctl", verb, *options, UNIT]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise BesomError(f"systemctl {verb} {UNIT} did not end in time; see journalctl -u {UNIT}.") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"it ended with status {done.returncode}"
        raise BesomError(f"systemctl {verb} {UNIT} failed: {said} See journalctl -u {UNIT}.")
