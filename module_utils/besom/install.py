# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Installing an archive as a directory: fetched, extracted beside its place, then put there in one step.

All of it happens in temps of besom's own naming, locked while they are in use; the writer lock of the
directory is held only to put the tree in its place, and to remove what has to go.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Callable, TypeVar

from .archive import BadArchive
from .artifacts import Artifact
from .claim import claim
from .crew import Crew
from .cutoff import Cut, Cutoff
from .durable import Draft, Retries, check_name, parts_of, sync_directory
from .durable_tree import AROUND, TreeDraft, old_name, remove_orphans, tree_draft
from .errors import BesomError, UsageError, reason_of
from .extract import Extracted, Limits, extract
from .fetch import Opener
from .guard import STOPPED, guarded
from .installed import (
    ABSENT,
    MARK,
    Mark,
    State,
    has_left_marks,
    read_state,
    remove_left_links,
    remove_left_marks,
    rewrite_mark,
    switch,
    write_mark,
)
from .kept_archive import fetch_kept, name_of, size_of
from .locks import LockTable
from .origin import Origin, digest_of
from .preflight import DEFAULT_EXPAND, Need, preflight
from .report import Report
from .root import Root
from .run import Run
from .sync import SyncReport, SyncRequest
from .transfer import DEFAULT_RETRIES, Figures, Look, Source, Transfer, look
from .tree import Cursor, Removal, measure, refusal, remove_tree
from .units import Share, printable

# How soon a signal is seen to, and how long what is cut may take to notice.
_POLL_S, _GRACE_S = 0.05, 2.0
Result = TypeVar("Result")


@dataclass(frozen=True)
class InstallRequest:
    """A tree called name in the directory into, from source; None: it is to be absent.

    keep: old versions that stay; current: a symlink beside it that is to lead to it; strip: leave out
    the one directory that the archive consists of; replace: also what besom has not installed; expand:
    how many times the download the tree may need, reserve: what is to stay free beside that; store: a
    directory in which the archive, which needs a checksum then, is kept for other installs; uid, gid: who
    is to have all of the tree, mode: that of its top; lock_backend, store_backend: `redis` where several
    machines share into, or store.
    """

    into: str
    name: str
    source: Source | None = None
    keep: int = 0
    current: str = ""
    strip: bool = False
    replace: bool = False
    limits: Limits = field(default_factory=Limits)
    expand: float = DEFAULT_EXPAND
    reserve: Share | None = None
    retries: int = DEFAULT_RETRIES
    store: str = ""
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    lock_backend: str = "flock"
    store_backend: str = "flock"

    def check(self, root: Root) -> None:
        """Raise UsageError for names that cannot be."""
        for name, what in ((self.name, "name"), (self.current, "current")):
            if name or what == "name":
                check_name(root.fd, name, AROUND)
            if name.startswith("."):
                raise UsageError(f"{what}: {printable(name)} begins with a dot, as besom's own names do.")
        if self.current == self.name:
            raise UsageError(f"current: {printable(self.name)} is the name of the tree; choose another.")
        if self.store and self.source and not self.source.checksum:
            raise UsageError("A store needs a checksum, by which the archive is found there again; give one.")


