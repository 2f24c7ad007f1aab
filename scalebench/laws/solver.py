"""Minimise the loss of a law: damped Newton steps from all starts at once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array
from scalebench.laws.problem import Problem
from scalebench.laws.starts import in_order, move, starts, thinned

BLOCK = 60_000  # residuals per block, to stay in the processor's cache
ROWS = 4000  # with more rows, starts are compared on a sample
LEAST_PIVOT = 1e-4  # of a Cholesky factor that is as exact as eigenvectors
LEAST_CURVATURE = 1e-12  # relative to the majorant
MANY = 32  # systems from which eliminating all at once beats eigenvectors of each


def descend(problem: Problem, theta: Array, width: float, tolerance: float, steps: int) -> tuple[Array, Array, Array]:
    """Minimise from each row of theta [batch, P] inside the box: theta, objective [batch], converged [batch].

    Newton steps, damped in the metric of reweighted least squares: damping 1 is about one reweighting, 0 is Newton.
    Converged when the predicted decrease is below `tolerance` times the objective.
    """
    result, lowest, converged = theta.copy(), np.empty(len(theta)), np.zeros(len(theta), dtype=bool)
    rounding, damping, live = _rounding(problem, len(theta)), np.full(len(theta), 1e-2), np.arange(len(theta))
    with np.errstate(over="ignore"):  # of a step much too far, which is not taken
        value, terms = problem.value_with_terms(theta, width)
        lowest[:] = value
        for _ in range(steps):
            if not live.size:
                break
            step, predicted = _step(problem, theta, terms, width, damping)
            trial = np.minimum(np.maximum(theta + step, problem.lower), problem.upper)
            trial_value, trial_terms = problem.value_with_terms(trial, width)
            better = trial_value < value
            done = predicted <= tolerance * value + rounding
            if better.all():  # quick, and usually so
                over, damping = done, np.maximum(damping / 8, 1e-12)
                theta, value, terms = trial, trial_value, trial_terms
            else:
                over = done | ((damping > 1e10) & ~better)
                damping = np.where(better, np.maximum(damping / 8, 1e-12), damping * 6)
                theta, value = np.where(better[:, None], trial, theta), np.where(better, trial_value, value)
                terms = np.where(better[:, None, None], trial_terms, terms)
            if over.any():  # only the others go on
                ended, left = live[over], np.flatnonzero(~over)
                result[ended], lowest[ended], converged[ended] = theta[over], value[over], done[over]
                live, rounding, damping = live[left], rounding[left], damping[left]
                theta, value, terms, problem = theta[left], value[left], terms[left], problem.rows(left)
    result[live], lowest[live] = theta, value
    return result, lowest, converged


def _rounding(problem: Problem, batch: int) -> Array:
    """Objectives [batch] of residuals that are rounding errors."""
    magnitude = 1.0 if problem.log_space else np.abs(problem.target).mean()
    return 1e-30 * magnitude**2 * np.broadcast_to(problem.weights, (batch, problem.target.shape[-1])).sum(axis=1)


def _step(problem: Problem, theta: Array, terms: Array, width: float, damping: Array) -> tuple[Array, Array]:
    """Damped Newton step [batch, P] and its predicted decrease [batch]."""
    gradient, newton, majorant = problem.derivatives(theta, width, terms)
    overflown = _clear_overflow(gradient, newton, majorant)
    blocked = _blocked(problem, theta, gradient)
    # Scaling by the majorant makes the damping free of units; the ridge covers terms that are switched off.
    diagonal = np.sqrt(np.maximum(_diagonal(majorant), 1e-300))
    scale = ~blocked / np.where(blocked | (diagonal <= 1e-140), 1.0, diagonal)
    scaled = majorant * (scale[:, :, None] * scale[:, None, :])
    _diagonal(scaled)[:] += 1e-14 + blocked  # blocked rows are zero in both matrices
    if len(theta) < MANY:
        step, decrease = _turned_step(gradient, newton, scaled, scale, damping)
        return step, np.where(overflown, np.inf, decrease)
    curved = newton * (scale[:, :, None] * scale[:, None, :])
    _diagonal(curved)[:] += blocked
    step, decrease, convex = _convex_step(gradient * scale, curved, scaled, damping)
    step *= scale
    if not convex.all():
        left = np.flatnonzero(~convex)
        step[left], decrease[left] = _turned_step(*(each[left] for each in (gradient, newton, scaled, scale, damping)))
    return step, np.where(overflown, np.inf, decrease)


def _blocked(problem: Problem, theta: Array, gradient: Array) -> NDArray[np.bool_]:
    """Which parameters stay where they are, [batch, P]: those pinned, or at a bound and pulled out of the box."""
    low, high = theta <= problem.lower, theta >= problem.upper
    if problem.fixed is None and not (low | high).any():  # a pinned parameter is at both of its bounds
        return low
    return (low & (gradient >= 0)) | (high & (gradient <= 0)) | ~problem.free


def _clear_overflow(*derivatives: Array) -> NDArray[np.bool_]:
    """Set to 0 the derivatives, each [batch, …], of the rows of which any overflows, and return those rows, [batch].

    No step leads from there, and a predicted decrease of infinity keeps the row from counting as converged.
    """
    if all(math.isfinite(np.vdot(each, each)) for each in derivatives):  # quick, and almost always so
        return np.zeros(len(derivatives[0]), dtype=bool)
    finite = [np.isfinite(each).reshape(len(each), -1).all(axis=1) for each in derivatives]
    overflown = ~np.logical_and.reduce(finite)
    if overflown.any():
        for each in derivatives:
            each[overflown] = 0.0
    return overflown


def _turned_step(gradient: Array, newton: Array, scaled: Array, scale: Array, damping: Array) -> tuple[Array, Array]:
    """The step [batch, P] and its predicted decrease [batch] by eigenvectors, of Newton matrices with any curvature."""
    whiten = scale[:, :, None] * _whitening(scaled)
    curvature, turn = np.linalg.eigh(whiten.swapaxes(1, 2) @ newton @ whiten)
    whiten = whiten @ turn
    along = (gradient[:, None, :] @ whiten)[:, 0]
    # |curvature| turns saddles into descent directions.
    solid = np.abs(curvature) + LEAST_CURVATURE
    step = -(whiten @ (along / (solid + damping[:, None]))[..., None])[..., 0]
    return step, (along**2 / (solid + np.minimum(damping, 1.0)[:, None])).sum(axis=1) / 2


def _convex_step(
    gradient: Array, newton: Array, majorant: Array, damping: Array
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """The same, in scaled coordinates, without eigenvectors; and where it holds, [batch]: for positive curvature."""
    batch, most = len(gradient), float(damping.max())
    dampings = [damping, np.minimum(damping, 1.0)] if most > 1 else [damping]
    matrices = [newton, *(newton + (LEAST_CURVATURE + each)[:, None, None] * majorant for each in dampings)]
    solved, pivots = _eliminated(np.concatenate(matrices), np.concatenate([gradient] * len(matrices)))
    decrease = (gradient * solved[-batch:]).sum(axis=1) / 2
    return -solved[batch : 2 * batch], decrease, pivots[:batch] > LEAST_PIVOT**2


def _eliminated(matrices: Array, right: Array) -> tuple[Array, Array]:
    """Solutions [batch, P] of symmetric systems by elimination of all of them at once, and smallest pivots [batch].

    Numbers of systems whose pivots are not positive mean nothing.
    """
    m, x = np.ascontiguousarray(matrices.transpose(1, 2, 0)), np.ascontiguousarray(right.T)
    size = len(x)
    with np.errstate(all="ignore"):
        for k in range(size - 1):
            ratio = m[k + 1 :, k] / m[k, k]
            m[k + 1 :, k + 1 :] -= ratio[:, None] * m[k, k + 1 :]
            x[k + 1 :] -= ratio * x[k]
        for k in reversed(range(size)):
            x[k] -= (m[k, k + 1 :] * x[k + 1 :]).sum(axis=0)
            x[k] /= m[k, k]
    pivots = m[np.arange(size), np.arange(size)]
    return x.T, np.where(np.isfinite(pivots).all(axis=0), pivots.min(axis=0), -np.inf)


def _diagonal(matrices: Array) -> Array:
    """The diagonals of contiguous matrices [batch, P, P] as a view, [batch, P]."""
    batch, size = matrices.shape[:2]
    return matrices.reshape(batch, size * size)[:, :: size + 1]


def _whitening(matrices: Array) -> Array:
    """W [batch, P, P] with W' M W = 1 for each M of the matrices, which have a unit diagonal."""
    try:
        factors = np.asarray(np.linalg.cholesky(matrices), dtype=np.float64)
        if _diagonal(factors).min() > LEAST_PIVOT:
            return np.asarray(np.linalg.inv(factors).swapaxes(1, 2))
    except np.linalg.LinAlgError:
        pass
    values, axes = np.linalg.eigh(matrices)  # several times as slow, but exact where a matrix is nearly singular
    return np.asarray(axes / np.sqrt(np.maximum(values, 1e-14))[:, None, :])


