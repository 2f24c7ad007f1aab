"""Hold-out forecasts: fit the smaller points, predict larger ones that were measured.

This is the error of an extrapolation, which R^2 inside the data does not give. `fit --backtest`, `--law auto`,
`predict` and the report all use `backtest`. What is measured is the mean over the runs held out, so the interval of a
forecast is that of the mean of as many new runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN, Columns, groups_within, positive_columns
from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import Array, FitRefused
from scalebench.laws.intervals.bootstrap import Refits, bootstrap
from scalebench.laws.points import Points

HOLDOUTS = ("largest", "rolling", "beyond")
CUTS = 8
REFITS = 400  # per cut: their 2.5 % quantiles are off by about 5 % of the width, which is enough to count misses
SAME_SIZE = 0.01  # values closer than this count as one size: read off a figure, or rounded to whole heads
DISTANCES = (2.0, 4.0, 8.0, 16.0, 64.0)  # upper ends of the bins of `Backtest.by_distance`, then everything beyond


@dataclass(frozen=True)
class Forecast:
    """Points held out, predicted by a fit to the points whose value of the cut column is at most `cut`.

    `size` is the geometric mean of that column over the held-out points, `row` the index of the first of them.
    `predicted` and `measured` are means over them, `naive` the mean response of the largest size fitted, all in the
    unit of the response. `interval` is the 95 % interval of the mean of as many new runs; None without degrees of
    freedom or if no intervals were requested.
    """

    row: int
    cut: float
    size: float
    predicted: float
    measured: float
    naive: float
    interval: tuple[float, float] | None

    @property
    def distance(self) -> float:
        """`size` over `cut`."""
        return self.size / self.cut

    @property
    def error_percent(self) -> float:
        """Predicted over measured minus one, in percent."""
        return 100 * (self.predicted / self.measured - 1)

    @property
    def naive_error_percent(self) -> float:
        """`naive` over measured minus one, in percent."""
        return 100 * (self.naive / self.measured - 1)

    @property
    def inside_interval(self) -> bool | None:
        """Whether the measured mean lies in the interval."""
        return None if self.interval is None else bool(self.interval[0] <= self.measured <= self.interval[1])

    @property
    def error_in_widths(self) -> float | None:
        """Error over half the width of the interval, in log space; None without an interval."""
        if self.interval is None or not self.interval[1] > self.interval[0] > 0:
            return None
        return float(2 * np.log(self.predicted / self.measured) / np.log(self.interval[1] / self.interval[0]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: the fields and the derived quantities by name."""
        derived = ("distance", "error_percent", "naive_error_percent", "inside_interval", "error_in_widths")
        return {**vars(self), **{name: getattr(self, name) for name in derived}}


@dataclass(frozen=True)
class Backtest:
    """Forecasts of a law, smallest cut first; `refused` lists the cuts it could not be fitted to, with reasons."""

    law: str
    by: str
    forecasts: tuple[Forecast, ...]
    refused: tuple[tuple[float, str], ...]

    def by_distance(self) -> list[dict[str, Any]]:
        """One row per range of distance: number, median error and bias in percent, error in widths, coverage."""
        bins = list(itertools.pairwise([1.0, *DISTANCES, np.inf]))
        parts = [[f for f in self.forecasts if low < f.distance <= high] for low, high in bins]
        return [_summary(part, *ends) for part, ends in zip(parts, bins, strict=True) if part]


def _summary(forecasts: Sequence[Forecast], low: float, high: float) -> dict[str, Any]:
    errors = np.array([f.error_percent for f in forecasts])
    widths = [abs(f.error_in_widths) for f in forecasts if f.error_in_widths is not None]
    inside = [f.inside_interval for f in forecasts if f.inside_interval is not None]
    return {
        "distance_above": low,
        "distance_up_to": None if np.isinf(high) else high,
        "n": len(forecasts),
        "median_absolute_error_percent": float(np.median(np.abs(errors))),
        "median_error_percent": float(np.median(errors)),
        "median_absolute_error_in_widths": float(np.median(widths)) if widths else None,
        "coverage": float(np.mean(inside)) if inside else None,
    }


