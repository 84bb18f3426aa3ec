"""The command line: what it accepts, and what becomes of errors. What each command does is in commands.py."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any, Callable, NoReturn

from besom import __version__
from besom.errors import BesomError
from besom.policy import IO_CLASSES, LAYOUTS, ORDERS, SORTS
from besom.shutdown import Shutdown

SIZES = "Sizes: 500, 500B, 10K, 1.5GiB (K = KB = KiB = 1024). Durations: 90, 90s, 15m, 24h, 7d, 2w."
STATUSES = (
    "Exit status: 0 done, or nothing to do; 1 failed, in whole or for some entries; 2 usage, configuration, "
    "or a path that is missing or refused; 3 not enough space; 75 lock held past its timeout; "
    "129 / 130 / 143 interrupted by SIGHUP / SIGINT / SIGTERM."
)


# Where a command is that has a file of its own.
_OWN_ROOM = (
    *("config", "daemon", "drain", "housekeep", "install", "list"),
    *("lock", "purge", "stats", "sync", "unmount"),
)
_ROOMS = {name: f"{name}_command" for name in _OWN_ROOM}


Accept = Callable[["Parser"], None]


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and where to read on; made when something is asked of it.

    Of all the commands that there are one is asked for, and to make all of their parsers takes longer than
    most commands. accept: adds what a parser accepts.
    """

    _mixing = False

    def __init__(self, accept: Accept, **settings: Any) -> None:
        self._later = (accept, settings)

    def __getattr__(self, name: str) -> Any:
        """Of what argparse sets there is nothing yet."""
        if "_later" not in vars(self):
            raise AttributeError(name)
        accept, settings = vars(self).pop("_later")
        super().__init__(**settings)
        accept(self)
        return getattr(self, name)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Options may stand between the words of a list, as in `purge STORE --yes ID`; not so where there
        # are commands to come.
        commands = any(action.nargs == argparse.PARSER for action in self._actions)
        if self._mixing or commands:
            return super().parse_known_args(args, namespace)
        # A word after -- is none of the options, whatever it begins with; no argument can hold a NUL.
        end = args.index("--") if "--" in args else len(args)
        args = [*args[:end], *(f"\0{word}" for word in args[end + 1 :])]
        self._mixing = True
        try:
            found, rest = self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False
        for name, value in vars(found).items():
            if isinstance(value, list):
                setattr(found, name, [word.lstrip("\0") for word in value])
            elif isinstance(value, str):
                setattr(found, name, value.lstrip("\0"))
        return found, [word.lstrip("\0") for word in rest]


# What a parser of one command accepts, and what is said of it, by the command's words.
_COMMANDS: dict[str, tuple[str, str, Accept]] = {}


def _command(name: str, help_: str, description: str = "") -> Callable[[Accept], Accept]:
    """Enter what is decorated, which says what a command accepts, among the commands."""

    def enter(accept: Accept) -> Accept:
        def accept_all(parser: Parser) -> None:
            # Absent here means: keep what was given before the command.
            _common(parser, default=argparse.SUPPRESS)
            accept(parser)

        _COMMANDS[name] = (help_, description or help_, accept_all)
        return accept

    return enter


def _commands(parser: Parser, dest: str, before: str = "") -> None:
    """Let parser take any command that has these words before one of its own, which comes to be dest."""
    commands = parser.add_subparsers(
        prog=parser.prog, dest=dest, metavar=dest.upper(), parser_class=Parser, required=bool(before)
    )
    epilog = STATUSES if before else f"{SIZES} {STATUSES}"
    for name, (help_, description, accept) in _COMMANDS.items():
        first, _, word = name.rpartition(" ")
        if first == before:
            commands.add_parser(word, help=help_, description=description, epilog=epilog, accept=accept)


