"""All studies together: a row per series, a figure of how their costs grow, and a sentence of conclusion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scalebench.analysis.growth import Growth, growth
from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import PARAMETERS, STEP_TIME, N, numeric
from scalebench.reporting.end_labels import PHONE_ROOM
from scalebench.reporting.figures.after_training import OF_ALL
from scalebench.reporting.outcomes import findings_sentence, findings_table, outcome_row, outcomes_table
from scalebench.reporting.quantities import bounded, quantity, uncertain
from scalebench.reporting.sections import section_for
from scalebench.reporting.sections.base import SectionView
from scalebench.reporting.sections.common import StudySection, workload_of
from scalebench.reporting.svg import MUTED, Marks, legend, series_style
from scalebench.reporting.tables import Cell, Table, number, word
from scalebench.reporting.views import Caption, FigureSpec, FigureView, draw_figure, draw_figures

COLUMNS = (
    "study", "sizes", "from and to", "trials ok", "loss at smallest", "loss at largest", "loss exponent",
    "time exponent", "memory exponent", "total run time",
)  # fmt: skip
TIME, MEMORY = COLUMNS.index("time exponent"), COLUMNS.index("memory exponent")
ROW_INCHES, REST_INCHES = 0.24, 1.1


@dataclass(frozen=True)
class GrowthRow:
    """The overview of one series: its cells, and how time (per step or call) and memory grew."""

    cells: tuple[Cell, ...]
    time: Growth | None
    memory: Growth | None


@dataclass(frozen=True)
class Overview:
    """What heads a page of several studies; the rest of its tables and figures follow the first ``table``."""

    sentence: str
    table: Table
    tables: tuple[Table, ...] = ()
    figures: tuple[FigureView, ...] = ()
    style: str = "overview"  # of the first table


def build_overview(studies: Sequence[StudyAnalysis], views: Sequence[SectionView]) -> Overview | None:
    """Return the overview of studies whose sections are ``views``; None where none of them has a row.

    Studies whose trials start from others' weights are compared by what they did to quality, bytes and time; all
    others by how their costs grow with size.
    """
    if any(has_parents(study) for study in studies):
        return after_training(studies, [view.id for view in views])
    linked = [(row, view.id) for study, view in zip(studies, views, strict=True)
              for row in overview_rows(study.name, study.series)]  # fmt: skip
    rows = [row for row, _ in linked]
    if not rows:
        return None
    figure, names = draw_figure("overview-growth", GROWTH, rows), [name for _, name in linked]
    return Overview(conclusion(rows), overview_table([row.cells for row in rows], names),
                    figures=(figure,) if figure else ())  # fmt: skip


def has_parents(study: StudyAnalysis) -> bool:
    """Return whether any trial of a study started from another trial's weights."""
    return "parent_trial_id" in study.trials and bool(study.trials["parent_trial_id"].notna().any())


def after_training(studies: Sequence[StudyAnalysis], links: Sequence[str]) -> Overview:
    """Return the outcome of each study, and the published findings that they test."""
    outcomes = [section.outcome(study) for study in studies if isinstance(section := section_for(study), StudySection)]
    pairs = list(zip(studies, outcomes, strict=True))
    findings = [(study.name, finding) for study, outcome in pairs for finding in outcome.findings]
    finding_links = [link for (_, outcome), link in zip(pairs, links, strict=True) for _ in outcome.findings]
    rows = [outcome_row(study, workload_of(study), outcome) for study, outcome in pairs]
    sentence = findings_sentence([finding for _, finding in findings])
    tables = (findings_table(findings, finding_links),) if findings else ()
    return Overview(
        sentence, outcomes_table(rows, links), tables, draw_figures("overview", OF_ALL, studies), style="outcomes"
    )


