"""Fit a scaling law to points: check them, minimise from many starts (see `solver`), judge and describe the result."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalebench.laws import adequacy, profiling, uncertainty
from scalebench.laws.catalogue import select_law
from scalebench.laws.forms import Array, FitRefused, Law
from scalebench.laws.points import Points, check_design, read_inputs, read_points
from scalebench.laws.posing import WIDTHS, bound_offset, check_options, check_pinned_offset, pose, read_weights
from scalebench.laws.problem import Problem
from scalebench.laws.solver import minimise, polish
from scalebench.laws.uncertainty import UNASKED, Refits

if TYPE_CHECKING:
    from pandas import DataFrame

ROUNDING = 1e-11  # of a parameter, relative to the measurements (coefficients) or to 1 (exponents)
DEGENERATE = 1e7  # condition number beyond which digits of the parameters mean nothing


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law. `parameters` and `objective` are those of the best start; the rest says how far to trust them.

    `objective` is the sum of losses. `status`: converged · at_bound (`bounds_hit` names the parameters; an infinite one
    is a rate whose reciprocal is at its bound 0) ·
    max_iterations · degenerate (`condition_number` of the unit-column Jacobian too large, or a term switched off).
    `starts_agreeing` of `starts` reached the objective within 1e-6. `residuals` [n] are measured minus fitted, in the
    space of the fit. `refits` says how the refits behind its intervals are drawn.
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
    refits: Refits = UNASKED

    @property
    def degrees_of_freedom(self) -> int:
        """Configurations minus free parameters."""
        return self.n_configurations - int(self.problem.free.sum())

    @property
    def unresolved(self) -> dict[str, str]:
        """Rates that the points do not resolve, by name, each with the reason: their term is at its bound 0."""
        rates = self.law.naming.rates if self.law.naming else {}
        infinite = [name for name in rates if math.isinf(self.parameters[name])]
        return {name: f"1 / {name} is at its bound 0: its interval has a lower end only" for name in infinite}

    def predict(self, points: Mapping[str, ArrayLike] | DataFrame | None = None, **columns: ArrayLike) -> Array:
        """Fitted response, [n], at the law's inputs: a mapping or keywords, `fit.predict(params=[1e6, 1e7])`."""
        logs = read_inputs(self.law, columns if points is None else points)
        return np.asarray(self.law.predict(self.parameters, logs)[0])

    def beyond(self, points: Mapping[str, ArrayLike] | DataFrame) -> Array:
        """How many times beyond the fitted range the inputs lie, [n]; 1 inside it, the worst input counts."""
        logs = read_inputs(self.law, points)
        out = [np.maximum(logs[k] - seen.max(), seen.min() - logs[k]) for k, seen in self.points.logs.items()]
        return np.asarray(np.exp(np.maximum(np.max(out, axis=0), 0.0)))

    def refit(self, target: Array, weights: Array) -> dict[str, Array]:
        """Parameters, each [batch], refitted from this optimum to targets or weights [batch, n]; one may be [n]."""
        problem = replace(self.problem, target=target, weights=weights)
        batch = max(len(value) for value in (target, weights) if value.ndim == 2)
        theta, _, _ = polish(problem, np.tile(self.theta, (batch, 1)), self.settings["width"])
        return problem.parameters(theta)

    @cached_property
    def least_squares(self) -> Array:
        """Coordinates [P] of the least-squares fit next to this one."""
        problem = replace(self.problem, overestimate=1.0)
        return np.asarray(polish(problem, self.theta[None], math.inf)[0][0])

    def least_squares_residuals(self) -> Array:
        """Measured minus fitted, [n], of the least-squares fit next to this one."""
        return np.asarray(-self.problem.residuals(self.least_squares[None])[0])

    def subset(self, rows: NDArray[np.bool_], **changed: Any) -> Fit:
        """The same law with the same settings but those `changed`, fitted to some of the points."""
        columns = {name: np.exp(log[rows]) for name, log in self.points.logs.items()}
        columns |= {self.law.response: self.points.response[rows], "config": self.points.configuration[rows]}
        options = {name: self.settings[name] for name in ("loss", "delta", "space", "fixed")}
        weights = self.problem.weights[rows] if self.settings["weighted"] else None
        return replace(fit(columns, self.law, weights=weights, **options | changed), refits=self.refits)

    def delta_sweep(self, deltas: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1)) -> dict[float, Fit]:
        """The same fit with other Huber corners, by corner: what the choice of delta changes."""
        everything = np.ones(self.n_points, dtype=bool)
        return {delta: self.subset(everything, loss="huber", delta=delta) for delta in deltas}

    def lack_of_fit(self) -> adequacy.LackOfFit:
        """Test the law against the scatter of replicates. Raises FitRefused without replicates."""
        return adequacy.lack_of_fit(self)

    def profile(self, name: str, level: float = 0.95, n: int = 400, seed: int = 0) -> profiling.Profile:
        """Profile of the objective over E or an exponent, its interval calibrated by `n` simulated studies."""
        return profiling.profile(self, name, level, n, seed)

    def bootstrap(
        self, n: int | None = None, seed: int | None = None, method: str | None = None
    ) -> uncertainty.Bootstrap:
        """Refit `n` resamples; see `uncertainty`. `method`: auto, resample, residuals, wild or parametric.

        What is left out is as `refits` says. Raises FitRefused with zero degrees of freedom.
        """
        given: dict[str, Any] = {"n": n, "seed": seed, "method": method}
        asked = {name: value for name, value in given.items() if value is not None}
        return uncertainty.bootstrap(self, replace(self.refits, **asked))

    @cached_property
    def _default_bootstrap(self) -> uncertainty.Bootstrap:
        return self.bootstrap()

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a parameter, from bootstrap refits as `refits` says."""
        return self._default_bootstrap.interval(name, level)

    def prediction_interval(
        self, points: Mapping[str, ArrayLike] | DataFrame, level: float = 0.95, kind: str = "mean"
    ) -> tuple[Array, Array]:
        """Lower and upper ends, each [n], for the mean over runs (`kind="mean"`) or for one new run (`kind="new"`)."""
        return self._default_bootstrap.prediction_interval(points, level, kind)

    def backtest(self, holdout: str = "largest", seed: int = 0) -> list[uncertainty.Holdout]:
        """Predict each of the largest sizes from the sizes below it: "largest" only that one, "rolling" up to 8."""
        return uncertainty.backtest(self, holdout, seed)

    def _lack_of_fit_said(self) -> dict[str, Any] | None:
        try:
            found = self.lack_of_fit()
        except FitRefused:
            return None
        return {"statistic": _finite(found.statistic), "p_value": found.p_value, "flagged": found.flagged}

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe summary with 95 % intervals; what is not finite or was refused is None."""
        intervals: dict[str, list[float | None] | None]
        try:
            boot = self._default_bootstrap
            intervals = {name: [*map(_finite, boot.interval(name))] for name in self.parameters}
            method, why = boot.method, boot.reason
        except FitRefused as reason:
            intervals, method, why = dict.fromkeys(self.parameters), f"refused: {reason}", ""
        counts = ("starts_agreeing", "starts", "n_points", "n_configurations", "degrees_of_freedom")
        return {
            "law": self.law.name,
            "formula": self.law.formula,
            "parameters": {name: _finite(value) for name, value in self.parameters.items()},
            "intervals": intervals,
            "interval_method": method,
            "interval_reason": why,
            "refits": asdict(self.refits),
            "lack_of_fit": self._lack_of_fit_said(),
            "objective": _finite(self.objective),
            "status": self.status,
            "bounds_hit": list(self.bounds_hit),
            "unresolved": self.unresolved,
            "condition_number": _finite(self.condition_number),
            **{name: int(getattr(self, name)) for name in counts},
            "residuals": [_finite(value) for value in self.residuals],
            **{name: self.settings[name] for name in ("loss", "delta", "space", "fixed")},
        }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def fit(
    points: Mapping[str, ArrayLike] | DataFrame,
    law: str | Law = "power",
    *,
    loss: str = "huber",
    delta: float = 1e-3,
    space: str = "log",
    weights: ArrayLike | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Fit:
    """Fit `law` to `points`: columns of the law's inputs and response (`x`, `y` for laws of one input), each [n].

    An optional column `config` names the independent configuration of each row; without it, rows with equal inputs are
    one. `loss` is huber (corner at `delta`), squares, absolute or envelope (huber with predictions above their points
    counted ten times: the lower envelope), of log residuals or, with `space="raw"`, of plain ones, summed with
    `weights`; equal rows that come with weights are one measurement. `fixed` pins parameters by name. Raises
    FitRefused, with the reason, where the points cannot carry the fit.
    """
    form, pinned = select_law(law), {name: float(value) for name, value in (fixed or {}).items()}
    check_options(form, loss, delta, space, pinned)
    read = read_points(form, points)
    check_design(form, read, len(form.parameters) - len(pinned))
    weighted = weights is not None
    if weighted:
        read = read.merged()
    problem = pose(form, read, space, read_weights(weights, len(read.response)), pinned, loss)
    width = WIDTHS.get(loss, delta)
    if form.offset in pinned:
        _check_pinned(problem, read, pinned[form.offset or ""], width)
    theta, values, done = minimise(problem, width)
    settings = {"loss": loss, "delta": delta, "space": space, "fixed": pinned, "width": width, "weighted": weighted}
    return _conclude(bound_offset(problem, read, theta), read, settings, theta=theta, values=values, done=done)


def _check_pinned(problem: Problem, points: Points, value: float, width: float) -> None:
    """Refuse an offset pinned too high; only one above the lowest measurement needs a free fit to tell."""
    free = None
    if not points.replicated and value > points.response.min():
        index = problem.law.coordinates.index(problem.law.offset or "")
        lower, upper = problem.lower.copy(), problem.upper.copy()
        lower[index], upper[index] = 0.0, points.response.max()
        problem = replace(problem, lower=lower, upper=upper)
        free = minimise(problem, width)[0] if len(points.response) > len(lower) else None
    check_pinned_offset(problem, points, value, free)


def _conclude(
    problem: Problem, points: Points, settings: dict[str, Any], *, theta: Array, values: Array, done: bool
) -> Fit:
    """Judge the best start and describe it."""
    theta = _snapped(problem, points, theta)
    residuals = problem.residuals(theta[None])[0]
    best = values.min()
    exact = (problem.weights * np.abs(residuals)).sum() if settings["loss"] == "absolute" else best
    touching = problem.free & ((theta <= problem.lower) | (theta >= problem.upper))
    inside = problem.free & ~touching
    condition = _condition(problem, theta, inside)
    off = [n for n, t in zip(problem.law.coefficients, touching, strict=False) if t and n != problem.law.offset]
    status = "converged" if done else "max_iterations"
    if condition > DEGENERATE or (off and problem.law.exponents):
        status = "degenerate"
    elif done and touching.any():
        status = "at_bound"
    # Noise-free data reach rounding level, where ratios of objectives mean nothing.
    agreeing = values <= best * (1 + 1e-6) + 1e-24 * problem.weights.sum()
    return Fit(
        law=problem.law,
        parameters={name: float(value[0]) for name, value in problem.parameters(theta[None]).items()},
        objective=float(exact),
        status=status,
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


def _snapped(problem: Problem, points: Points, theta: Array) -> Array:
    """Coordinates [P] within rounding of a bound, put on it: exact points end that close without touching it."""
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
