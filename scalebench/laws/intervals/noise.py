"""Noise about a fitted law: its standard deviations, and studies simulated from normal noise or from residuals.

Simulated noise is scaled so that its residuals about the law's tangent plane have the measured size. For a linear model
and any equivariant estimator the refits are then exactly Student-t about the fit. Drawing the scale independently from
chi-squared gives intervals that are too wide where estimator and residuals are correlated, as with Huber.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import Array


@dataclass(frozen=True)
class Noise:
    """Standard deviations in the space of the fit.

    `lack` is between configurations beyond what seeds explain, `seed` between replicates, `means` [configurations] of
    each configuration's mean, from both. `runs` is the harmonic mean number of runs per configuration, `spare` the
    number of runs beyond the first of each, `freedom` the degrees of freedom of `means`.
    """

    lack: float
    seed: float
    means: Array
    runs: float
    spare: int
    freedom: int

    def of_new_runs(self, runs: float | NDArray[np.intp], inflation: Array, rng: np.random.Generator) -> Array:
        """Standard deviation of the mean of `runs` new runs, [replicates, 1 or n], drawn for each replicate.

        It is based on the variance of configuration means, which includes lack of fit; a separate estimate cut at zero
        would be biased upwards. With replicates, two variances are added with the degrees of freedom of Satterthwaite
        1946, since drawing each separately gives too wide intervals. Without, it is the scale of the refits.
        """
        of_means = float((self.means**2).mean())
        each = np.atleast_1d(1 / np.asarray(runs, dtype=np.float64))
        if not self.spare or not of_means:
            return np.asarray(np.sqrt(of_means) * inflation[:, None] * np.ones_like(each))
        beyond, variance = self.seed**2 * (each - 1 / self.runs), self.variance_of_new_runs(each)
        freedom = variance**2 / (of_means**2 / self.freedom + beyond**2 / self.spare)
        return np.asarray(np.sqrt(variance * freedom / rng.chisquare(freedom, (len(inflation), len(each)))))

    def variance_of_new_runs(self, each: float | Array = 1.0) -> Array:
        """Variance of the mean of new runs of one configuration, by 1 over their number, shaped as `each`."""
        beyond = self.seed**2 * (np.asarray(each) - 1 / self.runs)
        return np.asarray(np.maximum((self.means**2).mean() + beyond, self.seed**2 * np.asarray(each)))


@dataclass(frozen=True)
class Grouped:
    """Rows by run and by configuration: ids of runs [rows], and of configurations [runs]; weights [runs]."""

    run: NDArray[np.intp]
    config: NDArray[np.intp]
    weights: Array

    def by_run(self, values: Array) -> Array:
        """The value of each run, [..., runs], of values that are equal within a run, [..., rows]."""
        return np.asarray(values[..., np.unique(self.run, return_index=True)[1]])

    def by_config(self, values: Array) -> Array:
        """Weighted mean of each configuration, [..., configurations], of values [..., runs]."""
        order = np.argsort(self.config, kind="stable")
        first = np.searchsorted(self.config[order], np.arange(self.config.max() + 1))
        total = np.add.reduceat(self.weights[order], first)
        weighted = values * self.weights
        ordered = weighted if (np.diff(order) > 0).all() else np.take(weighted, order, axis=-1)
        return np.asarray(np.add.reduceat(ordered, first, axis=-1) / total)


def group(fit: Estimate) -> Grouped:
    """Group the points of `fit` by run and configuration."""
    points = fit.points
    _, run = np.unique(points.run, return_inverse=True)
    first = np.unique(run, return_index=True)[1]
    weights = np.asarray(np.bincount(run, fit.problem.weights), dtype=np.float64)
    return Grouped(run, points.configuration[first], weights)


def estimate_noise(fit: Estimate) -> Noise:
    """Standard deviations of the noise from least-squares residuals.

    Least squares whatever the loss of the fit, since only then dividing by the degrees of freedom is unbiased; with
    residuals of a Huber fit, 95 % intervals from six sizes cover 99 %. The variance of configuration means is their sum
    of squares over configurations - parameters; that of replicates is pooled within configurations; lack of fit is the
    first minus the second over the number of replicates, at least 0.
    """
    groups = group(fit)
    runs = np.bincount(groups.config)
    residuals = groups.by_run(fit.least_squares_residuals())
    mean = groups.by_config(residuals)
    within = residuals - mean[groups.config]
    spare = len(groups.config) - len(runs)
    of_means = (mean**2).sum() / fit.degrees_of_freedom
    seed = (within**2).sum() / spare if spare else 0.0
    lack = max(0.0, of_means - seed * (1 / runs).mean())
    shape = lack + seed / runs
    means = np.sqrt(of_means * shape / shape.mean()) if shape.any() else np.zeros(len(runs))
    return Noise(
        float(np.sqrt(lack)), float(np.sqrt(seed)), means, float(1 / (1 / runs).mean()), spare, fit.degrees_of_freedom
    )


def whitened(fit: Estimate, noise: Noise, rows: Array) -> Array:
    """Derivatives of rows, [..., rows, P], as those of independent measurements with the variance of one new run.

    Runs of one configuration share its deviation from the law, so that more of them tell less than as many
    configurations: the mean of a configuration is one measurement, and differences within it others.
    """
    new_run = float(np.sqrt(noise.variance_of_new_runs()))
    if not noise.means.all():  # points on the law exactly
        return rows
    groups = group(fit)
    by_run = groups.by_run(np.moveaxis(rows, -2, -1))
    mean = groups.by_config(by_run)
    within = by_run - mean[..., groups.config]
    parts = [mean * (new_run / noise.means), *([within * (new_run / noise.seed)] if noise.seed else [])]
    return np.asarray(np.moveaxis(np.concatenate(parts, axis=-1), -1, -2))


def simulate(
    fit: Estimate, noise: Noise, n: int, rng: np.random.Generator, residuals: bool = False
) -> tuple[Array, Array]:
    """Targets [n, rows] (fitted values plus noise) and the factor [n] by which each study's noise was scaled.

    The noise is normal or, with `residuals`, residuals of configurations and of runs within them drawn with
    replacement, each divided by its standard deviation at its leverage: residuals at the ends of a design are small
    because the fit follows those points.
    """
    groups = group(fit)
    of_means, of_runs = _standardised(fit, noise, groups) if residuals else (None, None)
    within = noise.seed * _drawn(of_runs, (n, len(groups.config)), rng)
    within -= groups.by_config(within)[:, groups.config]
    if noise.spare:
        size = np.sqrt((within**2).sum(axis=1, keepdims=True) / noise.spare)
        within *= noise.seed / np.maximum(size, 1e-300)
    between = noise.means * _drawn(of_means, (n, len(noise.means)), rng)
    drawn = _residual_mean_square(fit, groups, between)
    factor = np.sqrt((noise.means**2).mean() / np.maximum(drawn, 1e-300))
    scatter = within + (factor[:, None] * between)[:, groups.config]
    return np.asarray(fit.problem.target - fit.residuals + scatter[:, groups.run]), factor


def simulate_wild(fit: Estimate, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Targets [n, rows] and factor [n] as in `simulate`: each configuration's own residuals with a random sign.

    The noise may then differ between configurations (Wu 1986; clusters: Cameron, Gelbach and Miller 2008). Residuals
    are divided by 1 - leverage (HC3, MacKinnon and White 1985); the factor, from chi-squared, gives t quantiles.
    """
    groups, freedom = group(fit), fit.degrees_of_freedom
    mean, within, share = _split(fit, groups)
    own = within + (mean / np.maximum(share, 0.01))[groups.config]
    factor = np.sqrt(freedom / rng.chisquare(freedom, size=n))
    signs = rng.choice([-1.0, 1.0], (n, len(mean)))
    scatter = own * (factor[:, None] * signs)[:, groups.config]
    return np.asarray(fit.problem.target - fit.residuals + scatter[:, groups.run]), factor


