"""What is told shows no secret: logins and queries of URLs, headers, tokens, values of the environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
_NAMES = r"[\w-]*(?:passw(?:or)?d|passwd|secret|token|api[_-]?key|credential)[\w-]*"
# A shorter value is found everywhere, and hides nothing but letters.
_SHORTEST = 4
_RULES = (
    # Logins and queries of URLs; a password may hold any sign.
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://)\S*@"), r"\1"),
    (re.compile(r"(?i)(\b[a-z][a-z0-9+.-]*://[^\s?#]*)[?#][^\s'\",)]*"), r"\1"),
    # Headers, to the end of their line.
    (
        re.compile(r"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)([\"']?\s*[:=]\s*)[^\r\n]+"),
        rf"\1\2{HIDDEN}",
    ),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {HIDDEN}"),
    # What is called a secret.
    (re.compile(rf"(?i)\b({_NAMES})([\"']?\s*[:=]\s*)(?:\"[^\"]*\"|'[^']*'|\S+)"), rf"\1\2{HIDDEN}"),
)
_LIKELY = re.compile(rf"(?i)(?!.*_(?:file|path|dir)$)(?:{_NAMES}|.*_auth)")


class Secrets:
    """What of a text must not be told: what looks like a secret, and the secrets that are known."""

    def __init__(self, known: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> None:
        """known: values; of the environment those whose name says that they are secret."""
        found = {value for name, value in (environment or {}).items() if _LIKELY.fullmatch(name)}
        values = sorted({*known, *found}, key=len, reverse=True)
        self._known = [value for value in values if len(value) >= _SHORTEST]

    def hide(self, text: str) -> str:
        """The text without them."""
        for value in self._known:
            text = text.replace(value, HIDDEN)
        for rule, instead in _RULES:
            text = rule.sub(instead, text)
        return text
