"""A series: trials that differ in size and seed only, with the laws fitted to them, each fitted once, on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scalebench.analysis.trends import Trend, trend_of
from scalebench.analysis.trials import (
    LOSS,
    MEMORY_PEAKS,
    STEP_TIME,
    SizeAxis,
    best_over,
    means_per_size,
    split_columns,
    tuned_axes,
)

if TYPE_CHECKING:
    from scalebench.laws import Holdout


@dataclass(frozen=True)
class HeldOut:
    """The largest size, predicted from the smaller ones; losses in nats, errors as fractions of the measured loss."""

    size: float
    measured: float
    predicted: float
    low: float
    high: float
    naive: float

    @property
    def error(self) -> float:
        """Prediction over measurement, less one."""
        return self.predicted / self.measured - 1

    @property
    def naive_error(self) -> float:
        """The same for repeating the loss of the next-smaller size."""
        return self.naive / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the measured mean lies in the 95 % prediction interval of a new run."""
        return self.low <= self.measured <= self.high

    @property
    def has_interval(self) -> bool:
        """Whether the prediction came with an interval."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


@dataclass(frozen=True, eq=False)
class Series:
    """Trials that differ in what grows (``x``) and in seed only, with what was fitted to them.

    ``trials`` are all of them, ``usable`` the valid ones (at each size the best of the tuned axes). ``law`` is that of
    the loss, ``holds_out`` whether it is also fitted without the largest size; ``notes`` warn of tuned values at the
    edge of those tried.
    """

    label: str
    x: SizeAxis
    trials: pd.DataFrame = field(repr=False)
    usable: pd.DataFrame = field(repr=False)
    law: str
    holds_out: bool
    notes: tuple[str, ...]

    @cached_property
    def sizes(self) -> pd.DataFrame:
        """One row per size: size, trials, mean, se, seed_sd of the loss."""
        return means_per_size(self.usable, self.x)

    @property
    def timed(self) -> pd.DataFrame:
        """The valid trials that had the machine to themselves."""
        return self.trials[self.trials["timed"]]

    @property
    def memory_column(self) -> str | None:
        """The peak that this series measured, of ``MEMORY_PEAKS``."""
        return next((name for name in MEMORY_PEAKS if self.usable[name].notna().any()), None)

    @cached_property
    def loss_all(self) -> Trend:
        """The law of the loss fitted to every size."""
        return trend_of(self.usable, LOSS, self.law, self.x.column)

    @cached_property
    def loss_below(self) -> Trend:
        """The law of the loss fitted without the held-out largest size; to every size where none is held out."""
        if not (self.holds_out and len(self.sizes) > 1):
            return self.loss_all
        smaller = self.usable[self.usable[self.x.column] < self.sizes["size"].max()]
        return trend_of(smaller, LOSS, self.law, self.x.column)

    @cached_property
    def held(self) -> HeldOut | None:
        """The largest size, compared with what the law fitted to the others predicts."""
        if not self.holds_out or len(self.sizes) < 2 or self.loss_below.fit is None:
            return None
        sizes, means = self.sizes["size"].tolist(), self.sizes["mean"].tolist()
        return HeldOut(sizes[-1], means[-1], *self.loss_below.at(sizes[-1]), naive=means[-2])

    @cached_property
    def backtest(self) -> Sequence[Holdout]:
        """Every larger size, predicted from the smaller ones."""
        return self.loss_all.backtest()

    @cached_property
    def step_time(self) -> Trend:
        """Median step time in seconds."""
        return trend_of(self.timed, STEP_TIME, "offset_linear", self.x.column)

    @cached_property
    def memory(self) -> Trend:
        """Peak memory in bytes."""
        if self.memory_column is None:
            return Trend(None, "memory was not measured")
        return trend_of(self.usable, self.memory_column, "offset_linear", self.x.column)


def make_series(label: str, trials: pd.DataFrame, definition: Mapping[str, Any], x: SizeAxis) -> Series:
    """Make a series of prepared trials by the ``[fit]`` table of a study."""
    options = definition.get("fit") or {}
    usable, notes = best_over(trials[trials["valid"]], tuned_axes(definition), x)
    law, holds_out = str(options.get("law") or "power"), bool(options.get("holdout", "largest"))
    return Series(label, x, trials, usable, law, holds_out, notes)


def series_of(trials: pd.DataFrame, definition: Mapping[str, Any], x: SizeAxis) -> Iterator[Series]:
    """Split prepared trials into series; one, without a label, where nothing but size and seed varies."""
    columns = split_columns(trials, definition)
    if not columns:
        yield make_series("", trials, definition, x)
        return
    for values, group in trials.groupby(columns, dropna=False, sort=True):
        named = zip(columns, values, strict=True)
        parts = [value if isinstance(value, str) else f"{name} {str(value).lower()}" for name, value in named]
        label = ", ".join(dict.fromkeys(parts))  # weights and arithmetic may be of one type
        yield make_series(label, group, definition, x)


def of_one_size(series: Sequence[Series]) -> bool:
    """Tell whether several series of one size are all there is to compare."""
    sizes = pd.concat([one.trials[one.x.column] for one in series]) if series else pd.Series(dtype=float)
    return len(series) > 1 and sizes.nunique() == 1


def mean_loss(one: Series) -> float:
    """Return the mean loss of a series of one size."""
    return float(one.sizes["mean"].iloc[0])
