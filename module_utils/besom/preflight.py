# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The gate before work: is there room, in bytes and inodes, for what is about to come?"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import NoSpace, UsageError
from .mounts import mount_of
from .policy import read_mapping, read_path
from .report import Report
from .run import Forecast
from .units import Share, format_size, parse_count, parse_size, printable
from .walk import walk

if TYPE_CHECKING:
    from .fetch import Opener

DEFAULT_EXPAND = 3.0


@dataclass(frozen=True)
class Need:
    """What will be written below path: size in bytes, inodes, or the artifact at url.

    A url needs its download plus, where it is extracted, expand times it.
    """

    path: str
    size: int = 0
    inodes: int = 0
    url: str = ""
    extract: bool = True


@dataclass
class FileSystem:
    """What one file system needs and has, in bytes and inodes; inodes_available None: no limit."""

    path: str
    mount: str
    device: str
    total: int
    available: int
    inodes_available: int | None
    reserve: int = 0
    required: int = 0
    inodes_required: int = 0
    parts: list[str] = field(default_factory=list)

    @property
    def short(self) -> int:
        return max(0, self.required + self.reserve - self.available) if self.required or self.reserve else 0

    @property
    def inodes_short(self) -> int:
        return 0 if self.inodes_available is None else max(0, self.inodes_required - self.inodes_available)

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": printable(self.path),
            "mount": printable(self.mount),
            "device": self.device,
            "total_bytes": self.total,
            "available_bytes": self.available,
            "required_bytes": self.required,
            "reserve_bytes": self.reserve,
            "short_bytes": self.short,
            "inodes_available": self.inodes_available,
            "inodes_required": self.inodes_required,
            "inodes_short": self.inodes_short,
            "sufficient": not (self.short or self.inodes_short),
        }

    def complaints(self) -> list[str]:
        """A sentence for each thing that is short, saying how much more is needed."""
        found = []
        advice = "Free up space or choose another location."
        if self.short:
            parts = [part for part in ("download", "extract") if part in self.parts]
            what = f" ({' + '.join(parts)})" if parts else ""
            reserve = f" and {format_size(self.reserve)} in reserve" if self.reserve else ""
            found.append(
                f"Insufficient disk space on {printable(self.path)}: "
                f"required {format_size(self.required)}{what}{reserve}, "
                f"available {format_size(self.available)}, {format_size(self.short)} more needed. {advice}"
            )
        if self.inodes_short:
            found.append(
                f"Insufficient inodes on {printable(self.path)}: required {self.inodes_required}, "
                f"available {self.inodes_available}, {self.inodes_short} more needed. "
                "Remove files or choose another location."
            )
        return found


@dataclass
class Verdict:
    """The figures of each file system concerned, and what could not be known."""

    file_systems: list[FileSystem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def sufficient(self) -> bool:
        return not any(fs.short or fs.inodes_short for fs in self.file_systems)

    @property
    def message(self) -> str:
        """What is wrong, in sentences; empty when there is room."""
        return " ".join(text for fs in self.file_systems for text in fs.complaints())

    def to_dict(self) -> dict[str, Any]:
        report = Report("preflight", "", warnings=self.warnings, duration_s=self.duration_s).to_dict()
        return {
            **report,
            "sufficient": self.sufficient,
            "file_systems": [fs.to_dict() for fs in self.file_systems],
        }

    def require(self) -> None:
        """Raise NoSpace when something is short."""
        if not self.sufficient:
            raise NoSpace(self.message)


def read_needs(values: Iterable[Any], where: str = "needs: ") -> list[Need]:
    """Needs from mappings with path and size, inodes or url (with extract). Raises UsageError."""
    needs = []
    for value in values:
        value = read_mapping(value, where, ("path", "size", "inodes", "url", "extract"))
        need = Need(
            path=read_path(value, where),
            size=parse_size(value["size"], where + "size") if value.get("size") is not None else 0,
            inodes=parse_count(value["inodes"], where + "inodes") if value.get("inodes") is not None else 0,
            url=_read_url(value, where),
            extract=_flag(value, "extract", where),
        )
        if not (need.size or need.inodes or need.url):
            raise UsageError(f"{where}{printable(need.path)} needs nothing; give size, inodes or url.")
        needs.append(need)
    return needs


def _read_url(value: Mapping[str, Any], where: str) -> str:
    if value.get("url") is None:
        return ""
    # Only who has URLs needs it, here and below.
    from .fetch import check_url

    return check_url(value["url"], where + "url")


def _flag(value: Mapping[str, Any], key: str, where: str) -> bool:
    flag = value.get(key)
    if flag is not None and not isinstance(flag, bool):
        raise UsageError(f"{where}{key} is true or false.")
    return flag is not False


def preflight(
    needs: Iterable[Need],
    opener: Opener | None,
    reserve: Share | None = None,
    expand: float = DEFAULT_EXPAND,
    unknown_fails: bool = False,
    forecast: Forecast | None = None,
) -> Verdict:
    """Compare needs, summed per file system, with what each has. Changes nothing.

    opener: what asks for the sizes of urls; None where no need has one. reserve stays free beside the
    needs. A url whose size the server does not tell is left out with a warning; unknown_fails: it
    raises NoSpace instead. forecast: bytes that count as freed already.
    Raises UsageError for a path that cannot be looked up, NoAnswer for one on a mount that does not answer.
    """
    started = time.monotonic()
    verdict = Verdict()
    found: dict[str, FileSystem] = {}
    for need in needs:
        fs = _file_system(need.path, found, reserve, forecast or Forecast())
        fs.required += need.size
        fs.inodes_required += need.inodes
        if not need.url or opener is None:
            continue
        from .fetch import content_length, redact

        size = content_length(need.url, opener)
        if size is None:
            text = f"The size of {redact(need.url)} is unknown, so its space is not checked."
            if unknown_fails:
                raise NoSpace(f"The size of {redact(need.url)} is unknown; allow that with on_unknown: warn.")
            verdict.warnings.append(text)
            continue
        fs.parts.append("download")
        fs.required += size
        if need.extract and expand:
            fs.parts.append("extract")
            fs.required += int(size * expand)
    verdict.file_systems = list(found.values())
    verdict.duration_s = time.monotonic() - started
    return verdict


def _file_system(
    path: str, found: dict[str, FileSystem], reserve: Share | None, forecast: Forecast
) -> FileSystem:
    """The file system that path is on, or will be: that of its first existing parent."""
    existing = path
    while True:
        try:
            fd = walk(existing)
            break
        except (FileNotFoundError, NotADirectoryError):
            if os.path.dirname(existing) == existing:
                raise
            existing = os.path.dirname(existing)
        except OSError as error:
            raise UsageError(f"{printable(path)} cannot be looked up: {error.strerror}.") from error
    try:
        mount = mount_of(fd)
        # Subvolumes of one btrfs, and bind mounts, share the device that mountinfo gives.
        device = mount.device if mount else str(os.fstat(fd).st_dev)
        if device not in found:
            st = os.fstatvfs(fd)
            total = st.f_blocks * st.f_frsize
            found[device] = FileSystem(
                path=path,
                mount=mount.path if mount else "",
                device=device,
                total=total,
                available=st.f_bavail * st.f_frsize + forecast.freed.get(device, 0),
                # btrfs and others report no inodes at all: there is no limit then.
                inodes_available=st.f_favail if st.f_files else None,
                reserve=reserve.of(total) if reserve else 0,
            )
    finally:
        os.close(fd)
    return found[device]
