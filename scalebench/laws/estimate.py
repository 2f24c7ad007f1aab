"""A fitted law without intervals: parameters from the best of many starts, status and residuals."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalebench.laws.catalogue import select_law
from scalebench.laws.columns import Columns, read_inputs
from scalebench.laws.forms import Array, FitRefused, Law
from scalebench.laws.points import Points, check_design, read_points
from scalebench.laws.posing import WIDTHS, bound_offset, check_options, check_pinned_offset, pose, read_weights
from scalebench.laws.problem import Problem
from scalebench.laws.solver import minimise, polish

ROUNDING = 1e-11  # of a parameter, relative to the measurements (coefficients) or to 1 (exponents)
DEGENERATE = 1e7  # condition number above which the digits of the parameters carry no information


@dataclass(frozen=True, eq=False)
class Estimate:
    """A fitted law without intervals. `parameters` and `objective` are those of the best start.

    `objective` is the sum of losses. `status` is converged; at_bound (`bounds_hit` names the parameters; an infinite
    one is a rate whose reciprocal is at its bound 0); max_iterations; or degenerate (a term is switched off, or
    `condition_number`, that of the Jacobian with columns scaled to one length, is too large). `starts_agreeing` of
    `starts` reached the objective within 1e-6. `residuals` [n] are measured minus fitted, in the space of the fit.
    """

    law: Law
    parameters: dict[str, float]
    objective: float
    status: str
    bounds_hit: tuple[str, ...]
    starts_agreeing: int
    starts: int
    condition_number: float
    n_points: int
    n_configurations: int
    residuals: Array
    settings: dict[str, Any]
    points: Points = field(repr=False)
    problem: Problem = field(repr=False)
    theta: Array = field(repr=False)

    @classmethod
    def of(
        cls,
        points: Columns,
        law: str | Law,
        *,
        loss: str,
        delta: float,
        space: str,
        weights: ArrayLike | None,
        fixed: Mapping[str, float] | None,
    ) -> Self:
        """Fit `law` to `points`; the arguments are those of `fit`. Raises FitRefused."""
        form, pinned = select_law(law), {name: float(value) for name, value in (fixed or {}).items()}
        check_options(form, loss, delta, space, pinned)
        table = read_points(form, points)
        check_design(form, table, len(form.parameters) - len(pinned))
        weighted = weights is not None
        if weighted:
            table = table.merged()
        problem = pose(form, table, space, read_weights(weights, len(table.response)), pinned, loss)
        width = WIDTHS.get(loss, delta)
        if form.offset in pinned:
            _check_pinned(problem, table, pinned[form.offset or ""], width)
        theta, values, done = minimise(problem, width)
        bounded = bound_offset(problem, table, theta)
        if ((theta >= problem.upper) & (bounded.upper > problem.upper)).any():  # a bound too low, from seeds too alike
            theta, values, done = minimise(bounded, width)
        settings = {"loss": loss, "delta": delta, "space": space, "fixed": pinned, "width": width, "weighted": weighted}
        return cls.ended_at(bounded, table, settings, theta=theta, values=values, done=done)

    @classmethod
    def ended_at(
        cls, problem: Problem, points: Points, settings: dict[str, Any], *, theta: Array, values: Array, done: bool
    ) -> Self:
        """The fit whose best start ended at `theta` [P], among starts of objectives `values` [starts]."""
        theta = _snapped(problem, points, theta)
        residuals = problem.residuals(theta[None])[0]
        best = values.min()
        exact = (problem.weights * np.abs(residuals)).sum() if settings["loss"] == "absolute" else best
        touching = problem.free & ((theta <= problem.lower) | (theta >= problem.upper))
        condition = _condition(problem, theta, problem.free & ~touching)
        # Noise-free data reach rounding level, where ratios of objectives mean nothing.
        agreeing = values <= best * (1 + 1e-6) + 1e-24 * problem.weights.sum()
        return cls(
            law=problem.law,
            parameters={name: float(value[0]) for name, value in problem.parameters(theta[None]).items()},
            objective=float(exact),
            status=_status(problem.law, touching, condition, done=done),
            bounds_hit=tuple(map(problem.law.usual_name, itertools.compress(problem.law.coordinates, touching))),
            starts_agreeing=int(agreeing.sum()),
            starts=len(values),
            condition_number=condition,
            n_points=len(residuals),
            n_configurations=points.n_configurations,
            residuals=-residuals,
            settings=settings,
            points=points,
            problem=problem,
            theta=theta,
        )

    @property
    def degrees_of_freedom(self) -> int:
        """Configurations minus free parameters."""
        return self.n_configurations - int(self.problem.free.sum())

    def predict(self, points: Columns | ArrayLike | None = None, **columns: ArrayLike) -> Array:
        """Fitted response, [n], at the law's inputs: a mapping or keywords, `fit.predict(params=[1e6, 1e7])`.

        A law of one input takes its values alone: `fit.predict(1e6)`. Raises FitRefused for values alone of others.
        """
        logs = read_inputs(self.law, self._inputs(points, columns))
        return np.asarray(self.law.predict(self.parameters, logs)[0])

    def _inputs(self, points: Any, columns: Columns) -> Columns:
        """Inputs by name, from a mapping, keywords, or the values of the only input."""
        if points is None:
            return columns
        if hasattr(points, "keys"):
            mapping: Columns = points
            return mapping
        if len(self.law.inputs) > 1:
            raise FitRefused(f"{self.law.name} predicts from {' and '.join(self.law.inputs)}: name them, as keywords")
        return {self.law.inputs[0]: points}

    def refit(self, target: Array, weights: Array) -> dict[str, Array]:
        """Parameters, each [batch], refitted from this optimum; `target` or `weights` or both are [batch, n]."""
        problem = self.problem.same_inputs(target=target, weights=weights)
        batch = max(len(value) for value in (target, weights) if value.ndim == 2)
        theta, _, _ = polish(problem, np.tile(self.theta, (batch, 1)), self.settings["width"])
        return problem.parameters(theta)

    @cached_property
    def least_squares(self) -> Array:
        """Coordinates [P] of the least-squares fit, started from this one."""
        problem = self.problem.same_inputs(overestimate=1.0)
        return np.asarray(polish(problem, self.theta[None], math.inf)[0][0])

    def least_squares_residuals(self) -> Array:
        """Measured minus fitted, [n], of the least-squares fit."""
        return np.asarray(-self.problem.residuals(self.least_squares[None])[0])

    def subset(self, rows: NDArray[np.bool_]) -> Self:
        """The same law with the same settings, fitted to the points that `rows` [n] selects. Raises FitRefused."""
        columns = {name: np.exp(log[rows]) for name, log in self.points.logs.items()}
        columns |= {self.law.response: self.points.response[rows], "config": self.points.configuration[rows]}
        options = {name: self.settings[name] for name in ("loss", "delta", "space", "fixed")}
        weights = self.problem.weights[rows] if self.settings["weighted"] else None
        return self.of(columns, self.law, weights=weights, **options)


def _check_pinned(problem: Problem, points: Points, value: float, width: float) -> None:
    """Refuse an offset pinned too high. Deciding needs a free fit only above what the measurements allow alone."""
    free = None
    if value > points.highest_offset()[1] and int(points.place.max()) + 1 > len(problem.lower):
        index = problem.law.coordinates.index(problem.law.offset or "")
        lower, upper = problem.lower.copy(), problem.upper.copy()
        lower[index], upper[index] = 0.0, points.response.max()
        problem = replace(problem, lower=lower, upper=upper)
        free = minimise(problem, width)[0]
    check_pinned_offset(problem, points, value, free)


def _snapped(problem: Problem, points: Points, theta: Array) -> Array:
    """Coordinates [P], moved onto a bound if within rounding of it, which is how a fit of exact points ends."""
    m = len(problem.law.coefficients)
    sizes = np.where(np.arange(len(theta)) < m, np.median(points.response), 1.0)
    theta = np.where(theta - problem.lower <= ROUNDING * sizes, problem.lower, theta)
    return np.where(problem.upper - theta <= ROUNDING * sizes, problem.upper, theta)


def _condition(problem: Problem, theta: Array, inside: NDArray[np.bool_]) -> float:
    """Condition number of the Jacobian of the parameters off their bounds, columns scaled to one length."""
    majorant = problem.derivatives(theta[None], math.inf)[2][0][np.ix_(inside, inside)]
    if not inside.any() or (np.diag(majorant) <= 0).any():
        return 1.0 if not inside.any() else math.inf
    scale = np.sqrt(np.diag(majorant))
    eigenvalues = np.linalg.eigvalsh(majorant / scale[:, None] / scale)
    return float(np.sqrt(eigenvalues[-1] / max(eigenvalues[0], 1e-300)))


def _status(law: Law, touching: NDArray[np.bool_], condition: float, *, done: bool) -> str:
    coefficients = zip(law.coefficients, touching, strict=False)
    switched_off = any(at_zero and name != law.offset for name, at_zero in coefficients)
    if condition > DEGENERATE or (switched_off and law.exponents):
        return "degenerate"
    if not done:
        return "max_iterations"
    return "at_bound" if touching.any() else "converged"
