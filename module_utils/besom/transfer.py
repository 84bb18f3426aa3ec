# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One transfer over HTTP: asked for, resumed, tried again where that may help, verified while it is read."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import os
import random
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Callable

from .cutoff import Cutoff
from .durable import Draft
from .errors import BesomError, UsageError
from .fetch import Opener, body_length, check_url, redact
from .origin import Origin, digest_of, read_origin, said, write_origin
from .units import format_duration, shown

BLOCK = 256 * 1024
DEFAULT_RETRIES = 4
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
# A server may ask for more patience than anybody who waits for this has.
_MOST_PATIENCE_S = 300.0
# What comes more slowly than that is not waited for, though no single read times out.
_CRAWL_BYTES, _CRAWL_S = 4096, 60.0
_MOST_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
# RFC 9110, 15.5.9 and 15.6; RFC 6585, 4.
_TRANSIENT = (408, 429, 500, 502, 503, 504)
STRONG = ("sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512", "blake2b", "blake2s")
WEAK = ("md5", "sha1", "sha224", "sha3_224")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# What a transfer says of itself.
_OWN = ("range", "if-range", "if-none-match", "if-modified-since", "if-match", "accept-encoding")


@dataclass(frozen=True)
class Checksum:
    """What a file's content has to come to."""

    algorithm: str
    digest: str

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.digest}"


def read_checksum(value: Any, name: str = "checksum", allow_weak: bool = False) -> Checksum:
    """A checksum in the form ALGORITHM:HEX. Raises UsageError, also for a weak one unless that is allowed."""
    algorithm, _colon, digest = (value if isinstance(value, str) else "").strip().lower().partition(":")
    if algorithm in WEAK and not allow_weak:
        raise UsageError(
            f"{name}: {algorithm} can be forged; give a sha256, or allow that with allow_weak_checksum."
        )
    try:
        length = hashlib.new(algorithm).digest_size if algorithm in STRONG + WEAK else 0
    except ValueError:
        raise UsageError(f"{name}: this host has no {algorithm}; give a sha256.") from None
    if not length or not re.fullmatch(rf"[0-9a-f]{{{2 * length}}}", digest):
        said = shown(value)[:80]
        raise UsageError(f"{name}: '{said}' is no checksum; write sha256: and its {2 * 32} hex digits.")
    return Checksum(algorithm, digest)


def read_headers(value: Any, name: str = "headers") -> dict[str, str]:
    """HTTP headers from a mapping. Raises UsageError for what could break out of its line."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UsageError(f"{name}: must be a mapping of names to values.")
    found = {}
    for key, text in value.items():
        if not isinstance(key, str) or not _TOKEN.fullmatch(key):
            raise UsageError(f"{name}: '{shown(key)}' is no name of a header.")
        text = str(text)
        if not all(char == "\t" or " " <= char != "\x7f" for char in text) or not text.isascii():
            # The value may be a secret, so it is not shown.
            raise UsageError(f"{name}: the value of {key} has characters that a header cannot have.")
        if key.lower() not in _OWN:
            found[key] = text
    return found


@dataclass(frozen=True)
class Source:
    """What is to be fetched, and what proves that it is it; headers and login are for its own server only."""

    url: str
    checksum: Checksum | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    login: str = field(default="", repr=False)
    login_first: bool = False

    @property
    def shown(self) -> str:
        return redact(self.url)


def read_source(
    url: Any,
    where: str = "",
    checksum: Checksum | None = None,
    headers: Mapping[str, str] | None = None,
    username: str = "",
    password: str = "",
    login_first: bool = False,
) -> Source:
    """A source; user and password in the URL stand above the ones given, and are no part of it then.

    login_first: send them with the first request, not only when the server asks. Raises UsageError.
    """
    url = check_url(url, where + "url")
    parts = urllib.parse.urlsplit(url)
    userinfo, at, host = parts.netloc.rpartition("@")
    if at:
        url = parts._replace(netloc=host).geturl()
        username, _colon, password = (urllib.parse.unquote(word) for word in userinfo.partition(":"))
    try:
        login = base64.b64encode(f"{username}:{password}".encode()).decode() if username else ""
    except UnicodeError:
        raise UsageError(f"{where}the user name or password is no text.") from None
    # http.client wants ASCII; a fragment is not for servers.
    url = urllib.parse.quote(url.partition("#")[0], safe="%/:=&?~#+!$,;'@()*[]")
    return Source(url, checksum, dict(headers or {}), login, login_first)


def leave(draft: Draft) -> None:
    """Leave what draft holds to the next run, where that could go on with it; else discard it."""
    origin = read_origin(draft.fd)
    if origin and origin.if_range:
        draft.leave()
    else:
        draft.discard()


class _Again(Exception):
    """It may go better the next time; after so many seconds, if the server said so."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class _Crawl(_Again):
    """It comes, but too slowly to be called progress."""


