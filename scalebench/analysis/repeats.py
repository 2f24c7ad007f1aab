"""The noise of repeats in a comparison of two folders: that of each configuration, or the drift of times."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc  # scipy.stats takes 0.7 s to import

from scalebench.analysis.own_noise import ROUNDING, Own
from scalebench.analysis.sessions import Drift, Runs

UNEQUAL = 0.05  # p-value of Bartlett's test below which a note says that configurations differ in their noise


@dataclass(frozen=True)
class Spread:
    """Noise of one run over all configurations with its degrees of freedom, and what intervals are made of.

    That is the drift between sessions where it is known, else ``own``, the noise of each configuration. ``unequal`` are
    the smallest and largest of the latter where they differ significantly.
    """

    deviation: float | None
    freedom: int
    drift: Drift | None = None
    own: Own | None = None
    unequal: tuple[float, float] | None = None

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
    known = squares > ROUNDING**2  # equal values, and single runs, tell nothing
    return Spread(deviation, freedom, own=runs.own, unequal=_unequal(squares[known], degrees[known]))


def _unequal(squares: NDArray[np.float64], freedom: NDArray[np.intp]) -> tuple[float, float] | None:
    """Return the smallest and largest standard deviation of repeats, [n], if they differ (Bartlett 1937)."""
    if len(squares) < 2:
        return None
    variances, total, apart = squares / freedom, freedom.sum(), len(squares) - 1
    excess = total * np.log(squares.sum() / total) - (freedom * np.log(variances)).sum()
    if chdtrc(apart, excess / (1 + ((1 / freedom).sum() - 1 / total) / (3 * apart))) >= UNEQUAL:
        return None
    return math.sqrt(variances.min()), math.sqrt(variances.max())


def notes_on(runs: Runs, spread: Spread, *, timed: bool) -> Iterator[str]:
    """Say what the intervals hold of the drift between sessions, and whether configurations differ in their noise."""
    if timed and spread.deviation is not None:
        yield _drift_note(runs, spread)
    if spread.unequal is not None:
        least, most = (f"{100 * end:.2g}" for end in spread.unequal)
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
