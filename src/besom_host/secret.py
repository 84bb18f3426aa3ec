"""What is told shows no secret: logins and queries of URLs, headers, tokens, values of the environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
_WORDS = r"(?:passw(?:or)?d|passwd|secret|token|(?:api|private)[_-]?key|credential)"
# A shorter value is found everywhere, and hides nothing but words.
_SHORTEST = 6
# Bounded throughout: what is searched may be as hostile as the name of a file.
_RULES = (
    # Headers, to the end of their line.
    (re.compile(r"(?i)\b(authorization|cookie)([\"']?\s{0,3}[:=])[^\r\n]+"), rf"\1\2 {HIDDEN}"),
    (re.compile(r"(?i)\b(bearer)\s{1,3}\S+"), rf"\1 {HIDDEN}"),
    # What is called a secret.
    (
        re.compile(
            rf"(?i)({_WORDS}[\w-]{{0,60}}[\"']?\s{{0,3}}[:=]\s{{0,3}})"
            r"(?:\"[^\"]{0,500}\"|'[^']{0,500}'|\S+)"
        ),
        rf"\1{HIDDEN}",
    ),
)
_LIKELY = re.compile(rf"(?i)(?!.*_(?:file|path|dir)$)(?:.*{_WORDS}.*|.*_auth)")


def _without_login(match: re.Match[str]) -> str:
    """A word with a URL in it, without the login and the query; a password may hold any sign."""
    scheme, slashes, rest = match.group().partition("://")
    return scheme + slashes + re.split("[?#]", rest.rpartition("@")[2])[0]


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
        return re.sub(r"\S+", _without_login, text) if "://" in text else text