@dataclass
class Reply:
    """A response of any status; close it, or use it in a with statement."""

    status: int
    body: Any
    url: str

    @property
    def headers(self) -> Any:
        return self.body.headers

    @property
    def length(self) -> int:
        """Bytes of this very body, or -1. Raises BesomError where that cannot be told for sure."""
        try:
            return body_length(self.headers)
        except ValueError as error:
            raise BesomError(f"{redact(self.url)} cannot be fetched: {error}.") from None

    @property
    def start_and_total(self) -> tuple[int, int]:
        """Where in the whole a 206 begins, and how much the whole is; -1 for what is not told."""
        text = self.headers.get("Content-Range", "") or ""
        match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", text)
        return (int(match[1]), -1 if match[2] == "*" else int(match[2])) if match else (-1, -1)

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_exception: object) -> None:
        with suppress(OSError):
            self.body.close()


def ask(
    opener: Opener,
    source: Source,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    cutoff: Cutoff | None = None,
) -> Reply:
    """What the server of source answers, whatever its status, after at most 10 redirects.

    opener must follow none: what is meant for one server (headers, login) is told to no other, and from
    https nothing leads to http (CVE-2018-1000007 was curl's). Raises BesomError for what no other try
    makes better, _Again for what it might, Cut.
    """
    from http.client import HTTPException

    url, login_asked = source.url, source.login_first
    for _hop in range(_MOST_REDIRECTS + 2):
        sent = {"Accept-Encoding": "identity"}
        home = url == source.url or _server(url) == _server(source.url)
        if home:
            sent.update(source.headers)
            if source.login and login_asked:
                sent["Authorization"] = f"Basic {source.login}"
        sent.update(headers or {})
        try:
            body = opener(url, method=method, headers=sent, cutoff=cutoff)
            status = getattr(body, "status", None) or body.getcode()
        except (OSError, HTTPException, ValueError) as error:
            # urllib raises its answers as HTTPError.
            body, status = error, getattr(error, "code", None)
            if not isinstance(status, int):
                raise _refusal(source, error) from error
        reply = Reply(status, body, url)
        location = body.headers.get("Location")
        asked = status == 401 and home and source.login and not login_asked
        if not asked and not (status in _REDIRECTS and location):
            return reply
        with reply:
            if asked:
                login_asked = True
            else:
                url = _redirected(source, url, location)
    raise BesomError(f"{source.shown} leads through too many redirects; correct the url.")


def _server(url: str) -> tuple[str, str, int]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def _redirected(source: Source, url: str, location: str) -> str:
    there = urllib.parse.quote(location, safe="%/:=&?~#+!$,;'@()*[]").partition("#")[0]
    try:
        there = check_url(urllib.parse.urljoin(url, there))
    except (UsageError, ValueError):
        raise BesomError(f"{source.shown} redirects to {redact(there)}, which is no web address.") from None
    if url.startswith("https:") and not there.startswith("https:"):
        raise BesomError(
            f"{source.shown} redirects to {redact(there)}, which is not encrypted; correct the url."
        )
    return there


def _refusal(source: Source, error: Exception) -> Exception:
    """What an opener raised, as an error for good or one that may pass."""
    reason = getattr(error, "reason", error)
    # A server has a say in it, and says what it likes.
    text = shown(str(getattr(reason, "strerror", None) or reason) or type(error).__name__)
    # ssl is not everywhere; its errors of verification all have this attribute.
    if hasattr(reason, "verify_code") or "CERTIFICATE_VERIFY_FAILED" in text:
        return BesomError(f"{source.shown}: its certificate is not trusted ({text}).")
    if isinstance(error, ValueError):
        return BesomError(f"{source.shown} cannot be asked for: {text}.")
    return _Again(text)


@dataclass(frozen=True)
class Look:
    """What a HEAD request told: unchanged since the origin that was given, or else the size (-1: unknown)."""

    unchanged: bool
    size: int = -1


