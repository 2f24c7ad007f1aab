"""How a cost grew over the sizes that were measured: one exponent with its interval, no law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Growth:
    """The exponent b of y ~ N^b over a range of sizes, with its 95 % interval; NaN where there is none."""

    exponent: float
    low: float
    high: float


def growth(sizes: pd.Series[float], values: pd.Series[float]) -> Growth | None:
    """Return the mean exponent over the range: least squares of log y on log N, t interval; medians per size.

    None with fewer than two sizes; no interval with two.
    """
    complete = pd.DataFrame({"n": sizes, "y": values}).dropna()
    medians = complete[(complete["n"] > 0) & (complete["y"] > 0)].groupby("n")["y"].median()
    if len(medians) < 2:
        return None
    return Growth(*slope_interval(np.log(medians.index.to_numpy(dtype=float)), np.log(medians.to_numpy())))


def slope_interval(x: Array, y: Array) -> tuple[float, float, float]:
    """Return the slope of y (n,) on x (n,) by least squares and its 95 % t interval, NaN for two points.

    The x, at least two, must not all be the same.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    centred, freedom = x - x.mean(), len(x) - 2
    square = float(centred @ centred)
    slope = float(centred @ y) / square
    if not freedom:
        return slope, float("nan"), float("nan")
    residuals = y - y.mean() - slope * centred
    half = float(stdtrit(freedom, 0.975)) * float(np.sqrt(residuals @ residuals / freedom / square))
    return slope, slope - half, slope + half
