"""The loss of a law as a function of its coordinates, with exact derivatives, batched over starts or replicates.

Objective: the SUM over points of w * rho(r), with r = log(prediction / measured) (prediction - measured in raw space)
and rho(r) = r^2/2 for |r| <= delta, else delta * (|r| - delta/2). With a mean instead of a sum, default tolerances
stop far from the optimum. Terms are centred (scaled to geometric mean 1 over the points), which removes the correlation
between a coefficient and its exponent.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array, Law
from scalebench.laws.jets import IMAGINARY_STEP, Pair
from scalebench.laws.places import Places

Selection = slice | NDArray[np.intp]  # of entries of an axis
Slopes = dict[int, Array]  # first derivatives by exponent
Bends = dict[Pair, Array]  # second derivatives by pair of exponents


@dataclass(frozen=True)
class Affine:
    """Centred log terms that are linear in the exponents: `base` [m, n] + exponents @ `slopes` [k, m, n].

    `moved` [k]: the terms that each exponent moves.
    """

    base: Array
    slopes: Array
    moved: tuple[Selection, ...]

    @cached_property
    def _movers(self) -> list[NDArray[np.intp]]:
        """The exponents that move each term, [m]."""
        return [np.flatnonzero(slope.any(axis=1)) for slope in self.slopes.swapaxes(0, 1)]

    def basis(self, exponents: Array) -> Array:
        """The terms, [batch, m, n]."""
        terms = np.empty((len(exponents), *self.base.shape))
        for term, movers in enumerate(self._movers):
            own = terms[:, term]
            if not movers.size:
                own[:] = np.exp(self.base[term])
                continue
            np.multiply(exponents[:, movers[0], None], self.slopes[movers[0], term], out=own)
            for k in movers[1:]:
                own += exponents[:, k, None] * self.slopes[k, term]
            own += self.base[term]
            np.exp(own, out=own)
        return terms


def _selected(chosen: NDArray[np.bool_]) -> Selection:
    """The index of the chosen entries of an axis: a slice if they are adjacent, since it makes no copy."""
    index = np.flatnonzero(chosen)
    neighbours = index.size > 0 and index[-1] - index[0] == index.size - 1
    return slice(int(index[0]), int(index[-1]) + 1) if neighbours else index


@dataclass(frozen=True)
class Problem:
    """Targets and bounds for the inner coordinates theta = (centred coefficients, exponents), P in all.

    `target` and `weights` are [n] or, one row per replicate, [batch, n]; `lower` and `upper` are [P] or [batch, P],
    equal where pinned. Inputs are divided by exp(`centre`). Losses of predictions above their target are
    multiplied by `overestimate`. The coordinate of index `held` keeps its value in each row of theta.
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
    fixed: int | None = None

    @cached_property
    def free(self) -> NDArray[np.bool_]:
        """Which of the P parameters are not pinned, [P]."""
        free: NDArray[np.bool_] = np.atleast_2d(self.lower < self.upper)[0]
        if self.fixed is not None:
            free[self.fixed] = False
        return free

    def split(self, theta: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Coefficients [batch, m] and exponents [batch, k]."""
        m = len(self.law.coefficients)
        return theta[:, :m], theta[:, m:]

    @cached_property
    def places(self) -> Places:
        """The distinct inputs of the rows, p in all; where rows share none, the n rows themselves."""
        return Places.of(self.logs)

    def centres(self, exponents: NDArray[Any]) -> NDArray[Any]:
        """Mean log of each term over the rows, [batch, m]; 0 for pinned coefficients, which keep their units."""
        return self._means(self.law.terms(self.places.logs, exponents))

    def _means(self, terms: NDArray[Any]) -> NDArray[Any]:
        counts = self.places.counts
        means = (terms * counts).sum(axis=-1) / counts.sum() if self.places.shared else terms.mean(axis=-1)
        return np.where(self.free[: terms.shape[-2]], means, 0.0)

    def _complex_slope(self, exponents: Array, k: int) -> Array:
        """Derivative of the centred log terms by exponent k, [batch, m, p]."""
        step = exponents.astype(np.complex128)
        step[:, k] += 1j * IMAGINARY_STEP
        return np.asarray(self.centred_terms(step).imag / IMAGINARY_STEP)

    def centred_terms(self, exponents: NDArray[Any]) -> NDArray[Any]:
        """Log of each centred term, [batch, m, p]."""
        terms = self.law.terms(self.places.logs, exponents)
        return terms - self._means(terms)[..., None]

    @cached_property
    def affine(self) -> Affine | None:
        """Log terms as linear functions of the exponents, None if they are not linear. This saves most of the work.

        Their slopes are by the complex step.
        """
        k = len(self.law.exponents)
        low, high = (np.atleast_2d(bound)[0, bound.shape[-1] - k :] for bound in (self.lower, self.upper))
        probes = low + np.array([[0.3], [0.5], [0.8]]) * (high - low)
        terms = self.centred_terms(probes)
        slopes = np.array([self._complex_slope(probes[:1], j)[0] for j in range(k)]).reshape(k, *terms.shape[1:])
        base = terms[0] - np.tensordot(probes[0], slopes, axes=1)
        if not np.allclose(base + np.tensordot(probes, slopes, axes=1), terms, rtol=1e-10, atol=1e-10):
            return None
        return Affine(base, slopes, tuple(_selected(moves) for moves in np.asarray(slopes.any(axis=2))))

    def basis(self, exponents: Array) -> Array:
        """Centred terms, [batch, m, p]."""
        return self.affine.basis(exponents) if self.affine else np.asarray(np.exp(self.centred_terms(exponents)))

    def residuals(self, theta: Array) -> Array:
        """Prediction minus target in the space of the fit, [batch, n]."""
        return self._residuals(theta, self.basis(self.split(theta)[1]))

    def _residuals(self, theta: Array, basis: Array) -> Array:
        prediction = (self.split(theta)[0][:, None] @ basis)[:, 0]
        # With all coefficients at zero the prediction is 0, whose log is not finite.
        expected = np.log(np.maximum(prediction, 1e-300)) if self.log_space else prediction
        return np.asarray(self.places.spread(expected) - self.target)

    def value(self, theta: Array, width: float) -> Array:
        """Weighted sum of Huber losses, [batch]."""
        return self.value_with_terms(theta, width)[0]

    def value_with_terms(self, theta: Array, width: float) -> tuple[Array, Array]:
        """The value, [batch], and the centred terms that it was computed from, [batch, m, p]."""
        basis = self.basis(self.split(theta)[1])
        residuals = self._residuals(theta, basis)
        size = np.abs(residuals)
        near = np.minimum(size, width)
        size -= near / 2
        size *= near
        return self._pulled(size, residuals).sum(axis=-1), basis

    def _pulled(self, values: Array, residuals: Array) -> Array:
        """Values times the weights of their residuals, which of overestimates are larger where the loss has it so."""
        if self.overestimate == 1.0:
            return values if self._alike else values * self.weights
        return np.asarray(values * (self.weights * np.where(residuals > 0, self.overestimate, 1.0)))

    @cached_property
    def _alike(self) -> bool:
        """Whether all weights are 1, so that nothing has to be multiplied by them."""
        return bool((self.weights == 1.0).all())

    def jacobian(self, theta: Array) -> Array:
        """Derivatives of the residuals, [batch, P, n]."""
        exponents = self.split(theta)[1]
        jacobian, prediction = self._expand(theta, self.basis(exponents), self._derivatives(exponents)[0])
        slopes = jacobian / np.maximum(prediction, 1e-300)[:, None] if self.log_space else jacobian
        return self.places.spread(slopes)

    def _expand(self, theta: Array, basis: Array, slopes: Slopes) -> tuple[Array, Array]:
        """Slopes of the prediction, [batch, P, p], and it, [batch, p]."""
        coefficients = self.split(theta)[0]
        m = basis.shape[1]
        jacobian = np.zeros((len(theta), theta.shape[1], basis.shape[2]))
        jacobian[:, :m] = basis
        for j, slope in slopes.items():
            moved = self._moved(j)
            jacobian[:, m + j] = (coefficients[:, None, moved] @ (basis[:, moved] * slope[:, moved]))[:, 0]
        return jacobian, (coefficients[:, None] @ basis)[:, 0]

    def _moved(self, k: int) -> Selection:
        """The terms that exponent k moves."""
        return self.affine.moved[k] if self.affine else slice(len(self.law.coefficients))

    def derivatives(self, theta: Array, width: float, basis: Array | None = None) -> tuple[Array, Array, Array]:
        """Gradient [batch, P], Newton matrix and its positive majorant (reweighted least squares), [batch, P, P].

        `basis` are the terms at theta, [batch, m, p], of a caller that has them.
        """
        exponents = self.split(theta)[1]
        basis = self.basis(exponents) if basis is None else basis
        slopes, bends = self._derivatives(exponents)
        jacobian, prediction = self._expand(theta, basis, slopes)
        scale = np.maximum(prediction, 1e-300) if self.log_space else np.ones_like(prediction)
        residuals = self.places.spread(np.log(scale) if self.log_space else prediction) - self.target
        inside, irls = (self._pulled(each, residuals) for each in huber_weights(residuals, width))
        psi, inside, irls = (self.places.total(each) for each in (irls * residuals, inside, irls))
        bending = self._bending(theta, basis * (psi / scale)[:, None], slopes, bends)
        jacobian /= scale[:, None]
        transposed = jacobian.swapaxes(1, 2)
        # d2 log f = d2 f / f - (d log f)^2
        curved = (jacobian * (inside - psi if self.log_space else inside)[:, None]) @ transposed + bending
        return (jacobian @ psi[..., None])[..., 0], curved, (jacobian * irls[:, None]) @ transposed

    def _derivatives(self, exponents: Array) -> tuple[Slopes, Bends]:
        """First and second derivatives of the centred log terms, [batch or 1, m, p]; those that are absent are zero."""
        if self.affine:
            return {k: slope[None] for k, slope in enumerate(self.affine.slopes)}, {}
        slopes, bends = self.law.slopes(self.places.logs, exponents)
        centred = np.stack([*slopes.values(), *bends.values()])
        centred -= self._means(centred)[..., None]
        return dict(zip(slopes, centred, strict=False)), dict(zip(bends, centred[len(slopes) :], strict=True))

    def _bending(self, theta: Array, pulled: Array, slopes: Slopes, bends: Bends) -> Array:
        """Sum over places of pull * second derivative of the prediction, [batch, P, P], for terms times their pull."""
        coefficients = self.split(theta)[0]
        m = coefficients.shape[1]
        total = np.zeros((len(theta), theta.shape[1], theta.shape[1]))
        if not self.affine:
            self._bend(total, pulled, coefficients[..., None] * pulled, slopes, bends)
            return total
        for k, first in slopes.items():
            moved = self._moved(k)
            total[:, moved, m + k] = total[:, m + k, moved] = (pulled[:, moved] * first[:, moved]).sum(axis=2)
            for j, second in slopes.items():
                if j <= k:
                    bent = (pulled[:, moved] * (first[:, moved] * second[:, moved])).sum(axis=2)
                    total[:, m + k, m + j] = total[:, m + j, m + k] = (coefficients[:, moved] * bent).sum(axis=1)
        return total

    @staticmethod
    def _bend(total: Array, pulled: Array, parts: Array, slopes: Slopes, bends: Bends) -> None:
        """Fill `total` for log terms that are not linear; `parts` are the terms of the prediction times their pull."""
        batch, m, _ = pulled.shape
        moving = m + np.array(list(slopes), dtype=np.intp)
        first = np.stack([*slopes.values()], axis=1)
        total[:, moving, :m] = mixed = (first * pulled[:, None]).sum(axis=3)
        total[:, :m, moving] = mixed.swapaxes(1, 2)
        flat = first.reshape(batch, len(moving), -1)
        weighted = flat * parts.reshape(batch, 1, -1)
        total[:, moving[:, None], moving] = weighted @ flat.swapaxes(1, 2)
        for (k, j), second in bends.items():
            bent = (parts * second).reshape(batch, -1).sum(axis=1)
            total[:, m + k, m + j] += bent
            if j != k:
                total[:, m + j, m + k] += bent

    def sorted(self) -> Problem:
        """The same problem with its rows in the order of their places, where sums over places copy nothing."""
        order, places = self.places.order, self.places.sorted()
        if order is None:
            return self
        logs = {name: log[order] for name, log in self.logs.items()}
        part = self.same_inputs(logs=logs, target=self.target[..., order], weights=self.weights[..., order])
        vars(part).update(places=places)
        return part

    def rows(self, index: NDArray[np.intp]) -> Problem:
        """The same problem for some replicates of the batch."""
        batched = ("target", "weights", "lower", "upper")
        pick = {name: value[index] for name in batched if (value := getattr(self, name)).ndim == 2}
        return self.same_inputs(**pick) if pick else self

    def same_inputs(self, **changes: Any) -> Problem:
        """The problem with other targets, weights, loss or bounds, which pin the same parameters."""
        part = replace(self, **changes)
        vars(part).update(affine=self.affine, places=self.places)
        return part

    def parameters(self, theta: Array) -> dict[str, Array]:
        """Parameters by their usual names in natural units, each [batch]."""
        coefficients, exponents = self.split(theta)
        natural = np.concatenate([coefficients * np.exp(-self.centres(exponents)), exponents], axis=1)
        coordinates = dict(zip(self.law.coordinates, natural.T, strict=True))
        return self.law.naming.usual(coordinates, self.centre) if self.law.naming else coordinates


def huber_weights(residuals: Array, width: float) -> tuple[Array, Array]:
    """Curvature of the Huber loss, and its slope over the residual (the reweighting), each shaped as `residuals`."""
    if np.isinf(width):
        return np.ones_like(residuals), np.ones_like(residuals)
    size = np.abs(residuals)
    inside = (size <= width).astype(np.float64)
    return inside, np.divide(width, np.maximum(size, width, out=size), out=size)
