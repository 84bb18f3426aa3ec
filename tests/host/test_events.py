# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table of events is the truth: what is told is declared, what is declared is told, and documented."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

from besom_host.events import COMMON, DOCUMENT, EVENTS

from .conftest import Held
from .host import Host
from .told import told

TOP = Path(__file__).resolve().parent.parent.parent


def test_the_documentation_is_the_table() -> None:
    assert (TOP / "docs/events.md").read_text() == DOCUMENT, "python -m besom_host.events > docs/events.md"


def calls() -> Iterator[tuple[str, ast.Call]]:
    """(file, call) of every tell() in the host side."""
    for path in (TOP / "src/besom_host").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.search(r"\btell$", ast.unparse(node.func)):
                yield f"{path.name}:{node.lineno}", node


def names_of(call: ast.Call) -> list[str]:
    """The events that the first argument can name."""
    text = ast.unparse(call.args[0])
    words = [node.value for node in ast.walk(call.args[0]) if isinstance(node, ast.Constant)]
    if isinstance(call.args[0], ast.JoinedStr):
        return [f"{one}_{end}" for one in ("prune", "sweep") for end in ("done", "idle") if end in text]
    return [word for word in words if isinstance(word, str)]


def test_every_event_is_told_with_its_fields_and_no_other() -> None:
    seen = set()
    for where, call in calls():
        names = names_of(call)
        assert names, where
        given = {keyword.arg for keyword in call.keywords}
        for name in names:
            assert name in EVENTS, (where, name)
            declared = set(EVENTS[name].fields)
            # A ** gives the rest: the daemon's run below shows which.
            assert given == declared or (None in given and given - {None} <= declared), (where, name)
        seen.update(names)
    assert seen == set(EVENTS)


def test_no_common_field_is_an_events_own() -> None:
    assert not any(set(COMMON) & set(event.fields) for event in EVENTS.values())


def test_a_daemon_that_goes_through_much_tells_only_what_is_declared(
    host: Host, hold: Callable[[Path], Held]
) -> None:
    log, temps, empty = host.path / "besom.clef", host.path / "temps", host.path / "nothing"
    for name in ("over", "over/inner"):
        (host.path / name).mkdir()
    temps.mkdir()
    (temps / ".temp-old").touch()
    os.utime(temps / ".temp-old", (1, 1))
    gems = {
        "name": "gems",
        "path": str(host.store),
        "layout": "files",
        "max_entries": 3,
        "before_prune": "echo ready",
    }
    rest = [
        {"name": name, "path": str(host.path / name), "layout": "files", "max_age": "1d"}
        for name in ("over", "over/inner", "nothing")
    ]
    for store in rest:
        store["name"] = store["name"].replace("/", "-")
    young = {**gems, "name": "young", "path": str(host.path / "young"), "min_age": "365d"}
    (host.path / "young").mkdir()
    host.fill(4, host.path / "young")
    settings = {
        "stores": [gems, *rest, young],
        "temps": [{"path": str(temps), "older_than": "1d"}],
        "log": {"format": "clef", "file": str(log)},
        "metrics": {"textfile": str(empty / "besom.prom")},
        "lock_timeout": "60s",
        "daemon": {"interval": "soon"},
    }
    host.configure(**settings)
    host.fill(5)
    held = hold(host.store)
    host.daemon("start")
    told(log, "lock_awaited")
    held.release()
    host.until(lambda now: now["runs"] == 1)
    text = host.file.read_text()
    host.file.write_text("stores: [")
    host.env = {"BESOM_STATE_DIR": str(host.state_dir)}
    assert host.daemon("reload").status == 1
    host.file.write_text(
        text.replace(str(host.state_dir), "/run/elsewhere").replace("60s", "0s").replace("soon", "1h")
    )
    assert host.daemon("reload").status == 0
    held = hold(host.store)
    host.daemon("trigger")
    host.until(lambda now: now["runs"] == 2)
    held.release()
    host.daemon("stop")
    names = [line["event"] for line in told(log)]
    assert set(names) >= {
        *("daemon_started", "config_problem", "run_began", "lock_awaited", "lock_won", "hook_output"),
        *("prune_done", "prune_idle", "sweep_done", "sweep_idle", "limit_missed", "area_missing"),
        *("work_failed", "run_ended", "backing_off", "reload_refused", "reloaded", "restart_needed"),
        *("store_skipped", "metrics_unwritten", "daemon_stopped"),
    }
    # Told once, and again only when it was well meanwhile.
    assert names[0] == "daemon_started"
    assert names[-1] == "daemon_stopped"
