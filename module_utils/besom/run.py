# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a piece of work is to be run: what every operation takes beside its request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Callable

from .effort import Effort
from .shutdown import Shutdown

if TYPE_CHECKING:
    from .inventory import Memory
    from .locks import Lock
    from .mounts import Mount
    from .policy import Store
    from .root import Root
    from .tree import Shared

# progress(phase, done, total): total is 0 while it is not known.
Progress = Callable[[str, int, int], None]


def quiet(phase: str, done: int, total: int) -> None:
    """The progress that nobody watches."""


def unheard(message: str) -> None:
    """The message that nobody reads."""


def unnoticed(path: str, seconds: float) -> None:
    """The end of a wait that nobody is told of."""


def admitted() -> None:
    """The work that may always begin."""


def unread(hook: str, output: str) -> None:
    """The output that nobody reads."""


@dataclass
class Forecast:
    """What dry runs before this one would have removed, so that nothing is counted twice.

    names: those gone from a directory (device, inode); links: links gone of each inode that had
    several; freed: bytes by the device of the file system.
    """

    names: dict[tuple[int, int], set[str]] = field(default_factory=dict)
    links: dict[tuple[int, int], int] = field(default_factory=dict)
    freed: dict[str, int] = field(default_factory=dict)

    def credit(self, size: int, shared: Shared) -> int:
        """Bytes that come back when a tree of size bytes goes after all that is noted; notes its links."""
        for ident, (names, links, held) in shared.items():
            gone = self.links[ident] = self.links.get(ident, 0) + names
            size -= 0 if gone >= links else held
        return size

    def free(self, mount: Mount | None, size: int) -> None:
        """Note that size bytes would be freed on the file system of mount."""
        if mount is not None:
            self.freed[mount.device] = self.freed.get(mount.device, 0) + size


@dataclass
class Run:
    """dry_run: plan only. lock_timeout in seconds, 0 = do not wait; lock_option: what to call it in messages.

    waiting is told in a sentence whom a lock, or what an interruption, waits for, and waited, once that lock
    is there, of which path it is and how many seconds it took; output is told what a hook has printed; now
    gives ns since the epoch; memory makes what is remembered of a store, None for a run that walks all of
    them, index_dir is where that is, and reconcile how long (ns) it may stand for a walk; effort is how hard
    a removal may press the host; shared_lock makes the lock that several machines see, from the path of a
    store; admit raises, once the writer lock is had, where work may not begin any more (a BesomError).
    """

    dry_run: bool = False
    lock_timeout: float = 30.0
    lock_option: str = "lock_timeout"
    shutdown: Shutdown = field(default_factory=Shutdown)
    progress: Progress = quiet
    waiting: Callable[[str], None] = unheard
    waited: Callable[[str, float], None] = unnoticed
    output: Callable[[str, str], None] = unread
    now: Callable[[], int] = time.time_ns
    forecast: Forecast = field(default_factory=Forecast)
    memory: Callable[[Store, Root, Run], Memory] | None = None
    index_dir: str = ""
    reconcile: int = 0
    effort: Effort = field(default_factory=Effort)
    shared_lock: Callable[[str], Lock] | None = None
    admit: Callable[[], None] = admitted
