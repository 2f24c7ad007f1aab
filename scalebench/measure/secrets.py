"""Remove secrets from recorded command lines and environment variables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

HIDDEN = "***"
# Names of options and variables: --hf-token, API_KEY, db.password; not --tokens, tokenizer or author.
_NAME = (
    r"(token(?![a-z])|secret|passw(or)?d|passphrase|credential|api[-_]?key|access[-_]?key|private[-_]?key"
    r"|(?<![a-z])auth(orization)?(?![a-z]))"
)
NAME = re.compile(_NAME, re.IGNORECASE)
# Values that are secrets whatever they are called: the prefixes of known issuers, JSON web tokens, PEM keys.
VALUE = re.compile(
    r"\b(hf_|ghp_|gho_|ghs_|github_pat_|glpat-|sk-|pk-|xox[abprs]-|AKIA|ASIA|AIza|npm_|pypi-)[A-Za-z0-9_\-]{10,}"
    r"|\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|\b[Bb]earer[ -]\S+"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*"
)
IN_URL = re.compile(r"(://)[^/\s]+@")  # user:password@ and token@; a password may have an @ itself
ASSIGNED = re.compile(rf"({_NAME}[\w.-]*[=:]\s*)[^\s&,;'\"]+", re.IGNORECASE)


def hide(text: str) -> str:
    """Return a text with ``***`` for credentials in URLs, values of secret names, and values that look like keys."""
    text = VALUE.sub(HIDDEN, IN_URL.sub(rf"\1{HIDDEN}@", text))
    return ASSIGNED.sub(rf"\g<1>{HIDDEN}", text)


def hide_in_words(words: Iterable[str]) -> list[str]:
    """Return the words of a command line with ``***`` for secrets, also for the word after ``--hf-token``."""
    hidden: list[str] = []
    option = ""
    for word in words:
        hidden.append(HIDDEN if NAME.search(option) and not word.startswith("-") else hide(word))
        option = word if word.startswith("-") and "=" not in word else ""
    return hidden


def hide_in_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables with ``***`` for the values of secret names and for secrets in other values."""
    return {name: HIDDEN if NAME.search(name) else hide(value) for name, value in variables.items()}
