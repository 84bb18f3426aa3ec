"""Contests from a playbook: a module beside ping and beside find + file, and housekeeping on many hosts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contest import Bar, Contender, Contest
from ground import MEMORY, PLAYBOOK, Ground
from stopwatch import Sample
from stores import check, everything, nothing

Task = dict[str, Any]
PING: Task = {"ansible.builtin.ping": {}}


def play(
    base: Path, *tasks: Task, hosts: dict[str, Any] | None = None, playbook: Path | None = None
) -> list[str]:
    """The command for a play of these tasks, or a playbook, on hosts (or one) with local connections."""
    file, inventory = base / "play.json", base / "inventory.json"
    file.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory.write_text(json.dumps({"all": {"hosts": hosts or {"localhost": {}}, "vars": local}}))
    return [PLAYBOOK, "-i", str(inventory), str(playbook or file)]


def prune(path: Path, **options: str) -> Task:
    return {"cache_prune": {"path": str(path), "layout": "files", **options}}


def find_and_loop(path: Path) -> list[Task]:
    """What is found on the web for deleting old files with Ansible."""
    find = {"paths": str(path), "recurse": True, "age": "1d"}
    file = {"path": "{{ item.path }}", "state": "absent"}
    return [
        {"ansible.builtin.find": find, "register": "old"},
        {
            "ansible.builtin.file": file,
            "loop": "{{ old.files }}",
            "loop_control": {"label": "{{ item.path }}"},
        },
    ]


def module(ground: Ground) -> Iterator[Contest]:
    """One module with nothing to do, and one with much to do."""
    with ground.directory() as base:
        (base / "store").mkdir()
        idle = play(base, prune(base / "store", max_age="1d"))
        (base / "ping").mkdir()
        ping = play(base / "ping", PING)
        yield Contest(
            "module",
            "A play of one task on one host: round trip",
            [
                Contender("cache_prune, nothing to do", lambda: ground.measure(idle)),
                Contender("ping", lambda: ground.measure(ping)),
            ],
            notes=lambda: [payloads(ground)],
        )
    many, few = (500, 3) if ground.quick else (10_000, 50)

    def by_file(name: str, files: int, *bars: Bar) -> Contender:
        def run() -> Sample:
            with ground.tree("files", files, MEMORY) as tree, ground.directory() as base:
                tasks = [prune(tree.path, max_age="1d")] if "prune" in name else find_and_loop(tree.path)
                sample = ground.measure(play(base, *tasks))
                check(tree, name, nothing)
            return sample

        return Contender(f"{name} ({files:,})", run, bars, files)

    yield Contest(
        "loop",
        "Old files deleted from a playbook",
        [by_file("cache_prune", many, Bar("ratio", 1 / 500)), by_file("find + file loop", few)],
        unit="file",
        rounds=1,
    )


def payloads(ground: Ground) -> str:
    """Bytes of what is sent to a host for one task."""
    sizes = []
    for name, task in {
        "ping": PING,
        "cache_prune": prune(ground.base / "nowhere", max_age="1d"),
        "housekeep": {"housekeep": {}},
    }.items():
        with ground.directory() as base:
            keep = {
                "ANSIBLE_KEEP_REMOTE_FILES": "1",
                "ANSIBLE_PIPELINING": "0",
                "ANSIBLE_REMOTE_TEMP": str(base),
            }
            argv = play(base, {**task, "ignore_errors": True})
            subprocess.run(argv, env={**ground.env, **keep}, check=True, stdout=-3, stderr=-3)
            (file,) = base.rglob("AnsiballZ_*.py")
            sizes.append(f"{name} {file.stat().st_size / 1024:.0f} KiB")
    return f"What is sent to a host for a task: {', '.join(sizes)}."


def fleet(ground: Ground) -> Iterator[Contest]:
    """The housekeeping playbook on hosts of their own names, stores and temp areas, beside a play of ping."""
    count = 2 if ground.quick else 50
    with ground.tree("files", 10 * count, MEMORY) as tree, ground.directory() as base:
        hosts: dict[str, Any] = {}
        for number in range(count):
            temps = base / f"temps-{number}"
            (temps / ".temp-new").mkdir(parents=True)
            store = {"name": "store", "path": str(tree.path / f"{number:03}"), "layout": "files"}
            (tree.path / f"{number:03}").mkdir(exist_ok=True)
            hosts[f"host-{number:03}"] = {
                "besom_stores": [{**store, "max_size": "1TiB", "max_age": "1000d"}],
                "besom_temps": [{"path": str(temps)}],
                "besom_needs": [{"path": str(base), "size": "1MiB"}],
            }

        def contender(name: str, *bars: Bar, **what: Any) -> Contender:
            (base / name).mkdir()
            argv = play(base / name, *what.pop("tasks", ()), hosts=hosts, **what)

            def run() -> Sample:
                sample = ground.measure(argv)
                check(tree, name, everything)
                return sample

            return Contender(name, run, bars, count)

        keep_house = {
            "stores": "{{ besom_stores }}",
            "temps": "{{ besom_temps }}",
            "needs": "{{ besom_needs }}",
        }
        # Not to be paid by who comes first: what of Ansible is not compiled yet.
        (base / "warm").mkdir()
        ground.measure(play(base / "warm", {"housekeep": {}}, PING))
        yield Contest(
            "fleet",
            f"Housekeeping on {count} hosts (local connections, which are this machine's to compute)",
            [
                contender(
                    "playbooks housekeeping.yml",
                    Bar("ratio", 1.5),
                    playbook=ground.besom / "playbooks/housekeeping.yml",
                ),
                contender("a play of one housekeep", tasks=[{"housekeep": keep_house}]),
                contender("a play of one ping", tasks=[PING]),
            ],
            unit="host",
            rounds=2,
        )
