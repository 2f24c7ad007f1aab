"""How much data the trials of a study see at each size."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from scalebench.analysis.trials import N, active_params, first_step, numeric, own_steps, steps_are_alike
from scalebench.analysis.whole_steps import whole_steps

SAME_RECIPE = 0.05  # rounding to whole steps moves tokens per parameter by about this much


@dataclass(frozen=True)
class Recipe:
    """How much data trials of a size see: a fixed amount, an amount per parameter, or neither (a separate axis).

    ``unit`` is tokens or samples, ``known`` whether the trials record either; ``per_step`` is the data of a step,
    None where it differs between trials, or between a continued run and its parents. ``budget`` is the amount per
    parameter that a token passes through as the study file has it, where the steps of all trials follow from it.
    """

    unit: str
    known: bool
    fixed: float | None
    per_parameter: float | None
    per_step: float | None
    budget: float | None = None

    @classmethod
    def of(cls, usable: pd.DataFrame, tokens_per_param: float | None = None) -> Recipe:
        """Read the recipe off the trials; ``tokens_per_param`` is that of their study file, if it has one."""
        unit = "tokens" if numeric(usable, "tokens_seen").notna().any() else "samples"
        data_seen = numeric(usable, f"{unit}_seen")
        steps = first_step(usable) + own_steps(usable)  # the data of a continued run include its parents'
        fixed = _constant(data_seen)
        per_parameter = None if fixed else _constant(data_seen / usable[N])
        per_step = _constant(data_seen / steps) if steps_are_alike(usable) else None
        budget = tokens_per_param if _follow(usable, tokens_per_param, per_step) else None
        if budget and not fixed and (active_params(usable) == usable[N]).all():
            per_parameter = budget
        return cls(unit, bool(data_seen.notna().any()), fixed, per_parameter, per_step, budget)

    def __str__(self) -> str:
        if not self.known:
            return f"{self.unit} that were not recorded"
        if self.fixed is not None:
            return f"{self.fixed:,.0f} {self.unit}"
        if self.budget is not None and self.per_parameter is None:
            return f"{self.budget:.4g} {self.unit} per active parameter"
        return f"{self.unit} that vary" if self.varies else f"{self.per_parameter:.4g} {self.unit} per parameter"

    @property
    def varies(self) -> bool:
        """Whether the data follow no recipe of the size."""
        return self.known and self.fixed is None and self.per_parameter is None

    def amount(self, params: float) -> float | None:
        """Return the data a size sees by this recipe."""
        return self.fixed if self.per_parameter is None else self.per_parameter * params

    def fits(self, params: float, amount: float) -> bool:
        """Tell whether an amount of data is the recipe's."""
        by_recipe = self.amount(params)
        return by_recipe is not None and abs(amount / by_recipe - 1) <= SAME_RECIPE


def _follow(usable: pd.DataFrame, tokens_per_param: float | None, per_step: float | None) -> bool:
    """Whether every trial took the steps that a plan gives it for these tokens per parameter."""
    if not (tokens_per_param and per_step) or first_step(usable).any():
        return False
    taken = zip(active_params(usable), own_steps(usable), strict=True)
    return all(whole_steps(tokens_per_param * active, per_step) == steps for active, steps in taken)


def _constant(values: pd.Series[float]) -> float | None:
    """Return the median of values that agree within ``SAME_RECIPE``, None for those that do not."""
    known = values.dropna()
    if known.empty or known.max() > known.min() * (1 + SAME_RECIPE):
        return None
    return float(known.median())
