"""The loss of a law as a function of its coordinates, with exact derivatives, batched over starts or replicates.

Objective: the SUM over points of w * rho(r), with r = log(prediction / measured) (prediction - measured in raw space)
and rho(r) = r^2/2 for |r| <= delta, else delta * (|r| - delta/2). A mean instead of a sum meets default tolerances long
before the optimum. Terms are centred (scaled to geometric mean 1 over the points), which takes the correlation between
a coefficient and its exponent out of the problem.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array, Law

COMPLEX_STEP = 1e-30
REAL_STEP = 1e-5  # of central differences of the complex step: second derivatives to about 1e-10


@dataclass(frozen=True)
class Problem:
    """Targets and bounds for the inner coordinates theta = (centred coefficients, exponents), P in all.

    `target` and `weights` are [n] or, one row per replicate, [batch, n]; `lower` and `upper` are [P], equal where
    pinned. Inputs are divided by exp(`centre`). Losses of predictions above their target count `overestimate` times.
    """

    law: Law
    logs: dict[str, Array]
    target: Array
    weights: Array
    lower: Array
    upper: Array
    log_space: bool
    centre: dict[str, float] = field(default_factory=dict)
    overestimate: float = 1.0

    @property
    def free(self) -> NDArray[np.bool_]:
        """Which of the P parameters are not pinned, [P]."""
        return self.lower < self.upper

    def split(self, theta: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Coefficients [batch, m] and exponents [batch, k]."""
        m = len(self.law.coefficients)
        return theta[:, :m], theta[:, m:]

    def centres(self, exponents: NDArray[Any]) -> NDArray[Any]:
        """Mean log of each term over the points, [batch, m]; 0 for pinned coefficients, which keep their own scale."""
        m = len(self.law.coefficients)
        return np.where(self.free[:m], self.law.terms(self.logs, exponents).mean(axis=2), 0.0)

    def centred_terms(self, exponents: NDArray[Any]) -> NDArray[Any]:
        """Log of each centred term, [batch, m, n]."""
        terms = self.law.terms(self.logs, exponents)
        m = len(self.law.coefficients)
        return terms - np.where(self.free[:m, None], terms.mean(axis=2, keepdims=True), 0.0)

    def residuals(self, theta: Array) -> Array:
        """Prediction minus target in the space of the fit, [batch, n]."""
        coefficients, exponents = self.split(theta)
        prediction = np.einsum("bm,bmn->bn", coefficients, np.exp(self.centred_terms(exponents)))
        # All coefficients at zero is a corner of the box, not a prediction.
        return np.asarray((np.log(np.maximum(prediction, 1e-300)) if self.log_space else prediction) - self.target)

    def value(self, theta: Array, width: float) -> Array:
        """Weighted sum of Huber losses, [batch]."""
        residuals = self.residuals(theta)
        return np.asarray((self.weights * self._tilt(residuals) * huber(residuals, width)[0]).sum(axis=-1))

    def _tilt(self, residuals: Array) -> Array | float:
        return 1.0 if self.overestimate == 1.0 else np.where(residuals > 0, self.overestimate, 1.0)

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of the residuals, [batch, P, n]."""
        _, _, jacobian, prediction = self._expand(theta)
        return np.asarray(jacobian / np.maximum(prediction, 1e-300)[:, None] if self.log_space else jacobian)

    def _expand(self, theta: Array) -> tuple[Array, list[Array], Array, Array]:
        """Terms [batch, m, n], their derivatives by each exponent, those of the prediction, and it, [batch, n]."""
        coefficients, exponents = self.split(theta)
        basis = np.exp(self.centred_terms(exponents))
        bent = [self._slope(exponents, k) * basis for k in range(exponents.shape[1])]
        slopes = [np.einsum("bm,bmn->bn", coefficients, b)[:, None] for b in bent]
        return basis, bent, np.concatenate([basis, *slopes], axis=1), np.einsum("bm,bmn->bn", coefficients, basis)

    def derivatives(self, theta: Array, width: float) -> tuple[Array, Array, Array]:
        """Gradient [batch, P], Newton matrix and its positive majorant (reweighted least squares), [batch, P, P]."""
        basis, bent, jacobian, prediction = self._expand(theta)
        scale = np.maximum(prediction, 1e-300) if self.log_space else np.ones_like(prediction)
        residuals = (np.log(scale) if self.log_space else prediction) - self.target
        _, psi, inside, irls = huber(residuals, width)
        weights = self.weights * self._tilt(residuals)
        psi, inside, irls = weights * psi, weights * inside, weights * irls
        bending = self._bending(theta, basis, bent, psi / scale)
        jacobian = jacobian / scale[:, None]
        transposed = jacobian.swapaxes(1, 2)
        # d2 log f = d2 f / f - (d log f)^2
        curved = (jacobian * (inside - psi * self.log_space)[:, None]) @ transposed + bending
        return (jacobian @ psi[..., None])[..., 0], curved, (jacobian * irls[:, None]) @ transposed

    def _slope(self, exponents: Array, k: int) -> Array:
        """Derivative of the centred log terms by exponent k, by the complex step: exact to machine precision."""
        step = exponents.astype(np.complex128)
        step[:, k] += 1j * COMPLEX_STEP
        return np.asarray(self.centred_terms(step).imag / COMPLEX_STEP)

    def _bending(self, theta: Array, basis: Array, bent: list[Array], pull: Array) -> Array:
        """Sum over points of pull * second derivative of the prediction, [batch, P, P]."""
        coefficients, exponents = self.split(theta)
        m, batch = coefficients.shape[1], len(coefficients)
        total = np.zeros((batch, m + len(bent), m + len(bent)))
        for k, first in enumerate(bent):
            total[:, :m, m + k] = total[:, m + k, :m] = (first @ pull[..., None])[..., 0]
            for j, second in enumerate(bent[: k + 1]):
                both = first * second / np.maximum(basis, 1e-300)
                if self.law.curved:
                    both = both + basis * self._second_slope(exponents, k, j)
                both = np.einsum("bm,bmn->bn", coefficients, both)
                total[:, m + k, m + j] = total[:, m + j, m + k] = (both * pull).sum(axis=1)
        return total

    def _second_slope(self, exponents: Array, k: int, j: int) -> Array:
        """Second derivative of the centred log terms by exponents k and j, [batch, m, n]."""
        step = np.zeros(exponents.shape[1])
        step[j] = REAL_STEP
        return (self._slope(exponents + step, k) - self._slope(exponents - step, k)) / (2 * REAL_STEP)

    def rows(self, index: NDArray[np.intp]) -> Problem:
        """The same problem for some replicates of the batch."""
        pick = {name: value[index] for name in ("target", "weights") if (value := getattr(self, name)).ndim == 2}
        return replace(self, **pick) if pick else self

    def parameters(self, theta: Array) -> dict[str, Array]:
        """Parameters by their usual names in natural units, each [batch]."""
        coefficients, exponents = self.split(theta)
        natural = np.concatenate([coefficients * np.exp(-self.centres(exponents)), exponents], axis=1)
        named = dict(zip(self.law.coordinates, natural.T, strict=True))
        return self.law.naming.usual(named, self.centre) if self.law.naming else named


def huber(residuals: Array, width: float) -> tuple[Array, Array, Array, Array]:
    """Huber loss, its slope, its curvature, and slope / residual (the reweighting), each shaped as `residuals`."""
    size = np.abs(residuals)
    near = np.minimum(size, width)
    weight = np.divide(near, size, out=np.ones_like(size), where=size > 0)
    return near * (size - near / 2), weight * residuals, (size <= width).astype(np.float64), weight
