"""What points and trials tell about the parameters of a fit: derivatives of predictions, and moments of the loss."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scalebench.laws.fit import Fit
from scalebench.laws.forms import Array
from scalebench.laws.intervals.noise import Noise

STEP = 1e-5  # relative, for central differences: truncation 1e-10, rounding 1e-11


def derivatives(fit: Fit, parameters: Mapping[str, float | Array], logs: Mapping[str, Array]) -> Array:
    """Derivatives of the predictions, in the space of the fit, by each free parameter's log, [batch, n, free].

    `parameters` are numbers or [batch].
    """
    fixed = {*fit.settings["fixed"], *fit.bounds_hit}
    free = [name for name in parameters if name not in fixed]
    nudge = 1 + STEP * np.concatenate([np.eye(len(free)), -np.eye(len(free))])
    by_name = {name: np.atleast_1d(value) for name, value in parameters.items()}
    batch = max(map(len, by_name.values()))
    moved = {name: np.repeat(values, 2 * len(free)) for name, values in by_name.items()}
    for i, name in enumerate(free):
        moved[name] = moved[name] * np.tile(nudge[:, i], batch)
    values = fit.law.predict(moved, logs).reshape(batch, 2, len(free), -1)
    values = np.log(values) if fit.settings["space"] == "log" else values
    return np.asarray(((values[:, 0] - values[:, 1]) / (2 * STEP)).swapaxes(1, 2))


def loss_moments(fit: Fit, noise: Noise, sizes: Array) -> tuple[Array, Array]:
    """The expected second derivative of the loss and the variance of its first, each [n], at noise of `sizes` [n].

    Noise is normal, and `sizes` are in units of that of a new run in the middle of the sizes. Where noise is the same
    everywhere both are 1, as only their ratio would matter.
    """
    width = fit.settings["width"]
    if noise.growth is None or not np.isfinite(width):
        return np.ones_like(sizes), sizes**2
    from scipy.special import erf, erfc  # lazily: slow to import

    corner = width / (np.sqrt(noise.variance_of_new_runs()) * sizes)
    inside, beyond = erf(corner / np.sqrt(2)), erfc(corner / np.sqrt(2))
    # Of a standard normal number cut off at the corner. Near 0 the first two cancel: there it is the corner's square.
    near = inside - np.sqrt(2 / np.pi) * corner * np.exp(-(corner**2) / 2)
    return np.asarray(inside), np.asarray(sizes**2 * (np.maximum(near, 0.0) + corner**2 * beyond))


def inverted(matrices: Array) -> Array:
    """Inverses of symmetric matrices [..., P, P], of singular ones those within their range."""
    return np.asarray(np.linalg.pinv(matrices, rcond=1e-14, hermitian=True))
