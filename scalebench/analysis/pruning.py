"""What pruning did to trained models: loss against density by size and method, dense models of equal bytes, the law.

Trials of one parent are repeated measurements of one model, so parents (sizes and seeds) are what intervals count.
Checkpoints of one run are several models, but no independent ones: they are apart as lengths of training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from scalebench.analysis.growth import slope_interval
from scalebench.analysis.parents import parent_settings
from scalebench.analysis.series import setting_text
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import undetermined
from scalebench.analysis.trials import LOSS, numeric
from scalebench.laws import Fit, FitRefused, fit
from scalebench.measure.statistics import mean_interval

PARENT, SIZE = "parent_trial_id", "size_before"
MODEL, LENGTH = "parent_model", "parent_length"  # the weights that were pruned, and which length of training they had
TRAINED_AFTER = (
    "learning_rate",
    "batch_size",
    "schedule",
    "warmup_steps",
    "decay_fraction",
    "weight_decay",
    "optimizer",
)
ADDED, DENSITY, BEFORE = "loss_added_nats", "density_found", "loss_before_nats"
CONTROL = "random"
TOLERATED_NATS = 0.1
UNITS = ("heads", "hidden", "layers")
SAME_TOKENS = 1.01  # largest over smallest number of tokens that count as one
FEWEST_SIZES = 2
FEWEST_DENSITIES = 3  # from which the density tolerated is interpolated


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval, from ``n`` models; the ends are NaN where there is none."""

    value: float
    low: float
    high: float
    n: int

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        return bool(self.low > 0 or self.high < 0)