@dataclass
class InstallReport(Report):
    """What was done, or (dry_run) would be.

    action: installed, upgraded, removed, or empty; before, after: what was there and is now; fetched,
    renames: what the transfer and the renames took.
    """

    path: str = ""
    action: str = ""
    before: State = ABSENT
    after: State = ABSENT
    fetched: Figures = field(default_factory=Figures)
    renames: Retries = field(default_factory=Retries)

    @property
    def switched(self) -> bool:
        return self.before.link != self.after.link

    @property
    def changed(self) -> bool:
        return bool(self.action) or self.switched or super().changed

    def to_dict(self) -> dict[str, Any]:
        mark, values = self.after.mark or Mark(), super().to_dict()
        # Of what else is in the directory nothing is known.
        del values["bytes_before"], values["bytes_after"], values["measured"]
        return {
            **values,
            "tree": printable(self.path),
            "action": self.action,
            "url": mark.url,
            "checksum": mark.checksum,
            "installed": mark.installed,
            "files": {"entries": mark.entries, "bytes": mark.bytes},
            "switched": self.switched,
            "old_versions": [printable(name) for name in self.after.old],
            "fetched_bytes": self.fetched.bytes,
            "retries": self.fetched.retries,
            "retry_wait_s": round(self.fetched.waited_s, 3),
            "renames": self.renames.to_dict(),
        }

    @property
    def diff(self) -> dict[str, str]:
        """What was there and what is (or would be), as Ansible shows a difference."""
        before, after = (_lines(state) for state in (self.before, self.after))
        header = printable(self.path)
        return {"before_header": header, "after_header": header, "before": before, "after": after}

    @property
    def summary(self) -> str:
        """What was done, or would be, in one sentence."""
        shown, would = printable(self.path), "would have " if self.dry_run else ""
        parts = []
        if self.action:
            parts.append(f"{would}{self.action} {shown}")
        if self.switched:
            parts.append(f"{would}switched the link")
        old = (self.planned if self.dry_run else self.removed).entries
        if old and self.action != "removed":
            parts.append(f"{would}removed {old} old {'version' if old == 1 else 'versions'}")
        if not parts:
            return f"{shown} is as it should be."
        text = "; ".join(parts) + "."
        return text[0].upper() + text[1:]


def _lines(state: State) -> str:
    mark, lines = state.mark, ["absent"]
    if mark:
        lines = [f"{mark.url} ({mark.checksum or 'checksum unknown yet'})"]
    elif state.exists:
        lines = ["not installed by besom"]
    if state.link is not None:
        lines.append(f"linked: {printable(state.link)}")
    lines += [f"old: {printable(name)}" for name in state.old]
    return "".join(f"{line}\n" for line in lines)


def install(request: InstallRequest, run: Run, opener: Opener) -> InstallReport:
    """Bring the tree to what the request says, or (run.dry_run) say what that would take.

    opener: as transfer.ask wants it. Raises UsageError for a directory that is missing or refused, and
    for what is in the way; NoSpace, LockHeld, BadArchive, BesomError, and then all is as it was;
    Interrupted.
    """
    began = time.monotonic()
    with Root(request.into) as root:
        request.check(root)
        report = InstallReport("install", root.path, run.dry_run)
        report.path = os.path.join(root.path, request.name)
        _Install(root, request, run, opener, report).work()
    report.duration_s = time.monotonic() - began
    return report


