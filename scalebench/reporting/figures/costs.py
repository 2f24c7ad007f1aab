"""What size costs: time per step, memory, and the FLOP/s achieved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend
from scalebench.analysis.trials import MEMORY_PEAKS, STEP_TIME, N, numeric
from scalebench.reporting.figures.base import (
    curve_sentence,
    draw_curve,
    draw_means,
    many,
    means_sentence,
    styles_of,
    trial_label,
    trial_titles,
    untimed,
)
from scalebench.reporting.quantities import formula, quantity, scale, tick
from scalebench.reporting.svg import INK, MUTED, PAPER, SERIES_COLORS, Marks, finish, log_ticks
from scalebench.reporting.tables import Cell, Rows, number, share, table, word
from scalebench.reporting.views import Caption, FigureSpec

ROOM = 1.25  # height of the axis over the highest mark: a wide band is cut, so that the marks stay apart
MEMORY_PARTS = ("parameters", "gradients", "optimizer", "activations", "other")


def step_time_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Median step time against size with p20 to p80 and its trend; hollow where the machine was shared."""
    frame = study.trials[(study.trials["status"] == "ok") & (study.trials[STEP_TIME] > 0)]
    if frame.empty:
        return untimed(study)
    factor, unit = scale(float(frame[STEP_TIME].median()), "s")
    rows = Rows(len(study.series))
    for series, style in zip(study.series, styles_of(study.series), strict=True):
        part = series.trials.loc[series.trials.index.intersection(frame.index)]
        rows.add(part, partial(_step_time_cells, series))
        if many(study.series):
            draw_means(marks, series, series.timed[STEP_TIME], style, "s", factor)
            continue
        low, high = (numeric(part, f"step_time_{p}_s") for p in ("p20", "p80"))
        marks.bars(part[N], low / factor, high / factor, color=style["color"], linewidth=1.2)
        for good, face in ((part["timed"], style["color"]), (~part["timed"], PAPER)):
            chosen, label = part[good], series.label if face != PAPER and series.label else None
            titles = trial_titles(series, chosen, STEP_TIME, "s")
            marks.draw(chosen[N], chosen[STEP_TIME] / factor, titles, **style, markerfacecolor=face, label=label)
        if len(part):
            draw_curve(marks, series.step_time, part[N].tolist(), factor=factor, color=style["color"])
    finish(marks, f"time per training step ({unit})", log=True)
    columns = ("trial", "size", "median", "p20", "p80", "in the fit")
    return Caption(
        _step_time_caption(marks, study),
        table("Time per training step.", columns, rows),
    )


def _step_time_caption(marks: Marks, study: StudyAnalysis) -> str:
    text = "Median over the steps after warm-up"
    if many(study.series):
        return f"{text}. {means_sentence('median', study.series)}"
    return (
        text
        + ("; bars span the 20th to the 80th percentile. " if "bars" in marks.drawn else ". ")
        + curve_sentence(marks, f"the fitted trend{laws([series.step_time for series in study.series])}")
        + ("Hollow marks shared the machine and are not in the fit." if "hollow" in marks.drawn else "")
    )


def _step_time_cells(series: Series, row: pd.Series[Any]) -> Sequence[Cell]:
    return (word(trial_label(row, series)), number(row[N]), number(row[STEP_TIME], "s"),
            number(row.get("step_time_p20_s"), "s"), number(row.get("step_time_p80_s"), "s"),
            word("yes" if row["timed"] else "no"))  # fmt: skip


