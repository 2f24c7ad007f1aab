"""How far to trust a fitted law: its residuals, and how well it predicted larger sizes from smaller ones."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.series import Series, to_fit
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS
from scalebench.reporting.figures.base import Titles, trial_titles
from scalebench.reporting.fit_tables import backtest_table, fitted_note
from scalebench.reporting.quantities import percent, quantity
from scalebench.reporting.svg import MUTED, PAPER, Marks, legend, series_style, size_axis
from scalebench.reporting.tables import Cell, Rows, number, table, word
from scalebench.reporting.views import Caption, FigureSpec


def why_no_fit(study: StudyAnalysis) -> str | None:
    """Return the reasons why no series has a fit of loss against size, or None where there is nothing to fit."""
    with_loss = [series for series in to_fit(study.series) if len(series.sizes)] or study.series
    reasons = dict.fromkeys(series.loss_all.reason for series in with_loss if series.loss_all.fit is None)
    return " ".join(f"No fit of loss against size alone: {reason}." for reason in reasons if reason) or None


def residuals_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Residual of each trial in percent of the fitted loss, against the fitted loss; every size is in the fit."""
    all_series = [series for series in to_fit(study.series) if series.loss_all.fit is not None]
    if not all_series:
        return why_no_fit(study)
    rows = Rows(len(all_series))
    for i, series in enumerate(all_series):
        assert series.loss_all.fit is not None
        points = series.usable[series.usable[LOSS] > 0]
        fitted = series.loss_all.fit.predict(x=points[series.x.column])
        points = points.assign(fitted=fitted, error=points[LOSS].to_numpy() / fitted - 1)
        marks.draw(fitted, 100 * points["error"], _titles(series, points), **series_style(i),
                   label=series.label or None)  # fmt: skip
        rows.add(points, partial(_residual_cells, series))
    marks.axes.axhline(0, color=MUTED, linewidth=1.2)
    marks.axes.set(xlabel="fitted validation loss (nats)", ylabel="residual (% of fitted loss)")
    legend(marks, direct=False)
    columns = ("series", "size", "fitted loss", "residual")
    return Caption(
        "One mark per trial; the law is fitted to every size. A trend in the residuals means that the law has the "
        f"wrong shape; a spread that widens means that the noise grows.{fitted_note(study.series)}",
        table("Residuals of the law fitted to every size.", columns, rows, series=len(study.series)),
    )


def _titles(series: Series, points: pd.DataFrame) -> Sequence[str]:
    texts = trial_titles(series, points, LOSS, "nats")
    return Titles(len(points), lambda i: f"{texts[i]}, residual {percent(points['error'].iloc[i])}")


def _residual_cells(series: Series, row: pd.Series[Any]) -> Sequence[Cell]:
    return (word(series.label or "all trials"), number(row[series.x.column]), number(row["fitted"], "nats", 4),
            (percent(row["error"]), row["error"]))  # fmt: skip


def backtest_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Error of predicting each larger size from all sizes below it, with 95 % prediction intervals."""
    all_series = [series for series in to_fit(study.series) if series.backtest]
    if not all_series:
        fitted = any(series.loss_all.fit is not None for series in to_fit(study.series))
        return "No size was held out: the smaller ones are too few for the law." if fitted else why_no_fit(study)
    for i, series in enumerate(all_series):
        _backtest_series(marks, series, i)
    marks.axes.axhline(0, color=MUTED, linewidth=1.2)
    size_axis(marks.axes, "held-out size N (non-embedding parameters)")
    marks.axes.set_ylabel("prediction error (%)")
    legend(marks, direct=False)
    return Caption(
        "Each size is predicted by the law fitted to all smaller sizes. "
        + (
            "Bars are 95 % prediction intervals for the mean of as many runs as measured: they should include zero. "
            if "bars" in marks.drawn
            else ""
        )
        + "Crosses: the naive prediction, which "
        f"repeats the loss of the next-smaller size.{fitted_note(study.series)}",
        backtest_table(to_fit(study.series)),
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
