# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Reading a store by its layout."""

from __future__ import annotations

import re

from .inventory import YOUNGEST, Companion, Inventory, Taker, read_files, read_trees
from .policy import Store
from .root import Root
from .run import Run


def read_store(
    store: Store,
    root: Root,
    run: Run,
    horizon: int = YOUNGEST,
    grace: int = YOUNGEST,
    only: re.Pattern[str] | None = None,
    thorough: bool = False,
    whole: bool = False,
    companion: Companion | None = None,
    taker: Taker | None = None,
) -> Inventory:
    """The inventory of a store open as root; thorough is for trees and sessions, only and taker for files."""
    order = store.policy.order
    if store.layout == "files":
        return read_files(root, run, order == "lru", horizon, grace, only, whole, companion, taker)
    if store.layout == "trees":
        return read_trees(root, run, order == "lru", horizon, grace, thorough, whole, companion)
    # 40 ms on a module's arrival.
    from .sessions import read_sessions

    return read_sessions(root, run, order, horizon, grace, thorough, store.group_key, whole, companion)
