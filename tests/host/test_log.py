# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lines of a log: nothing forges or tears them, nothing secret is in them, and they reach their place."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from besom.units import printable
from besom_host import journal, log
from besom_host.config import Config
from besom_host.secret import Secrets

from .host import PATIENCE_S, Host, Process
from .own_run import own_run
from .told import check, told

wild = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Any text, and what has forged lines elsewhere.
names = st.text(st.characters(), max_size=30) | st.sampled_from(
    ["\n{}", "\u2028", "\x85", "\x1b[2J", "\u202e", "\udcff", "{path}", "%s", '"}', "\\n", "\0", "<3>x"]
)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    yield
    log.close()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "log"


@wild
@pytest.mark.parametrize("form", ["text", "json", "clef"])
@given(path=names, reason=names)
def test_no_name_forges_or_breaks_a_line(place: Path, form: str, path: str, reason: str) -> None:
    place.unlink(missing_ok=True)
    assert log.configure(Config(log_format=form, log_file=str(place))) == []
    log.tell("anomaly", path=printable(path), reason=reason)
    data = place.read_bytes()
    assert data.count(b"\n") == 1
    (line,) = data.decode("utf-8").splitlines()
    assert line.isprintable()
    if form == "clef":
        assert check(line)["path"] == printable(path)
    elif form == "json":
        assert json.loads(line)["event"] == "anomaly"
    else:
        assert " warning: To look at: " in line


SECRETS = [
    "https://bob:{}@mirror/x",
    "redis://:{}@host:6379/0",
    "https://bob:pa/ss?{}@mirror/x",
    "https://mirror/x?sig={}",
    "https://mirror/x#{}",
    "Authorization: Bearer {}",
    "curl -H 'Authorization: Basic {}' https://mirror",
    "Cookie: id=1; session={}",
    "bearer {}",
    "API_KEY={}",
    "password: '{}'",
    "X-Seq-ApiKey: {}",
    '{{"token": "{}"}}',
    "MY_SECRET={}",
    "pass={}",
    "pwd: {}",
    "passphrase={}",
    "access_key={}",
    "pg_dump --db-password {}",
    "curl -u bob:{}",
]


@wild
@given(
    template=st.sampled_from(SECRETS),
    secret=st.text("abcdefXYZ0189-_.~+/=", min_size=8, max_size=30),
    around=st.text(max_size=10),
)
@example(SECRETS[0], "hunter2hunter2", "")
def test_what_looks_like_a_secret_is_in_no_line(place: Path, template: str, secret: str, around: str) -> None:
    place.unlink(missing_ok=True)
    log.configure(Config(log_format="json", log_file=str(place)))
    log.tell("hook_output", hook="before_prune", text=f"{around} {template.format(secret)}")
    values = json.loads(place.read_text())
    # What stands around it may by chance be the same.
    assert secret not in values["text"].replace(printable(around), "")


def test_known_values_are_hidden_wherever_they_stand(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_TOKEN", "hunter2")
    monkeypatch.setenv("BESOM_SEQ_API_KEY_FILE", "/etc/besom/key")
    log.configure(Config(log_format="clef", log_file=str(place), redis_url="redis://x:pa55word@h/0"))
    try:
        raise RuntimeError("hunter2 and pa55word")
    except RuntimeError as error:
        log.tell("run_crashed", error=repr(error))
    log.tell("work_warned", path="/x", reason="hunter2 in /etc/besom/key")
    text = place.read_text()
    assert "hunter2" not in text
    assert "pa55" not in text
    assert "in /etc/besom/key" in text
    assert "RuntimeError" in check(text.split("\n")[0])["@x"]


def test_ordinary_sentences_are_told_as_they_are() -> None:
    for text in (
        "/srv/gems is locked by pid 12 (besom prune gems), running since 2026-11-21",
        "lock_timeout: 'soon' is not a duration",
        "https://mirror/a/b.tar.gz answered 404",
        "/srv/a@b: Permission denied",
        "compass: 12 passed; besom prune --max-age 3d",
    ):
        assert (
            Secrets(environment={"HOME": "/srv", "PWD": "/srv/gems", "PASSENGER": "passed"}).hide(text)
            == text
        )


@pytest.mark.parametrize(
    "name", ["MYSQL_PWD", "SSHPASS", "DB_PASS", "RESTIC_PASSPHRASE", "GITHUB_PAT", "SIGNING_KEY"]
)
def test_values_of_the_environment_are_hidden_however_they_are_written(name: str) -> None:
    value = "ab\\cd'e\u2028f"
    secrets = Secrets(environment={name: value, "DATABASE_URL": "postgres://bob:hunter%402@db/x"})
    for form in (value, printable(value), repr(value), "hunter%402", "hunter@2"):
        assert re.fullmatch("it says ['\"]?[*]{3}['\"]?[.]", secrets.hide(f"it says {form}."))
    assert secrets.hide("it says ghp_0123456789abcdef.") == "it says ***."


@pytest.mark.parametrize("meanwhile", ["nothing", "restart", "truncated"])
def test_a_line_that_a_full_disk_has_torn_spoils_no_other(
    place: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str
) -> None:
    config = Config(log_format="clef", log_file=str(place))
    log.configure(config)
    whole = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: whole(fd, data[:10]))
        log.tell("run_began", cause="due")
    if meanwhile == "restart":
        log.configure(config)
    if meanwhile == "truncated":
        os.truncate(place, 0)
    log.tell("run_began", cause="due")
    *torn, line, end = place.read_text().split("\n")
    assert [len(part) for part in torn] == ([] if meanwhile == "truncated" else [10])
    assert check(line)["cause"] == "due"
    assert end == ""


