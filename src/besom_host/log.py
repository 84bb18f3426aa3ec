"""What the daemon tells, as events with stable names: text for people, JSON lines or CLEF for machines."""

from __future__ import annotations

import json
import logging
import logging.handlers
import os
import sys
import time
from contextlib import suppress
from typing import Any

from besom.units import printable

_LOGGER = logging.getLogger("besom")
# Until configure() is called nobody listens.
_LOGGER.addHandler(logging.NullHandler())
_LOGGER.propagate = False
# sd-daemon(3): the journal takes a line's priority from a prefix.
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
_CLEF_LEVEL = {logging.DEBUG: "Debug", logging.WARNING: "Warning", logging.ERROR: "Error"}


def info(event: str, template: str, **fields: Any) -> None:
    """Log an event; `{field}` in the template stands for a field."""
    _log(logging.INFO, event, template, fields)


def warning(event: str, template: str, **fields: Any) -> None:
    _log(logging.WARNING, event, template, fields)


def error(event: str, template: str, **fields: Any) -> None:
    """Log an error, with the exception that is being handled if there is one."""
    _log(logging.ERROR, event, template, fields, sys.exc_info()[0] is not None)


def _log(level: int, event: str, template: str, fields: dict[str, Any], trace: bool = False) -> None:
    shown = {key: _plain(value) for key, value in fields.items()}
    extra = {"besom": {"event": event, "template": template, "fields": shown}}
    _LOGGER.log(level, "%s", template.format(**shown), exc_info=trace, extra=extra)


def _plain(value: Any) -> Any:
    """Texts are printable where they come from; one that is not must not forge a line all the same."""
    return printable(value) if isinstance(value, str) and not value.isprintable() else value


class _Text(logging.Formatter):
    """`2026-11-21T16:30:00Z info: sentence`; in the journal, which knows the time, `<6>sentence`."""

    def __init__(self, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += " " + printable(self.formatException(record.exc_info))
        if self._journal:
            return f"<{_PRIORITY.get(record.levelno, 6)}>{message}"
        return f"{_time(record)} {record.levelname.lower()}: {message}"


class _Json(logging.Formatter):
    """One JSON object a line: time, level, event, message and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        event = record.__dict__["besom"]
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "event": event["event"],
            "message": record.getMessage(),
            **event["fields"],
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Clef(logging.Formatter):
    """Compact log event format: @t, @mt, @l (left out for information), @x, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        event = record.__dict__["besom"]
        line = {"@t": _time(record), "@mt": event["template"], "event": event["event"]}
        if record.levelno in _CLEF_LEVEL:
            line["@l"] = _CLEF_LEVEL[record.levelno]
        if record.exc_info:
            line["@x"] = self.formatException(record.exc_info)
        return json.dumps({**line, **event["fields"]})


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03}Z"


class _File(logging.handlers.WatchedFileHandler):
    """The log file, opened anew when it was moved; what cannot be written there goes to stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        # The opening stands outside of what the class itself guards.
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):
            print(self.format(record), file=sys.stderr, flush=True)


def configure(format_: str = "text", file: str = "") -> str:
    """Send events to the file, or to stderr; returns why the file cannot be written, if so.

    The file may be moved or deleted by whoever rotates logs: the next event opens a new one.
    """
    refusal = ""
    handler: logging.Handler
    try:
        if file:
            handler = _File(file, encoding="utf-8", errors="backslashreplace")
        else:
            handler = logging.StreamHandler(sys.stderr)
    except OSError as problem:
        refusal = f"{printable(file)} cannot be written: {problem.strerror}; events go to stderr."
        handler, file = logging.StreamHandler(sys.stderr), ""
    journal = not file and bool(os.environ.get("JOURNAL_STREAM"))
    handler.setFormatter(_Json() if format_ == "json" else _Clef() if format_ == "clef" else _Text(journal))
    # A disk that is full, or a reader that went away, must not end the work that the log is about.
    logging.raiseExceptions = False
    for old in _LOGGER.handlers[:]:
        _LOGGER.removeHandler(old)
        old.close()
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    return refusal
