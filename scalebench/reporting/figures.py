"""Figures of loss, time, memory and efficiency against size; each returns its caption and the table behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from numpy.typing import NDArray

from scalebench.analysis.predictions import predict_loss_at
from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend
from scalebench.analysis.trials import DATA, LOSS, MEMORY_PEAKS, STEP_TIME, N, numeric
from scalebench.reporting.quantities import percent, quantity, scale, uncertain
from scalebench.reporting.svg import (
    INK,
    MUTED,
    PAPER,
    SERIES_COLORS,
    Marks,
    finish,
    legend,
    look,
    size_axis,
)
from scalebench.reporting.tables import Cell, Table, number, table, word

MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations", "other")


@dataclass(frozen=True)
class Words:
    """What stands around a figure: its caption, and its data as a table."""

    caption: str
    table: Table


def who(row: pd.Series[Any], one: Series) -> str:
    """Name a trial in the title of its mark."""
    seed = f", seed {row['seed']:g}" if pd.notna(row["seed"]) else ""
    return ", ".join(filter(None, (one.label, f"{quantity(row[one.x.column])} {one.x.noun}{seed}")))


def titles_of(one: Series, frame: pd.DataFrame, column: str, unit: str) -> list[str]:
    """Title each trial's mark with its value."""
    return [f"{who(row, one)}: {quantity(row[column], unit)}" for _, row in frame.iterrows()]


def curve(
    axes: Axes, trend: Trend, sizes: Sequence[float], *, factor: float, color: str, label: str | None = None
) -> None:
    """Draw a fitted law over a range of sizes with the 95 % band of its mean; nothing where the fit was refused."""
    if trend.fit is None:
        return
    x = np.geomspace(min(sizes), max(sizes), 60)
    low, high = trend.band(x)
    axes.plot(x, trend.fit.predict(x=x) / factor, color=color, label=label)
    axes.fill_between(x, low / factor, high / factor, color=color, alpha=0.18, linewidth=0)


# --- loss against size -----------------------------------------------------------------------------------------------


def loss_figure(marks: Marks, study: StudyAnalysis) -> Words | None:
    """Validation loss against what grows: trials, means, the law fitted without the largest, and what it predicted."""
    if not any(len(one.sizes) for one in study.series):
        return None
    for i, one in enumerate(study.series):
        if len(one.sizes):
            _loss_series(marks, one, look(i), single=len(study.series) == 1)
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
    return Words(
        "Full marks are trials, hollow ones the mean of each size with its standard error (seeds and validation "
        "sample). The curve and its 95 % band are the law fitted without the held-out largest size (star); the "
        "diamond is the fit to every size, carried ×4 beyond the data, with the 95 % interval of a new run."
        + (" An interval that is much wider than the losses leaves the figure." if cut else "")
        + (" The dashed floor is known in closed form." if floor.size else ""),
        table("Mean validation loss per size.", columns, rows, series=len(study.series)),
    )


