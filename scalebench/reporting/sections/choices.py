"""Training models of one size under several choices, such as optimizers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from scalebench.analysis.series import Series, mean_loss
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, STEP_TIME
from scalebench.reporting.figures.base import trial_titles
from scalebench.reporting.figures.runs import CURVES, NOISE
from scalebench.reporting.fit_tables import fit_tables
from scalebench.reporting.quantities import quantity, uncertain
from scalebench.reporting.sections import training
from scalebench.reporting.sections.common import StudySection, workload_of
from scalebench.reporting.sentences import within_noise
from scalebench.reporting.svg import PAPER, Marks, series_style
from scalebench.reporting.tables import number, table, word
from scalebench.reporting.views import Caption, FigureSpec

ROW_INCHES, REST_INCHES = 0.27, 1.3


def choices_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Validation loss of each series, lowest at the top: trials, and their mean with its standard error."""
    ranked = sorted((series for series in study.series if len(series.sizes)), key=mean_loss)
    if not ranked or not study.of_one_size:
        return None
    marks.figure.set_size_inches(marks.figure.get_figwidth(), REST_INCHES + ROW_INCHES * len(ranked))
    for place, series in enumerate(ranked):
        _row(marks, place, series)
    marks.axes.set_yticks(range(len(ranked)), [series.label for series in ranked])
    marks.axes.set_ylim(len(ranked) - 0.5, -0.5)
    marks.axes.set_xlabel("validation loss (nats)")
    columns = ("series", "trials", "validation loss (nats)", "step time", "tracked peak")
    return Caption(
        "Filled marks are trials; hollow marks are their mean with its standard error (seeds and validation sample). "
        "The lowest loss is at the top. All models have the same size.",
        table("Loss, time and memory of each choice.", columns, [_cells(series) for series in ranked]),
    )


def _row(marks: Marks, place: int, series: Series) -> None:
    mean, style = series.sizes.iloc[0], series_style(0)
    losses = series.usable[LOSS]
    marks.draw(losses, [place] * len(losses), trial_titles(series, series.usable, LOSS, "nats"),
               **style, markersize=3.5, zorder=4)  # fmt: skip
    marks.axes.errorbar([mean["mean"]], [place], xerr=[0 if pd.isna(mean["se"]) else mean["se"]],
                        fmt="none", ecolor=style["color"])  # fmt: skip
    title = f"{series.label}: mean {uncertain(mean['mean'], mean['se'])} nats"
    marks.draw([mean["mean"]], [place], [title], color=PAPER, marker="o", markersize=9,
               markeredgecolor=style["color"], markeredgewidth=1.4, zorder=3)  # fmt: skip


def _cells(series: Series) -> tuple[Any, ...]:
    mean = series.sizes.iloc[0]
    memory = series.usable[series.memory_column].median() if series.memory_column else None
    return (
        word(series.label),
        number(len(series.usable)),
        (uncertain(mean["mean"], mean["se"]), float(mean["mean"])),
        number(series.trials.loc[series.trials["timed"], STEP_TIME].median(), "s"),
        number(memory, "B"),
    )


def choice_sentences(all_series: Sequence[Series]) -> Iterator[str]:
    """Yield which choices have the lowest and the highest loss, and which are within noise of the lowest."""
    ranked = sorted((series for series in all_series if len(series.sizes)), key=mean_loss)
    if not ranked:
        return
    rows = [series.sizes.iloc[0] for series in ranked]
    best, worst = (f"{series.label} ({uncertain(row['mean'], row['se'])} nats)"
                   for series, row in ((ranked[0], rows[0]), (ranked[-1], rows[-1])))  # fmt: skip
    size = quantity(rows[0]["size"])
    if len(ranked) == 1:
        of = f" ({ranked[0].label})" if ranked[0].label else ""
        yield f"The validation loss at {size} parameters is {uncertain(rows[0]['mean'], rows[0]['se'])} nats{of}."
        return
    yield (f"Of {len(ranked)} choices at {size} parameters the lowest validation loss is that of {best}, the highest "
           f"that of {worst}.")  # fmt: skip
    near = [series.label for series, row in zip(ranked[1:], rows[1:], strict=True)
            if within_noise(row, rows[0])]  # fmt: skip
    if near:
        yield f"Within noise of the lowest: {', '.join(near)}."


CHOICES = FigureSpec("choices", "Validation loss of each choice", choices_figure, optional=True)
SECTION = StudySection(
    shows=lambda study: workload_of(study) == "training" and study.of_one_size,
    sentences=lambda study: choice_sentences(study.series),
    figures=lambda _: (CHOICES, CURVES, NOISE),
    columns=lambda _: training.COLUMNS,
    methods=training.METHODS,
    tables=lambda study: fit_tables(study.series, study.surfaces),
    template=training.TEMPLATE,
)
