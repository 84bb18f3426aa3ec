# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What there is: usage, entries, ages and the holder of the writer lock. Only inspects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .answer import NoAnswer
from .errors import MissingPath
from .layouts import read_store
from .locks import FlockUnsupported, Holder, LockTable, is_held
from .mounts import mount_of
from .owner_file import ALIVE, DEAD, UNREADABLE, OwnerFile
from .policy import LIMITS, Store, Temps
from .root import Root
from .run import Run
from .sweep import plan as plan_sweep
from .units import printable


def store_info(store: Store, run: Run) -> dict[str, Any]:
    """One store: usage (bytes), entries, oldest and newest (epoch seconds), limits, file system, holder."""
    with Root(store.path) as root:
        found = read_store(store, root, run)
        limits = {key: getattr(store.policy, key) for key in (*LIMITS, "target_size", "min_age")}
        for key in ("max_age", "min_age"):
            limits[key] = None if limits[key] is None else limits[key] / 1e9
        limits["min_free"] = None if limits["min_free"] is None else str(limits["min_free"])
        return {
            "name": store.name,
            "store": printable(store.path),
            "layout": store.layout,
            "bytes": found.usage,
            "entries": found.entries,
            "oldest": None if found.oldest is None else found.oldest / 1e9,
            "newest": None if found.newest is None else found.newest / 1e9,
            "limits": {key: value for key, value in limits.items() if value is not None},
            "kept": found.kept.items,
            "kept_total": found.kept.total,
            "anomalies": found.anomalies.items,
            "anomalies_total": found.anomalies.total,
            "file_system": file_system(root),
            "holder": holder(root),
            **_remembered(store, root, run),
        }


def _remembered(store: Store, root: Root, run: Run) -> dict[str, Any]:
    """When a run that keeps house has read all of the store, and has to again (epoch seconds; None: at once).

    Of a run that has no place where that is remembered nothing.
    """
    if run.memory is None:
        return {}
    memory = run.memory(store, root, run)
    moments = {"walked": memory.walked, "reconcile_due": memory.due}
    return {name: None if moment is None else moment / 1e9 for name, moment in moments.items()}


def temps_info(temps: Temps, run: Run) -> dict[str, Any]:
    """One temp area: its stale and its kept temps, in entries and bytes."""
    with Root(temps.path) as root:
        report = plan_sweep(temps, root, run).report
        return {
            "temps": printable(temps.path),
            "pattern": list(temps.patterns),
            "older_than": temps.older_than / 1e9,
            "bytes": report.bytes_before,
            "stale": report.planned.to_dict(),
            "kept": report.kept.items,
            "kept_total": report.kept.total,
            "anomalies": report.anomalies.items,
            "anomalies_total": report.anomalies.total,
            "file_system": file_system(root),
        }


def file_system(root: Root) -> dict[str, Any]:
    """The figures of the file system that root is on, in bytes and inodes (None: no limit on inodes)."""
    st = os.fstatvfs(root.fd)
    mount = mount_of(root.fd)
    return {
        "mount": printable(mount.path) if mount else "",
        "type": mount.fstype if mount else "",
        "total_bytes": st.f_blocks * st.f_frsize,
        "available_bytes": st.f_bavail * st.f_frsize,
        "inodes_total": st.f_files or None,
        "inodes_available": st.f_favail if st.f_files else None,
    }


def holder(root: Root) -> dict[str, object] | None:
    """Who holds the writer lock, as far as that shows without asking for it; None when nobody is seen."""
    seen = LockTable().holder(*root.ident)
    if seen is not None:
        return seen.to_dict()
    owner, fate = OwnerFile(root.fd, root.path).found() or (None, DEAD)
    return owner.to_dict() if owner is not None and fate != DEAD else None


def lock_info(root: Root) -> dict[str, Any]:
    """The writer lock of one store: its mechanism, whether it is held, by whom, and what else to know.

    A lock that nobody is seen to hold is asked for, shared and for an instant: flock shows no holder
    in another pid namespace. Then holder is None and state `held`.
    """
    found: dict[str, Any] = {
        "store": printable(root.path),
        "mechanism": "flock",
        "state": "free",
        "holder": None,
        "note": "",
    }
    seen = LockTable().holder(*root.ident)
    if seen is not None:
        return {**found, "state": "held", "holder": seen.to_dict(), "note": str(seen)}
    try:
        if is_held(root.fd):
            return {**found, "state": "held", "note": str(Holder(0))}
        return found
    except FlockUnsupported:
        found["mechanism"] = "owner file"
    left = OwnerFile(root.fd, root.path).found()
    if left is None:
        return found
    owner, fate = left
    if owner is None:
        return {**found, "state": "held", "note": UNREADABLE}
    if fate == DEAD:
        return {**found, "note": f"left by {owner}, which is gone; the next writer takes it over"}
    unseen = "" if fate == ALIVE else ", which cannot be seen from here"
    return {**found, "state": "held", "holder": owner.to_dict(), "note": f"{owner}{unseen}"}


def inspect(stores: Sequence[Store], temps: Sequence[Temps], run: Run) -> dict[str, Any]:
    """`stores`, `temps` (one each that exists) and `warnings` about those that do not, or do not answer."""
    found: dict[str, Any] = {"stores": [], "temps": [], "warnings": []}
    areas: list[Store | Temps] = [*stores, *temps]
    for one in areas:
        try:
            if isinstance(one, Store):
                found["stores"].append(store_info(one, run))
            else:
                found["temps"].append(temps_info(one, run))
        except MissingPath:
            found["warnings"].append(f"{printable(one.path)} does not exist yet; it was skipped.")
        except NoAnswer as error:
            found["warnings"].append(str(error))
    return found
