# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The scripts for hosts: what they hand to the besom command, and what they make of its answer."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import COMMAND, need
from .host import Process

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
INSTALLED = ("prune-daemon", "cron-prune", "storage-manager", "besom-host.sh")
FIXED_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Notes how it was called, says what it is told to, and ends as it is told to.
FAKE = """#!/bin/sh
here=${0%/*}
printf '%s\\0' "$@" >"$here/arguments"
env -0 >"$here/environment"
umask >"$here/umask"
[ ! -e "$here/out" ] || cat "$here/out"
[ ! -e "$here/err" ] || cat "$here/err" >&2
[ ! -e "$here/status" ] || exit "$(cat "$here/status")"
"""


def run(
    script: str | Path, *words: str | Path, env: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("BESOM_")}
    return subprocess.run(
        [SCRIPTS / script, *words],
        env={**clean, **(env or {})},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@dataclass(frozen=True)
class Fake:
    """A besom command that does nothing but tell how it was called."""

    here: Path

    @property
    def env(self) -> dict[str, str]:
        return {"BESOM_COMMAND": str(self.here / "besom")}

    @property
    def called(self) -> bool:
        return (self.here / "arguments").exists()

    @property
    def arguments(self) -> list[str]:
        return (self.here / "arguments").read_text().split("\0")[:-1]

    @property
    def environment(self) -> dict[str, str]:
        words = (self.here / "environment").read_text().split("\0")[:-1]
        return {key: value for key, _, value in (word.partition("=") for word in words)}

    def answers(self, status: int, out: str = "", err: str = "") -> None:
        (self.here / "status").write_text(str(status))
        (self.here / "out").write_text(out)
        (self.here / "err").write_text(err)


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    here = tmp_path / "fake"
    here.mkdir()
    (here / "besom").write_text(FAKE)
    (here / "besom").chmod(0o755)
    return Fake(here)


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("start", "daemon start"),
        ("start --timeout 90s --json", "daemon start --timeout 90s --json"),
        ("--timeout=5m stop --force", "daemon stop --timeout 5m --force"),
        ("--force stop", "daemon stop --force"),
        ("--json status --config /dev/null", "daemon status --json --config /dev/null"),
        ("status --config=/dev/null", "daemon status --config /dev/null"),
        ("trigger", "daemon trigger"),
        ("trigger --start", "daemon trigger --start"),
        ("wait --timeout 0", "daemon wait --timeout 0"),
    ],
)
def test_prune_daemon_hands_its_arguments_on(fake: Fake, words: str, arguments: str) -> None:
    fake.answers(1, "out\n", "err\n")
    done = run("prune-daemon", *words.split(), env=fake.env)
    assert fake.arguments == arguments.split()
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("", "housekeep"),
        ("--strict", "housekeep"),
        ("-v --lock-timeout 0 --config /dev/null", "housekeep --verbose --lock-timeout 0 --config /dev/null"),
        ("--lock-timeout=5m --verbose", "housekeep --lock-timeout 5m --verbose"),
    ],
)
def test_cron_prune_hands_its_arguments_on(fake: Fake, words: str, arguments: str) -> None:
    assert run("cron-prune", *words.split(), env=fake.env).returncode == 0
    assert fake.arguments == arguments.split()


@pytest.mark.parametrize(
    ("words", "arguments"),
    [
        ("list gems --sort size --limit 3", "list gems --sort size --limit 3"),
        ("--config /dev/null stats", "stats --config /dev/null"),
        ("stats gems --json --config=/dev/null", "stats --config /dev/null gems --json"),
        ("purge gems a b --yes", "purge gems a b --yes"),
        ("purge gems --dry-run -- --env -h list", "purge gems --dry-run -- --env -h list"),
        ("list list", "list list"),
        ("prune-size 1G gems", "prune --max-size=1G --target-size=1G gems"),
        ("prune-size 5% ./x --layout files", "prune --max-size=5% --target-size=5% ./x --layout files"),
    ],
)
def test_storage_manager_hands_its_arguments_on(fake: Fake, words: str, arguments: str) -> None:
    fake.answers(1, "out\n", "err\n")
    done = run("storage-manager", *words.split(), env=fake.env)
    assert fake.arguments == arguments.split()
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")


