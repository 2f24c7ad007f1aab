"""Approach 1 of Hoffmann et al. 2022 (arXiv 2203.15556): compute-optimal sizes from the envelope of training curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scalebench.advice.allocation import Allocation, Counting, count
from scalebench.advice.optima import groups
from scalebench.laws.columns import Columns
from scalebench.laws.forms import Array, FitRefused

DRAWS = 1000
RUNS_NEEDED = 12  # with fewer runs, a resampling bootstrap is too narrow
LEVELS = 200  # of compute along the envelope: far finer than any set of runs
NOTES = (
    "with a decaying learning rate, losses before the end of a run are too high: use only points after the decay",
    "the minimum over noisy curves is biased low and may pick the wrong run, which the interval does not include: "
    "smooth the curves first",
)


def envelope(points: Columns, counting: Counting | None = None, *, n: int = DRAWS, seed: int = 0) -> Allocation:
    """Approach 1: at each compute the run of lowest loss gives N and D; a line through them in log space.

    Columns as `count` takes them, and `run`: rows of one run are its training curve, interpolated in log compute.
    Compute levels whose best run is the smallest or the largest that reaches them are left out.
    Intervals resample runs, from 12 runs up. Raises FitRefused with fewer than three sizes on the envelope.
    """
    counting = counting or Counting()
    columns = count(points, counting)
    if "run" not in list(points.keys()):
        raise FitRefused("column 'run' is missing; the envelope needs training curves: name the run of each row")
    curves = _Curves.read(columns, np.asarray(points["run"]).astype(str))
    everything = np.ones(len(curves.sizes), dtype=bool)
    line = curves.line(everything)
    draws, method = None, f"{len(everything)} runs; a bootstrap of runs needs {RUNS_NEEDED}"
    if len(everything) >= RUNS_NEEDED:
        draws, method = curves.resampled(n, seed), f"bootstrap of {len(everything)} runs, percentile"
    return Allocation(1, counting, line, draws, method, NOTES)


@dataclass(frozen=True, eq=False)
class _Curves:
    """Loss and tokens of every run at common compute levels, [runs, levels]; NaN outside a run's range."""

    log_flops: Array
    sizes: Array
    loss: Array
    log_tokens: Array

    @staticmethod
    def read(columns: dict[str, Array], run: Any) -> _Curves:
        code = np.unique(run, return_inverse=True)[1].reshape(-1).astype(float)
        log = np.log(columns["flops"])
        levels = np.linspace(log.min(), log.max(), LEVELS)
        sizes, losses, tokens = [], [], []
        for _, rows in groups({"run": code}, ("run",)):
            order = np.flatnonzero(rows)[np.argsort(log[rows], kind="stable")]
            outside = {"left": np.nan, "right": np.nan}
            sizes.append(np.log(columns["params"][order]).mean())
            losses.append(np.interp(levels, log[order], columns["loss"][order], **outside))
            tokens.append(np.interp(levels, log[order], np.log(columns["tokens"][order]), **outside))
        return _Curves(levels, np.array(sizes), np.array(losses), np.array(tokens))

    def line(self, chosen: Any) -> Array:
        """Both lines through the envelope of the runs `chosen`: (ln params_constant, a, ln tokens_constant, b)."""
        rows = np.flatnonzero(chosen)
        loss = np.where(np.isnan(self.loss[rows]), np.inf, self.loss[rows])
        reach = np.isfinite(loss)
        sizes = self.sizes[rows]
        smallest = np.where(reach, sizes[:, None], np.inf).min(axis=0)
        largest = np.where(reach, sizes[:, None], -np.inf).max(axis=0)
        winner = loss.argmin(axis=0)
        inside = (sizes[winner] > smallest) & (sizes[winner] < largest)
        if len(set(sizes[winner[inside]])) < 3:
            raise FitRefused(
                f"{len(set(sizes[winner[inside]]))} sizes on the envelope away from its edges; Approach 1 needs 3: add "
                "sizes, or train small runs longer"
            )
        design = np.stack([np.ones(int(inside.sum())), self.log_flops[inside]], axis=1)
        tokens = self.log_tokens[rows][winner[inside], np.flatnonzero(inside)]
        targets = np.stack([sizes[winner[inside]], tokens], axis=1)
        return np.asarray(np.linalg.lstsq(design, targets, rcond=None)[0].T.reshape(-1))

    def resampled(self, n: int, seed: int) -> Array:
        """Lines of `n` resamples of runs, [at most n, 4]; resamples without an envelope are skipped."""
        rng, size = np.random.default_rng(seed), len(self.sizes)
        drawn = []
        for _ in range(n):
            try:
                drawn.append(self.line(np.bincount(rng.integers(size, size=size), minlength=size) > 0))
            except FitRefused:
                continue
        return np.array(drawn)
