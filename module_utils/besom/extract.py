# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Extraction of archives that nobody vouches for, into an empty directory that nobody else uses yet.

Every path is opened component by component, without following a link. What an archive should not hold
ends it: absolute names, `..`, links that lead out, devices, set-id bits, names that are no text, more
entries or bytes than allowed (those that come out, not those declared). The caller throws away what was
extracted until then, so of a hostile archive nothing is kept.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from .archive import LONGEST_NAME, BadArchive, Member, Reader, too_many
from .archive_tar import BLOCK, is_tar, tar_members
from .archive_zip import is_zip, zip_members
from .durable import failed
from .inflate import inflated
from .root import open_directory
from .run import Run
from .units import format_size, printable

# Symlinks that the kernel follows in one look-up (path_resolution(7)).
_MOST_LINKS = 40
# Of all links of one archive: the text of them, and the components looked at to see where they lead.
_MOST_TEXT = 64 * 1024**2
_MOST_STEPS = 20_000_000
# As chown(2) has it: nobody else than it has.
_NOBODY = (-1, -1)
_NOT_DIRECTORY = (errno.ELOOP, errno.ENOTDIR)


@dataclass(frozen=True)
class Limits:
    """What an archive may come to. entries: files, directories and links; bytes: all that it unpacks to.

    setid: whether its files may have the set-user-id and set-group-id bits.
    """

    entries: int = 500_000
    bytes: int = 20 * 1024**3
    setid: bool = False


@dataclass
class Extracted:
    """What was extracted: entries, and the bytes of the files among them."""

    entries: int = 0
    bytes: int = 0


def extract(
    archive: BinaryIO,
    directory_fd: int,
    path: str,
    run: Run,
    limits: Limits | None = None,
    strip: bool = False,
    reserved: str = "",
    uid: int | None = None,
    gid: int | None = None,
) -> Extracted:
    """Extract an archive into the empty directory open as directory_fd; path names it in messages.

    strip: leave out the one directory that all of it is in. reserved: a name that the archive must not
    have at its top. Files get their mode without write permission for others, their mtime (not one to
    come), and the caller as owner, or uid and gid, as all that is in the directory; that itself nobody else
    must be able to enter. Nothing is synced. Raises BadArchive for what is damaged or refused,
    NoSpace, BesomError, and Interrupted between two pieces.
    """
    owner = (-1 if uid is None else uid, -1 if gid is None else gid)
    return _Extraction(directory_fd, path, run, limits or Limits(), strip, reserved, owner).extract(archive)


class _Heeding:
    """A stream that a signal ends between two pieces, also where no byte comes out of what is packed."""

    def __init__(self, stream: BinaryIO, run: Run) -> None:
        self._stream, self._run = stream, run

    def read(self, size: int = -1) -> bytes:
        self._run.shutdown.check("extracting")
        return self._stream.read(size)


