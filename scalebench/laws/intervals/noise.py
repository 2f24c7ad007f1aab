"""Noise about a fitted law: its standard deviations, by size where the residuals show that it grows or shrinks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import Array
from scalebench.laws.intervals.growth import Growth, Scatter, estimate_growth

ROUNDING = 1e-9  # residuals below this, in the space of the fit, are rounding errors


@dataclass(frozen=True)
class Noise:
    """Standard deviations in the space of the fit.

    `lack` is between configurations beyond what seeds explain, `seed` between replicates, `means` [configurations] of
    each configuration's mean, from both. `runs` is the harmonic mean number of runs per configuration, `spare` the
    number of runs beyond the first of each, `freedom` the degrees of freedom of `means`. All are as if noise was the
    same at all sizes; `growth` is how it may grow with size, None where the residuals do not show it.
    """

    lack: float
    seed: float
    means: Array
    runs: float
    spare: int
    freedom: int
    growth: Growth | None = None

    def of_new_runs(
        self,
        runs: float | NDArray[np.intp],
        drawn: Drawn,
        logs: Mapping[str, Array],
        rng: np.random.Generator,
    ) -> Array:
        """Standard deviation of the mean of `runs` new runs at `logs` [n] of the inputs, [replicates, 1 or n].

        It is based on the variance of configuration means, which includes lack of fit; a separate estimate cut at zero
        would be biased upwards. With replicates, two variances are added with the degrees of freedom of Satterthwaite
        1946, since drawing each separately gives too wide intervals. Without, it is the scale of the refits.
        """
        each = np.atleast_1d(1 / np.asarray(runs, dtype=np.float64))
        of_means, seed, size = np.array((self.means**2).mean()), np.array(self.seed**2), np.ones((1, 1))
        growth, rates = self.growth, drawn.rates
        if growth is not None and rates is not None:
            size = growth.factors_at(logs)[rates]
        if not self.spare or not of_means:
            return np.asarray(np.sqrt(of_means) * drawn.factor[:, None] * size * np.ones_like(each))
        if growth is not None and rates is not None:
            of_means = of_means * (growth.between[rates] ** 2)[:, None]
            seed = seed * (growth.within[rates] ** 2)[:, None]
        beyond = seed * (each - 1 / self.runs)
        variance = np.maximum(of_means + beyond, seed * each)
        freedom = variance**2 / (of_means**2 / self.freedom + beyond**2 / self.spare)
        chi = rng.chisquare(freedom, (len(drawn.factor), len(each)))
        return np.asarray(size * np.sqrt(variance * freedom / chi))

    @property
    def in_the_middle(self) -> Noise:
        """The noise in the middle of the sizes, at the posterior mean of the log of each; itself without growth."""
        if (growth := self.growth) is None:
            return self
        between, within = (float(np.exp(growth.chance @ np.log(ratio))) for ratio in (growth.between, growth.within))
        return replace(self, lack=self.lack * between, seed=self.seed * within, means=self.means * between)

    def variance_of_new_runs(self, each: float | Array = 1.0) -> Array:
        """Variance of the mean of new runs of one configuration, by 1 over their number, shaped as `each`."""
        beyond = self.seed**2 * (np.asarray(each) - 1 / self.runs)
        return np.asarray(np.maximum((self.means**2).mean() + beyond, self.seed**2 * np.asarray(each)))


@dataclass(frozen=True, eq=False)
class Drawn:
    """Noise of simulated studies: the `factor` [n] on its scale and the `rates` [n] of its growth, by index in
    `Growth`; None where noise is the same at all sizes. The scale is that of the rate."""

    factor: Array
    rates: NDArray[np.intp] | None = None

    @classmethod
    def joined(cls, parts: Sequence[Drawn]) -> Drawn:
        """All of them in one."""
        rates = [part.rates for part in parts if part.rates is not None]
        return cls(np.concatenate([part.factor for part in parts]), np.concatenate(rates) if rates else None)


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
    growth = None
    if np.sqrt(of_means) > ROUNDING and not (spare and np.sqrt(seed) < ROUNDING):
        squares = np.asarray(np.bincount(groups.config, within**2), dtype=np.float64)
        relative = np.asarray(shape / shape.mean())
        growth = _growth(fit, Scatter(design_by_config(fit, groups), mean, squares, runs, relative))
    freedom = fit.degrees_of_freedom
    return Noise(float(lack**0.5), float(seed**0.5), means, float(1 / (1 / runs).mean()), spare, freedom, growth)


def _growth(fit: Estimate, scatter: Scatter) -> Growth | None:
    """How noise grows; None also where points of one configuration have different inputs, as those of a curve do."""
    points = fit.points
    _, first = np.unique(points.configuration, return_index=True)
    if (points.place != points.place[first][points.configuration]).any():
        return None
    return estimate_growth(scatter, {name: log[first] for name, log in points.logs.items()})


def design_by_config(fit: Estimate, groups: Grouped) -> Array:
    """Basis [configurations, parameters] of the law's tangent plane, orthonormal if weighted by runs."""
    basis = tangent(fit, groups) * np.sqrt(groups.weights)[:, None]
    total = np.bincount(groups.config, groups.weights)
    return np.asarray(np.stack([np.bincount(groups.config, column) for column in basis.T], axis=1) / total[:, None])


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


def row_factors(fit: Estimate, noise: Noise) -> Array:
    """Standard deviations of the rows that `whitened` returns over those in the middle of the sizes, [rows]."""
    groups = group(fit)
    size = np.ones(len(noise.means)) if noise.growth is None else noise.growth.expected
    if not noise.means.all():
        return np.ones(fit.n_points)
    return np.concatenate([size, *([size[groups.config]] if noise.seed else [])])


def _split(fit: Estimate, groups: Grouped) -> tuple[Array, Array, Array]:
    """Residuals as means [configurations] and deviations from them [runs]; 1 - leverage [configurations]."""
    residuals = groups.by_run(fit.least_squares_residuals())
    mean = groups.by_config(residuals)
    leverage = np.bincount(groups.config, (tangent(fit, groups) ** 2).sum(axis=1))
    return mean, residuals - mean[groups.config], np.clip(1 - leverage, 0.0, 1.0)


def tangent(fit: Estimate, groups: Grouped) -> Array:
    """Orthonormal basis [runs, at most P] of the tangent plane of the law, rows times the root of their weight."""
    theta = fit.least_squares
    inside = (theta > fit.problem.lower) & (theta < fit.problem.upper)
    jacobian = groups.by_run(fit.problem.jacobian(theta[None])[0][inside])  # [P, runs]
    basis, strength, _ = np.linalg.svd((jacobian * np.sqrt(groups.weights)).T, full_matrices=False)
    return np.asarray(basis[:, strength > 1e-12 * strength.max(initial=0.0)])
