"""The compute-optimal frontier of a study that varies size and training tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalebench.advice import Allocation, Counting, isoflop, parametric
from scalebench.advice.allocation import count
from scalebench.analysis.series import LOSS, Array, N, Trend, best_over, numeric, split_columns, tuned_axes
from scalebench.laws import LAWS, Fit, FitRefused, fit
from scalebench.reporting.figures import Analysis, Words
from scalebench.reporting.quantities import bounded, quantity, symbol
from scalebench.reporting.svg import Marks, legend, look
from scalebench.reporting.tables import Cell, number, table, word

COUNTING = Counting("non_embedding", "6ND")
LENGTH_AXES = frozenset({"steps", "tokens", "tokens_per_param", "flops"})  # how long a trial trains: no series here
BUDGETS = 21  # at which the lines and bands are drawn
CAPTION = (
    "Lines are the closed form from the law L = E + A·N^−α + B·D^−β fitted to all sizes and lengths, with 95 % bands "
    "where there are intervals. Marks are the minima of parabolas through the trials of one budget, where they lie "
    "inside the sizes tried; they are biased even without noise unless α = β and the sizes are centred. N is counted "
    "without embeddings, compute as 6ND."
)
COLUMNS = ("series", "compute", "from", "N*", "95 % interval of N*", "D*", "95 % interval of D*")


@dataclass(frozen=True)
class Frontier:
    """One series' optima: budgets (n,) in FLOP, Approach 3 there, and the interior minima as (FLOP, N, D)."""

    label: str
    surface: Fit
    budgets: Array
    allocation: Allocation
    minima: tuple[tuple[float, float, float], ...]


def frontier_figure(marks: Marks, study: Analysis) -> Words | str | None:
    """Compute-optimal parameters and tokens against compute; nothing where the trials do not vary both."""
    found = [frontier(label, points) for label, points in surfaces(study.frame, study.plan)]
    refusals = [one for one in found if isinstance(one, str)]
    drawn = [one for one in found if not isinstance(one, str)]
    if not drawn:
        return " ".join(refusals) or None
    rows = [row for i, one in enumerate(drawn) for row in _draw(marks, one, i, single=len(found) == 1)]
    marks.axes.set(xscale="log", yscale="log", xlabel="training compute C = 6ND (FLOP)", ylabel="parameters or tokens")
    legend(marks)
    caption = " ".join(
        [*(sentence for one in drawn for sentence in (_exponents(one), _parameters(one))), *refusals, CAPTION]
    )
    return Words(caption, table("Compute-optimal parameters and tokens.", COLUMNS, rows, series=len(found)))


