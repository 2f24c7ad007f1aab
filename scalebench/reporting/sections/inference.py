"""Inference: latency against size, throughput against batch size, memory and FLOP/s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import N, numeric, split_columns
from scalebench.reporting.figures.base import styles_of, trial_label, trial_titles
from scalebench.reporting.figures.costs import EFFICIENCY, MEMORY
from scalebench.reporting.outcomes import Outcome
from scalebench.reporting.quantities import NBSP, quantity, scale
from scalebench.reporting.sections.common import DRAWN_WITH, RESOURCES, Column, StudySection, workload_of
from scalebench.reporting.svg import PAPER, Marks, finish, legend, series_styles
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

LATENCY, P95, BATCH = "latency_median_s", "latency_p95_s", "batch_size"


def measured(study: StudyAnalysis) -> pd.DataFrame:
    """Return the valid trials that have a latency."""
    return study.trials[study.trials["valid"] & (numeric(study.trials, LATENCY) > 0)]


def latency_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Median latency against size, with a bar to the 95th percentile; hollow where the machine was shared."""
    known = measured(study)
    if known.empty:
        return None
    factor, unit = scale(float(numeric(known, LATENCY).median()), "s")
    rows: list[Sequence[Cell]] = []
    for series, style in zip(study.series, styles_of(study.series), strict=True):
        part = known.loc[known.index.intersection(series.trials.index)]
        median, high = numeric(part, LATENCY) / factor, numeric(part, P95) / factor
        marks.bars(part[N], median, high, color=style["color"], linewidth=1.2)
        marks.axes.plot(part[N], median, color=style["color"], linewidth=1)
        shared = part["timing_exclusive"] == False  # noqa: E712 - also where it is not known
        for chosen, face in ((part[~shared], style["color"]), (part[shared], PAPER)):
            titles = trial_titles(series, chosen, LATENCY, "s")
            marks.draw(chosen[N], numeric(chosen, LATENCY) / factor, titles, **style, markerfacecolor=face,
                       label=series.label if face != PAPER and series.label else None)  # fmt: skip
        times = (LATENCY, P95, "latency_p99_s", "prefill_time_s", "decode_time_per_token_s")
        for _, row in part.iterrows():
            rows.append((word(trial_label(row, series)), *(number(row.get(name), "s") for name in times)))
    finish(marks, f"latency per call ({unit})", log=True)
    columns = ("trial", "median", "p95", "p99", "first token", "per further token")
    return Caption(
        "Marks are medians over the calls after warm-up"
        + ("; bars extend to the 95th percentile where there were enough calls" if "bars" in marks.drawn else "")
        + ". A call that generates processes the prompt and adds every new token."
        + (" Hollow marks shared the machine." if "hollow" in marks.drawn else ""),
        table("Latency per call.", columns, rows),
    )


def throughput_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Tokens, or samples, per second against the batch size, one line for each size and other axis."""
    known = measured(study)
    if known.empty or numeric(known, BATCH).nunique() < 2:
        return None
    column = "tokens_per_s" if numeric(known, "tokens_per_s").notna().any() else "samples_per_s"
    unit = "tokens/s" if column == "tokens_per_s" else "samples/s"
    rows: list[Sequence[Cell]] = []
    lines = list(_by_batch(known, study))
    for (label, part), style in zip(lines, series_styles(range(len(lines))), strict=True):
        rate = numeric(part, column)
        titles = [f"{label}, batch {quantity(b)}: {_rate(r, unit)}" for b, r in zip(part[BATCH], rate, strict=True)]
        marks.axes.plot(part[BATCH], rate, color=style["color"], linewidth=1)
        marks.draw(part[BATCH], rate, titles, **style, label=label)
        for batch, value in zip(part[BATCH], rate, strict=True):
            rows.append((word(label), number(batch), number(value)))
    _batch_axis(marks, sorted(numeric(known, BATCH).unique()), unit)
    return Caption(
        f"{unit.partition('/')[0].capitalize()} per second at the median latency; lines join batch sizes of one model.",
        table("Throughput by batch size.", ("model", "batch size", unit), rows),
    )


def _by_batch(known: pd.DataFrame, study: StudyAnalysis) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield groups of trials that differ only in batch size and seed, each with a label."""
    others = [name for name in split_columns(known, study.definition) if name != BATCH]
    for values, group in known.groupby([N, *others], dropna=False, sort=True):
        size, *rest = values
        pairs = zip(others, rest, strict=True)
        parts = [str(value) if isinstance(value, str) else f"{name} {value:g}" for name, value in pairs]
        yield ", ".join(dict.fromkeys([quantity(size), *parts])), group.sort_values([BATCH, "seed"])


def _batch_axis(marks: Marks, sizes: Sequence[float], unit: str) -> None:
    """Label the axes, with a tick for each batch size."""
    axes = marks.axes
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel=f"throughput ({unit})")
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
    axes.xaxis.minorticks_off()
    axes.yaxis.set_major_formatter(lambda value, _: quantity(value))
    axes.yaxis.minorticks_off()
    legend(marks)


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield which trial had the lowest latency, and which the highest throughput."""
    known = measured(study)
    if known.empty:
        return
    soonest = known.iloc[int(numeric(known, LATENCY).argmin())]
    yield f"The lowest median latency per call is {quantity(soonest[LATENCY], 's')}: {_which(soonest)}."
    column, unit = ("tokens_per_s", "tokens/s") if numeric(known, "tokens_per_s").notna().any() else (
        "samples_per_s", "samples/s")  # fmt: skip
    most = known.iloc[int(numeric(known, column).fillna(0).argmax())]
    yield f"The highest throughput is {_rate(most[column], unit)}: {_which(most)}."


def _rate(value: float, unit: str) -> str:
    """Format a throughput: 3.11 k tokens/s."""
    return f"{quantity(value)}{NBSP}{unit}"


def _which(row: pd.Series[Any]) -> str:
    """Return size, batch and weights of a trial."""
    name = f"{quantity(row[N])} parameters, batch {quantity(row.get(BATCH))}"
    return f"{name}, {row['weight_dtype']} weights" if pd.notna(row.get("weight_dtype")) else name


METHODS = (
    "Latencies are medians over the calls after warm-up, percentiles where there are enough calls (p95 needs 20, p99 "
    "100). Throughput is at the median latency. Sizes are non-embedding parameters.",
    DRAWN_WITH,
)
COLUMNS = (
    Column("latency", LATENCY, "s"),
    Column("p95", P95, "s"),
    Column("first token", "prefill_time_s", "s"),
    Column("per further token", "decode_time_per_token_s", "s"),
    Column("weights", "weight_bytes", "B"),
    Column("cache", "kv_cache_bytes", "B"),
    *RESOURCES,
)
LATENCIES = FigureSpec("latency", "Latency against size", latency_figure, optional=True)
THROUGHPUT = FigureSpec("throughput", "Throughput against batch size", throughput_figure, optional=True)
SECTION = StudySection(
    shows=lambda study: workload_of(study) == "inference",
    sentences=sentences,
    figures=lambda _: (LATENCIES, THROUGHPUT, MEMORY, EFFICIENCY),
    columns=lambda _: COLUMNS,
    methods=METHODS,
    outcome=lambda _: Outcome("latency, throughput, memory", "none fitted"),
)
