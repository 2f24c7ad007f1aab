"""Columns of points that belong to no law: compute, swept axes, counts under another convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from scalebench.laws.forms import Array, FitRefused, Law

if TYPE_CHECKING:
    from pandas import DataFrame


def positive_columns(points: Mapping[str, ArrayLike] | DataFrame, names: Sequence[str]) -> dict[str, Array]:
    """Columns by name, each [n], of positive finite numbers. Raises FitRefused with column and row otherwise."""
    present = [str(name) for name in points.keys()]  # noqa: SIM118 - iterating a DataFrame is typed by column
    found: dict[str, Array] = {}
    for name in names:
        if name not in present:
            raise FitRefused(f"column {name!r} is missing; columns given: {', '.join(present) or 'none'}")
        found[name] = _positive(name, points[name])
    lengths = {name: len(values) for name, values in found.items()}
    if len(set(lengths.values())) > 1:
        raise FitRefused(f"columns differ in length: {', '.join(f'{k} {v}' for k, v in lengths.items())}")
    return found


def law_inputs(law: Law, points: Mapping[str, ArrayLike] | DataFrame) -> dict[str, Array]:
    """Natural logs of the inputs of a law, each [n]; a law of one input also takes it as `x`."""
    names = {name: name for name in law.inputs}
    if len(law.inputs) == 1 and law.inputs[0] not in list(points.keys()) and "x" in list(points.keys()):
        names = {law.inputs[0]: "x"}
    read = positive_columns(points, tuple(names.values()))
    return {name: np.log(read[column]) for name, column in names.items()}


def _positive(name: str, raw: ArrayLike) -> Array:
    try:
        values = np.atleast_1d(np.asarray(raw, dtype=np.float64))
    except (TypeError, ValueError):
        raise FitRefused(f"column {name!r} holds what is not a number; it needs positive finite numbers") from None
    if values.ndim != 1 or not values.size:
        raise FitRefused(f"column {name!r} has shape {values.shape}; it needs one dimension and at least one row")
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if wrong.size:
        raise FitRefused(
            f"column {name!r}, row {wrong[0]} (counted from 0) is {values[wrong[0]]:g}; it needs a positive finite "
            f"number ({wrong.size} of {len(values)} rows are not): drop or correct them"
        )
    return values
