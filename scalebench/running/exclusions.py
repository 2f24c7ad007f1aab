"""Which [[exclude]] of a study file drops the combinations that cannot be planned."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

MOST = 20_000  # of more combinations none is looked for
Combination = Mapping[str, Any]  # of field -> value, as Study.points() has them


def with_exclusions(refused: Mapping[str, Sequence[Combination]], accepted: Sequence[Combination]) -> list[str]:
    """Return each reason once, with the [[exclude]] that drops its combinations if others can be planned."""
    lines = []
    for line, points in refused.items():
        others = [*accepted, *(point for other, more in refused.items() if other != line for point in more)]
        entry = exclusion(points, others) if len(others) + len(points) <= MOST else ""
        lines.append(f"{line}; to leave it out, add {entry}" if entry else line)
    return lines


def exclusion(refused: Sequence[Combination], others: Sequence[Combination]) -> str:
    """Return what to write to drop the ``refused`` combinations and none of the ``others``; "" if one entry cannot.

    An entry of [[exclude]] drops the product of its lists of values.
    """
    entry = {}
    for key in refused[0]:
        values, rest = _distinct(refused, key), _distinct(others, key)
        if any(value not in values for value in rest):
            entry[key] = values
    if not entry or any(all(other[key] in values for key, values in entry.items()) for other in others):
        return ""
    fields = (f"{key} = {json.dumps(values if len(values) > 1 else values[0])}" for key, values in entry.items())
    return f"[[exclude]] with {', '.join(fields)}"


def _distinct(combinations: Sequence[Combination], key: str) -> list[Any]:
    values: list[Any] = []
    for combination in combinations:
        if combination[key] not in values:
            values.append(combination[key])
    return values
