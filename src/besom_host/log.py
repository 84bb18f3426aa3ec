"""Telling what happens: the events of events.py, to stderr or a file, to the journal, and to Seq.

Telling never raises, and never holds up the work that it tells of.
"""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
import traceback
import uuid
from dataclasses import dataclass
from typing import Any, Callable, Protocol

from besom.units import printable

from . import journal
from .config import Config
from .events import ERROR, EVENTS, WARNING, Event
from .secret import Secrets, passwords

# Together they stay below what one datagram takes.
_LONGEST_TEXT = 4000
_LONGEST_TRACE = 16000
_NAMESPACE = uuid.UUID("0b2c6a37-5a8e-4f0e-9d0a-6d1a3c6f7be5")


@dataclass(frozen=True)
class Record:
    """An event that happened: when (seconds since the epoch), its fields, its sentence, its exception."""

    time: float
    event: Event
    fields: dict[str, Any]
    message: str
    exception: str = ""

    @property
    def clock(self) -> str:
        """RFC 3339, in UTC, to the millisecond."""
        milliseconds = int(self.time * 1000)
        seconds, rest = divmod(milliseconds, 1000)
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:03}Z"


def as_text(record: Record) -> str:
    """`2026-11-21T16:30:00.123Z info: sentence`, in one line."""
    return f"{record.clock} {record.event.level}: {_sentence(record)}"


def as_json(record: Record) -> str:
    """One JSON object: time, level, event, message and the event's fields."""
    line = {
        "time": record.clock,
        "level": record.event.level,
        **_common(record),
        **record.fields,
        "message": record.message,
    }
    if record.exception:
        line["exception"] = record.exception
    return json.dumps(line)


def as_clef(record: Record) -> str:
    """Compact log event format: @t, @mt, @l (left out for information), @x, and the event's fields."""
    line: dict[str, Any] = {"@t": record.clock, "@mt": record.event.sentence}
    if record.event.level in (WARNING, ERROR):
        line["@l"] = record.event.level.capitalize()
    if record.exception:
        line["@x"] = record.exception
    return json.dumps({**line, **_common(record), **record.fields})


def _common(record: Record) -> dict[str, Any]:
    return {"event": record.event.name, "host": printable(os.uname().nodename), "pid": os.getpid()}


def _sentence(record: Record) -> str:
    return f"{record.message} {printable(record.exception)}".rstrip()


FORMATS: dict[str, Callable[[Record], str]] = {"text": as_text, "json": as_json, "clef": as_clef}
# sd-daemon(3)
_PRIORITY = {ERROR: 3, WARNING: 4}


def _for_stderr(record: Record) -> str:
    """What the journal takes from a stream: the priority, and no time, which it knows."""
    return f"<{_PRIORITY.get(record.event.level, 6)}>{_sentence(record)}"


class Place(Protocol):
    """Where events go."""

    def write(self, record: Record) -> bool:
        """Take the event; whether it is there."""

    def close(self) -> None:
        """Nothing comes any more."""


class Shipper(Protocol):
    """What sends CLEF lines elsewhere, in its own time."""

    def write(self, line: str) -> None:
        """Keep a line until it is sent."""

    def close(self, timeout: float) -> None:
        """Nothing comes any more; timeout: seconds for sending what is there."""


class Stderr:
    """Lines on stderr, whoever reads them."""

    def __init__(self, form: Callable[[Record], str]) -> None:
        self._form = form

    def write(self, record: Record) -> bool:
        try:
            os.write(sys.stderr.fileno(), (self._form(record) + "\n").encode("utf-8", "backslashreplace"))
        except (AttributeError, OSError, ValueError):
            return False
        return True

    def close(self) -> None:
        """It is not ours to close."""


class File:
    """Lines at the end of a file, opened anew when it was moved or deleted. Raises OSError at first."""

    def __init__(self, path: str, form: Callable[[Record], str]) -> None:
        self._path, self._form = path, form
        self._fd = -1
        self._torn = False
        self._open()

    def _open(self) -> None:
        self.close()
        # Nobody who makes the log a FIFO and does not read it shall hold besom up.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        self._fd = os.open(self._path, flags, 0o644)
        self._torn = self._ends_torn()

    def _ends_torn(self) -> bool:
        """Whether a full disk, or the death of its writer, has left half a line at the end."""
        size = os.fstat(self._fd).st_size
        if not size:
            return False
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return False  # it may be written but not read
        try:
            return os.pread(fd, 1, size - 1) not in (b"\n", b"")
        finally:
            os.close(fd)

    def _moved(self) -> bool:
        try:
            now, ours = os.stat(self._path), os.fstat(self._fd)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return True
        return (now.st_dev, now.st_ino) != (ours.st_dev, ours.st_ino)

    def write(self, record: Record) -> bool:
        try:
            if self._fd < 0 or self._moved():
                self._open()
            line = (self._form(record) + "\n").encode("utf-8", "backslashreplace")
            # One call, so that the lines of several writers never mix; the disk may be full half-way.
            if self._torn and os.fstat(self._fd).st_size:
                line = b"\n" + line
            written = os.write(self._fd, line)
            if written:
                self._torn = written < len(line)
            return written == len(line)
        except OSError:
            return False

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Journal:
    """Entries with fields in the journal."""

    def write(self, record: Record) -> bool:
        fields = {
            "MESSAGE": record.message,
            "MESSAGE_ID": uuid.uuid5(_NAMESPACE, record.event.name).hex,
            "PRIORITY": str(_PRIORITY.get(record.event.level, 6)),
            "SYSLOG_IDENTIFIER": "besom",
            "BESOM_EVENT": record.event.name,
        }
        known = ((name, value) for name, value in record.fields.items() if value is not None)
        fields.update((f"BESOM_{name.upper()}", str(value)) for name, value in known)
        if record.exception:
            fields["BESOM_EXCEPTION"] = record.exception
        return journal.send(fields)

    def close(self) -> None:
        """There is nothing open."""