def test_a_word_stays_one_word_whatever_is_in_it(fake: Fake, tmp_path: Path) -> None:
    config = tmp_path / "a b\n*$(touch ran)`touch ran`;'\".yml"
    config.touch()
    run("prune-daemon", "status", "--config", config, env=fake.env)
    assert fake.arguments == ["daemon", "status", "--config", str(config)]
    run("cron-prune", f"--config={config}", env=fake.env)
    assert fake.arguments == ["housekeep", "--config", str(config)]
    run("storage-manager", "purge", "a b", "*", "--config", config, env=fake.env)
    assert fake.arguments == ["purge", "--config", str(config), "a b", "*"]


WRONG = [
    ("prune-daemon", "", "no command; give start, stop, status, trigger or wait, or see prune-daemon --help"),
    ("prune-daemon", "begin", "begin is not a command; give start, stop, status, trigger or wait"),
    ("prune-daemon", "start stop", "start or stop? give one command"),
    ("prune-daemon", "start --quick", "--quick is not an option; see prune-daemon --help"),
    ("prune-daemon", "start -x", "-x is not an option; see prune-daemon --help"),
    ("prune-daemon", "start --force", "--force does not go with start; see prune-daemon --help"),
    ("prune-daemon", "--start wait", "--start does not go with wait; see prune-daemon --help"),
    ("prune-daemon", "--timeout 9 status", "--timeout does not go with status; see prune-daemon --help"),
    ("prune-daemon", "start --timeout", "a value for --timeout is missing; see prune-daemon --help"),
    ("cron-prune", "start", "start is not expected; cron-prune takes options only, see cron-prune --help"),
    ("cron-prune", "--force", "--force is not an option; see cron-prune --help"),
    ("cron-prune", "--lock-timeout=", "a value for --lock-timeout is missing; see cron-prune --help"),
    (
        "storage-manager",
        "",
        "no command; give list, stats, purge or prune-size, or see storage-manager --help",
    ),
    ("storage-manager", "clean", "clean is not a command; give list, stats, purge or prune-size"),
    ("storage-manager", "--yes", "--yes is not a command; give list, stats, purge or prune-size"),
    ("storage-manager", "prune-size", "a value for prune-size is missing; see storage-manager --help"),
    ("storage-manager", "prune-size --json", "a value for prune-size is missing; see storage-manager --help"),
    *(
        (script, f"{command}{words}", f"{message}".replace("SCRIPT", script))
        for script, command in (
            ("prune-daemon", "start "),
            ("cron-prune", ""),
            ("storage-manager", "list x "),
        )
        for words, message in (
            ("--config", "a value for --config is missing; see SCRIPT --help"),
            ("--config --env /dev/null", "a value for --config is missing; see SCRIPT --help"),
            ("--env", "a value for --env is missing; see SCRIPT --help"),
            ("--env=", "a value for --env is missing; see SCRIPT --help"),
            ("--config /nowhere/x.yml", "the configuration /nowhere/x.yml does not exist"),
            ("--config /etc", "the configuration /etc is a directory, not a file"),
            ("--env /nowhere/env", "the environment file /nowhere/env does not exist"),
            ("--env /etc", "the environment file /etc is a directory, not a file"),
        )
    ),
]


@pytest.mark.parametrize(("script", "words", "message"), WRONG, ids=[f"{one[0]} {one[1]}" for one in WRONG])
def test_a_wrong_call_ends_in_one_sentence_and_2(fake: Fake, script: str, words: str, message: str) -> None:
    done = run(script, *words.split(), env=fake.env)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{script}: {message}\n")
    assert not fake.called


@pytest.mark.parametrize("script", ["prune-daemon", "cron-prune", "storage-manager"])
def test_help_names_exactly_the_options_that_are_taken(fake: Fake, script: str) -> None:
    done = run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert run(script, "-h").stdout == done.stdout
    named = re.findall(r"^  (?:-\w, )?(--[\w-]+)( [A-Z]+)?  ", done.stdout, re.MULTILINE)
    taken = re.findall(r"^ +(?:-\w \| )?(--[\w-]+)\) ", (SCRIPTS / script).read_text(), re.MULTILINE)
    assert sorted(option for option, _ in named) == sorted(taken)
    for option, metavar in named:
        words = [option, "/dev/null"] if metavar else [option]
        assert "is not an option" not in run(script, *words, env=fake.env).stderr
    for command in re.findall(r"^  ([a-z]+)  ", done.stdout, re.MULTILINE):
        assert run(script, command, env=fake.env).returncode == 0
        assert fake.arguments == (["daemon", command] if script == "prune-daemon" else [command])


