"""Rolling hold-out: fit the smaller points, predict the larger, at every distance; and choose among laws by it.

An error of extrapolation comes from extrapolating, not from R^2 inside the data. `rolling` cuts by size, data, compute
or any other column; `choose` ranks laws by the forecasts that all of them could make.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalebench.laws.allocation import FLOPS_PER_PARAMETER_TOKEN
from scalebench.laws.columns import positive_columns
from scalebench.laws.fit import Fit, fit
from scalebench.laws.forms import Array, FitRefused, Law

if TYPE_CHECKING:
    from pandas import DataFrame

CUTS = 8
REFITS = 200  # per cut: the error of a forecast in interval widths needs no finer interval
DISTANCES = (2.0, 4.0, 8.0, 16.0, 64.0)  # upper ends of the bins of `Backtest.by_distance`, then everything beyond
TIE = 2.0  # standard errors within which two laws forecast equally well


@dataclass(frozen=True)
class Forecast:
    """One configuration predicted from the points up to `cut`, `distance` times below it in the column of the cut.

    `error_percent` is predicted over measured minus one. `interval` is the 95 % one for the mean of as many new runs as
    were measured, `error_in_widths` the error over half its width (in log space; beyond 1 it missed), both None
    without degrees of freedom. `row` is the first row of the configuration in the points.
    """

    row: int
    cut: float
    distance: float
    predicted: float
    measured: float
    error_percent: float
    interval: tuple[float, float] | None
    error_in_widths: float | None

    @property
    def inside(self) -> bool | None:
        """Whether the measured mean lies in the interval."""
        return None if self.interval is None else self.interval[0] <= self.measured <= self.interval[1]


@dataclass(frozen=True)
class Backtest:
    """Forecasts of a law, smallest cut first, and the cuts that it could not be fitted to, with reasons."""

    law: str
    by: str
    forecasts: tuple[Forecast, ...]
    refused: tuple[tuple[float, str], ...]

    def by_distance(self) -> list[dict[str, Any]]:
        """A row for each range of distance: error in percent and in interval widths, bias and coverage."""
        bins = list(itertools.pairwise([1.0, *DISTANCES, np.inf]))
        held = [[f for f in self.forecasts if low < f.distance <= high] for low, high in bins]
        return [_summary(part, *ends) for part, ends in zip(held, bins, strict=True) if part]

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: the table by distance, every forecast, every refused cut."""
        return {
            "law": self.law,
            "by": self.by,
            "by_distance": self.by_distance(),
            "forecasts": [{**asdict(f), "interval": f.interval and list(f.interval)} for f in self.forecasts],
            "refused": [{"cut": cut, "reason": reason} for cut, reason in self.refused],
        }


def _summary(forecasts: Sequence[Forecast], low: float, high: float) -> dict[str, Any]:
    errors = np.array([f.error_percent for f in forecasts])
    widths = [abs(f.error_in_widths) for f in forecasts if f.error_in_widths is not None]
    inside = [f.inside for f in forecasts if f.inside is not None]
    return {
        "distance_above": low,
        "distance_up_to": None if np.isinf(high) else high,
        "n": len(forecasts),
        "median_absolute_error_percent": float(np.median(np.abs(errors))),
        "median_error_percent": float(np.median(errors)),
        "median_absolute_error_in_widths": float(np.median(widths)) if widths else None,
        "coverage": float(np.mean(inside)) if inside else None,
    }


