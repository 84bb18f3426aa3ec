# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hosts of the tests whose prune daemon is real, each with a configuration, state and store of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = Path(sys.executable).with_name("besom")


class Host:
    """A host below a directory. Its one store may hold one entry, and is waited for an hour when locked."""

    def __init__(self, here: Path) -> None:
        self.store, self.state, self.config = here / "store", here / "state", here / "besom.yml"
        self.store.mkdir(parents=True)
        self.config.write_text(
            f"""
stores: [{{name: store, path: {self.store}, layout: files, max_entries: 1}}]
daemon: {{interval: 1h, drain_timeout: 1h, state_dir: {self.state}}}
log: {{file: {here}/log}}
lock_timeout: 1h
"""
        )

    @property
    def options(self) -> dict[str, str]:
        """The options of the module prune_daemon that name this host's daemon."""
        return {"config": str(self.config), "command": str(COMMAND)}

    def besom(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, "--config", self.config, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def end(self) -> None:
        """Leave no daemon behind, whatever it does."""
        self.besom("daemon", "stop", "--force", "--timeout", "0")


def is_gone(pid: int) -> bool:
    """Whether the process has ended, even where nobody has asked yet how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True
