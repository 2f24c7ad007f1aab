"""Profile of the objective over one parameter, and a confidence interval with a simulated threshold."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import Array, FitRefused
from scalebench.laws.intervals.bootstrap import chosen, replicates
from scalebench.laws.intervals.noise import estimate_noise
from scalebench.laws.solver import polish

LEAST = 1e-3  # step scale of a parameter near 0
FARTHEST = 40.0  # times its absolute value: how far to search for an end
STEPS = 8  # in each of three stretches of that search
ROUNDS = 2  # of refinement, each 15 times finer


@dataclass(frozen=True, eq=False)
class Profile:
    """The objective minimised over all other parameters, `objective` [m], at `values` [m] of parameter `name`.

    `interval` is where it exceeds its minimum by at most `rise`: the `level` quantile, over `n` studies drawn as for
    the bootstrap, of that excess at the true value. An end that the objective never reaches is the parameter's bound.
    """

    name: str
    values: Array = field(repr=False)
    objective: Array = field(repr=False)
    rise: float
    interval: tuple[float, float]
    level: float
    n: int


def profile(fit: Estimate, name: str, level: float, n: int, seed: int) -> Profile:
    """Profile E or an exponent of `fit`. Raises FitRefused for others and with zero degrees of freedom."""
    known = _profiled(fit)
    if name not in known:
        raise FitRefused(f"{name!r} cannot be profiled; parameters that can: {', '.join(known)}")
    if fit.degrees_of_freedom < 1:
        raise FitRefused(f"zero degrees of freedom for {fit.law.name}: a profile needs at least one more size")
    if fit.status == "degenerate":
        raise FitRefused(
            f"the fit is degenerate, {fit.law.response} does not fall with {' or '.join(fit.law.inputs)} as "
            f"{fit.law.name}: no value of {name} fits better than another"
        )
    index = fit.law.coordinates.index(name)
    rise = float(np.quantile(_rises(fit, index, n, np.random.default_rng(seed)), level))
    low, high = (_end(fit, index, side, rise) for side in (-1, 1))
    span = np.linspace(max(low, fit.problem.lower[index]), min(high, fit.problem.upper[index]), 41)
    return Profile(name, span, _pinned(fit, index, span, (1, -1)), rise, (low, high), level, n)


def _profiled(fit: Estimate) -> list[str]:
    """Free exponents, and coefficients of constant terms; other coefficients are determined by their exponent."""
    problem, law = fit.problem, fit.law
    constant = problem.centres(fit.theta[None, len(law.coefficients) :])[0] == 0.0
    names = [name for name, same in zip(law.coefficients, constant, strict=True) if same] + [*law.exponents]
    return [name for name in law.pinnable if name in names and problem.free[law.coordinates.index(name)]]


def _rises(fit: Estimate, index: int, n: int, rng: np.random.Generator) -> Array:
    """Objective with the parameter at its true value minus the free minimum, [n], over bootstrap studies."""
    target, weights, _ = replicates(fit, estimate_noise(fit), chosen(fit)[0], n, rng)
    problem = replace(fit.problem, target=target, weights=weights)
    theta, width = np.tile(fit.theta, (n, 1)), fit.settings["width"]
    constrained = polish(replace(problem, fixed=index), theta, width)
    # Starting at the constrained optimum, the free fit can only be lower.
    return np.asarray(constrained[1] - polish(problem, constrained[0], width)[1])


def _pinned(fit: Estimate, index: int, values: Array, neighbours: tuple[int, ...]) -> Array:
    """Objective with the parameter held at each value, [m]: fitted together, then again from neighbours' optima."""
    problem, width = replace(fit.problem, fixed=index), fit.settings["width"]
    theta = np.tile(fit.theta, (len(values), 1))
    theta[:, index] = values
    theta, objective, _ = polish(problem, theta, width)
    for step in neighbours:
        start = np.roll(theta, step, axis=0)
        start[:, index] = values
        objective = np.minimum(objective, polish(problem, start, width)[1])
    return np.asarray(objective)


def _end(fit: Estimate, index: int, side: int, rise: float) -> float:
    """Where the profile has risen by `rise` on one side: growing steps, then finer ones around the crossing."""
    best, bound = float(fit.theta[index]), float((fit.problem.lower if side < 0 else fit.problem.upper)[index])
    ceiling = polish(fit.problem, fit.theta[None], fit.settings["width"])[1][0] + rise
    away = max(abs(best), LEAST) * np.geomspace(0.002, FARTHEST, 3 * STEPS)
    room = side * (bound - best)
    away = away if np.isinf(room) else np.append(away[away < room], room)
    crossing, inside = None, best
    for reach in np.array_split(away, 3):  # far values are slow to fit: only where near ones do not cross
        if crossing is None and reach.size:
            values = np.array([inside, *(best + side * reach)])
            crossing, inside = _crossing(fit, index, values, ceiling), values[-1]
    for _ in range(ROUNDS if crossing else 0):
        assert crossing is not None
        finer = _crossing(fit, index, np.linspace(crossing[0], crossing[1], 2 * STEPS), ceiling)
        crossing = finer or crossing
    return bound if crossing is None else crossing[2]


def _crossing(fit: Estimate, index: int, values: Array, ceiling: float) -> tuple[float, float, float] | None:
    """The first two neighbouring `values` between which the profile crosses, and the linear interpolate."""
    above = _pinned(fit, index, values, (1,)) - ceiling
    if not (above > 0).any():
        return None
    out = max(int((above > 0).argmax()), 1)
    (inside, outside), (low, high) = values[[out - 1, out]], above[[out - 1, out]]
    share = min(max(-low / (high - low), 0.0), 1.0) if high > low else 0.0
    return float(inside), float(outside), float(inside + (outside - inside) * share)
