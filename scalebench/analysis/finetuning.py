"""A fine-tuning study: means by size of what was tuned how, on how much data; and LoRA against all weights, paired."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.series import setting_text
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import DATA_SEEN, LOSS, N, numeric
from scalebench.measure.statistics import mean_interval

BEFORE, FORGETTING = "loss_before_nats", "forgetting_nats"
FULL, LORA = "full", "lora"
APART = ("source", "head", "pooling", "method", "rank", "matrices", DATA_SEEN)  # what makes a group, beside the size


@dataclass(frozen=True, eq=False)
class Tuned:
    """The valid trials that were tuned alike, of all sizes and seeds.

    ``settings`` are those of ``APART``, then any other that the study varied.
    """

    settings: dict[str, Any]
    trials: pd.DataFrame

    @property
    def method(self) -> str:
        """What was trained: full or lora."""
        return str(self.settings["method"])

    @property
    def tokens(self) -> float:
        """Data that it was tuned on."""
        return float(self.settings[DATA_SEEN])

    @property
    def others(self) -> dict[str, Any]:
        """The settings beside ``APART`` that this group has."""
        return {name: value for name, value in self.settings.items() if name not in APART and value is not None}

    @property
    def others_text(self) -> list[str]:
        """The settings beside ``APART`` in words."""
        return [f"{name} {setting_text(value)}" for name, value in self.others.items()]

    def means(self, column: str) -> pd.DataFrame:
        """Return size, mean, standard error over seeds (NaN of one) and seeds of a column, smallest size first."""
        groups = numeric(self.trials, column).groupby(self.trials[N])
        frame = pd.DataFrame({"mean": groups.mean(), "se": groups.sem(), "seeds": groups.count()})
        return frame[frame["seeds"] > 0].rename_axis("size").reset_index()


def tuned_alike(study: StudyAnalysis) -> list[Tuned]:
    """Return the groups of a study's valid trials, all weights first, then by data.

    Of the axes of which each size keeps its best value, only that one is in them.
    """
    valid = study.usable[study.usable[LOSS].notna()]
    apart = dict.fromkeys((*APART, *study.settings))
    valid = valid.assign(**{name: None for name in apart if name not in valid})
    valid["method"] = valid["method"].fillna(FULL)
    groups = []
    for _, part in valid.groupby([valid[name].astype(object) for name in apart], dropna=False, sort=False):
        first = part.iloc[0]
        groups.append(Tuned({name: None if pd.isna(first[name]) else first[name] for name in apart}, part))
    return sorted(groups, key=lambda group: (str(group.settings["pooling"]), group.method, group.tokens))


@dataclass(frozen=True)
class Paired:
    """What LoRA changes of a column at one size, against all weights from the same parents on the same data.

    ``value`` is the mean over ``seeds`` of LoRA minus full, with its 95 % interval (NaN for one seed).
    """

    size: float
    tokens: float
    label: str
    seeds: int
    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.low > 0 or self.high < 0


def lora_against_full(study: StudyAnalysis, column: str) -> list[Paired]:
    """Return the differences of a column, for each LoRA group that has trials of all weights beside it."""
    groups = tuned_alike(study)
    return [pair for lora in groups if lora.method == LORA for pair in _pairs(lora, groups, column)]


def _pairs(lora: Tuned, groups: list[Tuned], column: str) -> Iterator[Paired]:
    same = ("source", "head", "pooling", DATA_SEEN)
    for full in groups:
        if full.method != FULL or any(full.settings[name] != lora.settings[name] for name in same):
            continue
        if any(value != lora.settings[name] for name, value in full.others.items()):
            continue
        keys = [name for name in ("parent_trial_id", N, "seed") if name in lora.trials]
        both = lora.trials.merge(full.trials, on=keys, suffixes=("", "_full"))
        difference = numeric(both, column) - numeric(both, f"{column}_full")
        for size, values in difference.dropna().groupby(both[N]):
            mean, low, high = mean_interval(values.to_numpy(dtype=float))
            rank = lora.settings["rank"]
            label = ", ".join([f"rank {rank:g}" if rank is not None else "LoRA", *lora.others_text])
            yield Paired(float(str(size)), lora.tokens, label, len(values), mean, low, high)


def trained_share(group: Tuned) -> tuple[float, float]:
    """Return the smallest and the largest share of the parameters that a group trained; NaN where not recorded."""
    share = numeric(group.trials, "trainable_params") / numeric(group.trials, "params")
    return (float(share.min()), float(share.max())) if share.notna().any() else (np.nan, np.nan)
