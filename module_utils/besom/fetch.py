# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an HTTP server says of an artifact before it is fetched."""

from __future__ import annotations

import re
from typing import Any, Callable

from .errors import UsageError
from .units import shown

# opener(url, method=..., headers=...) returns an open response with .headers (and, as open_url of
# Ansible does, raises urllib.error.HTTPError for a status of 400 and above). What asks for transfers
# is given a cutoff=... as well, which may end the wait for the answer.
Opener = Callable[..., Any]


def check_url(url: Any, name: str = "url") -> str:
    """The url, if it is http or https with a host. Raises UsageError."""
    if not isinstance(url, str) or not _is_web(url):
        raise UsageError(
            f"{name}: {redact(url if isinstance(url, str) else shown(url))} is not an http or https URL."
        )
    return url


def _is_web(url: str) -> bool:
    # 5 ms that only a run with URLs needs.
    import urllib.parse

    try:
        # What is no text (half of a character of JSON, or bytes of a command line) cannot be sent.
        url.encode()
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        good = good and is_host(parts.netloc)
    except ValueError:
        return False
    return good and all(char > " " for char in url)


def is_host(netloc: str) -> bool:
    """Whether no more than a port stands around the brackets of an address, which older Pythons let pass.

    CVE-2025-0938.
    """
    host = netloc.rpartition("@")[2]
    return not {"[", "]"} & set(host) or re.fullmatch(r"\[[^\[\]]*\](:[0-9]*)?", host) is not None


def redact(url: str) -> str:
    """The url as it may be shown: without user, password, query and fragment, where secrets are kept.

    Of what is no URL all before its last @ may be a password, with whatever characters.
    """
    if _is_web(url):
        rest = re.sub(r"(?<=//)[^/?#]*@", "", url)
    else:
        before, _at, rest = url.rpartition("@")
        scheme = re.match(r"(?:[A-Za-z][A-Za-z0-9+.-]*:)?//", before)
        rest = (scheme[0] if scheme else "") + rest
    return shown(re.split(r"[?#]", rest, maxsplit=1)[0])


def body_length(headers: Any) -> int:
    """Bytes of a body as the headers of its answer tell, -1 where only its end does (RFC 9112, 6.3).

    Raises ValueError where http.client and these headers may not mean the same bytes.
    """
    codings = [text.lower() for text in headers.get_all("Transfer-Encoding", [])]
    if codings == ["chunked"]:
        return -1
    if codings not in ([], ["identity"]):
        raise ValueError("the server answers in a transfer coding that besom does not read")
    # One length may be told many times (RFC 9110, 8.6).
    lengths = {text.strip(" \t") for text in ",".join(headers.get_all("Content-Length", [])).split(",")}
    text = lengths.pop()
    if lengths or not re.fullmatch(r"[0-9]{0,18}", text):
        raise ValueError("the server answers with a Content-Length that is none")
    return int(text or -1)


def content_length(url: str, opener: Opener) -> int | None:
    """Bytes of what url names: HEAD first, then a GET of its first byte; None when the server does not say.

    A failing server is None too: a gate that cannot know is the caller's to decide. RFC 9110, 8.6
    and 14.4.
    """
    from http.client import HTTPException

    # A compressed transfer would be counted instead of the file.
    headers = {"Accept-Encoding": "identity"}
    for method, more in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
        try:
            with opener(url, method=method, headers={**headers, **more}) as response:
                size = _size(response)
        except (OSError, HTTPException, ValueError):
            continue  # many servers refuse HEAD; urllib's errors are OSErrors
        if size is not None:
            return size
    return None


def _size(response: Any) -> int | None:
    if response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    match = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", response.headers.get("Content-Range", ""))
    if match:
        return int(match.group(1))
    text = response.headers.get("Content-Length", "")
    # A 206 without Content-Range gives the length of the part, not of the whole.
    status = getattr(response, "status", None) or response.getcode()
    return int(text) if status == 200 and re.fullmatch(r"[0-9]{1,18}", text) else None