def look(opener: Opener, source: Source, known: Origin | None = None, cutoff: Cutoff | None = None) -> Look:
    """Ask, without fetching it, whether source is still as known, and how large it is.

    A server that does not answer tells nothing: fetching it decides. Raises Cut.
    """
    from http.client import HTTPException

    try:
        with ask(opener, source, "HEAD", known.conditions if known else {}, cutoff) as reply:
            if known and (reply.status == 304 or (reply.status == 200 and _same(known, reply))):
                return Look(True)
            if reply.status == 200:
                return Look(False, reply.length)
    except (_Again, BesomError, OSError, HTTPException):
        pass
    return Look(False)


def _same(known: Origin, reply: Reply) -> bool:
    """Whether a server that ignores conditions tells of the very file."""
    now = said("", reply.headers, -1)
    return bool(now.strong and now.etag and now.etag == known.etag)


@dataclass
class Figures:
    """What transfers took: bytes that came, requests beyond the first of each, seconds waited before them."""

    bytes: int = 0
    retries: int = 0
    waited_s: float = 0.0


Moved = Callable[[int, int], None]
_rooms = threading.local()


def _room() -> memoryview:
    """What this thread reads into, which it keeps: fresh memory costs as much as a copy."""
    if not hasattr(_rooms, "view"):
        _rooms.view = memoryview(bytearray(BLOCK))
    view: memoryview = _rooms.view
    return view


