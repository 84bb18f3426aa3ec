# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Schema, defaults, documentation, engine and roles say the same, and modules return what they document."""

from __future__ import annotations

import ast
import hashlib
import importlib
import io
import os
import subprocess
import sys
import tarfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
import yaml

from besom import install, policy, preflight, transfer, units
from besom.extract import Limits
from besom.opener import DEFAULT_TIMEOUT, plain_opener
from besom.run import Run

from ..host.mirror import Mirror, serve
from .daemons import Host
from .play import TOP, Play, Result
from .scenes import FIVE, TEMPS, build

MODULES = sorted(path.stem for path in (TOP / "library").glob("*.py"))
ROLES = {"disk_preflight": "disk_preflight", "housekeeping": "housekeep"}
# Lists that are empty on a host where nothing is wrong.
UNSEEN = ("failures.", "anomalies.", "kept.", "in_flight.", "not_done.")
# What ansible-core adds to every result by itself, and `changed`, which it documents.
COMMON = {"changed", "diff", "exception", "failed", "invocation", "warnings", "_ansible_no_log"}
ATTRIBUTES = ("type", "elements", "choices", "default", "required", "aliases")


def documented(module: str, what: str) -> dict[str, Any]:
    """The YAML of DOCUMENTATION or RETURN."""
    for node in ast.parse((TOP / "library" / f"{module}.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == what:
            found: dict[str, Any] = yaml.safe_load(ast.literal_eval(node.value))
            return found
    raise AssertionError(f"{module} has no {what}")


class Asked(Exception):
    """The argument_spec that a module asked for."""


@pytest.fixture(scope="module")
def collection() -> Iterator[str]:
    """A package of the checkout's library and module_utils, as an installed collection lays them out."""
    name = "besom_checkout"
    package = types.ModuleType(name)
    package.__path__ = [str(TOP)]
    sys.modules[name] = package
    yield name
    for loaded in [key for key in sys.modules if key.partition(".")[0] == name]:
        del sys.modules[loaded]


@pytest.fixture
def constants(collection: str) -> Any:
    return importlib.import_module(f"{collection}.module_utils.besom_module")


@pytest.fixture
def spec(module: str, collection: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The argument_spec of module, as its main() hands it over."""
    loaded = importlib.import_module(f"{collection}.library.{module}")

    def ask(argument_spec: dict[str, Any], **_options: Any) -> None:
        raise Asked(argument_spec)

    monkeypatch.setattr(loaded, "AnsibleModule", ask)
    with pytest.raises(Asked) as asked:
        loaded.main()
    found: dict[str, Any] = asked.value.args[0]
    return found


def flat(options: dict[str, Any], sub: str, prefix: str = "") -> dict[str, dict[str, Any]]:
    """{dotted name: attributes} of options and their suboptions."""
    found = {}
    for name, values in options.items():
        found[prefix + name] = {
            key: values[key] for key in ATTRIBUTES if values.get(key) not in (None, [], False)
        }
        found.update(flat(values.get(sub) or {}, sub, f"{prefix}{name}."))
    return found


@pytest.mark.parametrize("module", MODULES)
def test_the_argument_spec_is_what_is_documented(module: str, spec: dict[str, Any]) -> None:
    options = documented(module, "DOCUMENTATION")["options"]
    assert flat(spec, "options") == flat(options, "suboptions")


def test_the_modules_know_the_keys_of_the_engine(constants: Any) -> None:
    assert set(constants.POLICY) == set(policy.POLICY_KEYS)
    assert set(constants.STORE) == set(policy.STORE_KEYS)
    values = dict.fromkeys(constants.STORE) | {"path": "/x", "layout": "files", "max_age": "1d"}
    assert policy.read_store(values).path == "/x"
    values = dict.fromkeys(constants.TEMPS) | {"path": "/x"}
    assert policy.read_temps(values).path == "/x"
    needs, urls = constants.GATE["needs"]["options"], constants.GATE["urls"]["options"]
    values = dict.fromkeys((*needs, *urls)) | {"path": "/x", "size": "1K"}
    assert preflight.read_needs([values]) == [preflight.Need("/x", 1024)]


def test_the_modules_have_the_choices_and_defaults_of_the_engine(constants: Any) -> None:
    assert tuple(constants.STORE["layout"]["choices"]) == policy.LAYOUTS
    assert set(constants.POLICY["order"]["choices"]) == set(policy.ORDERS)
    assert tuple(constants.STORE["lock_backend"]["choices"]) == policy.LOCK_BACKENDS
    assert constants.TEMPS["pattern"]["default"] == [policy.DEFAULT_PATTERN]
    assert constants.TEMPS["older_than"]["default"] == policy.DEFAULT_OLDER_THAN
    assert constants.GATE["expand"]["default"] == preflight.DEFAULT_EXPAND
    assert constants.GATE["timeout"]["default"] == DEFAULT_TIMEOUT


def test_what_a_target_lacks_for_a_shared_store_is_said_before_any_work(
    constants: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = {"redis_url": "redis://host", "stores": [{"lock_backend": "flock"}]}
    monkeypatch.setitem(sys.modules, "portalocker", None)
    assert constants._shared_locks(params) is None
    params["stores"] = [{"lock_backend": "redis"}]
    with pytest.raises(constants.UsageError, match=r"Python library \(portalocker\)"):
        constants._shared_locks(params)


def test_artifact_install_has_the_defaults_of_the_engine() -> None:
    options = documented("artifact_install", "DOCUMENTATION")["options"]
    assert options["max_entries"]["default"] == Limits().entries
    assert units.parse_size(options["max_size"]["default"]) == Limits().bytes
    assert options["expand"]["default"] == preflight.DEFAULT_EXPAND
    assert options["keep"]["default"] == install.InstallRequest("/x", "y").keep


@pytest.mark.parametrize(("role", "module"), ROLES.items())
def test_a_role_takes_the_options_of_its_module(role: str, module: str) -> None:
    folder = TOP / "roles" / role
    options = documented(module, "DOCUMENTATION")["options"]
    asked = yaml.safe_load((folder / "meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
    defaults = yaml.safe_load((folder / "defaults/main.yml").read_text())
    assert set(asked) == {f"besom_{name}" for name in options}
    for name, values in options.items():
        variable = asked[f"besom_{name}"]
        for key in ("type", "elements", "choices", "default"):
            assert variable.get(key) == values.get(key), f"{name}: {key}"
        assert defaults.get(f"besom_{name}") == values.get("default")
        described = str(variable["description"])
        missing = [key for key in values.get("suboptions", {}) if key not in described]
        assert not missing, f"{name} does not name its keys {missing}"


@pytest.mark.parametrize(("role", "module"), ROLES.items())
def test_a_role_hands_every_option_on(role: str, module: str) -> None:
    (task,) = yaml.safe_load((TOP / "roles" / role / "tasks/main.yml").read_text())
    options = documented(module, "DOCUMENTATION")["options"]
    assert set(task[module]) == set(options)
    assert all(f"besom_{name}" in value for name, value in task[module].items())


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The options that name a daemon which runs, for prune_daemon."""
    host = Host(tmp_path_factory.mktemp("daemon"))
    host.besom("daemon", "start")
    yield host.options
    host.end()


@pytest.fixture(scope="module")
def busy(play: Play, hold: Callable[[Path], int]) -> Iterator[dict[str, Any]]:
    """The options that name a mount which somebody holds, for graceful_unmount; only root can mount one."""
    at = play.base / "here/graceful_unmount/busy"
    at.mkdir(parents=True)
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "besom-test", at], check=True)
        hold(at)
    yield {"path": "{here}/busy", "timeout": "0", "lazy": True}
    subprocess.run(["umount", "--lazy", at], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def upgrade(play: Play) -> Iterator[dict[str, Any]]:
    """The options by which artifact_install replaces a tree; the old one has to go."""
    into = play.base / "here/artifact_install/opt"
    into.mkdir(parents=True)
    with serve() as mirror:
        for version in ("1", "2"):
            stream = io.BytesIO()
            with tarfile.open(fileobj=stream, mode="w") as archive:
                archive.addfile(tarfile.TarInfo(version))
            mirror.add(f"/{version}.tar", stream.getvalue())
        source = transfer.read_source(f"{mirror.url}/1.tar")
        opener = plain_opener(redirects=False)
        install.install(install.InstallRequest(str(into), "app", source), Run(), opener)
        yield {"url": f"{mirror.url}/2.tar", "into": "{here}/opt", "name": "app"}


@pytest.fixture(scope="module")
def mirror() -> Iterator[Mirror]:
    with serve() as one:
        one.add("/new", b"content")
        yield one


def artifacts(here: Path, mirror: Mirror) -> list[dict[str, Any]]:
    """One to fetch, one that is there, one of which only the mode is wrong."""
    sums = {name: hashlib.sha256((here / name).read_bytes()).hexdigest() for name in ("cache/a", "cache/b")}
    there: list[dict[str, Any]] = [
        {"url": f"{mirror.url}/gone", "dest": name, "checksum": f"sha256:{digest}"}
        for name, digest in sums.items()
    ]
    there[1]["mode"] = "0600"
    return [{"url": f"{mirror.url}/new", "dest": "new"}, *there]


@pytest.fixture(scope="module")
def returned(
    play: Play, daemon: dict[str, str], busy: dict[str, Any], upgrade: dict[str, Any], mirror: Mirror
) -> dict[str, list[Result]]:
    """Results of each module that between them hold all that it can return; failures come last."""
    store = {"path": "{here}/cache", "layout": "files", "max_entries": 4}
    gate = {"needs": [{"path": "/tmp", "size": "1K"}]}
    short = {"needs": [{"path": "/tmp", "size": "7P"}]}
    gone = {"path": "{here}", "artifacts": [{"url": f"{mirror.url}/gone", "dest": "gone"}]}
    calls: dict[str, list[dict[str, Any]]] = {
        "artifact_install": [upgrade, {**upgrade, "into": "{here}/none"}],
        "artifact_sync": [{"path": "{here}"}, gone],
        "cache_info": [
            {"stores": [store], "temps": [{"path": "{here}/area"}]},
            {"stores": [{**store, "path": "x"}]},
        ],
        "cache_prune": [store, {**store, "max_entries": 0}],
        "disk_preflight": [gate, short],
        "graceful_unmount": [busy, {"path": "/usr"}],
        "housekeep": [
            {"stores": [store], "temps": [{"path": "{here}/area"}], **gate},
            {"stores": [store], **short},
        ],
        "prune_daemon": [{**daemon, "state": "idle"}, {**daemon, "command": "{here}/none"}],
        "stale_temp_sweep": [{"path": "{here}/area"}, {"path": "{here}/none"}],
    }
    for module, ways in calls.items():
        here: Path = play.base / "here" / module
        build(here, {**FIVE, **TEMPS})
        os.mkfifo(here / "cache/fifo")
        if module == "artifact_sync":
            ways[0]["artifacts"] = artifacts(here, mirror)
        for number, args in enumerate(ways):
            play.add(f"{module}/{number}", module, args)
    found = play.run()
    return {
        module: [found["here", f"{module}/{n}"] for n in range(len(ways))] for module, ways in calls.items()
    }


def keys(values: list[dict[str, Any]], documentation: dict[str, Any], prefix: str = "") -> set[str]:
    """Dotted names of all keys in values, as deep as the documentation says what they contain."""
    found = set()
    for one in values:
        for name, value in one.items():
            found.add(prefix + name)
            contains = documentation.get(name, {}).get("contains")
            if contains and value is not None:
                found |= keys(value if isinstance(value, list) else [value], contains, f"{prefix}{name}.")
    return found


def names(documentation: dict[str, Any], prefix: str = "") -> set[str]:
    found = {prefix + name for name in documentation}
    for name, values in documentation.items():
        found |= names(values.get("contains", {}), f"{prefix}{name}.")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_returns_exactly_the_keys_that_it_documents(
    module: str, returned: dict[str, list[Result]]
) -> None:
    documentation = documented(module, "RETURN")
    found = keys([result.values for result in returned[module]], documentation) - COMMON
    wanted = names(documentation)
    # Failures that besom cannot bring about at will look like what was kept; idle, nothing is in flight.
    unseen = {name for name in wanted if name.startswith(UNSEEN)}
    if os.geteuid() != 0:
        unseen |= {name for name in wanted if name.startswith("mounts.holders.")}
    assert found - {"msg"} <= wanted
    assert wanted - found <= unseen


@pytest.mark.parametrize("module", MODULES)
def test_a_key_is_returned_when_it_is_said_to_be(module: str, returned: dict[str, list[Result]]) -> None:
    done, refused = returned[module]
    for name, values in documented(module, "RETURN").items():
        assert name in done.values
        assert values["returned"] != "always" or name in refused.values
        types = {"str": str, "int": int, "bool": bool, "dict": dict, "list": list, "float": (int, float)}
        assert isinstance(done[name], types[values["type"]]), name
