"""A series: trials that differ in size and seed only, with the laws fitted to them, each fitted once, on first use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scalebench.analysis.counting import Count, Counting, counting_of
from scalebench.analysis.recipe import Recipe
from scalebench.analysis.replicates import replicate_notes
from scalebench.analysis.trends import MAX_POINTS, Trend, cost_trend, fit_trend, trend_of
from scalebench.analysis.trials import (
    LOSS,
    MEMORY_PEAKS,
    STEP_TIME,
    TEACHER,
    N,
    SizeAxis,
    best_over,
    means_per_size,
    numeric,
    own_steps,
    split_columns,
    total_params,
    tuned_axes,
)
from scalebench.laws import FitRefused

PROFILED_STUDIES = 400  # simulated to find how far the profile of E is drawn
MOST_FITTED, BEST_FITTED = 8, 3
SHORT = {TEACHER: "teacher"}  # names of columns in labels
SAME_SIZE = 0.01  # sizes that differ by rounding to whole heads are held out together

if TYPE_CHECKING:
    from scalebench.laws import Forecast
    from scalebench.laws.intervals.profile import Profile


@dataclass(frozen=True, eq=False)
class Series:
    """Trials that differ in what grows (``x``) and in seed only, with what was fitted to them.

    ``trials`` are all of them, ``usable`` the valid ones (at each size the best of the tuned axes). ``law`` is that of
    the loss, ``holds_out`` whether it is also fitted without the largest size; ``notes`` warn of tuned values at the
    edge of those tried. ``definition`` and ``count`` are those of the study.
    """

    label: str
    x: SizeAxis
    trials: pd.DataFrame = field(repr=False)
    usable: pd.DataFrame = field(repr=False)
    law: str
    holds_out: bool
    notes: tuple[str, ...]
    definition: Mapping[str, Any] = field(default_factory=dict, repr=False)
    count: Count | None = field(default=None, repr=False)

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
    def loss_of_means(self) -> Trend:
        """The law of the loss fitted to the mean of each size, without intervals: in a hundredth of the time."""
        sizes = self.sizes[["size", "mean"]].rename(columns={"size": "x", "mean": "y"})
        return fit_trend(sizes.assign(config=sizes["x"].map("{:.0f}".format)), self.law, intervals=False)

    @cached_property
    def loss_below(self) -> Trend:
        """The law of the loss fitted without the held-out largest size; to every size if none is held out."""
        if not (self.holds_out and len(self.sizes) > 1):
            return self.loss_all
        smaller = self.usable[self.usable[self.x.column] < self.sizes["size"].max()]
        return trend_of(smaller, LOSS, self.law, self.x.column)

    @property
    def held_out_forecast(self) -> Forecast | None:
        """The largest size, predicted from the smaller ones, where the study holds it out and they carry the law."""
        if not (self.holds_out and self.backtest):
            return None
        largest = self.backtest[-1]
        return largest if np.isclose(largest.size, self.sizes["size"].max(), rtol=SAME_SIZE) else None

    @cached_property
    def backtest(self) -> Sequence[Forecast]:
        """Every larger size, predicted from the smaller ones."""
        return self.loss_all.backtest

    @cached_property
    def profile(self) -> Profile | str:
        """The profile of the objective over the irreducible loss E, or the reason why there is none."""
        if self.loss_all.fit is None:
            return self.loss_all.reason
        try:
            profile = self.loss_all.fit.profile("E", n=PROFILED_STUDIES)
        except FitRefused as refusal:
            return str(refusal)
        return profile if profile.rise > 0 else "the points lie on the law exactly: there is no noise to compare with"

    @cached_property
    def step_time(self) -> Trend:
        """Median step time in seconds against N."""
        trend = cost_trend(self.timed, STEP_TIME, N)
        return trend if trend.fit else replace(trend, reason=self.untimed_reason or trend.reason)

    @property
    def together(self) -> int:
        """How many valid trials were trained together with others in one process."""
        return int(numeric(self.trials[self.trials["valid"]], "ensemble_size").notna().sum())

    @property
    def untimed_reason(self) -> str:
        """How many step times are left out because a process trained several models, or other work shared the
        machine, and what to do; "" for none."""
        if together := self.together:
            return (
                f"{together} of {int(self.trials['valid'].sum())} trials were trained together with others in one "
                "process, and their times were not measured: run the study without run.ensemble, with --results NEW"
            )
        measured = self.trials[self.trials["valid"] & (self.trials[STEP_TIME] > 0)]
        shared = int((~measured["timed"].astype(bool)).sum())
        if not shared:
            return ""
        of_all = f"all {shared}" if shared == len(measured) else f"{shared} of {len(measured)}"
        left = "" if shared == len(measured) else ", and the others are too few for a law"
        return (
            f"{of_all} step times were measured while other work shared the machine (timing_exclusive = false){left}: "
            "run the study with `--jobs 1 --results NEW` on it alone"
        )

    @cached_property
    def memory(self) -> Trend:
        """Peak memory in bytes against N."""
        if self.memory_column is None:
            return Trend(None, "memory was not measured")
        return cost_trend(self.usable, self.memory_column, N)

    @cached_property
    def counting(self) -> Counting:
        """What counts the FLOPs of a training step at sizes that no trial has, or the reason why nothing does."""
        return counting_of(self.usable, self.definition, self.count)

    @cached_property
    def flops(self) -> Trend:
        """FLOPs of a training step against N."""
        return cost_trend(self.usable, "flops_per_step", N)

    @cached_property
    def energy(self) -> Trend:
        """Energy of a training step in joules against N; of an accelerator with a counter."""
        per_step = numeric(self.usable, "energy_j") / own_steps(self.usable)
        if per_step.isna().all():
            return Trend(None, f"not measured: {_why_no_energy(self.usable)}")
        return cost_trend(self.usable.assign(energy_per_step=per_step), "energy_per_step", N)

    @cached_property
    def checkpoint(self) -> Trend:
        """Bytes of a checkpoint against all parameters, embeddings included."""
        if numeric(self.usable, "checkpoint_bytes").isna().all():
            return Trend(None, "checkpoint sizes were not measured")
        return cost_trend(self.usable.assign(total=total_params(self.usable)), "checkpoint_bytes", "total")

    @cached_property
    def recipe(self) -> Recipe:
        """How much data trials of a size see."""
        return Recipe.of(self.usable, self._tokens_per_param)

    @property
    def _tokens_per_param(self) -> float | None:
        """The budget per parameter of the study file, or of this series where there are several."""
        several = [*numeric(self.usable, "tokens_per_param").dropna().unique()]
        values = several or (self.definition.get("fields") or {}).get("tokens_per_param") or ()
        return float(next(iter(values))) if len(values) == 1 else None


def _why_no_energy(trials: pd.DataFrame) -> str:
    """Return why trials have no energy, by their records."""
    methods = trials.get("energy_method", pd.Series(dtype=object)).dropna().astype(str).unique()
    return methods[0].removeprefix("none: ") if len(methods) == 1 else "no energy counter was recorded"


def make_series(
    label: str, trials: pd.DataFrame, definition: Mapping[str, Any], x: SizeAxis, count: Count | None = None
) -> Series:
    """Make a series of prepared trials by the ``[fit]`` table of a study."""
    options = definition.get("fit") or {}
    usable, notes = best_over(trials[trials["valid"]], tuned_axes(definition), x)
    law, holds_out = str(options.get("law") or "power"), options.get("holdout", "largest") != "none"
    known = {x.column, *tuned_axes(definition), *split_columns(trials, definition)}
    own_seed = "seed" in (definition.get("fields") or {"seed": None})  # older definitions do not tell
    notes = (*notes, *replicate_notes(usable, x, known, inherit_seed=not own_seed))
    if len(usable) > MAX_POINTS:
        notes += (f"each fit takes {MAX_POINTS:,} of {len(usable):,} trials, spread evenly over sizes and seeds",)
    return Series(label, x, trials, usable, law, holds_out, notes, definition, count)


def setting_text(value: Any) -> str:
    """Return a setting as a study file has it: 200 without a point, 3e10 without ten zeros, true or false.

    A number that is not whole, as of a geometric axis, has six digits and no exponent.
    """
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.0f}" if abs(value) >= 1e6 else f"{value:.6g}"
    if not isinstance(value, float):
        return str(value).lower() if value is None or isinstance(value, bool | np.bool_) else str(value)
    digits, power = f"{value:.0f}", f"{value:g}".replace("e+0", "e").replace("e+", "e")
    return power if len(power) < len(digits) and float(power) == value else digits


def series_of(
    trials: pd.DataFrame, definition: Mapping[str, Any], x: SizeAxis, count: Count | None = None
) -> Iterator[Series]:
    """Split prepared trials into series; one, without a label, where nothing but size and seed varies."""
    columns = split_columns(trials, definition)
    if not columns:
        yield make_series("", trials, definition, x, count)
        return
    for values, group in trials.groupby(columns, dropna=False, sort=True):
        settings = zip(columns, values, strict=True)
        parts = [
            value if isinstance(value, str) else f"{SHORT.get(name, name)} {setting_text(value)}"
            for name, value in settings
        ]
        label = ", ".join(dict.fromkeys(parts))  # weights and arithmetic may be of one type
        yield make_series(label, group, definition, x, count)


def of_one_size(series: Sequence[Series]) -> bool:
    """Tell whether there are several series, all of the same single size."""
    sizes = pd.concat([each.trials[each.x.column] for each in series]) if series else pd.Series(dtype=float)
    return len(series) > 1 and sizes.nunique() == 1


def ranked(all_series: Sequence[Series]) -> list[Series]:
    """Return the series that have a loss by their mean loss at their largest size, lowest first."""
    return sorted((series for series in all_series if len(series.sizes)), key=lambda each: each.sizes["mean"].iloc[-1])


def to_fit(all_series: Sequence[Series]) -> Sequence[Series]:
    """Return the series whose laws a reader can look at: all of them, the best BEST_FITTED of more than MOST_FITTED."""
    return all_series if len(all_series) <= MOST_FITTED else ranked(all_series)[:BEST_FITTED]


def mean_loss(series: Series) -> float:
    """Return the mean loss of a series of one size."""
    return float(series.sizes["mean"].iloc[0])
