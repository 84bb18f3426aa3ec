# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""besom sync as a process, against a real server: what it says, signals, kills, two at once, memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest

from .conftest import COMMAND, Done, Held, need
from .mirror import Mirror, serve, stalled

CONTENT = bytes(range(256)) * 4096  # 1 MiB
PATIENCE_S = 60


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with serve() as one:
        yield one


class Scene:
    """A store, and a manifest of what is to be in it."""

    def __init__(self, path: Path, mirror: Mirror) -> None:
        self.path, self.mirror, self.store = path, mirror, path / "store"
        self.store.mkdir()
        self.artifacts: list[dict[str, Any]] = []
        self.until = threading.Event()

    def add(self, dest: str, content: bytes = CONTENT, checked: bool = True, **more: Any) -> None:
        file = self.mirror.add(f"/{dest}", content, **{"etag": f'"{dest}"', **more})
        checksum = {"checksum": file.checksum} if checked else {}
        self.artifacts.append({"url": f"{self.mirror.url}/{dest}", "dest": dest, **checksum})

    def stalling(self, dest: str, after: int = 300_000) -> None:
        self.add(dest, vices=[stalled(after, self.until)])

    def wait_for_bytes(self, process: subprocess.Popen[str], size: int) -> None:
        """Wait until that many bytes of a file have come, as its temp shows."""
        while not any(path.stat().st_size >= size for path in self.store.glob(".*.part")):
            assert process.poll() is None

    @property
    def manifest(self) -> Path:
        path = self.path / "manifest"
        path.write_text(json.dumps({"store": "./store", "artifacts": self.artifacts}))
        return path

    def start(
        self,
        *options: str,
        prefix: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        stderr: int = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*prefix, COMMAND, "--json", "sync", self.manifest, *options],
            env={**os.environ, "BESOM_CONFIG": os.devnull, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )

    def end(self, process: subprocess.Popen[str]) -> Done:
        out, err = process.communicate(timeout=PATIENCE_S)
        assert "Traceback" not in (err or ""), err
        return Done(process.returncode, json.loads(out or "{}"), err or "")

    def run(self, *options: str, environment: dict[str, str] | None = None) -> Done:
        return self.end(self.start(*options, environment=environment))

    @property
    def files(self) -> list[str]:
        return sorted(os.listdir(self.store))


@pytest.fixture
def scene(tmp_path: Path, mirror: Mirror) -> Iterator[Scene]:
    one = Scene(tmp_path, mirror)
    yield one
    one.until.set()


def paths(items: list[dict[str, Any]]) -> list[str]:
    return sorted(item["path"] for item in items)


def text(scene: Scene, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "sync", scene.manifest, *options],
        env={**os.environ, "BESOM_CONFIG": os.devnull},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def test_a_line_for_each_that_is_through_and_none_when_nothing_is(scene: Scene) -> None:
    scene.add("one")
    scene.add("two")
    assert text(scene, "--dry-run").stdout.splitlines() == [
        "Would fetch:",
        "  one (absent)",
        "  two (absent)",
        "Would fetch 2 files (2.0 MiB); 0 unchanged.",
    ]
    lines = text(scene).stdout.splitlines()
    # One may be on the disk before the other, whichever was asked for first.
    assert sorted(lines[:2]) == ["Fetched one (1.0 MiB).", "Fetched two (1.0 MiB)."]
    assert lines[2:] == ["Fetched 2 files (2.0 MiB); 0 unchanged."]
    again = text(scene)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_a_reader_that_goes_away_does_not_end_the_transfers(scene: Scene) -> None:
    for number in range(20):
        scene.add(str(number), CONTENT[:1000])
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [COMMAND, "sync", scene.manifest],
        env={**os.environ, "BESOM_CONFIG": os.devnull},
        stdin=subprocess.DEVNULL,
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=PATIENCE_S,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")
    assert scene.files == sorted(str(number) for number in range(20))


