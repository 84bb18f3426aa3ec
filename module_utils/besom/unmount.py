# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Unmounting that ends: plan from mountinfo, try until a deadline, then detach or say who holds the mount."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from . import children
from .errors import BesomError, UsageError
from .holders import Holders, MountHolder, find_holders
from .mount_points import order, refuse, resolve
from .mounts import Mount, mounts
from .run import Run
from .shutdown import Shutdown
from .units import format_duration, printable

# One try may take this long (seconds) before the next mount has its turn, and every try gets this much.
_TRY_S, _LEAST_TRY_S = 5.0, 0.3
_GRACE_S = 0.1
_LAZY_HUNG_S = 1.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.02, 0.25
# How old a list of holders may get, and how long making the last one may take.
_HOLDERS_COUNT_S, _HOLDERS_S = 2.0, 0.5
_LISTED = 100
# The states of what goes.
GONE = ("unmounted", "detached", "would_unmount")


@dataclass(frozen=True)
class UnmountRequest:
    """Mount points (absolute paths) that are to be unmounted, all of them within timeout (seconds).

    lazy: detach what is still busy then. recursive: unmount what is mounted below as well.
    """

    paths: tuple[str, ...]
    timeout: float = 30.0
    lazy: bool = False
    recursive: bool = False


@dataclass
class MountState:
    """One mount and what became of it.

    state: absent, unmounted, detached (lazily), busy, failed, or would_unmount in a dry run. target is
    the mount point asked for, at or below which it is; id its mount id, 0 where there is none.
    """

    path: str
    target: str
    state: str
    mount: Mount | None = None
    tries: int = 0
    duration_s: float = 0.0
    holders: list[MountHolder] = field(default_factory=list)
    message: str = ""

    @property
    def id(self) -> int:
        return self.mount.id if self.mount else 0

    @property
    def fstype(self) -> str:
        return self.mount.fstype if self.mount else ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": printable(self.path),
            "fstype": self.fstype,
            "source": printable(self.mount.source) if self.mount else "",
            "state": self.state,
            "tries": self.tries,
            "duration_s": round(self.duration_s, 3),
            "holders": [holder.to_dict() for holder in self.holders[:_LISTED]],
            "message": self.message,
        }


@dataclass
class UnmountReport:
    """What was unmounted, or (dry_run) would be, in that order."""

    mounts: list[MountState] = field(default_factory=list)
    dry_run: bool = False
    duration_s: float = 0.0
    interrupted: bool = False
    warnings: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return any(one.state in GONE for one in self.mounts)

    @property
    def messages(self) -> list[str]:
        """A sentence for each mount that is still there and should not be."""
        return [
            f"{printable(one.path)} stays mounted: {one.message}"
            for one in self.mounts
            if one.state in ("busy", "failed")
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "operation": "unmount",
            "changed": self.changed,
            "dry_run": self.dry_run,
            "mounts": [one.to_dict() for one in self.mounts],
            "duration_s": round(self.duration_s, 3),
            "interrupted": self.interrupted,
            "warnings": self.warnings,
        }


def plan(request: UnmountRequest) -> UnmountReport:
    """What would be unmounted, in that order, and who holds it now; asks no mount anything.

    Raises UsageError for a path that is refused, and for mounts below one without recursive.
    """
    report = UnmountReport(dry_run=True)
    targets = list(dict.fromkeys(resolve(path) for path in request.paths))
    for target in targets:
        refuse(target)
    listed = mounts()
    # What lies deeper has its turn first, also where both are asked for.
    planned: set[int] = set()
    for target in sorted(targets, key=lambda path: -path.count("/")):
        found = order(target, listed)
        if any(mount.path == target and mount.fstype == "autofs" for mount in listed):
            report.warnings.append(
                f"{printable(target)} is an automount point; whoever uses it next mounts it again."
            )
        below = sorted({mount.path for mount in found} - set(targets))
        if below and not request.recursive:
            raise UsageError(
                f"{printable(target)} has mounts below it: {', '.join(map(printable, below))}; "
                "unmount these first, or use recursive."
            )
        found = [mount for mount in found if mount.id not in planned]
        planned.update(mount.id for mount in found)
        report.mounts += [MountState(mount.path, target, "would_unmount", mount) for mount in found]
        if not found and target not in {one.path for one in report.mounts}:
            report.mounts.append(MountState(target, target, "absent"))
    return report


