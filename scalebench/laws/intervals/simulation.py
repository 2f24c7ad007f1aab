"""Studies simulated about a fitted law, from normal noise or from residuals.

Simulated noise is scaled so that its residuals about the law's tangent plane have the measured size. For a linear model
and any equivariant estimator the refits are then exactly Student-t about the fit. Drawing the scale independently from
chi-squared gives intervals that are too wide where estimator and residuals are correlated, as with Huber. Where noise
grows with size (see `growth`), each study has a rate of growth drawn from those that the residuals allow, and the size
of its residuals is their sum of squares about the fit that is weighted by that rate.
"""

from __future__ import annotations

import numpy as np

from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import Array
from scalebench.laws.intervals.growth import Growth
from scalebench.laws.intervals.noise import Drawn, Grouped, Noise, _split, design_by_config, group, tangent

LEAST = 1e-300  # of a square, to divide by


def simulate(
    fit: Estimate, noise: Noise, n: int, rng: np.random.Generator, residuals: bool = False
) -> tuple[Array, Drawn]:
    """Targets [n, rows] (fitted values plus noise) and the scale of each study's noise.

    The noise is normal or, with `residuals`, residuals of configurations and of runs within them drawn with
    replacement, each divided by its standard deviation at its leverage: residuals at the ends of a design are small
    because the fit follows those points.
    """
    groups = group(fit)
    of_means, of_runs = _standardised(fit, noise, groups) if residuals else (None, None)
    within = noise.seed * _pick(of_runs, (n, len(groups.config)), rng)
    within -= groups.by_config(within)[:, groups.config]
    if noise.spare:
        size = np.sqrt((within**2).sum(axis=1, keepdims=True) / noise.spare)
        within *= noise.seed / np.maximum(size, LEAST)
    between = noise.means * _pick(of_means, (n, len(noise.means)), rng)
    if noise.growth is None:
        left = _residual_mean_square(fit, groups, between)
        drawn = Drawn(np.sqrt((noise.means**2).mean() / np.maximum(left, LEAST)))
    else:
        drawn, factors = _grown(fit, groups, noise, noise.growth, between, rng)
        within *= (factors * noise.growth.within[drawn.rates][:, None])[:, groups.config]
        between *= factors
    scatter = within + (drawn.factor[:, None] * between)[:, groups.config]
    return np.asarray(fit.problem.target - fit.residuals + scatter[:, groups.run]), drawn


def _grown(
    fit: Estimate, groups: Grouped, noise: Noise, growth: Growth, between: Array, rng: np.random.Generator
) -> tuple[Drawn, Array]:
    """Scale of each study of noise `between` [n, configurations] at a drawn rate, and its factors, same shape."""
    rates, design = growth.drawn(len(between), rng), design_by_config(fit, groups)
    left = np.empty(len(between))
    for rate in np.unique(rates):
        # In units of the noise at this rate, the noise as it comes has residuals about the weighted tangent plane.
        own = growth.factors(np.array([rate]))[0]
        basis = np.linalg.qr(design / (noise.means * own)[:, None])[0]
        unit = between[rates == rate] / noise.means
        left[rates == rate] = (unit**2).sum(axis=1) - ((unit @ basis) ** 2).sum(axis=1)
    factor = growth.between[rates] * np.sqrt(fit.degrees_of_freedom / np.maximum(left, LEAST))
    return Drawn(factor, rates), growth.factors(rates)


def simulate_wild(fit: Estimate, n: int, rng: np.random.Generator) -> tuple[Array, Drawn]:
    """Targets [n, rows] and scale as in `simulate`: each configuration's own residuals with a random sign.

    The noise may then differ between configurations (Wu 1986; clusters: Cameron, Gelbach and Miller 2008). Residuals
    are divided by 1 - leverage (HC3, MacKinnon and White 1985); the factor, from chi-squared, gives t quantiles.
    """
    groups, freedom = group(fit), fit.degrees_of_freedom
    mean, within, share = _split(fit, groups)
    own = within + (mean / np.maximum(share, 0.01))[groups.config]
    factor = np.sqrt(freedom / rng.chisquare(freedom, size=n))
    signs = rng.choice([-1.0, 1.0], (n, len(mean)))
    scatter = own * (factor[:, None] * signs)[:, groups.config]
    return np.asarray(fit.problem.target - fit.residuals + scatter[:, groups.run]), Drawn(factor)


def _pick(pool: Array | None, size: tuple[int, int], rng: np.random.Generator) -> Array:
    """Noise of unit variance: drawn from the pool with replacement, or normal if there is no pool."""
    return rng.standard_normal(size) if pool is None else np.asarray(pool[rng.integers(len(pool), size=size)])


def _standardised(fit: Estimate, noise: Noise, groups: Grouped) -> tuple[Array, Array]:
    """Pools of residuals of configuration means and of runs within them, centred, of unit variance."""
    mean, within, share = _split(fit, groups)
    informative = (share > 1e-6) & (noise.means > 0)  # a point of leverage 1 has no residual
    several = np.bincount(groups.config)[groups.config] > 1
    if noise.growth is None:
        left, factors = noise.means * np.sqrt(share), np.ones(len(mean))
    else:
        factors = noise.growth.expected
        left = _left_of(noise.means * factors, fit, groups)
    return _unit(mean[informative] / left[informative]), _unit((within / factors[groups.config])[several])


def _left_of(noise: Array, fit: Estimate, groups: Grouped) -> Array:
    """Standard deviations of residuals that a least-squares fit leaves of noise of `noise`, each [configurations]."""
    total = np.bincount(groups.config, groups.weights)
    basis = design_by_config(fit, groups) * np.sqrt(total)[:, None]
    variance, leverage = noise**2 * total, (basis**2).sum(axis=1)
    pulled = ((basis @ (basis.T @ (variance[:, None] * basis))) * basis).sum(axis=1)  # by the noise of all others
    return np.asarray(np.sqrt(np.maximum(variance * (1 - 2 * leverage) + pulled, LEAST) / total))


def _unit(pool: Array) -> Array:
    scale = float(np.std(pool)) if len(pool) else 0.0
    return (pool - pool.mean()) / scale if scale else np.zeros(max(len(pool), 1))


def _residual_mean_square(fit: Estimate, groups: Grouped, between: Array) -> Array:
    """Residual mean square [n] that a least-squares fit would leave of noise [n, configurations]."""
    basis, root = tangent(fit, groups), np.sqrt(groups.weights)
    noise = between[:, groups.config] * root
    left = (noise - (noise @ basis) @ basis.T) / root
    return np.asarray((groups.by_config(left) ** 2).sum(axis=1) / fit.degrees_of_freedom)
