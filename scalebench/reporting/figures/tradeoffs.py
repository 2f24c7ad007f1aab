"""What a lower loss costs in time and memory, and how far training and validation loss lie apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.pareto import pareto_front
from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, STEP_TIME, numeric, own_steps
from scalebench.reporting.figures.base import many, styles_of
from scalebench.reporting.quantities import quantity, scale, uncertain
from scalebench.reporting.svg import MUTED, PAPER, Marks, cost_axis, legend, size_axis
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec


def gap_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Mean training and validation loss of each size; the distance between them is the generalisation gap."""
    rows: list[Sequence[Cell]] = []
    for series, style in zip(study.series, styles_of(study.series), strict=True):
        rows += _gap_series(marks, series, style)
    if not rows:
        return None
    size_axis(marks.axes, study.x.label)
    marks.axes.set_ylabel("loss (nats)")
    legend(marks)
    columns = ("series", study.x.title, "training loss (nats)", "validation loss (nats)", "gap (nats)")
    return Caption(
        "Filled marks and solid lines: mean validation loss; hollow marks and dashed lines: mean training loss over "
        "the last twentieth of the steps. Validation above training loss is the generalisation gap.",
        table("Training loss, validation loss and the gap between them.", columns, rows, series=len(study.series)),
    )


def _gap_series(marks: Marks, series: Series, style: dict[str, Any]) -> Iterator[Sequence[Cell]]:
    usable = series.usable.assign(train=numeric(series.usable, "train_loss_nats"))
    means = usable.dropna(subset=["train", LOSS]).groupby(series.x.column)[["train", LOSS]].mean()
    prefix = f"{series.label}: " if series.label else ""
    for column, phase, line, face in (("train", "training", "--", PAPER), (LOSS, "validation", "-", style["color"])):
        if means.empty:
            continue
        marks.axes.plot(means.index, means[column], line, color=style["color"], linewidth=1)
        titles = [f"{prefix}mean {phase} loss at {quantity(size)} {series.x.noun}: {value:.3f} nats"
                  for size, value in means[column].items()]  # fmt: skip
        label = f"{phase} loss" if not series.label else series.label if face != PAPER else None
        marks.draw(means.index, means[column], titles, **style, markerfacecolor=face, label=label)
    for size, mean in means.iterrows():
        gap = float(mean[LOSS] - mean["train"])
        yield (word(series.label or "all trials"), number(size), number(mean["train"], digits=4),
               number(mean[LOSS], digits=4), number(gap))  # fmt: skip


def training_time(series: Series) -> pd.Series[float]:
    """Return the time of all own steps of each timed trial in seconds, NaN of the others."""
    return series.usable[STEP_TIME].where(series.usable["timed"]) * own_steps(series.usable)


def peak_memory(series: Series) -> pd.Series[float]:
    """Return the peak memory of each trial in bytes, NaN where it was not measured."""
    column = series.memory_column
    return numeric(series.usable, column) if column else pd.Series(np.nan, index=series.usable.index)


COSTS = {"time": ("training time", "s", training_time), "memory": ("peak memory", "B", peak_memory)}


def tradeoff_figure(marks: Marks, study: StudyAnalysis, cost: str) -> Caption | None:
    """Mean loss of each size against what it costs, with the Pareto front."""
    name, unit, measure = COSTS[cost]
    points = [_tradeoff_points(series, measure(series)) for series in study.series]
    everything = pd.concat(points, ignore_index=True)
    if len(everything) < 2:
        return None
    factor, prefixed = scale(float(everything["cost"].median()), unit)
    for series, part, style in zip(study.series, points, styles_of(study.series), strict=True):
        titles = [f"{row['name']}: {uncertain(row['loss'], row['se'])} nats for {quantity(row['cost'], unit)}"
                  for row in part.to_dict("records")]  # fmt: skip
        marks.draw(part["cost"] / factor, part["loss"], titles, **style, label=series.label or None)
        if many(study.series):
            marks.axes.plot(part["cost"] / factor, part["loss"], color=style["color"], linewidth=0.8)
    front = draw_front(marks, everything, factor)
    marks.axes.set(xlabel=f"{name} ({prefixed})", ylabel="validation loss (nats)")
    legend(marks)
    on_front = set(front.index)
    rows = [(word(row["name"]), number(row["cost"], unit), (uncertain(row["loss"], row["se"]), row["loss"]),
             word("yes" if index in on_front else "no")) for index, row in everything.iterrows()]  # fmt: skip
    return Caption(
        f"Marks are the sizes: their mean loss against their median {name}. The grey steps are the Pareto front: "
        f"sizes that none beats in both. {len(front)} of {len(everything)} are on it."
        + (" Lines join the sizes of a series." if many(study.series) else ""),
        table(f"Loss against {name}.", ("size", name, "validation loss (nats)", "on the Pareto front"), rows),
    )


def draw_front(marks: Marks, points: pd.DataFrame, factor: float) -> pd.DataFrame:
    """Draw the Pareto front of points (columns cost, loss) as steps, scale the axis of costs, and return its rows."""
    front = points.iloc[pareto_front(points["cost"], points["loss"])]
    marks.axes.plot(front["cost"] / factor, front["loss"], color=MUTED, linewidth=1.2, drawstyle="steps-post", zorder=1,
                    label="Pareto front")  # fmt: skip
    cost_axis(marks.axes, points["cost"] / factor)
    return front


def _tradeoff_points(series: Series, cost: pd.Series[float]) -> pd.DataFrame:
    """Return one row per size with a cost: name, cost, loss and its standard error."""
    medians = cost[cost > 0].groupby(series.usable[series.x.column]).median()
    sizes = series.sizes[series.sizes["size"].isin(medians.index)]
    prefix = f"{series.label}, " if series.label else ""
    return pd.DataFrame(
        {
            "name": [f"{prefix}{quantity(size)} {series.x.noun}" for size in sizes["size"]],
            "cost": medians[sizes["size"]].to_numpy(dtype=float),
            "loss": sizes["mean"].to_numpy(dtype=float),
            "se": sizes["se"].to_numpy(dtype=float),
        }
    )


GAP = FigureSpec("gap", "Generalisation gap", gap_figure, optional=True)
LOSS_BY_TIME, LOSS_BY_MEMORY = (
    FigureSpec(
        f"loss-{cost}", f"Validation loss against {COSTS[cost][0]}", partial(tradeoff_figure, cost=cost), optional=True
    )
    for cost in COSTS
)
