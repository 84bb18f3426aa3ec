# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Asking HTTP servers with nothing but the standard library."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .fetch import Opener

DEFAULT_TIMEOUT = 10.0


def plain_opener(
    timeout: float = DEFAULT_TIMEOUT,
    headers: Mapping[str, str] | None = None,
    redirects: bool = True,
    proxies: bool = True,
    context: Any = None,
) -> Opener:
    """An opener of the standard library, for any number of threads. timeout in seconds.

    redirects: follow them; without, they are answers like others, as transfer.ask wants them, and
    connections are kept for the next request, unless there are proxies.
    proxies: those of the environment. context: an ssl.SSLContext; without one TLS is verified against
    what the host trusts.
    """

    asked_of_others = proxies and any(
        name.lower().endswith("_proxy") and name.lower() != "no_proxy" for name in os.environ
    )
    if not (redirects or asked_of_others):
        # 20 ms that only a run with URLs needs, and 50 the other.
        from .connections import Connections

        return Connections(timeout, context)

    import urllib.request

    class Unfollowed(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *_args: Any) -> None:
            """To nowhere: HTTPError is raised then."""

    handlers: list[Any] = [] if redirects else [Unfollowed]
    handlers += [] if proxies else [urllib.request.ProxyHandler({})]
    handlers += [urllib.request.HTTPSHandler(context=context)] if context else []
    director = urllib.request.build_opener(*handlers)

    def open_(
        url: str, method: str = "GET", headers: Mapping[str, str] = headers or {}, cutoff: Any = None
    ) -> Any:
        request = urllib.request.Request(url, method=method, headers=dict(headers))  # noqa: S310 (check_url)
        return director.open(request, timeout=timeout)

    return open_
