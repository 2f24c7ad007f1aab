"""Reading columns of numbers: laws take positive finite numbers in every row."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array, FitRefused, Law

FLOPS_PER_PARAMETER_TOKEN = 6.0  # C = 6ND: 2 FLOPs forward and 4 backward (Kaplan et al. 2020, section 2.1)

LARGEST = 1e100  # of a value, and one over it the smallest: products and squares of others overflow


class Columns(Protocol):
    """Columns by name, each [n]: a mapping or a pandas DataFrame."""

    def keys(self) -> Iterable[Any]:
        """Names of the columns."""

    def __getitem__(self, name: str, /) -> Any:
        """The column of that name."""


def usable(values: Array) -> NDArray[np.bool_]:
    """Which values, shape [n], are positive and finite, and no further than ``LARGEST`` from 1."""
    return np.asarray((values >= 1 / LARGEST) & (values <= LARGEST))


def positive_columns(
    columns: Columns, names: Sequence[str], aliases: Mapping[str, str] | None = None
) -> dict[str, Array]:
    """Columns by name, each [n]. `aliases` are second names to look under.

    Raises FitRefused, naming column and row, for a missing column, values that are not positive finite numbers, and
    columns of different lengths.
    """
    read = {name: _column(columns, name, (aliases or {}).get(name)) for name in names}
    if len({len(values) for values in read.values()}) > 1:
        raise FitRefused(f"columns differ in length: {', '.join(f'{k} {len(v)}' for k, v in read.items())}")
    return read


def read_inputs(law: Law, columns: Columns) -> dict[str, Array]:
    """Natural logs of the law's inputs, each [n]; the input of a law of one input may be called `x`.

    A single number beside arrays counts for every row.
    """
    aliases = {law.inputs[0]: "x"} if len(law.inputs) == 1 else {}
    given = {str(name): columns[name] for name in list(columns.keys())}
    rows = max((np.size(given[name]) for name in law.inputs if name in given), default=1)
    repeated = {name: np.full(rows, value) if np.ndim(value) == 0 else value for name, value in given.items()}
    return {name: np.log(values) for name, values in positive_columns(repeated, law.inputs, aliases).items()}


def groups_within(logs: Array, tolerance: float) -> NDArray[np.intp]:
    """Ids 0, 1, … [n], smallest first, of values with logs [n]: each group reaches `tolerance` above its smallest."""
    starts = [logs.min()]
    while (above := logs[logs > starts[-1] + np.log1p(tolerance)]).size:
        starts.append(above.min())
    return np.asarray(np.searchsorted(starts, logs, side="right") - 1)


def _column(columns: Columns, name: str, alias: str | None) -> Array:
    present = list(columns.keys())
    key = next((key for key in (name, alias) if key is not None and key in present), None)
    if key is None:
        raise FitRefused(f"column {name!r} is missing; columns given: {', '.join(map(str, present)) or 'none'}")
    raw: NDArray[Any] = np.atleast_1d(np.asarray(columns[key]))
    if raw.ndim != 1:
        raise FitRefused(f"column {key!r} has {raw.ndim} dimensions (two columns of that name?); it needs one")
    values = np.array([_number(value) for value in raw]) if raw.dtype.kind not in "iuf" else raw.astype(np.float64)
    wrong = np.flatnonzero(~usable(values))
    if wrong.size:
        raise FitRefused(
            f"column {key!r}, row {wrong[0]} (counted from 0) is {raw[wrong[0]]!s}; it needs a positive finite number "
            f"of {1 / LARGEST:g} to {LARGEST:g} ({wrong.size} of {len(raw)} rows are not): drop or correct them"
        )
    return values


def _number(value: Any) -> float:
    """A float, or NaN for anything else, so that its row is reported like any other wrong value."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")
