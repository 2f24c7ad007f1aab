"""Warnings about points that look wrong: units, swapped columns, copies, unused data. They change nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scalebench.laws import Fit
from scalebench.points.table_warnings import unit_warnings

COUNTS = {"params": "parameters", "tokens": "tokens"}
SWAPPED = 0.75  # share of rows with fewer tokens than parameters, rare in real studies
STREAKS = (
    "residuals of neighbouring points have the same sign more often than independent noise: the law has another shape "
    "than the points, or they are checkpoints of the same runs (--run-column); its intervals may be too narrow"
)
FEW, FEW_WHOLE = 1e5, 1e3  # largest counts below these are in another unit: fractions, and whole numbers


def point_warnings(values: Mapping[str, Any]) -> list[str]:
    """Return a warning for each likely mistake in points by role, each (n,)."""
    lines = [f"{COUNTS[role]} are at most {np.max(values[role]):g}: is that a count, not millions or billions of them? "
             "FLOPs (6ND) and predictions need counts"
             for role in COUNTS if role in values and _in_another_unit(np.asarray(values[role]))]  # fmt: skip
    lines += unit_warnings(values) if not lines else []
    if {"params", "tokens"} <= set(values) and not lines:
        fewer = int((values["tokens"] < values["params"]).sum())
        if fewer > SWAPPED * len(values["tokens"]):
            rows = f"{fewer:,} of {len(values['tokens']):,} rows"
            lines.append(f"{rows} have fewer tokens than parameters: are these columns swapped?")
    repeated = int(pd.DataFrame(dict(values)).duplicated().sum())
    if repeated:
        rows = f"{repeated:,} of {len(next(iter(values.values()))):,} rows"
        lines.append(f"{rows} repeat an earlier one exactly and count as separate runs: drop them if they are copies")
    return lines


def _in_another_unit(counts: Any) -> bool:
    largest = float(counts.max())
    return largest < FEW_WHOLE or (largest < FEW and bool((counts != np.round(counts)).any()))


def unused_data(law_inputs: Sequence[str], columns: Mapping[str, str], names: Sequence[str]) -> list[str]:
    """Return a warning if ``names`` has a column of tokens that the law does not use."""
    if "tokens" in law_inputs or "tokens" in columns.values() or "tokens" not in names or "params" not in law_inputs:
        return []
    return ["column 'tokens' is not used by a law of params alone; --law chinchilla uses it, --law auto chooses"]


def shape_warnings(fitted: Fit) -> list[str]:
    """Return a line on residuals that run in streaks, and one on each configuration that lies far from the law."""
    return [*([STREAKS] if fitted.streaks and fitted.streaks.flagged else []), *far_warnings(fitted)]


def far_warnings(fitted: Fit) -> list[str]:
    """Return a line on each configuration far from the law, if the others are close to it."""
    return [
        f"{fitted.law.response} at {', '.join(f'{name} {value:.4g}' for name, value in far.inputs.items())} is "
        f"{abs(far.error_percent):.2g} % {'above' if far.error_percent > 0 else 'below'} the law "
        f"({far.measured:.4g}, {far.fitted:.4g} by the law); the other points lie much closer: check it"
        for far in fitted.far_points()
    ]
