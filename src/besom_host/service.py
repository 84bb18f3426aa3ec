"""systemd, where the daemon is a unit of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from besom.errors import BesomError

from .config import HOST_FILE, Config

if TYPE_CHECKING:
    from subprocess import CompletedProcess

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
    try:
        done = _systemctl("show", "--property", what, "--value", timeout=_ANSWER_S)
    except (OSError, TimeoutError):
        return ""
    return done.stdout.strip()


def systemctl(verb: str, *options: str, timeout: float | None = None) -> None:
    """Run systemctl on the unit. Raises BesomError with what systemd has to say."""
    try:
        done = _systemctl(verb, *options, timeout=timeout)
    except TimeoutError:
        raise BesomError(f"systemctl {verb} {UNIT} did not end in time; see journalctl -u {UNIT}.") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"it ended with status {done.returncode}"
        raise BesomError(f"systemctl {verb} {UNIT} failed: {said} See journalctl -u {UNIT}.")


def _systemctl(*words: str, timeout: float | None) -> CompletedProcess[str]:
    # 10 ms that a daemon which is no unit does not need.
    import subprocess

    try:
        return subprocess.run(
            ["systemctl", *words, UNIT],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error
