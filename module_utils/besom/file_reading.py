# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading the files of a large store by as many as pay: one lists names, the others look at them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType

from .errors import BesomError, reason_of
from .inventory import Criteria, Inventory
from .looking import Looker, Names, jobs_of
from .removal import Ident
from .root import Root
from .run import Run
from .selection import CHUNK, Chunk
from .shutdown import Shutdown
from .tree import Blocked
from .units import printable
from .workers import Workers


@dataclass
class _Read:
    """Entries of a store: full tables, or in the end what is left, with all else that was seen."""

    chunks: list[Chunk] = field(default_factory=list)
    seen: Inventory | None = None
    left_out: dict[int, Blocked] = field(default_factory=dict)


class FileReader:
    """Looks at the names that it is given; settle() puts what they come to into found. A context manager."""

    def __init__(self, found: Inventory, run: Run) -> None:
        def hire(done: memoryview[int], shutdown: Shutdown, parent: int) -> _Hand:
            return _Hand(found.root, done, shutdown, parent)

        self._found = found
        with self._naming():
            self._workers: Workers[Names, _Read] = Workers(
                hire, lambda: None, run.shutdown, run.effort.workers
            )

    def look(self, criteria: Criteria, where: int, ident: Ident, names: list[str]) -> None:
        """Have names in a directory looked at; waits while many others are to be. Raises BesomError."""
        with self._naming():
            for job in jobs_of(self._found, criteria, where, ident, names):
                self._workers.add(job)

    def settle(self) -> None:
        """Put what was found into found, whose tables are sealed. Raises BesomError."""
        found = self._found
        left_out: dict[int, Blocked] = {}
        with self._naming():
            parts = self._workers.finish()
        for part in parts:
            found.chunks += part.chunks
            left_out.update(part.left_out)
            if part.seen is not None:
                found.merge(part.seen)
        for _where, blocked in sorted(left_out.items()):
            found.note(blocked)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Let an error say of which store; to the reading it would be one of the directory at hand."""
        try:
            yield
        except (BesomError, OSError) as error:
            raise BesomError(f"{printable(self._found.root.path)}: {reason_of(error)}.") from error

    def __enter__(self) -> FileReader:
        self._workers.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._workers.__exit__(kind, error, trace)


class _Hand(Looker):
    """Reads files, in one thread; done, shutdown and parent as workers.Hire has them."""

    def __init__(self, root: Root, done: memoryview[int], shutdown: Shutdown, parent: int) -> None:
        super().__init__(root, shutdown, parent)
        self.done = done
        self.chunks: list[Chunk] = []

    def work(self, job: Names) -> _Read | None:
        if self.shutdown.signum:
            return None
        shutdown, parent, getppid = self.shutdown, self.parent, os.getppid
        where, chunks = job.where, self.chunks
        with self.looking(job) as (seen, _fd, its):
            chunk = chunks[-1] if chunks else None
            for name, st, mtime, key, size, link in its:
                # Nobody would hear of what is read for a parent that was killed.
                if shutdown.signum or (parent and getppid() != parent):
                    break
                if link is not None:
                    # All names of it are to be known first, in the end.
                    seen.room_for(link, st.st_dev, key, where, name).append(name, where, st, mtime, key, size)
                    continue
                if chunk is None or chunk.device != st.st_dev or len(chunk.mtime) >= CHUNK:
                    chunk = Chunk(st.st_dev, seen.by_mtime)
                    chunks.append(chunk)
                chunk.append(name, where, st, mtime, key, size)
        self.done[0] += len(job.names)
        return _Read(self._full(1)) if len(chunks) > 1 else None

    def _full(self, most: int) -> list[Chunk]:
        """Give away all tables but so many, sealed."""
        full = self.chunks[: len(self.chunks) - most]
        del self.chunks[: len(full)]
        for chunk in full:
            chunk.seal()
        return full

    def result(self) -> _Read:
        return _Read(self._full(0), self.all_seen(), self.left_out)
