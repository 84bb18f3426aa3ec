# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The role besom: its variables are the same everywhere, and what it writes is understood."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import COMMAND, need

TOP = Path(__file__).resolve().parent.parent.parent
ROLE = TOP / "roles/besom"
# Every variable that has a part in a file, not as its default, and names that are hard to quote.
VARIABLES: dict[str, Any] = {
    "besom_stores": [
        {
            "name": "odd",
            "path": '/srv/100% "odd" \\ store',
            "layout": "trees",
            "max_age": "30d",
            "order": "lru",
        },
        {"name": "gems", "path": "/var/cache/gems", "layout": "files", "max_size": "10GiB", "min_age": 60},
    ],
    "besom_temps": [{"path": "/var/lib/app/rubies", "pattern": [".temp-*", "*.part"], "older_than": "7d"}],
    "besom_mounts": ["/mnt/it's"],
    "besom_interval": "30m",
    "besom_drain_timeout": "1.5m",
    "besom_state_dir": "/run/besom/here",
    "besom_lock_timeout": 0,
    "besom_log_format": "clef",
    "besom_log_file": "/var/log/be som/log",
    "besom_log": {"journal": True, "seq_url": "https://seq:5341", "seq_api_key_file": "/etc/besom/seq.key"},
    "besom_metrics": {"textfile": "/var/lib/prometheus/besom.prom"},
    "besom_cron_schedule": "7 * * * *",
    "besom_systemd": {"stdout": "systemd 257 (257.8-1~deb13u2)\n+PAM"},
}


def specified() -> dict[str, Any]:
    options = yaml.safe_load((ROLE / "meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    assert isinstance(options, dict)
    return options


def test_the_defaults_are_those_that_are_documented() -> None:
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    documented = {name: option["default"] for name, option in specified().items() if "default" in option}
    # A default that differs from host to host cannot be written down.
    assert {name: value for name, value in defaults.items() if name != "besom_cron_schedule"} == documented


def test_the_readme_has_every_variable() -> None:
    rows = re.findall(r"^\| `(besom_\w+)` \|", (ROLE / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(specified())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that the role writes to a host, for VARIABLES."""
    here = tmp_path_factory.mktemp("role")
    names = sorted(path.name for path in (ROLE / "templates").iterdir())
    task = {
        "ansible.builtin.template": {
            "src": f"{ROLE}/templates/{{{{ item }}}}",
            "dest": f"{here}/{{{{ item }}}}",
        },
        "loop": names,
    }
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars_files": [f"{ROLE}/defaults/main.yml", f"{ROLE}/vars/main.yml"],
        "tasks": [task],
    }
    (here / "play.json").write_text(json.dumps([play]))
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), "-e", json.dumps(VARIABLES), here / "play.json"],
        cwd=TOP,
        env={**os.environ, "ANSIBLE_HOME": str(here / "home"), "ANSIBLE_LOCAL_TEMP": str(here / "tmp")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return here


def test_besom_understands_its_configuration(written: Path) -> None:
    path = written / "besom.yml.j2"
    done = subprocess.run([COMMAND, "config", "check", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    values = yaml.safe_load(path.read_text())
    assert values["stores"] == VARIABLES["besom_stores"]
    assert values["daemon"] == {
        "interval": "30m",
        "reconcile": "24h",
        "drain_timeout": "1.5m",
        "state_dir": "/run/besom/here",
    }
    assert values["metrics"] == {"textfile": "/var/lib/prometheus/besom.prom"}
    assert values["log"] == {
        "format": "clef",
        "file": VARIABLES["besom_log_file"],
        **VARIABLES["besom_log"],
    }
    assert values["lock_timeout"] == 0


def test_systemd_understands_its_unit(written: Path, tmp_path: Path) -> None:
    need("systemd-analyze")
    unit = (written / "besom.service.j2").read_text()
    assert "\nType=notify-reload\n" in unit
    assert "\nTimeoutStopSec=105s\n" in unit
    for path in ("/var/log/be som", "/var/lib/prometheus"):
        assert f'\nReadWritePaths="-{path}"\n' in unit
    assert "\nRestrictAddressFamilies=AF_UNIX AF_INET AF_INET6\n" in unit
    assert '\nRuntimeDirectory="besom/here"\n' in unit
    # It looks for the program; and the machine's own systemd may be older than the unit is for.
    path = tmp_path / "besom.service"
    path.write_text(
        unit.replace("/usr/local/bin/besom", shutil.which("true") or "").replace("notify-reload", "notify")
    )
    done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_logrotate_and_cron_get_one_entry_each(written: Path) -> None:
    assert '\n"/var/log/be som/log" {\n' in (written / "logrotate.j2").read_text()
    assert (written / "cron.j2").read_text().splitlines()[-1] == "7 * * * * root /usr/local/sbin/cron-prune"
