# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Removing entries side by side: what all layouts share, and what became of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Callable, Generic, TypeVar

from .errors import BesomError
from .inventory import Inventory
from .report import Noted, Tally
from .run import Run
from .selection import Victim, first_victims
from .shutdown import Shutdown
from .tree import Blocked, Removal
from .units import printable
from .workers import Turn, Worker, Workers

Job = TypeVar("Job")
# Device and inode.
Ident = tuple[int, int]


@dataclass
class Removed:
    """What became of some of the victims.

    usage: bytes that left the store; stayed: the listed paths that did not go, and how many in all;
    forbidden: those under a rule (immutable, append-only) that a quick plan does not see, and the bytes that
    it counted on; emptied: directories that may be empty now, and had the reading in them when that was to
    be seen. Of names that nobody had looked at before: seen, what they came to, but for the victims; planned,
    those, and what they were to free; victims, the first of them that are gone; left_out, why directories
    were not looked at.
    """

    removed: Tally = field(default_factory=Tally)
    usage: int = 0
    kept: Noted = field(default_factory=Noted)
    anomalies: Noted = field(default_factory=Noted)
    failures: Noted = field(default_factory=Noted)
    stayed: set[str] = field(default_factory=set)
    stayed_total: int = 0
    forbidden: Tally = field(default_factory=Tally)
    emptied: dict[int, Ident] = field(default_factory=dict)
    seen: Inventory | None = None
    planned: Tally = field(default_factory=Tally)
    victims: list[Victim] = field(default_factory=list)
    left_out: dict[int, Blocked] = field(default_factory=dict)

    def account(self, path: str, removal: Removal, size: int, planned: int, listed: Collection[str]) -> bool:
        """Count what became of an entry that goes whole; returns whether it went.

        size: bytes that leave the store with it; planned: those that this was to free.
        """
        blocked = removal.blocked
        if blocked is None:
            self.removed.add(1, removal.freed)
            self.usage += size
            return True
        self.stay(path, listed)
        if removal.failed:
            self.failures.add(blocked.path, blocked.reason)
        elif blocked.anomaly:
            self.anomalies.add(blocked.path, blocked.reason)
            self.forbidden.add(1, planned)
        else:
            self.kept.add(blocked.path, blocked.reason)
        return False

    def stay(self, path: str, listed: Collection[str]) -> None:
        """Count a victim that does not go; listed: the paths that stayed is about."""
        self.stayed_total += 1
        if printable(path) in listed:
            self.stayed.add(printable(path))

    def add(self, other: Removed) -> None:
        self.removed.add(other.removed.entries, other.removed.bytes)
        self.usage += other.usage
        self.kept.extend(other.kept)
        self.anomalies.extend(other.anomalies)
        self.failures.extend(other.failures)
        self.stayed |= other.stayed
        self.stayed_total += other.stayed_total
        self.forbidden.add(other.forbidden.entries, other.forbidden.bytes)
        self.emptied.update(other.emptied)
        if self.seen is not None and other.seen is not None:
            self.seen.merge(other.seen)
        else:
            self.seen = self.seen or other.seen
        self.planned.add(other.planned.entries, other.planned.bytes)
        self.left_out.update(other.left_out)
        self.victims = first_victims(self.victims, other.victims)


class Remover(Generic[Job]):
    """Has entries of an inventory removed, as many at a time as pay.

    total tells how many there are, as far as that is known. A context manager; a shutdown of the run ends it
    between two entries.
    """

    def __init__(self, found: Inventory, run: Run, total: Callable[[], int], most: int) -> None:
        """most: entries at a time."""
        self.found, self.run, self._total = found, run, total
        # Who has a rate to keep needs no company, and would have to agree with it.
        most = 1 if run.effort.max_rate else most
        self.alone = most == 1
        # For what two at work must not do at once.
        self.turn = Turn()
        self._workers: Workers[Job, Removed] = Workers(self.hire, self._tell, run.shutdown, most)

    def hire(self, done: memoryview[int], shutdown: Shutdown, parent: int) -> Worker[Job, Removed]:
        """Who removes, in one thread; parameters as workers.Hire has them."""
        raise NotImplementedError

    def give(self, job: Job) -> None:
        """Have a job done; waits while much else is to be removed before. Raises BesomError."""
        with self._naming():
            self._workers.add(job)

    @property
    def done(self) -> int:
        """How many entries are removed so far."""
        return self._workers.done

    def finish(self) -> Removed:
        """What became of all that was given, once that is settled. Raises BesomError."""
        outcome = Removed()
        with self._naming():
            results = self._workers.finish()
        for one in results:
            outcome.add(one)
        return outcome

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Let an error of the workers say of which store, and what no report will tell."""
        try:
            yield
        except BesomError as error:
            path = printable(self.found.root.path)
            raise BesomError(f"{path}: {error} At least {self.done} of its entries are removed.") from error

    def _tell(self) -> None:
        self.run.progress("remove", self.done, self._total())

    def __enter__(self) -> Remover[Job]:
        self._workers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._workers.__exit__(kind, error, trace)
        finally:
            self.turn.close()