def pruned(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the valid trials with a loss, and in ``SIZE`` the size of the unpruned model, in ``bytes`` what is stored.

    ``bytes`` are the packed bytes where weights were masked, those of the smaller model otherwise. Trials that shared
    the machine have no latency. ``LENGTH`` counts the lengths of training (by FLOPs) of models of one size and seed.
    """
    columns = (ADDED, DENSITY, BEFORE, "weight_bytes", "weight_bytes_before", "packed_bytes", "recovery_steps",
               "params_remaining", "tokens_before", "tokens_seen", "latency_ratio")  # fmt: skip
    known = trials.assign(**{name: numeric(trials, name) for name in columns})
    known = known.assign(
        **{SIZE: numeric(trials, "params_non_embedding_before")},
        bytes=known["packed_bytes"].fillna(known["weight_bytes"]),
        recovery_steps=known["recovery_steps"].fillna(0).astype(int),
        latency_ratio=known["latency_ratio"].where(known["timing_exclusive"] != False),  # noqa: E712 - also unknown
    )
    good = known["valid"] & known[ADDED].notna() & (known[DENSITY] > 0) & (known[SIZE] > 0)
    chosen = known[good].sort_values([SIZE, "seed", DENSITY], kind="stable")
    weights = chosen["parent_weights_sha256"] if "parent_weights_sha256" in chosen else chosen[PARENT]
    flops = numeric(chosen, "parent_flops").fillna(0.0).groupby([chosen[SIZE], chosen["seed"]], dropna=False)
    return chosen.assign(**{MODEL: weights.fillna(chosen[PARENT]), LENGTH: flops.rank("dense").astype(int)})


def groups(trials: pd.DataFrame, *, lengths: bool = True) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the trials of each method, recovery steps and other settings, with a label; the control last.

    So are settings of the training before, in which models of one size, seed and length differ.
    Models of several ``lengths`` of training are apart, which their labels end with, or together.
    """
    keys = [
        "method",
        "recovery_steps",
        *_varied_after(trials),
        *parent_settings(trials),
        *([LENGTH] if lengths else []),
    ]
    several = {name for name in keys[1:] if trials[name].nunique() > 1}
    pairs = sorted(trials.groupby(keys, dropna=False), key=lambda item: (item[0][0] == CONTROL, item[0]))
    for values, part in pairs:
        named = dict(zip(keys, values, strict=True))
        texts = [_setting(name, value, trials) for name, value in named.items() if name in several]
        yield ", ".join([str(named["method"]), *texts]), part


def _varied_after(trials: pd.DataFrame) -> list[str]:
    """Return in which settings of the training after pruning trials of one model, density and method differ."""
    alike = trials.groupby([MODEL, "method", "recovery_steps", "density"])
    return [name for name in TRAINED_AFTER if name in trials and (alike[name].nunique() > 1).any()]


def _setting(name: str, value: Any, trials: pd.DataFrame) -> str:
    if name == LENGTH:
        return f"length of training {value} of {trials[LENGTH].max()}"
    return f"{value} recovery steps" if name == "recovery_steps" else f"{name} {setting_text(value)}"


def by_density(trials: pd.DataFrame) -> Iterator[tuple[float, pd.DataFrame]]:
    """Yield the trials of each requested density, lowest first."""
    for density in sorted(trials["density"].unique()):
        yield float(density), trials[trials["density"] == density]


# --- size ------------------------------------------------------------------------------------------------------------


def slope(sizes: ArrayLike, values: ArrayLike) -> Estimate | None:
    """Return the change of values (n,) per doubling of sizes (n,): least squares, t interval; None for one size."""
    x, y = np.log2(np.asarray(sizes, dtype=float)), np.asarray(values, dtype=float)
    if len(np.unique(x)) < FEWEST_SIZES:
        return None
    return Estimate(*slope_interval(x, y), len(x))


def slopes(trials: pd.DataFrame) -> Iterator[tuple[float, Estimate]]:
    """Yield each requested density of one group's trials with the change of the loss added per doubling of size.

    Each parent counts once, with its mean.
    """
    for density, part in by_density(trials):
        parents = part.groupby(PARENT)[[SIZE, ADDED]].mean()
        change = slope(parents[SIZE], parents[ADDED])
        if change is not None:
            yield density, change


def tolerated(trials: pd.DataFrame, nats: float = TOLERATED_NATS) -> pd.DataFrame:
    """Return one row per parent of one group: size, seed, and ``density``, down to which less than ``nats`` are lost.

    Between two densities tried the loss added is taken as linear; at density 1 it is zero. NaN where even the lowest
    density tried loses less.
    """
    rows = []
    for _, own in trials.groupby(MODEL):
        part = own.groupby("density")[[DENSITY, ADDED]].mean()
        rows.append((own[SIZE].iloc[0], own["seed"].iloc[0], crossing(part[DENSITY], part[ADDED], nats)))
    return pd.DataFrame(rows, columns=["size", "seed", "density"]).sort_values(["size", "seed"], ignore_index=True)


def crossing(density: ArrayLike, added: ArrayLike, nats: float) -> float:
    """Return the density at which the loss added first exceeds ``nats``, coming from 1; NaN where it does not."""
    points = sorted(zip(np.asarray(density, float), np.asarray(added, float), strict=True), reverse=True)
    high, before = 1.0, 0.0
    for low, after in points:
        if after > nats:
            return float(high + (nats - before) / (after - before) * (low - high)) if after > before else float(high)
        high, before = low, after
    return float("nan")


# --- method ----------------------------------------------------------------------------------------------------------


def mean(values: ArrayLike, comparisons: int = 1) -> Estimate:
    """Return the mean of independent values (n,) with its t interval: 95 % for all ``comparisons`` (Bonferroni)."""
    return Estimate(*mean_interval(values, 1 - 0.05 / comparisons), len(np.asarray(values)))


def against_control(trials: pd.DataFrame, method: str) -> Iterator[tuple[float, Estimate]]:
    """Yield each density that a method and the control share with how much more the control loses, paired by model.

    Models of one parent, as its checkpoints are, count once, with their mean.
    """
    keys = [PARENT, MODEL, "recovery_steps", "density"]
    chosen, control = (
        trials[trials["method"] == name].groupby(keys)[ADDED].mean() for name in (method, CONTROL)
    )  # fmt: skip
    differences = (control - chosen).dropna().rename("more").reset_index()
    for density, part in by_density(differences):
        by_parent = part.groupby(PARENT)["more"].mean()
        if len(by_parent) > 1:
            yield density, mean(by_parent)


# --- bytes -----------------------------------------------------------------------------------------------------------


def dense(part: pd.DataFrame) -> pd.DataFrame:
    """Return one row per parent of one group, smallest first: size, seed, its bytes, and its loss without pruning.

    Where models were trained after pruning, the loss is that of the parent trained as long (density 1); no rows
    without such trials.
    """
    trained = bool((part["recovery_steps"] > 0).any())
    parents = part[part["density"] == 1] if trained else part.drop_duplicates(MODEL)
    table = parents[[SIZE, "seed", "weight_bytes_before", LOSS if trained else BEFORE]]
    return table.set_axis(["size", "seed", "bytes", "loss"], axis=1).sort_values(["bytes", "seed"], ignore_index=True)


def against_dense(part: pd.DataFrame, *, together: bool = False) -> list[tuple[float, Estimate]]:
    """Return each density of one group with how much higher its loss is than that of a dense model of equal bytes.

    The dense loss is that of the parents of the same seed (``dense_loss``); models smaller than the smallest parent
    have none. Seeds are what is independent: each counts once, with its mean. Intervals are those of each density
    alone, or ``together`` of all of them at once, as the choice of the best needs.
    """
    trials = part[part["density"] < 1]
    compared = trials.assign(excess=trials[LOSS] - dense_loss(trials, dense(part))).dropna(subset=["excess"])
    by_seed = {density: each.groupby("seed")["excess"].mean() for density, each in by_density(compared)}
    comparisons = len(by_seed) if together else 1
    return [(density, mean(excess, comparisons)) for density, excess in by_seed.items()]


def dense_loss(part: pd.DataFrame, parents: pd.DataFrame) -> pd.Series[float]:
    """Return the loss of the dense model of each trial's seed and bytes; NaN outside the parents' range.

    Between the parents it is a monotone cubic in the logarithm of bytes (PCHIP): the loss is convex there, so that a
    straight line would lie above it and favour the pruned models.
    """
    from scipy.interpolate import PchipInterpolator

    losses = pd.Series(np.nan, index=part.index, dtype=float)
    for seed, own in parents.groupby("seed"):
        by_bytes = own.groupby("bytes")["loss"].mean()
        if len(by_bytes) > 1:
            rows = part.index[part["seed"] == seed]
            curve = PchipInterpolator(np.log(by_bytes.index.to_numpy(float)), by_bytes.to_numpy(), extrapolate=False)
            losses[rows] = curve(np.log(part.loc[rows, "bytes"].to_numpy(dtype=float)))
    return losses


# --- the law ---------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8)
def sparsity_fits(study: StudyAnalysis) -> dict[str, Fit | str]:
    """Return the law of each group of a study's trials but the control, or why there is none; fitted once.

    It is a law of the data too, so that models of all lengths of training are together.
    """
    parts = groups(pruned(study.trials), lengths=False)
    return {label: sparsity_fit(part) for label, part in parts if CONTROL not in set(part["method"])}


def sparsity_fit(trials: pd.DataFrame) -> Fit | str:
    """Fit the law of sparse models to one group's trials; the reason where its design does not support that.

    The law is for masks that the remaining weights were trained under; trials of one parent are one configuration.
    """
    if set(trials["method"]) & set(UNITS):
        return "the law is for single weights that are removed, not for heads, hidden units or layers"
    if not (trials["recovery_steps"] > 0).all():
        return "the law is for models trained while or after they are pruned, and these were not (recovery_steps)"
    tokens = trials["tokens_before"] + trials["tokens_seen"].fillna(0)
    several = not bool(tokens.max() <= SAME_TOKENS * tokens.min())  # also where they are not known
    columns = {"density": trials[DENSITY], "params": trials["params_remaining"], "loss": trials[LOSS]}
    columns |= {"config": trials[PARENT]} | ({"tokens": tokens} if several else {})
    try:
        fitted = fit(pd.DataFrame(columns), "sparsity" if several else "sparsity_one_length")
    except FitRefused as reason:
        return str(reason)
    return undetermined(fitted) or fitted