class Transfer:
    """Fetches one source into one draft."""

    def __init__(
        self,
        source: Source,
        opener: Opener,
        cutoff: Cutoff,
        retries: int = DEFAULT_RETRIES,
        moved: Moved = lambda done, total: None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """moved is told the bytes that are there, and of how many (-1: unknown)."""
        self.figures = Figures()
        self._source, self._opener, self._cutoff = source, opener, cutoff
        self._retries, self._moved, self._now, self._clock = retries, moved, now, clock
        self._origin = Origin(digest_of(source.url))
        self._digest = self._new_digest()
        self._done = 0

    def run(self, draft: Draft, known: Origin | None = None) -> Origin | None:
        """Fetch it; returns its origin, which the draft has as well. None: it is still as known.

        What the draft holds already is gone on from, if its origin and the server let that be; what it
        came to when the server failed is left to the next run. Raises BesomError (NoSpace) when it cannot
        be had or is not what the checksum says, Cut.
        """
        from http.client import HTTPException

        self._resume(draft)
        fails, spliced, furthest = 0, False, self._done
        while True:
            self._cutoff.check()
            spliced = spliced or self._done > 0
            # Where all of it is there and proves itself, there is nothing to ask for.
            if not (self._is_whole and self._source.checksum):
                try:
                    if not self._attempt(draft, None if spliced else known):
                        return None
                except (_Again, OSError, HTTPException) as error:
                    self._cutoff.check()
                    if self._done > furthest and not isinstance(error, _Crawl):
                        fails = 0
                    fails, furthest = fails + 1, max(furthest, self._done)
                    again = error if isinstance(error, _Again) else _refusal(self._source, error)
                    if not isinstance(again, _Again):
                        raise again from error
                    try:
                        self._wait(again, fails)
                    except BesomError:
                        leave(draft)
                        raise
                    continue
            wrong = self._wrong()
            if not wrong:
                checksum = f"{self._digest.name}:{self._digest.hexdigest()}"
                origin = self._origin.of_file(draft.fd, checksum)
                write_origin(draft.fd, origin)
                return origin
            if not spliced:
                raise BesomError(f"{self._source.shown} {wrong}; nothing was published.")
            # The parts may not belong together; the whole gets a chance of its own.
            spliced = False
            self._start_over(draft)

    def _wait(self, again: _Again, fails: int) -> None:
        if fails > self._retries:
            times = f" ({fails} times)" if fails > 1 else ""
            raise BesomError(f"{self._source.shown} cannot be fetched: {again}{times}.")
        seconds = again.after
        if seconds is None:
            # Spread, so that a fleet that failed together does not come back together.
            seconds = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (fails - 1)) * random.uniform(0.5, 1)  # noqa: S311
        elif seconds > _MOST_PATIENCE_S:
            asked = format_duration(round(seconds))
            raise BesomError(f"{self._source.shown} cannot be fetched: {again}; try again in {asked}.")
        self.figures.retries += 1
        self.figures.waited_s += seconds
        self._cutoff.pause(seconds)

    def _resume(self, draft: Draft) -> None:
        """Take up what a draft of an earlier run holds, which is read once, for its checksum."""
        size = os.fstat(draft.fd).st_size
        if not size:
            return
        origin = read_origin(draft.fd)
        if origin and origin.source == digest_of(self._source.url) and origin.if_range:
            os.lseek(draft.fd, 0, os.SEEK_SET)
            while block := os.read(draft.fd, BLOCK):
                self._cutoff.check()
                self._digest.update(block)
                self._done += len(block)
            self._origin = origin
        if not self._origin.if_range or self._done > self._origin.size >= 0:
            self._start_over(draft)

    @property
    def _is_whole(self) -> bool:
        return 0 < self._done == self._origin.size

    def _start_over(self, draft: Draft) -> None:
        os.lseek(draft.fd, 0, os.SEEK_SET)
        os.ftruncate(draft.fd, 0)
        self._done, self._digest = 0, self._new_digest()

    def _new_digest(self) -> Any:
        checksum = self._source.checksum
        # Without one its digest is for comparisons of besom's own: the fastest strong one.
        return hashlib.new(checksum.algorithm if checksum else "blake2b")

    def _wrong(self) -> str:
        """What is wrong with the content, if a checksum says so."""
        checksum, came = self._source.checksum, self._digest.hexdigest()
        if checksum is None or came == checksum.digest:
            return ""
        return f"has the checksum {checksum.algorithm}:{came}, not {checksum}"

    def _attempt(self, draft: Draft, known: Origin | None) -> bool:
        """One request, read to its end; False: it is still as known."""
        validator = self._origin.if_range
        if self._done and not validator:
            self._start_over(draft)
        asked = self._origin if self._is_whole else known
        headers = asked.conditions if asked else {}
        if self._done and not self._is_whole:
            headers = {"Range": f"bytes={self._done}-", "If-Range": validator}
        with ask(self._opener, self._source, "GET", headers, self._cutoff) as reply:
            if asked and (reply.status == 304 or (reply.status == 200 and _same(asked, reply))):
                return asked is not known
            total = self._begin(draft, reply)
            with self._cutoff.reading(reply.body):
                self._read(draft, reply.body, total)
            return True

    def _begin(self, draft: Draft, reply: Reply) -> int:
        """Make the draft ready for the body of reply; returns the size of the whole, -1 where unknown."""
        length = reply.length if reply.status in (200, 206) else -1
        if reply.status == 206 and self._done:
            start, total = reply.start_and_total
            now = said(self._source.url, reply.headers, total)
            # Without the validators of a 206 the server vouches with the status alone (RFC 9110, 15.3.7).
            told, known = (now.etag, self._origin.etag) if now.etag else (now.modified, self._origin.modified)
            total = self._origin.size if total < 0 else total
            # Where nobody tells how much the whole is, the part may end before it does.
            fits = start == self._done and total >= 0 and self._origin.size in (-1, total)
            if fits and told in ("", known):
                self._origin = replace(self._origin, size=total)
                return total
        elif reply.status == 200:
            self._start_over(draft)
            self._origin = said(self._source.url, reply.headers, length)
            if self._origin.if_range:
                write_origin(draft.fd, self._origin)
            return length
        elif reply.status in _TRANSIENT:
            raise _Again(f"the server answers {reply.status}", self._retry_after(reply))
        if reply.status in (206, 416):
            # A part of something else: only the whole will do.
            self._start_over(draft)
            self._origin = Origin(self._origin.source)
            raise _Again("the server sent another part than was asked for", 0.0)
        raise BesomError(f"{self._source.shown} cannot be fetched: the server answers {reply.status}.")

    def _read(self, draft: Draft, body: Any, total: int) -> None:
        since, before, room = self._clock(), self._done, _room()
        while total < 0 or self._done < total:
            self._cutoff.check()
            if (past := self._clock() - since) >= _CRAWL_S:
                if self._done - before < _CRAWL_BYTES:
                    came = f"{self._done - before} bytes in {format_duration(round(past))}"
                    raise _Crawl(f"the server sent no more than {came}")
                since, before = self._clock(), self._done
            # It hands on what is there, so that what came before a loss is not lost.
            count = body.readinto1(room if total < 0 else room[: total - self._done])
            if not count:
                break
            block = room[:count]
            draft.write(block)
            self._digest.update(block)
            self._done += count
            self.figures.bytes += count
            self._moved(self._done, total)
        if self._done < total:
            raise _Again(f"the connection ended after {self._done} of {total} bytes")

    def _retry_after(self, reply: Reply) -> float | None:
        """The seconds that a server asks for, as a number or a date (RFC 9110, 10.2.3)."""
        text = (reply.headers.get("Retry-After") or "").strip()
        if re.fullmatch(r"[0-9]{1,9}", text):
            return float(text)
        with suppress(TypeError, ValueError, IndexError, OverflowError):
            return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - self._now())
        return None
