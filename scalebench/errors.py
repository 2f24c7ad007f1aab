"""How wrong input is told: a line for each mistake, with what is known and what may have been meant."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence


class StudyError(ValueError):
    """An invalid study; ``lines`` holds one line per error, each naming file and key."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(dict.fromkeys(lines))
        super().__init__("\n".join(self.lines))


def unknown(name: str, known: Collection[str]) -> str:
    """Say that ``name`` is not known, what is, and which one may have been meant."""
    close = difflib.get_close_matches(name, known, n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {name!r}{suggestion} (known: {', '.join(known)})"
