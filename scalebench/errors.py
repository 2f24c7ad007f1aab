"""Errors for invalid input: one line per mistake, with the known names and a suggestion; numbers of things."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Sequence
from types import UnionType

MOST_NAMES, NEAREST = 60, 6  # longer lists of known names are cut to those most like the one given
MOST_IDS = 10  # of trials that a message lists


class InputError(ValueError):
    """The input is invalid. ``lines`` has one line per mistake: what was given and what is allowed."""

    def __init__(self, lines: str | Sequence[str]) -> None:
        self.lines = (lines,) if isinstance(lines, str) else tuple(dict.fromkeys(lines))
        super().__init__("\n".join(self.lines))


class StudyError(InputError):
    """An invalid study; each line names file and key."""


def expect(value: object, kinds: type | UnionType, expected: str) -> None:
    """Raise ``InputError`` unless a value has one of the types, with what was expected and the type it has."""
    if not isinstance(value, kinds):
        raise InputError(f"{expected}, not {type(value).__name__} ({value!r:.40})")


def unknown(name: str, known: Collection[str], most: int = MOST_NAMES) -> str:
    """Return the message for a name that is not known: the known ones, and the most similar; of many, a few like it."""
    by_lower = {other.lower(): other for other in known}
    close = _with_word(name.lower(), by_lower) or difflib.get_close_matches(name.lower(), by_lower, n=1)
    suggestion = f"; did you mean {by_lower[close[0]]!r}?" if close else ""
    names = list(known)
    if len(names) > most:
        near = difflib.get_close_matches(name.lower(), by_lower, n=NEAREST, cutoff=0.3)
        names = [by_lower[other] for other in near] or names[:NEAREST]
        names.append(f"… {len(known)} in all")
    return f"unknown {shortened(name)!r}{suggestion} (known: {', '.join(map(shortened, names))})"


def _with_word(word: str, names: Collection[str]) -> list[str]:
    """Return the shortest of the names that have a word in them, as ``eval loss`` has ``loss``, if any has."""
    whole = re.compile(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])")
    return sorted((name for name in names if word and whole.search(name)), key=len)[:1]


def beginning(prefix: str, ids: Collection[str]) -> list[str]:
    """Return the ids of trials that a name on the command line stands for: those that it begins, none for ""."""
    return [name for name in ids if prefix and name.startswith(prefix)]


def several(prefix: str, ids: Sequence[str]) -> str:
    """Return the message for a name that begins several ids."""
    return f"{shortened(prefix)} begins {len(ids)} ids: {', '.join(ids[:MOST_IDS])}"


def number_of(count: float, noun: str) -> str:
    """Return a count with its noun: "1 GPU", "2 GPUs", "2 processes"."""
    ending = "" if count == 1 else "es" if noun.endswith(("s", "ch")) else "s"
    return f"{count:g} {noun}{ending}" if isinstance(count, float) else f"{count} {noun}{ending}"


def shortened(text: str, most: int = 60) -> str:
    """Return a text of at most ``most`` characters, the middle of a longer one left out."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 + 1 :]}"