def _drawn(pool: Array | None, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Noise of unit variance: drawn from the pool with replacement, or normal if there is no pool."""
    return rng.standard_normal(size) if pool is None else np.asarray(pool[rng.integers(len(pool), size=size)])


def _split(fit: Estimate, groups: Grouped) -> tuple[Array, Array, Array]:
    """Residuals as means [configurations] and deviations from them [runs]; 1 - leverage [configurations]."""
    residuals = groups.by_run(fit.least_squares_residuals())
    mean = groups.by_config(residuals)
    leverage = np.bincount(groups.config, (tangent(fit, groups) ** 2).sum(axis=1))
    return mean, residuals - mean[groups.config], np.clip(1 - leverage, 0.0, 1.0)


def _standardised(fit: Estimate, noise: Noise, groups: Grouped) -> tuple[Array, Array]:
    """Pools of residuals of configuration means and of runs within them, centred, of unit variance."""
    mean, within, share = _split(fit, groups)
    informative = (share > 1e-6) & (noise.means > 0)  # a point of leverage 1 has no residual
    several = np.bincount(groups.config)[groups.config] > 1
    return _unit(mean[informative] / (noise.means * np.sqrt(share))[informative]), _unit(within[several])


def _unit(pool: Array) -> Array:
    scale = float(np.std(pool)) if len(pool) else 0.0
    return (pool - pool.mean()) / scale if scale else np.zeros(max(len(pool), 1))


def tangent(fit: Estimate, groups: Grouped) -> Array:
    """Orthonormal basis [runs, at most P] of the tangent plane of the law, rows times the root of their weight."""
    theta = fit.least_squares
    inside = (theta > fit.problem.lower) & (theta < fit.problem.upper)
    jacobian = groups.by_run(fit.problem.jacobian(theta[None])[0][inside])  # [P, runs]
    basis, strength, _ = np.linalg.svd((jacobian * np.sqrt(groups.weights)).T, full_matrices=False)
    return np.asarray(basis[:, strength > 1e-12 * strength.max(initial=0.0)])


def _residual_mean_square(fit: Estimate, groups: Grouped, between: Array) -> Array:
    """Residual mean square [n] that a least-squares fit would leave of noise [n, configurations]."""
    basis, root = tangent(fit, groups), np.sqrt(groups.weights)
    noise = between[:, groups.config] * root
    left = (noise - (noise @ basis) @ basis.T) / root
    return np.asarray((groups.by_config(left) ** 2).sum(axis=1) / fit.degrees_of_freedom)
