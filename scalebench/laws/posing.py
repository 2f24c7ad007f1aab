"""From points and options to the minimisation problem: checks of the options, and bounds of the coordinates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from scalebench.laws.columns import usable
from scalebench.laws.forms import Array, FitRefused, Law
from scalebench.laws.points import Points
from scalebench.laws.problem import Problem

# Huber widths of losses without `delta`: quadratic everywhere, or with a corner below any residual that matters.
WIDTHS = {"squares": math.inf, "absolute": 1e-9}
# Loss of a prediction above its measurement, relative to one equally far below: fits the lower envelope.
OVERESTIMATE = {"envelope": 10.0}
SIGNIFICANCE = 0.01  # as of the test of lack of fit
LOSSES = ("huber", *WIDTHS, *OVERESTIMATE)


def check_options(law: Law, loss: str, delta: float, space: str, pinned: Mapping[str, float]) -> None:
    """Raise FitRefused for an unknown loss, space or parameter, and for values out of range."""
    for name, value, known in (("loss", loss, LOSSES), ("space", space, ("log", "raw"))):
        if value not in known:
            raise FitRefused(f"{name} {value!r} is not known; choose one of {', '.join(known)}")
    if not (math.isfinite(delta) and delta > 0):
        raise FitRefused(f"delta is {delta}; it needs a positive number")
    for name, number in pinned.items():
        if name not in law.parameters:
            raise FitRefused(f"fixed names {name!r}; parameters of {law.name} are {', '.join(law.parameters)}")
        if name not in law.pinnable:
            raise FitRefused(
                f"{name} of {law.name} cannot be fixed; those that can are {', '.join(law.pinnable)}: {name} depends "
                "on several coordinates of the fit"
            )
        if not (math.isfinite(number) and (number >= 0 or name in law.exponents)):
            raise FitRefused(f"fixed {name} is {number}; it needs a finite number, not negative for a coefficient")
        if law.naming and name in law.naming.rates and not number > 0:
            raise FitRefused(f"fixed {name} is {number}; a rate needs a positive number")


def read_weights(weights: ArrayLike | None, n: int) -> Array:
    """Weights [n], by default 1. Raises FitRefused unless they are positive and finite."""
    if weights is None:
        return np.ones(n)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,) or not usable(values).all():
        raise FitRefused(f"weights have shape {values.shape}; they need {n} positive finite numbers, one for each row")
    return values


def pose(law: Law, points: Points, space: str, weights: Array, pinned: Mapping[str, float], loss: str) -> Problem:
    """The problem with its bounds; `bound_offset` sets that of the offset anew after a first fit."""
    centre = _centre(law, points.logs)
    logs = {name: log - centre[name] for name, log in points.logs.items()}
    ranges = dict(law.exponents)
    for name, source in law.positions.items():
        ranges[name] = (float(logs[source].min()), float(logs[source].max()))
    lower = np.array([*(0.0 for _ in law.coefficients), *(low for low, _ in ranges.values())])
    upper = np.array([*(math.inf for _ in law.coefficients), *(high for _, high in ranges.values())])
    if law.offset:
        highest = points.highest_offset()[0] if points.replicated else points.response.max()
        upper[law.coordinates.index(law.offset)] = highest
    for name, value in pinned.items():
        index, coordinate = law.pinned(name, value, centre)
        lower[index] = upper[index] = coordinate
    target = np.log(points.response) if space == "log" else points.response
    return Problem(law, logs, target, weights, lower, upper, space == "log", centre, OVERESTIMATE.get(loss, 1.0))


def _centre(law: Law, logs: Mapping[str, Array]) -> dict[str, float]:
    """Mean log of each input, the same for inputs of one unit; 0 for laws that need no centring."""
    if not law.naming:
        return dict.fromkeys(logs, 0.0)
    # Sorted: the mean of rows in another order would differ by rounding.
    return {name: float(np.sort(logs[law.same_unit.get(name, name)]).mean()) for name in logs}


def bound_offset(problem: Problem, points: Points, theta: Array) -> Problem:
    """The problem with the offset bounded by the points, given the best theta [P] under the bound of `pose`.

    The standard error of a configuration mean is the 68 % quantile of the absolute residuals of means. Single runs more
    than 3 of these below the fit are ignored as outliers: the minimum of 100,000 heavy-tailed losses is far below the
    irreducible loss. With replicates their own bound holds, unless means scatter about the law significantly more
    than seeds explain: seeds may agree with each other better than with the law, and copies of one run exactly.
    """
    if not problem.law.offset:
        return problem
    index = problem.law.coordinates.index(problem.law.offset)
    upper = problem.upper.copy()
    if problem.free[index]:
        ceiling = _plausible_ceiling(problem, points, theta)
        if points.replicated and not _seeds_too_alike(problem, points, ceiling, float(upper[index])):
            ceiling = float(upper[index])
        upper[index] = max(ceiling, theta[index])
    return replace(problem, upper=upper)


def _seeds_too_alike(problem: Problem, points: Points, of_means: float, of_seeds: float) -> bool:
    """Whether the scatter of means about the law is significantly above that of seeds, by the ceilings of both."""
    from scipy.special import fdtrc  # lazily: slow to import

    mean = points.means()[0]
    lowest, spare = float(mean.min()), int(points.run.max()) + 1 - len(mean)
    if of_seeds <= lowest:
        return True
    freedom = max(len(mean) - int(problem.free.sum()), 1)
    return bool(fdtrc(freedom, spare, ((of_means - lowest) / (of_seeds - lowest)) ** 2) < SIGNIFICANCE)


def _plausible_ceiling(problem: Problem, points: Points, theta: Array) -> float:
    """Lowest configuration mean plus 3 residual scales; without replicates the lowest that is not an outlier."""
    mean, runs = points.means()
    residuals = np.bincount(points.place, -problem.residuals(theta[None])[0]) / runs  # measured minus fitted
    if not problem.log_space:
        residuals = residuals / mean
    freedom = max(len(mean) - int(problem.free.sum()), 1)
    scale = float(np.quantile(np.abs(residuals), 0.683)) * math.sqrt(len(mean) / freedom)
    inliers = mean if points.replicated else mean[residuals >= -3 * scale - 1e-9]
    return float(inliers.min() * (1 + 3 * scale))


def check_pinned_offset(problem: Problem, points: Points, value: float, free: Array | None) -> None:
    """Raise FitRefused for an offset pinned more than 3 standard errors above a configuration mean.

    `free` is the best theta [P] with a free offset, whose residuals give the standard error that replicates may lack.
    """
    ceiling = points.highest_offset()[1]
    if free is not None:
        ceiling = max(ceiling, _plausible_ceiling(problem, points, free))
    if value > ceiling:
        raise FitRefused(
            f"fixed {problem.law.offset} is {value:.6g}, more than 3 standard errors above a configuration mean "
            f"(at most {ceiling:.6g}); pin a lower one or leave it free"
        )
