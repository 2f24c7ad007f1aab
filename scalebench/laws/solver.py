"""Minimise the loss of a law: variable projection for starts, then a damped Newton polish of all starts at once.

Objective: the SUM over points of w * rho(r), with r = log(prediction / measured) (prediction - measured in raw space)
and rho(r) = r^2/2 for |r| <= delta, else delta * (|r| - delta/2). A mean instead of a sum meets default tolerances long
before the optimum. Terms are centred (scaled to geometric mean 1 over the points), which takes the correlation between
a coefficient and its exponent out of the problem. Everything is batched over starts or bootstrap replicates.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array, Law

COMPLEX_STEP = 1e-30
GRID_POINTS = {0: 1, 1: 64, 2: 32, 3: 12}  # per exponent, by number of exponents
STARTS = 8
GRID_ROWS = 1000  # a grid search needs no more rows than this


@dataclass(frozen=True)
class Problem:
    """Targets and bounds for the inner coordinates theta = (centred coefficients, exponents), P in all.

    `target` and `weights` are [n] or, one row per replicate, [batch, n]; `lower` and `upper` are [P], equal where
    pinned.
    """

    law: Law
    logs: dict[str, Array]
    target: Array
    weights: Array
    lower: Array
    upper: Array
    log_space: bool

    @property
    def free(self) -> NDArray[np.bool_]:
        """Which of the P parameters are not pinned, [P]."""
        return self.lower < self.upper

    def split(self, theta: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Coefficients [batch, m] and exponents [batch, k]."""
        m = len(self.law.coefficients)
        return theta[:, :m], theta[:, m:]

    def centres(self, exponents: NDArray[Any]) -> NDArray[Any]:
        """Mean log of each term over the points, [batch, m]; 0 for pinned coefficients, which keep their own scale."""
        m = len(self.law.coefficients)
        return np.where(self.free[:m], self.law.terms(self.logs, exponents).mean(axis=2), 0.0)

    def centred_terms(self, exponents: NDArray[Any]) -> NDArray[Any]:
        """Log of each centred term, [batch, m, n]."""
        terms = self.law.terms(self.logs, exponents)
        m = len(self.law.coefficients)
        return terms - np.where(self.free[:m, None], terms.mean(axis=2, keepdims=True), 0.0)

    def residuals(self, theta: Array) -> Array:
        """Prediction minus target in the space of the fit, [batch, n]."""
        coefficients, exponents = self.split(theta)
        prediction = np.einsum("bm,bmn->bn", coefficients, np.exp(self.centred_terms(exponents)))
        # All coefficients at zero is a corner of the box, not a prediction.
        return np.asarray((np.log(np.maximum(prediction, 1e-300)) if self.log_space else prediction) - self.target)

    def value(self, theta: Array, width: float) -> Array:
        """Weighted sum of Huber losses, [batch]."""
        return np.asarray((self.weights * huber(self.residuals(theta), width)[0]).sum(axis=-1))

    def derivatives(self, theta: Array, width: float) -> tuple[Array, Array, Array]:
        """Gradient [batch, P], Newton matrix and its positive majorant (reweighted least squares), [batch, P, P].

        Exact up to second derivatives of log terms by the exponents, which vanish for sums of powers.
        """
        coefficients, exponents = self.split(theta)
        basis = np.exp(self.centred_terms(exponents))
        bent = [self._slope(exponents, k) * basis for k in range(exponents.shape[1])]  # d basis / d exponent, [b, m, n]
        slopes = [np.einsum("bm,bmn->bn", coefficients, b)[:, None] for b in bent]
        jacobian = np.concatenate([basis, *slopes], axis=1)
        prediction = np.einsum("bm,bmn->bn", coefficients, basis)
        scale = np.maximum(prediction, 1e-300) if self.log_space else np.ones_like(prediction)
        residuals = (np.log(scale) if self.log_space else prediction) - self.target
        _, psi, inside, irls = huber(residuals, width)
        psi, inside, irls = self.weights * psi, self.weights * inside, self.weights * irls
        bending = self._bending(coefficients, basis, bent, psi / scale)
        jacobian = jacobian / scale[:, None]
        transposed = jacobian.swapaxes(1, 2)
        # d2 log f = d2 f / f - (d log f)^2
        curved = (jacobian * (inside - psi * self.log_space)[:, None]) @ transposed + bending
        return (jacobian @ psi[..., None])[..., 0], curved, (jacobian * irls[:, None]) @ transposed

    def _slope(self, exponents: Array, k: int) -> Array:
        """Derivative of the centred log terms by exponent k, by the complex step: exact to machine precision."""
        step = exponents.astype(np.complex128)
        step[:, k] += 1j * COMPLEX_STEP
        return np.asarray(self.centred_terms(step).imag / COMPLEX_STEP)

    def _bending(self, coefficients: Array, basis: Array, bent: list[Array], pull: Array) -> Array:
        """Sum over points of pull * second derivative of the prediction, [batch, P, P]."""
        m, batch = coefficients.shape[1], len(coefficients)
        total = np.zeros((batch, m + len(bent), m + len(bent)))
        for k, first in enumerate(bent):
            total[:, :m, m + k] = total[:, m + k, :m] = (first @ pull[..., None])[..., 0]
            for j, second in enumerate(bent[: k + 1]):
                both = np.einsum("bm,bmn->bn", coefficients, first * second / np.maximum(basis, 1e-300))
                total[:, m + k, m + j] = total[:, m + j, m + k] = (both * pull).sum(axis=1)
        return total

    def rows(self, index: NDArray[np.intp]) -> Problem:
        """The same problem for some replicates of the batch."""
        pick = {name: value[index] for name in ("target", "weights") if (value := getattr(self, name)).ndim == 2}
        return replace(self, **pick) if pick else self

    def parameters(self, theta: Array) -> dict[str, Array]:
        """Parameters by name in the law's own units, each [batch]."""
        coefficients, exponents = self.split(theta)
        natural = np.concatenate([coefficients * np.exp(-self.centres(exponents)), exponents], axis=1)
        return dict(zip(self.law.parameters, natural.T, strict=True))