def conclusion(rows: Sequence[GrowthRow]) -> str:
    """Return in how many series time and memory grew more slowly than size, of those whose exponent has an interval."""
    slower, faster = [], []
    for name, growths in (("time", [row.time for row in rows]), ("memory", [row.memory for row in rows])):
        known = [trend for trend in growths if trend is not None and np.isfinite(trend.high - trend.low)]
        if known:
            slower.append((name, f"{sum(map(_slower, known))} of {len(known)}"))
        if count := sum(map(_faster, known)):
            faster.append(f"{name} in {count}")
    if not slower:
        return f"{len(rows)} series, none of them with three sizes."
    (first, share), *rest = slower
    head = f"{first.capitalize()} grew more slowly than model size in {share}"
    also = "".join(f" and {name} in {share}" for name, share in rest)
    more = f" Faster: {' and '.join(faster)}." if faster else ""
    return f"{head}{also} series whose exponent has an interval.{more}"


def _slower(trend: Growth) -> bool:
    return trend.high < 1


def _faster(trend: Growth) -> bool:
    return trend.low > 1


def growth_figure(marks: Marks, rows: Sequence[GrowthRow]) -> Caption | None:
    """Exponents of time and memory with their intervals, one line per series, in the order of the table."""
    known = [row for row in rows if row.time or row.memory]
    if not known:
        return None
    lines = list(_lines(known))
    wholes = [row.cells[0][0] if row else "" for _, row in lines]
    marks.figure.set_size_inches(marks.figure.get_figwidth(), REST_INCHES + ROW_INCHES * len(lines))
    room = (PHONE_ROOM, 0, 1 - PHONE_ROOM, 1)
    marks.figure.get_layout_engine().set(rect=room)  # type: ignore[union-attr, call-arg]
    for i, (cost, shift) in enumerate((("time", -0.14), ("memory", 0.14))):
        style = series_style(i)
        grown = [(place + shift, getattr(row, cost)) for place, (_, row) in enumerate(lines) if row is not None]
        grown = [(place, trend) for place, trend in grown if trend is not None]
        for place, trend in grown:
            low, high = np.clip([trend.low, trend.high], *EDGES)
            if np.isfinite(low) and np.isfinite(high):
                marks.axes.hlines(place, low, high, color=style["color"], linewidth=1.4)
                marks.drawn.add("bars")
        titles = [f"{wholes[round(place)]}: {cost} ∝ N^{trend.exponent:.2f}" for place, trend in grown]
        marks.draw(np.clip([trend.exponent for _, trend in grown], *EDGES), [place for place, _ in grown], titles,
                   **style, markersize=4.5, label=cost)  # fmt: skip
    marks.axes.axvline(1, color=MUTED, linestyle="--", linewidth=1.2)
    marks.axes.set_yticks(range(len(lines)), [label for label, _ in lines])
    marks.axes.set_ylim(len(lines) - 0.5, -0.5)
    marks.axes.set_xlabel("exponent b of cost ∝ N^b")
    legend(marks)
    bars = " Bars are 95 % intervals, cut at the edges of the figure." if "bars" in marks.drawn else ""
    return Caption(
        f"Time (per training step or call) and peak memory. Dashed: cost in proportion to size.{bars}",
        Table("Exponents of time and memory.", ("series", "time", "memory"),
              tuple((row.cells[0], row.cells[TIME], row.cells[MEMORY]) for row in known)),
    )  # fmt: skip


def _lines(rows: Sequence[GrowthRow]) -> Iterator[tuple[str, GrowthRow | None]]:
    """Yield the labels down the figure with their rows; a study of several series has a heading line without a value.

    Whole names would not fit beside the axes on a phone.
    """
    above = ""
    for row in rows:
        study, _, series = row.cells[0][0].partition(": ")
        if series and study != above:
            yield f"{study}:", None
        above = study
        yield series or study, row


GROWTH = FigureSpec("growth", "How costs grow with size", growth_figure, optional=True)
EDGES = (-0.5, 2.5)  # exponents beyond, or their intervals, are cut there


