# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table of wild.py: each reader of besom, fed at its real entry point, beside an independent reader."""

from __future__ import annotations

import bz2
import contextlib
import datetime
import gzip
import io
import json
import lzma
import math
import os
import re
import stat
import tarfile
import zipfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import portalocker
import redis
import yaml

from besom.archive import BadArchive
from besom.archive_tar import BLOCK
from besom.command_line import without_secrets
from besom.connections import Connections
from besom.cutoff import Cutoff
from besom.durable import draft
from besom.errors import BesomError, UsageError
from besom.extract import Limits, extract
from besom.fetch import check_url, redact
from besom.installed import MARK, Mark, read_mark, write_mark
from besom.locks import LockTable
from besom.metadata import SKEW, Metadata, Unfit, parse
from besom.mounts import Mount, parse_mountinfo
from besom.origin import Origin, read_origin
from besom.owner_file import DEAD, NAME, Owner, OwnerFile
from besom.policy import LIMITS, POLICY_KEYS, Policy
from besom.redis_lock import RedisLock, check_redis_url
from besom.root import Root
from besom.run import Run
from besom.transfer import Transfer, read_checksum, read_source
from besom.units import (
    Share,
    format_duration,
    format_size,
    from_printable,
    parse_count,
    parse_duration,
    parse_factor,
    parse_size,
    printable,
)
from besom_host.cli import build_parser
from besom_host.config import _MAX_SIZE as MAX_SIZE
from besom_host.config import _SETTINGS as SETTINGS
from besom_host.config import Config, read
from besom_host.daemon_command import _status_lines as status_lines
from besom_host.manifest import Manifest, read_manifest
from besom_host.metrics import Metrics
from besom_host.process import Process
from besom_host.state import StateDir, Status

from .web_answer import answering
from .wild import Target

NOW = 20_000 * 86400 * 10**9
SECRET = "S3cr3t"  # noqa: S105


