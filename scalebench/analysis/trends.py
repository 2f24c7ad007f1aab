"""Trends of a quantity against what grows: a fitted law, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalebench.laws import LAWS, FitRefused, fit

if TYPE_CHECKING:
    from scalebench.laws import Fit, Holdout

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Trend:
    """A fitted law, or the one-line reason why there is none; ``no_interval`` says why a fit has no intervals."""

    fit: Fit | None
    reason: str = ""
    no_interval: str = ""

    def at(self, value: float, kind: str = "new") -> tuple[float, float, float]:
        """Return prediction, low and high (95 %) at one size; NaN ends where there is no interval."""
        assert self.fit is not None
        x = np.array([value])
        low, high = self.band(x, kind)
        return float(self.fit.predict(x=x)[0]), float(low[0]), float(high[0])

    def band(self, x: Array, kind: str = "mean") -> tuple[Array, Array]:
        """Return low and high (95 %) at sizes x (n,)."""
        assert self.fit is not None
        if self.no_interval:
            return np.full(len(x), np.nan), np.full(len(x), np.nan)
        return self.fit.prediction_interval({"x": x}, kind=kind)

    def interval(self, parameter: str) -> tuple[float, float]:
        """Return the 95 % interval of a parameter; NaN ends where there is none."""
        assert self.fit is not None
        return (np.nan, np.nan) if self.no_interval else self.fit.interval(parameter)

    def backtest(self) -> Sequence[Holdout]:
        """Return the predictions of every larger size from the smaller ones, or nothing where that is refused."""
        if self.fit is None:
            return ()
        try:
            return tuple(self.fit.backtest("rolling"))
        except FitRefused:
            return ()


def fit_trend(points: pd.DataFrame, law: str) -> Trend:
    """Fit ``law``, a law of the size alone, to the points (columns x, y, config), or say why not."""
    if law in LAWS and len(LAWS[law].inputs) > 1:
        return Trend(None, f"the law {law} needs {' and '.join(LAWS[law].inputs)}; these figures show size alone")
    try:
        fitted = fit(points, law=law)
    except FitRefused as refusal:
        return Trend(None, str(refusal))
    try:
        fitted.interval(fitted.law.parameters[0])
    except FitRefused as refusal:
        return Trend(fitted, no_interval=str(refusal))
    return Trend(fitted)


def trend_of(trials: pd.DataFrame, column: str, law: str, size: str) -> Trend:
    """Fit a column against the column ``size``; seeds of one size are one configuration."""
    kept = trials[trials[column] > 0]
    points = pd.DataFrame({"x": kept[size], "y": kept[column], "config": kept[size].map("{:.0f}".format)})
    return fit_trend(points.reset_index(drop=True), law)
