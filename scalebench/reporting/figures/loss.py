"""Validation loss against what grows, size or data."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scalebench.analysis.predictions import predict_loss_at
from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, numeric
from scalebench.reporting.figures.base import draw_curve, trial_titles
from scalebench.reporting.quantities import quantity, uncertain
from scalebench.reporting.svg import MUTED, PAPER, Marks, legend, series_style, size_axis
from scalebench.reporting.tables import number, table, word
from scalebench.reporting.views import Caption, FigureSpec


def loss_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Validation loss against what grows: trials, means, the law fitted without the largest, and what it predicted."""
    if not any(len(one.sizes) for one in study.series):
        return None
    for i, one in enumerate(study.series):
        if len(one.sizes):
            _loss_series(marks, one, series_style(i), single=len(study.series) == 1)
    floor = numeric(study.trials, "floor_nats").dropna().unique()
    for height in floor[:1]:
        marks.axes.axhline(height, color=MUTED, linestyle="--", linewidth=1.2, label="known floor")
    cut = _keep_to_the_losses(marks.axes, study, floor)
    size_axis(marks.axes, study.x.label)
    marks.axes.set_ylabel("validation loss (nats)")
    legend(marks)
    rows = [
        (word(one.label or "all trials"), number(row["size"]), number(row["trials"]),
         (uncertain(row["mean"], row["se"]), row["mean"]))
        for one in study.series for row in one.sizes.to_dict("records")
    ]  # fmt: skip
    columns = ("series", study.x.title, "trials", "validation loss (nats)")
    return Caption(
        "Full marks are trials, hollow ones the mean of each size with its standard error (seeds and validation "
        "sample). The curve and its 95 % band are the law fitted without the held-out largest size (star); the "
        "diamond is the fit to every size, carried ×4 beyond the data, with the 95 % interval of a new run."
        + (" An interval that is much wider than the losses leaves the figure." if cut else "")
        + (" The dashed floor is known in closed form." if floor.size else ""),
        table("Mean validation loss per size.", columns, rows, series=len(study.series)),
    )


def _keep_to_the_losses(axes: Axes, study: StudyAnalysis, floor: NDArray[np.float64]) -> bool:
    """Cut the axis where an interval would squeeze the losses into a line; tell whether it was cut."""
    losses = np.concatenate([*(one.usable[LOSS].to_numpy(dtype=float) for one in study.series), floor[:1]])
    lowest, highest = np.nanmin(losses), np.nanmax(losses)
    room = max(highest - lowest, 0.02 * abs(highest))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, lowest - room), min(high, highest + room))
    return bool(axes.get_ylim() != (low, high))


def _loss_series(marks: Marks, one: Series, style: dict[str, Any], single: bool) -> None:
    axes, sizes, prefix = marks.axes, one.sizes, "" if single else f"{one.label}: "
    marks.draw(one.usable[one.x.column], one.usable[LOSS], trial_titles(one, one.usable, LOSS, "nats"),
               **style, markersize=3.5, zorder=4, label=f"{prefix}trials" if single else None)  # fmt: skip
    held = (sizes["size"] == sizes["size"].max()) & (one.held is not None)
    for chosen, marker, size, what in ((~held, style["marker"], 9, "mean"), (held, "*", 17, "held-out size")):
        part = sizes[chosen]
        if part.empty:
            continue
        axes.errorbar(part["size"], part["mean"], yerr=part["se"].fillna(0), fmt="none", ecolor=style["color"])
        titles = [f"{prefix}{what} at {quantity(r['size'])} {one.x.noun}: {uncertain(r['mean'], r['se'])} nats"
                  for r in part.to_dict("records")]  # fmt: skip
        label = what if single else one.label if marker != "*" else None
        marks.draw(part["size"], part["mean"], titles, color=PAPER, marker=marker, markersize=size,
                   markeredgecolor=style["color"], markeredgewidth=1.4, zorder=3, label=label)  # fmt: skip
    fitted = "fit to the others" if one.held else "fit"
    label = fitted if single else None
    draw_curve(axes, one.loss_below, sizes["size"].tolist(), factor=1.0, color=style["color"], label=label)
    x = 4 * float(sizes["size"].max())
    predicted = predict_loss_at(one, x)
    if (y := predicted.value) is not None:
        low, high = predicted.low, predicted.high
        ends = [[max(y - low, 0)], [max(high - y, 0)]] if low is not None and high is not None else None
        axes.errorbar([x], [y], yerr=ends, fmt="none", ecolor=style["color"], elinewidth=1.2, capsize=5)
        marks.draw([x], [y], [f"{prefix}predicted at {quantity(x)} {one.x.noun}: {y:.3f} nats"], marker="D",
                   markersize=5, color=PAPER, markeredgecolor=style["color"], markeredgewidth=1.6,
                   label="×4, predicted" if single else None)  # fmt: skip


LOSS_BY_SIZE = FigureSpec("loss", "Validation loss against size", loss_figure)
LOSS_BY_DATA = FigureSpec("data", "Validation loss against data", loss_figure)
