"""Any other workload: the columns that it declares, in a table of its trials and against the size of the model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import N, numeric
from scalebench.reporting.figures.base import styles_of, trial_label, trial_titles
from scalebench.reporting.outcomes import Outcome
from scalebench.reporting.quantities import quantity, scale
from scalebench.reporting.sections.common import DRAWN_WITH, RESOURCES, Column, StudySection
from scalebench.reporting.svg import Marks, finish
from scalebench.reporting.tables import Cell, Rows, Table, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

MAX_SENTENCES = 3
LOG_FROM = 20.0  # ratio of largest to smallest value above which the axis is logarithmic
SIZES = {N, "params", "params_active"}
PRINTED_UNITS = {"1": "", "1/s": "", "nat": "nats"}  # a rate's name ends in "per s"
SUFFIXES = re.compile("(?<!_per)_(s|bytes|nats|j)$")  # of names, which carry their unit
METHODS = (
    "Columns, units and meanings are those that the workload declares. Medians over trials of one size; sizes are "
    "non-embedding parameters.",
    DRAWN_WITH,
)


def declared(study: StudyAnalysis) -> list[dict[str, str]]:
    """Return name, unit and meaning of every column that the study's workload itself fills, but for the model's size.

    A study that does not list them has none.
    """
    own = set(study.definition.get("measured") or []) - SIZES
    return [column for column in study.definition.get("columns") or [] if column["name"] in own]


def numeric_columns(study: StudyAnalysis) -> list[Column]:
    """Return the declared columns with a unit in which at least one trial has a number."""
    return [
        Column(title_of(column["name"]), column["name"], PRINTED_UNITS.get(column["unit"], column["unit"]))
        for column in declared(study)
        if column["unit"] and numeric(study.trials, column["name"]).notna().any()
    ]


def title_of(name: str) -> str:
    """Return a column's name as words, without the unit: decode_time_s is "decode time"."""
    return SUFFIXES.sub("", name).replace("_", " ")


def table_columns(study: StudyAnalysis) -> list[Column]:
    """Return the declared columns, and the resources that any trial may have measured."""
    own = numeric_columns(study)
    names = {column.name for column in own}
    return [*own, *(column for column in RESOURCES if column.name not in names)]


def by_size(trials: pd.DataFrame, column: Column) -> pd.Series[float]:
    """Return the median of a column over the valid trials of each size, smallest first."""
    valid = trials[trials["valid"]]
    return numeric(valid, column.name).groupby(valid[N]).median().dropna()


def figures(study: StudyAnalysis) -> list[FigureSpec[StudyAnalysis]]:
    """Return a figure of each declared column that was measured at two sizes or more."""
    return [
        FigureSpec(column.name, f"{column.title.capitalize()} against size", partial(draw_column, column=column))
        for column in numeric_columns(study)
        if len(by_size(study.trials, column)) > 1
    ]


def draw_column(marks: Marks, study: StudyAnalysis, column: Column) -> Caption:
    """Draw a column of every valid trial against size, one colour per series, with a line through the medians."""
    valid = study.trials[study.trials["valid"] & numeric(study.trials, column.name).notna()]
    values = numeric(valid, column.name)
    factor, unit = scale(float(values.abs().median()), column.unit)
    rows = Rows(len(study.series))
    for series, style in zip(study.series, styles_of(study.series), strict=True):
        part = valid.loc[valid.index.intersection(series.trials.index)]
        medians = (numeric(part, column.name) / factor).groupby(part[N]).median()
        marks.axes.plot(medians.index, medians, color=style["color"], linewidth=1)
        marks.draw(part[N], numeric(part, column.name) / factor, trial_titles(series, part, column.name, column.unit),
                   **style, label=series.label or None)  # fmt: skip
        rows.add(part, partial(_cells, series, column))
    finish(marks, f"{column.title} ({unit})" if unit else column.title, log=spans_decades(values))
    meaning = next(about["meaning"] for about in declared(study) if about["name"] == column.name)
    return Caption(
        f"{meaning[:1].upper()}{meaning[1:].rstrip('.')}. One mark per trial; lines join the medians of the sizes.",
        table(f"{column.title.capitalize()} by trial.", ("trial", column.title), rows),
    )


def _cells(series: Series, column: Column, row: pd.Series[Any]) -> Sequence[Cell]:
    return word(trial_label(row, series)), number(row[column.name], column.unit)


def spans_decades(values: pd.Series[float]) -> bool:
    """Return whether values need a logarithmic axis."""
    return bool(values.min() > 0 and values.max() > LOG_FROM * values.min())


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield how the first columns that the workload declares changed from the smallest to the largest size."""
    for column in numeric_columns(study)[:MAX_SENTENCES]:
        for series in study.series[:MAX_SENTENCES]:
            medians = by_size(series.trials, column)
            ends = [f"{quantity(value, column.unit)} at {quantity(size)} parameters" for size, value in medians.items()]
            subject = f"{series.label}: {column.title}" if series.label else column.title.capitalize()
            if len(medians) > 1:
                yield f"{subject} is {ends[0]} and {ends[-1]}."
            elif len(medians):
                yield f"{subject} is {ends[0]}, the only size."


def tables(study: StudyAnalysis) -> Iterator[Table]:
    """Yield what the declared columns mean."""
    rows = [(word(column["name"]), word(column["unit"] or None), word(column["meaning"])) for column in declared(study)]
    yield Table("Columns that this workload records.", ("column", "unit", "meaning"), tuple(rows))


def outcome(study: StudyAnalysis) -> Outcome:
    """Return the first columns that were measured; no law is fitted to them."""
    return Outcome(", ".join(column.title for column in numeric_columns(study)[:MAX_SENTENCES]), "none fitted")


SECTION = StudySection(
    shows=lambda _: True,
    sentences=sentences,
    figures=figures,
    columns=table_columns,
    methods=METHODS,
    tables=tables,
    outcome=outcome,
    template=Path(__file__).with_name("generic.html.j2"),
)
