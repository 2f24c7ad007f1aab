"""Intervals that mean what they say: bootstrap, prediction intervals and backtests of a fitted law.

From 12 configurations up, configurations are resampled. From 20 for each parameter, and 40, up they themselves, inputs
and all; below that their residuals, at the inputs that were measured, since a resample without the smallest or the
largest size says little and makes intervals too wide. Below 12 the noise is drawn from a normal distribution. Refits to
residuals and to normal noise see residuals as large as those measured (see `noise`): for a linear model this gives
Student-t intervals, and it keeps the skewness and the bounds of a non-linear one. The residual scale is that of
configuration means, so it holds lack of fit as well as seeds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.columns import Columns, read_inputs
from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import Array, FitRefused
from scalebench.laws.intervals.noise import Noise, estimate_noise, simulate, simulate_wild

METHODS = ("auto", "resample", "residuals", "wild", "parametric")
CLUSTERS_NEEDED = 12  # fewer configurations than this are too few to draw from
# Fewer than this for each parameter, and resamples lose corners of the design: `make coverage` has the numbers.
CLUSTERS_EACH, CLUSTERS_AT_LEAST = 20, 40
MOST_VALUES = 4_000_000  # weights or targets held at once


@dataclass(frozen=True)
class Refits:
    """How the refits behind intervals are drawn: `method`, one of `METHODS`, `n` of them, from `seed`.

    Raises FitRefused for what can be no such thing.
    """

    method: str = "auto"
    n: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise FitRefused(f"method {self.method!r} is not known; choose one of {', '.join(METHODS)}")
        if not self.n >= 2:
            raise FitRefused(f"a bootstrap of {self.n} refits has no spread; ask for at least 2, better 1000")
        if not self.seed >= 0:
            raise FitRefused(f"seed {self.seed}: a number from 0 up is needed")


DEFAULT_REFITS = Refits()


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refitted parameters by name, each [n]; intervals are their percentiles.

    `method` says how they were drawn, `reason` why so, and `drawn` it in one word of `METHODS`.
    """

    fit: Estimate = field(repr=False)
    method: str
    drawn: str
    reason: str
    samples: dict[str, Array] = field(repr=False)
    noise: Noise
    inflation: Array = field(repr=False)  # factor on the noise of each replicate, [n]
    n: int
    seed: int

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a parameter at `level`, from percentiles of its refits.

        At an active bound it is one-sided: it starts at the bound and reaches as far as the noise does. That of a rate
        may have no upper end: refits in which its term is 0 have an infinite rate.
        """
        if name not in self.samples:
            raise FitRefused(f"{name!r} is not a parameter; those of {self.fit.law.name} are {', '.join(self.samples)}")
        if self.drawn == "resample" and name in self.fit.bounds_hit:
            return self._at_bound.interval(name, level)
        low, high = _quantiles(self.samples[name], _tails(level))
        return float(low), float(high)

    @cached_property
    def _at_bound(self) -> Bootstrap:
        """Refits that may leave the bound; all those to resampled points may lie on it, and say nothing."""
        return bootstrap(self.fit, Refits("parametric", self.n, self.seed))

    def prediction_interval(self, points: Columns, level: float = 0.95, kind: str = "mean") -> tuple[Array, Array]:
        """Lower and upper ends, each [n], for the mean over runs (`kind="mean"`) or for one new run (`kind="new"`)."""
        if kind not in ("mean", "new"):
            raise FitRefused(f"kind {kind!r} is not known; choose one of mean, new")
        return self.ends(self.draws(points, runs=1 if kind == "new" else None), level)

    def draws(self, points: Columns, runs: int | NDArray[np.intp] | None = None) -> Array:
        """Predictions of every replicate, [replicates, n]; with `runs` (a number or [n]) of means of new runs."""
        mean = self.fit.law.predict(self.samples, read_inputs(self.fit.law, points))
        if runs is None:
            return mean
        rng = np.random.default_rng([self.seed, 1])
        noise = self.noise.of_new_runs(runs, self.inflation, rng) * rng.standard_normal(mean.shape)
        return np.asarray(mean * np.exp(noise) if self.fit.problem.log_space else mean + noise)

    def ends(self, draws: Array, level: float) -> tuple[Array, Array]:
        """Lower and upper ends, each [n], of draws [replicates, n]."""
        low, high = np.quantile(draws, _tails(level), axis=0)
        return low, high


def _quantiles(samples: Array, at: Array) -> Array:
    """Quantiles, each shaped as `at`, of samples [n]; of rates, which may be infinite, by their reciprocals."""
    if np.isinf(samples).any():
        with np.errstate(divide="ignore"):
            return np.asarray(1 / np.quantile(1 / samples, 1 - at))
    return np.asarray(np.quantile(samples, at))


def _tails(level: float) -> Array:
    if not 0 < level < 1:
        raise FitRefused(f"level is {level}; it needs a number between 0 and 1, such as 0.95")
    return np.array([(1 - level) / 2, (1 + level) / 2])


def bootstrap(fit: Estimate, refits: Refits) -> Bootstrap:
    """Refit resamples of the points of `fit`. Raises FitRefused with zero degrees of freedom."""
    freedom, n, seed = fit.degrees_of_freedom, refits.n, refits.seed
    if freedom < 1:
        raise FitRefused(
            f"{fit.n_configurations} configurations leave zero degrees of freedom for {fit.law.name}; "
            "an interval needs at least one more size, or a pinned parameter"
        )
    drawn, reason = chosen(fit) if refits.method == "auto" else (refits.method, "as asked")
    rng, noise = np.random.default_rng(seed), estimate_noise(fit)
    inflation = np.sqrt(freedom / rng.chisquare(freedom, size=n)) if drawn == "resample" else np.empty(0)
    parts = []
    for k in _blocks(fit, n):
        target, weights, factor = replicates(fit, noise, drawn, k, rng)
        inflation = inflation if factor is None else np.append(inflation, factor)
        parts.append(fit.refit(target, weights))
    samples = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Bootstrap(fit, description(fit, drawn), drawn, reason, samples, noise, inflation, n, seed)


def chosen(fit: Estimate) -> tuple[str, str]:
    """How to draw, and why so."""
    n, needed = fit.n_configurations, clusters_needed(fit)
    if n < CLUSTERS_NEEDED:
        return "parametric", f"{n} configurations, and resampling needs {CLUSTERS_NEEDED}"
    if fit.bounds_hit:  # Andrews 2000, Econometrica 68; residuals lie to one side there, too
        return "parametric", f"{' and '.join(fit.bounds_hit)} at a bound, where resampling fails"
    if n < needed:
        return "residuals", f"{n} configurations; resamples of fewer than {needed} lose ends of the design"
    return "resample", f"{n} configurations, from {needed} up"


def replicates(
    fit: Estimate, noise: Noise, drawn: str, n: int, rng: np.random.Generator
) -> tuple[Array, Array, Array | None]:
    """Targets, weights, one of them [n, rows], the other [rows], and the factor [n] on the noise, None of resamples."""
    if drawn == "resample":
        return fit.problem.target, resample(fit, n, rng), None
    targets, factor = (
        simulate_wild(fit, n, rng) if drawn == "wild" else simulate(fit, noise, n, rng, drawn != "parametric")
    )
    return targets, fit.problem.weights, factor


def description(fit: Estimate, drawn: str) -> str:
    """How replicates are drawn, in words."""
    n, freedom = fit.n_configurations, fit.degrees_of_freedom
    t = f"t with {freedom} degree{'s' * (freedom > 1)} of freedom"
    return {
        "resample": f"bootstrap of {n} configurations, percentile",
        "residuals": f"bootstrap of the residuals of {n} configurations, {t}",
        "wild": f"wild bootstrap of {n} configurations, {t}",
        "parametric": f"parametric bootstrap, {t}",
    }[drawn]


def _blocks(fit: Estimate, n: int) -> list[int]:
    """Sizes of blocks of refits whose arrays stay below about 50 MB."""
    most = max(MOST_VALUES // fit.n_points, 1)
    return [min(most, n - first) for first in range(0, n, most)]


def clusters_needed(fit: Estimate) -> int:
    """Configurations from which resampling them, inputs and all, covers what it says."""
    return max(CLUSTERS_AT_LEAST, CLUSTERS_EACH * int(fit.problem.free.sum()))


def resample(fit: Estimate, n: int, rng: np.random.Generator) -> Array:
    """Weights [n, rows] of configurations drawn with replacement."""
    size = fit.n_configurations
    counts = rng.multinomial(size, np.full(size, 1 / size), size=n)
    return np.asarray(counts[:, fit.points.configuration] * fit.problem.weights)