def unmount(request: UnmountRequest, run: Run) -> UnmountReport:
    """Unmount what is planned, and try again while it is busy, until the timeout is over.

    Then what is left is detached with lazy, or reported with those who hold it. A shutdown ends it
    between two tries. Raises UsageError as plan does, before anything is done.
    """
    began = time.monotonic()
    report = plan(request)
    if run.dry_run:
        _name(report.mounts, find_holders([one.mount for one in report.mounts if one.mount]))
    else:
        report.dry_run = False
        _Work(request, report, run.shutdown, began).do()
    report.duration_s = time.monotonic() - began
    return report


class _Work:
    """One execution of a plan; a deadline for all of it, so that mounts do not wait for one another."""

    def __init__(
        self, request: UnmountRequest, report: UnmountReport, shutdown: Shutdown, began: float
    ) -> None:
        self._request = request
        self._report = report
        self._shutdown = shutdown
        self._began = began
        self._until = began + request.timeout
        self._left = [one for one in report.mounts if one.mount]
        self._holders = Holders()
        self._looked = 0.0
        self._hung: set[int] = set()

    def do(self) -> None:
        for one in self._left:
            one.state = "busy"
        wait = _FIRST_WAIT_S
        while self._round():
            left = self._until - time.monotonic()
            if left <= 0 or self._shutdown.requested:
                break
            self._wait(min(wait, left))
            wait = min(wait * 2, _LONGEST_WAIT_S)
        self._report.interrupted = bool(self._left) and self._shutdown.requested
        if any(one.state == "busy" for one in self._left):
            self._look(_HOLDERS_S)
        if self._request.lazy and not self._report.interrupted:
            self._detach()
        for one in self._left:
            self._explain(one)
        self._verify()

    def _round(self) -> bool:
        """One try for each mount that is left; whether another round may bring more."""
        for one in list(self._left):
            if one.id not in _present(self._left):
                # It went with another, or somebody else was faster.
                self._settle(one, "unmounted" if one.tries else "absent")
            elif self._shutdown.requested:
                break
            elif any(other.state == "failed" for other in _below(one, self._left)):
                one.state = "failed"
            elif one.state == "busy" and not _below(one, self._left):
                self._try(one)
        busy = any(one.state == "busy" for one in self._left)
        if busy and time.monotonic() - self._looked > _HOLDERS_COUNT_S:
            self._look(max(_HOLDERS_S, min(2.0, self._until - time.monotonic())))
        return busy

    def _try(self, one: MountState) -> None:
        one.tries += 1
        left = self._until - time.monotonic()
        timeout = max(_LEAST_TRY_S, min(_TRY_S, left / max(1, len(self._left))))
        ended = _run(one, False, timeout, self._shutdown)
        if one.id not in _present([one]):
            self._settle(one, "unmounted")
            self._note_left_behind(one, ended)
        elif ended.timed_out:
            self._hung.add(one.id)
        elif not ended.interrupted and b"busy" not in ended.output:
            # Another try would come to the same.
            one.state, one.message = "failed", _last_line(ended)

    def _detach(self) -> None:
        """Detach lazily, the highest first.

        That takes along what is mounted below, and leads through no mount that hangs.
        """
        for one in sorted(self._left, key=lambda one: one.path.count("/")):
            if one.path != one.target or one not in self._left:
                continue
            one.tries += 1
            timeout = _LAZY_HUNG_S if one.id in self._hung else _TRY_S
            ended = _run(one, True, timeout, self._shutdown)
            present = _present(self._left)
            if one.id in present:
                one.state, one.message = "failed", _last_line(ended)
            for gone in [each for each in self._left if each.id not in present]:
                self._settle(gone, "detached")
                self._note_left_behind(gone, ended)

    def _note_left_behind(self, one: MountState, ended: children.Ended) -> None:
        if ended.status is None:
            self._report.warnings.append(
                f"{printable(one.path)} is {one.state}, but the command still waits for its server."
            )

    def _settle(self, one: MountState, state: str) -> None:
        one.state, one.message = state, ""
        one.duration_s = time.monotonic() - self._began
        self._left.remove(one)
        if state == "detached":
            who = _named(one.holders) if one.holders else self._unknown()
            one.message = f"still held by {who}." if one.holders else f"still {who}."
        elif state != "detached":
            one.holders = []

    def _explain(self, one: MountState) -> None:
        """Say why a mount is still there."""
        one.duration_s = time.monotonic() - self._began
        below = _below(one, self._left)
        if below:
            paths = dict.fromkeys(printable(other.path) for other in below)
            one.message = f"{', '.join(paths)} is mounted on it and stays."
        elif self._report.interrupted:
            one.message = "interrupted before it could be unmounted."
        elif one.state == "busy":
            who = f"held by {_named(one.holders)}" if one.holders else self._unknown()
            hung = "its server does not answer; " if one.id in self._hung else ""
            tried = format_duration(round(time.monotonic() - self._began, 1))
            one.message = f"{hung}{who}; tried for {tried}. End them, raise timeout, or allow lazy."

    def _unknown(self) -> str:
        if self._holders.unseen:
            return f"held by processes that only root may look at ({self._holders.unseen} of others here)"
        return "held by something that /proc does not show (a loop device, swap, another namespace)"

    def _verify(self) -> None:
        """What is still on a target although all that was planned is gone came meanwhile."""
        left = {one.target for one in self._left}
        for mount in mounts():
            for target in {one.target for one in self._report.mounts} - left:
                if mount.path == target and mount.fstype != "autofs":
                    state = MountState(target, target, "failed", mount)
                    state.message = "it was mounted again meanwhile; see who does that."
                    self._report.mounts.append(state)

    def _look(self, timeout: float) -> None:
        """Find out who holds what is left."""
        self._holders = find_holders([one.mount for one in self._left if one.mount], timeout)
        self._looked = time.monotonic()
        _name(self._left, self._holders)

    def _wait(self, seconds: float) -> None:
        """Wait until a holder is gone, mountinfo changes, a shutdown is requested or the time is over."""
        until = time.monotonic() + seconds
        pidfds = []
        for pid in list(self._holders.pids)[:_LISTED]:
            with suppress(AttributeError, OSError):
                pidfds.append(os.pidfd_open(pid))
        poll = select.poll()
        for fd in pidfds:
            poll.register(fd, select.POLLIN)
        try:
            with open("/proc/self/mountinfo", "rb") as stream:
                poll.register(stream, select.POLLERR | select.POLLPRI)
                while not self._shutdown.requested and (left := until - time.monotonic()) > 0:
                    if poll.poll(int(min(left, 0.02) * 1000) + 1):
                        self._looked = 0.0
                        break
        finally:
            for fd in pidfds:
                os.close(fd)


