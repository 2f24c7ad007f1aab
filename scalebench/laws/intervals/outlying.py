"""Configurations far from the law that fits the others: a failed run, a wrong unit, or a law of the wrong shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalebench.laws.estimate import Estimate

DEVIATIONS = 10.0  # robust standard deviations; in simulated studies without such a point at most 3 % have one
MAD_TO_DEVIATION = 1.4826  # of normal noise


@dataclass(frozen=True)
class FarPoint:
    """A configuration far from the law: its inputs, the measured mean and what the law predicts."""

    inputs: dict[str, float]
    measured: float
    fitted: float

    @property
    def error_percent(self) -> float:
        """How far the measured mean lies above the law, in percent of it."""
        return 100 * (self.measured / self.fitted - 1)


def far_points(fit: Estimate) -> tuple[FarPoint, ...]:
    """Return the configurations whose mean lies more than ``DEVIATIONS`` robust standard deviations from the law.

    The standard deviation is that of the residuals of configurations, from their median absolute deviation, times
    sqrt(n / (n - p)) for the p fitted parameters. At least 3 of n points must be free to say what is usual, else none.
    """
    place = fit.points.place
    runs = np.bincount(place)
    n, free = len(runs), int(fit.problem.free.sum())
    if n < free + 3:
        return ()
    residuals = np.bincount(place, fit.residuals) / runs
    away = np.abs(residuals - np.median(residuals))
    usual = MAD_TO_DEVIATION * float(np.median(away)) * np.sqrt(n / (n - free))
    rounding = 1e-9 * float(np.abs(fit.residuals).max() + 1.0)  # points on the law exactly have no spread
    logs = {name: np.bincount(place, values) / runs for name, values in fit.points.logs.items()}
    measured = np.bincount(place, fit.points.response) / runs
    fitted = fit.predict({name: np.exp(values) for name, values in logs.items()})
    return tuple(
        FarPoint(
            {name: float(np.exp(values[i])) for name, values in logs.items()}, float(measured[i]), float(fitted[i])
        )
        for i in np.flatnonzero(away > max(DEVIATIONS * usual, rounding))
    )
