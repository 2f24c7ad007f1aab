"""All cases of a comparison in one line per provider: how much faster than the baseline, and in what share of cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class SuiteSummary:
    """One provider of an operation over ``cases`` cases.

    ``speedup`` is the geometric mean of the speed-ups over the ``compared`` cases, None without any: those whose result
    is right, whose row is valid and which have a ratio to the baseline. ``fast_1`` is the share of all cases that are
    compared and at least as fast as the baseline (fast_p with p = 1 of Ouyang et al. 2025, KernelBench,
    arXiv 2502.10517).
    """

    operation: str
    backward: bool
    provider: str
    cases: int
    compared: int
    speedup: float | None
    fast_1: float


def summarize_suite(rows: Sequence[Row]) -> list[SuiteSummary]:
    """Return a summary per operation, direction and provider, in the order of the rows, without the baseline."""
    keys = dict.fromkeys((row["operation"], bool(row["backward"]), row["provider"]) for row in rows)
    summaries = []
    for key in keys:
        own = [row for row in rows if (row["operation"], bool(row["backward"]), row["provider"]) == key]
        if any(row["provider"] != row["baseline"] for row in own):
            summaries.append(_summary(key, own))
    return summaries


def _summary(key: tuple[str, bool, str], rows: Sequence[Row]) -> SuiteSummary:
    speedups = [1 / row["ratio"] for row in rows if _compared(row)]
    mean = math.exp(sum(map(math.log, speedups)) / len(speedups)) if speedups else None
    return SuiteSummary(*key, len(rows), len(speedups), mean, sum(speed >= 1 for speed in speedups) / len(rows))


def _compared(row: Row) -> bool:
    right = row["status"] == "ok" and row["accepted"] is not False and not row.get("invalid_reason")
    return right and row["ratio"] is not None