def test_an_environment_file_is_read_as_data(fake: Fake, tmp_path: Path) -> None:
    lines = {
        "BESOM_BARE=10 GiB": "10 GiB",
        "export BESOM_EXPORTED=a=b": "a=b",
        "  export \t BESOM_INDENTED=x": "x",
        "BESOM_SINGLE='a \"b\" # $HOME '": 'a "b" # $HOME ',
        'BESOM_DOUBLE="it\'s \\n"': "it's \\n",
        "BESOM_COMMENT=x # y": "x",
        "BESOM_QUOTED_COMMENT='x'  # y": "x",
        "BESOM_HASH=x#y": "x#y",
        "BESOM_ONLY_COMMENT=#x": "",
        "BESOM_EMPTY=": "",
        "BESOM_EMPTY_QUOTED=''": "",
        "BESOM_TRAILING=x \t ": "x",
        "BESOM_CRLF=x\r": "x",
        "BESOM_QUOTED_CRLF='x'\r": "x",
        "BESOM_RUN=$(touch ran)`touch ran`;touch ran": "$(touch ran)`touch ran`;touch ran",
        "BESOM_UNICODE='gr\u00fc\u00dfe'": "gr\u00fc\u00dfe",
        "BESOM_OVERRIDDEN=file": "file",
        "BESOM_LAST=x": "x",
    }
    others = ["", "   ", "# comment", "\t# BESOM_NOT=1", "PATH=/evil", "export IFS=x", "OTHER='un", "\r"]
    file = tmp_path / "env"
    file.write_bytes("\n".join(["\ufeff# by an editor", *others, *lines]).encode())
    done = run("prune-daemon", "status", "--env", file, env={**fake.env, "BESOM_OVERRIDDEN": "environment"})
    assert (done.returncode, done.stderr) == (0, "")
    found = {key: value for key, value in fake.environment.items() if key.startswith("BESOM_")}
    expected = {re.findall("BESOM_[A-Z_]+", line)[0]: value for line, value in lines.items()}
    assert found == {**expected, **fake.env}
    assert fake.environment["PATH"] == FIXED_PATH
    assert not {"IFS", "OTHER"} & fake.environment.keys()
    assert not list(Path.cwd().glob("ran"))


def test_an_environment_file_may_be_a_pipe(fake: Fake) -> None:
    done = run("cron-prune", "--env", "/dev/stdin", env=fake.env, stdin="BESOM_A=1\nBESOM_B=2\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert (fake.environment["BESOM_A"], fake.environment["BESOM_B"]) == ("1", "2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"BESOM_A=1\n\n# x\nBESOM_B\n", "4: not a line of the form KEY=VALUE"),
        (b"BESOM_A = 1\n", "1: not a line of the form KEY=VALUE"),
        (b"=1\n", "1: not a line of the form KEY=VALUE"),
        (b"1A=1\n", "1: not a line of the form KEY=VALUE"),
        (b"BESOM-A=1\n", "1: not a line of the form KEY=VALUE"),
        (b"touch ran\n", "1: not a line of the form KEY=VALUE"),
        (b"exportBESOM_A\n", "1: not a line of the form KEY=VALUE"),
        (b"A=1\nBESOM_A='x\nBESOM_B=y'\n", "2: the value of BESOM_A is not quoted as a whole"),
        (b'BESOM_A="x"y\n', "1: the value of BESOM_A is not quoted as a whole"),
        (b"BESOM_A=it's\n", "1: the value of BESOM_A is not quoted as a whole"),
        (b"BESOM_A=1\nBESOM_B=\0\n", "2: a NUL byte; this is not a text file"),
        (b"A=1\nBESOM_COMMAND=/x\n", "2: BESOM_COMMAND counts in the environment only, not in a file"),
    ],
)
def test_a_broken_environment_file_is_named_with_its_line(
    fake: Fake, tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "env"
    file.write_bytes(content)
    done = run("prune-daemon", "status", "--env", file, env=fake.env)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"prune-daemon: {file}:{message}\n")
    assert not fake.called