def test_what_the_file_does_not_take_goes_to_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert log.configure(Config(log_file="/dev/full")) == []
    log.tell("run_began", cause="due")
    assert "A run begins (due)." in capfd.readouterr().err
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (refusal,) = log.configure(Config(log_file=str(fifo)))
    assert str(fifo) in refusal
    # A command of cron has nothing to say there.
    log.configure(Config(log_file="/dev/full"), once=True)
    log.tell("run_began", cause="due")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "fields", [{}, {"path": 1, "reason": object()}, {"path": float("nan"), "reason": "x", "more": [1]}]
)
def test_telling_never_raises(place: Path, fields: dict[str, Any]) -> None:
    log.configure(Config(log_format="json", log_file=str(place)))
    log.tell("anomaly", **fields)
    log.tell("no such event")
    for line in place.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def entry(data: bytes) -> dict[str, str]:
    """An entry of the journal, as journald reads it."""
    found = {}
    while data:
        line, _, data = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + size], data[8 + size :]
            assert data[:1] == b"\n"
            data = data[1:]
        found[name.decode()] = value.decode()
    return found


def test_the_journal_gets_fields(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journald:
        journald.bind("")
        monkeypatch.setattr(journal, "SOCKET", journald.getsockname())
        log.configure(Config(log_journal=True))
        log.tell("anomaly", path="/srv/x", reason="is\nodd")
        try:
            raise RuntimeError("two\nlines")
        except RuntimeError as error:
            log.tell("run_crashed", error=repr(error))
        first, second = entry(journald.recv(1 << 20)), entry(journald.recv(1 << 20))
    assert first["MESSAGE"] == "To look at: /srv/x (is\\x0aodd)."
    assert (first["PRIORITY"], first["BESOM_EVENT"], first["BESOM_PATH"]) == ("4", "anomaly", "/srv/x")
    assert len(first["MESSAGE_ID"]) == len(second["MESSAGE_ID"]) == 32
    assert first["MESSAGE_ID"] != second["MESSAGE_ID"]
    assert "two\nlines" in second["BESOM_EXCEPTION"]
    assert capfd.readouterr().err == ""
    # When journald is gone, stderr takes it.
    log.tell("run_began", cause="due")
    assert "A run begins (due)." in capfd.readouterr().err


def test_what_a_person_removes_is_told_as_well(host: Host) -> None:
    place = host.path / "besom.clef"
    host.configure(log={"format": "clef", "file": str(place)})
    host.fill(5)
    assert host.besom("prune", "gems", "--dry-run").status == 0
    assert not place.exists()
    done = host.besom("prune", "gems")
    assert (done.status, done.stderr) == (0, "")
    (line,) = told(place)
    assert (line["event"], line["removed_entries"], line["entries_after"]) == ("prune_done", 2, 3)


def test_the_status_that_anybody_may_read_shows_no_secret(host: Host) -> None:
    hook = "echo curl: password=hunter2 https://u:hunter2@h/x; false"
    gems = {"name": "gems", "path": str(host.store), "layout": "files", "max_entries": 3}
    host.env = {"GEMS_TOKEN": "hunter2", "BESOM_INTERVAL": "hunter2"}
    host.configure(stores=[{**gems, "before_prune": hook}])
    host.fill(5)
    host.start()
    now = host.daemon("status")
    assert "password=***" in " ".join(now["last_run"]["messages"])
    assert "BESOM_INTERVAL" in " ".join(now["warnings"])
    host.configure(stores=[{**gems, "layout": "hunter2"}])
    assert "layout" in host.daemon("reload").stderr
    assert "hunter2" not in (host.state_dir / "status.json").read_text()
    assert "hunter2" not in host.log


def test_hostile_text_is_searched_in_bounded_time() -> None:
    began = time.monotonic()
    for part in ("a-", "://", "--token", "-u a ", "token: '", "x://@ ", "cookie:", "bearer "):
        Secrets().hide(part * (8000 // len(part)))
    assert time.monotonic() - began < 10


JOURNALD = Path("/lib/systemd/systemd-journald")


@pytest.mark.root
@pytest.mark.skipif(not JOURNALD.exists(), reason="systemd-journald is missing")
def test_a_real_journal_finds_events_by_their_fields(host: Host) -> None:
    run = host.path / "run"
    (run / "log/journal").mkdir(parents=True)
    host.configure(log={"journal": True})
    host.fill(5)
    with own_run(run), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
        ready.bind("")
        ready.settimeout(PATIENCE_S)
        address = "@" + ready.getsockname()[1:].decode()
        with Process([JOURNALD], env={"NOTIFY_SOCKET": address}, stderr=subprocess.DEVNULL) as journald:
            while b"READY=1" not in ready.recv(4096):
                pass
            assert host.besom("housekeep").status == 0
            subprocess.run(["journalctl", "--sync"], check=True, timeout=PATIENCE_S)
            journald.terminate()
        (place,) = (run / "log/journal").iterdir()
        found = subprocess.run(
            ["journalctl", "-D", place, "-o", "json", "BESOM_EVENT=prune_done"],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        )
    (line,) = found.stdout.splitlines()
    values = json.loads(line)
    assert (values["BESOM_PATH"], values["BESOM_REMOVED_ENTRIES"]) == (str(host.store), "2")
    assert (values["PRIORITY"], values["SYSLOG_IDENTIFIER"]) == ("6", "besom")
