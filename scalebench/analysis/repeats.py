"""The noise of repeats in a comparison of two folders: pooled, or of each configuration, and the drift of times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc  # scipy.stats takes 0.7 s to import

from scalebench.analysis.sessions import ROUNDING, Drift, Runs

UNEQUAL = 0.05  # p-value of Bartlett's test below which configurations have their own noise


@dataclass(frozen=True)
class Own:
    """Standard deviations of configurations that differ in their noise, [n], with their degrees of freedom.

    ``number`` [runs] is the configuration of each run.
    """

    deviation: NDArray[np.float64]
    freedom: NDArray[np.intp]
    number: NDArray[np.intp]

    def error(self, weights: NDArray[np.float64]) -> tuple[float, float]:
        """Return the standard error of the sum of logs times ``weights`` [runs], and Satterthwaite's freedom."""
        parts = np.bincount(self.number, weights**2) * self.deviation**2
        return math.sqrt(parts.sum()), float(parts.sum() ** 2 / (parts**2 / self.freedom).sum())


@dataclass(frozen=True)
class Spread:
    """Standard deviation of repeats with its degrees of freedom, and the drift between sessions where that is known.

    ``own`` is the noise of each configuration, where they differ.
    """

    deviation: float | None
    freedom: int
    drift: Drift | None = None
    own: Own | None = None

    def error(self, weights: NDArray[np.float64]) -> tuple[float, float]:
        """Return the standard error of the sum of logs times ``weights`` [runs], and its degrees of freedom."""
        if known := self.drift or self.own:
            return known.error(weights)
        assert self.deviation is not None
        return self.deviation * math.sqrt((weights**2).sum()), self.freedom


def spread_of(runs: Runs, *, timed: bool) -> Spread:
    """Return the noise of runs; of times that are equal to the last digit there is none."""
    deviation, freedom = runs.repeats
    if timed and deviation == 0:  # times equal to the last digit are copies or of a coarse clock: no noise is known
        deviation = None
    drift = runs.drift() if timed and deviation is not None else None
    if drift is not None or not deviation:
        return Spread(deviation, freedom, drift)
    squares, degrees = runs.squares
    own = np.sqrt(squares / np.maximum(degrees, 1))
    known = own > ROUNDING  # equal values, and single runs, tell nothing: the noise of all holds for them
    if not _unequal(own[known] ** 2, degrees[known]):
        return Spread(deviation, freedom)
    own, degrees = np.where(known, own, deviation), np.where(known, degrees, freedom)
    return Spread(deviation, freedom, own=Own(own, degrees, runs.cell // 2))


def _unequal(variances: NDArray[np.float64], freedom: NDArray[np.intp]) -> bool:
    """Tell whether variances with these degrees of freedom, both [n], differ (Bartlett 1937)."""
    if len(variances) < 2:
        return False
    total, apart = freedom.sum(), len(variances) - 1
    excess = total * np.log((freedom * variances).sum() / total) - (freedom * np.log(variances)).sum()
    return bool(chdtrc(apart, excess / (1 + ((1 / freedom).sum() - 1 / total) / (3 * apart))) < UNEQUAL)


def notes_on(runs: Runs, spread: Spread, *, timed: bool) -> Iterator[str]:
    """Say what the intervals hold of the drift between sessions, and whether configurations differ in their noise."""
    if timed and spread.deviation is not None:
        yield _drift_note(runs, spread)
    if spread.own is not None:
        least, most = (f"{100 * end:.2g}" for end in (spread.own.deviation.min(), spread.own.deviation.max()))
        yield f"configurations differ in their noise, {least} to {most} % of one run, and each has its own"


def _drift_note(runs: Runs, spread: Spread) -> str:
    """Say what the intervals of a time hold of the drift between sessions."""
    before, after = runs.sessions
    sessions = f"{before} of OLD, {after} of NEW"
    if runs.in_turns:
        return f"both were measured in the same sessions ({sessions}), so that drift between them cancels"
    if spread.drift is not None:
        return f"the intervals hold the drift between sessions ({sessions})"
    return (
        f"the intervals do not hold the drift between sessions ({sessions}), which is unknown: no configuration was "
        "measured in two sessions of a folder; run both states again in turns"
    )