def rolling(
    points: Mapping[str, ArrayLike] | DataFrame,
    law: str | Law = "power",
    by: str = "params",
    *,
    cuts: int = CUTS,
    intervals: bool = True,
    seed: int = 0,
    **options: Any,
) -> Backtest:
    """Fit `law` to the points up to each of `cuts` values of the column `by` and predict every point above.

    `by` is a column, such as params, tokens or flops (6 * params * tokens where there is none). `options` as `fit`
    takes them; `intervals=False` saves their bootstraps. A cut that leaves too few points is in `refused`. Raises
    FitRefused where all points together cannot carry the law, or `by` has one value.
    """
    whole = fit(points, law, **options)
    levels = _levels(points, by, len(whole.residuals))
    marks = np.unique(levels)
    if len(marks) < 2:
        raise FitRefused(f"column {by!r} has one value; a hold-out needs at least 2: choose another column")
    chosen = _cuts(marks, levels, len(whole.law.parameters), cuts)
    forecasts: list[Forecast] = []
    refused: list[tuple[float, str]] = []
    for mark in chosen:
        try:
            forecasts += _forecasts(whole, whole.subset(levels <= mark), levels, mark, seed if intervals else None)
        except FitRefused as reason:
            refused.append((float(np.exp(mark)), str(reason)))
    return Backtest(whole.law.name, by, tuple(forecasts), tuple(refused))


def _cuts(marks: Array, levels: Array, needed: int, cuts: int) -> Array:
    """At most `cuts` of the marks below the last, spread evenly from the first with as many points as `needed`."""
    first = int(np.searchsorted(np.sort(levels), marks, side="right").searchsorted(needed))
    last = len(marks) - 2
    return marks[np.unique(np.linspace(min(first, last), last, cuts).round().astype(int))]


def _levels(points: Mapping[str, ArrayLike] | DataFrame, by: str, n: int) -> Array:
    """Log of the column `by`, [n], equal where values differ by rounding only."""
    present = list(points.keys())
    if by == "flops" and by not in present:
        sizes = positive_columns(points, ("params", "tokens"))
        values = FLOPS_PER_PARAMETER_TOKEN * sizes["params"] * sizes["tokens"]
    else:
        values = positive_columns(points, (by,))[by]
    if len(values) != n:
        raise FitRefused(f"column {by!r} has {len(values)} rows; it needs one for each of {n} points")
    return np.asarray(np.round(np.log(values), 9))


def _forecasts(whole: Fit, smaller: Fit, levels: Array, mark: float, seed: int | None) -> list[Forecast]:
    """Every configuration above the mark, predicted by the fit of those up to it."""
    above = np.flatnonzero(levels > mark)
    inputs = np.stack([np.round(log[above], 9) for log in whole.points.logs.values()], axis=1)
    _, first, place, runs = np.unique(inputs, axis=0, return_index=True, return_inverse=True, return_counts=True)
    measured = np.bincount(place.reshape(-1), whole.points.response[above]) / runs
    rows = above[first]
    at = {name: np.exp(log[rows]) for name, log in whole.points.logs.items()}
    predicted = smaller.predict(at)
    intervals = None if seed is None else _intervals(smaller, at, runs, seed)
    return [
        _forecast(
            int(row), (mark, levels[row]), (predicted[i], measured[i]), None if intervals is None else intervals[i]
        )
        for i, row in enumerate(rows)
    ]


def _intervals(smaller: Fit, at: Mapping[str, Array], runs: NDArray[np.intp], seed: int) -> Array | None:
    """95 % intervals [n, 2] for means of new runs; None without degrees of freedom."""
    if smaller.degrees_of_freedom < 1:
        return None
    return np.quantile(smaller.bootstrap(REFITS, seed).draws(at, runs), [0.025, 0.975], axis=0).T


def _forecast(row: int, levels: tuple[float, float], values: tuple[float, float], interval: Array | None) -> Forecast:
    predicted, measured = map(float, values)
    widths = None
    if interval is not None and interval[1] > interval[0] > 0:
        widths = float(2 * np.log(predicted / measured) / np.log(interval[1] / interval[0]))
    return Forecast(
        row=row,
        cut=float(np.exp(levels[0])),
        distance=float(np.exp(levels[1] - levels[0])),
        predicted=predicted,
        measured=measured,
        error_percent=100 * (predicted / measured - 1),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        error_in_widths=widths,
    )