def data_figure(marks: Marks, study: StudyAnalysis) -> Words | None:
    """Validation loss against data, of a study that grows it."""
    return loss_figure(marks, study) if study.x is DATA else None


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
    marks.draw(one.usable[one.x.column], one.usable[LOSS], titles_of(one, one.usable, LOSS, "nats"),
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
    curve(axes, one.loss_below, sizes["size"].tolist(), factor=1.0, color=style["color"], label=label)
    x = 4 * float(sizes["size"].max())
    predicted = predict_loss_at(one, x)
    if (y := predicted.value) is not None:
        low, high = predicted.low, predicted.high
        ends = [[max(y - low, 0)], [max(high - y, 0)]] if low is not None and high is not None else None
        axes.errorbar([x], [y], yerr=ends, fmt="none", ecolor=style["color"], elinewidth=1.2, capsize=5)
        marks.draw([x], [y], [f"{prefix}predicted at {quantity(x)} {one.x.noun}: {y:.3f} nats"], marker="D",
                   markersize=5, color=PAPER, markeredgecolor=style["color"], markeredgewidth=1.6,
                   label="×4, predicted" if single else None)  # fmt: skip


# --- time, memory, efficiency ----------------------------------------------------------------------------------------


def step_time_figure(marks: Marks, study: StudyAnalysis) -> Words | None:
    """Median step time against size with p20 to p80 and its trend; hollow where the machine was shared."""
    frame = study.trials[(study.trials["status"] == "ok") & (study.trials[STEP_TIME] > 0)]
    if frame.empty:
        return None
    factor, unit = scale(float(frame[STEP_TIME].median()), "s")
    rows: list[Sequence[Cell]] = []
    for i, one in enumerate(study.series):
        part, style = one.trials.loc[one.trials.index.intersection(frame.index)], look(i)
        low, high = (numeric(part, f"step_time_{p}_s") for p in ("p20", "p80"))
        marks.axes.vlines(part[N], low / factor, high / factor, color=style["color"], linewidth=1.2)
        for good, face in ((part["timed"], style["color"]), (~part["timed"], PAPER)):
            chosen = part[good]
            marks.draw(chosen[N], chosen[STEP_TIME] / factor, titles_of(one, chosen, STEP_TIME, "s"), **style,
                       markerfacecolor=face, label=one.label if face != PAPER and one.label else None)  # fmt: skip
        if len(part):
            curve(marks.axes, one.step_time, part[N].tolist(), factor=factor, color=style["color"])
        rows += [(word(who(row, one)), number(row[N]), number(row[STEP_TIME], "s"),
                  number(row.get("step_time_p20_s"), "s"), number(row.get("step_time_p80_s"), "s"),
                  word("yes" if row["timed"] else "no")) for _, row in part.iterrows()]  # fmt: skip
    finish(marks, f"time per training step ({unit})", log=True)
    columns = ("trial", "size", "median", "p20", "p80", "in the fit")
    return Words(
        "Median over the steps after warm-up; bars reach from the 20th to the 80th percentile. The line is the law of "
        "the table of fits with the 95 % band of its mean. Hollow marks shared the machine and are out of the fit.",
        table("Time per training step.", columns, rows),
    )


def memory_figure(marks: Marks, study: StudyAnalysis) -> Words | None:
    """Peak memory against size with its trend; one series also shows what the peak consists of."""
    series = [one for one in study.series if one.memory_column]
    if not series:
        return None
    peaks = [one.usable[one.memory_column] for one in series]
    factor, unit = scale(float(pd.concat(peaks).max()), "B")
    rows: list[Sequence[Cell]] = []
    if len(series) == 1:
        _memory_stack(marks, series[0], factor)
    for i, one in enumerate(series):
        column, style = str(one.memory_column), look(i) if len(series) > 1 else {"color": INK, "marker": "o"}
        size = max(4, 11 - 4 * i) if len(series) > 1 else 6  # series that need the same memory stay visible
        named = one.label or "peak"
        titles = titles_of(one, one.usable, column, "B")
        marks.draw(one.usable[N], one.usable[column] / factor, titles, **style, markersize=size, label=named)
        curve(marks.axes, one.memory, one.usable[N].tolist(), factor=factor, color=style["color"])
        for _, row in one.usable.drop_duplicates(N).iterrows():
            parts = [number(row.get(f"memory_{part}_bytes"), "B") for part in MEMORY_PARTS]
            rows.append([word(one.label or "all trials"), number(row[N]), number(row[column], "B"), *parts])
    marks.axes.set_ylim(bottom=0)
    finish(marks, f"memory ({unit})")
    columns = ("series", "size", "peak", *MEMORY_PARTS)
    split = "Bars split the peak by what the memory holds at that instant. " if len(series) == 1 else ""
    names = ", ".join(dict.fromkeys(MEMORY_PEAKS[str(one.memory_column)] for one in series))
    return Words(
        f"Marks are the {names}; the line is the law of the table of fits with the 95 % band of its mean. {split}"
        "The table gives each part's own maximum, which may fall at another instant.",
        table("Peak memory, and each part's own maximum.", columns, rows, series=len(series)),
    )


def _memory_stack(marks: Marks, one: Series, factor: float) -> None:
    by_size = one.usable.drop_duplicates(N)
    bottom = np.zeros(len(by_size))
    width = by_size[N] * 0.22
    for i, part in enumerate(MEMORY_PARTS):
        height = numeric(by_size, f"memory_at_peak_{part}_bytes").fillna(0).to_numpy() / factor
        if height.any():
            marks.axes.bar(by_size[N], height, width, bottom, color=SERIES_COLORS[i], edgecolor=PAPER, label=part)
            bottom += height


def efficiency_figure(marks: Marks, study: StudyAnalysis) -> Words | None:
    """Achieved FLOP/s against size, beside the peak it is measured against."""
    achieved, rows = "achieved_flops_per_s", []
    known = study.trials[study.trials["valid"] & (numeric(study.trials, achieved) > 0)]
    if known.empty:
        return None
    peaks = sorted({*numeric(known, "peak_flops_per_s").dropna()})
    factor, unit = scale(float(max([*peaks, numeric(known, achieved).max()])), "FLOP/s")
    for i, one in enumerate(study.series):
        part = known.loc[known.index.intersection(one.trials.index)]
        marks.draw(part[N], numeric(part, achieved) / factor, titles_of(one, part, achieved, "FLOP/s"), **look(i),
                   label=one.label or None)  # fmt: skip
        for _, row in part.iterrows():
            rows.append((word(who(row, one)), number(row[achieved], "FLOP/s"), share(row.get("mfu"))))
    for peak in peaks:
        label = f"peak {quantity(peak, 'FLOP/s')}"
        marks.axes.axhline(peak / factor, color=MUTED, linestyle="--", linewidth=1.2, label=label)
    finish(marks, f"achieved {unit}", log=True)
    sources = ", ".join(sorted(set(known.get("peak_source", pd.Series(dtype=object)).dropna().astype(str))))
    against = f"The dashed line is the peak it is held against: {sources}." if peaks else "The peak is not known."
    return Words(
        f"Arithmetic of the model per second of a training step. {against}",
        table("Achieved FLOP/s and model FLOP/s utilisation (MFU).", ("trial", "achieved", "MFU"), rows),
    )


def share(fraction: Any) -> Cell:
    """Return the cell of a fraction as a percentage."""
    return (percent(fraction, sign=False), float(fraction)) if pd.notna(fraction) else word(None)
