"""Decay branches against runs from scratch: whether they agree within the noise of the seeds, and what they save.

A branch continues a run at a constant rate from one of its checkpoints and lets the rate decay (Hägele et al. 2024,
arXiv:2405.18392); its run from scratch has the same schedule and as many steps in all. Runs from scratch are found
among the other studies of the same results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend, determined
from scalebench.analysis.trials import LOSS, N, first_step, numeric, own_steps
from scalebench.laws import FitRefused, fit

SAME = (
    "family", "data_sha256", "batch_size", "sequence_length", "optimizer", "precision", "schedule", "decay_fraction",
    "warmup_steps", "learning_rate",
)  # fmt: skip
TOTAL = "total_steps"  # from the very first one
LAW = "chinchilla"  # of the loss against size and data


@dataclass(frozen=True)
class Agreement:
    """Branches and runs from scratch of one size and length, ``steps`` in all.

    ``difference`` is the mean loss of the branches minus that from scratch over seeds that only one side has, with its
    95 % interval by Student's t from the spread over the seeds of either side (NaN where too few ran); ``equal`` is the
    largest difference of runs with equal seeds, NaN without any.
    """

    size: float
    steps: float
    branches: float
    scratch: float
    difference: float
    low: float
    high: float
    equal: float
    pairs: int

    @property
    def within_noise(self) -> bool:
        """Whether zero lies in the interval of the difference."""
        return self.low <= 0 <= self.high


@dataclass(frozen=True, eq=False)
class BranchAnalysis:
    """Every size and length that has runs from scratch, and ``share``: FLOPs of one run per size with its branches over
    those of runs from scratch to the same lengths."""

    places: tuple[Agreement, ...]
    share: float
    scratch: pd.DataFrame


def branched(study: StudyAnalysis) -> pd.DataFrame:
    """Return the valid trials that continue a parent's run, with ``TOTAL``."""
    trials = study.trials
    parent = trials["parent_trial_id"] if "parent_trial_id" in trials else pd.Series(None, index=trials.index)
    chosen = trials[trials["valid"] & trials[LOSS].notna() & parent.notna() & (first_step(trials) > 0)]
    return chosen.assign(**{TOTAL: first_step(chosen) + own_steps(chosen)})


@lru_cache(maxsize=8)
def branches_of(study: StudyAnalysis) -> BranchAnalysis:
    """Compare the branches of a study with the runs from scratch among the other studies."""
    branches = branched(study)
    scratch = _from_scratch(study.others, branches)
    return BranchAnalysis(tuple(_agreements(branches, scratch)), _share(branches), scratch)


@lru_cache(maxsize=8)
def branch_law(study: StudyAnalysis) -> Trend:
    """Return the law of the loss against size and data that the branches draw, or the reason why there is none.

    Branches of one run are not independent: runs are the configurations of its intervals.
    """
    rows = branched(study)
    tokens = numeric(rows, "tokens_seen")
    columns = {"params": rows[N], "tokens": tokens, "loss": rows[LOSS], "config": rows["parent_trial_id"].astype(str)}
    try:
        return determined(fit(pd.DataFrame(columns)[tokens > 0], LAW))
    except FitRefused as refusal:
        return Trend(None, str(refusal))


def _from_scratch(others: pd.DataFrame, branches: pd.DataFrame) -> pd.DataFrame:
    """Return the valid runs without a parent that match branches in ``SAME``, size and length."""
    others = others.assign(**{TOTAL: own_steps(others)})
    keys = [N, TOTAL, *(name for name in SAME if name in others and name in branches)]
    parent = others["parent_trial_id"] if "parent_trial_id" in others else pd.Series(None, index=others.index)
    plain = others[others["valid"] & others[LOSS].notna() & parent.isna()]
    branch_keys = set(branches[keys].astype(str).itertuples(index=False, name=None))
    alike = [row in branch_keys for row in plain[keys].astype(str).itertuples(index=False, name=None)]
    return plain[np.array(alike, dtype=bool)]


def _agreements(branches: pd.DataFrame, scratch: pd.DataFrame) -> Iterator[Agreement]:
    for _, part in branches.groupby([N, TOTAL]):
        size, steps = float(part[N].iloc[0]), float(part[TOTAL].iloc[0])
        runs = scratch[(scratch[N] == size) & (scratch[TOTAL] == steps)]
        if len(runs):
            yield _agreement(size, steps, part.groupby("seed")[LOSS].mean(), runs.groupby("seed")[LOSS].mean())


def _agreement(size: float, steps: float, branches: pd.Series[float], scratch: pd.Series[float]) -> Agreement:
    """Compare the losses by seed."""
    from scipy.special import stdtrit

    both = branches.index.intersection(scratch.index)
    gaps = (branches[both] - scratch[both]).abs()
    ours, theirs = branches.drop(both), scratch.drop(both)
    difference = float(ours.mean() - theirs.mean())
    freedom, half = len(branches) + len(scratch) - 2, np.nan
    if freedom and len(ours) and len(theirs):
        squares = sum(float((side - side.mean()).pow(2).sum()) for side in (branches, scratch))
        spread = np.sqrt(squares / freedom * (1 / len(ours) + 1 / len(theirs)))
        half = float(stdtrit(freedom, 0.975)) * spread
    return Agreement(
        size, steps, float(branches.mean()), float(scratch.mean()), difference, difference - half, difference + half,
        float(gaps.max()) if len(both) else np.nan, len(both),
    )  # fmt: skip


def _share(branches: pd.DataFrame) -> float:
    """Return the share of the FLOPs. A branch with what lies before it costs what a run from scratch would.

    The parent run is counted once for all of its branches, up to the last one.
    """
    own = numeric(branches, "flops_per_step") * own_steps(branches)
    before = numeric(branches, "parent_flops")
    trunks = before.groupby(branches["parent_trial_id"]).max() if len(branches) else before
    return float((trunks.sum() + own.sum()) / (before + own).sum()) if len(branches) else np.nan
