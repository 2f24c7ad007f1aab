"""Figures of a study that keeps the best of tuned values at each size: the loss against each of these values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd

from scalebench.analysis.series import Series, ranked
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, numeric, tuned_axes
from scalebench.reporting.figures.base import Titles
from scalebench.reporting.quantities import quantity, significant
from scalebench.reporting.svg import PAPER, Marks, legend, log_ticks, ramp
from scalebench.reporting.tables import Cell, number, table
from scalebench.reporting.views import Caption, FigureSpec

FEWEST_VALUES = 3  # of a field at one size
MOST_SIZES = 8  # of a figure, spread over all
WIDE = 10.0  # ratio of the largest value to the smallest from which an axis is logarithmic


def tuned_figures(study: StudyAnalysis) -> tuple[FigureSpec[StudyAnalysis], ...]:
    """Return a figure for each tuned field that takes several numbers at a size, of the series with the lowest loss."""
    return tuple(
        FigureSpec(f"tuned-{name}", f"Validation loss against {_words(name)}", partial(_figure, name), optional=True)
        for series in ranked(study.series)[:1]
        for name in tuned_numbers(series)
    )


def _figure(name: str, marks: Marks, study: StudyAnalysis) -> Caption | None:
    return loss_figure(marks, ranked(study.series)[0], name)


def tuned_numbers(series: Series) -> list[str]:
    """Return the tuned fields that take several numbers at some size."""
    trials = series.trials[series.trials["valid"]]
    names = [name for name in tuned_axes(series.definition) if name in trials]
    values = trials.assign(**{name: numeric(trials, name) for name in names}).groupby(series.x.column)
    return [name for name in names if (values[name].nunique() >= FEWEST_VALUES).any()]


def loss_figure(marks: Marks, series: Series, name: str) -> Caption | None:
    """Mean loss of each combination of tuned values against one of them, a colour per size; the best are ringed."""
    sizes = list(_combinations(series, name))
    if not sizes:
        return None
    shown = [sizes[i] for i in np.unique(np.linspace(0, len(sizes) - 1, MOST_SIZES).round().astype(int))]
    for (size, means), color in zip(shown, ramp(len(shown)), strict=True):
        _draw(marks, f"{quantity(size)} {series.x.noun}", name, means, color)
    values = pd.concat([means[name] for _, means in shown])
    if values.min() > 0 and values.max() > WIDE * values.min():
        marks.axes.set_xscale("log")
        log_ticks(marks.axes.xaxis, values.min(), values.max())
    marks.axes.xaxis.set_major_formatter("{x:g}")
    marks.axes.set(xlabel=_words(name), ylabel="validation loss (nats)")
    legend(marks)
    others = [_words(other) for other in tuned_numbers(series) if other != name]
    of = f"{series.label}. " if series.label else ""
    return Caption(
        f"{of}A mark is the mean loss over the seeds of one combination of the tuned values; the ring is around the "
        f"best of its size.{_vary(others)}",
        table(
            f"Best {_words(name)} of each size.",
            (series.x.title, f"best {_words(name)}", "validation loss (nats)", "combinations"),
            [_row(size, means, name) for size, means in sizes],
        ),
    )


def _draw(marks: Marks, label: str, name: str, means: pd.DataFrame, color: str) -> None:
    def title(rows: pd.DataFrame, i: int) -> str:
        return f"{label}, {_words(name)} {significant(rows[name].iloc[i])}: {significant(rows[LOSS].iloc[i], 4)} nats"

    best = means.nsmallest(1, LOSS)
    marks.draw(means[name], means[LOSS], Titles(len(means), partial(title, means)), color=color, marker="o",
               markersize=3.5, label=label)  # fmt: skip
    marks.draw(best[name], best[LOSS], [f"best: {title(best, 0)}"], color=PAPER, marker="o", markersize=9,
               markeredgecolor=color, markeredgewidth=1.6, zorder=1)  # fmt: skip


def _combinations(series: Series, name: str) -> Iterator[tuple[float, pd.DataFrame]]:
    """Yield each size with the mean loss of every combination of tuned values that it was trained with."""
    axes = [axis for axis in tuned_axes(series.definition) if axis in series.trials]
    trials = series.trials[series.trials["valid"]]
    trials = trials.assign(**{name: numeric(trials, name)}).dropna(subset=[name, LOSS])
    for size, part in trials.groupby(series.x.column):
        yield float(str(size)), part.groupby(axes, dropna=False)[LOSS].mean().reset_index()


def _row(size: float, means: pd.DataFrame, name: str) -> tuple[Cell, ...]:
    best = means.nsmallest(1, LOSS).iloc[0]
    return number(size), number(best[name]), number(best[LOSS], digits=4), number(len(means))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _vary(others: Sequence[str]) -> str:
    verb = "varies" if len(others) == 1 else "vary"
    return f" {' and '.join(others).capitalize()} {verb} as well." if others else ""
