"""Which candidates to run together within a budget: greedy starts, each improved by exchanges, the best of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array

Rows = tuple[int, ...]
PER_FLOP = (1.0, 0.5, 0.0)  # exponents: gain per FLOP, gain alone, and between the two
MANY = 100  # trials at most, where more than a handful are counted up
BETTER = 1e-9  # relative, below which an exchange is rounding


class Prediction(Protocol):
    """What candidates do to a prediction: its variance with some of them, and its fall by each further one, [n]."""

    def variance(self, rows: Rows) -> float:
        """Variance of the prediction with the candidates `rows`."""

    def inverse(self, rows: Rows) -> Array:
        """Covariance of the parameters with the candidates `rows`."""

    def gains(self, inverse: Array) -> Array:
        """Fall of the variance by each candidate alone, [n]."""


def best_rows(prediction: Prediction, flops: Array, budget: float, most: int | None) -> Rows:
    """The rows, at most `most`, that leave the least variance within a budget, by several greedy starts and exchanges.

    `flops` [n] are positive, and some are within the budget.
    """
    searches = [_Search(prediction, flops, budget, most or len(flops), per) for per in PER_FLOP]
    starts = [(search, search.fill((), search.open)) for search in searches]
    if most is not None:  # those of an even share of what is left, too: the likely shape of a handful
        starts.append((searches[-1], searches[-1].fill((), searches[-1].open_share)))
    return min((search.exchange(rows) for search, rows in starts if rows), key=prediction.variance)


def many_rows(prediction: Prediction, flops: Array, budget: float) -> Rows:
    """Rows that leave little variance within a budget, up to 100 and without exchanges: quick, and near the best."""
    searches = [_Search(prediction, flops, budget, MANY, per) for per in PER_FLOP]
    return min((search.fill((), search.open) for search in searches), key=prediction.variance)


@dataclass(frozen=True, eq=False)
class _Search:
    """One way to choose: gain over FLOPs ** `per`, of candidates of cost `flops` [n]."""

    prediction: Prediction
    flops: Array
    budget: float
    most: int
    per: float

    def open(self, rows: Rows) -> NDArray[np.bool_]:
        """Which candidates can be added, [n]."""
        return self._within(rows, self.budget - self.flops[list(rows)].sum())

    def open_share(self, rows: Rows) -> NDArray[np.bool_]:
        """Those of them that leave as much for each further one, [n]."""
        left = self.budget - self.flops[list(rows)].sum()
        return self._within(rows, left / max(self.most - len(rows), 1))

    def _within(self, rows: Rows, limit: float) -> NDArray[np.bool_]:
        affordable: NDArray[np.bool_] = (self.flops <= limit) & (len(rows) < self.most)
        affordable[list(rows)] = False
        return affordable

    def fill(self, rows: Rows, allowed: Callable[[Rows], NDArray[np.bool_]]) -> Rows:
        """Add the best candidate that is allowed until none is left."""
        while (open_ := allowed(rows)).any():
            rows = (*rows, self._best(rows, open_, self.per))
        return rows

    def _best(self, rows: Rows, open_: NDArray[np.bool_], per: float) -> int:
        score = self.prediction.gains(self.prediction.inverse(rows)) / self.flops**per
        return int(np.where(open_, score, -np.inf).argmax())

    def exchange(self, rows: Rows) -> Rows:
        """Drop one and fill up again, for as long as that helps."""
        best, variance = rows, self.prediction.variance(rows)
        while True:
            better = min((self._without(best, row) for row in best), key=self.prediction.variance)
            if (reached := self.prediction.variance(better)) >= variance * (1 - BETTER):
                return best
            best, variance = better, reached

    def _without(self, rows: Rows, dropped: int) -> Rows:
        """The rows without one of them, refilled by the largest gain first and then by `fill`."""
        kept = tuple(row for row in rows if row != dropped)
        open_ = self.open(kept)
        open_[dropped] = False
        return self.fill((*kept, self._best(kept, open_, 0.0)), self.open) if open_.any() else rows
