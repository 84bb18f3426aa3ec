"""The command line: what it accepts, and what becomes of errors. What each command does is in commands.py."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any, NoReturn

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


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and where to read on."""

    _mixing = False

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


def _common(default: Any) -> Parser:
    """The options that are accepted before and after the command."""
    common = Parser(add_help=False, argument_default=default)
    group = common.add_argument_group("options of every command")
    group.add_argument("--config", metavar="FILE", help="configuration instead of /etc/besom/besom.yml")
    group.add_argument("--json", action="store_true", help="print the report as one JSON object")
    group.add_argument(
        "--lock-timeout",
        metavar="DUR",
        help="how long to wait for another writer (default 30s, 0 = not at all)",
    )
    group.add_argument("--no-color", action="store_true", help="no colors in the progress bar")
    group.add_argument(
        "-v", "--verbose", action="store_true", help="name each thing that goes, and say when nothing does"
    )
    return common


def _policy(parser: argparse.ArgumentParser) -> None:
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


def _removal(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how hard to press the host")
    group.add_argument(
        "--workers", metavar="N|auto", help="remove at most N entries at a time (auto: as many as pay)"
    )
    group.add_argument("--max-rate", metavar="N", help="remove at most N entries in a second")
    group.add_argument("--io-class", choices=IO_CLASSES, help="behind whose I/O (default: nobody's)")


def _store(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
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


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(
        prog="besom",
        description="Keep disks from filling: gate, sweep and prune, under one lock protocol.",
        epilog=f"{SIZES} {STATUSES}",
        parents=[_common(None)],
    )
    parser.add_argument("--version", action="version", version=f"besom {__version__}")
    # Absent here means: keep what was given before the command.
    after = _common(argparse.SUPPRESS)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)

    def command(name: str, help_: str, description: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=help_, description=description, epilog=f"{SIZES} {STATUSES}", parents=[after]
        )

    one = command(
        "preflight",
        "is there room for what is about to be written?",
        "Compare needs, summed per file system, with what is available. Changes nothing.",
    )
    one.add_argument("paths", metavar="PATH[=SIZE]", nargs="+", help="where, and how much, will be written")
    one.add_argument("--require", metavar="SIZE", help="the size for each PATH without one of its own")
    one.add_argument("--inodes", metavar="N", help="inodes needed, for each PATH")
    one.add_argument(
        "--url",
        metavar="URL",
        action="append",
        default=[],
        help="an artifact that will be fetched to the first PATH",
    )
    one.add_argument(
        "--expand", metavar="N", default="3", help="a URL needs N times its download in addition (default 3)"
    )
    one.add_argument("--reserve", metavar="SIZE|PCT", help="what is to stay free besides")

    one = command(
        "sweep",
        "remove stale temps",
        "Remove what is directly in PATH, matches a pattern, is old, and is not held with flock.",
    )
    one.add_argument("paths", metavar="PATH", nargs="+", help="a temp area")
    one.add_argument(
        "--pattern", metavar="GLOB", action="append", help="names of temps (default .temp-*); can be repeated"
    )
    one.add_argument("--older-than", metavar="DUR", help="how old a stale temp is (default 24h)")
    one.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")

    one = command(
        "prune",
        "bring a store under its limits, oldest first",
        "Remove the oldest entries of a store until it is under every limit, and not one more.",
    )
    _store(one)
    _policy(one)
    _removal(one)
    one.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")

    one = command(
        "clean",
        "clean every configured store and temp area",
        "Remove stale temps and besom's own orphaned downloads; with --all empty the stores as well.",
    )
    one.add_argument("stores", metavar="STORE", nargs="*", help="these stores only, and no temp area")
    one.add_argument("--all", action="store_true", help="empty the stores; asks first, unless --yes")
    _removal(one)
    one.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")
    one.add_argument("--yes", action="store_true", help="do not ask")

    one = command(
        "sync",
        "fetch the artifacts of a manifest into a store",
        "Fetch what is missing or has changed, several at a time, verified before it is published. "
        "MANIFEST is YAML or JSON: store, and artifacts with url, dest (relative to the store), and where "
        "wanted checksum (sha256:...), headers, owner, group, mode.",
    )
    one.add_argument("manifest", metavar="MANIFEST", help="a file")
    one.add_argument("--parallel", metavar="N", default="4", help="transfers at a time (default 4)")
    one.add_argument(
        "--timeout", metavar="DUR", default="10s", help="for a server that is silent (default 10s)"
    )
    one.add_argument("--reserve", metavar="SIZE|PCT", help="what is to stay free besides")
    one.add_argument("--full-check", action="store_true", help="read what is there already to verify it")
    one.add_argument(
        "--allow-weak-checksum", action="store_true", help="accept md5 and sha1, which can be forged"
    )
    one.add_argument("--dry-run", action="store_true", help="print what would be fetched, and change nothing")

    one = command(
        "unmount",
        "unmount gracefully, or say who holds the mount",
        "Unmount each PATH, trying again while it is busy; absent mounts are done already. "
        "Ends with 0 also when a mount was detached because --lazy allows it, and names its holders.",
    )
    one.add_argument("paths", metavar="PATH", nargs="+", help="a mount point")
    one.add_argument(
        "--timeout", metavar="DUR", default="30s", help="how long to try in all (default 30s, 0 = once)"
    )
    one.add_argument("--lazy", action="store_true", help="then detach what is still busy")
    one.add_argument("--recursive", action="store_true", help="with all that is mounted below, deepest first")
    one.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")

    one = command(
        "install",
        "make a directory of an archive from the web, in one step",
        "Fetch an archive (tar plain, gz, bz2, xz or zst; zip), extract it beside its place, and put it "
        "there in one step. Unchanged where it is there already. Hostile archives are refused whole.",
    )
    one.add_argument("url", metavar="URL", nargs="?", help="http or https; a login may be part of it")
    one.add_argument("--into", metavar="DIR", required=True, help="the directory that it comes into")
    one.add_argument("--name", metavar="NAME", required=True, help="its name there")
    one.add_argument(
        "--checksum", metavar="C", help="of the archive, as sha256:HEX; then no server is asked twice"
    )
    one.add_argument(
        "--store",
        metavar="STORE|PATH",
        help="keep the archive there, and take it from there; needs --checksum",
    )
    one.add_argument("--keep", metavar="N", default="0", help="old versions that stay (default 0)")
    one.add_argument("--owner", metavar="NAME", help="who is to have all of the tree")
    one.add_argument("--group", metavar="NAME", help="the group that is to have all of the tree")
    one.add_argument("--mode", metavar="OCTAL", help="of the directory itself (default 0755)")
    one.add_argument("--current", metavar="LINK", help="a symlink beside it that is to lead to it")
    one.add_argument("--strip", action="store_true", help="leave out the one directory that the archive has")
    one.add_argument("--replace", action="store_true", help="also what besom has not installed")
    one.add_argument("--absent", action="store_true", help="remove it, its old versions, and LINK")
    one.add_argument(
        "--header", metavar="H", action="append", default=[], help="for the server; can be repeated"
    )
    one.add_argument(
        "--timeout", metavar="DUR", default="10s", help="for a server that is silent (default 10s)"
    )
    one.add_argument(
        "--max-size", metavar="SIZE", default="20GiB", help="what it may unpack to (default 20GiB)"
    )
    one.add_argument("--max-entries", metavar="N", default="500000", help="what it may hold (default 500000)")
    one.add_argument("--allow-setid", action="store_true", help="accept set-id programs in it")
    one.add_argument(
        "--allow-weak-checksum", action="store_true", help="accept md5 and sha1, which can be forged"
    )
    one.add_argument(
        "--expand", metavar="N", default="3", help="how many times the download it needs (default 3)"
    )
    one.add_argument("--reserve", metavar="SIZE|PCT", help="what is to stay free besides")
    one.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")

    one = command("info", "usage by store", "Show usage, limits, ages and lock holders. Changes nothing.")
    one.add_argument("stores", metavar="STORE", nargs="*", help="these stores only, and no temp area")

    one = command(
        "list",
        "the entries of a store, the oldest first",
        "List what is in a store with age, size and id, in the order in which a prune would take it. Ids "
        "are paths relative to the store (files) or names (trees, sessions); purge takes them as they are.",
    )
    _store(one)
    group = one.add_argument_group("which entries, and how")
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

    one = command(
        "stats",
        "how much is in the stores, of which age and group",
        "Show totals, a histogram of ages and, for sessions, sums by group. On a terminal the histogram has "
        "bars, which go by entries. Changes nothing.",
    )
    _store(one, several=True)

    one = command(
        "purge",
        "remove entries of a store by id, age or group",
        "Remove the entries that meet every condition given, whatever the limits of the store; asks first, "
        "unless --yes. What is in use, an anomaly or younger than the store's min_age stays, and is named. "
        "An ID that no entry has makes the exit status 1; the others go.",
    )
    _store(one)
    one.add_argument("ids", metavar="ID", nargs="*", help="as list shows it")
    one.add_argument("--older-than", metavar="DUR", help="only entries older than this")
    one.add_argument("--group", metavar="GROUP", help="only sessions of this group")
    _removal(one)
    one.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")
    one.add_argument("--yes", action="store_true", help="do not ask")

    one = command(
        "housekeep",
        "sweep and prune everything that is configured, once",
        "Sweep every temp area and bring every store under its policy; what the daemon does, for cron. "
        "Exits with 75 when the daemon, or another such run, keeps house already.",
    )
    _removal(one)
    one.add_argument("--dry-run", action="store_true", help="print what would go, and change nothing")

    one.add_argument("--while-draining", action="store_true", help="also on a host that drains")

    one = command(
        "drain",
        "shut besom's part of this host down, phase by phase",
        "Refuse new work, drain the daemon, unmount the configured mounts, sweep and prune once more, and "
        "say how each phase went. Each has its own time, from the section drain of the configuration. What "
        "fails in one keeps no other from its turn. The host refuses new work until --resume or a boot.",
    )
    one.add_argument("--resume", action="store_true", help="take new work again, and start the unit")
    one.add_argument("--dry-run", action="store_true", help="print what would be done, and change nothing")

    one = command("daemon", "the prune daemon", "Run, start, stop, see, poke and wait for the prune daemon.")
    actions = one.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)

    def action(name: str, help_: str, timeout: str = "") -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=help_, description=help_, epilog=STATUSES, parents=[after])
        if timeout:
            made.add_argument(
                "--timeout", metavar="DUR", help=f"how long to wait at most (default: {timeout})"
            )
        return made

    action("run", "Be the daemon, in the foreground: SIGUSR1 runs, SIGHUP reloads, SIGTERM drains.")
    action("start", "Start the daemon, and return once it is ready.", "30s")
    two = action("stop", "Drain the daemon, and return once it is gone.", "drain_timeout and 10s")
    two.add_argument(
        "--force", action="store_true", help="end its work between two entries when the time is up"
    )
    action("status", "Tell how the daemon is; exit status 1 when none runs.")
    two = action("trigger", "Ask for a run now, and return at once.")
    two.add_argument("--start", action="store_true", help="start the daemon where none runs")
    two = action(
        "wait", "Wait until the run that was asked for last (or else the first) is over.", "no limit"
    )
    two.add_argument("--idle", action="store_true", help="and until no other run is in flight either")
    action("reload", "Have the configuration read again, and tell whether it is in force.", "30s")

    one = command("lock", "who holds a store?", "See who holds the writer lock of a store, or break one.")
    actions = one.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)
    action("status", "Tell whether a store is locked, how, and by whom. Changes nothing.").add_argument(
        "store", metavar="STORE|PATH", help="a configured store, or a directory (with a slash)"
    )
    two = action("break", "Remove the owner file of a store whose owner is surely gone; asks first.")
    two.add_argument("store", metavar="STORE|PATH", help="a configured store, or a directory (with a slash)")
    two.add_argument("--yes", action="store_true", help="do not ask")

    one = command("config", "check the configuration", "Look at the configuration.")
    actions = one.add_subparsers(dest="action", metavar="ACTION", parser_class=Parser, required=True)
    two = actions.add_parser(
        "check",
        help="is the file valid?",
        description="Name every problem with its line; exit status 2 when there is one.",
        epilog=STATUSES,
        parents=[after],
    )
    two.add_argument("file", metavar="FILE", nargs="?", help="instead of the configuration in force")
    return parser


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
