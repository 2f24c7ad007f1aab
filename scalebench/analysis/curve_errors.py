"""Errors that points of a law share because they were read off one curve, from scratch, of the same runs.

Where a curve lies too low by chance, so does every point of its size: these points are not independent, and a fit of
them does not see it. The curves are drawn anew with the error of their means, all points are read off again, and the
law is fitted to them; what that changes in the parameters is added to their bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scalebench.analysis.transfer import Curve
    from scalebench.laws import Fit

Array = NDArray[np.float64]

DRAWS = 200
LEAST = 0.05  # of the data transferred, which a drawn curve may take away altogether: its log must be finite
STEP = 1e-9  # nats by which a drawn curve falls where noise would let it rise


def shared_errors(fitted: Fit, rows: pd.DataFrame, curves: Mapping[float, Curve]) -> dict[str, Array]:
    """Return parameters of the law of transfer by name, each [draws], for curves drawn with the errors of their means.

    ``rows`` are those of the fit with their ``loss``; ``curves`` are by size.
    """
    rng, targets = np.random.default_rng(0), np.empty((DRAWS, len(rows)))
    measured = rows["transferred"].to_numpy(dtype=float)
    for size, part in rows.groupby("params"):
        curve, where = curves[float(str(size))], rows.index.get_indexer(part.index)
        scale = curve.error * np.sqrt(curve.freedom / rng.chisquare(curve.freedom, DRAWS))
        losses = curve.losses + scale[:, None] * rng.standard_normal((DRAWS, len(curve.losses)))
        effective = read_off(curve.tokens, losses, part["loss"].to_numpy(dtype=float))
        targets[:, where] = effective - part["tokens"].to_numpy(dtype=float)
    refits = fitted.refit(np.log(np.maximum(targets, LEAST * measured)), fitted.problem.weights)
    return {name: np.asarray(values) for name, values in refits.items()}


def read_off(tokens: Array, losses: Array, reached: Array) -> Array:
    """Return the tokens from scratch, [draws, n], for losses ``reached`` [n] on each of the curves, [draws, k].

    By the monotone cubic (PCHIP) in the log of the tokens, of all curves at once; beyond its ends it is that of an end.
    """
    x = STEP * np.arange(len(tokens)) - np.minimum.accumulate(losses, axis=1)
    y = np.log(tokens)
    slopes = _slopes(np.diff(x, axis=1), np.diff(y) / np.diff(x, axis=1))
    places = np.clip(-reached, x[:, :1], x[:, -1:])
    left = (places[:, :, None] >= x[:, None, 1:-1]).sum(axis=2)  # the interval of each place, by its lower end
    low, high, begin, end = (np.take_along_axis(each, at, axis=1) for each in (x, slopes) for at in (left, left + 1))
    width, rise = high - low, (y[left + 1] - y[left]) / (high - low)
    bend = (begin + end - 2 * rise) / width
    step = places - low
    cubic = ((bend / width * step + (rise - begin) / width - bend) * step + begin) * step + y[left]
    return np.asarray(np.exp(cubic), dtype=np.float64)


def _slopes(width: Array, rise: Array) -> Array:
    """Return the slopes [draws, k] at the points of rising curves with these widths and rises, [draws, k - 1].

    Inside they are weighted harmonic means of the rises on both sides, at the ends from three points (Fritsch and
    Butland 1984), as in SciPy.
    """
    if width.shape[1] == 1:
        return np.repeat(rise, 2, axis=1)
    first, second = 2 * width[:, 1:] + width[:, :-1], width[:, 1:] + 2 * width[:, :-1]
    inside = (first + second) / (first / rise[:, :-1] + second / rise[:, 1:])
    ends = [
        ((2 * width[:, i] + width[:, j]) * rise[:, i] - width[:, i] * rise[:, j]) / (width[:, i] + width[:, j])
        for i, j in ((0, 1), (-1, -2))
    ]
    begin, end = (np.maximum(each, 0.0)[:, None] for each in ends)
    return np.concatenate([begin, inside, end], axis=1)
