"""Quantisation: what fewer bits add to the loss by size and by data, their bytes and their time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from scalebench.analysis.quantising import (
    Slope,
    data_trends,
    levels,
    means,
    precision_law,
    quantised,
    size_trends,
)
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import N, numeric
from scalebench.reporting.quantities import bounded, formula, quantity, significant, symbol, uncertain
from scalebench.reporting.sections.common import DRAWN_WITH, RESOURCES, Column, StudySection, workload_of
from scalebench.reporting.svg import MUTED, PAPER, Marks, legend, series_style, size_axis
from scalebench.reporting.tables import Cell, Table, number, share, table, word
from scalebench.reporting.views import Caption, FigureSpec

RATIO, LOW, HIGH = "latency_ratio", "latency_ratio_low", "latency_ratio_high"
SMALLEST = 1e-3  # nats: below this the axis is linear, so that a loss added of 0 or less has a place


def last_of_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the trials of each run's last checkpoint: those with the most data."""
    return rows[rows["data"].isna() | (rows["data"] == rows.groupby(["run"])["data"].transform("max"))]


# --- figures ---------------------------------------------------------------------------------------------------------


def size_figure(marks: Marks, study: StudyAnalysis) -> Caption | str:
    """Mean loss added against size, a line for each level."""
    rows = last_of_runs(quantised(study))
    if rows.empty:
        return "No trial has a loss added."
    cells: list[Sequence[Cell]] = []
    for i, (level, part) in enumerate(levels(rows)):
        points, style = means(part), series_style(i)
        titles = [f"{level}, {_size(size)}: {_nats(mean, se)}" for size, mean, se in _triples(points, N)]
        _draw(marks, points[N], points, titles, style, level)
        cells += [
            (word(level), number(size), number(runs), (uncertain(mean, se), mean))
            for size, runs, mean, se in points.itertuples(index=False)
        ]
    _added_axis(marks)
    size_axis(marks.axes)
    legend(marks)
    several = rows["run"].nunique() < len(quantised(study)["run"]) and quantised(study)["data"].nunique() > 1
    return Caption(
        "Loss on the same held-out sample with fewer bits, minus that of the unchanged model. Marks are means over runs, "
        "bars two standard errors; the axis is linear below 0.001 nats." + " Last checkpoints only." * several,
        table("Loss added by level and size.", ("level", "size", "runs", "loss added (nats)"), cells),
    )


