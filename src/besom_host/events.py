"""Every event that besom tells, declared once: its name, level, sentence, fields, and what to do about it.

`python -m besom_host.events` prints docs/events.md, which a test compares with this table.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

INFO, WARNING, ERROR = "info", "warning", "error"
# What a field of each type holds, in Python.
TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "path": (str,),
    "integer": (int,),
    "bytes": (int, type(None)),
    "count": (int, type(None)),
    "seconds": (int, float),
    "boolean": (bool,),
}
_FIELDS: dict[str, tuple[str, str]] = {
    "operation": ("text", "`prune` or `sweep`"),
    "path": ("path", "what it is about; written so that it is one line and stands for one name"),
    "reason": ("text", "a sentence that says why, or what to do"),
    "removed_entries": ("integer", "entries that went"),
    "freed_bytes": ("bytes", "what the file system got back"),
    "freed": ("text", "the same for people"),
    "bytes_before": ("bytes", "allocated bytes in use before, each inode once; null where nobody has looked"),
    "bytes_after": ("bytes", "the same afterwards"),
    "before": ("text", "`bytes_before` for people"),
    "after": ("text", "`bytes_after` for people"),
    "entries_after": ("count", "entries that are there now; null where nobody has looked"),
    "measured": (
        "text",
        "`walk`: all; `index`: what has changed; `part`: until a signal; `statvfs`: only free space",
    ),
    "kept": ("integer", "entries that would have gone, and are in use or not besom's to remove"),
    "duration_s": ("seconds", "how long it took"),
    "lock_wait_s": ("seconds", "how long the lock was waited for"),
    "interval": ("text", "the interval for people"),
    "stores": ("integer", "how many stores are configured"),
    "temps": ("integer", "how many temp areas are configured"),
    "runs": ("integer", "how many runs were completed"),
    "cause": ("text", "`due`, `asked` (a signal or `besom daemon trigger`) or `once` (`besom housekeep`)"),
    "outcome": ("text", "`done`, `failed` or `interrupted`"),
    "took": ("text", "`duration_s` for people"),
    "wait": ("text", "`wait_s` for people"),
    "wait_s": ("seconds", "the time until then"),
    "at": ("text", "when that is, in UTC"),
    "ahead": ("text", "`ahead_s` for people"),
    "ahead_s": ("seconds", "by how much the clock has jumped forward"),
    "paths": ("text", "the stores, with commas between them"),
    "hook": ("text", "`before_prune` or `after_prune`"),
    "text": ("text", "what it has printed, as one line"),
    "problem": ("text", "the problem with its place"),
    "waited": ("text", "`lock_wait_s` for people"),
    "message": ("text", "who holds the lock, and how long it is waited for"),
    "error": ("text", "the error"),
    "phase": ("text", "`refuse`, `daemon`, `unmount` or `prune`"),
    "state": ("text", "`done`, `failed` or `skipped`"),
    "took_s": ("seconds", "how long the phase took"),
    "summary": ("text", "what it came to"),
    "timed_out": ("boolean", "it did not end in its time"),
    "forced": ("boolean", "the graceful way took too long"),
    "drained": ("integer", "operations that came to their end"),
    "abandoned": ("integer", "operations that were cut short between two entries"),
    "events": ("integer", "how many events"),
}
# In every JSON and CLEF line, and in the journal with the prefix BESOM_.
COMMON = {
    "event": ("text", "the name of the event"),
    "host": ("text", "the name of the host"),
    "pid": ("integer", "the process that tells it"),
}


@dataclass(frozen=True)
class Event:
    """One event. sentence: `{field}` stands for a field; trace: an exception comes with it."""

    name: str
    level: str
    sentence: str
    advice: str
    more: str = ""
    trace: bool = False
    fields: dict[str, tuple[str, str]] = field(init=False)

    def __post_init__(self) -> None:
        names = dict.fromkeys([*re.findall(r"{(\w+)}", self.sentence), *self.more.split()])
        object.__setattr__(self, "fields", {name: _FIELDS[name] for name in names if name not in COMMON})


_REPORT = (
    "operation removed_entries freed freed_bytes before bytes_before after bytes_after entries_after kept "
    "duration_s lock_wait_s measured"
)

EVENTS: dict[str, Event] = {
    event.name: event
    for event in (
        Event(
            "daemon_started",
            INFO,
            "Keeping house every {interval}, pid {pid}, configuration {path}.",
            "Nothing; it runs at once, and then at that interval.",
            more="stores temps",
        ),
        Event("daemon_stopped", INFO, "Stopped after {runs} runs.", "Nothing: it was told to drain."),
        Event(
            "config_problem",
            WARNING,
            "{problem}",
            "Mend that line or variable; until then the safe default is in force, or the store is left "
            "alone. `besom config check` lists all of them.",
        ),
        Event(
            "reloaded", INFO, "The configuration was read again.", "Nothing; it is in force.", more="stores"
        ),
        Event(
            "reload_refused",
            ERROR,
            "The configuration in force stays, since the new one is broken: {reason}",
            "Mend the file and reload again; the old settings are kept until a restart.",
        ),
        Event(
            "restart_needed",
            WARNING,
            "state_dir stays {path} until a restart.",
            "Restart the daemon where the new state_dir is meant.",
        ),
        Event("run_began", INFO, "A run begins ({cause}).", "Nothing."),
        Event(
            "run_ended",
            INFO,
            "The run is over ({outcome}): removed {removed_entries}, freed {freed}, in {took}; "
            "{after} in use.",
            "Where the outcome is `failed`, the errors before it in the log say what failed.",
            more="freed_bytes bytes_after duration_s",
        ),
        Event(
            "run_refused",
            WARNING,
            "No run begins, since this host drains ({path} exists).",
            "Nothing during a shutdown; afterwards `besom drain --resume`, or a boot.",
        ),
        Event(
            "run_crashed",
            ERROR,
            "The run ended in {error}.",
            "Report it with the exception; the next run comes at its time.",
            trace=True,
        ),
        Event(
            "clock_doubted",
            WARNING,
            "The clock has jumped forward by {ahead}; ages are told by the time before that.",
            "Set the clock right. Where it is right now, `besom daemon reload` (or a restart) says so; it is "
            "believed anyway after it has stood for a day.",
            more="ahead_s",
        ),
        Event("next_run", INFO, "The next run is in {wait}, at {at}.", "Nothing.", more="wait_s"),
        Event(
            "backing_off",
            WARNING,
            "Nothing could be freed although {paths} stays over its limit; the next run is in {wait}.",
            "See why its entries stay (`besom prune STORE --dry-run`): in use, younger than min_age, or "
            "not besom's to remove; or raise the limit.",
            more="wait_s",
        ),
        *(
            event
            for operation, idle in (
                ("prune", "{path}: no prune needed; {after} in use."),
                ("sweep", "{path}: no temp is stale; {after} in use."),
            )
            for event in (
                Event(
                    f"{operation}_done",
                    INFO,
                    "{path}: removed {removed_entries}, freed {freed}; {before} were in use, now {after}.",
                    "Nothing.",
                    more=_REPORT,
                ),
                Event(f"{operation}_idle", INFO, idle, "Nothing.", more=_REPORT),
            )
        ),
        Event(
            "anomaly",
            WARNING,
            "To look at: {path} ({reason}).",
            "Look at it: besom leaves it alone, and it counts towards the limit.",
        ),
        Event(
            "entry_failed",
            ERROR,
            "{path} {reason}.",
            "See the reason: permissions, or an error of the disk (the kernel's log has it).",
        ),
        Event(
            "limit_missed",
            WARNING,
            "{reason}",
            "As for `backing_off`: something keeps what should go.",
            more="path",
        ),
        Event(
            "work_warned",
            WARNING,
            "{reason}",
            "The sentence says what to think of it; the work was done.",
            more="path",
        ),
        Event(
            "work_failed",
            ERROR,
            "{reason}",
            "The sentence says what to do; the other stores had their turn.",
            more="operation path",
        ),
        Event(
            "command_failed",
            ERROR,
            "{reason}",
            "`besom prune`, `sweep`, `clean` or `purge`, given by a person, failed; the sentence says why.",
        ),
        Event(
            "work_crashed",
            ERROR,
            "{operation} of {path} ended in {error}; the others have their turn.",
            "Report it with the exception.",
            trace=True,
        ),
        Event(
            "work_interrupted",
            INFO,
            "{reason}",
            "Nothing: a signal ended the run between two entries, and the next one goes on.",
        ),
        Event(
            "area_missing",
            INFO,
            "{path} does not exist yet; it was skipped.",
            "Nothing, or correct the path.",
            more="operation",
        ),
        Event("lock_awaited", INFO, "{message}", "Nothing; the message names who is waited for."),
        Event(
            "lock_won",
            INFO,
            "Got the lock of {path} after {waited}.",
            "Nothing.",
            more="lock_wait_s",
        ),
        Event(
            "store_skipped",
            WARNING,
            "{reason}",
            "Nothing if it is rare; else see who holds the lock for so long (`besom lock status`), or "
            "raise lock_timeout.",
            more="operation path",
        ),
        Event("hook_output", INFO, "{hook}: {text}", "What a hook of yours has printed."),
        Event(
            "drain_phase",
            INFO,
            "Drain: {phase} {state} in {took_s}s ({summary}).",
            "Nothing.",
            more="timed_out forced drained abandoned",
        ),
        Event(
            "drain_failed",
            ERROR,
            "Drain: {phase} failed: {reason}",
            "The sentence says what is in the way; `besom drain` can be run again.",
        ),
        Event(
            "status_unwritten",
            WARNING,
            "The status cannot be written in {path}: {reason}.",
            "Make room, or mend the permissions of state_dir; the work goes on.",
        ),
        Event(
            "metrics_unwritten",
            WARNING,
            "The metrics cannot be written to {path}: {reason}",
            "Make the directory, or make it writable (also to the sandboxed unit); the work goes on.",
        ),
        Event(
            "log_refused",
            WARNING,
            "{reason}",
            "Mend what the sentence names, then reload; until then events go where it says.",
        ),
        Event(
            "seq_failed",
            WARNING,
            "Seq does not take events: {reason}; they are kept, and sent later.",
            "See whether the server runs and the API key is right. Told once for each outage.",
        ),
        Event("seq_recovered", INFO, "Seq takes events again.", "Nothing."),
        Event(
            "seq_dropped",
            WARNING,
            "{events} events were not sent to Seq: {reason}.",
            "They are in the log file or the journal, where one is configured. The first are told of at "
            "once, the rest when the server takes events again, or when besom ends.",
        ),
    )
}


def _document() -> Iterator[str]:
    yield "# Events"
    yield ""
    yield "What besom tells in its log, and what to do about it; [operating.md](operating.md#logs) says where"
    yield "it goes. Names, levels and fields are stable."
    yield ""
    yield "Every JSON and CLEF line also has these; the journal has the fields of an event in capitals, with"
    yield "the prefix `BESOM_`, and `BESOM_EVENT`:"
    yield ""
    yield "| field | type | meaning |"
    yield "|---|---|---|"
    for name, (kind, meaning) in COMMON.items():
        yield f"| `{name}` | {kind} | {meaning} |"
    for event in sorted(EVENTS.values(), key=lambda event: event.name):
        yield ""
        yield f"## {event.name}"
        yield ""
        yield f"{event.level.capitalize()}: `{event.sentence}`"
        yield ""
        yield event.advice
        yield ""
        if event.fields:
            yield "| field | type | meaning |"
            yield "|---|---|---|"
        for name, (kind, meaning) in event.fields.items():
            yield f"| `{name}` | {kind} | {meaning} |"
    yield ""


DOCUMENT = re.sub(r"\n{3,}", "\n\n", "\n".join(_document())).rstrip() + "\n"

if __name__ == "__main__":
    print(DOCUMENT, end="")
