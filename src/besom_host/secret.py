"""What is told shows no secret: logins and queries of URLs, headers, tokens, values of the environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from besom.units import printable

HIDDEN = "***"
_WORDS = (
    r"(?:passw(?:or)?d|passphrase|secret|token|credential|(?:api|private|access|encryption|signing)[_-]?key)"
)
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
            rf"(?i)((?:{_WORDS}[\w-]{{0,60}}|(?<![a-z])(?:pass|pwd))[\"']?\s{{0,3}}[:=]\s{{0,3}})"
            r"(?:\"[^\"]{0,500}\"|'[^']{0,500}'|\S+)"
        ),
        rf"\1{HIDDEN}",
    ),
    # On a command line.
    (re.compile(rf"(?i)(?<![\w-])(--(?=[\w-]{{0,60}}{_WORDS})[\w-]{{1,80}}\s{{1,3}})\S+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?<![\w-])((?:-u|--user)[\s=]{0,3}[^\s:]{1,60}:)\S+"), rf"\1{HIDDEN}"),
    # What says itself that it is one.
    (re.compile(r"(?<!\w)(?:gh[opsur]_|github_pat_|glpat-|xox[abp]-)[\w-]{10,255}"), HIDDEN),
)
_LIKELY = re.compile(
    rf"(?i)(?!.*_(?:file|path|dir)$)(?:.*{_WORDS}.*|.*_(?:auth|key|pat|pwd)|(?:.*_)?(?:ssh)?pass)"
)


def _without_login(match: re.Match[str]) -> str:
    """A word with a URL in it, without the login and the query; a password may hold any sign."""
    scheme, slashes, rest = match.group().partition("://")
    return scheme + slashes + re.split("[?#]", rest.rpartition("@")[2])[0]


def passwords(text: str) -> list[str]:
    """The passwords in a text that is a URL."""
    login = text.partition("://")[2].rpartition("@")[0]
    password = login.partition(":")[2]
    return [password, unquote(password)]


class Secrets:
    """What of a text must not be told: what looks like a secret, and the secrets that are known."""

    def __init__(self, known: Iterable[str] = (), environment: Mapping[str, str] | None = None) -> None:
        """known: values; of the environment those whose name says so, and the passwords of URLs."""
        found = {value for name, value in (environment or {}).items() if _LIKELY.fullmatch(name)}
        found.update(*map(passwords, (environment or {}).values()))
        values = {value for value in (*known, *found) if len(value) >= _SHORTEST}
        # Also as they look in a sentence, and in the words of an exception.
        values |= {form for value in values for form in (printable(value), repr(value)[1:-1])}
        self._known = sorted(values, key=len, reverse=True)

    def hide(self, text: str) -> str:
        """The text without them."""
        for value in self._known:
            text = text.replace(value, HIDDEN)
        for rule, instead in _RULES:
            text = rule.sub(instead, text)
        return re.sub(r"\S+", _without_login, text) if "://" in text else text
