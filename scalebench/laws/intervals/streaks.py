"""Streaks of residuals: neighbours on one side of the law mean another shape, or rows that are not independent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import Array
from scalebench.laws.intervals.noise import group, tangent

DRAWS = 1000  # studies simulated to find how often independent noise has such streaks
MOST_SIMULATED = 1000  # configurations; of more, the ratio is normal
ROUNDING = 1e-9  # residuals below this, in the space of the fit, are rounding errors


@dataclass(frozen=True)
class Streaks:
    """`ratio` is the mean square difference of neighbours' residuals over their mean square, about 2 for independent
    ones (von Neumann 1941); `p_value` is how often independent normal noise about the same law has one as low."""

    ratio: float
    p_value: float

    @property
    def flagged(self) -> bool:
        """Whether independent noise is rejected at 1 %."""
        return self.p_value < 0.01


def streaks(fit: Estimate) -> Streaks | None:
    """Test the residuals of configurations with neighbours, which differ in one input only and lie next to each other.

    The noise is projected off the law's tangent plane, as the residuals are: residuals of a fit alternate more than
    noise does. None if there are fewer than three pairs of neighbours more than parameters, or no residuals.
    """
    groups, pairs = group(fit), _neighbours(fit)
    place = fit.points.place[np.unique(groups.run, return_index=True)[1]]
    residuals = _by_place(groups.by_run(fit.least_squares_residuals()), place)
    if len(pairs) < int(fit.problem.free.sum()) + 3 or np.sqrt((residuals**2).mean()) < ROUNDING:
        return None
    ratio = float(_ratio(residuals, pairs))
    if len(residuals) > MOST_SIMULATED:
        from scipy.special import ndtr  # lazily: slow to import

        return Streaks(ratio, float(ndtr((ratio - 2) * np.sqrt(len(pairs)) / 2)))
    basis, root = tangent(fit, groups), np.sqrt(groups.weights)
    noise = np.random.default_rng(0).standard_normal((DRAWS, len(residuals)))[:, place] * root
    left = (noise - (noise @ basis) @ basis.T) / root
    drawn = _ratio(_by_place(left, place), pairs)
    return Streaks(ratio, float(np.mean(drawn <= ratio)))


def _by_place(values: Array, place: NDArray[np.intp]) -> Array:
    """Means over runs of equal inputs, [..., places], of values [..., runs]."""
    order = np.argsort(place, kind="stable")
    first = np.searchsorted(place[order], np.arange(place.max() + 1))
    return np.asarray(np.add.reduceat(np.take(values, order, axis=-1), first, axis=-1) / np.bincount(place))


def _ratio(residuals: Array, pairs: NDArray[np.intp]) -> Array:
    difference = residuals[..., pairs[:, 0]] - residuals[..., pairs[:, 1]]
    return np.asarray((difference**2).mean(axis=-1) / (residuals**2).mean(axis=-1))


def _neighbours(fit: Estimate) -> NDArray[np.intp]:
    """Places next to each other along one input where all others are equal, [pairs, 2]."""
    first = np.unique(fit.points.place, return_index=True)[1]
    inputs = np.stack([log[first] for log in fit.points.logs.values()], axis=1)
    pairs = []
    for k in range(inputs.shape[1]):
        line = np.unique(np.delete(inputs, k, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        if inputs.shape[1] == 1:
            line = np.zeros(len(inputs), dtype=np.intp)
        order = np.lexsort((inputs[:, k], line))
        same = line[order][1:] == line[order][:-1]
        pairs.append(np.stack([order[:-1][same], order[1:][same]], axis=1))
    return np.concatenate(pairs)
