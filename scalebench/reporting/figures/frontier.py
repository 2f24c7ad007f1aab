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
    "Lines: closed form of the law L = E + A·N^−α + B·D^−β fitted to all sizes and training lengths{band}. "
    "{marks}N excludes embeddings; compute is 6ND."
)
MINIMA = (
    "Marks: minima of parabolas through the trials of one compute budget, where they are inside the sizes tried; they "
    "are biased even without noise unless α = β and the sizes are centred. "
)
COLUMNS = ("series", "compute", "source", "N*", "95 % interval of N*", "D*", "95 % interval of D*")


def frontier_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Compute-optimal parameters and tokens against compute; nothing where the trials do not vary both."""
    frontiers = [(surface.label, surface.frontier) for surface in study.surfaces]
    refused: dict[str, list[str]] = {}
    for label, reason in frontiers:
        if isinstance(reason, str):
            refused.setdefault(reason, []).append(label)
    refusals = [f"No frontier{' of ' * any(labels)}{'; '.join(filter(None, labels))}: {reason}."
                for reason, labels in refused.items()]  # fmt: skip
    drawn = [(label, frontier) for label, frontier in frontiers if not isinstance(frontier, str)]
    if not drawn:
        return " ".join(refusals) or None
    single = len(frontiers) == 1
    rows = [row for i, (label, frontier) in enumerate(drawn) for row in _draw(marks, label, frontier, i, single=single)]
    marks.axes.set(xscale="log", yscale="log", xlabel="training compute C = 6ND (FLOP)", ylabel="parameters or tokens")
    for axis in (marks.axes.xaxis, marks.axes.yaxis):
        axis.set_major_formatter(lambda value, _: quantity(value))
        axis.set_minor_formatter("")
    legend(marks)
    sentences = (text for label, frontier in drawn for text in (_exponents(label, frontier), _parameters(frontier)))
    drawn_as = CAPTION.format(
        band=", with 95 % bands" if "band" in marks.drawn else "", marks=MINIMA if marks.titles else ""
    )
    caption = " ".join([*sentences, *refusals, drawn_as])
    return Caption(caption, table("Compute-optimal parameters and tokens.", COLUMNS, rows, series=len(frontiers)))


def _exponents(label: str, frontier: Frontier) -> str:
    """Return the exponents of the frontier in a sentence, or why they have no interval."""
    allocation, has_intervals = frontier.allocation, frontier.allocation.draws is not None
    texts = [
        f"{noun} grow as C^{value} ({interval})"
        for noun, value, interval in (
            (noun, *bounded(getattr(allocation, k), *(allocation.interval(k) if has_intervals else (np.nan, np.nan))))
            for noun, k in (("parameters", "a"), ("tokens", "b"))
        )
    ]
    why = "" if has_intervals else f" ({allocation.method})"
    return f"{label + ': ' if label else ''}Compute-optimal {' and '.join(texts)}{why}."


def _parameters(frontier: Frontier) -> str:
    """Return the parameters of the fitted surface with intervals, the status of the fit, and any bound it is at."""
    has_intervals, fitted = frontier.allocation.draws is not None, frontier.fit
    parameters = [
        f"{symbol(name)} = {text} ({interval})"
        for name, (text, interval) in (
            (name, bounded(value, *(fitted.interval(name) if has_intervals else (np.nan, np.nan))))
            for name, value in fitted.parameters.items()
        )
    ]
    bounds = f", at the bound of {' and '.join(map(symbol, fitted.bounds_hit))}" if fitted.bounds_hit else ""
    return f"The law has {', '.join(parameters)}; fit {fitted.status.replace('_', ' ')}{bounds}."


def _draw(marks: Marks, label: str, frontier: Frontier, i: int, single: bool) -> Iterator[Sequence[Cell]]:
    """Draw both lines of a series, solid and dashed, with its minima, and yield its rows."""
    ends = [_side(marks, "" if single else f"{label}: ", frontier, side, series_style(2 * i + side)) for side in (0, 1)]
    name = word(label or "all trials")
    for k, flops in enumerate(frontier.budgets):
        values = [c for mid, low, high in ends for c in (number(mid[k]), word(_range(low[k], high[k])))]
        yield (name, number(flops, "FLOP"), word("fitted law"), *values)
    for flops, params, tokens in frontier.minima:
        yield (name, number(flops, "FLOP"), word("parabola at this compute"), number(params), word(None),
               number(tokens), word(None))  # fmt: skip


def _range(low: float, high: float) -> str | None:
    return f"{quantity(low)} to {quantity(high)}" if np.isfinite(high - low) else None


def _side(
    marks: Marks, prefix: str, frontier: Frontier, side: int, style: dict[str, Any]
) -> tuple[Array, Array, Array]:
    """Draw N* (side 0) or D* (side 1) and return it with its interval, each (n,)."""
    allocation, name = frontier.allocation, ("parameters N*", "tokens D*")[side]
    label = f"{prefix}{name}"
    value = (allocation.params, allocation.tokens)[side](frontier.budgets)
    low = high = np.full(len(value), np.nan)
    if allocation.draws is not None:
        low, high = (allocation.params_interval, allocation.tokens_interval)[side](frontier.budgets)
    marks.axes.plot(frontier.budgets, value, color=style["color"], linestyle=("-", "--")[side], label=label)
    marks.band(frontier.budgets, low, high, style["color"])
    titles = [f"{label} at {quantity(row[0], 'FLOP')}: {quantity(row[1 + side])}" for row in frontier.minima]
    marks.draw([row[0] for row in frontier.minima], [row[1 + side] for row in frontier.minima], titles, **style)
    return value, low, high


FRONTIER = FigureSpec("frontier", "Compute-optimal frontier", frontier_figure, optional=True)
