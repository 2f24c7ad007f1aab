"""Profile of the objective over one parameter, and the interval where it stays below what noise explains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from scalebench.laws.forms import Array, FitRefused
from scalebench.laws.noise import estimate_noise, simulate
from scalebench.laws.problem import Problem
from scalebench.laws.solver import polish
from scalebench.laws.uncertainty import clusters_needed, resample

if TYPE_CHECKING:
    from scalebench.laws.fit import Fit

LEAST = 1e-3  # a parameter at 0 has no size to step by
WIDEST = 12  # doublings of a step of 1 % in search of an end
BISECTIONS = 30


@dataclass(frozen=True, eq=False)
class Profile:
    """The objective minimised over all other parameters, `objective` [m], at `values` [m] of parameter `name`.

    `interval` is where it rises above its minimum by no more than `rise`, the quantile of that rise at the true value
    among `n` studies, resampled or simulated as for the bootstrap; an end that the objective never reaches is the
    parameter's bound, 0 or infinite.
    """

    name: str
    values: Array = field(repr=False)
    objective: Array = field(repr=False)
    rise: float
    interval: tuple[float, float]
    level: float
    n: int


def profile(fit: Fit, name: str, level: float, n: int, seed: int) -> Profile:
    """Profile E or an exponent of `fit`. Raises FitRefused for others and with zero degrees of freedom."""
    known = _profiled(fit)
    if name not in known:
        raise FitRefused(f"{name!r} cannot be profiled; parameters that can: {', '.join(known)}")
    if fit.degrees_of_freedom < 1:
        raise FitRefused(f"zero degrees of freedom for {fit.law.name}: a profile needs at least one more size")
    index = fit.law.coordinates.index(name)
    rise = float(np.quantile(_rises(fit, index, n, np.random.default_rng(seed)), level))
    low, high = (_end(fit, index, side, rise) for side in (-1, 1))
    span = np.linspace(max(low, fit.problem.lower[index]), min(high, fit.problem.upper[index]), 41)
    return Profile(name, span, _pinned(fit, index, span), rise, (low, high), level, n)


def _profiled(fit: Fit) -> list[str]:
    """Free exponents, and coefficients of constant terms: others trade places with their exponent."""
    problem, law = fit.problem, fit.law
    constant = problem.centres(fit.theta[None, len(law.coefficients) :])[0] == 0.0
    names = [name for name, same in zip(law.coefficients, constant, strict=True) if same] + [*law.exponents]
    return [name for name in law.pinnable if name in names and problem.free[law.coordinates.index(name)]]


def _rises(fit: Fit, index: int, n: int, rng: np.random.Generator) -> Array:
    """Objective with the parameter at its true value less the free one, [n], drawn as the bootstrap draws."""
    if fit.n_configurations >= clusters_needed(fit):
        problem = replace(fit.problem, weights=resample(fit, n, rng))
    else:
        problem = replace(fit.problem, target=simulate(fit, estimate_noise(fit), n, rng)[0])
    theta, width = np.tile(fit.theta, (n, 1)), fit.settings["width"]
    held = polish(_at(problem, index, fit.theta[index]), theta, width)
    # From where the held fit ended: the free one can then only be lower.
    return np.asarray(held[1] - polish(problem, held[0], width)[1])


def _at(problem: Problem, index: int, value: float) -> Problem:
    """The problem with one coordinate held."""
    lower, upper = problem.lower.copy(), problem.upper.copy()
    lower[index] = upper[index] = value
    return replace(problem, lower=lower, upper=upper)


def _pinned(fit: Fit, index: int, values: Array) -> Array:
    """Objective with the parameter at each value, [m], each fit starting from the one before."""
    found = np.empty(len(values))
    for order in (np.flatnonzero(values >= fit.theta[index]), np.flatnonzero(values < fit.theta[index])[::-1]):
        theta = fit.theta[None]
        for i in order:
            start = theta.copy()
            start[:, index] = values[i]
            theta, value, _ = polish(_at(fit.problem, index, values[i]), start, fit.settings["width"])
            found[i] = value[0]
    return found


def _end(fit: Fit, index: int, side: int, rise: float) -> float:
    """Where the profile has risen by `rise` on one side: doubling steps, then bisection."""
    best, bound = fit.theta[index], (fit.problem.lower if side < 0 else fit.problem.upper)[index]
    ceiling = polish(fit.problem, fit.theta[None], fit.settings["width"])[1][0] + rise
    inside, outside = best, bound
    for step in max(abs(best), LEAST) * 0.01 * 2.0 ** np.arange(WIDEST):
        trial = np.clip(best + side * step, fit.problem.lower[index], fit.problem.upper[index])
        if _pinned(fit, index, np.array([trial]))[0] > ceiling:
            outside = trial
            break
        inside = trial
        if trial == bound:
            return float(bound)
    for _ in range(BISECTIONS if np.isfinite(outside) else 0):
        middle = (inside + outside) / 2
        if _pinned(fit, index, np.array([middle]))[0] > ceiling:
            outside = middle
        else:
            inside = middle
    return float(inside) if np.isfinite(outside) else float(outside)
