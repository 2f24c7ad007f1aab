"""What served models can take: the requests that each answers at most, and what it makes of the loads it was given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from scalebench.analysis.series import setting_text
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend, cost_trend
from scalebench.analysis.trials import N, numeric, split_columns
from scalebench.measure.statistics import mean_interval

LOADS = ("load", "requests_per_s", "concurrency")
CAPACITY, TIME_PER_REQUEST = "capacity_requests_per_s", "capacity_time_per_request_s"
OFFERED, ANSWERED, GOODPUT, SHARE = (
    "offered_requests_per_s", "answered_requests_per_s", "goodput_requests_per_s", "within_objectives",
)  # fmt: skip
OBJECTIVES = ("first_token_within_s", "token_within_s")
ENOUGH = 0.99  # share of the requests that meets the objectives


class Rate(NamedTuple):
    """Requests per second, with the 95 % interval of their mean; NaN ends where one trial measured them."""

    value: float
    low: float
    high: float


class Reach(NamedTuple):
    """Loads in requests per second: the highest at which enough requests met the objectives, and the next higher tried.

    None where there is no such load.
    """

    met: float | None
    missed: float | None
    share: float | None  # that met the objectives at ``missed``


@dataclass(frozen=True, eq=False)
class Served:
    """A model as it is served: the valid trials that differ in the load and the seed alone, by what arrived.

    ``label`` is how it differs from others of its size, empty where there are none.
    """

    label: str
    size: float
    trials: pd.DataFrame = field(repr=False)

    @property
    def timed(self) -> pd.DataFrame:
        """The trials that had the machine to themselves."""
        return self.trials[self.trials["timing_exclusive"].ne(False)]

    @cached_property
    def capacity(self) -> Rate | None:
        """What it answers with a full batch: the geometric mean over its trials, each of which measures it once."""
        known = numeric(self.timed, CAPACITY).dropna()
        if known.empty:
            return None
        return Rate(*np.exp(mean_interval(np.log(known))).tolist())

    @cached_property
    def reach(self) -> Reach | None:
        """Up to which load enough requests met the objectives; None without objectives, or for users."""
        known = self.timed[numeric(self.timed, SHARE).notna() & numeric(self.timed, OFFERED).notna()]
        if known.empty or known[list(OBJECTIVES)].drop_duplicates().shape[0] > 1:
            return None
        by_load = numeric(known, SHARE).groupby(numeric(known, OFFERED)).mean()
        short = by_load[by_load < ENOUGH]
        below = by_load if short.empty else by_load[by_load.index < short.index[0]]
        return Reach(
            float(below.index[-1]) if len(below) else None,
            float(short.index[0]) if len(short) else None,
            float(short.iloc[0]) if len(short) else None,
        )


def arrived(trials: pd.DataFrame) -> pd.Series[float]:
    """Return the requests per second that arrived: those offered, or with users those answered."""
    return numeric(trials, OFFERED).fillna(numeric(trials, ANSWERED))


@lru_cache(maxsize=8)
def served(study: StudyAnalysis) -> tuple[Served, ...]:
    """Return the models of a study as they were served, by size."""
    valid = study.trials[study.trials["valid"] & (numeric(study.trials, CAPACITY) > 0)]
    return tuple(_groups(valid, _settings(study)))


def _settings(study: StudyAnalysis) -> list[str]:
    """Return the columns besides size, load and seed in which the trials of a study differ."""
    return [name for name in split_columns(study.trials, study.definition) if name not in LOADS]


def _groups(valid: pd.DataFrame, settings: list[str]) -> Iterator[Served]:
    if valid.empty:
        return
    for _, group in valid.groupby([N, *settings], dropna=False, sort=True):
        first = group.iloc[0]
        label = ", ".join(f"{name} {setting_text(first[name])}" for name in settings)
        yield Served(label, float(first[N]), group.assign(arrived=arrived(group)).sort_values(["arrived", "seed"]))


@lru_cache(maxsize=8)
def capacity_trends(study: StudyAnalysis) -> dict[str, Trend]:
    """Return, for each setting of the study, the law of the seconds that a request costs with a full batch."""
    by_label: dict[str, list[pd.DataFrame]] = {}
    for model in served(study):
        by_label.setdefault(model.label, []).append(model.timed)
    return {label: cost_trend(pd.concat(parts), TIME_PER_REQUEST, N) for label, parts in by_label.items()}


def spread(study: StudyAnalysis) -> float:
    """Return the largest ratio between two measurements of one model's capacity; 1 where each was measured once."""
    ratios = [numeric(model.timed, CAPACITY) for model in served(study)]
    return max((float(values.max() / values.min()) for values in ratios if len(values) > 1), default=1.0)


def objectives(trials: pd.DataFrame) -> dict[str, Any]:
    """Return the objectives that all trials share, by name; empty where they differ or there is none."""
    rows = trials.reindex(columns=list(OBJECTIVES)).drop_duplicates()
    return {} if len(rows) != 1 else {name: rows[name].iloc[0] for name in OBJECTIVES if pd.notna(rows[name].iloc[0])}
