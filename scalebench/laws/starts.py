"""Where the minimisation of a law's loss starts: variable projection on a grid of exponents."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array
from scalebench.laws.problem import Problem

# By number of exponents: grid points per exponent.
GRID_POINTS = {0: 1, 1: 64, 2: 32, 3: 12, 4: 7, 5: 5, 8: 2}
STARTS = 8
STARTS_MANY = 24  # with three exponents or more there are several local minima, with eight many
STARTS_MOST = 48  # as fast as 24: from 32 on, steps need no eigenvectors
GRID_ROWS = 1000
GRID_ROWS_MANY = 250
TIE = 1e-9  # relative difference of squares up to which two grid points are as good


def starts(problem: Problem) -> Array:
    """Variable projection: non-negative least squares for the coefficients on a grid of exponents, [starts, P].

    Takes the best grid point of each block of the grid, best blocks first, so that starts differ.
    """
    m, law = len(problem.law.coefficients), problem.law
    points, blocks = GRID_POINTS.get(len(law.exponents), 4), 8 if len(law.exponents) == 1 else 4
    bounds = zip(problem.lower[m:], problem.upper[m:], strict=True)
    axes = [_axis(low, high, points) for low, high in bounds]
    grid = _product(axes)
    block = _product([np.arange(len(axis)) * blocks // points for axis in axes]) @ blocks ** np.arange(len(axes))
    thin = thinned(problem, GRID_ROWS if len(axes) < 3 else GRID_ROWS_MANY)
    with np.errstate(over="ignore", invalid="ignore"):  # grid points far from the data, which come last
        coefficients, squares = _project(thin, grid)
    order, tied = _ranked(squares)
    first = np.unique(block[order], return_index=True)[1]
    first = np.sort(first[np.unique(tied[first], return_index=True)[1]])
    most = STARTS if len(axes) < 3 else STARTS_MANY if len(axes) < 8 else STARTS_MOST
    chosen = order[first[:most]]
    return move(np.concatenate([coefficients[chosen], grid[chosen]], axis=1), thin, problem)


def _ranked(squares: Array) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Grid points by their squares [grid], lowest first, and ids 0, 1, … of those that tie, [grid].

    Squares that differ by rounding alone tie, and such points are in the order of the grid: where a factor of the law
    is 1 to rounding, or a term next to nothing, all values of its exponent give the same.
    """
    order = np.argsort(squares, kind="stable")
    ascending = squares[order]
    apart = ~(ascending[1:] <= ascending[:-1] * (1 + TIE))  # also what is not a number
    tied = np.concatenate([[0], np.cumsum(apart)])
    return order[np.lexsort((order, tied))], tied


def _product(axes: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Every combination of one value of each axis, the last varying fastest, [combinations, axes]."""
    meshes = np.meshgrid(*axes, indexing="ij")
    return np.stack(meshes, axis=-1).reshape(-1, len(axes)) if axes else np.zeros((1, 0), dtype=np.intp)


def _axis(low: float, high: float, points: int) -> Array:
    """Grid of one exponent: even in its log if positive, a single point if pinned."""
    if low >= high:
        return np.array([low])
    return np.geomspace(low, high, points) if low > 0 else np.linspace(low, high, points)


def thinned(problem: Problem, rows: int) -> Problem:
    """The same problem on at most `rows` rows, evenly spaced in the order of the inputs."""
    n = len(problem.target)
    if n <= rows:
        return problem
    # Ties are broken by the target, so that the order of the points does not matter.
    order = np.lexsort((problem.target, *problem.logs.values()))
    return _taken(problem, order[np.linspace(0, n - 1, rows).astype(np.intp)])


def in_order(problem: Problem) -> Problem:
    """The same problem, its rows in the order of the inputs, the first one before all, then of target and weight.

    In another order sums differ by rounding, which where the loss is flat can become the whole difference between two
    fits of the same points.
    """
    order = np.lexsort((problem.weights, problem.target, *reversed(problem.logs.values())))
    return problem if (order[1:] > order[:-1]).all() else _taken(problem, order)


def _taken(problem: Problem, rows: NDArray[np.intp]) -> Problem:
    logs = {name: log[rows] for name, log in problem.logs.items()}
    return replace(problem, logs=logs, target=problem.target[rows], weights=problem.weights[rows])


def move(theta: Array, source: Problem, target: Problem) -> Array:
    """Coordinates [batch, P] of one problem as those of the same law centred on other rows."""
    coefficients, exponents = source.split(theta)
    moved = np.exp(target.centres(exponents) - source.centres(exponents))
    return np.concatenate([coefficients * moved, exponents], axis=1)


def _project(problem: Problem, grid: Array) -> tuple[Array, Array]:
    """Best coefficients >= 0 for each grid point, [grid, m], and their squares, [grid], by trying every support."""
    basis = problem.places.spread(problem.basis(grid))
    m = basis.shape[1]
    measured = np.exp(problem.target) if problem.log_space else problem.target
    # Squares of relative errors stand in for squares of log errors.
    root = np.sqrt(problem.weights) / (measured if problem.log_space else 1.0)
    free = problem.free[:m]
    basis, pinned = basis * root, np.where(free, 0.0, problem.lower[:m])
    left = measured * root - np.einsum("m,gmn->gn", pinned, basis)
    gram, slope = basis @ basis.swapaxes(1, 2), (basis @ left[..., None])[..., 0]
    everything = (left**2).sum(axis=1)
    best, squares = np.tile(pinned, (len(grid), 1)), everything.copy()
    for size in range(1, int(free.sum()) + 1):
        for support in itertools.combinations(np.flatnonzero(free), size):
            solved = _solved(gram[:, support][:, :, support], slope[:, support])
            remaining = everything - (solved * slope[:, support]).sum(axis=1)  # without what these terms remove
            better = np.flatnonzero((solved >= 0).all(axis=1) & (remaining < squares))
            squares[better], best[better] = remaining[better], pinned
            best[better[:, None], support] = solved[better]
    # Keep coefficients off 0, where the exponent of the term has no gradient.
    inside = np.maximum(best, 1e-3 * np.median(measured))
    return np.where(free, np.clip(inside, problem.lower[:m], problem.upper[:m]), pinned), squares


def _solved(matrices: Array, right: Array) -> Array:
    """Solutions [batch, m] of non-negative definite systems, which may be singular."""
    if matrices.shape[1] == 1:
        return right / (matrices[..., 0] + 1e-13 * matrices[..., 0])
    ridge = 1e-13 * np.trace(matrices, axis1=1, axis2=2)[:, None, None] * np.eye(matrices.shape[1])
    return np.asarray(np.linalg.solve(matrices + ridge, right[..., None])[..., 0])
