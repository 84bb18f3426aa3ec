# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""playbooks/housekeeping.yml costs each host one task, and tells of all of them once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from .play import PLAYBOOK, TOP


def test_one_task_for_each_host_and_one_summary_for_all(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "old").touch()
    os.utime(store / "old", (0, 0))
    limits = {"layout": "files", "max_age": "1d"}
    hosts = {
        "refused": {"besom_stores": [{"path": "/etc", **limits}]},
        "idle": {},
        "malformed": {"besom_urls": "text"},
        "pruned": {"besom_stores": [{"path": str(store), **limits}]},
        "away": {
            "ansible_connection": "ssh",
            "ansible_host": "127.0.0.1",
            "ansible_port": 1,
            "besom_needs": [{}],
        },
    }
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory = tmp_path / "inventory.json"
    inventory.write_text(json.dumps({"all": {"hosts": hosts, "vars": local}}))
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")},
        "ANSIBLE_CONFIG": str(TOP / "ansible.cfg"),
        "ANSIBLE_HOME": str(tmp_path / "ansible"),
        "ANSIBLE_NOCOLOR": "1",
    }
    command = [PLAYBOOK, "-i", inventory, TOP / "playbooks/housekeeping.yml"]
    done = subprocess.run(command, env=environment, cwd=TOP, capture_output=True, text=True, check=False)
    # Failed, and unreachable.
    assert done.returncode in (2, 4, 6), done.stderr
    assert done.stdout.count("TASK [") == 2

    summary, recap = done.stdout.partition("TASK [Summary]")[2].split("PLAY RECAP")
    told = [line.strip() for line in summary.splitlines()]
    assert "refused: FAILED: /etc is refused: it is a system directory; name a directory of its own." in told
    assert f"{store}: removed 1, 0 B; in use 0 B -> 0 B (max_age 1d)" in told
    assert any(line.startswith("idle: Nothing to do") for line in told)
    assert any(line.startswith("malformed: FAILED: ") for line in told)
    assert any(line.startswith("pruned: Removed 1 entry") for line in told)
    assert not any(line.startswith("away: Nothing") for line in told)
    failed = {line.split()[0] for line in recap.splitlines() if "failed=1" in line}
    assert failed == {"refused", "malformed"}
    assert not (store / "old").exists()
