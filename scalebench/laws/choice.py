"""Choose among laws by hold-out error, averaged over the forecasts that all of them can make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.columns import Columns
from scalebench.laws.fit import fit
from scalebench.laws.forms import Array, FitRefused, Law
from scalebench.laws.intervals.backtest import CUTS, Backtest

TIE = 2.0  # standard errors within which two laws forecast equally well


@dataclass(frozen=True)
class Ranked:
    """A law and its hold-out error: the mean of |ln(predicted / measured)| over the shared forecasts, in percent.

    `behind_percent` is the difference from the best law, `behind_se_percent` its standard error, paired by
    configuration (None with one configuration). `tied`: the difference is within two standard errors.
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
    points: Columns,
    laws: Sequence[str | Law],
    by: str = "params",
    *,
    cuts: int = CUTS,
    **options: Any,
) -> Choice:
    """Rank `laws` by the error of their forecasts, at the cuts that each of them could be fitted to.

    Forecasts are those of `Fit.backtest("beyond", by)`, `options` those of `fit`. Laws that could not be fitted
    at any cut are in `refused`, with the reason. Raises FitRefused if none is left.
    """
    errors: dict[str, dict[tuple[float, int], float]] = {}
    refused: dict[str, str] = {}
    for law in laws:
        name = law if isinstance(law, str) else law.name
        try:
            fitted = fit(points, law, **options)
            errors[name] = _log_errors(fitted.backtest("beyond", by, points, cuts=cuts, intervals=False))
        except FitRefused as reason:
            refused[name] = str(reason)
    if not errors:
        raise FitRefused(
            f"none of {len(laws)} laws can be fitted; {'; '.join(f'{k}: {v}' for k, v in refused.items())}"
        )
    shared = sorted(set.intersection(*(set(by_forecast) for by_forecast in errors.values())))
    if not shared:
        raise FitRefused(f"laws {', '.join(errors)} share no cut by {by!r}; add sizes or compare fewer laws")
    row = np.unique([key[1] for key in shared], return_inverse=True)[1]
    by_row = {name: _means([by_forecast[key] for key in shared], row) for name, by_forecast in errors.items()}
    return Choice(by, _rank(by_row, np.bincount(row)), refused, len(shared), int(row.max()) + 1)


def _log_errors(test: Backtest) -> dict[tuple[float, int], float]:
    """|ln(predicted / measured)| in percent by cut and row. Raises FitRefused if every cut was refused."""
    if not test.forecasts:
        raise FitRefused(f"no cut by {test.by!r} leaves enough points to fit it; the last: {test.refused[-1][1]}")
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
        return f"error higher by {behind:.3g} percentage points; one configuration held out, so no standard error"
    verdict = "not significantly different from the best" if tied else "worse than the best"
    return f"{verdict}: error higher by {behind:.3g} +- {spread:.2g} percentage points"