def overview_rows(study: str, all_series: Sequence[Series]) -> Iterator[GrowthRow]:
    """Yield the overview of a study: one row per series."""
    for series in all_series:
        if series.x is not PARAMETERS:  # more data costs neither time per step nor memory
            yield _row(": ".join(filter(None, (study, series.label, series.x.noun))), series, None, None)
            continue
        timed, column = (series.timed, STEP_TIME) if series.timed[STEP_TIME].notna().any() else _called(series)
        peaks = series.usable[series.memory_column] if series.memory_column else None
        memory = None if peaks is None else growth(series.usable[N], peaks)
        yield _row(
            f"{study}: {series.label}" if series.label else study,
            series,
            growth(timed[N], numeric(timed, column)),
            memory,
        )


def _called(series: Series) -> tuple[pd.DataFrame, str]:
    """Return the valid inference trials that had the machine to themselves, and their column of time."""
    return series.usable[series.usable["timing_exclusive"].ne(False)], "latency_median_s"


def overview_table(rows: Sequence[tuple[Cell, ...]], links: Sequence[str] = ()) -> Table:
    """Return the overview of several studies as a table."""
    caption = (
        "Every study. Sizes are non-embedding parameters (tokens or samples where the data grows); validation loss is "
        "in nats with its standard error. Exponents have 95 % intervals: α of the fitted loss law, and b of cost ∝ N^b "
        "for time per step (or call) and peak memory. Total run time is the sum over all trials."
    )
    return Table(caption, COLUMNS, tuple(rows), links=tuple(links))


def _row(name: str, series: Series, time: Growth | None, memory: Growth | None) -> GrowthRow:
    return GrowthRow(_row_cells(name, series, time, memory), time, memory)


def _row_cells(name: str, series: Series, step_time: Growth | None, memory: Growth | None) -> tuple[Cell, ...]:
    sizes, trials = series.sizes, series.trials
    done = (f"{int(trials['valid'].sum())} of {len(trials)}", int(trials["valid"].sum()))
    work = numeric(trials, "wall_time_s").dropna()
    if sizes.empty:
        placed = series.usable[series.x.column].dropna()
        ends = _range(placed.min(), placed.max()) if len(placed) else word(None)
        return (word(name), number(placed.nunique() or None), ends, done, *[word(None)] * 3, _growth_cell(step_time),
                _growth_cell(memory), number(work.sum() if len(work) else None, "s"))  # fmt: skip
    first, last = sizes.iloc[0], sizes.iloc[-1]
    return (
        word(name),
        (str(len(sizes)), len(sizes)),
        _range(first["size"], last["size"]),
        done,
        (uncertain(first["mean"], first["se"]), float(first["mean"])) if len(sizes) > 1 else ("one size", None),
        (uncertain(last["mean"], last["se"]), float(last["mean"])),
        _exponent(series),
        _growth_cell(step_time),
        _growth_cell(memory),
        number(work.sum() if len(work) else None, "s"),
    )


def _range(low: float, high: float) -> Cell:
    return f"{quantity(low)} to {quantity(high)}" if low != high else quantity(low), float(high)


def _exponent(series: Series) -> Cell:
    """Return the exponent of the loss, or why it is not resolved."""
    fitted, means = series.loss_all.fit, series.sizes["mean"]
    if fitted is None or "alpha" not in fitted.parameters:
        return word(None)
    if means.iloc[-1] >= means.iloc[0]:
        return "none: the loss does not fall", None
    if "alpha" in fitted.undetermined:
        return "not determined", None
    return _with_interval(fitted.parameters["alpha"], *series.loss_all.interval("alpha")), fitted.parameters["alpha"]


def _growth_cell(growth: Growth | None) -> Cell:
    if growth is None:
        return word(None)
    return _with_interval(growth.exponent, growth.low, growth.high), growth.exponent


def _with_interval(value: float, low: float, high: float) -> str:
    text, interval = bounded(value, low, high)
    return f"{text} ({interval})"
