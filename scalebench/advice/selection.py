"""Choose a set of candidates within a budget: several greedy starts, each improved by exchanges; the best is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array

Rows = tuple[int, ...]
PER_FLOP = (1.0, 0.5, 0.0)  # exponents: gain per FLOP, gain alone, and between the two
MANY = 100  # largest set considered without exchanges
BETTER = 1e-9  # relative, below which an exchange is rounding


class Prediction(Protocol):
    """Variance of a prediction as a function of the candidates that are run."""

    def variance(self, rows: Rows) -> float:
        """Variance of the prediction with the candidates `rows`."""

    def gains(self, rows: Rows) -> Array:
        """Decrease of the variance by each further candidate alone after the candidates `rows`, [n]."""


def best_rows(prediction: Prediction, flops: Array, budget: float, most: int | None) -> Rows:
    """At most `most` rows with the lowest variance within a budget, by several greedy starts and exchanges.

    `flops` [n] are positive, and some are within the budget.
    """
    searches = [_Search(prediction, flops, budget, most or len(flops), per) for per in PER_FLOP]
    starts = [(search, search.fill((), search.open)) for search in searches]
    if most is not None:  # also only candidates that cost an even share of the rest: typical of small sets
        starts.append((searches[-1], searches[-1].fill((), searches[-1].open_share)))
    return min((search.exchange(rows) for search, rows in starts if rows), key=prediction.variance)


def many_rows(prediction: Prediction, flops: Array, budget: float) -> Rows:
    """Up to 100 rows with low variance within a budget, without exchanges: fast, and close to the best."""
    searches = [_Search(prediction, flops, budget, MANY, per) for per in PER_FLOP]
    return min((search.fill((), search.open) for search in searches), key=prediction.variance)


@dataclass(frozen=True, eq=False)
class _Search:
    """Greedy choice by gain / FLOPs ** `per` among candidates of cost `flops` [n]."""

    prediction: Prediction
    flops: Array
    budget: float
    most: int
    per: float

    def open(self, rows: Rows) -> NDArray[np.bool_]:
        """Which candidates can be added, [n]."""
        return self._within(rows, self.budget - self.flops[list(rows)].sum())

    def open_share(self, rows: Rows) -> NDArray[np.bool_]:
        """Which candidates can be added and cost at most an even share of the remaining budget, [n]."""
        left = self.budget - self.flops[list(rows)].sum()
        return self._within(rows, left / max(self.most - len(rows), 1))

    def _within(self, rows: Rows, limit: float) -> NDArray[np.bool_]:
        affordable: NDArray[np.bool_] = (self.flops <= limit) & (len(rows) < self.most)
        affordable[list(rows)] = False
        return affordable

    def fill(self, rows: Rows, allowed: Callable[[Rows], NDArray[np.bool_]]) -> Rows:
        """Add the best allowed candidate until none is left, or it would make the prediction less certain."""
        variance = self.prediction.variance(rows)
        while (open_ := allowed(rows)).any():
            more = (*rows, self._best(rows, open_, self.per))
            before, variance = variance, self.prediction.variance(more)
            if rows and variance > before * (1 + BETTER):
                break
            rows = more
        return rows

    def _best(self, rows: Rows, open_: NDArray[np.bool_], per: float) -> int:
        score = self.prediction.gains(rows) / self.flops**per
        return int(np.where(open_, score, -np.inf).argmax())

    def exchange(self, rows: Rows) -> Rows:
        """Replace one row at a time for as long as the variance falls."""
        best, variance = rows, self.prediction.variance(rows)
        while True:
            better = min((self._without(best, row) for row in best), key=self.prediction.variance)
            if (reached := self.prediction.variance(better)) >= variance * (1 - BETTER):
                return best
            best, variance = better, reached

    def _without(self, rows: Rows, dropped: int) -> Rows:
        """The rows without `dropped`, refilled by the candidate of largest gain and then by `fill`."""
        rest = tuple(row for row in rows if row != dropped)
        open_ = self.open(rest)
        open_[dropped] = False
        return self.fill((*rest, self._best(rest, open_, 0.0)), self.open) if open_.any() else rows
