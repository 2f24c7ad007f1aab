"""The loss as a surface over size and data, of series that vary both, and the compute-optimal frontier on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from scalebench.advice import Allocation, Counting, parametric
from scalebench.advice.allocation import WIDEST, count
from scalebench.advice.compute_optimal import minima_by_budget
from scalebench.analysis.trends import Array, Trend, trend_by
from scalebench.analysis.trials import LENGTH_AXES, LOSS, PARAMETERS, N, best_over, numeric, split_columns, tuned_axes
from scalebench.laws import LAWS, Fit, FitRefused, fit
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN

COUNTING = Counting("non_embedding", "6ND")
BUDGETS = 21  # at which lines and bands of a frontier are drawn
FRONTIER_LAW = "chinchilla"  # the law whose optimum has a closed form


@dataclass(frozen=True)
class Frontier:
    """Compute-optimal sizes and data of one surface.

    ``budgets`` (n,) are those in FLOP at which the optimum is determined, ``allocation`` is the closed form of the
    fitted law, ``minima`` are the interior minima of parabolas through the trials of one budget, as (FLOP, N, D).
    """

    fit: Fit
    budgets: Array
    allocation: Allocation
    minima: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True, eq=False)
class Surface:
    """The trials of one series that vary size and data: ``points`` with params_non_embedding, tokens and loss."""

    label: str
    law: str
    points: pd.DataFrame = field(repr=False)

    @cached_property
    def trend(self) -> Trend:
        """The law of loss against size and data."""
        return self._fitted(self.law)

    @cached_property
    def frontier(self) -> Frontier | str:
        """The compute-optimal frontier, or the reason why there is none."""
        trend = self.trend if self.law == FRONTIER_LAW else self._fitted(FRONTIER_LAW)
        if trend.fit is None:
            return trend.reason
        if trend.fit.status == "degenerate":
            return "the trials do not tell the worth of parameters from that of tokens"
        try:
            allocation = parametric(trend.fit, COUNTING)
        except FitRefused as refusal:
            return str(refusal)
        flops = count(self.points, COUNTING)["flops"]
        budgets = np.geomspace(flops.min(), flops.max(), BUDGETS)
        budgets = budgets[allocation.determined(budgets)]
        if not budgets.size:
            return f"the 95 % intervals of N* and D* are wider than ×{WIDEST:,.0f}: the trials do not determine them"
        return Frontier(trend.fit, budgets, allocation, _minima(self.points))

    def _fitted(self, law: str) -> Trend:
        try:
            fitted = fit(self.points.rename(columns={N: "params"}), law)
        except FitRefused as refusal:
            return Trend(None, str(refusal))
        return trend_by(fitted)


def _minima(points: pd.DataFrame) -> tuple[tuple[float, float, float], ...]:
    """Return (FLOP, N, D) of the interior minimum of each budget; none where fewer than three budgets have one."""
    try:
        found = minima_by_budget(points, COUNTING)[1]
    except FitRefused:
        return ()
    optima = [(group["flops"], optimum.x) for group, (optimum,) in found]
    return tuple((flops, x, flops / (FLOPS_PER_PARAMETER_TOKEN * x)) for flops, x in optima) if len(optima) >= 3 else ()


def surfaces_of(trials: pd.DataFrame, definition: Mapping[str, Any]) -> Iterator[Surface]:
    """Yield the surface of each series that varies size and tokens; lengths of training do not split these series.

    The law is that of the study where it is one of size and data, else chinchilla.
    """
    fit_law = str((definition.get("fit") or {}).get("law") or "")
    law = fit_law if fit_law in LAWS and set(LAWS[fit_law].inputs) == {"params", "tokens"} else FRONTIER_LAW
    columns = [name for name in split_columns(trials, definition) if name not in LENGTH_AXES]
    usable = trials[trials["valid"] & (trials[LOSS] > 0)].assign(tokens=numeric(trials, "tokens_seen"))
    usable = usable[usable["tokens"] > 0]
    groups = usable.groupby(columns, dropna=False, sort=True) if columns else [((), usable)]
    for values, group in groups:
        if min(group[N].nunique(), group["tokens"].nunique()) < 2:
            continue
        label = ", ".join(v if isinstance(v, str) else f"{k} {v}" for k, v in zip(columns, values, strict=True))
        tuned = [best_over(part, tuned_axes(definition), PARAMETERS)[0] for _, part in group.groupby("tokens")]
        points = pd.concat(tuned).rename(columns={LOSS: "loss"})[[N, "tokens", "loss"]]
        yield Surface(label, law, points.reset_index(drop=True))
