"""Figures of a study that grows nothing: models of one size under several choices, such as optimizers."""

from __future__ import annotations

from typing import Any

import pandas as pd

from scalebench.analysis.series import Series, mean_loss
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, STEP_TIME
from scalebench.reporting.figures import Words, titles_of
from scalebench.reporting.quantities import uncertain
from scalebench.reporting.svg import PAPER, Marks, look
from scalebench.reporting.tables import number, table, word

ROW_INCHES, REST_INCHES = 0.27, 1.3


def choices_figure(marks: Marks, study: StudyAnalysis) -> Words | None:
    """Validation loss of each series, the lowest on top: trials, and their mean with its standard error."""
    ranked = sorted((one for one in study.series if len(one.sizes)), key=mean_loss)
    if not ranked or not study.of_one_size:
        return None
    marks.figure.set_size_inches(marks.figure.get_figwidth(), REST_INCHES + ROW_INCHES * len(ranked))
    for place, one in enumerate(ranked):
        _row(marks, place, one)
    marks.axes.set_yticks(range(len(ranked)), [one.label for one in ranked])
    marks.axes.set_ylim(len(ranked) - 0.5, -0.5)
    marks.axes.set_xlabel("validation loss (nats)")
    columns = ("series", "trials", "validation loss (nats)", "step time", "tracked peak")
    return Words(
        "Full marks are trials, hollow ones their mean with its standard error (seeds and validation sample); "
        "the lowest stands on top. All models have one size.",
        table("Loss, time and memory of each choice.", columns, [_cells(one) for one in ranked]),
    )


def _row(marks: Marks, place: int, one: Series) -> None:
    mean, style = one.sizes.iloc[0], look(0)
    losses = one.usable[LOSS]
    marks.draw(losses, [place] * len(losses), titles_of(one, one.usable, LOSS, "nats"),
               **style, markersize=3.5, zorder=4)  # fmt: skip
    marks.axes.errorbar([mean["mean"]], [place], xerr=[0 if pd.isna(mean["se"]) else mean["se"]],
                        fmt="none", ecolor=style["color"])  # fmt: skip
    title = f"{one.label}: mean {uncertain(mean['mean'], mean['se'])} nats"
    marks.draw([mean["mean"]], [place], [title], color=PAPER, marker="o", markersize=9,
               markeredgecolor=style["color"], markeredgewidth=1.4, zorder=3)  # fmt: skip


def _cells(one: Series) -> tuple[Any, ...]:
    mean = one.sizes.iloc[0]
    memory = one.usable[one.memory_column].median() if one.memory_column else None
    return (
        word(one.label),
        number(len(one.usable)),
        (uncertain(mean["mean"], mean["se"]), float(mean["mean"])),
        number(one.trials.loc[one.trials["timed"], STEP_TIME].median(), "s"),
        number(memory, "B"),
    )
