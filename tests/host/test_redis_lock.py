# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Stores that several machines share, on a real Redis that is killed and comes back."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import portalocker
import pytest
import redis
from inotify_simple import INotify, flags

from besom.redis_lock import RedisLock, redis_locks

from .conftest import need
from .host import BESOM, DAY, PATIENCE_S, Host
from .mirror import serve

TREES, FILES = 300, 3


class Server:
    """A Redis on a socket of its own."""

    def __init__(self, directory: str) -> None:
        self.socket = f"{directory}/redis.sock"
        self.url = f"unix://{self.socket}?db=0"
        self._directory = directory
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", self.socket, "--save", "", "--dir", self._directory]
        self._process = subprocess.Popen(
            [need("redis-server"), *options], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout
        assert any("eady to accept connections" in line for line in self._process.stdout)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate(timeout=PATIENCE_S)


@pytest.fixture
def server() -> Iterator[Server]:
    # The path of a socket has to be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        one = Server(directory)
        try:
            one.start()
            yield one
        finally:
            one.kill()


@pytest.fixture
def host(host: Host, server: Server) -> Host:
    """A host whose one store, of trees, is shared with other machines."""
    store = {"name": "shared", "path": str(host.store), "layout": "trees", "max_age": "1d"}
    host.configure(stores=[{**store, "lock_backend": "redis"}], redis_url=server.url)
    return host


@pytest.fixture
def elsewhere(host: Host, server: Server) -> Iterator[RedisLock]:
    """The lock as another machine has it: no flock of this one is in the way."""
    lock = redis_locks(server.url, redis, portalocker)(str(host.store))
    yield lock
    lock.release()


def fill(store: Path, trees: int) -> None:
    for number in range(trees):
        tree = store / f"tree{number:04}"
        tree.mkdir()
        for name in range(FILES):
            (tree / str(name)).write_bytes(b"x")
            os.utime(tree / str(name), (DAY, DAY))
        os.utime(tree, (DAY, DAY))


def test_a_store_that_another_machine_holds_is_left_alone(host: Host, elsewhere: RedisLock) -> None:
    fill(host.store, 1)
    assert host.besom("lock", "status", "shared")["shared"] == {
        "name": str(host.store),
        "state": "free",
        "holder": None,
    }
    assert elsewhere.attempt()
    for word in ("shared", host.store, f"{host.store}/"):
        refused = host.besom("prune", word, "--lock-timeout", "0", "--layout", "trees", "--max-age", "1d")
        assert refused.status == 75
        assert f"is locked by pid {os.getpid()} (" in refused.stderr
    manifest = host.path / "manifest.json"
    with serve() as mirror:
        mirror.add("/file", b"x")
        file = {"url": f"{mirror.url}/file", "dest": "file"}
        manifest.write_text(json.dumps({"store": f"{host.store}/", "artifacts": [file]}))
        for words in (
            ("sync", manifest),
            ("install", "--absent", "--replace", "--into", f"{host.store}/", "--name", "tree0000"),
        ):
            refused = host.besom(*words, "--lock-timeout", "0")
            assert refused.status == 75, refused.stderr
    assert host.names() == ["tree0000"]
    found = host.besom("lock", "status", f"{host.store}/")
    assert (found["state"], found["shared"]["state"]) == ("free", "held")
    assert found["shared"]["holder"]["pid"] == os.getpid()
    elsewhere.release()
    assert host.besom("prune", "shared")["removed"]["entries"] == 1


def test_who_waits_goes_on_once_it_is_released_and_the_other_machine_is_kept_out(
    host: Host, server: Server, elsewhere: RedisLock
) -> None:
    fill(host.store, 1)
    seen = host.path / "seen"
    os.mkfifo(seen)
    store = {"name": "shared", "path": str(host.store), "layout": "trees", "max_age": "1d"}
    hook = f"echo > {seen}; read line < {seen}"
    host.configure(stores=[{**store, "lock_backend": "redis", "before_prune": hook}], redis_url=server.url)
    assert elsewhere.attempt()
    prune = host.popen("prune", "shared")
    elsewhere.release()
    with seen.open() as stream:
        assert stream.read() == "\n"  # in the hook, hence under the lock
    assert not elsewhere.attempt()
    seen.write_text("go on\n")
    assert prune.wait(PATIENCE_S) == 0
    assert elsewhere.attempt()


def test_a_redis_that_is_killed_half_way_ends_work_between_two_entries(host: Host, server: Server) -> None:
    fill(host.store, TREES)
    # 20 ms for each tree: what Redis' end has to overtake.
    slow = ["-f", "-o", os.devnull, "-e", "trace=renameat,renameat2", "-e", "inject=all:delay_enter=20000"]
    command = [need("strace"), *slow, *BESOM, "--config", str(host.file), "prune", "shared", "--json"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with INotify() as news:
        news.add_watch(host.store, flags.DELETE)
        process = subprocess.Popen(command, env=host.environment(), **options)  # type: ignore[call-overload]
        assert news.read(timeout=int(PATIENCE_S * 1000)), "nothing was removed"
        server.kill()
        output, said = process.communicate(timeout=PATIENCE_S)
    report = json.loads(output)
    assert process.returncode == 1, said
    assert "Traceback" not in said
    assert "Interrupted" not in said
    assert said.startswith(f"besom: {host.store} lost its lock (the connection to Redis at unix://")
    assert 0 < report["removed"]["entries"] < TREES
    assert not report["interrupted"]
    left = list(host.store.iterdir())
    assert len(left) == TREES - report["removed"]["entries"]
    assert {len(list(tree.iterdir())) for tree in left} == {FILES}

    away = host.besom("prune", "shared")
    assert away.status == 1
    assert "cannot be locked: Redis at unix://" in away.stderr
    assert len(list(host.store.iterdir())) == len(left)
    server.start()
    assert host.besom("prune", "shared").status == 0
    assert list(host.store.iterdir()) == []


def kill_redis_in(host: Host, server: Server, words: Sequence[object], event: int) -> Any:
    """Run a command whose renames are slow, and kill Redis at the third such event in the store.

    Returns its report; it has lost its lock, or gets it no more, and ends with 1, not as by a signal.
    """
    slow = ["-f", "-o", os.devnull, "-e", "trace=rename,renameat,renameat2", "-e"]
    command = [need("strace"), *slow, "inject=all:delay_enter=50000", *host.command(*words), "--json"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with INotify() as news:
        news.add_watch(host.store, event)
        process = subprocess.Popen(command, env=host.environment(), **options)  # type: ignore[call-overload]
        seen = 0
        while seen < 3:
            events = news.read(timeout=int(PATIENCE_S * 1000))
            assert events
            seen += sum(not one.name.startswith((".app.", ".temp-")) for one in events)
        server.kill()
        output, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, said
    for word in ("Traceback", "Interrupted"):
        assert word not in said
    ways = ("lost its lock (the connection to Redis at unix://", "cannot be locked: Redis at unix://")
    assert any(f"{host.store} {way}" in output for way in ways), output
    report = json.loads(output)
    assert not report["interrupted"]
    return report


def test_a_sync_whose_redis_is_killed_publishes_nothing_more(host: Host, server: Server) -> None:
    content = {f"{number}": os.urandom(5000) for number in range(60)}
    manifest = host.path / "manifest.json"
    with serve() as mirror:
        artifacts = [
            {"url": f"{mirror.url}/{name}", "dest": name, "checksum": mirror.add(f"/{name}", data).checksum}
            for name, data in content.items()
        ]
        manifest.write_text(json.dumps({"store": "shared", "artifacts": artifacts}))
        words = ("sync", manifest, "--parallel", "16")
        report = kill_redis_in(host, server, words, flags.MOVED_TO)
        there = host.names()
        # What had its name when the lock was lost has been brought to the disk, and is told of.
        assert report["fetched_total"] == len(there) < len(content)
        assert there
        assert report["fetched_total"] + report["failures_total"] + report["not_done_total"] == len(content)
        for name in there:
            assert (host.store / name).read_bytes() == content[name]
        server.start()
        assert host.besom("sync", manifest).status == 0
    assert host.names() == sorted(content)


def test_an_install_whose_redis_is_killed_leaves_whole_trees(host: Host, server: Server) -> None:
    for number in range(40):
        old = host.store / f".besom-old-app-20200101T0000{number:02}.000000"
        old.mkdir()
        for name in range(FILES):
            (old / str(name)).write_bytes(b"x")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.addfile(tarfile.TarInfo("file"))
    with serve() as mirror:
        file = mirror.add("/app.tgz", stream.getvalue())
        place = ("--into", host.store, "--name", "app", "--checksum", file.checksum)
        words = ("install", f"{mirror.url}/app.tgz", *place)
        report = kill_redis_in(host, server, words, flags.DELETE)
        assert report["action"] == "installed"
        assert 0 < report["removed"]["entries"] < 40
        old_ones = [path for path in host.store.iterdir() if path.name != "app"]
        assert len(old_ones) == 40 - report["removed"]["entries"]
        assert {len(list(path.iterdir())) for path in old_ones} == {FILES}
        server.start()
        assert host.besom(*words).status == 0
    assert host.names() == ["app"]


def test_a_daemon_whose_redis_is_away_says_so_and_lives_on(host: Host, server: Server) -> None:
    fill(host.store, 1)
    server.kill()
    host.start()
    last = host.daemon("status")["last_run"]
    assert last["outcome"] == "failed"
    assert "cannot be locked: Redis at" in last["messages"][0]
    server.start()
    host.daemon("trigger")
    assert host.daemon("wait", "--timeout", "60s").status == 0
    assert host.daemon("status")["last_run"]["outcome"] == "done"
    assert list(host.store.iterdir()) == []


@pytest.mark.parametrize("words", ["daemon status", "daemon trigger", "info"])
def test_who_takes_no_shared_lock_waits_for_no_redis(host: Host, words: str) -> None:
    host.configure()
    command = [BESOM[0], "-X", "importtime", *host.command(*words.split())[1:]]
    done = subprocess.run(command, env=host.environment(), capture_output=True, text=True, check=False)
    assert "besom_host.cli" in done.stderr
    assert not {"redis", "portalocker"} & set(re.findall(r"\w+", done.stderr))


def test_no_secret_of_a_url_is_ever_shown(host: Host) -> None:
    host.configure(redis_url="redis://:sesame@127.0.0.1:1/0")
    host.env["BESOM_REDIS_URL"] = "http://:sesame@host"
    warned = host.besom("config", "check")
    assert warned.status == 2
    assert "BESOM_REDIS_URL: that is not a URL of Redis" in warned.stderr
    assert "redis://127.0.0.1:1/0 is in force" in warned.stderr
    assert "sesame" not in warned.stderr + json.dumps(warned.values)


def test_a_store_without_the_url_of_its_redis_is_left_alone(host: Host) -> None:
    store = {"name": "shared", "path": str(host.store), "layout": "trees", "max_age": "1d"}
    host.configure(stores=[{**store, "lock_backend": "redis"}])
    for words in (("prune", "shared"), ("prune", "shared", "--dry-run"), ("config", "check")):
        refused = host.besom(*words)
        assert refused.status == 2
        assert "stores: shared: lock_backend: redis needs redis_url, or" in refused.stderr


def test_a_redis_that_is_silent_is_given_up_soon_and_a_signal_is_heard(host: Host) -> None:
    fill(host.store, 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host.env["BESOM_REDIS_URL"] = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        began = time.monotonic()
        away = host.besom("prune", "shared")
        assert away.status == 1
        assert "cannot be locked: Redis at redis://127.0.0.1" in away.stderr
        assert time.monotonic() - began < 10  # it was 15
        prune = host.popen("prune", "shared")
        silent.accept()[0].close()  # that of the one before
        with silent.accept()[0]:
            prune.terminate()
            assert prune.wait(PATIENCE_S) == 143
