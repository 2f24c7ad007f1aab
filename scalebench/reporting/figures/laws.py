"""Figures that say how far to trust a fitted law: its residuals, and how well it predicted larger sizes before."""

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
    """Return in sentences why no series has a fit of loss against size, or None where there is nothing to fit."""
    reasons = dict.fromkeys(one.loss_all.reason for one in study.series if one.loss_all.fit is None)
    return " ".join(f"No fit of loss against size alone: {reason}." for reason in reasons if reason) or None


def residuals_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Measured loss over the fitted one, less one, against the fitted loss; every size is in the fit."""
    series = [one for one in study.series if one.loss_all.fit is not None]
    if not series:
        return why_no_fit(study)
    rows: list[Sequence[Cell]] = []
    for i, one in enumerate(series):
        assert one.loss_all.fit is not None
        points = one.usable[one.usable[LOSS] > 0]
        fitted = one.loss_all.fit.predict(x=points[one.x.column])
        errors = points[LOSS].to_numpy() / fitted - 1
        titles = [f"{text}, {percent(error)} off the law" for text, error in
                  zip(trial_titles(one, points, LOSS, "nats"), errors, strict=True)]  # fmt: skip
        marks.draw(fitted, 100 * errors, titles, **series_style(i), label=one.label or None)
        rows += [
            (word(one.label or "all trials"), number(size), number(y, "nats", 4), (percent(error), error))
            for size, y, error in zip(points[one.x.column], fitted, errors, strict=True)
        ]
    marks.axes.axhline(0, color=MUTED, linewidth=1.2)
    marks.axes.set(xlabel="fitted validation loss (nats)", ylabel="measured over fitted, less one (%)")
    legend(marks)
    columns = ("series", "size", "fitted loss", "residual")
    return Caption(
        "One mark per trial; the law is fitted to every size. Marks that bend away from the line say that the law has "
        "another shape than the data, marks that spread out say that the noise grows.",
        table("Residuals of the law fitted to every size.", columns, rows, series=len(study.series)),
    )


def backtest_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Error of the prediction of each larger size from all sizes below it, with the 95 % interval it came with."""
    series = [one for one in study.series if one.backtest]
    if not series:
        return why_no_fit(study)
    for i, one in enumerate(series):
        _backtest_series(marks, one, i)
    marks.axes.axhline(0, color=MUTED, linewidth=1.2)
    size_axis(marks.axes, "held-out size N (non-embedding parameters)")
    marks.axes.set_ylabel("predicted over measured, less one (%)")
    legend(marks)
    return Caption(
        "Each size is predicted by the law fitted to all smaller sizes. Bars are the 95 % prediction intervals of the "
        "mean of as many runs: they should hold zero. Crosses repeat the loss of the next-smaller size.",
        backtest_table(study.series),
    )


def _backtest_series(marks: Marks, one: Series, i: int) -> None:
    style, prefix = series_style(i), f"{one.label}: " if one.label else ""
    sizes, rows = np.array([row.size for row in one.backtest]), one.backtest
    for row in rows:
        if row.interval is not None:
            low, high = (100 * (end / row.measured - 1) for end in row.interval)
            marks.axes.vlines(row.size, low, high, color=style["color"], linewidth=1.4)
    titles = [f"{prefix}{quantity(row.size)} parameters: {percent(row.error_percent / 100)}" for row in rows]
    marks.draw(sizes, [row.error_percent for row in rows], titles, **style, label=one.label or "the law")
    titles = [f"{prefix}next-smaller size's loss: {percent(row.naive_error_percent / 100)}" for row in rows]
    marks.draw(sizes, [row.naive_error_percent for row in rows], titles, color=PAPER, marker="X", markersize=7,
               markeredgecolor=style["color"], label=f"{prefix}next-smaller size's loss")  # fmt: skip


RESIDUALS = FigureSpec("residuals", "Residuals of the law", residuals_figure)
BACKTEST = FigureSpec("backtest", "Larger sizes predicted from smaller ones", backtest_figure)
