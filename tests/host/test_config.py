"""Configuration files and environment: what is read, and what wild input ends in."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from besom.errors import UsageError
from besom_host.config import _MAX_SIZE as MAX_SIZE
from besom_host.config import _SETTINGS as SETTINGS
from besom_host.config import load, read

GEMS = {"name": "gems", "path": "/srv/gems", "layout": "files", "max_size": "10GiB"}


def write(path: Path, values: Any) -> str:
    file = path / "besom.yml"
    file.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(file)


def test_the_example_of_the_design_is_read(tmp_path: Path) -> None:
    text = """
stores:
  - name: gems
    path: /var/cache/app/gems
    layout: files
    max_size: 10GiB
    target_size: 8GiB
    order: lru
temps:
  - path: /var/lib/app/rubies
    pattern: .temp-*
    older_than: 24h
mounts:
  - /mnt/torrents
daemon: {interval: 1h, drain_timeout: 30s, state_dir: /run/besom}
log: {format: clef, file: /var/log/besom/besom.clef}
metrics: {textfile: /var/lib/prometheus/node-exporter/besom.prom}
"""
    config = load(write(tmp_path, text), {})
    gems = config.stores["gems"]
    assert (gems.path, gems.layout, gems.policy.order) == ("/var/cache/app/gems", "files", "lru")
    assert (gems.policy.max_size, gems.policy.target_size) == (10 * 2**30, 8 * 2**30)
    assert (config.temps[0].patterns, config.temps[0].older_than) == ((".temp-*",), 86400 * 10**9)
    assert config.lock_timeout == 30


def test_the_environment_limits_only_stores_without_a_limit_of_their_own(tmp_path: Path) -> None:
    bare = {"name": "bare", "path": "/srv/bare", "layout": "trees"}
    file = write(tmp_path, {"stores": [GEMS, bare]})
    for env in ({"BESOM_MAX_SIZE": "5M"}, {"BESOM_MAX_SIZE_MB": "5"}):
        config = load(file, env)
        assert [store.policy.max_size for store in config.stores.values()] == [10 * 2**30, 5 * 2**20]
    with pytest.raises(UsageError, match="no limit is set"):
        load(file, {})
    with pytest.raises(UsageError, match="BESOM_MAX_SIZE_MB"):
        load(file, {"BESOM_MAX_SIZE_MB": "lots"})


def test_the_file_that_besom_config_names_is_read_and_the_flag_stands_above_it(tmp_path: Path) -> None:
    file = write(tmp_path, {"stores": [GEMS]})
    assert load(None, {"BESOM_CONFIG": file}).path == file
    assert load(file, {"BESOM_CONFIG": "/nowhere"}).path == file


BAD = [
    ("stores: {", "line 1"),
    ("a: b: c", "line 1"),
    ("- a\n- b", "must be a mapping"),
    ("stores: 3", "stores must be a list"),
    ("stores: [3]", "must be a mapping"),
    ("shops: []", "unknown key shops"),
    ("lock_timeout: soon", "lock_timeout: 'soon'"),
    ("\x00", "not valid YAML"),
    ('lock_timeout: !!int ""', "not valid YAML"),
    ("mounts: [!!timestamp x]", "not valid YAML"),
    ('mounts: ["\\ud800"]', "not valid YAML"),
    (f"mounts: [0x{'f' * 5000}]", "not valid YAML"),
    ("stores: [{name: a, path: relative, layout: files, max_age: 1d}]", "path: relative is not an absolute"),
    ("stores: [{name: a, path: /a, layout: blobs, max_age: 1d}]", "layout: blobs is not one of"),
    ("stores: [{name: a, path: /a, layout: files, max_size: -1}]", "a: max_size: '-1'"),
    ("stores: [{name: a, path: /a, layout: files, max_size: true}]", "a: max_size: 'True'"),
    ("stores: [{name: a, path: /a, layout: files, max_sise: 1G}]", "unknown key max_sise"),
    ("stores: [{path: /a, layout: files, max_size: 1G}]", "has no name"),
    ("temps: [{path: /a, pattern: ../x}]", "pattern: '../x'"),
    ("temps: [{path: /a, older_than: ''}]", "older_than: ''"),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=[ascii(text) for text, _ in BAD])
def test_a_malformed_file_is_one_sentence_that_names_file_and_key(
    tmp_path: Path, text: str, says: str
) -> None:
    file = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        load(file, {})
    message = str(caught.value)
    assert says in message
    assert file in message
    assert "\n" not in message


def test_every_problem_is_noted_with_its_line_and_the_rest_is_read(tmp_path: Path) -> None:
    text = """\