def text_of(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def file(place: Path, name: str, data: bytes) -> str:
    path = place / name
    path.write_bytes(data)
    return str(path)


# Sizes, durations, counts, factors, shares.


def feed_values(data: bytes, _place: Path) -> dict[Any, Any]:
    text, found, errors = text_of(data), {}, []
    for reading in (parse_size, parse_duration, parse_count, parse_factor, Share):
        try:
            found[reading] = reading(text, "--option")
        except UsageError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return found


def check_values(data: bytes, _place: Path, found: dict[Any, Any]) -> None:
    """What the text means is computed another way, and what is printed of it means the same."""
    text = text_of(data).strip()
    assert text.isascii(), f"taken for a value: {text!r}"
    if parse_size in found:
        digits = re.match("[0-9.]+", text)
        assert digits
        unit = text[digits.end() :].strip().upper().removesuffix("B").removesuffix("I")
        size = int(Decimal(digits[0]) * 1024 ** " KMGTPE".index(unit or " "))
        assert found[parse_size] == size > 0
        shown = parse_size(format_size(size)) if size < 2**62 else size
        assert math.isclose(shown, size, rel_tol=0.06, abs_tol=1)
    if parse_duration in found:
        factor = dict(zip("smhdw", (1, 60, 3600, 86400, 604800))).get(text[-1], 1)
        seconds = float(Decimal(text.rstrip("smhdw").strip()) * factor)
        assert math.isclose(found[parse_duration], seconds)
        assert 0 < seconds < 2**34
        if 1 <= seconds < 2**33:
            shown = parse_duration(format_duration(seconds))
            assert math.isclose(shown, seconds, rel_tol=0.06, abs_tol=0.1)
    if parse_count in found:
        assert found[parse_count] == int(text) > 0
    if parse_factor in found:
        assert 0 <= found[parse_factor] <= 1000
        assert found[parse_factor] == float(text)
    if Share in found:
        of = found[Share].of(10**6)
        assert of > 0 or found[Share].percent < Decimal("0.0001")
        assert of <= 10**6 or found[Share].percent is None


# Names as they are printed.


def feed_names(data: bytes, _place: Path) -> str:
    name = printable(data)
    assert name.isprintable()
    assert os.fsencode(from_printable(name)) == data
    from_printable(text_of(data))
    return name


# URLs, command lines.


def feed_urls(data: bytes, _place: Path) -> None:
    text = text_of(data)
    urls = (text, f"http://u:{SECRET}{text}@host/", f"https://host/path?k={SECRET}{text}")
    for url in urls:
        said = [redact(url), without_secrets("curl " + "".join(url.split()) + " -o x")]
        for reading in (check_url, read_source, check_redis_url):
            with contextlib.suppress(UsageError):
                try:
                    reading(url)
                except UsageError as error:
                    said.append(str(error))
                    raise
        for one in said:
            assert SECRET not in one, f"shown: {one!r}"
        assert said[0].isprintable()
    with contextlib.suppress(UsageError):
        read_checksum(text)


def feed_words(data: bytes, _place: Path) -> None:
    """The words of a command line, to their parser; --help, 0, and usage, 2, are its ends."""
    words = [text_of(word) for word in data.split(b"\0")]
    # As sys.stdout and sys.stderr are, which cannot encode what is no text.
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            build_parser().parse_args(words)
        except SystemExit as end:
            assert end.code in (0, 2)


# Configuration and environment.


def feed_config(data: bytes, place: Path) -> Config:
    return read(file(place, "besom.yml", data), {})


def repeats(node: Any) -> bool:
    """Whether a key stands twice in a mapping, at any depth; for a YAML node."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        keys = [key for key in keys if key != "<<"]
        return len(set(keys)) < len(keys) or any(repeats(value) for _, value in node.value)
    return isinstance(node, yaml.SequenceNode) and any(map(repeats, node.value))


def check_config(data: bytes, place: Path, config: Config) -> None:
    """A store has exactly the limits that a plain reading of the file gives it, or there is no such store."""
    for sentence in config.sentences:
        assert sentence.isprintable()
        assert len(sentence) < 3000
    assert 1 <= config.interval < 2**34
    assert all(path.startswith("/") for path in (config.state_dir, *config.mounts))
    if not (config.stores or config.temps):
        return
    assert config.readable
    # Aliases make it long, and the file is known to be of bounded size by now.
    text = data.decode()
    plain, node = yaml.safe_load(text), yaml.compose(text, yaml.SafeLoader)
    twice: dict[str, list[Any]] = {}
    for key, value in node.value:
        twice.setdefault(key.value, []).append(value)
    for kind, found in (("stores", config.stores), ("temps", config.temps)):
        if not found:
            continue
        assert len(twice[kind]) <= 1 or "<<" in twice, f"{kind} stands twice, and one was chosen"
        sound = [index for index, inner in enumerate(twice[kind][0].value) if not repeats(inner)]
        entries = [plain[kind][index] for index in sound if isinstance(plain[kind][index], dict)]
        if kind == "temps":
            for one in config.temps:
                assert any(one.path == entry.get("path") for entry in entries), "a key stands twice in it"
            continue
        for name, store in config.stores.items():
            meant = [entry for entry in entries if entry.get("name") == name]
            assert len(meant) == 1, "it was not sure which was meant"
            check_policy(meant[0], store.policy)
            assert (store.path, store.layout) == (meant[0]["path"], meant[0]["layout"])
            assert store.lock_backend == meant[0].get("lock_backend", "flock") or (
                meant[0]["lock_backend"] is None
            )


def check_policy(entry: dict[str, Any], policy: Policy) -> None:
    for key in POLICY_KEYS:
        value, given = getattr(policy, key), entry.get(key)
        if key == "order":
            assert value == given or given is None, f"{given!r} was taken for {value}"
        else:
            assert (value is None) == (given is None)
    assert any(entry.get(key) is not None for key in LIMITS)


VARIABLES = sorted({name for _, _, variables in SETTINGS.values() for name in variables} | set(MAX_SIZE))
BARE = b"stores: [{name: bare, path: /b, layout: files}, {name: own, path: /o, layout: files, max_size: 9}]"


def environment(data: bytes) -> dict[str, str]:
    """Each line NAME=VALUE; a name may be the number of a variable, so that drivers find them."""
    env = {}
    for line in data.replace(b"\0", b"").split(b"\n"):
        name, _sign, value = text_of(line).partition("=")
        known = VARIABLES[int(name) % len(VARIABLES)] if re.fullmatch("[0-9]{1,3}", name) else name
        if name:
            env[known] = value
    return env


def feed_environment(data: bytes, place: Path) -> Config:
    return read(file(place, "besom.yml", BARE), environment(data))


def check_environment(data: bytes, _place: Path, config: Config) -> None:
    env = environment(data)
    assert all(sentence.isprintable() for sentence in config.sentences)
    assert 1 <= config.interval < 2**34
    assert 0 <= config.lock_timeout < 2**34
    assert config.log_format in ("text", "json", "clef")
    assert all(not path or path.startswith("/") for path in (config.log_file, config.textfile))
    assert config.stores["own"].policy == Policy(max_size=9)
    bare = config.stores.get("bare")
    said = [name for name in ("BESOM_MAX_SIZE", "BESOM_MAX_SIZE_MB") if name in env]
    if bare:
        assert bare.policy == Policy(max_size=MAX_SIZE[said[0]](env[said[0]], ""))


# Manifests.


def feed_manifest(data: bytes, place: Path) -> Manifest:
    return read_manifest(file(place, "manifest.yml", data))


def check_manifest(data: bytes, place: Path, found: Manifest) -> None:
    plain = yaml.safe_load(data.decode())
    assert len(found.artifacts) == len(plain["artifacts"])
    for one in found.artifacts:
        assert not one.dest.startswith("/")
        assert not {"", ".", ".."} & set(one.dest.split("/"))
        assert len(os.fsencode(one.dest)) <= 4096
        for name, value in one.source.headers.items():
            assert re.fullmatch(r"[^\s:]+: [^\r\n]*", f"{name}: {value}")
        assert one.source.url.isascii()


# Metadata of sessions.


def feed_metadata(data: bytes, _place: Path) -> Metadata:
    return parse(data, NOW)


def check_metadata(data: bytes, _place: Path, found: Metadata) -> None:
    assert 0 < found.created <= NOW + SKEW
    told = json.loads(data.decode("utf-8-sig"))["created_at"]
    if isinstance(told, str):
        with contextlib.suppress(ValueError):
            date = datetime.datetime.fromisoformat(told.strip().replace("z", "Z"))
            date = date if date.tzinfo else date.replace(tzinfo=datetime.timezone.utc)
            assert abs(date.timestamp() - found.created / 1e9) < 1.1  # a leap second
    else:
        assert type(told) in (int, float)
        assert math.isclose(told, found.created / 1e9, abs_tol=1e-6)


# Archives.

FEW = Limits(entries=2000, bytes=8 << 20)


def feed_archive(data: bytes, place: Path) -> dict[str, bytes | None]:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        extract(io.BytesIO(data), fd, str(place), Run(), FEW)
    finally:
        os.close(fd)
    found: dict[str, bytes | None] = {}
    for path in place.rglob("*"):
        mode = path.lstat().st_mode
        assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
        assert not mode & 0o7000 or stat.S_ISLNK(mode)
        real = Path(os.path.realpath(path))
        assert real == place or place in real.parents, "a link leads out"
        if stat.S_ISREG(mode):
            found[str(path.relative_to(place))] = path.read_bytes()
    return found


def check_archive(data: bytes, place: Path, found: dict[str, bytes | None]) -> None:
    """What came out is what the standard library's own reader lists, by name and content."""
    listed: dict[str, bytes] = {}
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for one in archive.infolist():
                if not one.is_dir() and not stat.S_ISLNK(one.external_attr >> 16):
                    listed[os.path.normpath(one.filename)] = archive.read(one)
    else:
        try:
            archive_ = tarfile.open(fileobj=io.BytesIO(inflate(data)), ignore_zeros=False)  # noqa: SIM115
        except tarfile.ReadError:
            # tarfile wants a version in the magic of pax that others do not write.
            return
        data = inflate(data)
        with archive_:
            while True:
                try:
                    member = archive_.next()
                except tarfile.ReadError:
                    # It is particular about fields that nobody else looks at, as an owner or a date.
                    return
                if member is None:
                    if data[archive_.offset : archive_.offset + 512].strip(b"\0"):
                        # The same, and it says nothing of it.
                        return
                    break
                name = os.path.normpath(member.name)
                listed.pop(name, None)
                header = data[member.offset_data - 512 : member.offset_data]
                # As tar(1) has it: no prefix in GNU's headers, and what ends with a slash is a directory.
                alien = (header[257:263] == b"ustar " and header[345]) or member.name.endswith("/")
                if member.isreg() and not alien and (stream := archive_.extractfile(member)):
                    listed[name] = stream.read()
    for name, content in listed.items():
        assert found.get(name) == content, f"{name!r} came out as another file"


def inflate(data: bytes) -> bytes:
    for magic, reading in ((b"\x1f\x8b", gzip), (b"BZh", bz2), (b"\xfd7z", lzma)):
        if data.startswith(magic):
            return reading.decompress(data)
    return data


def right_checksums(data: bytes) -> bytes:
    """A tar whose headers sum up again, wherever one can be told by its magic."""
    if data.startswith((b"PK", b"\x1f\x8b", b"BZh", b"\xfd7z")):
        return data
    whole = bytearray(data)
    for start in range(0, len(whole) - BLOCK + 1, BLOCK):
        block = whole[start : start + BLOCK]
        if block[257:262] == b"ustar":
            total = sum(block[:148]) + 8 * 32 + sum(block[156:])
            whole[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(whole)


def tar(form: int, *members: tuple[str, bytes, bytes | str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, kind, content in members:
            one = tarfile.TarInfo(name)
            one.type, one.mtime = kind, 1_700_000_000.5 if form == tarfile.PAX_FORMAT else 1_700_000_000
            if isinstance(content, str):
                one.linkname, content = content, b""
            one.size = len(content)
            archive.addfile(one, io.BytesIO(content))
    # Without what fills it up to 10 KiB: two blocks of zeros end it.
    return (
        stream.getvalue()
        .rstrip(b"\0")
        .ljust(-(-len(stream.getvalue().rstrip(b"\0")) // 512) * 512 + 1024, b"\0")
    )


MEMBERS = (
    ("d", tarfile.DIRTYPE, b""),
    ("d/f", tarfile.REGTYPE, b"x" * 600),
    ("s", tarfile.SYMTYPE, "d/f"),
    ("h", tarfile.LNKTYPE, "d/f"),
)
LONG = ("n" * 90 + "/" + "m" * 120, tarfile.REGTYPE, b"y")


def zipped(*members: tuple[str, bytes, int, int]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content, kind, how in members:
            one = zipfile.ZipInfo(name, (2017, 7, 14, 2, 40, 0))
            one.create_system, one.compress_type, one.external_attr = 3, how, (kind | 0o644) << 16
            archive.writestr(one, content)
    return stream.getvalue()


TARS = (
    tar(tarfile.USTAR_FORMAT, *MEMBERS),
    tar(tarfile.GNU_FORMAT, *MEMBERS, LONG),
    tar(tarfile.PAX_FORMAT, *MEMBERS, LONG),
)
ARCHIVES = (
    *TARS,
    gzip.compress(TARS[0], mtime=0),
    bz2.compress(TARS[0]),
    lzma.compress(TARS[0]),
    zipped(
        ("d/f", b"x" * 600, stat.S_IFREG, zipfile.ZIP_DEFLATED),
        ("d/g", b"y", stat.S_IFREG, zipfile.ZIP_STORED),
        ("s", b"d/f", stat.S_IFLNK, zipfile.ZIP_STORED),
        ("z", b"z" * 90, stat.S_IFREG, zipfile.ZIP_BZIP2),
        ("l", b"l" * 90, stat.S_IFREG, zipfile.ZIP_LZMA),
    ),
)


# Answers of web servers.


def feed_answer(data: bytes, place: Path) -> bytes | None:
    """The bytes that a server sends before it hangs up, to a transfer; what was published of them."""
    with answering(data) as (url, opener):
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with draft(fd, str(place), "file") as one:
                Transfer(read_source(url), opener(Connections(5.0)), Cutoff(), retries=0).run(one)
                origin = read_origin(one.fd)
                assert origin is None or (origin.etag + origin.modified).isprintable()
                os.lseek(one.fd, 0, os.SEEK_SET)
                return os.read(one.fd, 1 << 20)
        finally:
            os.close(fd)


def check_answer(data: bytes, _place: Path, body: bytes | None) -> None:
    """Where one header says how long the one answer is, that much was published, and no byte else."""
    head, _blank, rest = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    plain = all(re.fullmatch(rb"[A-Za-z-]+: [!-~ ]*", line) for line in lines[1:])
    if not plain or not re.fullmatch(rb"HTTP/1\.[01] 200 [a-zA-Z ]*", lines[0]) or b"\r\n\r\n" not in data:
        return
    headers = [line.lower().split(b": ", 1) for line in lines[1:]]
    lengths = [value.strip() for name, value in headers if name == b"content-length"]
    if lengths and not any(name == b"transfer-encoding" for name, _ in headers):
        assert re.fullmatch(rb"[0-9]+", lengths[0])
        assert body == rest[: int(lengths[0])]
        assert len(rest) >= int(lengths[0])


# What the kernel tells, and what holders of locks tell of themselves.


def feed_mountinfo(data: bytes, _place: Path) -> list[Mount]:
    return parse_mountinfo(data)


def check_mountinfo(data: bytes, _place: Path, found: list[Mount]) -> None:
    for one in found:
        path, source = (
            re.sub(rb"[\s\\#]", lambda sign: b"\\%03o" % sign[0][0], os.fsencode(text))
            for text in (one.path, one.source)
        )
        line = b"%d %d %s / %s %s - %s %s x" % (
            *(one.id, one.parent, os.fsencode(one.device), path),
            *(os.fsencode(one.options), os.fsencode(one.fstype), source),
        )
        assert parse_mountinfo(line) == [one]


def feed_locks(data: bytes, _place: Path) -> None:
    table = LockTable(data)
    for inode in list(table.inodes)[:50]:
        for device in (os.makedev(8, 1), os.makedev(0, 5)):
            holder = table.holder(device, inode)
            if holder:
                assert str(holder).isprintable()
                json.dumps(holder.to_dict())


def feed_owner(data: bytes, place: Path) -> tuple[Owner | None, str] | None:
    file(place, NAME, data)
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        one = OwnerFile(fd, str(place))
        found = one.found()
        taken = one.attempt()
        said = one.holder() + one.remedy()
        if taken:
            one.release()
    finally:
        os.close(fd)
    assert found is not None
    assert taken == (found[1] == DEAD)
    assert said.isprintable()
    if found[0]:
        json.dumps(found[0].to_dict(), allow_nan=False)
    return found


def check_owner(data: bytes, _place: Path, found: tuple[Owner | None, str]) -> None:
    """Whoever is taken for dead has told a boot of this very host."""
    if found[1] == DEAD:
        told, here = json.loads(data), Owner.current()
        assert told["boot_id"]
        assert told["boot_id"] == here.boot_id or told["host_id"] == here.host_id != ""


class Told:
    """A connection to Redis on which the record of a holder comes back."""

    def __init__(self, record: bytes) -> None:
        self._record = record

    def get(self, _key: str) -> str:
        # As redis decodes answers, which raises what it does for bytes that are no text.
        return self._record.decode()

    def pubsub_numsub(self, channel: str) -> list[tuple[str, int]]:
        return [(channel, 1)]


def feed_record(data: bytes, _place: Path) -> None:
    lock = RedisLock("/srv/store", "redis://host:6379/0", redis, portalocker)
    lock._asking = Told(data)
    assert lock.holder().isprintable()
    json.dumps(lock.seen(), allow_nan=False)


# What besom itself has written, and others may have changed.


def feed_status(data: bytes, place: Path) -> Status:
    """The files of a state directory: status.json, a NUL byte, daemon.pid, a NUL byte, trigger."""
    state = StateDir(str(place / "state"))
    state.prepare()
    here = Process.current()
    data = data.replace(b"@PID@", str(here.pid).encode()).replace(b"@TOKEN@", here.token.encode())
    status, pid, trigger, *_rest = [*data.split(b"\0"), b"", b""]
    file(place / "state", "status.json", status)
    file(place / "state", "trigger", trigger)
    assert state.asked() >= 0
    with contextlib.suppress(BesomError), state.acquire() as held:
        _shown(state)
        held.truncate(0)
        held.seek(0)
        held.buffer.write(pid)
        held.flush()
        _shown(state)
    return _shown(state)


def _shown(state: StateDir) -> Status:
    now = state.observe()
    json.dumps(now.to_dict(), allow_nan=False)
    assert all(line.isprintable() for line in status_lines(now))
    now.what_runs()
    assert now.runs >= 0 <= now.answered
    assert 0 <= now.stop_timeout < 2**40
    return now


def feed_origin(data: bytes, place: Path) -> Origin | None:
    path = file(place, "file", b"x")
    fd = os.open(path, os.O_RDWR)
    try:
        os.setxattr(fd, "user.besom.origin", data[:2000])
        found = read_origin(fd)
    finally:
        os.close(fd)
    if found:
        for value in [found.if_range, *found.conditions.values()]:
            assert value.isprintable()
            assert value.isascii()
    return found


def feed_mark(data: bytes, place: Path) -> Mark | None:
    (place / "tree").mkdir()
    with Root(str(place)) as root:
        file(place / "tree", MARK, data)
        found = read_mark(root, "tree")
        if found is None:
            return None
        (place / "again").mkdir()
        fd = os.open(place / "again", os.O_RDONLY | os.O_DIRECTORY)
        try:
            write_mark(fd, "again", found)
        finally:
            os.close(fd)
        assert read_mark(root, "again") == found
        return found


def feed_metrics(data: bytes, place: Path) -> bytes:
    path = file(place, "besom.prom", data)
    metrics = Metrics()
    metrics.of_run("done", 1.5, 1_700_000_000.0)
    metrics.write(path, [("prune", "gems")])
    return Path(path).read_bytes()


def check_metrics(_data: bytes, _place: Path, found: bytes) -> None:
    for line in found.decode().splitlines():
        assert re.fullmatch(r"# (HELP|TYPE) .*|besom_\w+(\{[^{}]*\})? [0-9.e+-]+", line)
    assert b'besom_runs_total{outcome="done"} ' in found


def _json(**values: Any) -> bytes:
    return json.dumps(values).encode()


RECORD = _json(id="0" * 16, host="h", pid=5, command="besom prune", since=1_700_000_000.5)
RUN = {"began": 1, "ended": 2, "outcome": "done", "removed_entries": 1, "freed_bytes": 1, "messages": ["m"]}
STATUS = _json(
    state="idle",
    process={"pid": 7, "token": "t"},
    since=1.5,
    config="/etc/besom/besom.yml",
    last_run=RUN,
    next_run=3.5,
    in_flight=[{"operation": "prune", "path": "/srv", "since": 2.5}],
    answered=1,
    runs=2,
    reloads=0,
    reload_error="",
    stop_timeout=30.0,
    warnings=["w"],
).replace(b'{"pid": 7, "token": "t"}', b'{"pid": @PID@, "token": "@TOKEN@"}')
CONFIG = b"""\
stores:
  - &gems {name: gems, path: /srv/besom-wild/gems, layout: files, max_size: 9G, target_size: 8G, order: lru}
  - {<<: *gems, name: more, max_age: 7d}
  - name: s
    path: /srv/besom-wild/s
    layout: sessions
    group_key: team
    max_entries: 5
    max_size: 5T
    min_free: 5%
    min_age: 1h
    before_prune: "true"
temps:
  - path: /srv/besom-wild/t
    pattern: [.temp-*, x]
    older_than: 24h
mounts: [/mnt/a]
daemon: {interval: 1h, drain_timeout: 30s, state_dir: /run/x}
drain: {daemon_timeout: 60s, unmount_lazy: true, on_phase_failure: stop}
log: {format: clef, file: /var/log/x, seq_url: 'http://127.0.0.1:9', seq_api_key: abc}
metrics: {textfile: /srv/besom-wild/m.prom}
lock_timeout: 0
redis_url: redis://:pw@127.0.0.1:9/0
"""
SHORT = b"stores: [{name: a, path: /a, layout: files, max_size: 5T, max_age: 9d}]"
YAML = (
    *(
        b"*a",
        b"&a ",
        b"<<: *a",
        b"!!int ",
        b"!!binary ",
        b"!!python/object:os.system ",
        b"? ",
        b"- ",
        b"{",
        b"[",
    ),
    *(
        b"}",
        b"]",
        b": ",
        b"\n",
        b"\n  ",
        b"|\n ",
        b"---\n",
        b"...\n",
        b"%YAML 1.1\n",
        b"'",
        b'"',
        b"0x",
        b"~",
    ),
    *(
        b"1:59",
        b".inf",
        b".nan",
        b"2001-01-01",
        b"true",
        b"null",
        b"- 1\n",
        b"- {name: a}\n",
        b"max_size: 1\n",
    ),
)
JSON = (
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b": ",
    b", ",
    b"null",
    b"true",
    b"NaN",
    b"Infinity",
    b"1e999",
    b'"\\ud800"',
)
HTTP = (
    *(
        b"\r\n",
        b"\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 100 C\r\n\r\n",
        b"HTTP/1.0 ",
        b"206",
        b"304",
    ),
    *(
        b"Content-Length: 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b"-5\r\n",
        b"0x5\r\n",
    ),
    *(
        b'ETag: "e"\r\n',
        b"Location: /next\r\n",
        b"Content-Range: bytes 0-4/5\r\n",
        b"Retry-After: 1\r\n",
        b" \tx",
    ),
    *(
        b"Last-Modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n",
        b"Date: Mon, 01 Jan 2024 00:00:02 GMT\r\n",
        b"ffffffff",
    ),
)
ANSWERS = (
    b'HTTP/1.1 200 OK\r\nContent-Length: 5\r\nETag: "e"\r\n\r\nhello',
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 302 Found\r\nLocation: /there\r\n\r\n",
    b"HTTP/1.0 200 OK\r\n\r\nuntil it ends",
    b"HTTP/1.1 503 No\r\nRetry-After: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n",
    b"HTTP/1.1 206 Part\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nhello",
)
OWNER = _json(
    **{**vars(Owner.current()), "id": "0123456789abcdef", "pid": 2**22, "start_token": "1"},
)
MANIFEST = b"""\
store: /srv/s
headers: {X-Token: abc}
url_username: u
artifacts:
  - {url: 'https://host/a', dest: a/b, checksum: 'sha256:%b', mode: '0644', owner: root}
  - {url: 'http://u:p@host:8080/b?q=1#f', dest: c, headers: {Accept: text/plain}, group: 0}
""" % (b"ab" * 32)

# A reader that is new gets a row here, and has both drivers.
TARGETS = {
    one.name: one
    for one in (
        Target(
            "sizes and durations",
            feed_values,
            (b"10GiB", b"1.5 k", b"90s", b"24h", b"2w", b"5%", b"17", b"0.5"),
            (b"KiB", b"E", b"%", b".", b"w", "\u212a".encode(), "\u0661".encode(), b"e9", b"_", b"nan"),
            check_values,
        ),
        Target(
            "names",
            feed_names,
            (b"name", b"a\nb\\x0a", b"\xff\\"),
            (b"\\x", b"\\\\", b"\x1b[2J"),
            answers=(UsageError,),
        ),
        Target(
            "URLs",
            feed_urls,
            (b"https://u:p@host:80/a?b#c", b"/path", b"redis://:p@h:6379/0", b"@", b"sha256:" + b"ab" * 32),
            (
                b"://",
                b"//",
                b"@",
                b"[",
                b"]",
                b"[::1]",
                b"?",
                b"#",
                b":",
                b"%40",
                b"/",
                b"\t",
                b"unix:///s",
                b"xn--a",
            ),
            answers=(),
        ),
        Target(
            "command lines",
            feed_words,
            (
                b"prune\0/srv\0--layout\0files\0--max-size\x001G",
                b"sync\0m.yml\0--json",
                b"--help",
                b"daemon\0wait",
            ),
            (
                b"\0--",
                b"\0-",
                b"--json",
                b"%",
                b"%s",
                b"{0}",
                b"--config\0",
                b"\0status",
                b"--lock-timeout=",
                b"@x",
            ),
            answers=(),
        ),
        # PyYAML looks at a thousand brackets again for each of them before it gives up.
        Target(
            "config", feed_config, (CONFIG, SHORT), YAML, check_config, answers=(), most=1 << 14, seconds=4
        ),
        Target(
            "environment",
            feed_environment,
            (b"\n".join(b"%d=1" % number for number in range(len(VARIABLES))), b"BESOM_MAX_SIZE=5M"),
            (
                *(name.encode() + b"=" for name in VARIABLES),
                b"1h",
                b"5M",
                b"/x",
                b"http://x",
                b"\xff",
                b"true",
            ),
            check_environment,
            answers=(),
        ),
        Target(
            "manifest",
            feed_manifest,
            (MANIFEST, json.dumps(yaml.safe_load(MANIFEST)).encode()),
            (*YAML, b"url: ", b"dest: ", b"owner: ", b"a/"),
            check_manifest,
            seconds=4,
            most=1 << 14,
        ),
        Target(
            "metadata",
            feed_metadata,
            (
                _json(created_at="2020-02-03T04:05:06.789+01:00", group="a"),
                _json(created_at=1_600_000_000.25),
            ),
            (
                *JSON,
                b"created_at",
                b"T",
                b"Z",
                b"+01:00",
                b"-",
                b"20200203T040506Z",
                "\ufeff".encode(),
                b"23:59:60",
            ),
            check_metadata,
            answers=(Unfit,),
        ),
        Target(
            "archive",
            feed_archive,
            ARCHIVES,
            (
                b"ustar\x0000",
                b"ustar  \0",
                b"30 path=../x\n",
                b"15 size=9\n",
                b"12 GNU.sparse.x=1\n",
                b"PK\1\2",
                b"PK\5\6",
            ),
            check_archive,
            answers=(BadArchive,),
            mend=right_checksums,
            seconds=2,
        ),
        Target("HTTP answer", feed_answer, ANSWERS, HTTP, check_answer),
        Target(
            "mountinfo",
            feed_mountinfo,
            (
                Path("/proc/self/mountinfo").read_bytes()[:500],
                b"1 0 8:1 / /a\\040b rw shared:1 - ext4 /dev/x rw\n",
            ),
            (b" - ", b"\\040", b"\\777", b"\n", b"9" * 100),
            check_mountinfo,
            answers=(),
        ),
        Target(
            "lock table",
            feed_locks,
            (b"1: FLOCK  ADVISORY  WRITE 1 08:01:5 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 1 00:05:7 0 EOF\n",),
            (b":", b"-1", b"ffffffff", b" -> ", b"\n", b"8:1:"),
            answers=(),
        ),
        Target("owner file", feed_owner, (OWNER,), JSON, check_owner, answers=()),
        Target("Redis record", feed_record, (RECORD,), JSON, answers=()),
        Target(
            "status files",
            feed_status,
            (STATUS + b"\x0012\nt\n\x0000000000000000000004",),
            (*JSON, b"\0"),
            answers=(),
        ),
        Target(
            "origin",
            feed_origin,
            (_json(**vars(Origin("s", '"e"', "m", True, 5, "sha256:aa", 1, 2))),),
            JSON,
            answers=(),
        ),
        Target(
            "mark of an install",
            feed_mark,
            (
                _json(
                    origin=vars(Origin("s", '"e"')),
                    **{k: v for k, v in vars(Mark()).items() if k != "origin"},
                ),
            ),
            JSON,
            answers=(),
        ),
        Target(
            "metrics",
            feed_metrics,
            (b'# HELP x\nbesom_runs_total{outcome="done"} 5\nbesom_drain_failed_phases 1\n',),
            (b"besom_runs_total", b'{outcome="', b'"}', b" 1e300", b" nan", b" -1", b"\\"),
            check_metrics,
            answers=(),
        ),
    )
}