# Nobody listens until configure() is called.
_places: list[Place] = []
# Takes what no place has taken: the log that cannot be written is told of on stderr.
_last_resort: list[Place] = []
# Beside the log, never instead of it.
_shippers: list[Shipper] = []
_secrets = Secrets()


def tell(name: str, **fields: Any) -> None:
    """Tell an event of events.py with its fields; the exception at hand goes with those that have a trace."""
    try:
        record = _record(name, fields)
        taken = sum(place.write(record) for place in _places)
        if not taken:
            for place in _last_resort:
                place.write(record)
        for shipper in _shippers:
            shipper.write(as_clef(record))
    except Exception:  # noqa: BLE001, S110 (the work goes on, whatever becomes of what is told of it)
        pass


def _record(name: str, fields: dict[str, Any]) -> Record:
    event = EVENTS[name]
    shown = {key: _plain(value) for key, value in fields.items()}
    exception = ""
    error = sys.exc_info()[1]
    if event.trace and error is not None:
        # One that refers to itself may be as deep as the stack: a few frames of each end tell enough.
        exception = "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-20))
        exception = _plain(exception, _LONGEST_TRACE, lines=True)
    words = {"pid": os.getpid(), **shown}
    return Record(time.time(), event, shown, event.sentence.format(**words), exception)


def shown(text: str) -> str:
    """The text as it may be told to anybody: in one line, cut, without secrets."""
    return str(_plain(text))


def _plain(value: Any, longest: int = _LONGEST_TEXT, lines: bool = False) -> Any:
    """A number that JSON has, or a text that forges no line and shows no secret."""
    if isinstance(value, float):
        return value if math.isfinite(value) else 0.0
    if value is None or isinstance(value, (bool, int)):
        return value
    # Cut before it is searched, which may take as long as a hostile text wants.
    text = _secrets.hide(str(value)[: 2 * longest])
    parts = text.split("\n") if lines else [text]
    text = "\n".join(part if part.isprintable() else printable(part) for part in parts)
    return text if len(text) <= longest else text[:longest] + "..."


def configure(config: Config, once: bool = False) -> list[str]:
    """Send events where the configuration says; returns why one of these places cannot be written.

    once: for a command of a person or of cron, which tells nothing on stderr.
    """
    global _secrets
    close()
    form = FORMATS[config.log_format]
    refusals = []
    if config.log_file:
        try:
            _places.append(File(config.log_file, form))
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            instead = "" if once else "; events go to stderr"
            refusals.append(f"{printable(config.log_file)} cannot be written: {why}{instead}.")
    streamed = journal.is_stderr()
    native = config.log_journal
    if native is None:
        native = streamed and config.log_format == "text" and not config.log_file and not once
    if native:
        _places.append(Journal())
    stderr = Stderr(_for_stderr if streamed and config.log_format == "text" else form)
    if not once:
        _last_resort.append(stderr)
    api_key = config.seq_api_key
    _secrets = Secrets([api_key, *passwords(config.redis_url)], os.environ)
    if config.seq_url:
        try:
            # Threads, sockets and TLS: nothing that a daemon without it should carry.
            from .seq import Seq, read_api_key

            api_key = api_key or read_api_key(config.seq_api_key_file)
            _secrets = Secrets([api_key, *passwords(config.redis_url)], os.environ)
            _shippers.append(Seq(config.seq_url, api_key, os.path.join(config.state_dir, "seq"), tell))
        except Exception as error:  # noqa: BLE001 (whatever is the matter with it, the work goes on)
            refusals.append(f"Seq gets no events: {_reason(error)}")
    return refusals


def _reason(error: Exception) -> str:
    """What is the matter, as a sentence."""
    if not isinstance(error, OSError):
        return str(error) or repr(error)
    where = f"{printable(error.filename)}: " if isinstance(error.filename, (str, bytes)) else ""
    return f"{where}{error.strerror or error}."


def close(timeout: float = 0.0) -> None:
    """Tell nothing any more. What Seq has not got is kept; timeout: seconds for sending it."""
    shippers = _shippers[:]
    _shippers.clear()
    for shipper in shippers:
        # It may have something to tell the others.
        shipper.close(timeout)
    places = [*_places, *_last_resort]
    for listeners in (_places, _last_resort):
        listeners.clear()
    for place in places:
        place.close()