def data_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Mean loss added against tokens (or samples) per parameter, a colour for each level, a line for each size."""
    rows = quantised(study)
    if rows.groupby("run")["data"].nunique().max() < 2:
        return None
    cells: list[Sequence[Cell]] = []
    for i, (level, part) in enumerate(levels(rows)):
        style = series_style(i)
        for size, of_size in part.groupby(N):
            points = means(of_size, "ratio")
            titles = [
                f"{level}, {_size(size)}, {significant(ratio)} {_unit(study)} per parameter: {_nats(mean, se)}"
                for ratio, mean, se in _triples(points, "ratio")
            ]
            _draw(marks, points["ratio"], points, titles, style, level if size == part[N].min() else None)
            cells += [
                (word(level), number(size), number(ratio), number(runs), (uncertain(mean, se), mean))
                for ratio, runs, mean, se in points.itertuples(index=False)
            ]
    _added_axis(marks)
    size_axis(marks.axes, f"{_unit(study)} per parameter")
    legend(marks)
    columns = ("level", "size", f"{_unit(study)} per parameter", "runs", "loss added (nats)")
    return Caption(
        "Loss added to the checkpoints of each run; a line joins the means of one size, bars are two standard errors.",
        table("Loss added by level, size and data.", columns, cells),
    )


def _draw(
    marks: Marks, x: pd.Series[float], points: pd.DataFrame, titles: Sequence[str], style: dict[str, str], label: str | None
) -> None:
    marks.axes.plot(x, points["mean"], color=style["color"], linewidth=1)
    marks.bars(x, points["mean"] - 2 * points["se"], points["mean"] + 2 * points["se"], color=style["color"], linewidth=1.2)
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
    cells: list[Sequence[Cell]] = []
    for i, (level, part) in enumerate(levels(rows)):
        style, shared = series_style(i), part["timing_exclusive"] == False  # noqa: E712 - also where it is not known
        marks.bars(part[N], numeric(part, LOW), numeric(part, HIGH), color=style["color"], linewidth=1.2)
        for chosen, face in ((part[~shared], style["color"]), (part[shared], PAPER)):
            titles = [f"{level}, {_size(row[N])}: {_times(row)}" for _, row in chosen.iterrows()]
            named = face != PAPER or shared.all()
            marks.draw(chosen[N], numeric(chosen, RATIO), titles, **style, markerfacecolor=face,
                       label=level if named else None)  # fmt: skip
        cells += [
            (word(level), number(row[N]), number(row.get("latency_before_s"), "s"), number(row.get("latency_s"), "s"),
             (_times(row), float(row[RATIO])))
            for _, row in part.iterrows()
        ]  # fmt: skip
    marks.axes.axhline(1, color=MUTED, linewidth=0.8, zorder=0)
    if numeric(rows, RATIO).max() > 4 * numeric(rows, RATIO).min():
        marks.axes.set_yscale("log")
    size_axis(marks.axes)
    marks.axes.set_ylabel("latency over the unchanged model's")
    legend(marks)
    columns = ("level", "size", "unchanged", "with fewer bits", "ratio (95 % interval)")
    hollow = " Hollow marks shared the machine." if "hollow" in marks.drawn else ""
    return Caption(
        f"A forward pass of one sample over that of the unchanged model, timed in turns; bars are 95 % intervals.{hollow}",
        table("Latency by trial.", columns, cells),
    )


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(study: StudyAnalysis) -> Iterator[Table]:
    """Yield what each level stores, the trends, and the law."""
    rows = quantised(study)
    if rows.empty:
        return
    yield _bytes_table(rows)
    yield _trends_table(rows, study)
    yield _law_table(study)


def _bytes_table(rows: pd.DataFrame) -> Table:
    cells = []
    for level, part in levels(last_of_runs(rows)):
        for size, group in part.groupby(N):
            row = group.iloc[0]
            cells.append((
                word(level), number(size), number(row["quantized_matrices"]), share(row["quantized_share"]),
                number(row["weight_bytes_before"], "B"), number(row["closed_form_bytes"], "B"),
                number(row["weight_bytes"], "B"), word(row["round_trip_equal"]),
            ))  # fmt: skip
    columns = (
        "level", "size", "matrices", "of the parameters", "unchanged", "closed form", "real", "round trip equal",
    )  # fmt: skip
    return table("What is stored. Simulated bits save no bytes: their closed form is what packing would take.", columns,
                 cells)  # fmt: skip


def _trends_table(rows: pd.DataFrame, study: StudyAnalysis) -> Table:
    cells = []
    for what, slopes in (("size", size_trends(rows)), (_unit(study), data_trends(rows))):
        for slope in slopes:
            text, interval = bounded(slope.value, slope.low, slope.high)
            cells.append((word(slope.level), word(what), (text, slope.value), word(interval), number(slope.runs)))
    columns = ("level", "doubling of", "change of the loss added (nats)", "95 % interval of all together", "runs")
    return table("How the loss added changes with size and with data.", columns, cells)


def _law_table(study: StudyAnalysis) -> Table:
    trend = precision_law(study)
    if trend.fit is None:
        return table("Law of the loss added.", ("law", "status"), [(word("precision"), word(f"no fit: {trend.reason}"))])
    cells = []
    for name, value in trend.fit.parameters.items():
        text, interval = bounded(value, *trend.interval(name))
        cells.append((word(symbol(name)), (text, value), word(interval), word(trend.fit.status.replace("_", " "))))
    about = f"{formula(trend.fit.law.formula)}: {trend.fit.n_points} trials of {trend.fit.n_configurations} runs"
    return table(f"Law of the loss added, {about}.", ("parameter", "value", "95 % interval", "status"), cells)


# --- sentences -------------------------------------------------------------------------------------------------------


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield what the levels add, whether larger and longer trained models lose more, the law, and bytes and time."""
    rows = quantised(study)
    if rows.empty:
        return
    largest = last_of_runs(rows)
    largest = largest[largest[N] == largest[N].max()]
    each = [f"{level} {_nats(*_mean(part))}" for level, part in levels(largest)]
    yield f"Loss added to the largest model ({_size(largest[N].max())}): {', '.join(each)}."
    if found := size_trends(rows):
        where = "at the same data" if rows.groupby(N)["data"].mean().nunique() == 1 else "trained as the study says"
        yield f"Larger models ({where}) lose {_verdict(found)}, per doubling of the size."
    if found := data_trends(rows):
        yield f"Models trained longer lose {_verdict(found)}, per doubling of the {_unit(study)}."
    yield _law_sentence(study)
    yield from _costs(largest)


