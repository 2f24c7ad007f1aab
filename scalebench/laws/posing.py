"""From points and options to the problem that is minimised: what is allowed, and the box it is minimised in."""

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

# Huber widths of the losses without a `delta`: no outliers, and a corner far below any residual that matters.
WIDTHS = {"squares": math.inf, "absolute": 1e-9}
# Loss of a prediction above its measurement over that of one as far below: draws the lower envelope of the points.
OVERESTIMATE = {"envelope": 10.0}
LOSSES = ("huber", *WIDTHS, *OVERESTIMATE)


def check_options(law: Law, loss: str, delta: float, space: str, pinned: Mapping[str, float]) -> None:
    """Refuse an unknown loss, space or parameter, and values that cannot be."""
    for name, given, known in (("loss", loss, LOSSES), ("space", space, ("log", "raw"))):
        if given not in known:
            raise FitRefused(f"{name} {given!r} is not known; choose one of {', '.join(known)}")
    if not (math.isfinite(delta) and delta > 0):
        raise FitRefused(f"delta is {delta}; it needs a positive number")
    for name, value in pinned.items():
        if name not in law.parameters:
            raise FitRefused(f"fixed names {name!r}; parameters of {law.name} are {', '.join(law.parameters)}")
        if name not in law.pinnable:
            raise FitRefused(
                f"{name} of {law.name} cannot be fixed; those that can are {', '.join(law.pinnable)}: {name} is made "
                "of several coordinates of the fit, all of which would have to move together to hold it"
            )
        if not (math.isfinite(value) and (value >= 0 or name in law.exponents)):
            raise FitRefused(f"fixed {name} is {value}; it needs a finite number, not negative for a coefficient")
        if law.naming and name in law.naming.rates and not value > 0:
            raise FitRefused(f"fixed {name} is {value}; a rate needs a positive number")


def read_weights(weights: ArrayLike | None, n: int) -> Array:
    """Weights [n], 1 where none are given."""
    if weights is None:
        return np.ones(n)
    values = np.asarray(weights, dtype=np.float64)
    if values.shape != (n,) or not usable(values).all():
        raise FitRefused(f"weights have shape {values.shape}; they need {n} positive finite numbers, one for each row")
    return values


def pose(law: Law, points: Points, space: str, weights: Array, pinned: Mapping[str, float], loss: str) -> Problem:
    """The problem with its box. Without replicates the offset is bounded only once residuals are known."""
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
        index, held = law.pinned(name, value, centre)
        lower[index] = upper[index] = held
    target = np.log(points.response) if space == "log" else points.response
    return Problem(law, logs, target, weights, lower, upper, space == "log", centre, OVERESTIMATE.get(loss, 1.0))


def _centre(law: Law, logs: Mapping[str, Array]) -> dict[str, float]:
    """Mean log of each input, of inputs in one unit the same; 0 for laws that need no centring."""
    if not law.naming:
        return dict.fromkeys(logs, 0.0)
    return {name: float(logs[law.same_unit.get(name, name)].mean()) for name in logs}


def bound_offset(problem: Problem, points: Points, theta: Array) -> Problem:
    """The problem with its offset bounded by the points, given the best theta [P] under a loose bound.

    Without replicates the standard error of a configuration is the scale of the residuals, that which holds 68 % of
    them. Points more than 3 of these below the fit are outliers: the lowest of 100,000 heavy-tailed losses says nothing
    about the floor.
    """
    ceiling = _believable(problem, points, theta)
    if ceiling is None:
        return problem
    index = problem.law.coordinates.index(problem.law.offset or "")
    upper = problem.upper.copy()
    if problem.free[index]:
        upper[index] = max(ceiling, theta[index])
    return replace(problem, upper=upper)


def _believable(problem: Problem, points: Points, theta: Array) -> float | None:
    """Lowest measured value that is no outlier, plus 3 residual scales; None where replicates set the bound."""
    if not problem.law.offset or points.replicated:
        return None
    residuals = -problem.residuals(theta[None])[0]  # measured minus fitted
    if not problem.log_space:
        residuals = residuals / points.response
    runs = int(points.run.max()) + 1
    freedom = max(runs - int(problem.free.sum()), 1)
    scale = float(np.quantile(np.abs(residuals), 0.683)) * math.sqrt(runs / freedom)
    believed = points.response[residuals >= -3 * scale - 1e-9]
    return float(believed.min() * (1 + 3 * scale))


def check_pinned_offset(problem: Problem, points: Points, value: float, free: Array | None) -> None:
    """Refuse an offset pinned more than 3 standard errors above a configuration mean.

    `free` is the best theta [P] with the offset left free, which gives the standard error without replicates.
    """
    ceiling = None if free is None else _believable(problem, points, free)
    ceiling = points.highest_offset()[1] if ceiling is None else ceiling
    if value > ceiling:
        raise FitRefused(
            f"fixed {problem.law.offset} is {value:.6g}, more than 3 standard errors above a configuration mean "
            f"(at most {ceiling:.6g}); pin a lower one or leave it free"
        )
