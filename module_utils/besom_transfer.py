# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules that fetch share. Others do not carry it."""

from __future__ import annotations

from typing import Any

from .besom.errors import UsageError
from .besom.fetch import Opener
from .besom.units import printable
from .besom_module import WEB

FETCH = dict(
    http_agent=dict(type="str", default="besom"),
    client_cert=dict(type="path"),
    client_key=dict(type="path"),
    ca_path=dict(type="path"),
    **WEB,
)


def transfer_opener(params: dict[str, Any]) -> Opener:
    """What transfers ask through, with the options of FETCH; it follows no redirect.

    Not open_url, which reads every certificate of the host again for each request: that costs more than
    the file.
    """
    # Only a task that fetches needs it, and it takes longer to import than most tasks take.
    from ansible.module_utils import urls

    from .besom.opener import plain_opener

    try:
        context = urls.make_context(
            cafile=params["ca_path"],
            validate_certs=params["validate_certs"],
            client_cert=params["client_cert"],
            client_key=params["client_key"],
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"The certificates cannot be used: {printable(str(error))}.") from error
    agent = {"User-Agent": params["http_agent"]}
    ask = plain_opener(params["timeout"], None, redirects=False, proxies=params["use_proxy"], context=context)
    return lambda url, headers, **more: ask(url, headers={**agent, **headers}, **more)