stores:
  - name: good
    path: /srv/good
    layout: files
    max_size: 1G
  - name: bad
    path: /srv/bad
    layout: files
    max_size: lots
temps:
  - path: relative
daemon:
  interval: 5m
  drain_timeout: -1
lock_timeout: 3s
lock_timeout: 4s
drain: {prune_timeout: 1s, unmount_lazy: 7}
"""
    config = read(write(tmp_path, text), {})
    assert [problem.line for problem in config.problems] == [16, 9, 11, 14, 17, 17]
    assert list(config.stores) == ["good"]
    assert (config.interval, config.drain_timeout) == (300, 30)
    assert (config.prune_timeout, config.unmount_lazy) == (300, True)


def test_the_environment_stands_above_the_file_and_what_is_malformed_in_it_does_not(tmp_path: Path) -> None:
    file = write(tmp_path, {"daemon": {"interval": "5m", "drain_timeout": "7s", "state_dir": "/run/x"}})
    env = {
        "BESOM_INTERVAL_MINUTES": "2.5",
        "BESOM_DRAIN_TIMEOUT": "",
        "BESOM_STATE_DIR": "x",
        "BESOM_LOG_FORMAT": "xml",
    }
    config = read(file, env)
    assert (config.interval, config.drain_timeout, config.state_dir, config.log_format) == (
        150,
        7,
        "/run/x",
        "text",
    )
    assert not any(problem.in_file for problem in config.problems)
    for name, problem in zip(list(env)[1:], config.problems):
        assert name in problem.message
        assert "is in force" in problem.message
    # A command that ends with it says nothing of what is in force.
    with pytest.raises(UsageError, match=r"^BESOM_STATE_DIR: 'x' is not an absolute path\.$"):
        load(file, {"BESOM_STATE_DIR": "x"})


def test_a_limit_that_cannot_be_read_from_the_environment_leaves_the_store_alone(tmp_path: Path) -> None:
    bare = {"name": "bare", "path": "/srv/bare", "layout": "trees"}
    config = read(write(tmp_path, {"stores": [GEMS, bare]}), {"BESOM_MAX_SIZE": "-5"})
    assert list(config.stores) == ["gems"]
    assert "BESOM_MAX_SIZE: '-5'" in config.problems[0].message


@pytest.mark.parametrize("others", [[{**GEMS, "max_size": "1K"}], [GEMS, GEMS], [{**GEMS, "max_size": "x"}]])
def test_of_several_stores_with_one_name_none_is_pruned(tmp_path: Path, others: list[Any]) -> None:
    config = read(write(tmp_path, {"stores": [GEMS, *others]}), {})
    assert config.stores == {}
    assert "rename one" in " ".join(config.sentences)


@pytest.mark.parametrize(
    "text",
    [
        "stores: [{name: a, path: /a, layout: files, max_size: 100G, max_size: 1G}]",
        "stores: [{name: a, path: /a, layout: files, min_age: 7d, min_age: 1s, max_age: 9d}]",
        "stores: [{name: a, path: /a, layout: files}]\nstores: [{name: b, path: /a, layout: files}]",
        "temps: [{path: /a, older_than: 30d, older_than: 1s}]",
        "x: &x {name: a, path: /a, layout: files, max_size: 9G, max_size: 1G}\nstores: [*x]",
    ],
)
def test_what_says_two_things_is_left_alone(tmp_path: Path, text: str) -> None:
    config = read(write(tmp_path, text), {})
    assert (config.stores, config.temps) == ({}, [])
    assert "stands twice; remove one of them" in " ".join(config.sentences)


def test_a_setting_that_stands_twice_has_its_default(tmp_path: Path) -> None:
    config = read(
        write(tmp_path, "daemon: {interval: 1s, interval: 9h}\nlock_timeout: 1\nlock_timeout: 2"), {}
    )
    assert (config.interval, config.lock_timeout) == (3600, 30)


@pytest.mark.parametrize(
    "text",
    [
        "stores:\n" + "- 1\n" * 4000,
        "stores:\n" + "- {name: a, path: /a, layout: files}\n" * 1500,
        "x: " + "- " * 2000,
        "a: &a [x, x]\n"
        + "".join(f"{c}: &{c} [*{p}, *{p}, *{p}]\n" for p, c in zip("abcdefghijklmno", "bcdefghijklmnop")),
        "a: &a {x: 1}\n"
        + "".join(
            f"{c}: &{c} {{<<: [*{p}, *{p}, *{p}]}}\n" for p, c in zip("abcdefghijklmno", "bcdefghijklmnop")
        ),
        "x" * (1 << 20) + "x",
    ],
    ids=["numbers", "names", "deep", "aliases", "merges", "long"],
)
def test_a_file_that_takes_long_is_read_or_refused_in_time(tmp_path: Path, text: str) -> None:
    file = write(tmp_path, text)
    started = time.process_time()
    config = read(file, {"BESOM_MAX_SIZE": "x"})
    assert time.process_time() - started < 3
    assert config.problems
    assert all(len(sentence) < 1000 for sentence in config.sentences)


def test_how_long_an_index_may_stand_for_a_walk_is_a_duration_and_zero_is_never(tmp_path: Path) -> None:
    assert load(write(tmp_path, {}), {}).reconcile == 86400
    assert load(write(tmp_path, {"daemon": {"reconcile": "7d"}}), {}).reconcile == 7 * 86400
    assert load(write(tmp_path, {"daemon": {"reconcile": 0}}), {}).reconcile == 0
    assert load(write(tmp_path, {}), {"BESOM_RECONCILE": "90m"}).reconcile == 5400
    config = read(write(tmp_path, "daemon:\n  interval: 1h\n  reconcile: often\n"), {"BESOM_RECONCILE": "-1"})
    assert config.reconcile == 86400
    assert [(problem.line, problem.in_file) for problem in config.problems] == [(3, True), (0, False)]


@pytest.mark.parametrize(("text", "status"), [("temps: []", 0), ("temps: {}\nshops: 1", 2), ("temps: [", 2)])
def test_config_check_names_every_problem_with_its_line(tmp_path: Path, text: str, status: int) -> None:
    file = write(tmp_path, text)
    command = [sys.executable, "-m", "besom_host", "config", "check", file]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert ("valid" in done.stdout) == (status == 0)
    lines = done.stderr.splitlines()
    assert bool(lines) == bool(status)
    assert all(re.match(rf"{re.escape(file)}:\d+: ", line) for line in lines)
    listed = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=False).stdout)
    assert len(listed["problems"]) == len(lines)


def test_where_events_go_is_configured(tmp_path: Path) -> None:
    places = {"journal": True, "seq_url": "http://seq:5341", "seq_api_key_file": "/etc/besom/seq.key"}
    file = write(tmp_path, {"log": places})
    config = load(file, {})
    assert (config.log_journal, config.seq_url, config.seq_api_key_file) == tuple(places.values())
    env = {
        "BESOM_LOG_JOURNAL": "off",
        "BESOM_SEQ_URL": "https://other",
        "BESOM_SEQ_API_KEY": "k",
        "BESOM_SEQ_API_KEY_FILE": "/k",
    }
    config = load(file, env)
    assert (config.log_journal, config.seq_url, config.seq_api_key) == (False, "https://other", "k")


def test_no_message_about_a_key_shows_it(tmp_path: Path) -> None:
    file = write(tmp_path, {"log": {"seq_api_key": "hunter2", "seq_url": "https://x:hunter2@seq"}})
    config = read(file, {"BESOM_SEQ_API_KEY": "hunter2 hunter2", "BESOM_SEQ_URL": "ftp://x:hunter2@y"})
    assert len(config.problems) == 3
    assert "hunter2" not in " ".join(config.sentences)
    # In the place of another setting, or where YAML makes something else of it.
    for text in ("seq_api_key_file: hunter2", "seq_url: {key: hunter2}", "seq_url: hunter2"):
        config = read(write(tmp_path, f"log: {{{text}}}"), {})
        assert len(config.problems) == 1
        assert "hunter2" not in config.sentences[0]
    for sign in ("*", "!", "!hunter2!", "&hunter2 1\n  x: &"):
        config = read(write(tmp_path, f"log:\n  seq_api_key: {sign}hunter2"), {})
        assert "hunter2" not in " ".join(config.sentences)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
keys = st.sampled_from(
    [
        "name",
        "path",
        "layout",
        "max_size",
        "target_size",
        "max_age",
        "min_free",
        "order",
        "pattern",
        "older_than",
    ]
)
trees = st.recursive(
    leaves | st.sampled_from(["/srv/x", "files", "trees", "10G", "5%", "7d"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(keys | st.text(max_size=5), inner, max_size=6)
    ),
    max_leaves=15,
)
wild = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@wild
@given(stores=trees, temps=trees, rest=trees, timeout=leaves)
def test_any_yaml_is_read_or_refused_in_one_sentence(
    tmp_path: Path, stores: Any, temps: Any, rest: Any, timeout: Any
) -> None:
    values = {"stores": stores, "temps": temps, "mounts": rest, "lock_timeout": timeout}
    file = tmp_path / "besom.yml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    try:
        load(str(file), {})
    except UsageError as error:
        assert "\n" not in str(error)


@wild
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_sentence(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "besom.yml"
    file.write_bytes(data)
    try:
        load(str(file), {})
    except UsageError as error:
        assert "\n" not in str(error)


VARIABLES = sorted({name for _, _, variables in SETTINGS.values() for name in variables} | set(MAX_SIZE))
values = st.text(st.characters(exclude_characters="\0"), max_size=12) | st.sampled_from(
    [
        *("", " ", "0", "-1", "1e9", "99999999999999999999", "0x10", "nan", "inf", "1.5", "1d", "5%", "60"),
        *("/", "/dev/full", "/proc/1/root", "relative", "true", "clef", "http://x", "http://[", "\udcff"),
    ]
)


@settings(wild, max_examples=150)
@given(env=st.dictionaries(st.sampled_from(VARIABLES), values), section=trees)
def test_any_environment_and_any_section_leave_a_configuration_that_can_be_run(
    tmp_path: Path, env: dict[str, str], section: Any
) -> None:
    bare = {"name": "bare", "path": "/srv/bare", "layout": "files"}
    sections = dict.fromkeys(("daemon", "drain", "log", "metrics"), section)
    file = write(tmp_path, {"stores": [GEMS, bare], **sections})
    config = read(file, env)
    assert all(sentence.isprintable() for sentence in config.sentences)
    assert 1 <= config.interval < 2**34
    assert 0 <= config.drain_timeout < 2**34
    assert 0 <= config.lock_timeout < 2**34
    assert config.log_format in ("text", "json", "clef")
    assert all(not path or path.startswith("/") for path in (config.log_file, config.textfile))
    assert config.state_dir.startswith("/")
    # A store keeps its own limit; one without has the environment's, or is left alone.
    assert config.stores["gems"].policy.max_size == 10 * 2**30
    if "bare" in config.stores:
        assert {"BESOM_MAX_SIZE", "BESOM_MAX_SIZE_MB"} & set(env)
        assert 0 < (config.stores["bare"].policy.max_size or 0) < 2**63
    # The same input gives the same.
    assert read(file, env) == config
