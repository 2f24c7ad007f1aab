"""Bootstrap confidence and prediction intervals of a fitted law.

The default method depends on the number of configurations. Below 12, simulated studies with normal noise (parametric
bootstrap). From 12, the residuals of configurations are resampled at the measured inputs; from 20 per parameter and at
least 40, configurations with their inputs (a resample of fewer often lacks the smallest or largest size, which makes
intervals too wide). Simulated residuals have the measured size (see `simulation`): for a linear model this gives
Student-t intervals, and for other laws it keeps skewness and bounds. The residual scale is that of configuration means,
so it includes lack of fit as well as the scatter between seeds. Where residuals suggest that noise grows or shrinks
with size, simulated studies and new runs have the noise of their size, at rates drawn from those that the residuals
allow (see `growth`); with fewer than five degrees of freedom, and with a method other than "auto", it counts as the
same everywhere. Measured coverage: `reports/coverage/table.md` and `others.md`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.columns import Columns, read_inputs
from scalebench.laws.estimate import Estimate
from scalebench.laws.forms import Array, FitRefused
from scalebench.laws.intervals.growth import FREEDOM_NEEDED
from scalebench.laws.intervals.noise import Drawn, Noise, estimate_noise
from scalebench.laws.intervals.simulation import simulate, simulate_wild

METHODS = ("auto", "resample", "residuals", "wild", "parametric")
CLUSTERS_NEEDED = 12  # fewer configurations than this are too few to resample
# With fewer than this per parameter, resamples lose corners of the design: `make coverage` measures it.
CLUSTERS_EACH, CLUSTERS_AT_LEAST = 20, 40
MOST_REFITS = 1_000_000
MOST_LOG = 600.0  # of the noise of a new run: its factor is a float
MOST_VALUES = 4_000_000  # weights or targets in memory at once


@dataclass(frozen=True)
class Refits:
    """How refits are drawn: `n` of them from `seed` by a method of `METHODS`.

    Raises FitRefused for an unknown method, fewer than 2 refits and a negative seed.
    """

    method: str = "auto"
    n: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise FitRefused(f"method {self.method!r} is not known; choose one of {', '.join(METHODS)}")
        if not self.n >= 2:
            raise FitRefused(f"a bootstrap of {self.n} refits has no spread; ask for at least 2, better 1000")
        if self.n > MOST_REFITS:
            raise FitRefused(f"a bootstrap of {self.n:,} refits; at most {MOST_REFITS:,} are drawn, 1000 are plenty")
        if not self.seed >= 0:
            raise FitRefused(f"seed {self.seed}: a seed of at least 0 is needed")


DEFAULT_REFITS = Refits()


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Refitted parameters by name, `samples` each [n]; intervals are their percentiles.

    `drawn` is the method (one of `METHODS`), `method` describes it in words, `reason` is why it was chosen.
    """

    fit: Estimate = field(repr=False)
    method: str
    drawn: str
    reason: str
    samples: dict[str, Array] = field(repr=False)
    noise: Noise
    scale: Drawn = field(repr=False)  # of the noise of each replicate
    n: int
    seed: int

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval of a parameter at `level`, from percentiles of its refits.

        For a parameter at a bound it is one-sided and starts at the bound. A rate may have an infinite upper end: that
        of refits in which its term is 0. Raises FitRefused for an unknown name or level.
        """
        if name not in self.samples:
            raise FitRefused(f"{name!r} is not a parameter; those of {self.fit.law.name} are {', '.join(self.samples)}")
        if self.drawn == "resample" and name in self.fit.bounds_hit:
            return self._at_bound.interval(name, level)
        low, high = _quantiles(self.samples[name], tails(level))
        return float(low), float(high)

    @cached_property
    def _at_bound(self) -> Bootstrap:
        """Refits of simulated noise, which can leave the bound; those of resampled points may all stay on it."""
        return bootstrap(self.fit, Refits("parametric", self.n, self.seed))

    def prediction_interval(self, points: Columns, level: float = 0.95, kind: str = "mean") -> tuple[Array, Array]:
        """Lower and upper ends, each [n], for the mean over runs (`kind="mean"`) or for one new run (`kind="new"`)."""
        if kind not in ("mean", "new"):
            raise FitRefused(f"kind {kind!r} is not known; choose one of mean, new")
        return self.ends(self.draws(points, runs=1 if kind == "new" else None), level)

    def draws(self, points: Columns, runs: int | NDArray[np.intp] | None = None) -> Array:
        """Predictions of every replicate, [replicates, n]; given `runs` (int or [n]), of the mean of new runs."""
        logs = read_inputs(self.fit.law, points)
        mean = self.fit.law.predict(self.samples, logs)
        if runs is None:
            return mean
        rng = np.random.default_rng([self.seed, 1])
        noise = self.noise.of_new_runs(runs, self.scale, logs, rng) * rng.standard_normal(mean.shape)
        noise = np.clip(noise, -MOST_LOG, MOST_LOG) if self.fit.problem.log_space else noise
        return np.asarray(mean * np.exp(noise) if self.fit.problem.log_space else mean + noise)

    def ends(self, draws: Array, level: float) -> tuple[Array, Array]:
        """Lower and upper ends, each [n], of draws [replicates, n]."""
        low, high = np.quantile(draws, tails(level), axis=0)
        return low, high


def _quantiles(samples: Array, levels: Array) -> Array:
    """Quantiles `at` of samples [n]; for rates, which may be infinite, of their reciprocals."""
    if np.isinf(samples).any():
        with np.errstate(divide="ignore"):
            return np.asarray(1 / np.quantile(1 / samples, 1 - levels))
    return np.asarray(np.quantile(samples, levels))


def tails(level: float) -> Array:
    """Probabilities of the two ends of a central interval. Raises FitRefused unless 0 < level < 1."""
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
    drawn, reason = chosen(fit) if refits.method == "auto" else (refits.method, "as requested")
    rng, noise = np.random.default_rng(seed), noise_for(fit, refits.method)
    if refits.method == "auto":
        reason += blind_to_growth(noise)
    scale = scale_of_resamples(fit, n, rng) if drawn == "resample" else None
    parts, scales = [], []
    for k in _blocks(fit, n):
        target, weights, drawn_scale = replicates(fit, noise, drawn, k, rng)
        scales += [drawn_scale] if drawn_scale else []
        parts.append(fit.refit(target, weights))
    samples = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scale = with_rates(noise, scale or Drawn.joined(scales), seed)
    return Bootstrap(fit, description(fit, drawn, noise), drawn, reason, samples, noise, scale, n, seed)


def noise_for(fit: Estimate, method: str) -> Noise:
    """The noise that intervals by a method of `METHODS` have: only with "auto" may it grow with size."""
    noise = estimate_noise(fit)
    return noise if method == "auto" else replace(noise, growth=None)


def blind_to_growth(noise: Noise) -> str:
    """What to say of noise with too few degrees of freedom to see whether it grows with size: else nothing."""
    freedom = noise.freedom + noise.spare
    if freedom >= FREEDOM_NEEDED:
        return ""
    degrees = f"{freedom} degree{'s' * (freedom > 1)} of freedom do{'es' * (freedom == 1)}"
    return f"; {degrees} not show whether noise grows with size, and it counts as the same: repeat runs"


def scale_of_resamples(fit: Estimate, n: int, rng: np.random.Generator) -> Drawn:
    """Scale of the noise of `n` resamples, from chi-squared."""
    freedom = fit.degrees_of_freedom
    return Drawn(np.sqrt(freedom / rng.chisquare(freedom, size=n)))


def with_rates(noise: Noise, scale: Drawn, seed: int) -> Drawn:
    """The scale of replicates, with rates of growth drawn for those that were not simulated with one."""
    if noise.growth is None or scale.rates is not None:
        return scale
    rates = noise.growth.drawn(len(scale.factor), np.random.default_rng([seed, 2]))
    return Drawn(scale.factor * noise.growth.between[rates], rates)


def chosen(fit: Estimate) -> tuple[str, str]:
    """The default method for `fit`, and the reason for it."""
    n, needed = fit.n_configurations, clusters_needed(fit)
    if n < CLUSTERS_NEEDED:
        return "parametric", f"{n} configurations, and resampling needs {CLUSTERS_NEEDED}"
    if fit.bounds_hit:  # Andrews 2000, Econometrica 68; residuals are one-sided there, too
        return "parametric", f"{' and '.join(fit.bounds_hit)} at a bound, where resampling fails"
    if n < needed:
        return "residuals", f"{n} configurations; resampling fewer than {needed} often drops the extreme sizes"
    return "resample", f"{n} configurations, from {needed} up"


def replicates(
    fit: Estimate, noise: Noise, drawn: str, n: int, rng: np.random.Generator
) -> tuple[Array, Array, Drawn | None]:
    """Targets and weights, one [n, rows] and the other [rows], and the scale of noise [n] (None for resamples)."""
    if drawn == "resample":
        return fit.problem.target, resample(fit, n, rng), None
    targets, scale = (
        simulate_wild(fit, n, rng) if drawn == "wild" else simulate(fit, noise, n, rng, drawn != "parametric")
    )
    return targets, fit.problem.weights, scale


def description(fit: Estimate, drawn: str, noise: Noise) -> str:
    """How replicates are drawn, in words."""
    n, freedom = fit.n_configurations, fit.degrees_of_freedom
    t = f"t with {freedom} degree{'s' * (freedom > 1)} of freedom"
    growing = f", {noise.growth}" if str(noise.growth or "") else ""
    how = {
        "resample": f"bootstrap of {n} configurations, percentile",
        "residuals": f"bootstrap of the residuals of {n} configurations, {t}",
        "wild": f"wild bootstrap of {n} configurations, {t}",
        "parametric": f"parametric bootstrap, {t}",
    }
    return how[drawn] + growing


def _blocks(fit: Estimate, n: int) -> list[int]:
    """Sizes of blocks of refits whose arrays stay below about 50 MB."""
    most = max(MOST_VALUES // fit.n_points, 1)
    return [min(most, n - first) for first in range(0, n, most)]


def clusters_needed(fit: Estimate) -> int:
    """Number of configurations from which resampling them with their inputs reaches its nominal coverage."""
    return max(CLUSTERS_AT_LEAST, CLUSTERS_EACH * int(fit.problem.free.sum()))


def resample(fit: Estimate, n: int, rng: np.random.Generator) -> Array:
    """Weights [n, rows] of configurations drawn with replacement."""
    size = fit.n_configurations
    counts = rng.multinomial(size, np.full(size, 1 / size), size=n)
    return np.asarray(counts[:, fit.points.configuration] * fit.problem.weights)
