"""Errors for invalid input: one line per mistake, with the known names and a suggestion."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence


class InputError(ValueError):
    """The input is invalid. ``lines`` has one line per mistake: what was given and what is allowed."""

    def __init__(self, lines: str | Sequence[str]) -> None:
        self.lines = (lines,) if isinstance(lines, str) else tuple(dict.fromkeys(lines))
        super().__init__("\n".join(self.lines))


class StudyError(InputError):
    """An invalid study; each line names file and key."""


def unknown(name: str, known: Collection[str]) -> str:
    """Return the message for a name that is not known: the known ones, and the most similar."""
    by_lower = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    suggestion = f"; did you mean {by_lower[close[0]]!r}?" if close else ""
    return f"unknown {name!r}{suggestion} (known: {', '.join(known)})"
