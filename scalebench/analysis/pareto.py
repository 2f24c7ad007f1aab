"""The Pareto front: the trials or sizes that nothing beats in both cost and loss."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def pareto_front(cost: ArrayLike, loss: ArrayLike) -> NDArray[np.intp]:
    """Return the indices of the points (n,) with no other of lower cost and lower loss, cheapest first.

    Points whose cost or loss was not measured are not on it, and hide no others.
    """
    costs, losses = (np.asarray(values, dtype=float) for values in (cost, loss))
    known = np.flatnonzero(np.isfinite(costs) & np.isfinite(losses))
    order = known[np.lexsort((losses[known], costs[known]))]
    best = np.minimum.accumulate(np.concatenate([[np.inf], losses[order][:-1]]))
    return np.asarray(order[losses[order] < best])
