"""Noise that grows or shrinks with size: whether the residuals show it, and how fast it may do so.

The log of the standard deviation is a straight line in the log of one input, or of the product of all. Its slope is
estimated from the scatter of configurations about the law and of runs within them, and not well: each simulated study
has a slope drawn from its posterior, which is the restricted likelihood (Patterson and Thompson 1971) times a wide
prior. Where noise of the same size everywhere often has such a likelihood ratio, it counts as the same everywhere:
otherwise intervals of studies without growth would be 1.1 to 2 times as wide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.forms import Array

FASTEST, RATES = 4.0, 41  # largest log of the noise at one end of the sizes over that at the other; values on each side
PRIOR = 2.0  # standard deviation of that log: noise that grows 7-fold, or shrinks as much
ALLOWED = 0.3  # p-value below which intervals have growth: at 0.1 they hold the truth less often, at 1 they are wide
EVIDENT = 0.05  # and below which it is stated
FREEDOM_NEEDED = 5  # degrees of freedom: of fewer residuals, no growth is visible
LEAST_SPAN = 0.1  # of the logs along a direction: sizes that vary by less show no growth
AS_FAR_AGAIN = 1.5  # place up to which noise grows beyond the sizes, which end at 1/2
STUDIES = 400  # simulated without growth, for the p-value
ENOUGH = 500  # configurations: of more, as many that are spread over the sizes are looked at


@dataclass(frozen=True, eq=False)
class Axes:
    """Directions in which noise may grow: `inputs` whose logs are added. The sizes reach from -1/2 to 1/2 in each."""

    inputs: tuple[tuple[str, ...], ...]
    lowest: Array
    spans: Array

    @classmethod
    def of(cls, logs: Mapping[str, Array]) -> Axes:
        """Each input that varies, and all of them together."""
        names = tuple(logs)
        inputs = tuple((name,) for name in names) + ((names,) if len(names) > 1 else ())
        sums = _sums(logs, inputs)
        varied = np.ptp(sums, axis=1) > LEAST_SPAN
        varying = tuple(each for each, vary in zip(inputs, varied, strict=True) if vary)
        return cls(varying, sums[varied].min(axis=1), np.ptp(sums[varied], axis=1))

    def places(self, logs: Mapping[str, Array]) -> Array:
        """Places [directions, n] of inputs by their logs, each [n]."""
        return np.asarray((_sums(logs, self.inputs) - self.lowest[:, None]) / self.spans[:, None] - 0.5)


def _sums(logs: Mapping[str, Array], inputs: tuple[tuple[str, ...], ...]) -> Array:
    return np.array([np.sum([logs[name] for name in names], axis=0) for names in inputs])


@dataclass(frozen=True, eq=False)
class Scatter:
    """What noise is estimated from, by configuration: a basis `design` [configurations, parameters] of the law's
    tangent plane, the `means` of its residuals, the sums of `squares` about them, the number of `runs`, and the
    variance of the mean relative to that of the others if all noise is the same, `shape`."""

    design: Array
    means: Array
    squares: Array
    runs: NDArray[np.intp]
    shape: Array

    def spread_rows(self, most: int) -> NDArray[np.intp]:
        """Indices of at most ``most`` configurations, spread evenly; all of them are in order of their inputs."""
        return np.unique(np.linspace(0, len(self.means) - 1, min(most, len(self.means))).round().astype(np.intp))

    def subset(self, rows: NDArray[np.intp]) -> Scatter:
        """Those of some configurations."""
        return Scatter(self.design[rows], self.means[rows], self.squares[rows], self.runs[rows], self.shape[rows])

    @property
    def free(self) -> int:
        """Degrees of freedom of the means."""
        return len(self.means) - self.design.shape[1]

    @property
    def spare(self) -> int:
        """Degrees of freedom of the runs within configurations."""
        return int(self.runs.sum()) - len(self.runs)


@dataclass(frozen=True, eq=False)
class Growth:
    """Rates at which noise may grow. `rate` [rates] is the log of the noise at the largest over that at the smallest
    size along a `direction` of `axes`, and `chance` its posterior probability.

    `places` [directions, configurations] are where these lie. `between` and `within` [rates] are the standard
    deviations of configuration means and of runs in the middle of the sizes, over what they are without growth.
    `p_value` is how often noise that does not grow looks as if it grew as much.
    """

    rate: Array
    direction: NDArray[np.intp]
    chance: Array
    places: Array = field(repr=False)
    between: Array = field(repr=False)
    within: Array = field(repr=False)
    axes: Axes = field(repr=False)
    p_value: float

    def drawn(self, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
        """Indices [n] of rates drawn from their posterior."""
        return rng.choice(len(self.rate), n, p=self.chance)

    def factors_at(self, logs: Mapping[str, Array]) -> Array:
        """Factors [rates, n] at logs of the inputs, each [n].

        Beyond the measured sizes noise that grows does so over as many orders of magnitude again; none shrinks there.
        """
        exponents, fast = self.rate[:, None] * self.axes.places(logs)[self.direction], np.abs(self.rate)[:, None]
        return np.asarray(np.exp(np.clip(exponents, -0.5 * fast, AS_FAR_AGAIN * fast)))

    def expected_at(self, logs: Mapping[str, Array]) -> Array:
        """Factors [n] at logs of the inputs, each [n], at the posterior mean of their logarithm."""
        return np.asarray(np.exp(self.chance @ np.log(self.factors_at(logs))))

    def factors(self, rates: NDArray[np.intp]) -> Array:
        """Standard deviations over those in the middle of the sizes, [n, configurations], at rates [n] by index."""
        return np.asarray(np.exp(self.rate[rates][:, None] * self.places[self.direction[rates]]))

    @property
    def expected(self) -> Array:
        """Factors [configurations] at the posterior mean of their logarithm."""
        mean = np.bincount(self.direction, self.chance * self.rate, len(self.places))
        return np.asarray(np.exp(mean @ self.places))

    def __str__(self) -> str:
        """Say in which direction the noise grows, if that is evident: empty otherwise."""
        if self.p_value >= EVIDENT:
            return ""
        likeliest = int(self.chance.argmax())
        verb = "grows" if self.rate[likeliest] > 0 else "shrinks"
        # Points of any measure of size, as FLOPs, are the `params` of a law that has no other input.
        size = self.axes.inputs == (("params",),)
        return f"noise that {verb} with {'size' if size else ' and '.join(self.axes.inputs[self.direction[likeliest]])}"


def estimate_growth(scatter: Scatter, logs: Mapping[str, Array]) -> Growth | None:
    """Return the rates that the scatter allows, or None where noise that is the same everywhere explains it.

    `logs` [configurations] are those of the inputs. Also None with too few degrees of freedom to see growth.
    """
    axes = Axes.of(logs)
    if scatter.free < 1 or scatter.free + scatter.spare < FREEDOM_NEEDED or not axes.inputs:
        return None
    values = np.linspace(-FASTEST, FASTEST, 2 * RATES + 1)  # 0, no growth, is number RATES
    rate, direction = np.tile(values, len(axes.inputs)), np.repeat(np.arange(len(axes.inputs)), len(values))
    places = axes.places(logs)
    rows = scatter.spread_rows(ENOUGH)
    likelihood = _Likelihood.of(scatter.subset(rows), np.exp(rate[:, None] * places[direction][:, rows]))
    measured = scatter.means[rows][None], scatter.squares[rows][None]
    log_likelihood = likelihood(*measured)[0]
    p_value = _p_value(likelihood, float(log_likelihood.max() - log_likelihood[RATES]))
    if p_value >= ALLOWED:
        return None
    chance = np.exp(log_likelihood - 0.5 * (rate / PRIOR) ** 2 - log_likelihood.max())
    between, within = (np.sqrt(variances[0] / variances[0, RATES]) for variances in likelihood.variances(*measured))
    return Growth(rate, direction, chance / chance.sum(), places, between, within, axes, p_value)


def _p_value(likelihood: _Likelihood, ratio: float) -> float:
    """How often normal noise that is the same everywhere has as high a log-likelihood ratio."""
    scatter = likelihood.scatter
    rng, size = np.random.default_rng(0), (STUDIES, len(scatter.means))
    means = np.sqrt(scatter.shape) * rng.standard_normal(size)
    squares = 2 * rng.standard_gamma((scatter.runs - 1) / 2, size)
    drawn = likelihood(means, squares)
    return float(np.mean(drawn.max(axis=1) - drawn[:, RATES] >= ratio))


@dataclass(frozen=True, eq=False)
class _Likelihood:
    """Restricted log-likelihood of each rate, maximised over the noise in the middle, for studies of one design."""

    weights: Array  # of the means, [rates, configurations]
    basis: Array  # of the weighted design times the root of the weights, [configurations, rates * parameters]
    constant: Array  # [rates]
    factors: Array
    scatter: Scatter

    @classmethod
    def of(cls, scatter: Scatter, factors: Array) -> _Likelihood:
        root = 1 / (np.sqrt(scatter.shape) * factors)
        q, r = np.linalg.qr(root[:, :, None] * scatter.design)
        lengths = np.abs(np.diagonal(r, axis1=1, axis2=2))
        constant = np.log(root).sum(axis=1) - np.log(lengths).sum(axis=1) - np.log(factors) @ (scatter.runs - 1)
        basis = (root[:, :, None] * q).transpose(1, 0, 2).reshape(len(scatter.means), -1)
        return cls(root**2, basis, constant, factors, scatter)

    def variances(self, means: Array, squares: Array) -> tuple[Array, Array]:
        """Of means and of runs in the middle of the sizes, each [studies, rates]."""
        explained = ((means @ self.basis).reshape(len(means), len(self.weights), -1) ** 2).sum(axis=2)
        between = np.maximum(means**2 @ self.weights.T - explained, 1e-300) / self.scatter.free
        if not self.scatter.spare:
            return between, np.ones_like(between)
        return between, np.maximum(squares @ self.factors.T**-2, 1e-300) / self.scatter.spare

    def __call__(self, means: Array, squares: Array) -> Array:
        between, within = map(np.log, self.variances(means, squares))
        return np.asarray(self.constant - 0.5 * (self.scatter.free * between + self.scatter.spare * within))