def _common(parser: Parser, **absent: Any) -> None:
    """The options that are accepted before and after the command."""
    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--config", metavar="FILE", help="configuration instead of /etc/besom/besom.yml", **absent
    )
    group.add_argument("--json", action="store_true", help="print the report as one JSON object", **absent)
    group.add_argument(
        "--lock-timeout",
        metavar="DUR",
        help="how long to wait for another writer (default 30s, 0 = not at all)",
        **absent,
    )
    group.add_argument("--no-color", action="store_true", help="no colors in the progress bar", **absent)
    group.add_argument(
        *("-v", "--verbose"),
        action="store_true",
        help="name each thing that goes, and say when nothing does",
        **absent,
    )


def _policy(parser: Parser) -> None:
    group = parser.add_argument_group("limits")
    group.add_argument("--max-size", metavar="SIZE", help="prune when the store is larger than this")
    group.add_argument("--target-size", metavar="SIZE", help="prune down to this (default: max-size)")
    group.add_argument("--max-age", metavar="DUR", help="entries older than this go")
    group.add_argument("--min-free", metavar="SIZE|PCT", help="what the file system is to have available")
    group.add_argument("--max-entries", metavar="N", help="how many entries may stay")
    group.add_argument("--min-age", metavar="DUR", help="younger entries never go")
    group.add_argument(
        "--order",
        choices=ORDERS,
        help="by mtime (default), last use, or created_at (default of sessions)",
    )


def _removal(parser: Parser) -> None:
    group = parser.add_argument_group("how hard to press the host")
    group.add_argument(
        "--workers",
        metavar="N|auto",
        help="read or remove at most N entries at a time (auto: as many as pay)",
    )
    group.add_argument("--max-rate", metavar="N", help="remove at most N entries in a second")
    group.add_argument("--io-class", choices=IO_CLASSES, help="behind whose I/O (default: nobody's)")


def _store(parser: Parser, *, several: bool = False) -> None:
    """STORE|PATH, and what says how a PATH is to be read."""
    if several:
        parser.add_argument(
            "stores", metavar="STORE|PATH", nargs="*", help="instead of all that are configured"
        )
    else:
        parser.add_argument(
            "store", metavar="STORE|PATH", help="a configured store, or a directory (with a slash)"
        )
    parser.add_argument("--layout", choices=LAYOUTS, help="what an entry is; a PATH needs it")
    parser.add_argument("--group-key", metavar="KEY", help="what names a session's group (default group)")


@_command(
    "preflight",
    "is there room for what is about to be written?",
    "Compare needs, summed per file system, with what is available. Changes nothing.",
)
def _preflight(parser: Parser) -> None:
    parser.add_argument(
        "paths", metavar="PATH[=SIZE]", nargs="+", help="where, and how much, will be written"
    )
    parser.add_argument("--require", metavar="SIZE", help="the size for each PATH without one of its own")
    parser.add_argument("--inodes", metavar="N", help="inodes needed, for each PATH")
    parser.add_argument(
        "--url",
        metavar="URL",
        action="append",
        default=[],
        help="an artifact that will be fetched to the first PATH",
    )
    parser.add_argument(
        "--expand", metavar="N", default="3", help="a URL needs N times its download in addition (default 3)"
    )
    parser.add_argument("--reserve", metavar="SIZE|PCT", help="what is to stay free besides")