@dataclass(frozen=True)
class Ranked:
    """A law and its hold-out error: the mean of |ln(predicted / measured)| over the shared forecasts, in percent.

    `behind_percent` is how much worse than the best law, `behind_se_percent` the standard error of that difference,
    paired by configuration (None with one configuration); `tied` with the best where it is within two of them.
    """

    law: str
    error_percent: float
    behind_percent: float
    behind_se_percent: float | None
    tied: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """Laws by hold-out error, best first, over `n_forecasts` of `n_configurations`; `refused` gives reasons by law."""

    by: str
    ranking: tuple[Ranked, ...]
    refused: dict[str, str]
    n_forecasts: int
    n_configurations: int

    @property
    def best(self) -> str:
        """Name of the law of lowest hold-out error."""
        return self.ranking[0].law

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def choose(
    points: Mapping[str, ArrayLike] | DataFrame,
    laws: Sequence[str | Law],
    by: str = "params",
    *,
    cuts: int = CUTS,
    **options: Any,
) -> Choice:
    """Rank `laws` by the error of their forecasts, at the cuts that each of them could be fitted to.

    Arguments as for `rolling`. A law that no cut can carry is in `refused`, with the reason. Raises FitRefused where
    none is left.
    """
    errors: dict[str, dict[tuple[float, int], float]] = {}
    refused: dict[str, str] = {}
    for law in laws:
        name = law if isinstance(law, str) else law.name
        try:
            errors[name] = _log_errors(rolling(points, law, by, cuts=cuts, intervals=False, **options))
        except FitRefused as reason:
            refused[name] = str(reason)
    if not errors:
        raise FitRefused(
            f"none of {len(laws)} laws can be fitted; {'; '.join(f'{k}: {v}' for k, v in refused.items())}"
        )
    shared = sorted(set.intersection(*(set(found) for found in errors.values())))
    if not shared:
        raise FitRefused(f"laws {', '.join(errors)} share no cut by {by!r}; add sizes or compare fewer laws")
    row = np.unique([key[1] for key in shared], return_inverse=True)[1]
    by_row = {name: _means([found[key] for key in shared], row) for name, found in errors.items()}
    return Choice(by, _rank(by_row, np.bincount(row)), refused, len(shared), int(row.max()) + 1)


def _log_errors(test: Backtest) -> dict[tuple[float, int], float]:
    """|ln(predicted / measured)| in percent by cut and row. Raises FitRefused where every cut was refused."""
    if not test.forecasts:
        raise FitRefused(f"no cut by {test.by!r} carries it; the last one: {test.refused[-1][1]}")
    return {(f.cut, f.row): 100 * abs(float(np.log(f.predicted / f.measured))) for f in test.forecasts}


def _means(values: Sequence[float], member: NDArray[np.intp]) -> Array:
    return np.asarray(np.bincount(member, values) / np.bincount(member))


def _rank(errors: Mapping[str, Array], counts: NDArray[np.intp]) -> tuple[Ranked, ...]:
    """Laws by mean error over forecasts; errors are means by configuration, [configurations], of `counts` forecasts."""
    mean = {name: float(np.average(values, weights=counts)) for name, values in errors.items()}
    order = sorted(mean, key=lambda name: mean[name])
    best = order[0]
    ranked = []
    for name in order:
        behind = mean[name] - mean[best]
        difference = (errors[name] - errors[best] - behind) * counts / counts.mean()
        n = len(counts)
        spread = float(np.sqrt((difference**2).sum() / (n - 1) / n)) if n > 1 else None
        tied = name != best and (spread is None or behind <= TIE * spread)
        ranked.append(Ranked(name, mean[name], behind, spread, tied, _reason(name == best, tied, behind, spread)))
    return tuple(ranked)


def _reason(best: bool, tied: bool, behind: float, spread: float | None) -> str:
    if best:
        return "lowest error on points held out"
    if spread is None:
        return f"error higher by {behind:.3g} percent on the one configuration held out: too few to tell apart"
    told = "not told apart from the best" if tied else "worse than the best"
    return f"{told}: error higher by {behind:.3g} +- {spread:.2g} percent"