def polish(problem: Problem, theta: Array, width: float) -> tuple[Array, Array, Array]:
    """Minimise from every row of theta [batch, P]: theta, objective [batch], converged [batch].

    Works in blocks whose arrays stay in the processor's cache, which halves the time of a bootstrap.
    """
    problem = problem.sorted() if len(theta) >= MANY else problem
    rows = max(BLOCK // problem.target.shape[-1], 1)
    if len(theta) <= rows:
        return _polish(problem, theta, width)
    blocks = [np.arange(first, min(first + rows, len(theta))) for first in range(0, len(theta), rows)]
    parts = [_polish(problem.rows(block), theta[block], width) for block in blocks]
    best, value, done = (np.concatenate(part) for part in zip(*parts, strict=True))
    return best, value, done


def _polish(problem: Problem, theta: Array, width: float) -> tuple[Array, Array, Array]:
    """Start with wide Huber corners and narrow them down to `width`."""
    corner = float(np.quantile(np.abs(problem.residuals(theta)), 0.9))
    while corner > width:
        theta = descend(problem, theta, corner, 1e-3, 12)[0]
        corner /= 10
    return descend(problem, theta, width, 1e-13, 300)


def minimise(problem: Problem, width: float) -> tuple[Array, Array, bool]:
    """Best theta [P], the objective of every start, and whether the best one converged.

    With many rows, starts are compared on a sample, and only the best continues on all rows.
    """
    sample = in_order(thinned(problem, ROWS))
    theta, value, done = polish(sample, starts(sample), width)
    best = int(value.argmin())
    if len(problem.target) <= ROWS:
        return theta[best], value, bool(done[best])
    theta, last, done = polish(problem, move(theta[best : best + 1], sample, problem), width)
    return theta[0], value * (last[0] / value[best]), bool(done[0])
