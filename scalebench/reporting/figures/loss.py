"""Validation loss against model size or data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalebench.analysis.predictions import predict_loss_at
from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, numeric
from scalebench.reporting.figures.base import (
    curve_sentence,
    draw_curve,
    draw_means,
    many,
    means_sentence,
    styles_of,
    trial_titles,
)
from scalebench.reporting.quantities import quantity, uncertain
from scalebench.reporting.sentences import far_sentence
from scalebench.reporting.svg import MUTED, PAPER, Marks, legend, size_axis
from scalebench.reporting.tables import number, table, word
from scalebench.reporting.views import Caption, FigureSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FARTHEST = 10  # times the largest size: the last row of the projections


def loss_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Validation loss against size or data: trials, means, the law fitted without the largest, and its projection."""
    if not any(len(series.sizes) for series in study.series):
        return None
    for series, style in zip(study.series, styles_of(study.series), strict=True):
        if many(study.series):
            draw_means(marks, series, series.usable[LOSS], style, "nats", middle="mean")
        elif len(series.sizes):
            _loss_series(marks, series, style, single=len(study.series) == 1)
    floor = numeric(study.trials, "floor_nats").dropna().unique()
    for height in floor[:1]:
        marks.axes.axhline(height, color=MUTED, linestyle="--", linewidth=1.2, label="known floor")
    cut = _limit_to_losses(marks.axes, study, floor)
    size_axis(marks.axes, study.x.label)
    marks.axes.set_ylabel("validation loss (nats)")
    legend(marks)
    rows = [
        (word(series.label or "all trials"), number(row["size"]), number(row["trials"]),
         (uncertain(row["mean"], row["se"]), row["mean"]))
        for series in study.series for row in series.sizes.to_dict("records")
    ]  # fmt: skip
    columns = ("series", study.x.title, "trials", "validation loss (nats)")
    return Caption(
        (means_sentence("mean", study.series) if many(study.series) else _caption(marks))
        + (" Intervals much wider than the range of the losses are cut off." if cut else "")
        + "".join(
            f" {series.label}: {text}" if series.label else f" {text}"
            for series in (() if many(study.series) else study.series)
            if (text := far_sentence(series))
        )
        + (" Dashed: irreducible loss of the data, known in closed form." if floor.size else "")
        + (f" The law does not know it, and projects a lower loss by ×{FARTHEST}." if _below(study, floor) else ""),
        table("Mean validation loss per size.", columns, rows, series=len(study.series)),
    )


def _below(study: StudyAnalysis, floor: NDArray[np.float64]) -> bool:
    """Return whether the law of a series projects less than the known floor at the largest projected size."""
    if not floor.size or many(study.series):
        return False
    sizes = [(series, FARTHEST * float(series.sizes["size"].max())) for series in study.series if len(series.sizes)]
    values = [predict_loss_at(series, size).value for series, size in sizes]
    return any(value is not None and value < floor[0] for value in values)


def _caption(marks: Marks) -> str:
    """Return what the marks and lines are, only those that were drawn."""
    error = " with its standard error (seeds and validation sample)" if "standard error" in marks.drawn else ""
    held_out = "star" in marks.drawn
    law = f"the law fitted {'without the held-out largest size (star)' if held_out else 'to every size'}"
    interval = ", with the 95 % interval of a new run" if "projection interval" in marks.drawn else ""
    grey = " A grey one is of a fit that ended at a bound or did not converge." if "grey diamond" in marks.drawn else ""
    projection = f"The diamond is a projection: the law fitted to every size, ×4 beyond it{interval}.{grey}"
    return (
        f"Filled marks are trials; hollow marks are the mean of each size{error}. {curve_sentence(marks, law)}"
        + (projection if "diamond" in marks.drawn else "")
    ).rstrip()


def _limit_to_losses(axes: Axes, study: StudyAnalysis, floor: NDArray[np.float64]) -> bool:
    """Cut the axis where a wide interval would compress the losses into a line; return whether it was cut."""
    losses = np.concatenate([*(series.usable[LOSS].to_numpy(dtype=float) for series in study.series), floor[:1]])
    lowest, highest = np.nanmin(losses), np.nanmax(losses)
    room = max(highest - lowest, 0.02 * abs(highest))
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, lowest - room), min(high, highest + room))
    return bool(axes.get_ylim() != (low, high))


def _loss_series(marks: Marks, series: Series, style: dict[str, Any], single: bool) -> None:
    axes, sizes, prefix = marks.axes, series.sizes, "" if single else f"{series.label}: "
    marks.draw(series.usable[series.x.column], series.usable[LOSS], trial_titles(series, series.usable, LOSS, "nats"),
               **style, markersize=3.5, zorder=4, label=f"{prefix}trials" if single else None)  # fmt: skip
    held_out = (sizes["size"] == sizes["size"].max()) & (series.held_out_forecast is not None)
    for chosen, marker, size, role in ((~held_out, style["marker"], 9, "mean"), (held_out, "*", 14, "held-out size")):
        part = sizes[chosen]
        if part.empty:
            continue
        axes.errorbar(part["size"], part["mean"], yerr=part["se"].fillna(0), fmt="none", ecolor=style["color"])
        marks.drawn |= {"standard error"} if (part["se"] > 0).any() else set()
        marks.drawn |= {"star"} if marker == "*" else set()
        titles = [f"{prefix}{role} at {quantity(r['size'])} {series.x.noun}: {uncertain(r['mean'], r['se'])} nats"
                  for r in part.to_dict("records")]  # fmt: skip
        label = role if single else series.label if marker != "*" else None
        marks.draw(part["size"], part["mean"], titles, color=PAPER, marker=marker, markersize=size,
                   markeredgecolor=style["color"], markeredgewidth=1.4, zorder=3, label=label)  # fmt: skip
    fitted = "fit to smaller sizes" if series.held_out_forecast else "fit"
    label = fitted if single else None
    draw_curve(marks, series.loss_below, sizes["size"].tolist(), factor=1.0, color=style["color"], label=label)
    x = 4 * float(sizes["size"].max())
    predicted = predict_loss_at(series, x)
    if (y := predicted.value) is not None:
        low, high = predicted.low, predicted.high
        ends = [[max(y - low, 0)], [max(high - y, 0)]] if low is not None and high is not None else None
        sound = series.loss_all.fit is not None and series.loss_all.fit.status == "converged"
        shade = style["color"] if sound else MUTED
        if ends:
            axes.errorbar([x], [y], yerr=ends, fmt="none", ecolor=shade, elinewidth=1.2, capsize=5)
        marks.drawn |= (
            {"diamond"} | ({"projection interval"} if ends else set()) | (set() if sound else {"grey diamond"})
        )
        marks.draw([x], [y], [f"{prefix}projected at {quantity(x)} {series.x.noun}: {y:.3f} nats"], marker="D",
                   markersize=5, color=PAPER, markeredgecolor=shade, markeredgewidth=1.6,
                   label="projection at ×4" if single else None)  # fmt: skip


LOSS_BY_SIZE = FigureSpec("loss", "Validation loss against size", loss_figure)
LOSS_BY_DATA = FigureSpec("data", "Validation loss against data", loss_figure)