@_command(
    "sweep",
    "remove stale temps",
    "Remove what is directly in PATH, matches a pattern, is old, and is not held with flock.",
)
def _sweep(parser: Parser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a temp area")
    parser.add_argument(
        "--pattern", metavar="GLOB", action="append", help="names of temps (default .temp-*); can be repeated"
    )
    parser.add_argument("--older-than", metavar="DUR", help="how old a stale temp is (default 24h)")
    parser.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")


@_command(
    "prune",
    "bring a store under its limits, oldest first",
    "Remove the oldest entries of a store until it is under every limit, and not one more.",
)
def _prune(parser: Parser) -> None:
    _store(parser)
    _policy(parser)
    _removal(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")


@_command(
    "clean",
    "clean every configured store and temp area",
    "Remove stale temps and besom's own orphaned downloads; with --all empty the stores as well.",
)
def _clean(parser: Parser) -> None:
    parser.add_argument("stores", metavar="STORE", nargs="*", help="these stores only, and no temp area")
    parser.add_argument("--all", action="store_true", help="empty the stores; asks first, unless --yes")
    _removal(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")


@_command(
    "sync",
    "fetch the artifacts of a manifest into a store",
    "Fetch what is missing or has changed, several at a time, verified before it is published. "
    "MANIFEST is YAML or JSON: store, and artifacts with url, dest (relative to the store), and where "
    "wanted checksum (sha256:...), headers, owner, group, mode.",
)
def _sync(parser: Parser) -> None:
    parser.add_argument("manifest", metavar="MANIFEST", help="a file")
    parser.add_argument("--parallel", metavar="N", default="4", help="transfers at a time (default 4)")
    parser.add_argument(
        "--timeout", metavar="DUR", default="10s", help="for a server that is silent (default 10s)"
    )
    parser.add_argument("--reserve", metavar="SIZE|PCT", help="what is to stay free besides")
    parser.add_argument("--full-check", action="store_true", help="read what is there already to verify it")
    parser.add_argument(
        "--allow-weak-checksum", action="store_true", help="accept md5 and sha1, which can be forged"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be fetched, and change nothing"
    )


@_command(
    "unmount",
    "unmount gracefully, or say who holds the mount",
    "Unmount each PATH, trying again while it is busy; absent mounts are done already. "
    "Ends with 0 also when a mount was detached because --lazy allows it, and names its holders.",
)
def _unmount(parser: Parser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", help="a mount point")
    parser.add_argument(
        "--timeout", metavar="DUR", default="30s", help="how long to try in all (default 30s, 0 = once)"
    )
    parser.add_argument("--lazy", action="store_true", help="then detach what is still busy")
    parser.add_argument(
        "--recursive", action="store_true", help="with all that is mounted below, deepest first"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")


@_command(
    "install",
    "make a directory of an archive from the web, in one step",
    "Fetch an archive (tar plain, gz, bz2, xz or zst; zip), extract it beside its place, and put it "
    "there in one step. Unchanged where it is there already. Hostile archives are refused whole.",
)
def _install(parser: Parser) -> None:
    parser.add_argument("url", metavar="URL", nargs="?", help="http or https; a login may be part of it")
    parser.add_argument("--into", metavar="DIR", required=True, help="the directory that it comes into")
    parser.add_argument("--name", metavar="NAME", required=True, help="its name there")
    parser.add_argument(
        "--checksum", metavar="C", help="of the archive, as sha256:HEX; then no server is asked twice"
    )
    parser.add_argument(
        "--store",
        metavar="STORE|PATH",
        help="keep the archive there, and take it from there; needs --checksum",
    )
    parser.add_argument("--keep", metavar="N", default="0", help="old versions that stay (default 0)")
    parser.add_argument("--owner", metavar="NAME", help="who is to have all of the tree")
    parser.add_argument("--group", metavar="NAME", help="the group that is to have all of the tree")
    parser.add_argument("--mode", metavar="OCTAL", help="of the directory itself (default 0755)")
    parser.add_argument("--current", metavar="LINK", help="a symlink beside it that is to lead to it")
    parser.add_argument(
        "--strip", action="store_true", help="leave out the one directory that the archive has"
    )
    parser.add_argument("--replace", action="store_true", help="also what besom has not installed")
    parser.add_argument("--absent", action="store_true", help="remove it, its old versions, and LINK")
    parser.add_argument(
        "--header", metavar="H", action="append", default=[], help="for the server; can be repeated"
    )
    parser.add_argument(
        "--timeout", metavar="DUR", default="10s", help="for a server that is silent (default 10s)"
    )
    parser.add_argument(
        "--max-size", metavar="SIZE", default="20GiB", help="what it may unpack to (default 20GiB)"
    )
    parser.add_argument(
        "--max-entries", metavar="N", default="500000", help="what it may hold (default 500000)"
    )
    parser.add_argument("--allow-setid", action="store_true", help="accept set-id programs in it")
    parser.add_argument(
        "--allow-weak-checksum", action="store_true", help="accept md5 and sha1, which can be forged"
    )
    parser.add_argument(
        "--expand", metavar="N", default="3", help="how many times the download it needs (default 3)"
    )
    parser.add_argument("--reserve", metavar="SIZE|PCT", help="what is to stay free besides")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")


@_command("info", "usage by store", "Show usage, limits, ages and lock holders. Changes nothing.")
def _info(parser: Parser) -> None:
    parser.add_argument("stores", metavar="STORE", nargs="*", help="these stores only, and no temp area")


@_command(
    "list",
    "the entries of a store, the oldest first",
    "List what is in a store with age, size and id, in the order in which a prune would take it. Ids "
    "are paths relative to the store (files) or names (trees, sessions); purge takes them as they are.",
)
def _list(parser: Parser) -> None:
    _store(parser)
    group = parser.add_argument_group("which entries, and how")
    group.add_argument("--older-than", metavar="DUR", help="only entries older than this")
    group.add_argument("--newer-than", metavar="DUR", help="only entries younger than this")
    group.add_argument("--larger-than", metavar="SIZE", help="only entries larger than this")
    group.add_argument("--smaller-than", metavar="SIZE", help="only entries smaller than this")
    group.add_argument("--group", metavar="GROUP", help="only sessions of this group")
    group.add_argument(
        "--sort",
        choices=SORTS,
        default="age",
        help="oldest first (default), largest first, or by id or group",
    )
    group.add_argument("--reverse", action="store_true", help="the other way round")
    group.add_argument("--limit", metavar="N", help="only the first N")
    group.add_argument("--anomalies", action="store_true", help="instead: what no prune ever takes, and why")


@_command(
    "stats",
    "how much is in the stores, of which age and group",
    "Show totals, a histogram of ages and, for sessions, sums by group. On a terminal the histogram has "
    "bars, which go by entries. Changes nothing.",
)
def _stats(parser: Parser) -> None:
    _store(parser, several=True)


@_command(
    "purge",
    "remove entries of a store by id, age or group",
    "Remove the entries that meet every condition given, whatever the limits of the store; asks first, "
    "unless --yes. What is in use, an anomaly or younger than the store's min_age stays, and is named. "
    "An ID that no entry has makes the exit status 1; the others go.",
)
def _purge(parser: Parser) -> None:
    _store(parser)
    parser.add_argument("ids", metavar="ID", nargs="*", help="as list shows it")
    parser.add_argument("--older-than", metavar="DUR", help="only entries older than this")
    parser.add_argument("--group", metavar="GROUP", help="only sessions of this group")
    _removal(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask")


@_command(
    "housekeep",
    "sweep and prune everything that is configured, once",
    "Sweep every temp area and bring every store under its policy; what the daemon does, for cron. "
    "Exits with 75 when the daemon, or another such run, keeps house already.",
)
def _housekeep(parser: Parser) -> None:
    _removal(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")
    parser.add_argument("--while-draining", action="store_true", help="also on a host that drains")


@_command(
    "drain",
    "shut besom's part of this host down, phase by phase",
    "Refuse new work, drain the daemon, unmount the configured mounts, sweep and prune once more, and "
    "say how each phase went. Each has its own time, from the section drain of the configuration. What "
    "fails in one keeps no other from its turn. The host refuses new work until --resume or a boot.",
)
def _drain(parser: Parser) -> None:
    parser.add_argument("--resume", action="store_true", help="take new work again, and start the unit")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")


@_command("daemon", "the prune daemon", "Run, start, stop, see, poke and wait for the prune daemon.")
def _daemon(parser: Parser) -> None:
    _commands(parser, "action", "daemon")


def _timeout(parser: Parser, default: str) -> None:
    parser.add_argument("--timeout", metavar="DUR", help=f"how long to wait at most (default: {default})")


@_command("daemon run", "Be the daemon, in the foreground: SIGUSR1 runs, SIGHUP reloads, SIGTERM drains.")
def _daemon_run(parser: Parser) -> None:
    """Nothing of its own."""


@_command("daemon start", "Start the daemon, and return once it is ready.")
def _daemon_start(parser: Parser) -> None:
    _timeout(parser, "30s")


@_command("daemon stop", "Drain the daemon, and return once it is gone.")
def _daemon_stop(parser: Parser) -> None:
    _timeout(parser, "drain_timeout and 10s")
    parser.add_argument(
        "--force", action="store_true", help="end its work between two entries when the time is up"
    )


@_command("daemon status", "Tell how the daemon is; exit status 1 when none runs.")
def _daemon_status(parser: Parser) -> None:
    """Nothing of its own."""


@_command("daemon trigger", "Ask for a run now, and return at once.")
def _daemon_trigger(parser: Parser) -> None:
    parser.add_argument("--start", action="store_true", help="start the daemon where none runs")


@_command("daemon wait", "Wait until the run that was asked for last (or else the first) is over.")
def _daemon_wait(parser: Parser) -> None:
    _timeout(parser, "no limit")
    parser.add_argument("--idle", action="store_true", help="and until no other run is in flight either")


@_command("daemon reload", "Have the configuration read again, and tell whether it is in force.")
def _daemon_reload(parser: Parser) -> None:
    _timeout(parser, "30s")


@_command("lock", "who holds a store?", "See who holds the writer lock of a store, or break one.")
def _lock(parser: Parser) -> None:
    _commands(parser, "action", "lock")


@_command("lock status", "Tell whether a store is locked, how, and by whom. Changes nothing.")
def _lock_status(parser: Parser) -> None:
    parser.add_argument(
        "store", metavar="STORE|PATH", help="a configured store, or a directory (with a slash)"
    )


@_command("lock break", "Remove the owner file of a store whose owner is surely gone; asks first.")
def _lock_break(parser: Parser) -> None:
    _lock_status(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")


@_command("config", "check the configuration", "Look at the configuration.")
def _config(parser: Parser) -> None:
    _commands(parser, "action", "config")


@_command(
    "config check", "is the file valid?", "Name every problem with its line; exit status 2 when there is one."
)
def _config_check(parser: Parser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", help="instead of the configuration in force")


def _besom(parser: Parser) -> None:
    _common(parser)
    parser.add_argument("--version", action="version", version=f"besom {__version__}")
    _commands(parser, "command")


def build_parser() -> Parser:
    """The parser of the whole command line."""
    return Parser(
        _besom,
        prog="besom",
        description="Keep disks from filling: gate, sweep and prune, under one lock protocol.",
        epilog=f"{SIZES} {STATUSES}",
    )


def main(argv: Sequence[str] | None = None, noted: Sequence[int] = ()) -> int:
    """Run one command; returns its exit status. What can be foreseen ends in one sentence on stderr.

    noted: signals that came before this; looked at once their handlers are replaced.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        # What the locale cannot show is shown by its number, as on stderr.
        sys.stdout.reconfigure(errors="backslashreplace")
    shutdown = Shutdown().listen()
    for signum in noted:
        shutdown.request(signum)
    options = build_parser().parse_args(argv)
    if not options.command:
        build_parser().print_help()
        return 2
    try:
        # Imported late: yaml, locks and the engine's rooms are not needed for --help.
        room = import_module(f".{_ROOMS.get(options.command, 'commands')}", __package__)
        if (options.command, getattr(options, "action", "")) != ("daemon", "run"):
            # The daemon takes a signal for its drain, which is its normal end.
            shutdown.check("about to begin")
        status: int = getattr(room, f"{options.command}_command")(options, shutdown)
        sys.stdout.flush()
    except BesomError as error:
        return _failed(options, str(error), error.status)
    except BrokenPipeError:
        # The reader went away; the interpreter must not complain about that at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _failed(options, f"{where}{error.strerror or error}.", 1)
    return status


def _failed(options: argparse.Namespace, message: str, status: int) -> int:
    if options.json:
        result = {"operation": options.command, "changed": False, "error": message, "status": status}
        try:
            print(json.dumps(result), flush=True)
        except OSError:
            # A disk that is full, or a reader that is gone: what is left is the status.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print(f"besom: {message}", file=sys.stderr)
    return status