def backtest(
    fit: Estimate,
    holdout: str = "rolling",
    by: str | None = None,
    points: Columns | None = None,
    *,
    cuts: int = CUTS,
    refits: Refits | None = None,
) -> Backtest:
    """Predict larger values of the column `by` from fits to smaller ones. Values within 1 % count as one size.

    `holdout` is "largest": predict the mean response at the largest size from all smaller ones; "rolling": the same for
    each of the `cuts` largest sizes; or "beyond": cut at `cuts` sizes, evenly spread from the first with enough points,
    and predict every configuration above each cut. `by` is an input of the law (by default its first) or a column of
    `points`, which then has one row per point of the fit; "flops" is 6 * params * tokens if there is no such column.
    Intervals use the method and seed of `refits`; with None there are none, which is faster.

    Cuts with too few points for the law are listed in `refused`. Raises FitRefused for an unknown `holdout`, if `by`
    has a single value, and if "largest" cannot be fitted.
    """
    if holdout not in HOLDOUTS:
        raise FitRefused(f"holdout {holdout!r} is not known; choose one of {', '.join(HOLDOUTS)}")
    column = by or fit.law.inputs[0]
    logs = _logs(fit, column, points)
    level = groups_within(logs, SAME_SIZE)
    if not level.max():
        raise FitRefused(f"column {column!r} has one value; a hold-out needs at least 2: choose another column")
    forecasts: list[Forecast] = []
    refused: list[tuple[float, str]] = []
    for cut in _cuts(holdout, level, len(fit.law.parameters), cuts):
        next_size, beyond = np.where(level == cut + 1, 0, -1), np.where(level > cut, fit.points.place, -1)
        held_out = beyond if holdout == "beyond" else next_size
        try:
            forecasts += _forecasts(fit, logs, level, cut, held_out, refits)
        except FitRefused as reason:
            if holdout == "largest":
                raise
            refused.append((float(np.exp(logs[level == cut].max())), str(reason)))
    return Backtest(fit.law.name, column, tuple(forecasts), tuple(refused))


def _logs(fit: Estimate, by: str, points: Columns | None) -> Array:
    """Log of the column `by`, [n]."""
    if by in fit.points.logs:
        return fit.points.logs[by]
    present = [] if points is None else list(points.keys())
    if by == "flops" and by not in present and {"params", "tokens"} <= set(fit.points.logs):
        return np.asarray(np.log(FLOPS_PER_PARAMETER_TOKEN) + fit.points.logs["params"] + fit.points.logs["tokens"])
    values = positive_columns({} if points is None else points, (by,))[by]
    if len(values) != fit.n_points:
        raise FitRefused(f"column {by!r} has {len(values)} rows; it needs one for each of {fit.n_points} points")
    return np.asarray(np.log(values))


def _cuts(holdout: str, level: NDArray[np.intp], needed: int, cuts: int) -> list[int]:
    """Levels to cut at; for "beyond" evenly spread from the first with at least `needed` points."""
    last = int(level.max()) - 1
    if holdout == "largest":
        return [last]
    if holdout == "rolling":
        return [*range(max(last + 1 - cuts, 0), last + 1)]
    first = min(int(np.cumsum(np.bincount(level)).searchsorted(needed)), last)
    return [int(cut) for cut in np.unique(np.linspace(first, last, cuts).round())]


def _forecasts(
    fit: Estimate, logs: Array, level: NDArray[np.intp], cut: int, held_out: NDArray[np.intp], refits: Refits | None
) -> list[Forecast]:
    """Forecasts of the groups of rows with equal id `held_out` [n] (-1: none) from a fit to levels up to `cut`."""
    smaller = fit.subset(level <= cut)
    new = _NewRuns.of(fit.points, np.flatnonzero(held_out >= 0))
    drawn = None
    if refits is not None and smaller.degrees_of_freedom:
        drawn = bootstrap(smaller, replace(refits, n=REFITS)).draws(new.inputs, new.runs)
    predicted = smaller.predict(new.inputs)
    naive = float(fit.points.response[level == cut].mean())
    forecasts = []
    for group in np.unique(held_out[held_out >= 0]):
        rows, units = np.flatnonzero(held_out == group), held_out[new.first] == group
        shares = new.runs[units] / new.runs[units].sum()
        forecasts.append(
            Forecast(
                row=int(rows[0]),
                cut=float(np.exp(logs[level == cut].max())),
                size=float(np.exp(logs[rows].mean())),
                predicted=float(predicted[units] @ shares),
                measured=float(fit.points.response[rows].mean()),
                naive=naive,
                interval=None if drawn is None else _ends(drawn[:, units] @ shares),
            )
        )
    return forecasts


@dataclass(frozen=True)
class _NewRuns:
    """Independent configurations among held-out rows: first row, number of runs and inputs by name, each [units]."""

    first: NDArray[np.intp]
    runs: NDArray[np.intp]
    inputs: Mapping[str, Array]

    @staticmethod
    def of(points: Points, rows: NDArray[np.intp]) -> _NewRuns:
        # Rows of one configuration may differ in their inputs (points of one training curve), and configurations may
        # share theirs: a unit has both in common.
        keys = np.stack([points.place[rows], points.configuration[rows]], axis=1)
        _, first, runs = np.unique(keys, axis=0, return_index=True, return_counts=True)
        first = rows[first]
        return _NewRuns(first, runs, {name: np.exp(log[first]) for name, log in points.logs.items()})


def _ends(means: Array) -> tuple[float, float]:
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