def _verdict(slopes: Sequence[Slope]) -> str:
    """Return at which levels the loss added rises, falls, or does neither beyond the noise."""
    parts = []
    for word_, chosen in (
        ("more", [s for s in slopes if s.sign > 0]),
        ("less", [s for s in slopes if s.sign < 0]),
    ):
        if chosen:
            parts.append(f"{word_} at {', '.join(f'{s.level} ({_change(s)})' for s in chosen)}")
    if unclear := [slope.level for slope in slopes if not slope.sign]:
        parts.append(f"neither more nor less beyond the noise between runs at {', '.join(unclear)}")
    return "; ".join(parts)


def _change(slope: Slope) -> str:
    text, interval = bounded(slope.value, slope.low, slope.high)
    return f"{'+' if slope.value > 0 else ''}{text} nats, {interval}"


def _law_sentence(study: StudyAnalysis) -> str:
    trend = precision_law(study)
    if trend.fit is None:
        return f"Kumar's law of precision is not fitted: {trend.reason}."
    if trend.no_interval:
        return f"Kumar's law of precision is fitted without intervals: {trend.no_interval}."
    named = {name: bounded(value, *trend.interval(name)) for name, value in trend.fit.parameters.items()}
    grows = f"D^{named['gamma_D'][0]} ({named['gamma_D'][1]}) and N^−{named['gamma_N'][0]} ({named['gamma_N'][1]})"
    return (
        f"By Kumar's law the loss added goes as {grows} and falls by a factor e every {named['gamma'][0]} bits "
        f"({named['gamma'][1]})."
    )


def _costs(largest: pd.DataFrame) -> Iterator[str]:
    """Yield bytes and time of each scheme that saves any, at the largest size."""
    parts = []
    for level, part in levels(largest[largest["real"]]):
        stored = numeric(part, "weight_bytes") / numeric(part, "weight_bytes_before")
        ratios = numeric(part, RATIO).dropna().sort_values()
        time = f" and {ratios.iloc[0]:.2f} to {ratios.iloc[-1]:.2f} times the latency" if len(ratios) else ""
        parts.append(f"{level} {100 * stored.median():.0f} % of the bytes{time}")
    if parts:
        yield f"The largest model takes with {'; with '.join(parts)}."


def _mean(part: pd.DataFrame) -> tuple[float, float]:
    row = means(part).iloc[0]
    return float(row["mean"]), float(row["se"])


def _nats(mean: float, error: float) -> str:
    return f"{uncertain(mean, error)} nats".replace("-", "−")


def _size(size: float) -> str:
    return f"{quantity(size)} parameters"


def _times(row: pd.Series[float]) -> str:
    return f"{row[RATIO]:.2f} ({row[LOW]:.2f} to {row[HIGH]:.2f})"


def _unit(study: StudyAnalysis) -> str:
    return "tokens" if numeric(study.trials, "tokens_seen").notna().any() else "samples"


def _triples(points: pd.DataFrame, by: str) -> Iterator[tuple[float, float, float]]:
    return zip(points[by], points["mean"], points["se"], strict=True)


METHODS = (
    "Loss added is the difference of two losses on the same held-out samples; its standard error over the sample is "
    "paired and clustered by document or chain, that of a mean also has the spread between runs. Trends are least "
    "squares over runs for size, means over runs of each run's own slope for data, with Student's t intervals that hold "
    "for all levels together (Bonferroni). The law is fitted to the simulated bits, 2 and more, at which every trial lost.",
    DRAWN_WITH,
)
COLUMNS = (
    Column("loss before", "loss_before_nats", digits=4),
    Column("loss after", "validation_loss_nats", digits=4),
    Column("loss added", "loss_added_nats"),
    Column("± standard error", "loss_added_se_nats"),
    Column("bytes", "weight_bytes", "B"),
    Column("closed form", "closed_form_bytes", "B"),
    Column("latency", "latency_s", "s"),
    Column("unchanged", "latency_before_s", "s"),
    Column("ratio", RATIO),
    *RESOURCES,
)
BY_SIZE = FigureSpec("added-size", "Loss added against size", size_figure)
BY_DATA = FigureSpec("added-data", "Loss added against data per parameter", data_figure, optional=True)
LATENCY = FigureSpec("latency-ratio", "Latency against the unchanged model", latency_figure, optional=True)


def _figures(study: StudyAnalysis) -> Sequence[FigureSpec[StudyAnalysis]]:
    """Return the figures, that of the data first where one run gives several."""
    longer = bool(data_trends(quantised(study)))
    return (BY_DATA, BY_SIZE, LATENCY) if longer else (BY_SIZE, LATENCY)


SECTION = StudySection(
    shows=lambda study: workload_of(study) == "quantize",
    sentences=sentences,
    figures=_figures,
    columns=lambda _: COLUMNS,
    methods=METHODS,
    tables=tables,
)
