"""Trials at the inputs of a configuration that was measured, or of one another: other seeds of it.

Seeds share the deviation of their configuration from the law. Another one lowers the variance of the configuration's
mean from that of m runs to that of m + 1 (`intervals.noise`), and adds no degree of freedom. Without replicates it is
not known how much of the noise is that of seeds, and it adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.fit import Fit
from scalebench.laws.forms import Array
from scalebench.laws.intervals.noise import Noise

SAME_INPUTS = 1e-6  # in logs
Rows = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Seeds:
    """Candidates, [n]: ``place`` numbers their different inputs, ``runs`` are those measured there, 0 of none."""

    noise: Noise
    place: NDArray[np.intp]
    runs: NDArray[np.intp]

    @classmethod
    def of(cls, fit: Fit, noise: Noise, logs: Mapping[str, Array]) -> Seeds:
        """Those of candidates at ``logs`` of the inputs.

        Where several configurations have the inputs of a candidate, it is none of them but a new one.
        """
        points, names = fit.points, list(logs)
        measured, candidates = (np.stack([by[name] for name in names], axis=1) for by in (points.logs, logs))
        rounded = np.round(np.concatenate([candidates, measured]) / SAME_INPUTS)
        numbers = np.unique(rounded, axis=0, return_inverse=True)[1].reshape(-1)
        here, there = numbers[: len(candidates)], numbers[len(candidates) :]
        counts = np.zeros(len(here), dtype=np.intp)
        for at in np.unique(there):
            if len(np.unique(points.configuration[there == at])) == 1:
                counts[here == at] = len(np.unique(points.run[there == at]))
        return cls(noise, np.unique(here, return_inverse=True)[1].reshape(-1), counts)

    def shares(self, rows: Rows) -> Array:
        """Weight of each candidate once `rows` have run, [n]: 1 is that of a run of a new configuration."""
        return self._shares(self.runs + np.bincount(self.place[list(rows)], minlength=len(self.place))[self.place])

    def shares_of(self, rows: Rows) -> Array:
        """Weight of each of `rows` once those before it have run, [rows]."""
        place = self.place[list(rows)]
        earlier = np.tril(place[:, None] == place, -1).sum(axis=1)
        return self._shares(self.runs[list(rows)] + earlier)

    def _shares(self, before: NDArray[np.intp]) -> Array:
        """Weight of one more run of a configuration that has `before` runs."""
        alone = self.noise.variance_of_new_runs()
        if not alone:  # points on the law exactly
            return np.ones(len(before))
        now, then = (self.noise.variance_of_new_runs(1 / np.maximum(runs, 1)) for runs in (before, before + 1))
        return np.asarray(np.where(before == 0, 1.0, alone / then - alone / now))

    def new(self, rows: Rows) -> int:
        """The number of configurations that the candidates `rows` add."""
        return len({int(self.place[row]) for row in rows if not self.runs[row]})
