"""How far to trust a fitted law: its residuals, and how well it predicted larger sizes from smaller ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS
from scalebench.reporting.figures.base import trial_titles
from scalebench.reporting.fit_tables import backtest_table
from scalebench.reporting.quantities import percent, quantity
from scalebench.reporting.svg import MUTED, PAPER, Marks, legend, series_style, size_axis
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec


def why_no_fit(study: StudyAnalysis) -> str | None:
    """Return the reasons why no series has a fit of loss against size, or None where there is nothing to fit."""
    reasons = dict.fromkeys(series.loss_all.reason for series in study.series if series.loss_all.fit is None)
    return " ".join(f"No fit of loss against size alone: {reason}." for reason in reasons if reason) or None


def residuals_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Residual of each trial in percent of the fitted loss, against the fitted loss; every size is in the fit."""
    all_series = [series for series in study.series if series.loss_all.fit is not None]
    if not all_series:
        return why_no_fit(study)
    rows: list[Sequence[Cell]] = []
    for i, series in enumerate(all_series):
        assert series.loss_all.fit is not None
        points = series.usable[series.usable[LOSS] > 0]
        fitted = series.loss_all.fit.predict(x=points[series.x.column])
        errors = points[LOSS].to_numpy() / fitted - 1
        titles = [f"{text}, residual {percent(error)}" for text, error in
                  zip(trial_titles(series, points, LOSS, "nats"), errors, strict=True)]  # fmt: skip
        marks.draw(fitted, 100 * errors, titles, **series_style(i), label=series.label or None)
        rows += [
            (word(series.label or "all trials"), number(size), number(y, "nats", 4), (percent(error), error))
            for size, y, error in zip(points[series.x.column], fitted, errors, strict=True)
        ]
    marks.axes.axhline(0, color=MUTED, linewidth=1.2)
    marks.axes.set(xlabel="fitted validation loss (nats)", ylabel="residual (% of fitted loss)")
    legend(marks)
    columns = ("series", "size", "fitted loss", "residual")
    return Caption(
        "One mark per trial; the law is fitted to every size. A trend in the residuals means that the law has the "
        "wrong shape; a spread that widens means that the noise grows.",
        table("Residuals of the law fitted to every size.", columns, rows, series=len(study.series)),
    )


def backtest_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Error of predicting each larger size from all sizes below it, with 95 % prediction intervals."""
    all_series = [series for series in study.series if series.backtest]
    if not all_series:
        return why_no_fit(study)
    for i, series in enumerate(all_series):
        _backtest_series(marks, series, i)
    marks.axes.axhline(0, color=MUTED, linewidth=1.2)
    size_axis(marks.axes, "held-out size N (non-embedding parameters)")
    marks.axes.set_ylabel("prediction error (%)")
    legend(marks)
    return Caption(
        "Each size is predicted by the law fitted to all smaller sizes. "
        + (
            "Bars are 95 % prediction intervals for the mean of as many runs as measured: they should include zero. "
            if "bars" in marks.drawn
            else ""
        )
        + "Crosses: the naive prediction, which "
        "repeats the loss of the next-smaller size.",
        backtest_table(study.series),
    )


def _backtest_series(marks: Marks, series: Series, i: int) -> None:
    style, prefix = series_style(i), f"{series.label}: " if series.label else ""
    sizes, rows = np.array([row.size for row in series.backtest]), series.backtest
    for row in rows:
        if row.interval is not None:
            low, high = (100 * (end / row.measured - 1) for end in row.interval)
            marks.bars([row.size], [low], [high], color=style["color"], linewidth=1.4)
    titles = [f"{prefix}{quantity(row.size)} parameters: {percent(row.error_percent / 100)}" for row in rows]
    marks.draw(sizes, [row.error_percent for row in rows], titles, **style, label=series.label or "the law")
    titles = [f"{prefix}next-smaller size's loss: {percent(row.naive_error_percent / 100)}" for row in rows]
    marks.draw(sizes, [row.naive_error_percent for row in rows], titles, color=PAPER, marker="X", markersize=7,
               markeredgecolor=style["color"], label=f"{prefix}next-smaller size's loss")  # fmt: skip


RESIDUALS = FigureSpec("residuals", "Residuals of the law", residuals_figure, diagnostic=True)
BACKTEST = FigureSpec("backtest", "Larger sizes predicted from smaller ones", backtest_figure)
