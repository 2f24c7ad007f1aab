"""What the figures of trials share: labels and titles of marks, and fitted curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, overload

import numpy as np
import pandas as pd

from scalebench.analysis.series import Series, ranked
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend
from scalebench.reporting.quantities import quantity
from scalebench.reporting.svg import DIRECT_FROM, MUTED, SERIES_COLORS, Marks, series_styles

WIDEST_BAND = 3.0  # of a curve's height: a wider band would hide the marks, and it shows only that nothing is known


def trial_label(row: pd.Series[Any], series: Series) -> str:
    """Return the name of a trial for the title of its mark and for tables."""
    seed = f", seed {row['seed']:g}" if pd.notna(row["seed"]) else ""
    return ", ".join(filter(None, (series.label, f"{quantity(row[series.x.column])} {series.x.noun}{seed}")))


class Titles(Sequence[str]):
    """The titles of ``count`` marks, each made when it is needed: of many marks only some are drawn."""

    def __init__(self, count: int, title: Callable[[int], str]) -> None:
        self.number, self.title = count, title

    def __len__(self) -> int:
        return self.number

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self.title(i) for i in range(*index.indices(self.number))]
        if index >= self.number:
            raise IndexError(index)
        return self.title(index)


def trial_titles(series: Series, frame: pd.DataFrame, column: str, unit: str) -> Sequence[str]:
    """Return the title of each trial's mark: name and value."""

    def title(i: int) -> str:
        row = frame.iloc[i]
        return f"{trial_label(row, series)}: {quantity(row[column], unit)}"

    return Titles(len(frame), title)


def untimed(study: StudyAnalysis) -> str | None:
    """Return why a figure of times is missing, if no trial has times by design; None for unknown reasons."""
    return f"No figure: {study.untimed_reason}." if study.untimed_reason else None


def many(all_series: Sequence[Series]) -> bool:
    """Return whether there are too many series to show trials and fitted curves of each: means alone are drawn."""
    return len(all_series) >= DIRECT_FROM


def styles_of(all_series: Sequence[Series]) -> list[dict[str, Any]]:
    """Return colour and marker of each series, the same in every figure of a study; see ``series_styles``."""
    best = ranked(all_series)
    others = [series for series in all_series if not len(series.sizes)]
    places = {id(series): place for place, series in enumerate([*best, *others])}
    return series_styles([places[id(series)] for series in all_series])


def draw_means(
    marks: Marks, series: Series, values: pd.Series[float], style: dict[str, Any], unit: str, factor: float = 1.0,
    middle: str = "median",
) -> None:  # fmt: skip
    """Draw the ``middle`` of the values of trials (by their index) at each size, joined by a line."""
    by_size = values.groupby(series.trials.loc[values.index, series.x.column]).agg(middle).dropna()
    if by_size.empty:
        return
    titles = [f"{series.label}: {middle} at {quantity(size)} {series.x.noun}: {quantity(value, unit, 4)}"
              for size, value in by_size.items()]  # fmt: skip
    marks.axes.plot(by_size.index, by_size / factor, color=style["color"], linewidth=1.1)
    marks.draw(by_size.index, by_size / factor, titles, **style, markersize=4, label=series.label)
    marks.drawn.add("means")


def means_sentence(middle: str, all_series: Sequence[Series], of: str = "") -> str:
    """Return what marks and lines of ``draw_means`` are (``of`` what), and what is grey."""
    grey = " Grey: series beyond the eight of the lowest loss." if len(all_series) > len(SERIES_COLORS) else ""
    return f"Marks are the {middle}s{of} of the sizes, joined by lines.{grey}"


def draw_curve(
    marks: Marks, trend: Trend, sizes: Sequence[float], *, factor: float, color: str, label: str | None = None
) -> None:
    """Draw a fitted law over a range of sizes with the 95 % band of its mean; grey where it ended at a bound.

    Nothing is drawn where the fit was refused.
    """
    if trend.fit is None:
        return
    x = np.geomspace(min(sizes), max(sizes), 60)
    (low, high), curve = trend.band(x), trend.fit.predict(x=x)
    shade = color if trend.fit.status == "converged" else MUTED
    marks.axes.plot(x, curve / factor, color=shade, label=label)
    kinds = {"grey curve": shade == MUTED, "rival": trend.rival is not None}
    marks.drawn |= {"curve", *(kind for kind, holds in kinds.items() if holds)}
    if np.median(high - low) > WIDEST_BAND * np.median(np.abs(curve)):  # False of NaN
        marks.drawn.add("no band")
    else:
        marks.band(x, low / factor, high / factor, shade)


def curve_sentence(marks: Marks, subject: str) -> str:
    """Return what the drawn curve is, for a caption: "The curve is the fitted trend (…) with the 95 % band …".

    Empty where none is drawn; ``subject`` is what the curve is.
    """
    if "curve" not in marks.drawn:
        return ""
    rival = ", which spans that of the other law as well" if "rival" in marks.drawn else ""
    band = f" with the 95 % band of its mean{rival}" if "band" in marks.drawn else ""
    wide = f" Bands more than {WIDEST_BAND:g} times as wide as the curve is high are left out."
    band += "." + wide * ("no band" in marks.drawn)
    grey = " Grey: the fit ended at a bound or did not converge." if "grey curve" in marks.drawn else ""
    return f"The curve is {subject}{band}{grey} "
