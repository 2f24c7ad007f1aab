"""Fit a scaling law to points: an `Estimate` plus intervals, profiles, lack of fit and hold-out forecasts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from html import escape
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalebench.laws.columns import Columns, read_inputs
from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import Array, FitRefused, Law
from scalebench.laws.intervals.adequacy import LackOfFit, lack_of_fit
from scalebench.laws.intervals.backtest import CUTS, Backtest, backtest
from scalebench.laws.intervals.bootstrap import DEFAULT_REFITS, Bootstrap, Refits, bootstrap
from scalebench.laws.intervals.determined import undetermined
from scalebench.laws.intervals.outlying import FarPoint, far_points
from scalebench.laws.intervals.profile import Profile, profile
from scalebench.laws.intervals.streaks import Streaks, streaks


@dataclass(frozen=True, eq=False, repr=False)
class Fit(Estimate):
    """A fitted law with its intervals, profiles and hold-out forecasts. `refits` sets how intervals are drawn."""

    refits: Refits = DEFAULT_REFITS

    def __repr__(self) -> str:
        """Return one line: the law, its parameters and how many points."""
        values = ", ".join(f"{name} = {value:.4g}" for name, value in self.parameters.items())
        return f"Fit of {self.law.name} to {self.n_points} points: {values}"

    def _repr_html_(self) -> str:
        """Return the parameters with their 95 % intervals as a table, for notebooks."""
        rows = []
        for name, value in self.parameters.items():
            try:
                low, high = self.interval(name)
                interval = f"{low:.4g} to {high:.4g}"
            except FitRefused as reason:
                interval = str(reason)
            estimate = "not determined" if name in self.undetermined else f"{value:.4g}"
            rows.append(f"<tr><td>{escape(name)}</td><td>{estimate}</td><td>{escape(interval)}</td></tr>")
        head = "<tr><th>parameter</th><th>value</th><th>95 % interval</th></tr>"
        about = f"{self.law.name}: {self.law.formula}; {self.n_points} points, {self.status}"
        return f"<p>{escape(about)}</p><table>{head}{''.join(rows)}</table>"

    @property
    def unresolved(self) -> dict[str, str]:
        """Rates that the points do not determine, by name, with the reason: their term is at its bound 0."""
        rates = self.law.naming.rates if self.law.naming else {}
        infinite = [name for name in rates if math.isinf(self.parameters[name])]
        return {name: f"1 / {name} is at its bound 0: its interval has a lower end only" for name in infinite}

    @cached_property
    def undetermined(self) -> dict[str, str]:
        """Parameters that the points do not determine, by name, with the reason; see `intervals.determined`."""
        try:
            intervals = {name: self.interval(name) for name in self.parameters}
        except FitRefused:
            intervals = {}
        return undetermined(self, intervals)

    def beyond(self, points: Columns) -> Array:
        """How many times outside the range of the fitted points each row lies, [n], by its worst input; 1 inside."""
        logs = read_inputs(self.law, points)
        out = [np.maximum(logs[k] - fitted.max(), fitted.min() - logs[k]) for k, fitted in self.points.logs.items()]
        return np.asarray(np.exp(np.maximum(np.max(out, axis=0), 0.0)))

    def subset(self, rows: NDArray[np.bool_]) -> Self:
        """The same law, settings and `refits`, fitted to the points that `rows` [n] selects. Raises FitRefused."""
        return replace(super().subset(rows), refits=self.refits)

    def lack_of_fit(self) -> LackOfFit:
        """F test of the law against the scatter of replicates. Raises FitRefused without replicates."""
        return lack_of_fit(self)

    def far_points(self) -> tuple[FarPoint, ...]:
        """Configurations that lie far from the law beside the others; see `intervals.outlying`."""
        return far_points(self)

    @cached_property
    def streaks(self) -> Streaks | None:
        """Test of whether residuals of neighbours lie on one side of the law; see `intervals.streaks`."""
        return streaks(self)

    def profile(self, name: str, level: float = 0.95, n: int = 400, seed: int = 0) -> Profile:
        """Profile of the objective over E or an exponent, with an interval calibrated by `n` simulated studies.

        Raises FitRefused for other parameters and with zero degrees of freedom.
        """
        return profile(self, name, level, n, seed)

    def bootstrap(self, n: int | None = None, seed: int | None = None, method: str | None = None) -> Bootstrap:
        """Refit `n` resamples drawn from `seed` by `method`: auto, resample, residuals, wild or parametric.

        Arguments left out are those of `refits`. Raises FitRefused with zero degrees of freedom.
        """
        arguments: dict[str, Any] = {"n": n, "seed": seed, "method": method}
        changed = {name: value for name, value in arguments.items() if value is not None}
        refits = replace(self.refits, **changed)
        return self._default_bootstrap if refits == self.refits else bootstrap(self, refits)

    @cached_property
    def _default_bootstrap(self) -> Bootstrap:
        return bootstrap(self, self.refits)

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a parameter. Raises FitRefused with zero degrees of freedom."""
        return self._default_bootstrap.interval(name, level)

    def prediction_interval(self, points: Columns, level: float = 0.95, kind: str = "mean") -> tuple[Array, Array]:
        """Lower and upper ends, each [n], for the mean over runs (`kind="mean"`) or for one new run (`kind="new"`)."""
        return self._default_bootstrap.prediction_interval(points, level, kind)

    def backtest(
        self,
        holdout: str = "rolling",
        by: str | None = None,
        points: Columns | None = None,
        *,
        cuts: int = CUTS,
        intervals: bool = True,
        seed: int = 0,
    ) -> Backtest:
        """Predict larger sizes from fits to smaller ones; see `intervals.backtest.backtest`. Raises FitRefused."""
        refits = replace(self.refits, seed=seed) if intervals else None
        return backtest(self, holdout, by, points, cuts=cuts, refits=refits)

    def _lack_of_fit_summary(self) -> dict[str, Any] | None:
        try:
            test = self.lack_of_fit()
        except FitRefused:
            return None
        return {"statistic": _finite(test.statistic), "p_value": test.p_value, "flagged": test.flagged}

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe summary with 95 % intervals; None for values that are not finite and for refused intervals."""
        intervals: dict[str, list[float | None] | None]
        try:
            boot = self._default_bootstrap
            intervals = {name: [*map(_finite, boot.interval(name))] for name in self.parameters}
            method, method_reason = boot.method, boot.reason
        except FitRefused as reason:
            intervals, method, method_reason = dict.fromkeys(self.parameters), f"refused: {reason}", ""
        counts = ("starts_agreeing", "starts", "n_points", "n_configurations", "degrees_of_freedom")
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "parameters": {name: _finite(value) for name, value in self.parameters.items()},
            "intervals": intervals,
            "interval_method": method,
            "interval_reason": method_reason,
            "refits": asdict(self.refits),
            "lack_of_fit": self._lack_of_fit_summary(),
            "objective": _finite(self.objective),
            "status": self.status,
            "bounds_hit": list(self.bounds_hit),
            "unresolved": self.unresolved,
            "undetermined": self.undetermined,
            "condition_number": _finite(self.condition_number),
            **{name: int(getattr(self, name)) for name in counts},
            "residuals": [_finite(value) for value in self.residuals],
            **{name: self.settings[name] for name in ("loss", "delta", "space", "fixed")},
        }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def fit(
    points: Columns,
    law: str | Law = "power",
    *,
    loss: str = "huber",
    delta: float = 1e-3,
    space: str = "log",
    weights: ArrayLike | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Fit:
    """Fit `law` (a name in `LAWS` or a `Law`) to `points`, columns [n] of its inputs and response.

    A law of one input also takes columns `x` and `y`. An optional column `config` names the independent configuration
    of each row; without it, rows with equal inputs are one configuration. The objective is the sum over rows of
    `weights` times `loss` of the residuals, which are differences of logs or, with `space="raw"`, of values. `loss` is
    huber (quadratic up to `delta`), squares, absolute, or envelope (huber with predictions above their point counted
    ten times, which fits the lower envelope). Equal rows given with weights are one measurement. `fixed` pins
    parameters by name. Raises FitRefused with the reason if the points do not determine the law.
    """
    return Fit.of(points, law, loss=loss, delta=delta, space=space, weights=weights, fixed=fixed)
