"""Figures of quantisation: loss added against size and against data, and latency."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.quantising import last_of_runs, levels, means, quantised
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import N, numeric
from scalebench.reporting.quantities import quantity, significant, uncertain
from scalebench.reporting.svg import MUTED, PAPER, Marks, finish, legend, ramp, series_style, size_axis
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

RATIO, LOW, HIGH = "latency_ratio", "latency_ratio_low", "latency_ratio_high"
SMALLEST = 1e-3  # nats: below this the axis is linear, so that a loss added of 0 or less has a place


def styles_of_levels(study: StudyAnalysis) -> dict[str, dict[str, Any]]:
    """Return colour and marker of each level, the same in every figure: a ramp over simulated bits, then the others."""
    names = [level for level, _ in levels(quantised(study))]
    simulated = [name for name in names if name.endswith((" bit", " bits"))]
    others = [series_style(i)["color"] for i in range(len(names) - len(simulated))]
    order = [*simulated, *(name for name in names if name not in simulated)]
    colors = [*ramp(len(simulated)), *others] if simulated else others
    return {
        name: {"color": color, "marker": series_style(i)["marker"]}
        for i, (name, color) in enumerate(zip(order, colors, strict=True))
    }


def size_figure(marks: Marks, study: StudyAnalysis) -> Caption | str:
    """Mean loss added against size, a line for each level."""
    rows = last_of_runs(quantised(study))
    if rows.empty:
        return "No trial has a loss added."
    styles = styles_of_levels(study)
    cells: list[Sequence[Cell]] = []
    for level, part in levels(rows):
        points, style = means(part), styles[level]
        titles = [f"{level}, {size_text(size)}: {nats_text(mean, se)}" for size, mean, se in _triples(points, N)]
        _draw(marks, points[N], points, titles, style, level)
        cells += [
            (word(level), number(size), number(runs), (uncertain(mean, se), mean))
            for size, runs, mean, se in points.itertuples(index=False)
        ]
    _added_axis(marks)
    size_axis(marks.axes)
    legend(marks)
    several = len(rows) < len(quantised(study))
    return Caption(
        "Loss on the same held-out sample with fewer bits, minus that of the unchanged model. Marks are means over "
        "runs, bars two standard errors; the axis is linear below 0.001 nats." + " Last checkpoints only." * several,
        table("Loss added by level and size.", ("level", "size", "runs", "loss added (nats)"), cells),
    )


def data_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Mean loss added against tokens (or samples) per parameter, a colour for each level, a line for each size."""
    rows, unit = quantised(study), unit_of(study)
    if rows.empty or rows.groupby("run")["data"].nunique().max() < 2:
        return None
    styles = styles_of_levels(study)
    cells: list[Sequence[Cell]] = []
    for level, part in levels(rows):
        style = styles[level]
        for _, of_size in part.groupby(N):
            size = float(of_size[N].iloc[0])
            points = means(of_size, "ratio")
            titles = [
                f"{level}, {size_text(size)}, {significant(ratio)} {unit} per parameter: {nats_text(mean, se)}"
                for ratio, mean, se in _triples(points, "ratio")
            ]
            _draw(marks, points["ratio"], points, titles, style, level if size == part[N].min() else None)
            cells += [
                (word(level), number(size), number(ratio), number(runs), (uncertain(mean, se), mean))
                for ratio, runs, mean, se in points.itertuples(index=False)
            ]
    _added_axis(marks)
    size_axis(marks.axes, f"{unit} per parameter")
    legend(marks)
    columns = ("level", "size", f"{unit} per parameter", "runs", "loss added (nats)")
    return Caption(
        "Loss added to the checkpoints of each run; a line joins the means of one size, bars are two standard errors.",
        table("Loss added by level, size and data.", columns, cells),
    )


def _draw(
    marks: Marks,
    x: pd.Series[float],
    points: pd.DataFrame,
    titles: Sequence[str],
    style: dict[str, str],
    label: str | None,
) -> None:
    marks.axes.plot(x, points["mean"], color=style["color"], linewidth=1)
    marks.bars(
        x, points["mean"] - 2 * points["se"], points["mean"] + 2 * points["se"], color=style["color"], linewidth=1.2
    )
    marks.draw(x, points["mean"], titles, **style, label=label)


def _added_axis(marks: Marks) -> None:
    axes = marks.axes
    axes.set_yscale("symlog", linthresh=SMALLEST, linscale=0.5)
    axes.axhline(0, color=MUTED, linewidth=0.8, zorder=0)
    largest = max(axes.get_ylim()[1], SMALLEST)
    ticks = [tick for tick in (0.0, *10.0 ** np.arange(-3, 3)) if tick <= largest]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylabel("loss added (nats)")


def latency_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Latency over that of the unchanged model, each trial with its interval; hollow where the machine was shared."""
    rows = last_of_runs(quantised(study))
    rows = rows[numeric(rows, RATIO) > 0]
    if rows.empty:
        return None
    styles = styles_of_levels(study)
    cells: list[Sequence[Cell]] = []
    for level, part in levels(rows):
        style, shared = styles[level], part["timing_exclusive"] == False  # noqa: E712 - also where it is not known
        marks.bars(part[N], numeric(part, LOW), numeric(part, HIGH), color=style["color"], linewidth=1.2)
        for chosen, face in ((part[~shared], style["color"]), (part[shared], PAPER)):
            titles = [f"{level}, {size_text(row[N])}: {ratio_text(row)}" for _, row in chosen.iterrows()]
            in_legend = face != PAPER or shared.all()
            marks.draw(chosen[N], numeric(chosen, RATIO), titles, **style, markerfacecolor=face,
                       label=level if in_legend else None)  # fmt: skip
        cells += [
            (word(level), number(row[N]), number(row.get("latency_before_s"), "s"), number(row.get("latency_s"), "s"),
             (ratio_text(row), float(row[RATIO])))
            for _, row in part.iterrows()
        ]  # fmt: skip
    marks.axes.axhline(1, color=MUTED, linewidth=0.8, zorder=0)
    ratios = numeric(rows, RATIO)
    finish(marks, "latency over the unchanged model's", log=bool(ratios.max() > 4 * ratios.min()))
    columns = ("level", "size", "unchanged", "with fewer bits", "ratio (95 % interval)")
    hollow = " Hollow marks shared the machine." if "hollow" in marks.drawn else ""
    return Caption(
        f"A forward pass of one sample over the unchanged model's, timed in turns; bars are 95 % intervals.{hollow}",
        table("Latency by trial.", columns, cells),
    )


def nats_text(mean: float, error: float) -> str:
    """Return a loss with its standard error."""
    return f"{uncertain(mean, error)} nats".replace("-", "−")


def size_text(size: float) -> str:
    """Return a size with its noun."""
    return f"{quantity(size)} parameters"


def ratio_text(row: pd.Series[float]) -> str:
    """Return a trial's latency ratio with its interval."""
    return f"{row[RATIO]:.2f} ({row[LOW]:.2f} to {row[HIGH]:.2f})"


def unit_of(study: StudyAnalysis) -> str:
    """Return what the data is counted in."""
    return "tokens" if numeric(study.trials, "tokens_seen").notna().any() else "samples"


def _triples(points: pd.DataFrame, by: str) -> Iterator[tuple[float, float, float]]:
    return zip(points[by], points["mean"], points["se"], strict=True)


BY_SIZE = FigureSpec("added-size", "Loss added against size", size_figure)
BY_DATA = FigureSpec("added-data", "Loss added against data per parameter", data_figure, optional=True)
LATENCY = FigureSpec("latency-ratio", "Latency against the unchanged model", latency_figure, optional=True)
