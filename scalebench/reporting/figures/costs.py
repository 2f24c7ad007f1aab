"""What size costs: time per step, memory, and the arithmetic rate achieved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import MEMORY_PEAKS, STEP_TIME, N, numeric
from scalebench.reporting.figures.base import draw_curve, trial_label, trial_titles
from scalebench.reporting.quantities import quantity, scale
from scalebench.reporting.svg import INK, MUTED, PAPER, SERIES_COLORS, Marks, finish, series_style
from scalebench.reporting.tables import Cell, number, share, table, word
from scalebench.reporting.views import Caption, FigureSpec

MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations", "other")


def step_time_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Median step time against size with p20 to p80 and its trend; hollow where the machine was shared."""
    frame = study.trials[(study.trials["status"] == "ok") & (study.trials[STEP_TIME] > 0)]
    if frame.empty:
        return None
    factor, unit = scale(float(frame[STEP_TIME].median()), "s")
    rows: list[Sequence[Cell]] = []
    for i, one in enumerate(study.series):
        part, style = one.trials.loc[one.trials.index.intersection(frame.index)], series_style(i)
        low, high = (numeric(part, f"step_time_{p}_s") for p in ("p20", "p80"))
        marks.axes.vlines(part[N], low / factor, high / factor, color=style["color"], linewidth=1.2)
        for good, face in ((part["timed"], style["color"]), (~part["timed"], PAPER)):
            chosen = part[good]
            marks.draw(chosen[N], chosen[STEP_TIME] / factor, trial_titles(one, chosen, STEP_TIME, "s"), **style,
                       markerfacecolor=face, label=one.label if face != PAPER and one.label else None)  # fmt: skip
        if len(part):
            draw_curve(marks.axes, one.step_time, part[N].tolist(), factor=factor, color=style["color"])
        rows += [(word(trial_label(row, one)), number(row[N]), number(row[STEP_TIME], "s"),
                  number(row.get("step_time_p20_s"), "s"), number(row.get("step_time_p80_s"), "s"),
                  word("yes" if row["timed"] else "no")) for _, row in part.iterrows()]  # fmt: skip
    finish(marks, f"time per training step ({unit})", log=True)
    columns = ("trial", "size", "median", "p20", "p80", "in the fit")
    return Caption(
        "Median over the steps after warm-up; bars reach from the 20th to the 80th percentile. The line is the law of "
        "the table of fits with the 95 % band of its mean. Hollow marks shared the machine and are out of the fit.",
        table("Time per training step.", columns, rows),
    )


def memory_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
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
        column, style = str(one.memory_column), series_style(i) if len(series) > 1 else {"color": INK, "marker": "o"}
        size = max(4, 11 - 4 * i) if len(series) > 1 else 6  # series that need the same memory stay visible
        named = one.label or "peak"
        titles = trial_titles(one, one.usable, column, "B")
        marks.draw(one.usable[N], one.usable[column] / factor, titles, **style, markersize=size, label=named)
        draw_curve(marks.axes, one.memory, one.usable[N].tolist(), factor=factor, color=style["color"])
        for _, row in one.usable.drop_duplicates(N).iterrows():
            parts = [number(row.get(f"memory_{part}_bytes"), "B") for part in MEMORY_PARTS]
            rows.append([word(one.label or "all trials"), number(row[N]), number(row[column], "B"), *parts])
    marks.axes.set_ylim(bottom=0)
    finish(marks, f"memory ({unit})")
    columns = ("series", "size", "peak", *MEMORY_PARTS)
    split = "Bars split the peak by what the memory holds at that instant. " if len(series) == 1 else ""
    names = ", ".join(dict.fromkeys(MEMORY_PEAKS[str(one.memory_column)] for one in series))
    return Caption(
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


def efficiency_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Achieved FLOP/s against size, beside the peak it is measured against."""
    achieved, rows = "achieved_flops_per_s", []
    known = study.trials[study.trials["valid"] & (numeric(study.trials, achieved) > 0)]
    if known.empty:
        return None
    peaks = sorted({*numeric(known, "peak_flops_per_s").dropna()})
    factor, unit = scale(float(max([*peaks, numeric(known, achieved).max()])), "FLOP/s")
    for i, one in enumerate(study.series):
        part = known.loc[known.index.intersection(one.trials.index)]
        titles = trial_titles(one, part, achieved, "FLOP/s")
        marks.draw(part[N], numeric(part, achieved) / factor, titles, **series_style(i), label=one.label or None)
        for _, row in part.iterrows():
            rows.append((word(trial_label(row, one)), number(row[achieved], "FLOP/s"), share(row.get("mfu"))))
    for peak in peaks:
        label = f"peak {quantity(peak, 'FLOP/s')}"
        marks.axes.axhline(peak / factor, color=MUTED, linestyle="--", linewidth=1.2, label=label)
    finish(marks, f"achieved {unit}", log=True)
    sources = ", ".join(sorted(set(known.get("peak_source", pd.Series(dtype=object)).dropna().astype(str))))
    against = f"The dashed line is the peak it is held against: {sources}." if peaks else "The peak is not known."
    return Caption(
        f"Arithmetic of the model per second of a training step. {against}",
        table("Achieved FLOP/s and model FLOP/s utilisation (MFU).", ("trial", "achieved", "MFU"), rows),
    )


STEP_TIMES = FigureSpec("step-time", "Time per training step against size", step_time_figure)
MEMORY = FigureSpec("memory", "Memory against size", memory_figure)
EFFICIENCY = FigureSpec("efficiency", "Achieved arithmetic rate against size", efficiency_figure)