def test_an_unreadable_file_says_so(fake: Fake, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.touch(0o000)
    without = []
    if os.geteuid() == 0:
        without = [need("setpriv"), "--bounding-set=-dac_override,-dac_read_search", "--"]
    for option, what in (("--env", "environment file"), ("--config", "configuration")):
        done = subprocess.run(
            [*without, SCRIPTS / "cron-prune", option, file],
            env={**os.environ, **fake.env},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, done
        assert re.fullmatch(rf"cron-prune: the {what} {file} cannot be read by \S+\n", done.stderr), done


def test_a_fifo_or_socket_is_not_waited_for(fake: Fake, tmp_path: Path) -> None:
    fifo, end = tmp_path / "fifo", socket.socket(socket.AF_UNIX)
    os.mkfifo(fifo)
    with end:
        # A path of a socket is short, unix(7).
        here = os.open(tmp_path, os.O_RDONLY)
        end.bind(f"/proc/self/fd/{here}/socket")
        os.close(here)
        for name in ("fifo", "socket"):
            for option, what in (("--env", "environment file"), ("--config", "configuration")):
                done = run("storage-manager", "stats", option, tmp_path / name, env=fake.env)
                said = f"storage-manager: the {what} {tmp_path / name} is a FIFO or socket, not a file\n"
                assert (done.returncode, done.stderr) == (2, said)


BLANK = st.sampled_from([b"", b" ", b"\t ", b"  "])
VALUE = st.one_of(
    st.binary(max_size=12),
    st.text("ab =#'\"\\$`\t;\r\x01\x7f\u00e4\u2028", max_size=12).map(str.encode),
    st.text('ab #$`;"', max_size=8).map(lambda text: b"'" + text.encode() + b"'"),
    st.text("ab #$`;'", max_size=8).map(lambda text: b'"' + text.encode() + b'"  # why'),
)
LINE = st.one_of(
    st.binary(max_size=16),
    st.tuples(
        BLANK,
        st.sampled_from([b"", b"export ", b"export\t", b"exports "]),
        st.sampled_from([b"BESOM_A", b"BESOM_B", b"BESOM_COMMAND", b"A", b"BESOM-A", b""]),
        BLANK,
        st.sampled_from([b"=", b"=", b"=", b""]),
        VALUE,
        st.sampled_from([b"", b"\r", b" "]),
    ).map(b"".join),
)


def meant(content: bytes) -> dict[bytes, bytes] | int:
    """What a file of settings says, or the number of its first line that is wrong."""
    if b"\0" in content:
        return content[: content.index(b"\0")].count(b"\n") + 1
    found = {}
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        line = line.removesuffix(b"\r").lstrip(b" \t")
        if not line or line.startswith(b"#"):
            continue
        setting = re.fullmatch(rb"(?s)(?:export[ \t]+)?([A-Za-z_][A-Za-z0-9_]*)=(.*)", line)
        if setting is None or setting[1] == b"BESOM_COMMAND":
            return number
        if not setting[1].startswith(b"BESOM_"):
            continue
        value = setting[2]
        quoted = re.fullmatch(rb"(?s)'([^']*)'[ \t]*(?:#.*)?|\"([^\"]*)\"[ \t]*(?:#.*)?", value)
        if quoted:
            found[setting[1]] = quoted[1] if quoted[1] is not None else quoted[2]
            continue
        bare = re.split(rb"^#|[ \t]#", value, maxsplit=1)[0].rstrip(b" \t")
        if b"'" in bare or b'"' in bare:
            return number
        found[setting[1]] = bare
    return found


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(LINE, max_size=4), st.sampled_from([b"", b"\xef\xbb\xbf"]))
def test_any_environment_file_is_read_as_written_or_named_with_its_line(
    fake: Fake, lines: list[bytes], mark: bytes
) -> None:
    content = mark + b"\n".join(lines)
    file = fake.here / "env"
    file.write_bytes(content)
    (fake.here / "arguments").unlink(missing_ok=True)
    done = subprocess.run(
        [SCRIPTS / "storage-manager", "stats", "--env", file],
        env={"PATH": os.environ["PATH"], **fake.env},
        capture_output=True,
        cwd=fake.here,
        timeout=60,
        check=False,
    )
    expected = meant(content)
    if isinstance(expected, int):
        assert (done.returncode, fake.called) == (2, False)
        assert done.stderr.startswith(f"storage-manager: {file}:{expected}: ".encode()), done.stderr
        assert done.stderr.count(b"\n") == 1
    else:
        assert (done.returncode, done.stderr) == (0, b"")
        words = (fake.here / "environment").read_bytes().split(b"\0")
        found = dict(word.split(b"=", 1) for word in words if re.match(b"BESOM_[AB]=", word))
        assert found == expected
    assert {path.name for path in fake.here.iterdir()} <= {
        "arguments",
        "besom",
        "env",
        "environment",
        "umask",
    }


def test_what_comes_with_the_call_does_not_change_what_runs(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("touch $EVIL; set +e\n")
    for name in ("dirname", "readlink", "cat", "besom"):
        (tmp_path / name).write_text("#!/bin/sh\ntouch $EVIL\n")
        (tmp_path / name).chmod(0o755)
    evil = {
        "EVIL": str(tmp_path / "ran"),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "BASH_ENV": str(tmp_path / "evil"),
        "ENV": str(tmp_path / "evil"),
        "BASH_FUNC_exec%%": "() { touch $EVIL; }",
        "BASH_FUNC_readlink%%": "() { touch $EVIL; }",
        "CDPATH": str(tmp_path),
        "IFS": "/",
        "SHELLOPTS": "noexec",
    }
    for script, words in (("prune-daemon", ["status"]), ("cron-prune", []), ("storage-manager", ["stats"])):
        done = run(script, *words, env={**fake.env, **evil})
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert fake.environment["PATH"] == FIXED_PATH
        assert (fake.here / "umask").read_text() == "0022\n"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("besom", "BESOM_COMMAND: besom is not an absolute path"),
        ("/nowhere/besom", "BESOM_COMMAND: /nowhere/besom is not a program that can be run"),
        ("/etc/passwd", "BESOM_COMMAND: /etc/passwd is not a program that can be run"),
        ("/usr", "BESOM_COMMAND: /usr is not a program that can be run"),
    ],
)
def test_a_command_that_cannot_be_run_is_named(command: str, message: str) -> None:
    done = run("prune-daemon", "status", env={"BESOM_COMMAND": command})
    assert (done.returncode, done.stderr) == (2, f"prune-daemon: {message}\n")


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The scripts as they lie on a host, with links to them elsewhere."""
    bin_, links = tmp_path / "opt/bin", tmp_path / "links"
    bin_.mkdir(parents=True)
    links.mkdir()
    for name in INSTALLED:
        shutil.copy(SCRIPTS / name, bin_)
        if name != "besom-host.sh":
            (links / name).symlink_to(bin_ / name)
    return links


def test_installed_and_called_through_a_link_they_find_what_they_share(fake: Fake, installed: Path) -> None:
    for script, words in (("prune-daemon", ["stop"]), ("cron-prune", []), ("storage-manager", ["stats"])):
        done = run(installed / script, *words, env=fake.env)
        assert (done.returncode, done.stderr) == (0, "")


def test_without_besom_they_say_what_to_do(installed: Path) -> None:
    if shutil.which("besom", path=FIXED_PATH):
        pytest.skip("besom is installed on this machine")
    done = run(installed / "cron-prune")
    assert done.returncode == 2
    assert done.stderr == (
        f"cron-prune: no command besom in {FIXED_PATH}; install it, or name it with BESOM_COMMAND\n"
    )


@pytest.mark.parametrize(
    ("answer", "words", "expected"),
    [
        ((0, "", ""), "", (0, "", "")),
        ((0, "removed\n", ""), "", (0, "removed\n", "")),
        ((0, "removed\n", "warning\n"), "", (0, "removed\n", "warning\n")),
        ((75, "", "locked\n"), "", (0, "", "")),
        ((75, "removed\n", "locked\n"), "", (0, "removed\n", "")),
        ((75, "", "locked\n"), "--strict", (75, "", "")),
        ((75, "", "locked\n"), "-v", (0, "", "locked\n")),
        ((75, "", "locked\n"), "-v --strict", (75, "", "locked\n")),
        ((1, "removed\n", "failed\n"), "", (1, "removed\n", "failed\n")),
        ((2, "", "wrong\n"), "--strict", (2, "", "wrong\n")),
    ],
)
def test_cron_prune_speaks_when_there_is_something_to_tell(
    fake: Fake, answer: tuple[int, str, str], words: str, expected: tuple[int, str, str]
) -> None:
    fake.answers(*answer)
    done = run("cron-prune", *words.split(), env=fake.env)
    assert (done.returncode, done.stdout, done.stderr) == expected


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_cron_prune_ends_besom_as_well(fake: Fake, signum: signal.Signals) -> None:
    (fake.here / "besom").write_text(
        # Not one long sleep to be killed: a child that sh has just forked takes its TERM for sh's.
        "#!/bin/sh\ntrap 'echo interrupted >&2; exit 143' TERM\necho $$\nwhile :; do sleep 0.1; done\n"
    )
    with Process(
        [SCRIPTS / "cron-prune"], env={**os.environ, **fake.env}, stdout=-1, stderr=-1, text=True
    ) as script:
        assert script.stdout
        pid = int(script.stdout.readline())
        script.send_signal(signum)
        _, err = script.communicate(timeout=60)
    assert (script.returncode, err) == (143, "interrupted\n")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.root
def test_a_host_that_drains_is_left_alone_quietly(fake: Fake) -> None:
    """In a mount namespace with a /run of its own, so that nobody else's host seems to drain."""
    own_run = 'mount -t tmpfs tmpfs /run && touch /run/besom-drain && exec "$@"'
    drains = [need("unshare"), "--mount", "sh", "-c", own_run, "-", SCRIPTS / "cron-prune"]
    for words, err in (
        ([], ""),
        (["--strict"], ""),
        (["-v"], "cron-prune: this host drains (/run/besom-drain exists); nothing was done\n"),
    ):
        done = subprocess.run(
            [*drains, *words], env={**os.environ, **fake.env}, capture_output=True, text=True, check=False
        )
        if "unshare" in done.stderr or "mount:" in done.stderr:
            pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", err)
    assert not fake.called


