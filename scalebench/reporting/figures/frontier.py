"""The compute-optimal frontier of a study that varies size and training tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.surfaces import Frontier
from scalebench.analysis.trends import Array
from scalebench.reporting.quantities import bounded, quantity, symbol
from scalebench.reporting.svg import Marks, legend, series_style
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

CAPTION = (
    "Lines are the closed form from the law L = E + A·N^−α + B·D^−β fitted to all sizes and lengths, with 95 % bands "
    "where there are intervals. Marks are the minima of parabolas through the trials of one budget, where they lie "
    "inside the sizes tried; they are biased even without noise unless α = β and the sizes are centred. N is counted "
    "without embeddings, compute as 6ND."
)
COLUMNS = ("series", "compute", "from", "N*", "95 % interval of N*", "D*", "95 % interval of D*")


def frontier_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Compute-optimal parameters and tokens against compute; nothing where the trials do not vary both."""
    found = [(surface.label, surface.frontier) for surface in study.surfaces]
    refusals = [f"{label}: no frontier: {one}." if label else f"No frontier: {one}."
                for label, one in found if isinstance(one, str)]  # fmt: skip
    drawn = [(label, one) for label, one in found if not isinstance(one, str)]
    if not drawn:
        return " ".join(refusals) or None
    single = len(found) == 1
    rows = [row for i, (label, one) in enumerate(drawn) for row in _draw(marks, label, one, i, single=single)]
    marks.axes.set(xscale="log", yscale="log", xlabel="training compute C = 6ND (FLOP)", ylabel="parameters or tokens")
    legend(marks)
    said = (sentence for label, one in drawn for sentence in (_exponents(label, one), _parameters(one)))
    caption = " ".join([*said, *refusals, CAPTION])
    return Caption(caption, table("Compute-optimal parameters and tokens.", COLUMNS, rows, series=len(found)))


def _exponents(label: str, one: Frontier) -> str:
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
    return f"{label + ': ' if label else ''}Compute-optimal {' and '.join(texts)}{why}."


def _parameters(one: Frontier) -> str:
    """Say the fitted surface's parameters with their intervals, its status, and any bound it lies at."""
    drawn, fitted = one.allocation.draws is not None, one.fit
    told = [
        f"{symbol(name)} = {text} ({interval})"
        for name, (text, interval) in (
            (name, bounded(value, *(fitted.interval(name) if drawn else (np.nan, np.nan))))
            for name, value in fitted.parameters.items()
        )
    ]
    bounds = f", at the bound of {' and '.join(map(symbol, fitted.bounds_hit))}" if fitted.bounds_hit else ""
    return f"The law has {', '.join(told)}; fit {fitted.status.replace('_', ' ')}{bounds}."


def _draw(marks: Marks, label: str, one: Frontier, i: int, single: bool) -> Iterator[Sequence[Cell]]:
    """Draw both lines of one series, full and dashed, with its minima, and yield its rows."""
    ends = [_side(marks, "" if single else f"{label}: ", one, side, series_style(2 * i + side)) for side in (0, 1)]
    named = word(label or "all trials")
    for k, flops in enumerate(one.budgets):
        values = [c for mid, low, high in ends for c in (number(mid[k]), word(_range(low[k], high[k])))]
        yield (named, number(flops, "FLOP"), word("the fitted law"), *values)
    for flops, params, tokens in one.minima:
        yield (named, number(flops, "FLOP"), word("minimum of the budget"), number(params), word(None),
               number(tokens), word(None))  # fmt: skip


def _range(low: float, high: float) -> str | None:
    return f"{quantity(low)} to {quantity(high)}" if np.isfinite(high - low) else None


def _side(marks: Marks, prefix: str, one: Frontier, side: int, style: dict[str, Any]) -> tuple[Array, Array, Array]:
    """Draw N* (side 0) or D* (side 1) and return it with its interval, each (n,)."""
    found, name = one.allocation, ("parameters N*", "tokens D*")[side]
    label = f"{prefix}{name}"
    value = (found.params, found.tokens)[side](one.budgets)
    low = high = np.full(len(value), np.nan)
    if found.draws is not None:
        low, high = (found.params_interval, found.tokens_interval)[side](one.budgets)
    marks.axes.plot(one.budgets, value, color=style["color"], linestyle=("-", "--")[side], label=label)
    marks.axes.fill_between(one.budgets, low, high, color=style["color"], alpha=0.18, linewidth=0)
    titles = [f"{label} at {quantity(row[0], 'FLOP')}: {quantity(row[1 + side])}" for row in one.minima]
    marks.draw([row[0] for row in one.minima], [row[1 + side] for row in one.minima], titles, **style)
    return value, low, high


FRONTIER = FigureSpec("frontier", "Compute-optimal frontier", frontier_figure, optional=True)
