# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What there is: usage, entries, ages and the holder of the writer lock. Only inspects."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from .answer import NoAnswer
from .errors import MissingPath
from .inventory import read_files, read_trees
from .locks import LockTable
from .mounts import mount_of
from .policy import LIMITS, Store, Temps
from .root import Root
from .run import Run
from .sweep import plan as plan_sweep
from .units import printable


def store_info(store: Store, run: Run) -> dict[str, Any]:
    """One store: usage (bytes), entries, oldest and newest (epoch seconds), limits, file system, holder."""
    with Root(store.path) as root:
        lru = store.policy.order == "lru"
        read = read_files if store.layout == "files" else read_trees
        found = read(root, run, lru)
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
        }


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
    """Who holds the writer lock, as far as /proc/locks shows it; None when it is free."""
    found = LockTable().holder(*root.ident)
    return found.to_dict() if found else None


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
