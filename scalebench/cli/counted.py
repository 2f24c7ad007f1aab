"""Many equal messages as one line with their number."""

from __future__ import annotations

import re
from collections.abc import Iterable

VARYING = re.compile(r"(?:[^\s:,;]*/)+[^\s:,;]*|\b[0-9a-f]{8,}\b|\d[\d.,e+-]*")  # paths, ids and numbers


def counted(lines: Iterable[str], most: int = 3) -> list[str]:
    """Return the lines, but of those that differ only in paths, ids and numbers the first, with the number of others.

    Up to ``most`` lines of a kind are all kept.
    """
    kinds: dict[str, list[str]] = {}
    for line in lines:
        kinds.setdefault(VARYING.sub("#", line), []).append(line)
    return [
        text
        for same in kinds.values()
        for text in (same if len(same) <= most else [f"{same[0]} (and {len(same) - 1} more like it)"])
    ]
