"""Trends of a quantity against what grows: a fitted law, or the reason why there is none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalebench.analysis.trials import STEP_TIME, numeric
from scalebench.laws import LAWS, FitRefused, choose, fit

if TYPE_CHECKING:
    from scalebench.laws import Bootstrap, Fit, Forecast
    from scalebench.laws.intervals.outlying import FarPoint

Array = NDArray[np.float64]

INPUT = re.compile(r"\bx\b(?! =)")
COST_LAWS = ("offset_linear", "offset_power")  # the simpler law first
MAX_POINTS = 1000  # of a fit: of more trials, as many are taken, spread evenly over sizes and seeds
MOST_COMPARED = 200  # points by which two laws of a cost are compared; of more, the medians of the sizes
EXACT, FEWEST_EXACT = 1e-6, 5  # relative residual below which a straight line is exact; fewest sizes for it
# Costs with a fixed part that runs beside the work rather than before it: launches hide the work of small models.
FLOORED = (STEP_TIME, "energy_per_step", "latency", "capacity_time_per_request_s")
LEAST_GROWTH = 1.1  # of such a cost over the sizes measured, below which larger ones cannot be predicted
HOLD_BOTH = "; intervals hold both"
# Exponents of costs that may be straight in the end: of N + N^0.5 (weights and activations), of N log N, or of one that
# outgrows a cache on the way; above 1 they may also be those of a sum, N + N^1.5, whose last term is yet to come.
NEAR_LINE = (0.8, 1.5)
NEGLIGIBLE_PERCENT = 0.1  # hold-out error below which a straight line needs no exponent


@dataclass(frozen=True, eq=False)
class Trend:
    """A fitted law, or the one-line reason why there is none.

    ``no_interval`` is the reason why a fit has no intervals, ``choice`` the reason for its law where several were
    compared. Intervals are those of ``Fit.interval`` and ``Fit.prediction_interval`` (bootstrap), everywhere. Those of
    predictions hold what ``rival`` predicts, too: a fit of another law that the points may follow as well.
    Beyond the largest size they also hold a cost that from there on is straight, as its exponent differs from 1 by
    ``excess``, and one whose exponent is larger by as much.
    ``shared`` are parameters by name, each [draws], refitted to draws of errors that several points share.
    """

    fit: Fit | None
    reason: str = ""
    no_interval: str = ""
    choice: str = ""
    rival: Fit | None = None
    excess: float = 0.0  # of the exponent over 1, where it may fall or rise to 1, or go on rising
    least_growth: float = 0.0  # of a cost, factor over the sizes measured from which larger ones can be predicted
    shared: Mapping[str, Array] = field(default_factory=dict)

    @cached_property
    def flat(self) -> str:
        """Why this cost cannot be predicted for larger sizes: it hardly grows over those measured; "" if it does."""
        if self.fit is None or not self.least_growth:
            return ""
        ends = np.exp([end(self.fit.points.logs["x"]) for end in (np.min, np.max)])
        low, high = self.fit.predict({"x": ends}).tolist()
        if high > self.least_growth * low:
            return ""
        growth = "not at all" if high <= low * (1 + EXACT) else f"by {100 * (high / low - 1):.2g} %"
        return (
            f"it grows {growth} over sizes a factor of {ends[1] / ends[0]:.3g} apart, so a fixed cost hides what size "
            "costs: add larger sizes"
        )

    def predict_at(self, inputs: Mapping[str, float], kind: str = "new") -> tuple[float, float, float]:
        """Return prediction, low and high (95 %) at one place; NaN ends where there is no interval."""
        assert self.fit is not None
        place = {name: np.array([value], dtype=np.float64) for name, value in inputs.items()}
        low, high = self._ends(place, 1, kind)
        return float(self.fit.predict(place)[0]), float(low[0]), float(high[0])

    def band(self, x: Array) -> tuple[Array, Array]:
        """Return low and high (95 %) of the mean over runs at sizes x (n,)."""
        return self._ends({"x": x}, len(x), "mean")

    def _ends(self, inputs: Mapping[str, Array], n: int, kind: str) -> tuple[Array, Array]:
        assert self.fit is not None
        if self.no_interval:
            return np.full(n, np.nan), np.full(n, np.nan)
        low, high = self._intervals.prediction_interval(inputs, kind=kind)
        if self.excess:
            beyond = np.maximum(inputs["x"] / np.exp(self.fit.points.logs["x"].max()), 1.0) ** abs(self.excess)
            low, high = low / (beyond if self.excess > 0 else 1.0), high * beyond
        if self.rival is None:
            return low, high
        other_low, other_high = self.rival.prediction_interval(inputs, kind=kind)
        return np.minimum(low, other_low), np.maximum(high, other_high)

    def interval(self, parameter: str) -> tuple[float, float]:
        """Return the 95 % interval of a parameter; NaN ends where there is none."""
        assert self.fit is not None
        return (np.nan, np.nan) if self.no_interval else self._intervals.interval(parameter)

    @cached_property
    def _intervals(self) -> Fit | Bootstrap:
        """The fit, or its bootstrap with the ``shared`` errors added: to coefficients in logs."""
        assert self.fit is not None
        if not self.shared:
            return self.fit
        boot, moved = self.fit.bootstrap(), {}
        for name, samples in boot.samples.items():
            drawn, fitted = np.resize(self.shared[name], len(samples)), self.fit.parameters[name]
            moved[name] = samples * drawn / fitted if name in self.fit.law.coefficients else samples + drawn - fitted
        return replace(boot, samples=moved)

    @cached_property
    def far(self) -> tuple[FarPoint, ...]:
        """The sizes far from the law, if the others are close to it."""
        return () if self.fit is None else self.fit.far_points()

    @cached_property
    def backtest(self) -> Sequence[Forecast]:
        """The predictions of every larger size from the smaller ones; empty where all are refused."""
        if self.fit is None:
            return ()
        try:
            return self.fit.backtest("rolling").forecasts
        except FitRefused:
            return ()


def fit_trend(points: pd.DataFrame, law: str, intervals: bool = True) -> Trend:
    """Fit ``law``, a law of one input, to the points (columns x, y, config), or give the reason why not.

    Without ``intervals`` none are computed, which takes longer than the fit.
    """
    if law in LAWS and len(LAWS[law].inputs) > 1:
        return Trend(None, f"the law {law} needs {' and '.join(LAWS[law].inputs)}; these figures show size alone")
    try:
        fitted = fit(points, law=law)
    except FitRefused as refusal:
        return Trend(None, str(refusal))
    return trend_by(fitted) if intervals else Trend(fitted, no_interval="not computed")


def trend_by(fitted: Fit) -> Trend:
    """Return a fit as a trend, with the reason if it has no interval."""
    try:
        fitted.interval(fitted.law.parameters[0])
    except FitRefused as refusal:
        return Trend(fitted, no_interval=str(refusal))
    return Trend(fitted)


def undetermined(fitted: Fit) -> str:
    """Return why the points do not determine the parameters of a fit; empty if they do.

    A fit can exist without being determined: two sizes give any exponent of size, with an offset to match.
    """
    if fitted.status != "degenerate":
        return ""
    return f"the points do not separate the parameters of {fitted.law.name}; add other values of its inputs"


def determined(fitted: Fit) -> Trend:
    """Return the trend that a fit is, or the reason where the points do not determine its parameters."""
    return Trend(None, reason) if (reason := undetermined(fitted)) else trend_by(fitted)


def trend_of(trials: pd.DataFrame, column: str, law: str, size: str) -> Trend:
    """Fit a column against the column ``size``; seeds of one size are one configuration."""
    return _of_size(fit_trend(_points(trials, column, size), law))


def cost_trend(trials: pd.DataFrame, column: str, size: str) -> Trend:
    """Fit a cost (time, memory, FLOPs, bytes) by the law of ``COST_LAWS`` that predicts the larger sizes best."""
    points = _points(trials, column, size)
    if points.empty:
        return Trend(None, f"no valid trial has a {column}")
    choice = choose_cost_law(points)
    trend, rival = fit_trend(points, choice.law), None
    if choice.rival:
        other = fit_trend(points, choice.rival)
        rival = None if other.no_interval else other.fit
    least_growth = LEAST_GROWTH if column in FLOORED else 1 + EXACT
    excess = _excess(trend)
    return _of_size(replace(trend, choice=choice.reason, rival=rival, excess=excess, least_growth=least_growth))


def _excess(trend: Trend) -> float:
    """Return the exponent of a power law less 1 where it is so close to 1 that it may be another beyond the sizes.

    Of a sum of terms, or of N log N, the exponent over some sizes is another than that beyond them, by more than its
    interval: in simulated studies of six sizes of N log N with noise of 1 %, 95 % intervals at 10 times the largest
    size held 47 to 60 % without it and 100 % with it; of N + N^1.5 at seven sizes 0 to 8 % and 96 to 100 %.
    """
    exponent = trend.fit.parameters.get("p", 1.0) if trend.fit else 1.0
    return exponent - 1 if NEAR_LINE[0] <= exponent <= NEAR_LINE[1] else 0.0


def _of_size(trend: Trend) -> Trend:
    """Return a trend whose reasons name the size, which laws of one input call x."""
    return replace(trend, reason=INPUT.sub("size", trend.reason), no_interval=INPUT.sub("size", trend.no_interval))


class CostLaw(NamedTuple):
    """The law of a cost, the reason for it, and the ``rival`` from which the points do not tell it apart, if any."""

    law: str
    reason: str
    rival: str = ""


def choose_cost_law(points: pd.DataFrame) -> CostLaw:
    """Choose between ``COST_LAWS`` by hold-out error, the simpler one for a tie.

    That a straight line predicts a few sizes as well or better is no evidence for it: of costs with an exponent of 1.1,
    noise of 2 % and five to eight sizes, 95 % intervals at 10 times the largest size hold 2 to 80 % without those of
    the rival. With those of the rival only for a tie they hold 65 % at noise of 3 %, with them for any line 95 %.
    """
    simple, other = COST_LAWS
    if len(points) > MOST_COMPARED:
        points = points.groupby("x")["y"].median().reset_index()
    x, y = points["x"].to_numpy(dtype=float), points["y"].to_numpy(dtype=float)
    if is_straight(x, y):
        return CostLaw(simple, f"{simple}, which fits every size to {100 * EXACT:g} %")
    try:
        choice = choose({"x": x, "y": y}, COST_LAWS, by="x")
    except FitRefused:  # too few sizes to hold any out; the reason stands with the trend
        return _undecided(simple, other)
    errors = {ranked.law: ranked.error_percent for ranked in choice.ranking}
    if len(errors) < len(COST_LAWS):
        return _undecided(choice.best, other if choice.best == simple else simple)
    negligible = errors[simple] < NEGLIGIBLE_PERCENT
    tied = any(ranked.tied for ranked in choice.ranking) or negligible
    law = simple if tied else choice.best
    against = f"tied with {other}" if tied else f"not {other if law == simple else simple}"
    errors_text = ", ".join(f"{name} {_percent(error)} %" for name, error in errors.items())
    reason, rival = (
        f"{law}, {against}, by hold-out error: {errors_text}",
        other if law == simple and not negligible else "",
    )
    return CostLaw(law, reason + HOLD_BOTH * bool(rival), rival)


def _undecided(law: str, rival: str) -> CostLaw:
    return CostLaw(law, f"{law}: too few sizes to compare it with {rival}{HOLD_BOTH}", rival)


def is_straight(x: Array, y: Array) -> bool:
    """Return whether c + a x with c, a >= 0 is each y (n,) to EXACT, at FEWEST_EXACT sizes or more.

    So it is with costs that are computed; the hold-out error of ``offset_linear`` is negligible then.
    """
    if len(np.unique(x)) < FEWEST_EXACT:
        return False
    columns = np.column_stack([1 / y, x / y])
    solution = np.linalg.lstsq(columns, np.ones(len(y)), rcond=None)[0]
    positive = solution[1] > 0 and solution[0] > -EXACT * y.min()
    return bool(positive and np.abs(columns @ solution - 1).max() < EXACT)


def _percent(error: float) -> str:
    """Format a percentage without an exponent: 0.05, 3.2, 210."""
    return f"{error:.2g}" if 1e-4 <= error < 10 else f"{error:,.0f}"


def _points(trials: pd.DataFrame, column: str, size: str) -> pd.DataFrame:
    points = pd.DataFrame({"x": numeric(trials, size), "y": numeric(trials, column)})
    points = points[(points["x"] > 0) & (points["y"] > 0)]
    if len(points) > MAX_POINTS:  # sorted by size
        points = points.iloc[np.linspace(0, len(points) - 1, MAX_POINTS).round().astype(int)]
    return points.assign(config=points["x"].map("{:.0f}".format)).reset_index(drop=True)
