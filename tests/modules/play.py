# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Many module calls in one run of the real ansible-playbook, from the checkout, on local connections."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOP = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")


@dataclass
class Result:
    """What one task returned, and the tree of its scene right after it."""

    status: str
    values: dict[str, Any]
    tree: dict[str, list[int]]

    @property
    def msg(self) -> str:
        return self.values.get("msg", "")

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)


@dataclass
class Play:
    """Tasks called `scene/step`; what belongs to a scene lies in base/HOST/scene.

    `{here}` in an argument stands for that directory.
    """

    base: Path
    pythons: dict[str, str] = field(default_factory=lambda: {"here": sys.executable})
    tasks: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, module: str, args: dict[str, Any], check: bool = False) -> None:
        place = str(self.base / "HOST" / name.partition("/")[0])
        text = json.dumps(args).replace("{here}", place).replace("/HOST/", "/{{ inventory_hostname }}/")
        self.tasks.append({"name": name, module: json.loads(text), "check_mode": check})

    def run(self) -> dict[tuple[str, str], Result]:
        """Every result by (host, task name). A task that fails does not keep the next from its turn."""
        play = {
            "hosts": "all",
            "gather_facts": False,
            "ignore_errors": True,
            "tasks": self.tasks,
        }
        hosts = {
            host: {"ansible_connection": "local", "ansible_python_interpreter": python}
            for host, python in self.pythons.items()
        }
        control = self.base / "control"
        control.mkdir(parents=True, exist_ok=True)
        (control / "play.json").write_text(json.dumps([play]))
        (control / "inventory.json").write_text(json.dumps({"all": {"hosts": hosts}}))
        results = control / "results.jsonl"
        environment = {
            **os.environ,
            "ANSIBLE_CALLBACK_PLUGINS": str(HERE / "callback_plugins"),
            "ANSIBLE_STDOUT_CALLBACK": "results",
            "ANSIBLE_HOME": str(control / "ansible"),
            "ANSIBLE_LOCAL_TEMP": str(control / "local"),
            "ANSIBLE_REMOTE_TEMP": str(control / "remote"),
            "BESOM_TEST_BASE": str(self.base),
            "BESOM_TEST_RESULTS": str(results),
            "PYTHONPATH": str(HERE),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        arguments = ["--diff", "--forks", str(len(hosts)), "-i", control / "inventory.json"]
        done = subprocess.run(
            [PLAYBOOK, *arguments, control / "play.json"],
            cwd=TOP,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        lines = results.read_text().splitlines() if results.exists() else []
        found = {}
        for line in map(json.loads, lines):
            found[line["host"], line["task"]] = Result(line["status"], line["result"], line["tree"])
        assert len(found) == len(self.tasks) * len(hosts), done.stdout + done.stderr
        return found
