# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Artifacts fetched into a store, several at a time: planned, claimed, transferred, verified, published.

Transfers hold nothing but the lock of their own temp; the writer lock of the store is held for the
publication of what is whole, by one for all that are ready.
"""

from __future__ import annotations

import hashlib
import os
import signal
import stat
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from .artifacts import Artifact
from .claim import Listings, claim, directory_in, file_in, is_locked
from .crew import Crew
from .cutoff import Cut, Cutoff
from .durable import Draft, Retries, list_parts, parts_of, sync_directory, usual_mode
from .errors import BesomError, Interrupted, LockHeld, NoSpace, reason_of
from .fetch import Opener
from .guard import guarded
from .mounts import mount_of
from .origin import Origin, digest_of, read_origin, write_origin
from .own_names import ORPHAN
from .preflight import Need, preflight
from .publisher import Publisher
from .report import Noted, Report
from .root import Root
from .run import Run
from .transfer import BLOCK, DEFAULT_RETRIES, Figures, Transfer, leave, look
from .units import Share, format_duration, printable

DEFAULT_PARALLEL = 4
DEFAULT_DRAIN_S = 30.0
# Those that wait for their publication, and leave their place at the mirror to others meanwhile.
_PUBLISHING = 12
# How soon a signal is seen to, and how long what is cut may take to notice.
_WAKE_S, _QUEUE_S, _GRACE_S = 0.05, 0.25, 2.0

# watch(dest, what, bytes done, bytes in all): fetching, fetched, unchanged, failed; -1: not known.
Watch = Callable[[str, str, int, int], None]


def unwatched(dest: str, what: str, done: int, total: int) -> None:
    """The transfers that nobody watches."""


@dataclass(frozen=True)
class SyncRequest:
    """What is to be in the store at path. opener follows no redirects; drain_timeout in seconds.

    full_check: read what is there already to verify it, even where its origin vouches for it.
    """

    path: str
    artifacts: Sequence[Artifact]
    opener: Opener
    parallel: int = DEFAULT_PARALLEL
    retries: int = DEFAULT_RETRIES
    drain_timeout: float = DEFAULT_DRAIN_S
    reserve: Share | None = None
    full_check: bool = False
    lock_backend: str = "flock"


@dataclass
class SyncReport(Report):
    """What a sync did; the planned entries are those to be fetched, of which not every size is known.

    adjusted: only their owner, group or mode was set. not_done: interrupted, or held by others.
    """

    fetched: Noted = field(default_factory=Noted)
    adjusted: Noted = field(default_factory=Noted)
    unchanged: Noted = field(default_factory=Noted)
    not_done: Noted = field(default_factory=Noted)
    figures: Figures = field(default_factory=Figures)
    renames: Retries = field(default_factory=Retries)
    held: list[LockHeld] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        return bool(self.fetched.total or self.adjusted.total)

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        lists: dict[str, Any] = {}
        for name in ("fetched", "adjusted", "unchanged", "failures", "not_done"):
            noted = getattr(self, name)
            lists[name], lists[f"{name}_total"] = noted.items, noted.total
        first = {key: values[key] for key in ("operation", "store", "changed", "dry_run", "planned")}
        last = {key: values[key] for key in ("lock_wait_s", "duration_s", "interrupted", "warnings")}
        figures = {
            "fetched_bytes": self.figures.bytes,
            "retries": {
                "requests": self.figures.retries,
                "waited_s": round(self.figures.waited_s, 3),
                "renames": self.renames.to_dict(),
            },
        }
        return {**first, **lists, **figures, **last}


@dataclass(frozen=True)
class _Job:
    """An artifact, and how its file is: ident of what is there, its origin where that vouches for it.

    settled: nothing has to be fetched, or asked; reason: why it is to be fetched. size: -1 while unknown.
    """

    artifact: Artifact
    reason: str = "absent"
    settled: bool = False
    adjust: bool = False
    # Device, inode, size, mtime in ns.
    ident: tuple[int, ...] = ()
    known: Origin | None = None
    size: int = -1


def sync(request: SyncRequest, run: Run, watch: Watch = unwatched) -> SyncReport:
    """Bring the artifacts of request into its store, or (run.dry_run) say which that would fetch.

    What fails for one keeps no other from its turn and is in the report, as is an interruption: no
    new work then, what is in flight gets drain_timeout, and a second signal cuts it. Raises UsageError
    for a store that is missing or refused, NoSpace when it would not fit.
    """
    started = time.monotonic()
    with Root(request.path) as root:
        work = _Sync(request, run, root, watch)
        jobs = work.plan()
        work.make_room(jobs)
        if not run.dry_run:
            work.confirm()
            work.execute(jobs)
            work.publisher.close()
    work.report.lock_wait_s = work.publisher.lock_wait_s
    work.report.duration_s = time.monotonic() - started
    return work.report


class _Sync:
    def __init__(self, request: SyncRequest, run: Run, root: Root, watch: Watch) -> None:
        self.request, self.run, self.root, self.watch = request, run, root, watch
        self.report = SyncReport("sync", root.path, dry_run=run.dry_run)
        self.cutoff = Cutoff()
        self.publisher = Publisher(request.path, run, request.lock_backend)
        self._counting = threading.Lock()
        self._places = threading.Semaphore(request.parallel)
        self.listings = Listings()
        self.usual_mode = usual_mode()
        self.drafts: dict[str, Draft] = {}
        self.unchanged_in: set[str] = set()

    # Planning: what is there, and what the servers say.

    def plan(self) -> list[_Job]:
        """The jobs that are left to do."""
        todo: list[_Job] = []

        def note(artifact: Artifact, job: _Job) -> None:
            if job.adjust or not job.settled:
                todo.append(job)
            else:
                self._unchanged(artifact)
                self.unchanged_in.add(artifact.directory)

        size = self.request.parallel
        self._supervise(self.request.artifacts, self._look, note, lambda artifact: artifact, size, 0.0)
        order = {artifact.dest: place for place, artifact in enumerate(self.request.artifacts)}
        todo.sort(key=lambda job: order[job.artifact.dest])
        wanted = [job for job in todo if not job.settled]
        self.report.planned.add(len(wanted), sum(max(0, job.size) for job in wanted))
        if self.run.dry_run:
            for job in todo:
                self._note(job)
        return todo

    def _look(self, artifact: Artifact) -> _Job:
        job = inspect(artifact, self.root, self.request.full_check, self.cutoff)
        if job.settled:
            return job
        seen = look(self.request.opener, artifact.source, job.known, self.cutoff)
        return replace(job, settled=seen.unchanged, size=seen.size)

    def make_room(self, jobs: list[_Job]) -> None:
        """Remove what killed writers left; raises NoSpace when the jobs would not fit then."""
        there = self._tidy(jobs)
        if jobs:
            self._require_space(jobs, there)

    def _require_space(self, jobs: list[_Job], there: int) -> None:
        """there: bytes on the disk of what is gone on with."""
        unknown = [job for job in jobs if job.size < 0 and not job.settled]
        if unknown:
            first = unknown[0].artifact.source.shown
            text = f"The size of {first} is unknown, so its space is not checked."
            if len(unknown) > 1:
                count = len(unknown)
                text = f"The sizes of {count} artifacts ({first}, ...) are unknown and not checked."
            self.report.warnings.append(text)
        # What gets another owner or mode is copied.
        size = sum(job.ident[2] if job.settled else max(0, job.size) for job in jobs)
        need = Need(self.root.path, max(0, size - there), len(jobs))
        preflight([need], None, self.request.reserve, forecast=self.run.forecast).require()

    def _tidy(self, jobs: list[_Job]) -> int:
        """Remove what killed writers left where this sync writes, except what it is to go on with.

        Returns the bytes of that. A dry run has the forecast say what would be freed.
        """
        names: dict[str, list[str]] = defaultdict(list)
        for artifact in self.request.artifacts:
            names[artifact.directory]
        for job in jobs:
            names[job.artifact.directory].append(job.artifact.name)
        found, spare, there = [], set(), 0
        for directory, wanted in names.items():
            with suppress(OSError, BesomError), directory_in(self.root, directory) as fd:
                parts = set(filter(ORPHAN.fullmatch, list_parts(fd)))
                mine = {part for name in wanted for part in parts_of(fd, name, parts)} if parts else set()
                spare |= {os.path.join(directory, part) for part in mine}
                orphans = [part for part in mine if not is_locked(fd, part)]
                there += sum(os.lstat(part, dir_fd=fd).st_blocks * 512 for part in orphans)
                if parts - mine:
                    found.append(directory)
        if not found:
            return there
        # 15 ms that hardly any sync needs.
        from .durable_tree import remove_orphans

        if self.run.dry_run:
            would = remove_orphans(self.root, self.run, found, spare)
            self.run.forecast.free(mount_of(self.root.fd), would.planned.bytes)
        else:
            # Whoever holds the store now need not be waited for: the next start does it.
            now, backend = replace(self.run, lock_timeout=0.0), self.request.lock_backend
            with suppress(LockHeld), Root(self.root.path) as root, guarded(root, now, backend) as held:
                done = remove_orphans(root, held[0], found, spare)
                self.report.warnings += done.warnings
                for noted in (done.failures, done.anomalies):
                    self.report.warnings += [f"{one['path']} {one['reason']}." for one in noted.items]
        return there

    # Execution.

    def confirm(self) -> None:
        """Bring the names of what is unchanged to the disk; who gave them may have been killed before."""
        for directory in sorted(self.unchanged_in):
            path = os.path.join(self.root.path, directory).rstrip("/")
            try:
                # What somebody has removed since it was looked at needs no more.
                with suppress(FileNotFoundError), directory_in(self.root, directory) as fd:
                    sync_directory(fd, path)
            except (BesomError, OSError) as error:
                self.report.failures.add(path, f"failed: {reason_of(error)}")

    def execute(self, jobs: list[_Job]) -> None:
        self._supervise(
            jobs,
            self._fetch,
            lambda job, done: self._note(done),
            lambda job: job.artifact,
            self.request.parallel + _PUBLISHING,
            self.request.drain_timeout,
        )

    def _fetch(self, job: _Job) -> _Job:
        """Do the job; returns it as it came out."""
        artifact = job.artifact
        path = os.path.join(self.root.path, artifact.directory)
        with ExitStack() as held:
            # More claim than may transfer: in a large directory one listing does for all of them.
            fd = held.enter_context(directory_in(self.root, artifact.directory, make=True))
            draft, waited = held.enter_context(self._claim(fd, path, artifact.name))
            self.drafts[artifact.dest] = draft
            held.callback(self.drafts.pop, artifact.dest)
            with self._place():
                if waited or _ident_at(fd, artifact.name) != job.ident:
                    # Another has refreshed it since: what it came to decides.
                    job = inspect(artifact, self.root, self.request.full_check, self.cutoff)
                if not job.settled:
                    job = self._transfer(job, fd, draft)
                if job.settled and not job.adjust:
                    return job
                if job.settled:
                    self._copy(job, fd, draft)
            # The disk takes its time; the next may have the place at the mirror meanwhile.
            draft.seal(artifact.mode, artifact.uid, artifact.gid, self.usual_mode)
            self.cutoff.check()
            try:
                self.publisher.publish(artifact.directory, fd, draft.publish)
            except LockHeld:
                if not job.settled:
                    leave(draft)
                raise
            return job

    @contextmanager
    def _place(self) -> Iterator[None]:
        """One of the places at the mirror."""
        while not self._places.acquire(timeout=_QUEUE_S):
            self.cutoff.begin()
        try:
            self._require_going_on()
            yield
        finally:
            self._places.release()

    def _claim(self, fd: int, path: str, name: str) -> AbstractContextManager[tuple[Draft, bool]]:
        run = self.run
        return claim(
            fd,
            path,
            name,
            self.report.renames,
            run.lock_timeout,
            run.lock_option,
            run.waiting,
            self.cutoff.pause,
            self.listings,
        )

    def _transfer(self, job: _Job, fd: int, draft: Draft) -> _Job:
        artifact = job.artifact

        def moved(done: int, total: int) -> None:
            self.watch(artifact.dest, "fetching", done, total)

        moved(0, job.size)
        source, opener = artifact.source, self.request.opener
        transfer = Transfer(source, opener, self.cutoff, self.request.retries, moved)
        try:
            origin = transfer.run(draft, job.known)
        finally:
            self._count(transfer.figures)
        if origin is None:
            return replace(job, settled=True)
        if not source.checksum and not job.adjust and _same_content(fd, artifact, origin, self.cutoff):
            return replace(job, settled=True)
        return replace(job, size=origin.size)

    def _count(self, figures: Figures) -> None:
        total = self.report.figures
        with self._counting:
            total.bytes += figures.bytes
            total.retries += figures.retries
            total.waited_s += figures.waited_s

    def _copy(self, job: _Job, fd: int, draft: Draft) -> None:
        """Fill draft with the file whose content is right, and whose owner, group or mode is not.

        Those of the file itself are never set: another may have it open, or have linked it elsewhere.
        """
        artifact = job.artifact
        origin = job.known or Origin(digest_of(artifact.source.url))
        checksum = str(artifact.source.checksum or origin.checksum)
        path = os.path.join(self.root.path, artifact.directory)
        os.lseek(draft.fd, 0, os.SEEK_SET)
        os.ftruncate(draft.fd, 0)
        with file_in(fd, path, artifact.name) as (there, st):
            if not _holds(there, checksum, self.cutoff, draft.write):
                shown = printable(os.path.join(path, artifact.name))
                raise BesomError(f"{shown} was changed meanwhile; run this again.")
            os.utime(draft.fd, ns=(st.st_atime_ns, st.st_mtime_ns))
        write_origin(draft.fd, origin.of_file(draft.fd, checksum))

    # What becomes of the jobs.

    def _note(self, job: _Job) -> None:
        dest = job.artifact.dest
        if not job.settled:
            self.report.fetched.add(dest, job.reason, bytes=max(0, job.size))
            if not self.run.dry_run:
                self.watch(dest, "fetched", job.size, job.size)
        elif job.adjust:
            self.report.adjusted.add(dest, "owner, group or mode")
        else:
            self._unchanged(job.artifact)

    def _unchanged(self, artifact: Artifact) -> None:
        self.report.unchanged.add(artifact.dest, "verified" if artifact.source.checksum else "current")
        self.watch(artifact.dest, "unchanged", 0, 0)

    def _failed(self, artifact: Artifact, error: BaseException) -> None:
        dest, held = artifact.dest, self.publisher.held
        if held and (error is held or (isinstance(error, Cut) and not self.run.shutdown.requested)):
            self.report.not_done.add(dest, "the store is locked")
            if held not in self.report.held:
                self.report.held.append(held)
        elif isinstance(error, (Cut, Interrupted)):
            self.report.interrupted = True
            self.report.not_done.add(dest, "interrupted")
        elif isinstance(error, LockHeld):
            self.report.not_done.add(dest, str(error))
            self.report.held.append(error)
        elif isinstance(error, (BesomError, OSError, ValueError)):
            self.report.failures.add(dest, f"failed: {reason_of(error)}")
            if isinstance(error, NoSpace):
                self.report.failure_status = error.status
        else:
            raise error
        self.watch(dest, "failed", 0, 0)

    def _supervise(
        self,
        jobs: Sequence[Any],
        work: Callable[[Any], _Job],
        note: Callable[[Any, _Job], None],
        artifact_of: Callable[[Any], Artifact],
        size: int,
        drain_timeout: float,
    ) -> None:
        """Have a crew do the jobs, and see to signals meanwhile."""

        def begin(job: Any) -> _Job:
            # Signals are heard by another thread, which may see to this one later.
            self._require_going_on()
            return work(job)

        crew = Crew(jobs, begin, size)
        try:
            self._watch_over(crew, jobs, note, artifact_of, drain_timeout)
        except BaseException:
            # Whatever it is, it leaves no temp.
            crew.stop()
            self._cut()
            end = time.monotonic() + _GRACE_S
            while crew.outstanding and (left := end - time.monotonic()) > 0:
                crew.wait(left)
            self._leave_behind()
            raise

    def _require_going_on(self) -> None:
        """Raise Cut when nothing new is to be begun."""
        if self.run.shutdown.requested or self.publisher.held:
            raise Cut

    def _cut(self) -> None:
        self.cutoff.cut()
        self.publisher.shutdown.request(self.run.shutdown.signum or signal.SIGTERM)

    def _leave_behind(self) -> None:
        """Go on without the threads that hang, but with their temps gone."""
        for draft in list(self.drafts.values()):
            draft.discard()
        self.publisher.left = True

    def _watch_over(
        self,
        crew: Crew[Any, _Job],
        jobs: Sequence[Any],
        note: Callable[[Any, _Job], None],
        artifact_of: Callable[[Any], Artifact],
        drain_timeout: float,
    ) -> None:
        shutdown = self.run.shutdown
        at_work = {artifact_of(job).dest: artifact_of(job) for job in jobs}
        drained = cut_at = float("inf")
        while crew.outstanding:
            ended = crew.wait(_WAKE_S)
            now = time.monotonic()
            if ended:
                job, result = ended
                del at_work[artifact_of(job).dest]
                if isinstance(result, BaseException):
                    self._failed(artifact_of(job), result)
                else:
                    note(job, result)
            if (shutdown.requested or self.publisher.held) and drained == float("inf"):
                # What waits for a server or for another refresh is not in flight.
                self.cutoff.end()
                drained = now + drain_timeout
                for job in crew.stop():
                    self._failed(at_work.pop(artifact_of(job).dest), Cut())
                if at_work and shutdown.requested:
                    self.run.waiting(
                        f"What is in flight has {format_duration(drain_timeout)} to come to its end; "
                        "a second signal cuts it."
                    )
            if (now >= drained or (shutdown.hurry and shutdown.requested)) and not self.cutoff.is_cut:
                cut_at = now
                self._cut()
            if now >= cut_at + _GRACE_S:
                # What hangs before its server answered is left behind.
                self._leave_behind()
                for artifact in at_work.values():
                    self._failed(artifact, Cut())
                return


def inspect(artifact: Artifact, root: Root, full_check: bool, cutoff: Cutoff) -> _Job:
    """How the file of an artifact is now. Raises BesomError where it cannot be, Cut."""
    source, path = artifact.source, os.path.join(root.path, artifact.directory)
    try:
        with directory_in(root, artifact.directory) as fd, file_in(fd, path, artifact.name) as (file, st):
            job = _Job(artifact, ident=_ident(st), adjust=_differs(artifact, st))
            known = read_origin(file)
            # Its owner may have written to it: fine where nobody knows better, and it stays the owner's.
            owner = None if source.checksum or job.adjust else artifact.uid
            if known and not known.vouches(st, owner):
                known = None
            if known and full_check and not _holds(file, known.checksum, cutoff):
                known = None
            if source.checksum:
                wanted = str(source.checksum)
                settled = (known.checksum if known else "") == wanted or _holds(file, wanted, cutoff)
                known = known if settled else None
                return replace(job, settled=settled, known=known, reason="checksum differs")
            if known and known.source == digest_of(source.url):
                return replace(job, reason="changed", known=known)
            return replace(job, reason="origin unknown")
    except FileNotFoundError:
        return _Job(artifact)


def _ident(st: os.stat_result) -> tuple[int, ...]:
    return (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns)


def _ident_at(directory_fd: int, name: str) -> tuple[int, ...]:
    try:
        return _ident(os.stat(name, dir_fd=directory_fd, follow_symlinks=False))
    except FileNotFoundError:
        return ()


def _differs(artifact: Artifact, st: os.stat_result) -> bool:
    wanted = (artifact.mode, artifact.uid, artifact.gid)
    found = (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid)
    return any(one is not None and one != other for one, other in zip(wanted, found))


def _holds(
    fd: int, checksum: str, cutoff: Cutoff, copy: Callable[[bytes], None] = lambda block: None
) -> bool:
    """Whether the file has this checksum; copy is given what is read."""
    algorithm, _colon, wanted = checksum.partition(":")
    digest = hashlib.new(algorithm)
    os.lseek(fd, 0, os.SEEK_SET)
    while block := os.read(fd, BLOCK):
        cutoff.check()
        copy(block)
        digest.update(block)
    return digest.hexdigest() == wanted


def _same_content(directory_fd: int, artifact: Artifact, origin: Origin, cutoff: Cutoff) -> bool:
    """Whether what came is what is there already; that gets the origin, so that the next time asks first."""
    try:
        with file_in(directory_fd, artifact.directory, artifact.name) as (file, st):
            if st.st_size != origin.size or not _holds(file, origin.checksum, cutoff):
                return False
            write_origin(file, origin.of_file(file, origin.checksum))
            return True
    except FileNotFoundError:
        return False