def on_a_terminal(scene: Scene, *words: str, each: Callable[[bytes], None]) -> tuple[int, str, bytes]:
    """Exit status, last line and what a terminal got; each is called with that as often as there is more."""
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [COMMAND, "sync", scene.manifest, *words],
        env={**os.environ, "BESOM_CONFIG": os.devnull, "TERM": "xterm", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal of a process that has ended
        while chunk := os.read(ours, 4096):
            seen += chunk
            each(seen)
    os.close(ours)
    out, _ = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out.splitlines()[-1], seen


def test_on_a_terminal_there_is_a_bar_for_each_and_one_for_all(scene: Scene) -> None:
    scene.stalling("one")
    scene.add("two")

    def each(seen: bytes) -> None:
        if b"In all" in seen and b"one" in seen and b"0.3/1.0 MiB" in seen:
            scene.until.set()

    status, last, seen = on_a_terminal(scene, each=each)
    assert scene.until.is_set(), seen
    assert (status, last) == (0, "Fetched 2 files (2.0 MiB); 0 unchanged.")


def test_a_terminal_shows_how_long_a_lock_is_waited_for_and_that_it_was_got(
    scene: Scene, hold: Callable[[Path], Held]
) -> None:
    scene.add("one")
    held = hold(scene.store)

    def each(seen: bytes) -> None:
        if re.search(rb"In all, wait for the lock \d+/61", seen):
            held.release()

    status, last, seen = on_a_terminal(scene, "--lock-timeout", "61s", each=each)
    assert (status, last) == (0, "Fetched 1 file (1.0 MiB); 0 unchanged."), seen
    assert seen.startswith(f"besom: Waiting for {scene.store}, locked by pid {held.pid} (".encode())
    assert seen.count(f"besom: Got the lock of {scene.store} after ".encode()) == 1


def test_what_fails_is_named_and_the_status_is_1(scene: Scene) -> None:
    scene.add("one")
    del scene.mirror.files["/one"]
    done = text(scene)
    assert done.returncode == 1
    assert done.stderr == (
        f"besom: warning: The size of {scene.mirror.url}/one is unknown, so its space is not checked.\n"
        f"besom: one failed: {scene.mirror.url}/one cannot be fetched: the server answers 404.\n"
    )


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("{", "line 1: not valid YAML or JSON"),
        ("a: [", "line 1: not valid YAML or JSON"),
        ("[]", "must be a mapping with the keys store, artifacts"),
        ("store: ./x", "artifacts: must be a list"),
        ("{store: ./x, artifacts: [{url: 'ftp://x/y', dest: y}]}", "y: url: ftp://x/y is not an http"),
        ("{store: ./x, artifacts: [{url: 'http://x/y', dest: y, sum: z}]}", "unknown key sum"),
        ("{store: gems, artifacts: []}", "No store is named gems"),
        ("{store: ./none, artifacts: []}", "/none does not exist; create it"),
        ("{store: /usr, artifacts: []}", "/usr is refused"),
    ],
)
def test_a_manifest_that_is_wrong_is_a_usage_error(tmp_path: Path, manifest: str, message: str) -> None:
    file = tmp_path / "manifest"
    file.write_text(manifest)
    environment = {**os.environ, "BESOM_CONFIG": os.devnull}
    done = subprocess.run(
        [COMMAND, "sync", file], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_store_may_be_named_and_the_manifest_yaml(scene: Scene) -> None:
    scene.add("one")
    config = scene.path / "besom.yml"
    config.write_text(f"stores: [{{name: files, path: {scene.store}, layout: files, max_age: 1d}}]\n")
    manifest = scene.path / "manifest.yml"
    (one,) = scene.artifacts
    manifest.write_text(f"store: files\nartifacts:\n- url: {one['url']}\n  dest: one\n  mode: '0600'\n")
    subprocess.run([COMMAND, "sync", manifest, "--config", config], check=True, timeout=PATIENCE_S)
    assert (scene.store / "one").stat().st_mode & 0o777 == 0o600


def test_one_signal_lets_what_is_in_flight_come_to_its_end(scene: Scene) -> None:
    # Either may be the first to have the one place at the mirror.
    scene.stalling("one")
    scene.stalling("two")
    ours, theirs = os.openpty()
    process = scene.start("--parallel", "1", stderr=theirs)
    os.close(theirs)
    first, other = scene.mirror.first_of("/one", "/two")
    # Who has asked, and has no answer yet, is not waited for.
    scene.wait_for_bytes(process, 1)
    process.send_signal(signal.SIGINT)
    seen = b""
    with contextlib.suppress(OSError):  # the terminal of a process that has ended
        while chunk := os.read(ours, 4096):
            seen += chunk
            if b"a second signal cuts it" in seen:
                scene.until.set()
    os.close(ours)
    done = scene.end(process)
    assert done.status == 130
    assert b"Interrupted. SIGINT came" in seen
    assert done.report["interrupted"] is True
    assert paths(done.report["fetched"]) == scene.files == [first]
    assert paths(done.report["not_done"]) == [other]


def test_a_second_signal_cuts_it_and_leaves_no_temp(scene: Scene) -> None:
    scene.stalling("one")
    scene.add("two")
    process = scene.start("--parallel", "1")
    scene.mirror.wait_for("/one")
    # Two of a kind that come at once are one to Python, and of two kinds it takes the smaller first.
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    done = scene.end(process)
    assert done.status in (130, 143)
    assert paths(done.report["not_done"]) == ["one", "two"]
    assert scene.files == []


def test_two_processes_fetch_one_file_once(scene: Scene) -> None:
    scene.stalling("one")
    first = scene.start()
    scene.mirror.wait_for("/one")
    impatient = scene.run("--lock-timeout", "0")
    assert impatient.status == 75
    assert f"store/one is being refreshed by pid {first.pid} (" in impatient.stderr
    second = scene.start()
    # It has asked how large it is: now it waits, or has not begun to; both come to the same.
    scene.mirror.wait_for("/one", 3, "HEAD")
    scene.until.set()
    assert scene.end(first).report["fetched_total"] == 1
    assert scene.end(second).report["unchanged_total"] == 1
    assert len(scene.mirror.of("/one")) == 1


@contextlib.contextmanager
def at(scene: Scene, dest: str, size: int) -> Iterator[subprocess.Popen[str]]:
    """A sync that has got so many bytes of dest, and waits for the rest."""
    process = scene.start()
    scene.mirror.wait_for(f"/{dest}")
    scene.wait_for_bytes(process, size)
    yield process
    scene.end(process)


def test_what_a_killed_sync_left_is_gone_on_from(scene: Scene) -> None:
    scene.stalling("one")
    (scene.store / "one").write_bytes(b"old")
    with at(scene, "one", 300_000) as process:
        process.kill()
    assert (scene.store / "one").read_bytes() == b"old"
    assert len(scene.files) == 2
    resumable = "user.besom.origin" in os.listxattr(next(scene.store.glob(".*.part")))
    done = scene.run()
    assert done.status == 0
    assert (scene.store / "one").read_bytes() == CONTENT
    assert scene.files == ["one"]
    if resumable:
        assert scene.mirror.of("/one")[-1].range == "bytes=300000-"
        assert done.report["fetched_bytes"] == len(CONTENT) - 300_000


@pytest.mark.parametrize(
    ("call", "when"),
    [("ftruncate", 1), ("fchmod", 1), ("fsync", 1), ("fsync", 2), ("rename,renameat,renameat2", 1)],
)
def test_killed_at_any_step_the_old_file_or_the_new_one_is_there(scene: Scene, call: str, when: int) -> None:
    """Before each system call that changes the store, but for the writes, which the test above stands for."""
    scene.add("one")
    (scene.store / "one").write_bytes(b"old")
    inject = ["-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}"]
    process = scene.start(prefix=(need("strace"), "-f", "-qq", "-o", os.devnull, *inject))
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
    published = call == "fsync" and when == 2
    assert (scene.store / "one").read_bytes() == (CONTENT if published else b"old")
    assert scene.run().status == 0
    assert (scene.store / "one").read_bytes() == CONTENT
    assert scene.files == ["one"]


def test_a_certificate_that_nobody_vouches_for_is_refused_at_once(scene: Scene) -> None:
    key, certificate = scene.path / "key", scene.path / "certificate"
    request = [need("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=mirror"]
    request += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(request, check=True, capture_output=True)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with serve(tls) as scene.mirror:
        scene.add("one")
        done = scene.run()
        assert done.status == 1
        assert "its certificate is not trusted" in done.stderr
        assert done.report["retries"]["requests"] == 0
        assert scene.files == []
        assert scene.run(environment={"SSL_CERT_FILE": str(certificate)}).status == 0
        assert (scene.store / "one").read_bytes() == CONTENT


def test_a_proxy_of_the_environment_is_asked(scene: Scene) -> None:
    url = "http://mirror.invalid/one"
    scene.mirror.add(url, CONTENT)
    scene.artifacts.append({"url": url, "dest": "one"})
    assert scene.run(environment={"http_proxy": scene.mirror.url, "no_proxy": ""}).status == 0
    assert scene.mirror.of(url)
    assert scene.files == ["one"]


def test_memory_does_not_grow_with_the_size_of_files(scene: Scene) -> None:
    peaks = []
    for dest, size in (("small", 1), ("large", 64)):
        scene.artifacts.clear()
        scene.until.clear()
        content = CONTENT * size
        scene.add(dest, content, checked=False, vices=[stalled(len(content) - 1, scene.until)])
        with at(scene, dest, len(content) - 1) as process:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peaks.append(next(int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line))
            scene.until.set()
    assert peaks[1] - peaks[0] < 16 * 1024, f"from {peaks[0]} to {peaks[1]} KiB"