@dataclass(frozen=True)
class Host:
    """A host with a store that may hold two entries, and its settings in an environment file."""

    here: Path

    def fill(self) -> None:
        for number in range(4):
            (self.here / "store" / str(number)).write_bytes(b"x")

    @property
    def entries(self) -> int:
        return len(list((self.here / "store").iterdir()))

    def run(self, script: str, *words: str) -> subprocess.CompletedProcess[str]:
        done = run(script, *words, "--env", self.here / "env", env={"BESOM_COMMAND": str(COMMAND)})
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    (tmp_path / "store").mkdir()
    (tmp_path / "besom.yml").write_text(
        f"stores: [{{name: store, path: {tmp_path}/store, layout: files, max_entries: 2}}]\n"
    )
    (tmp_path / "env").write_text(
        f"# of this host\nexport BESOM_CONFIG='{tmp_path}/besom.yml'\r\nBESOM_STATE_DIR={tmp_path}/state\n"
    )
    yield host
    host.run("prune-daemon", "stop", "--force", "--timeout", "0")


def test_prune_daemon_drives_a_real_daemon(host: Host) -> None:
    assert host.run("prune-daemon", "status").returncode == 1
    host.fill()
    started = host.run("prune-daemon", "start", "--json")
    assert (started.returncode, json.loads(started.stdout)["changed"]) == (0, True)
    assert host.run("prune-daemon", "wait", "--timeout", "1m").returncode == 0
    assert host.entries == 2
    host.fill()
    assert host.run("prune-daemon", "trigger").returncode == 0
    assert host.run("prune-daemon", "wait", "--timeout", "1m").returncode == 0
    assert host.entries == 2
    assert json.loads(host.run("prune-daemon", "status", "--json").stdout)["last_run"]["removed_entries"] == 2
    assert host.run("prune-daemon", "stop").returncode == 0
    assert host.run("prune-daemon", "status").returncode == 1


