"""Weighted linear regression of optima, in logs, on sizes: the weights, the line, its intervals and draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from scalebench.advice.vertex import Optimum
from scalebench.laws.forms import Array, FitRefused


def vertex_variances(optima: Sequence[Optimum], design: Array) -> Array:
    """Relative variance of each ln x*, [n]: noise pooled over the groups times each squared gain, plus a common part.

    The common part is the scatter of the vertices about the line through `design` [n, k] beyond that noise (moment
    estimate of DerSimonian and Laird 1986); with Student-t quantiles of the scatter the intervals are those of Hartung
    and Knapp 2001. Without spare points the noise is unknown and the gains alone set the weights.
    """
    spare = sum(o.degrees_of_freedom for o in optima)
    noise = sum(o.residual_squares for o in optima) / spare if spare else 0.0
    gains = np.array([o.gain**2 for o in optima])
    target = np.log([o.x for o in optima])
    if noise * gains.max() < 1e-20 or len(optima) <= design.shape[1]:
        return gains
    weights = 1 / (noise * gains)
    rows = design * np.sqrt(weights)[:, None]
    residuals = target - design @ np.linalg.lstsq(rows, target * np.sqrt(weights), rcond=None)[0]
    hat = np.linalg.pinv(rows.T @ rows) @ (design * weights[:, None] ** 2).T @ design
    excess = (weights * residuals**2).sum() - (len(optima) - design.shape[1])
    return np.asarray(noise * gains + max(0.0, excess / (weights.sum() - np.trace(hat))))


@dataclass(frozen=True, eq=False)
class LinearFit:
    """Weighted least squares of a target on rows of a design; `scatter` is the weighted residual mean square."""

    coefficients: Array
    inverse: Array  # of the weighted normal matrix
    scatter: float
    degrees_of_freedom: int

    @property
    def covariance(self) -> Array:
        """Covariance of the coefficients."""
        return self.inverse * self.scatter

    def interval(self, row: ArrayLike, level: float = 0.95) -> tuple[float, float]:
        """Student-t interval of row @ coefficients."""
        from scipy.special import stdtrit  # lazily: scipy.stats takes a second to import

        regressors = np.asarray(row, dtype=np.float64)
        half = stdtrit(self.degrees_of_freedom, (1 + level) / 2) * np.sqrt(regressors @ self.covariance @ regressors)
        return float(regressors @ self.coefficients - half), float(regressors @ self.coefficients + half)

    def draws(self, n: int, seed: int) -> Array:
        """Coefficients of `n` simulated studies, [n, k], multivariate t: the parametric bootstrap of a line."""
        rng = np.random.default_rng(seed)
        freedom = self.degrees_of_freedom
        inflation = np.sqrt(freedom / rng.chisquare(freedom, size=(n, 1)))
        noise = rng.standard_normal((n, len(self.inverse))) @ np.linalg.cholesky(self.inverse).T
        return np.asarray(self.coefficients + inflation * np.sqrt(self.scatter) * noise)


def regress(design: Array, target: Array, variances: Array) -> LinearFit:
    """Weighted regression of target [n] on design [n, k]. `variances` [n] are relative, the scatter sets the scale.

    Raises FitRefused unless there are more rows than coefficients and the rows determine them.
    """
    n, k = design.shape
    if n <= k:
        raise FitRefused(f"{n} optima for a line of {k} coefficients; an interval needs at least {k + 1}: add sizes")
    root = 1 / np.sqrt(variances)
    centred = design[:, 1:] - np.average(design[:, 1:], axis=0, weights=root**2)
    if np.linalg.matrix_rank(centred, tol=1e-3 * max(1.0, np.abs(centred).max())) < k - 1:
        raise FitRefused(f"the sizes of {n} optima do not determine {k - 1} exponents; vary each at a fixed other")
    rows = design * root[:, None]
    coefficients = np.linalg.lstsq(rows, target * root, rcond=None)[0]
    scatter = ((rows @ coefficients - target * root) ** 2).sum() / (n - k)
    inverse = np.asarray(np.linalg.inv(rows.T @ rows), dtype=np.float64)
    return LinearFit(np.asarray(coefficients, dtype=np.float64), inverse, float(scatter), n - k)
