"""What the figures of trials share: labels and titles of marks, and fitted curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.series import Series
from scalebench.analysis.trends import Trend
from scalebench.reporting.quantities import quantity
from scalebench.reporting.svg import MUTED, Marks


def trial_label(row: pd.Series[Any], series: Series) -> str:
    """Return the name of a trial for the title of its mark and for tables."""
    seed = f", seed {row['seed']:g}" if pd.notna(row["seed"]) else ""
    return ", ".join(filter(None, (series.label, f"{quantity(row[series.x.column])} {series.x.noun}{seed}")))


def trial_titles(series: Series, frame: pd.DataFrame, column: str, unit: str) -> list[str]:
    """Return the title of each trial's mark: name and value."""
    return [f"{trial_label(row, series)}: {quantity(row[column], unit)}" for _, row in frame.iterrows()]


def draw_curve(
    marks: Marks, trend: Trend, sizes: Sequence[float], *, factor: float, color: str, label: str | None = None
) -> None:
    """Draw a fitted law over a range of sizes with the 95 % band of its mean; grey where it ended at a bound.

    Nothing is drawn where the fit was refused.
    """
    if trend.fit is None:
        return
    x = np.geomspace(min(sizes), max(sizes), 60)
    low, high = trend.band(x)
    shade = color if trend.fit.status == "converged" else MUTED
    marks.axes.plot(x, trend.fit.predict(x=x) / factor, color=shade, label=label)
    marks.band(x, low / factor, high / factor, shade)
    marks.drawn |= {"curve"} | ({"grey curve"} if shade == MUTED else set())


def curve_sentence(marks: Marks, subject: str) -> str:
    """Return what the drawn curve is, for a caption: "The curve is the fitted trend (…) with the 95 % band …".

    Empty where none is drawn; ``subject`` is what the curve is.
    """
    if "curve" not in marks.drawn:
        return ""
    band = " with the 95 % band of its mean" if "band" in marks.drawn else ""
    grey = " Grey: the fit ended at a bound or did not converge." if "grey curve" in marks.drawn else ""
    return f"The curve is {subject}{band}.{grey} "
