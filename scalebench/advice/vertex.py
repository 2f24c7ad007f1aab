"""The optimum of a sweep: the minimum of a quadratic of loss in the logarithms of one swept column or of several.

Around the best run the loss is loss* + 1/2 (z - z*)' H (z - z*), where z has the logarithms of the swept columns. The
optimum of one of them moves with the others wherever H has off-diagonal terms, so columns that are swept together have
one joint optimum; at any fixed value of the others a column has another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalebench.laws.forms import Array, FitRefused


class AtEdge(FitRefused):
    """The optimum of the swept column number `column` lies beyond `limit`, in logs: above (`side` 1) or below (-1).

    The limit is half way between the value at the edge and the next: an optimum beyond it has its lowest loss at the
    edge, without noise, and one before it has not.
    """

    def __init__(self, message: str, column: int, side: int, limit: float) -> None:
        super().__init__(message)
        self.column, self.side, self.limit = column, side, limit

    @property
    def beyond(self) -> str:
        """The limit in words."""
        return f"{'above' if self.side > 0 else 'below'} {np.exp(self.limit):.3g}"


CLOSE = np.log(3.0)  # about the best value, in ln x: as far as two neighbours of a sweep in steps of 1.73 reach
# Combinations of a sample for each coefficient of the quadratic: those fitted, which are nearest to the best, and those
# that there have to be, so that some are near.
SCATTERED, FEWEST_SCATTERED = 2, 2.5


@dataclass(frozen=True)
class Optimum:
    """The best value of one swept column: where the quadratic through the losses about it has its minimum.

    `curvature` is the second derivative of loss in ln x there, with other swept columns at their optimum. `gain` is the
    standard error of ln x* per unit of noise in the loss (delta method); `residual_squares` over `degrees_of_freedom`
    estimates the variance of that noise. `skew` is ln x of the minimum of a cubic through the same points, less ln x*:
    how far losses that rise faster on one side pull the vertex of the parabola; 0 where no cubic is determined.
    """

    x: float
    loss: float
    curvature: float
    gain: float
    residual_squares: float
    degrees_of_freedom: int
    n_points: int
    skew: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def joint_optimum(
    x: ArrayLike, loss: ArrayLike, names: Sequence[str], neighbours: int | None = 2
) -> tuple[Optimum, ...]:
    """The optimum of each swept column, x [n, k] with k `names`, at the joint minimum of loss [n].

    Uses `neighbours` values of each column on each side of the best and all within a factor of 3 of it, since a few of
    many values that lie close together show noise and no curvature; all if None. Repeats count separately. Of columns
    that were sampled together, which form no grid, it uses the combinations nearest to the best (`SCATTERED`).
    Raises FitRefused with fewer than three values of a column, points that do not determine the quadratic, or a minimum
    outside the values fitted; AtEdge if the best value or the minimum is at an edge of the values swept, or beyond.
    """
    log, values = np.log(np.asarray(x, dtype=np.float64)), np.asarray(loss, dtype=np.float64)
    axes = [np.unique(column, return_inverse=True) for column in log.T]
    for name, (grid, _) in zip(names, axes, strict=True):
        if len(grid) < 3:
            few = "1 value" if len(grid) == 1 else f"{len(grid)} values"
            raise FitRefused(f"{few} of {name} for a parabola; it needs at least 3: sweep more values")
    member = np.stack([of_axis.reshape(-1) for _, of_axis in axes], axis=1)
    cells, cell = np.unique(member, axis=0, return_inverse=True)
    best = cells[(np.bincount(cell.reshape(-1), values) / np.bincount(cell.reshape(-1))).argmin()]
    grids = [grid for grid, _ in axes]
    if 2 * len(cells) < math.prod(map(len, grids)):  # the lowest loss may be at the end of a column by chance
        near = _nearest(cells, best, grids, neighbours)[cell.reshape(-1)]
        optima = _minimum(log[near], values[near], names, grids)
        _check_enough(len(cells), names)
        return optima
    for column, (name, place) in enumerate(zip(names, best, strict=True)):
        _check_inside(name, column, int(place), grids[column])
    reach = len(values) if neighbours is None else neighbours
    at_best = [grid[place] for grid, place in zip(grids, best, strict=True)]
    near = ((np.abs(member - best) <= reach) | (np.abs(log - at_best) <= CLOSE)).all(axis=1)
    return _minimum(log[near], values[near], names, grids)


def _nearest(
    cells: NDArray[np.intp], best: NDArray[np.intp], grids: Sequence[Array], neighbours: int | None
) -> NDArray[np.bool_]:
    """Which combinations of values, [cells], are nearest to the best; all if `neighbours` is None.

    Distances are in logs, relative to the range of each column.
    """
    logs = np.stack([(grid / np.ptp(grid))[places] for grid, places in zip(grids, cells.T, strict=True)], axis=1)
    distances = ((logs - logs[(cells == best).all(axis=1)]) ** 2).sum(axis=1)
    enough = len(cells) if neighbours is None else SCATTERED * _coefficients(len(grids))
    return np.asarray(distances <= np.sort(distances)[:enough][-1])


def _check_enough(combinations: int, names: Sequence[str]) -> None:
    fewest = math.ceil(FEWEST_SCATTERED * _coefficients(len(names)))
    if combinations < fewest:
        raise FitRefused(
            f"{combinations} combinations of {' and '.join(names)} that form no grid; a quadratic in them needs "
            f"{fewest}: sample more points"
        )


def _coefficients(k: int) -> int:
    """How many a quadratic in k variables has."""
    return 1 + k + len(_pairs(k))


def _check_inside(name: str, column: int, place: int, grid: Array) -> None:
    if place not in (0, len(grid) - 1):
        return
    side, where = ("below", "lowest") if place == 0 else ("above", "highest")
    raise _at_edge(
        f"the lowest loss is at the {where} of {len(grid)} values, {name} = {np.exp(grid[place]):.4g}; "
        f"an optimum needs higher losses on both sides: add values {side}",
        column,
        grid,
        above=place > 0,
    )


def _at_edge(message: str, column: int, grid: Array, *, above: bool) -> AtEdge:
    edge = grid[-2:] if above else grid[:2]
    return AtEdge(message, column, 1 if above else -1, float(edge.mean()))


def _pairs(k: int) -> list[tuple[int, int]]:
    return list(combinations_with_replacement(range(k), 2))


def _minimum(log: Array, loss: Array, names: Sequence[str], grids: Sequence[Array]) -> tuple[Optimum, ...]:
    """Least-squares quadratic and its minimum. Raises FitRefused unless that is inside the sampled range."""
    centre = log.mean(axis=0)
    z = log - centre
    products = [z[:, i] * z[:, j] for i, j in _pairs(len(names))]
    design = np.column_stack([np.ones(len(z)), z, *products])
    coefficients, _, rank, _ = np.linalg.lstsq(design, loss, rcond=None)
    if rank < design.shape[1]:
        raise FitRefused(
            f"{len(z)} runs about the best do not determine a quadratic in {' and '.join(names)} "
            f"({design.shape[1]} coefficients): combine each value of one with several of the other"
        )
    slope, hessian = coefficients[1 : len(names) + 1], _hessian(coefficients[len(names) + 1 :], len(names))
    lowest = float(np.linalg.eigvalsh(hessian).min())
    if lowest <= 0:
        curve = "parabola" if len(names) == 1 else f"quadratic in {' and '.join(names)}"
        raise FitRefused(
            f"the {curve} through {len(z)} points bends down (curvature {lowest:.3g}); a minimum needs it to "
            "bend up: sweep a wider range or repeat runs"
        )
    vertex = -np.linalg.solve(hessian, slope)
    for i, name in enumerate(names):
        _check_vertex(name, i, float(centre[i] + vertex[i]), log[:, i], grids[i])
    jacobian = np.column_stack(list(_derivatives(hessian, vertex)))
    covariance = jacobian @ np.linalg.inv(design.T @ design) @ jacobian.T
    residual_squares = float(((design @ coefficients - loss) ** 2).sum())
    return tuple(
        Optimum(
            x=float(np.exp(centre[i] + vertex[i])),
            loss=float(coefficients[0] + slope @ vertex / 2),
            curvature=float(hessian[i, i]),
            gain=float(np.sqrt(covariance[i, i])),
            residual_squares=residual_squares,
            degrees_of_freedom=len(z) - design.shape[1],
            n_points=len(z),
            skew=_skew(z[:, 0], loss, float(vertex[0])) if len(names) == 1 else 0.0,
        )
        for i in range(len(names))
    )


def _check_vertex(name: str, column: int, vertex: float, fitted: Array, grid: Array) -> None:
    """Refuse a minimum outside the values fitted: at the edge, if these are the outermost of the values swept."""
    low, high = fitted.min(), fitted.max()
    if low < vertex < high:
        return
    message = (
        f"the vertex {name} = {np.exp(vertex):.4g} lies outside the values fitted, {np.exp(low):.4g} to "
        f"{np.exp(high):.4g}; an optimum needs values on both sides: widen the sweep"
    )
    above = vertex >= high
    if (above and high == grid[-1]) or (not above and low == grid[0]):
        raise _at_edge(message, column, grid, above=above)
    raise FitRefused(message)


def _skew(z: Array, loss: Array, vertex: float) -> float:
    """Minimum of the least-squares cubic inside the sampled range, the nearest to `vertex`, less it; 0 without one."""
    if len(np.unique(z)) < 4:
        return 0.0
    cubic = np.polynomial.Polynomial.fit(z, loss, 3).convert()
    flat = np.asarray(cubic.deriv().roots())
    real = flat.real[np.isreal(flat)]
    inside = real[(cubic.deriv(2)(real) > 0) & (z.min() < real) & (real < z.max())]
    return float(inside[np.abs(inside - vertex).argmin()] - vertex) if len(inside) else 0.0


def _hessian(products: Array, k: int) -> Array:
    """Second derivatives [k, k] from the coefficients of the products of the columns."""
    hessian = np.zeros((k, k))
    for (i, j), coefficient in zip(_pairs(k), products, strict=True):
        hessian[i, j] += coefficient
        hessian[j, i] += coefficient
    return hessian


def _derivatives(hessian: Array, vertex: Array) -> Iterator[Array]:
    """Derivative [k] of the minimum by each coefficient: constant, slopes, products (of H z* = -slope)."""
    inverse, unit = np.linalg.inv(hessian), np.eye(len(vertex))
    yield np.zeros(len(vertex))
    for direction in unit:
        yield -inverse @ direction
    for i, j in _pairs(len(vertex)):
        yield -inverse @ (unit[i] * vertex[j] + unit[j] * vertex[i])
