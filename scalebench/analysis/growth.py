"""How a cost grew over the sizes that were measured: one exponent with its interval, no law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


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
    from scipy.stats import linregress, t

    complete = pd.DataFrame({"n": sizes, "y": values}).dropna()
    medians = complete[(complete["n"] > 0) & (complete["y"] > 0)].groupby("n")["y"].median()
    if len(medians) < 2:
        return None
    fitted = linregress(np.log(medians.index.to_numpy(dtype=float)), np.log(medians.to_numpy()))
    slope, freedom = float(fitted.slope), len(medians) - 2
    half = float(t.ppf(0.975, freedom) * fitted.stderr) if freedom else float("nan")
    return Growth(slope, slope - half, slope + half)
