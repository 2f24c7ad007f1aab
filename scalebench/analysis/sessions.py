"""Sessions: trials that ran one after the other on one machine. Times agree within a session better than between two.

Clock rates, temperature and what else is loaded differ from day to day, for all trials of a session alike. The variance
of a time is that between sessions plus that between runs of its configuration in a session (see `own_noise`), both
estimated by analysis of variance (Henderson 1953, method 3), and the degrees of freedom of an effect are those of
Satterthwaite 1946. Where every session ran all configurations equally often, that on all of them is a t test on the
means of sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalebench.analysis.own_noise import ROUNDING, Own, noise_of
from scalebench.analysis.trials import numeric

Array = NDArray[np.float64]
Ids = NDArray[np.intp]

STARTED, DURATION, MACHINE = "started_at", "wall_time_s", "machine_id"
PAUSE_S = 3600.0  # without a trial between two sessions


def sessions_of(tables: Sequence[pd.DataFrame]) -> Ids:
    """Return the session of each row of all tables, [rows], from 0: those of one machine without an hour between them.

    Rows of one table and machine that have no time are a session of their own.
    """
    machines = np.array([str(name) for table in tables for name in table.get(MACHINE, pd.Series("", table.index))])
    origin = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    start, duration = (
        np.concatenate([read(table) for table in tables]) for read in (_seconds, lambda table: _column(table, DURATION))
    )
    timed = ~np.isnan(start)
    session, first = np.zeros(len(start), dtype=np.intp), 0
    for machine in dict.fromkeys(machines.tolist()):
        rows = np.flatnonzero((machines == machine) & timed)
        rows = rows[np.argsort(start[rows], kind="stable")]
        if len(rows):
            latest = np.maximum.accumulate(start[rows] + np.nan_to_num(duration[rows]))[:-1]
            session[rows] = first + np.concatenate([[0], np.cumsum(start[rows][1:] > latest + PAUSE_S)])
            first = int(session[rows].max()) + 1
        for table in range(len(tables)):
            session[(machines == machine) & ~timed & (origin == table)] = first
            first += 1
    return np.unique(session, return_inverse=True)[1].reshape(-1)


def _column(table: pd.DataFrame, name: str) -> Array:
    return np.asarray(numeric(table, name), dtype=np.float64)


def _seconds(table: pd.DataFrame) -> Array:
    """Return when each row was started, [rows], NaN where that is unknown."""
    if STARTED not in table:
        return np.full(len(table), np.nan)
    start = pd.to_datetime(table[STARTED], utc=True, errors="coerce", format="ISO8601")
    return np.asarray((start - pd.Timestamp(0, tz="UTC")).dt.total_seconds(), dtype=np.float64)


@dataclass(frozen=True)
class Drift:
    """Mean square of logs of times `between` sessions with its `freedom`, whose variance counts `runs` times there.

    ``within`` is the noise of each configuration within sessions, None without any freedom; ``share`` [n] is that of
    each configuration in the mean square within. ``plain`` is their noise if sessions do not differ.
    """

    session: Ids  # of each row, [rows]
    between: float
    freedom: int
    runs: float
    within: Own | None
    share: Array
    plain: Own

    def error(self, weights: Array) -> tuple[float, float]:
        """Return the standard error of the sum of rows times `weights` [rows], and its degrees of freedom."""
        of_sessions = (np.bincount(self.session, weights) ** 2).sum() / self.runs
        if self.within is None:  # without runs to compare, all of it may be noise
            return float(np.sqrt(self.between * max((weights**2).sum(), of_sessions))), self.freedom
        if self.between <= self.share @ self.within.variance:  # sessions do not differ
            return self.plain.error(weights)
        runs = (self.within.squares(weights) - of_sessions * self.share) * self.within.variance
        total, error = of_sessions * self.between, runs @ self.within.covariance @ runs
        error += 2 * total**2 / self.freedom
        total += runs.sum()
        return float(np.sqrt(total)), float(2 * total**2 / error)


@dataclass(frozen=True, eq=False)
class Runs:
    """Logs of one quantity, [runs], of configurations that two folders have in common.

    ``cell`` [runs] is twice the number of the configuration, plus 1 for the new folder.
    """

    logs: Array
    cell: Ids
    session: Ids

    def weights(self, configurations: Sequence[int]) -> Array:
        """Weights [runs] whose sum is new less old, the mean over configurations by number."""
        sizes = np.bincount(self.cell)
        sign = np.where(np.isin(self.cell // 2, configurations), 2.0 * (self.cell % 2) - 1, 0.0)
        return np.asarray(sign / sizes[self.cell] / len(configurations))

    def of(self, cell: int) -> Array:
        """The logs of one cell."""
        return self.logs[self.cell == cell]

    @property
    def repeats(self) -> tuple[float | None, int]:
        """Standard deviation between runs of a cell, pooled, and its degrees of freedom; None without repeats."""
        squares, degrees = self.squares
        if not (freedom := int(degrees.sum())):
            return None, 0
        deviation = float(np.sqrt(squares.sum() / freedom))
        return (deviation if deviation > ROUNDING else 0.0), freedom

    @property
    def squares(self) -> tuple[Array, Ids]:
        """Squared deviations from the mean of their cell, summed over each configuration, and degrees of freedom."""
        sizes, numbers = np.bincount(self.cell), np.arange(self.cell.max() + 1) // 2
        means = np.bincount(self.cell, self.logs) / sizes
        squares = np.bincount(self.cell // 2, (self.logs - means[self.cell]) ** 2)
        return np.asarray(squares, dtype=np.float64), np.bincount(numbers, sizes - 1).astype(np.intp)

    @property
    def own(self) -> Own:
        """The noise of each configuration, where any has repeats that differ."""
        return noise_of(*self.squares, self.cell // 2)

    @property
    def sessions(self) -> tuple[int, int]:
        """The number of sessions of the old and of the new folder."""
        before, after = (len(np.unique(self.session[self.cell % 2 == side])) for side in (0, 1))
        return before, after

    @property
    def in_turns(self) -> bool:
        """Whether the same sessions measured both sides of every configuration as often, so that drift cancels."""
        net = [
            np.abs(np.bincount(self.session, self.weights([number]))).max()
            for number in range(self.cell.max() // 2 + 1)
        ]
        return bool(max(net) < 1e-9)

    def drift(self) -> Drift | None:
        """Estimate the drift between sessions.

        None where no configuration of a folder was measured in two sessions: its session is then a part of it.
        """
        columns = np.column_stack([self.logs, np.eye(int(self.session.max()) + 1)[self.session]])
        sizes = np.bincount(self.cell)
        means = np.stack([np.bincount(self.cell, column) for column in columns.T], axis=1) / sizes[:, None]
        columns -= means[self.cell]
        residual, indicators = columns[:, 0], columns[:, 1:]
        basis, strength, _ = np.linalg.svd(indicators, full_matrices=False)
        basis = basis[:, strength > 1e-9]
        freedom = basis.shape[1], len(self.logs) - len(sizes) - basis.shape[1]
        if not freedom[0]:
            return None
        of_sessions = basis.T @ residual
        left = residual - basis @ of_sessions
        within, share, number = None, np.zeros(0), self.cell // 2
        if freedom[1]:
            degrees = np.bincount(number, 1 - 1 / sizes[self.cell] - (basis**2).sum(axis=1))
            within, share = noise_of(np.bincount(number, left**2), degrees, number), degrees / degrees.sum()
        between, runs = float((of_sessions**2).sum()) / freedom[0], float((indicators**2).sum()) / freedom[0]
        return Drift(self.session, between, freedom[0], runs, within, share, self.own)