def test_cron_prune_says_what_it_removed_and_then_nothing(host: Host) -> None:
    host.fill()
    first, second = host.run("cron-prune"), host.run("cron-prune")
    assert (first.returncode, first.stderr, host.entries) == (0, "", 2)
    assert f"{host.here}/store" in first.stdout
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_cron_prune_leaves_the_work_to_a_daemon_that_runs(host: Host) -> None:
    assert host.run("prune-daemon", "start").returncode == 0
    assert host.run("prune-daemon", "wait").returncode == 0
    host.fill()
    quiet, strict, told = (host.run("cron-prune", *words) for words in ([], ["--strict"], ["-v"]))
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert (strict.returncode, strict.stdout, strict.stderr) == (75, "", "")
    assert (told.returncode, told.stdout) == (0, "")
    assert re.match(r"besom: .*\bpid \d+\b.*\n$", told.stderr)
    assert host.entries == 4


def test_cron_prune_mails_nothing_about_a_store_that_is_at_work(host: Host) -> None:
    host.fill()
    command = ["flock", host.here / "store", "sh", "-c", "echo held; read _"]
    with Process(command, stdin=-1, stdout=-1) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        quiet = host.run("cron-prune", "--lock-timeout", "0")
        strict = host.run("cron-prune", "--lock-timeout=0", "--strict")
        holder.communicate()
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert (strict.returncode, strict.stdout, strict.stderr) == (75, "", "")
    assert host.entries == 4
