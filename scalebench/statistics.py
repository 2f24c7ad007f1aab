"""Robust summaries of samples. Every sample is kept; outliers are counted, never dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A sample this many median absolute deviations from the median is flagged: the modified z-score of hyperfine
# (0.6745 |x - median| / MAD > 10) written for the raw MAD.
OUTLIER_MADS = 14.8


@dataclass(frozen=True)
class Summary:
    """Median and quantiles of samples, in their unit; ``low`` and ``high`` bound the median at 95 %."""

    count: int
    median: float
    p20: float
    p80: float
    low: float
    high: float
    outliers: int


def outlier_mask(samples: ArrayLike) -> NDArray[np.bool_]:
    """Flag samples more than 14.8 median absolute deviations from the median; shape as given."""
    x = np.asarray(samples, dtype=np.float64)
    deviation = np.abs(x - np.median(x))
    return np.asarray(deviation > OUTLIER_MADS * np.median(deviation)) & (deviation > 0)


def median_interval(samples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Bound the median by order statistics: the exact, distribution-free binomial interval.

    With too few samples for ``level`` the interval is the whole range. Source: David & Nagaraja, Order Statistics, 7.1.
    """
    from scipy.stats import binom

    x = np.sort(np.asarray(samples, dtype=np.float64))
    rank = int(binom.ppf((1 - level) / 2, x.size, 0.5))
    return float(x[max(rank - 1, 0)]), float(x[min(x.size - rank, x.size - 1)])


def summarize(samples: ArrayLike) -> Summary:
    """Summarise samples of shape (n,), n >= 1. Raises ``ValueError`` when there is none."""
    x = np.asarray(samples, dtype=np.float64)
    if x.size == 0:
        raise ValueError("no samples to summarise")
    p20, median, p80 = np.quantile(x, [0.2, 0.5, 0.8])
    low, high = median_interval(x)
    return Summary(x.size, float(median), float(p20), float(p80), low, high, int(outlier_mask(x).sum()))


def clustered_mean(values: ArrayLike, clusters: ArrayLike) -> tuple[float, float]:
    """Return the mean of ``values`` (n,) and its standard error when values of one cluster (n,) move together.

    The cluster-robust variance of a mean, G/(G-1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2
    (Cameron & Miller 2015, eq. 11 with an intercept only). The error is NaN for a single cluster.
    """
    x = np.asarray(values, dtype=np.float64)
    _, group = np.unique(np.asarray(clusters), return_inverse=True)
    mean = float(x.mean())
    sums = np.bincount(group, weights=x - mean)
    if sums.size < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(sums.size / (sums.size - 1) * np.square(sums).sum()) / x.size)


def combined_standard_error(losses: Sequence[float], errors: Sequence[float]) -> float:
    """Standard error of a mean over seeds: seed variance and validation error together, same unit as the losses.

    ``losses`` (s,) are one configuration's validation losses over seeds, ``errors`` (s,) their standard errors over the
    validation sample. The seeds share that sample, so its error does not average out over them, while the spread
    between seeds does. With one seed the spread is unknown and the result is NaN.
    """
    x = np.asarray(losses, dtype=np.float64)
    if x.size < 2:
        return float("nan")
    return float(np.sqrt(x.var(ddof=1) / x.size + np.mean(np.square(errors))))