class _Extraction:
    def __init__(
        self,
        directory_fd: int,
        path: str,
        run: Run,
        limits: Limits,
        strip: bool,
        reserved: str,
        owner: tuple[int, int],
    ) -> None:
        self._top, self._path, self._run, self._limits = directory_fd, path, run, limits
        self._strip, self._reserved, self._owner = strip, reserved, owner
        self._outermost = ""
        self._made = Extracted()
        self._unpacked = 0
        # Where each symlink leads, as text, by its path.
        self._links: dict[str, str] = {}
        self._text = 0
        # The directory of the member before, which is that of the next one more often than not.
        self._here: list[str] = []
        self._fd = -1
        self._now = run.now() / 1e9

    def extract(self, archive: BinaryIO) -> Extracted:
        try:
            for member in self._members(archive):
                self._run.shutdown.check("extracting")
                self._extract(member)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise self._refused("/".join(self._here), "with too long a name in it") from None
            raise failed(self._path, "extracted", error) from error
        finally:
            self._leave()
        if not self._made.entries:
            raise BadArchive("The archive is empty; nothing is installed.")
        self._check_links()
        return self._made

    def _members(self, archive: BinaryIO) -> Iterator[Member]:
        """The members of the archive, of whatever kind that is; its name does not matter."""
        archive.seek(0)
        head = archive.read(BLOCK)
        archive.seek(0)
        if is_zip(head):
            return zip_members(archive, self._count_bytes, self._limits.entries)
        heeding = _Heeding(archive, self._run)
        stream = inflated(heeding, head)
        if stream is heeding and not is_tar(head):
            raise BadArchive("The archive is neither a tar (plain, gz, bz2, xz or zst) nor a zip file.")
        return tar_members(Reader(stream, self._count_bytes))

    def _count_bytes(self, size: int) -> None:
        self._unpacked += size
        if self._unpacked > self._limits.bytes:
            raise BadArchive(
                f"The archive unpacks to more than {format_size(self._limits.bytes)}; "
                "raise max_size if it is to be trusted."
            )
        self._run.shutdown.check("extracting")
        self._run.progress("extract", self._unpacked, 0)

    def _count_entry(self) -> None:
        self._made.entries += 1
        if self._made.entries > self._limits.entries:
            raise too_many(self._limits.entries)

    def _refused(self, name: str, what: str) -> BadArchive:
        shown = printable(name if len(name) <= 200 else name[:200] + "...")
        return BadArchive(f"The archive holds {shown}, {what}; it is refused.")

    def _extract(self, member: Member) -> None:
        parts = self._parts(member.name)
        if parts and self._strip:
            outermost = parts.pop(0)
            self._outermost = self._outermost or outermost
            if outermost != self._outermost or not (parts or member.kind == "directory"):
                raise self._refused(
                    member.name, "which is not in the one directory that is to be left out (strip)"
                )
        if not parts:
            if member.kind != "directory":
                raise self._refused(member.name, "which has no name")
            return
        if parts[0] == self._reserved:
            raise self._refused(member.name, "a name that is besom's own")
        if member.kind == "directory":
            self._enter(parts)
            os.fchmod(self._fd, member.mode & 0o755 | 0o700)
            return
        self._enter(parts[:-1])
        name = parts[-1]
        if member.kind == "file":
            self._file(name, member)
        elif member.kind == "symlink":
            self._count_entry()
            self._symlink(name, member)
        else:
            self._count_entry()
            self._link(name, member)

    def _parts(self, name: str) -> list[str]:
        """The components of a name. Raises BadArchive for one that leads anywhere but down."""
        if name.startswith("/"):
            raise self._refused(name, "an absolute name")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise self._refused(name, "which leads out of it")
        return parts

    def _enter(self, parts: list[str]) -> None:
        """Stand in the directory with these components, which are made where they are missing."""
        if parts == self._here and self._fd >= 0:
            return
        same = len(self._here)
        if self._fd < 0 or parts[:same] != self._here:
            self._leave()
            self._fd, same = os.dup(self._top), 0
        self._here = parts[:]
        for part in parts[same:]:
            new = self._make(part)
            self._step(part)
            if new:
                self._give(self._fd)
                os.fchmod(self._fd, 0o755)

    def _make(self, name: str) -> bool:
        try:
            os.mkdir(name, 0o700, dir_fd=self._fd)
        except FileExistsError:
            return False
        self._count_entry()
        return True

    def _step(self, name: str) -> None:
        try:
            fd = open_directory(name, self._fd)
        except OSError as error:
            if error.errno in _NOT_DIRECTORY:
                raise self._refused("/".join(self._here), "a way through what is no directory") from None
            raise
        os.close(self._fd)
        self._fd = fd

    def _leave(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _file(self, name: str, member: Member) -> None:
        if member.mode & (stat.S_ISUID | stat.S_ISGID) and not self._limits.setid:
            raise self._refused(member.name, "a set-id program (allow that with allow_setid)")
        fd = self._create(name, member)
        try:
            for chunk in member.content:
                left = memoryview(chunk)
                self._made.bytes += len(chunk)
                while left:
                    left = left[os.write(fd, left) :]
            allowed = 0o6755 if self._limits.setid else 0o755
            # Before the mode: it takes set-id bits away.
            self._give(fd)
            os.fchmod(fd, member.mode & allowed | 0o600)
            mtime = min(max(member.mtime, 0), self._now)
            os.utime(fd, (mtime, mtime))
        finally:
            os.close(fd)

    def _give(self, fd: int) -> None:
        if self._owner != _NOBODY:
            os.fchown(fd, *self._owner)

    def _create(self, name: str, member: Member) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        except FileExistsError:
            # What was appended to a tar replaces what stood there, but only a file by a file.
            if not stat.S_ISREG(os.lstat(name, dir_fd=self._fd).st_mode):
                raise self._refused(member.name, "a name that it holds already") from None
            # Not truncated: it may have other names.
            os.unlink(name, dir_fd=self._fd)
            return os.open(name, flags, 0o600, dir_fd=self._fd)
        self._count_entry()
        return fd

    def _symlink(self, name: str, member: Member) -> None:
        if not member.link or len(os.fsencode(member.link)) >= LONGEST_NAME:
            raise self._refused(member.name, "a link to what is no name")
        if member.link.startswith("/"):
            raise self._refused(member.name, "a link to an absolute name")
        try:
            os.symlink(member.link, name, dir_fd=self._fd)
        except FileExistsError:
            raise self._refused(member.name, "a name that it holds already") from None
        if self._owner != _NOBODY:
            os.chown(name, *self._owner, dir_fd=self._fd, follow_symlinks=False)
        path = "/".join([*self._here, name])
        self._links[path] = member.link
        self._text += len(path) + len(member.link)
        if self._text > _MOST_TEXT:
            raise self._refused(member.name, "one of more links than can be followed")

    def _link(self, name: str, member: Member) -> None:
        """A hard link, to a file that the archive has held before."""
        parts = self._parts(member.link)
        if self._strip and parts[:1] == [self._outermost]:
            parts.pop(0)
        source = self._find(parts, member) if parts else -1
        try:
            if source < 0 or not stat.S_ISREG(os.lstat(parts[-1], dir_fd=source).st_mode):
                raise self._refused(member.name, "a link to what is no file in it")
            try:
                os.link(parts[-1], name, src_dir_fd=source, dst_dir_fd=self._fd, follow_symlinks=False)
            except FileExistsError:
                raise self._refused(member.name, "a name that it holds already") from None
        except FileNotFoundError:
            raise self._refused(member.name, "a link to what is no file in it") from None
        finally:
            if source >= 0:
                os.close(source)

    def _find(self, parts: list[str], member: Member) -> int:
        """A descriptor of the directory that parts, without the last, lead to."""
        fd = os.dup(self._top)
        try:
            for part in parts[:-1]:
                step = open_directory(part, fd)
                os.close(fd)
                fd = step
        except OSError as error:
            os.close(fd)
            if error.errno in (*_NOT_DIRECTORY, errno.ENOENT):
                raise self._refused(member.name, "a link to what is no file in it") from None
            raise
        return fd

    def _check_links(self) -> None:
        """Raise BadArchive when a symlink leads out, followed as the kernel would follow it.

        Looking at its text is not enough: `..` behind another link goes up from where that one leads
        (CVE-2025-4517).
        """
        steps = 0
        for path in self._links:
            self._run.shutdown.check("extracting")
            here: list[str] = []
            todo, followed = path.split("/")[::-1], 0
            while todo:
                part = todo.pop()
                steps += 1 + len(here)
                if steps > _MOST_STEPS:
                    raise self._refused(path, "one of more links than can be followed")
                if part in ("", "."):
                    continue
                if part == "..":
                    if not here:
                        raise self._refused(path, "a link that leads out of it")
                    here.pop()
                    continue
                here.append(part)
                target = self._links.get("/".join(here))
                if target is not None:
                    followed += 1
                    if followed > _MOST_LINKS:
                        raise self._refused(path, "a link that leads in a circle")
                    here.pop()
                    todo += target.split("/")[::-1]
