# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The archives of installs in a store: fetched once, and found again by their checksum."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from typing import Callable

from .claim import file_in
from .durable import Draft
from .errors import BesomError, LockHeld, NoSpace
from .origin import Origin, digest_of
from .root import Root
from .run import Run
from .sync import SyncReport, SyncRequest, sync
from .transfer import BLOCK, Source
from .units import printable


def name_of(source: Source) -> str:
    """What the archive of source, which needs a checksum, is called in a store."""
    return str(source.checksum).replace(":", "-")


def size_of(store: str, source: Source) -> int:
    """The bytes of what is there under its name, verified or not; -1 where nothing is. Raises UsageError."""
    with Root(store) as root:
        try:
            st = os.stat(name_of(source), dir_fd=root.fd, follow_symlinks=False)
        except FileNotFoundError:
            return -1
    return st.st_size if stat.S_ISREG(st.st_mode) else -1


def fetch_kept(request: SyncRequest, draft: Draft, run: Run, note: Callable[[SyncReport], None]) -> Origin:
    """Have the one archive of request in its store, and copy it to draft; returns its origin.

    What is extracted is the copy, verified as it is read: others may be allowed to write in the store. note
    is told of each sync that this takes. Raises UsageError for a store that is missing or refused, NoSpace,
    LockHeld, Interrupted, BesomError.
    """
    (artifact,) = request.artifacts

    def watch(_dest: str, _what: str, done: int, total: int) -> None:
        run.progress("fetch", done, max(total, 0))

    for full_check in (False, True):
        report = sync(replace(request, full_check=full_check), run, watch)
        note(report)
        for held in report.held:
            raise LockHeld(str(held)) from held
        for failure in report.failures.items:
            text = str(failure["reason"]).partition("failed: ")[2] + "."
            raise NoSpace(text) if report.failure_status == NoSpace.status else BesomError(text)
        if report.interrupted:
            run.shutdown.check(f"fetching {artifact.source.shown}")
        origin = _copy(request.path, artifact.source, draft, run)
        if origin:
            return origin
    raise BesomError(f"{_shown(request.path, artifact.source)} was changed meanwhile; run this again.")


def _copy(store: str, source: Source, draft: Draft, run: Run) -> Origin | None:
    """Copy the archive of source from the store into draft; None where it is not what it should be."""
    algorithm, _colon, wanted = str(source.checksum).partition(":")
    digest = hashlib.new(algorithm)
    os.lseek(draft.fd, 0, os.SEEK_SET)
    os.ftruncate(draft.fd, 0)
    try:
        with Root(store) as root, file_in(root.fd, root.path, name_of(source)) as (fd, _st):
            while block := os.read(fd, BLOCK):
                run.shutdown.check(f"copying {_shown(store, source)}")
                draft.write(block)
                digest.update(block)
    except OSError as error:
        raise BesomError(
            f"{_shown(store, source)} cannot be read: {error.strerror}; run this again."
        ) from error
    if digest.hexdigest() != wanted:
        return None
    return Origin(digest_of(source.url)).of_file(draft.fd, str(source.checksum))


def _shown(store: str, source: Source) -> str:
    return printable(os.path.join(store, name_of(source)))
