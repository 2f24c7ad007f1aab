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
        for draw in range(DRAWS):
            losses = curve.losses + scale[draw] * rng.standard_normal(len(curve.losses))
            effective = _read_off(curve.tokens, losses, part["loss"].to_numpy(dtype=float))
            targets[draw, where] = effective - part["tokens"].to_numpy(dtype=float)
    refits = fitted.refit(np.log(np.maximum(targets, LEAST * measured)), fitted.problem.weights)
    return {name: np.asarray(values) for name, values in refits.items()}


def _read_off(tokens: Array, losses: Array, reached: Array) -> Array:
    """Return the tokens from scratch for losses ``reached`` [n], by the monotone cubic; at its ends beyond them."""
    from scipy.interpolate import PchipInterpolator  # takes a second to import

    falling = np.minimum.accumulate(losses) - STEP * np.arange(len(losses))
    places = np.clip(-reached, -falling[0], -falling[-1])
    return np.asarray(np.exp(PchipInterpolator(-falling, np.log(tokens))(places)), dtype=np.float64)