def memory_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Peak memory against size with its trend; one series also shows what the peak consists of."""
    all_series = [series for series in study.series if series.memory_column]
    if not all_series:
        return None
    peaks = [series.usable[series.memory_column] for series in all_series]
    factor, unit = scale(float(pd.concat(peaks).max()), "B")
    rows = Rows(len(all_series))
    if len(all_series) == 1:
        _memory_stack(marks, all_series[0], factor)
    styles = dict(zip(map(id, study.series), styles_of(study.series), strict=True))
    for i, series in enumerate(all_series):
        column = str(series.memory_column)
        rows.add(series.usable.drop_duplicates(N), partial(_memory_cells, series))
        style = styles[id(series)] if len(all_series) > 1 else {"color": INK, "marker": "o"}
        if many(study.series):
            draw_means(marks, series, series.usable[column], style, "B", factor)
            continue
        size = max(4, 11 - 4 * i) if len(all_series) > 1 else 6  # series that need the same memory stay visible
        label = series.label or "peak"
        titles = trial_titles(series, series.usable, column, "B")
        marks.draw(series.usable[N], series.usable[column] / factor, titles, **style, markersize=size, label=label)
        draw_curve(marks, series.memory, series.usable[N].tolist(), factor=factor, color=style["color"])
    marks.axes.set_ylim(0, ROOM * float(pd.concat(peaks).max()) / factor)
    finish(marks, f"memory ({unit})")
    columns = ("series", "size", "peak", *MEMORY_PARTS)
    split = "Bars split the peak by content. " if marks.axes.patches else ""
    names = ", ".join(dict.fromkeys(MEMORY_PEAKS[str(series.memory_column)] for series in all_series))
    if many(study.series):
        drawn = f"{means_sentence('median', study.series, f' ({names})')} "
    else:
        trends = laws([series.memory for series in all_series])
        drawn = f"Marks are the {names}. {curve_sentence(marks, f'the fitted trend{trends}')}"
    return Caption(
        f"{drawn}{split}".rstrip(),
        table(
            "Peak memory, and the maximum of each part, which may occur at another time.",
            columns,
            rows,
            series=len(all_series),
        ),
    )


def _memory_cells(series: Series, row: pd.Series[Any]) -> Sequence[Cell]:
    parts = [number(row.get(f"memory_{part}_bytes"), "B") for part in MEMORY_PARTS]
    return word(series.label or "all trials"), number(row[N]), number(row[str(series.memory_column)], "B"), *parts


def laws(trends: Sequence[Trend]) -> str:
    """Return the formulas of fitted trends in brackets after a space, each once; empty where none is fitted."""
    formulas = dict.fromkeys(
        formula(trend.fit.law.formula).partition("= ")[2].replace("x", "N") for trend in trends if trend.fit
    )
    return f" ({', '.join(formulas)})" if formulas else ""


def _memory_stack(marks: Marks, series: Series, factor: float) -> None:
    by_size = series.usable.drop_duplicates(N)
    bottom = np.zeros(len(by_size))
    width = by_size[N] * 0.22
    for i, part in enumerate(MEMORY_PARTS):
        height = numeric(by_size, f"memory_at_peak_{part}_bytes").fillna(0).to_numpy() / factor
        if height.any():
            marks.axes.bar(by_size[N], height, width, bottom, color=SERIES_COLORS[i], edgecolor=PAPER, label=part)
            bottom += height


def efficiency_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Achieved FLOP/s against size, beside the peak it is measured against."""
    achieved, rows = "achieved_flops_per_s", Rows(len(study.series))
    known = study.trials[study.trials["valid"] & (numeric(study.trials, achieved) > 0)]
    if known.empty:
        return untimed(study)
    peaks = sorted({*numeric(known, "peak_flops_per_s").dropna()})
    factor, unit = scale(float(max([*peaks, numeric(known, achieved).max()])), "FLOP/s")
    for series, style in zip(study.series, styles_of(study.series), strict=True):
        part = known.loc[known.index.intersection(series.trials.index)]
        rows.add(part, partial(_rate_cells, series))
        if many(study.series):
            draw_means(marks, series, numeric(part, achieved), style, "FLOP/s", factor)
            continue
        for good, face in ((part["timed"], style["color"]), (~part["timed"], PAPER)):
            chosen, label = part[good], series.label if face != PAPER and series.label else None
            titles = trial_titles(series, chosen, achieved, "FLOP/s")
            marks.draw(
                chosen[N], numeric(chosen, achieved) / factor, titles, **style, markerfacecolor=face, label=label
            )
    for peak in peaks:
        label = f"peak {quantity(peak, 'FLOP/s')}"
        marks.axes.axhline(peak / factor, color=MUTED, linestyle="--", linewidth=1.2, label=label)
    finish(marks, f"achieved {unit}", log=True)
    mfu = _mfu_axis(marks, peaks, factor) if not many(study.series) else ""
    sources = ", ".join(sorted(set(known.get("peak_source", pd.Series(dtype=object)).dropna().astype(str))))
    reference = f"Dashed: peak of the device ({sources})." if peaks else "The peak of the device is not known."
    unit_of_work = "step" if study.trials[STEP_TIME].notna().any() else "call"
    return Caption(
        f"FLOPs of the model over the time of a {unit_of_work}. {reference}{mfu}"
        + (" Hollow marks shared the machine." if "hollow" in marks.drawn else "")
        + (f" {means_sentence('median', study.series)}" if many(study.series) else ""),
        table(
            "Throughput, achieved FLOP/s and model FLOP/s utilisation (MFU).",
            ("trial", "tokens/s", "achieved", "MFU"),
            rows,
        ),
    )


def _mfu_axis(marks: Marks, peaks: Sequence[float], factor: float) -> str:
    """Label the right side with the share of the peak, if it is the same for all; return a sentence for the caption."""
    if len(peaks) != 1:
        return ""
    share_of_peak = 100 * factor / peaks[0]
    right = marks.axes.secondary_yaxis(
        "right", functions=(partial(np.multiply, share_of_peak), partial(np.multiply, 1 / share_of_peak))
    )
    right.set_ylabel("MFU (% of the peak)")
    log_ticks(right.yaxis, *(share_of_peak * end for end in marks.axes.get_ylim()))
    right.yaxis.set_major_formatter(lambda value, _: tick(value))
    return " The right axis has the MFU, the share of that peak."


def _rate_cells(series: Series, row: pd.Series[Any]) -> Sequence[Cell]:
    rates = number(row.get("tokens_per_s")), number(row["achieved_flops_per_s"], "FLOP/s"), share(row.get("mfu"))
    return word(trial_label(row, series)), *rates


STEP_TIMES = FigureSpec("step-time", "Time per training step against size", step_time_figure)
MEMORY = FigureSpec("memory", "Memory against size", memory_figure)
EFFICIENCY = FigureSpec("efficiency", "Achieved FLOP/s and MFU against size", efficiency_figure)