class _Install:
    def __init__(
        self, root: Root, request: InstallRequest, run: Run, opener: Opener, report: InstallReport
    ) -> None:
        self._root, self._request, self._run = root, request, run
        self._opener, self._report = opener, report

    def work(self) -> None:
        source, report = self._request.source, self._report
        state = report.before = report.after = self._state()
        # What a download can be gone on with is not left over, as long as there may be one.
        if self._tidy(parts_of(self._root.fd, self._request.name) if source else ()):
            # An old version may have come to light.
            state = self._state()
        there = self._mark(state)
        missing = source is not None and self._is_missing(source, there)
        if self._run.dry_run:
            self._predict(source, state, missing)
        elif source is None:
            if self._gone(state) or self._link(state) != state.link:
                with self._locked():
                    self._finish()
        elif missing or not self._keep(there):
            self._fetch_and_commit(source)

    def _state(self) -> State:
        """What is there now. Raises UsageError when it is not besom's to replace or remove."""
        request = self._request
        state = read_state(self._root, request.name, request.current)
        if state.exists and state.mark is None and not request.replace:
            raise UsageError(
                f"{printable(self._report.path)} is there and besom has not installed it; "
                "move it away, or allow that it goes with replace."
            )
        return state

    def _mark(self, state: State) -> Mark | None:
        """The mark of the tree, unless that has another owner, group or mode than it is to have."""
        request = self._request
        wanted = (request.mode, request.uid, request.gid)
        fits = all(one in (None, other) for one, other in zip(wanted, state.access))
        return state.mark if fits else None

    def _is_missing(self, source: Source, mark: Mark | None) -> bool:
        """Whether something else is wanted than what is there; with a checksum no server is asked that.

        Raises NoSpace when there is no room for the archive and its content.
        """
        request, strip = self._request, self._request.strip
        if mark and source.checksum and (mark.checksum, mark.strip) == (str(source.checksum), strip):
            return False
        kept = size_of(request.store, source) if request.store else -1
        if kept < 0:
            known = self._known(source, mark)
            answer = self._await(lambda: look(self._opener, source, known), f"asking for {source.shown}")
        else:
            answer = Look(False, kept)
        if answer.unchanged:
            return False
        if answer.size < 0:
            self._report.warnings.append(
                f"The size of {source.shown} is unknown, so its space is not checked."
            )
        else:
            # What earlier runs have left is gone on with, or (in a dry run) would be removed before.
            size = answer.size + int(answer.size * request.expand) - self._left(()).planned.bytes
            needs = [Need(self._root.path, max(size, 0))]
            if request.store and kept < 0:
                needs.append(Need(request.store, answer.size))
            preflight(needs, None, request.reserve).require()
        return True

    def _known(self, source: Source, mark: Mark | None) -> Origin | None:
        """What the server may be asked about instead of for the whole: whether it has changed."""
        if not mark or source.checksum or mark.strip != self._request.strip:
            return None
        return mark.origin if mark.origin.source == digest_of(source.url) else None

    def _gone(self, state: State) -> list[str]:
        """The trees that have to go, of those in state."""
        if self._request.source is None:
            return [*state.old, *([self._request.name] if state.exists else [])]
        return [*state.old[: max(len(state.old) - self._request.keep, 0)]]

    def _link(self, state: State) -> str | None:
        """Where the link is to lead."""
        request = self._request
        if request.source is None:
            return None if state.link == request.name else state.link
        return request.name if request.current else None

    def _predict(self, source: Source | None, state: State, missing: bool) -> None:
        request, report = self._request, self._report
        after = state
        if source and missing:
            report.action = "upgraded" if state.exists else "installed"
            old = (*state.old, *([request.name] if state.exists else []))
            mark = Mark(source.shown, str(source.checksum or ""), strip=request.strip)
            after = State(True, mark, old, state.link)
        elif source is None and state.exists:
            report.action = "removed"
            after = replace(state, exists=False, mark=None)
        gone = self._gone(after if source else state)
        report.after = replace(
            after, old=tuple(name for name in after.old if name not in gone), link=self._link(state)
        )
        cursor, table = Cursor(self._root), LockTable()
        for name in gone:
            self._look_at(cursor, name, table)

    def _look_at(self, cursor: Cursor, name: str, table: LockTable) -> tuple[int, int] | None:
        """Note that a tree is to go; its identity, or None where that is noted to be impossible."""
        report, path = self._report, cursor.path(name)
        try:
            cursor.enter(name)
            found = measure(cursor, table)
        except OSError as error:
            self._note_refusal(refusal(path, error))
            return None
        finally:
            cursor.rise(0)
        if found.blocked:
            noted = report.anomalies if found.blocked.anomaly else report.kept
            noted.add(found.blocked.path, found.blocked.reason)
            return None
        report.planned.add(1, found.freed)
        reason = "is to be absent" if self._request.source is None else "old version"
        report.victims.add(path, reason, kind="tree", bytes=found.freed)
        return found.identity

    def _note_refusal(self, removal: Removal) -> None:
        if removal.blocked:
            noted = self._report.failures if removal.failed else self._report.kept
            noted.add(removal.blocked.path, removal.blocked.reason)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the writer lock of the directory."""
        run = self._run
        with guarded(self._root, run, self._request.lock_backend) as (self._run, waited):
            self._report.lock_wait_s += waited
            try:
                yield
            finally:
                self._run = run

    def _left(self, spare: Collection[str]) -> Report:
        """What killed writers have left, but spare."""
        return remove_orphans(self._root, replace(self._run, dry_run=True), spare=spare)

    def _tidy(self, spare: Collection[str]) -> bool:
        """Remove what killed writers have left, but spare; the lock is taken only where there is such."""
        left = self._left(spare)
        if not self._report.anomalies.total:
            self._report.anomalies.extend(left.anomalies)
        if self._run.dry_run or not left.planned.entries:
            return False
        with self._locked():
            done = remove_orphans(self._root, self._run, spare=spare)
        self._report.warnings += done.warnings
        self._report.anomalies.extend(done.failures)
        return True

    def _fetch_and_commit(self, source: Source) -> None:
        root, request, report = self._root, self._request, self._report
        with self._part() as (part, waited):
            there = self._mark(self._state())
            if waited and not self._is_missing(source, there) and self._keep(there):
                return
            while (origin := self._fetch(source, part, self._known(source, there))) is None:
                if self._keep(there):
                    return
                # It has gone, and all of it is wanted.
                there = None
            mark = Mark(source.shown, origin.checksum, origin, request.strip)
            if there and there.tells_the_same(mark) and self._keep(there, origin):
                return
            with tree_draft(root, request.name, report.renames) as tree:
                made = self._extract(source, part, tree)
                # Its room is better spent from here on; the claim stays.
                os.ftruncate(part.fd, 0)
                when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._run.now() // 10**9))
                mark = replace(mark, entries=made.entries, bytes=made.bytes, installed=when)
                write_mark(tree.fd, report.path, mark)
                tree.seal(0o755 if request.mode is None else request.mode, request.uid, request.gid)
                deadline = time.monotonic() + self._run.lock_timeout
                with self._locked():
                    self._commit(tree, mark, deadline)
                    self._finish()

    def _keep(self, mark: Mark | None, origin: Origin | None = None) -> bool:
        """Leave the tree of this mark as it is, and see to its link, old versions and what killed runs left.

        origin: where its content has come from again. False where it is there no more: what was looked at
        may go while a lock is waited for.
        """
        self._tidy(())
        report, name = self._report, self._request.name
        state = report.before = report.after = self._state()
        if not self._tells_the_same(state, mark):
            return False
        is_right = not self._gone(state) and self._link(state) == state.link
        if origin or not is_right or has_left_marks(self._root, name):
            with self._locked():
                if not self._tells_the_same(self._state(), mark):
                    return False
                remove_left_marks(self._root, name)
                if origin and mark:
                    # So that the server need not send all of it the next time.
                    rewrite_mark(self._root, name, replace(mark, origin=origin))
                self._finish()
        # Who renamed it may have been killed before this.
        sync_directory(self._root.fd, self._root.path)
        return True

    def _tells_the_same(self, state: State, mark: Mark | None) -> bool:
        there = self._mark(state)
        return bool(mark and there and there.tells_the_same(mark))

    def _extract(self, source: Source, part: Draft, tree: TreeDraft) -> Extracted:
        request = self._request
        with os.fdopen(os.dup(part.fd), "rb") as archive:
            try:
                return extract(
                    archive,
                    tree.fd,
                    self._report.path,
                    self._run,
                    request.limits,
                    request.strip,
                    MARK,
                    request.uid,
                    request.gid,
                )
            except BadArchive as error:
                raise BadArchive(f"{source.shown}: {error}") from error

    def _commit(self, tree: TreeDraft, mark: Mark, deadline: float) -> None:
        """Put the tree in its place, unless another has put the same there meanwhile."""
        self._run.shutdown.check("about to put it in its place")
        state = self._report.before = self._state()
        if self._tells_the_same(state, mark):
            return
        name = self._request.name
        newest = state.old[-1] if state.old else ""
        tree.commit(old_name(name, self._run.now(), newest) if state.exists else None, deadline)
        self._report.action = "upgraded" if state.exists else "installed"

    def _finish(self) -> None:
        """Under the writer lock: the link, and then what has to go.

        What fails after the tree was put in its place is noted as a failure, as that was done.
        """
        request, report = self._request, self._report
        try:
            try:
                self._settle()
            finally:
                report.after = read_state(self._root, request.name, request.current)
        except (BesomError, OSError) as error:
            if not report.action:
                raise
            report.failures.add(report.path, f"was {report.action}, but then: {reason_of(error)}")

    def _settle(self) -> None:
        request, report, state = self._request, self._report, self._state()
        remove_left_links(self._root)
        if self._link(state) != state.link:
            switch(self._root, request.current, self._link(state))
        cursor, table = Cursor(self._root), LockTable()
        for name in self._gone(state):
            shutdown = self._run.shutdown
            if shutdown.requested:
                report.interrupted = not shutdown.lost
                if shutdown.lost:
                    report.failures.add(report.store, f"{shutdown.lost}; {STOPPED}")
                break
            gone = self._remove(cursor, name, table)
            if name == request.name:
                report.action = "removed" if gone else ""
                if not gone and not report.failures.total:
                    report.failures.add(report.path, "cannot go now; see what is listed as kept")

    def _remove(self, cursor: Cursor, name: str, table: LockTable) -> bool:
        report = self._report
        identity = self._look_at(cursor, name, table)
        if identity is None:
            return False
        removal = remove_tree(cursor, name, identity)
        if removal.blocked is None:
            report.removed.add(1, removal.freed)
            return True
        report.victims.discard(cursor.path(name))
        self._note_refusal(removal)
        return False

    def _part(self) -> AbstractContextManager[tuple[Draft, bool]]:
        """The draft of the archive, and whether another install of the name was waited for.

        It may be that of a killed run, to go on with.
        """
        root, run = self._root, self._run

        def pause(seconds: float) -> None:
            time.sleep(seconds)
            run.shutdown.check(f"waiting for another install of {printable(self._report.path)}")

        options = (run.lock_timeout, run.lock_option, run.waiting, pause)
        return claim(root.fd, root.path, self._request.name, self._report.renames, *options)

    def _fetch(self, source: Source, part: Draft, known: Origin | None) -> Origin | None:
        """Fetch the archive into part; None: the server says that it is the known one."""
        cutoff, run, request = Cutoff(), self._run, self._request
        if request.store:
            artifact = Artifact(name_of(source), source)
            wanted = SyncRequest(request.store, [artifact], self._opener, 1, request.retries, 0.0)
            wanted = replace(wanted, reserve=request.reserve, lock_backend=request.store_backend)
            return fetch_kept(wanted, part, run, self._note)

        def moved(done: int, total: int) -> None:
            run.progress("fetch", done, max(total, 0))

        transfer = Transfer(source, self._opener, cutoff, request.retries, moved)
        self._report.fetched = transfer.figures
        return self._await(lambda: transfer.run(part, known), f"fetching {source.shown}", cutoff)

    def _note(self, done: SyncReport) -> None:
        report = self._report
        report.fetched = done.figures
        report.lock_wait_s += done.lock_wait_s
        report.warnings += done.warnings

    def _await(self, work: Callable[[], Result], doing: str, cutoff: Cutoff | None = None) -> Result:
        """What work comes to, in a thread of its own: a signal is heard while a server keeps silent.

        The signal cuts it; what does not heed that, or cannot be cut, is left behind (with a draft
        that is closed, so it writes nothing any more).
        """
        shutdown, left_at = self._run.shutdown, float("inf")
        crew = Crew([work], lambda work: work(), 1)
        while not (ended := crew.wait(_POLL_S)):
            if shutdown.requested and left_at == float("inf"):
                left_at = time.monotonic() + (_GRACE_S if cutoff else 0.0)
                if cutoff:
                    cutoff.cut()
            if time.monotonic() >= left_at:
                shutdown.check(doing)
        result = ended[1]
        if isinstance(result, Cut):
            shutdown.check(doing)
        if isinstance(result, BaseException):
            raise result
        return result