def surfaces(frame: pd.DataFrame, plan: Mapping[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield label and points (params_non_embedding, tokens, loss) of each series that varies size and tokens."""
    names = [name for name in split_columns(frame, plan) if name not in LENGTH_AXES]
    usable = frame[frame["valid"] & (frame[LOSS] > 0)].assign(tokens=numeric(frame, "tokens_seen"))
    usable = usable[usable["tokens"] > 0]
    groups = usable.groupby(names, dropna=False, sort=True) if names else [((), usable)]
    for values, group in groups:
        label = ", ".join(v if isinstance(v, str) else f"{k} {v}" for k, v in zip(names, values, strict=True))
        best = [best_over(part, tuned_axes(plan))[0] for _, part in group.groupby("tokens")]
        if min(group[N].nunique(), group["tokens"].nunique()) > 1:
            points = pd.concat(best).rename(columns={LOSS: "loss"})
            yield label, points[[N, "tokens", "loss"]].reset_index(drop=True)


def surface_trends(frame: pd.DataFrame, plan: Mapping[str, Any]) -> dict[str, Trend]:
    """Fit each series that varies both: the study's law where it is one of size and data, else chinchilla."""
    named = str((plan.get("fit") or {}).get("law") or "")
    law = named if named in LAWS and set(LAWS[named].inputs) == {"params", "tokens"} else "chinchilla"
    return {label: _surface(points.rename(columns={N: "params"}), law) for label, points in surfaces(frame, plan)}


def _surface(points: pd.DataFrame, law: str) -> Trend:
    try:
        fitted = fit(points, law)
    except FitRefused as refusal:
        return Trend(None, str(refusal))
    return Trend(fitted, no_interval="" if fitted.degrees_of_freedom else "zero degrees of freedom")


def frontier(label: str, points: pd.DataFrame) -> Frontier | str:
    """Fit size and tokens together, or say in a sentence why that is refused."""
    head = f"{label}: no frontier: " if label else "No frontier: "
    try:
        surface = fit(points.rename(columns={N: "params"}), "chinchilla")
        if surface.status == "degenerate":
            return f"{head}the trials do not tell the worth of parameters from that of tokens."
        allocation = parametric(surface, COUNTING)
    except FitRefused as refusal:
        return f"{head}{refusal}."
    flops = count(points, COUNTING)["flops"]
    return Frontier(label, surface, np.geomspace(flops.min(), flops.max(), BUDGETS), allocation, minima(points))


def minima(points: pd.DataFrame) -> tuple[tuple[float, float, float], ...]:
    """Return (FLOP, N, D) of the interior minimum of each budget; none where fewer than three budgets have one."""
    try:
        optima = isoflop(points, COUNTING).optima
    except FitRefused:
        return ()
    return tuple((flops, optimum.x, flops / (6 * optimum.x)) for flops, optimum in optima)


def _exponents(one: Frontier) -> str:
    """Say the exponents of the frontier, or why they have no interval."""
    found, drawn = one.allocation, one.allocation.draws is not None
    texts = [
        f"{what} grow as C^{value} ({interval})"
        for what, value, interval in (
            (what, *bounded(getattr(found, k), *(found.interval(k) if drawn else (np.nan, np.nan))))
            for what, k in (("parameters", "a"), ("tokens", "b"))
        )
    ]
    why = "" if drawn else f" ({found.method})"
    return f"{one.label + ': ' if one.label else ''}Compute-optimal {' and '.join(texts)}{why}."


def _parameters(one: Frontier) -> str:
    """Say the fitted surface's parameters with their intervals, its status, and any bound it lies at."""
    drawn, fitted = one.allocation.draws is not None, one.surface
    told = [
        f"{symbol(name)} = {text} ({interval})"
        for name, (text, interval) in (
            (name, bounded(value, *(fitted.interval(name) if drawn else (np.nan, np.nan))))
            for name, value in fitted.parameters.items()
        )
    ]
    bounds = f", at the bound of {' and '.join(map(symbol, fitted.bounds_hit))}" if fitted.bounds_hit else ""
    return f"The law has {', '.join(told)}; fit {fitted.status.replace('_', ' ')}{bounds}."


def _draw(marks: Marks, one: Frontier, i: int, single: bool) -> Iterator[Sequence[Cell]]:
    """Draw both lines of one series, full and dashed, with its minima, and yield its rows."""
    ends = [_side(marks, one, side, look(2 * i + side), single) for side in (0, 1)]
    named = word(one.label or "all trials")
    for k, flops in enumerate(one.budgets):
        values = [c for mid, low, high in ends for c in (number(mid[k]), word(_range(low[k], high[k])))]
        yield (named, number(flops, "FLOP"), word("the fitted law"), *values)
    for flops, params, tokens in one.minima:
        yield (named, number(flops, "FLOP"), word("minimum of the budget"), number(params), word(None),
               number(tokens), word(None))  # fmt: skip


def _range(low: float, high: float) -> str | None:
    return f"{quantity(low)} to {quantity(high)}" if np.isfinite(high - low) else None


def _side(marks: Marks, one: Frontier, side: int, style: dict[str, Any], single: bool) -> tuple[Array, Array, Array]:
    """Draw N* (side 0) or D* (side 1) and return it with its interval, each (n,)."""
    found, name = one.allocation, ("parameters N*", "tokens D*")[side]
    label = name if single else f"{one.label}: {name}"
    value = (found.params, found.tokens)[side](one.budgets)
    low = high = np.full(len(value), np.nan)
    if found.draws is not None:
        low, high = (found.params_interval, found.tokens_interval)[side](one.budgets)
    marks.axes.plot(one.budgets, value, color=style["color"], linestyle=("-", "--")[side], label=label)
    marks.axes.fill_between(one.budgets, low, high, color=style["color"], alpha=0.18, linewidth=0)
    titles = [f"{label} at {quantity(row[0], 'FLOP')}: {quantity(row[1 + side])}" for row in one.minima]
    marks.draw([row[0] for row in one.minima], [row[1 + side] for row in one.minima], titles, **style)
    return value, low, high
