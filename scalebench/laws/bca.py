"""Bias-corrected and accelerated interval from resampled configurations: Efron 1987, JASA 82, equation 6.8."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scalebench.laws.forms import Array, FitRefused

if TYPE_CHECKING:
    from scalebench.laws.fit import Fit
    from scalebench.laws.uncertainty import Bootstrap


def interval(boot: Bootstrap, name: str, level: float) -> tuple[float, float]:
    """Percentiles moved by the median bias of the refits and by the acceleration of the jackknife.

    Raises FitRefused where noise was not resampled: the jackknife belongs to resampling.
    """
    from scipy.special import ndtr, ndtri

    if boot.drawn not in ("resample", "residuals"):
        raise FitRefused(f"bca needs resampled configurations; this is a {boot.method}: ask for kind='percentile'")
    if not 0 < level < 1:
        raise FitRefused(f"level is {level}; it needs a number between 0 and 1, such as 0.95")
    samples, found = boot.samples[name], boot.fit.parameters[name]
    # A half counts ties, and the clip keeps a one-sided distribution finite.
    below = (np.sum(samples < found) + 0.5 * np.sum(samples == found)) / boot.n
    bias = ndtri(np.clip(below, 0.5 / boot.n, 1 - 0.5 / boot.n))
    tails = bias + ndtri(np.array([(1 - level) / 2, (1 + level) / 2]))
    moved = ndtr(bias + tails / (1 - acceleration(boot.fit, name) * tails))
    low, high = quantiles(samples, np.clip(moved, 0.0, 1.0))
    return float(low), float(high)


def quantiles(samples: Array, at: Array) -> Array:
    """Quantiles, each shaped as `at`, of samples [n]; of rates, which may be infinite, by their reciprocals."""
    if np.isinf(samples).any():
        with np.errstate(divide="ignore"):
            return np.asarray(1 / np.quantile(1 / samples, 1 - at))
    return np.asarray(np.quantile(samples, at))


def acceleration(fit: Fit, name: str) -> float:
    """Sixth of the skewness of the jackknife over configurations; 0 where leaving one out changes nothing."""
    left_out = np.arange(fit.n_configurations)[:, None] == fit.points.configuration
    weights: Array = np.where(left_out, 0.0, fit.problem.weights)
    refitted = fit.refit(fit.problem.target, weights)[name]
    influence = refitted.mean() - refitted
    squares = float((influence**2).sum())
    return float((influence**3).sum() / (6 * squares**1.5)) if squares > 0 else 0.0