def huber(residuals: Array, width: float) -> tuple[Array, Array, Array, Array]:
    """Huber loss, its slope, its curvature, and slope / residual (the reweighting), each shaped as `residuals`."""
    size = np.abs(residuals)
    near = np.minimum(size, width)
    weight = np.divide(near, size, out=np.ones_like(size), where=size > 0)
    return near * (size - near / 2), weight * residuals, (size <= width).astype(np.float64), weight


def starts(problem: Problem) -> Array:
    """Variable projection: non-negative least squares for the coefficients on a grid of exponents, [starts, P].

    The best grid point of each block of the grid, best blocks first, so that starts differ.
    """
    m, law = len(problem.law.coefficients), problem.law
    points, blocks = GRID_POINTS.get(len(law.exponents), 6), 8 if len(law.exponents) == 1 else 4
    bounds = zip(problem.lower[m:], problem.upper[m:], strict=True)
    axes = [np.geomspace(low, high, points) if low < high else np.array([low]) for low, high in bounds]
    grid = np.array(list(itertools.product(*axes))).reshape(math.prod(map(len, axes)), len(axes))
    block = np.array(list(itertools.product(*(np.arange(len(axis)) * blocks // points for axis in axes))))
    thin = _thinned(problem)
    coefficients, squares = _project(thin, grid)
    order = np.argsort(squares, kind="stable")
    first = np.unique(block.reshape(len(grid), -1)[order], axis=0, return_index=True)[1] if axes else np.array([0])
    chosen = order[np.sort(first)[:STARTS]]
    moved = np.exp(problem.centres(grid[chosen]) - thin.centres(grid[chosen]))
    return np.concatenate([coefficients[chosen] * moved, grid[chosen]], axis=1)


def _thinned(problem: Problem) -> Problem:
    """The same problem on at most GRID_ROWS rows, evenly spaced in the order of the inputs."""
    n = len(problem.target)
    if n <= GRID_ROWS:
        return problem
    # Ties broken by the target, so that the order in which points are given does not matter.
    order = np.lexsort((problem.target, *problem.logs.values()))
    rows = order[np.linspace(0, n - 1, GRID_ROWS).astype(np.intp)]
    logs = {name: log[rows] for name, log in problem.logs.items()}
    return replace(problem, logs=logs, target=problem.target[rows], weights=problem.weights[rows])


def _project(problem: Problem, grid: Array) -> tuple[Array, Array]:
    """Best coefficients >= 0 for each grid point, [grid, m], and their squares, [grid], by trying every support."""
    basis = np.exp(problem.centred_terms(grid))
    m = basis.shape[1]
    measured = np.exp(problem.target) if problem.log_space else problem.target
    # Squares of relative errors stand in for squares of log errors.
    root = np.sqrt(problem.weights) / (measured if problem.log_space else 1.0)
    free = problem.free[:m]
    basis, pinned = basis * root, np.where(free, 0.0, problem.lower[:m])
    left = measured * root - np.einsum("m,gmn->gn", pinned, basis)
    gram, slope = basis @ basis.swapaxes(1, 2), (basis @ left[..., None])[..., 0]
    best, squares = np.tile(pinned, (len(grid), 1)), (left**2).sum(axis=1)
    for size in range(1, int(free.sum()) + 1):
        for support in itertools.combinations(np.flatnonzero(free), size):
            block = gram[:, support][:, :, support]
            ridge = 1e-13 * np.trace(block, axis1=1, axis2=2)[:, None, None] * np.eye(size)
            solved = np.linalg.solve(block + ridge, slope[:, support, None])[..., 0]
            gain = (solved * slope[:, support]).sum(axis=1)  # squares removed by these terms
            better = (solved >= 0).all(axis=1) & ((left**2).sum(axis=1) - gain < squares)
            squares = np.where(better, (left**2).sum(axis=1) - gain, squares)
            filled = np.tile(pinned, (len(grid), 1))
            filled[:, support] = solved
            best = np.where(better[:, None], filled, best)
    # Off the corners of the box: an exponent whose coefficient is 0 has no slope to follow.
    inside = np.maximum(best, 1e-3 * np.median(measured))
    return np.where(free, np.clip(inside, problem.lower[:m], problem.upper[:m]), pinned), squares


def descend(problem: Problem, theta: Array, width: float, tolerance: float, steps: int) -> tuple[Array, Array, Array]:
    """Minimise from each row of theta [batch, P] inside the box: theta, objective [batch], converged [batch].

    Newton steps, damped in the metric of reweighted least squares: damping 1 is about one reweighting, 0 is Newton.
    Converged when the decrease still promised is below `tolerance` times the objective.
    """
    theta, value = theta.copy(), problem.value(theta, width)
    damping, done = np.full(len(theta), 1e-2), np.zeros(len(theta), dtype=bool)
    magnitude = 1.0 if problem.log_space else np.abs(problem.target).mean()
    rounding = (
        1e-30 * magnitude**2 * np.broadcast_to(problem.weights, (len(theta), problem.target.shape[-1])).sum(axis=1)
    )
    stalled = np.zeros(len(theta), dtype=bool)
    for _ in range(steps):
        live = np.flatnonzero(~(done | stalled))
        if not live.size:
            break
        part = problem.rows(live)
        step, promise = _step(part, theta[live], width, damping[live])
        trial = np.clip(theta[live] + step, problem.lower, problem.upper)
        trial_value = part.value(trial, width)
        better = trial_value < value[live]
        done[live] = promise <= tolerance * value[live] + rounding[live]
        stalled[live] = (damping[live] > 1e10) & ~better
        theta[live] = np.where(better[:, None], trial, theta[live])
        value[live] = np.where(better, trial_value, value[live])
        damping[live] = np.where(better, np.maximum(damping[live] / 8, 1e-12), damping[live] * 6)
    return theta, value, done


def _step(problem: Problem, theta: Array, width: float, damping: Array) -> tuple[Array, Array]:
    """Damped Newton step [batch, P] and the decrease that it promises [batch]."""
    gradient, newton, majorant = problem.derivatives(theta, width)
    blocked = (
        ((theta <= problem.lower) & (gradient >= 0)) | ((theta >= problem.upper) & (gradient <= 0)) | ~problem.free
    )
    keep = ~(blocked[:, :, None] | blocked[:, None, :])
    gradient, newton, majorant = np.where(blocked, 0.0, gradient), newton * keep, majorant * keep
    # Whitening by the majorant makes the damping free of units; the ridge covers terms that are switched off.
    diagonal = np.sqrt(np.maximum(np.einsum("bpp->bp", majorant), 1e-300))
    diagonal = np.where(blocked | (diagonal <= 1e-140), 1.0, diagonal)
    scaled = majorant / diagonal[:, :, None] / diagonal[:, None, :] + 1e-14 * np.eye(theta.shape[1])
    inner, axes = np.linalg.eigh(scaled)
    whiten = axes / np.sqrt(np.maximum(inner, 1e-14))[:, None, :] / diagonal[:, :, None]
    curvature, turn = np.linalg.eigh(whiten.swapaxes(1, 2) @ newton @ whiten)
    whiten = whiten @ turn
    along = (gradient[:, None, :] @ whiten)[:, 0]
    # |curvature| turns saddles into descent directions.
    solid = np.abs(curvature) + 1e-12
    step = -(whiten @ (along / (solid + damping[:, None]))[..., None])[..., 0]
    return step, (along**2 / (solid + np.minimum(damping, 1.0)[:, None])).sum(axis=1) / 2


def polish(problem: Problem, theta: Array, width: float) -> tuple[Array, Array, Array]:
    """Minimise from every row of theta, first with wide Huber corners, then ever narrower ones down to `width`."""
    corner = float(np.quantile(np.abs(problem.residuals(theta)), 0.9))
    while corner > width:
        theta = descend(problem, theta, corner, 1e-3, 12)[0]
        corner /= 10
    return descend(problem, theta, width, 1e-13, 300)
