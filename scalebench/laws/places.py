"""Rows with equal inputs share the terms of a law: the terms are computed once per place, and summed over its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array

SHARED = 2  # rows per place, on average, from which the shorter arrays are worth the sums


@dataclass(frozen=True)
class Places:
    """The distinct inputs of rows: ``logs`` by name and ``counts`` of rows, each [places].

    ``row`` [n] is the place of each row, ``order`` [n] sorts rows by place, and ``first`` [places] is where the rows of
    a place begin in it; None where the rows already are in that order. Without shared inputs every row is its own
    place, in the order of the rows.
    """

    logs: dict[str, Array]
    counts: Array
    shared: bool
    row: NDArray[np.intp]
    order: NDArray[np.intp] | None
    first: NDArray[np.intp]

    @classmethod
    def of(cls, logs: Mapping[str, Array]) -> Places:
        """Find the distinct rows of ``logs``, by name and each [n]."""
        inputs = np.stack(list(logs.values()), axis=1)
        _, where, row, counts = np.unique(inputs, axis=0, return_index=True, return_inverse=True, return_counts=True)
        n, row = len(inputs), row.reshape(-1)
        if len(where) * SHARED > n:
            every = np.arange(n)
            return cls(dict(logs), np.ones(n), False, every, None, every)
        order = None if (np.diff(row) >= 0).all() else np.argsort(row, kind="stable")
        first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return cls({name: log[where] for name, log in logs.items()}, counts.astype(np.float64), True, row, order, first)

    def spread(self, values: Array) -> Array:
        """Give every row the value of its place: [..., places] to [..., n]."""
        return np.take(values, self.row, axis=-1) if self.shared else values

    def total(self, values: Array) -> Array:
        """Sum over the rows of each place: [..., n] to [..., places]."""
        if not self.shared:
            return values
        values = values if self.order is None else np.take(values, self.order, axis=-1)
        return np.asarray(np.add.reduceat(values, self.first, axis=-1))

    def sorted(self) -> Places:
        """The same places of rows in their ``order``."""
        return self if self.order is None else replace(self, row=self.row[self.order], order=None)