def _run(one: MountState, lazy: bool, timeout: float, shutdown: Shutdown) -> children.Ended:
    missing: BesomError | None = None
    for command in _commands(one.path, one.fstype, lazy):
        try:
            return children.run(command, timeout, shutdown, grace=_GRACE_S, env={**os.environ, "LC_ALL": "C"})
        except children.CommandMissing as error:
            missing = missing or error
    return children.Ended(1, os.fsencode(str(missing)), False, False, 0.0)


def _commands(path: str, fstype: str, lazy: bool) -> list[list[str]]:
    """What unmounts path; the first of these that is installed. None of them looks at what is mounted."""
    root = os.geteuid() == 0
    plain = ["umount", *(["--no-canonicalize"] if root else []), *(["--lazy"] if lazy else []), path]
    if fstype.startswith("fuse.") or fstype == "fuse" or (fstype.startswith("fuseblk") and not root):
        fuse = [[program, "-uz" if lazy else "-u", path] for program in ("fusermount3", "fusermount")]
        return [*fuse, plain] if root else fuse
    return [plain]


def _present(states: Iterable[MountState]) -> set[int]:
    """The ids of those that mountinfo still lists as what they were; ids are used again, umount(2)."""
    wanted = {one.id: (one.path, one.fstype) for one in states}
    return {mount.id for mount in mounts() if wanted.get(mount.id) == (mount.path, mount.fstype)}


def _below(one: MountState, states: Sequence[MountState]) -> list[MountState]:
    return [other for other in states if other.mount and other is not one and other.mount.parent == one.id]


def _name(states: Collection[MountState], holders: Holders) -> None:
    for one in states:
        if one.mount:
            one.holders = holders.of(one.id)


def _named(holders: Sequence[MountHolder]) -> str:
    more = f" and {len(holders) - 5} more" if len(holders) > 5 else ""
    return ", ".join(map(str, holders[:5])) + more


def _last_line(ended: children.Ended) -> str:
    """What a command that failed said in the end, as a sentence."""
    if ended.timed_out:
        return "its server does not answer."
    text = ended.text.rpartition("\n")[2] or f"the command ended with status {ended.status}"
    return printable(text.rstrip(".")) + "."
