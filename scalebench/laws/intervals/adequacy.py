"""Lack of fit: residuals larger than replicates explain mean that the law has the wrong shape."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import FitRefused
from scalebench.laws.intervals.noise import group


@dataclass(frozen=True)
class LackOfFit:
    """F test of the law against replicates: `statistic` is the mean square of lack of fit over that of replicates.

    `degrees_of_freedom` are those of lack of fit and of replicates. `lack` and `seed` are standard deviations in the
    space of the fit: of configuration means about the law beyond what seeds explain (at least 0), and between seeds.
    """

    statistic: float
    p_value: float
    degrees_of_freedom: tuple[int, int]
    lack: float
    seed: float

    @property
    def flagged(self) -> bool:
        """Whether the law is rejected at 1 %."""
        return self.p_value < 0.01


def lack_of_fit(fit: Estimate) -> LackOfFit:
    """Split the sum of squares of the least-squares fit into parts between and within groups of equal inputs.

    Draper and Smith, Applied Regression Analysis, section 2.1. Raises FitRefused without replicates and where
    there are no more distinct inputs than parameters.
    """
    from scipy.special import fdtrc

    groups = group(fit)
    place = fit.points.place[np.unique(groups.run, return_index=True)[1]]
    n, places, free = len(place), int(place.max()) + 1, int(fit.problem.free.sum())
    if n == places:
        raise FitRefused("no replicates: lack of fit needs at least one configuration run with two or more seeds")
    if places <= free:
        raise FitRefused(f"{places} distinct inputs for {free} parameters: lack of fit needs at least {free + 1}")
    residuals, weights = groups.by_run(fit.least_squares_residuals()), groups.weights
    total = np.bincount(place, weights)
    mean = np.bincount(place, weights * residuals) / total
    lack = (total * mean**2).sum() / (places - free)
    pure = (weights * (residuals - mean[place]) ** 2).sum() / (n - places)
    statistic = float(lack / pure) if pure > 0 else np.inf
    return LackOfFit(
        statistic=statistic,
        p_value=float(fdtrc(places - free, n - places, statistic)),
        degrees_of_freedom=(places - free, n - places),
        lack=float(np.sqrt(max(0.0, (lack - pure) / total.mean()))),
        seed=float(np.sqrt(pure / weights.mean())),
    )
