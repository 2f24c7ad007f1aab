"""What to run next: the trial, or the set of trials within a FLOP budget, that most narrows a chosen prediction.

Delta method: with J the derivatives of the predictions at the points by the parameters and g those at the target, the
variance of the prediction is sigma^2 g (J'J)^-1 g', and a trial with derivatives j adds j'j to J'J. It depends on the
inputs of the trial and not on its outcome, so it is known beforehand (c-optimality: Chaloner and Verdinelli 1995,
Bayesian experimental design). sigma is that of one new run, and points are weighted by the noise of configurations and
seeds as in the bootstrap (`intervals.noise`). A trial at measured inputs is another seed (see `seeds`).

Where the residuals show noise that grows or shrinks with size (`intervals.growth`), every point and trial has the noise
of its size. The fit does not weight them by it, so that the variance is g A^-1 B A^-1 g' with A = sum of a j'j and
B = sum of b j'j (Huber 1981, Robust Statistics): a is the expected second derivative of the loss of a residual, b the
variance of its first. A trial with much noise may then add to the variance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from scalebench.advice.information import derivatives, inverted, loss_moments
from scalebench.advice.seeds import Seeds
from scalebench.advice.selection import best_rows, many_rows
from scalebench.errors import number_of
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN, Columns, positive_columns, read_inputs
from scalebench.laws.fit import Fit
from scalebench.laws.forms import Array, FitRefused
from scalebench.laws.intervals.noise import Noise, estimate_noise, row_factors, whitened

PARAMETER_DRAWS = 200
MOST_VALUES = 1_000_000  # of predictions in memory at once
MOST = 5  # default size of a set: information per FLOP alone favours dozens of tiny trials


@dataclass(frozen=True)
class Candidate:
    """A trial that could be run: its row among the candidates, inputs, FLOPs (None if unknown).

    `narrowing` is the expected width of the interval of the target if it is run alone, over the width now.
    """

    row: int
    inputs: dict[str, float]
    flops: float | None
    narrowing: float


@dataclass(frozen=True, repr=False)
class Design:
    """Trials to run and the expected 95 % interval of the mean at `target` afterwards.

    `interval_now` and `interval_after` are in units of the response; `narrowing` is the ratio of their widths in the
    space of the fit, `narrowing_interval` its 95 % interval over the uncertainty of the parameters (None without
    degrees of freedom). `ranking` lists every candidate alone, best first. `unlimited` is the (number of
    trials, narrowing) that the same budget reaches without a limit on their number; None if more do not help.
    `noise` says how the noise of trials changes with their size, where the residuals show it.
    """

    target: dict[str, float]
    predicted: float
    interval_now: tuple[float, float]
    chosen: tuple[Candidate, ...]
    flops: float | None
    interval_after: tuple[float, float]
    narrowing: float
    narrowing_interval: tuple[float, float] | None
    ranking: tuple[Candidate, ...]
    unlimited: tuple[int, float] | None = None
    noise: str = ""

    def __repr__(self) -> str:
        """Return one line: the target, the trials to run, and what they do to its interval."""
        goal = ", ".join(f"{name} {value:.4g}" for name, value in self.target.items())
        trials = number_of(len(self.chosen), "trial")
        return f"Design for {goal}: {trials}, interval width ×{self.narrowing:.3g}; .chosen, .ranking"

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def next_trial(fit: Fit, candidates: Columns, target: Mapping[str, float], seed: int | None = None) -> Design:
    """The one candidate that most narrows the prediction of `fit` at `target` (its inputs, a number each).

    `candidates` has the inputs of the law, [n], and may have `flops`; `seed` defaults to that of the fit's
    refits. Raises FitRefused without degrees of freedom.
    """
    problem = _Problem.of(fit, candidates, target)
    best = int(problem.gains(()).argmax())
    return problem.describe((best,), seed)


def best_set(
    fit: Fit,
    candidates: Columns,
    target: Mapping[str, float],
    budget_flops: float,
    seed: int | None = None,
    most: int | None = MOST,
) -> Design:
    """The at most `most` candidates that together most narrow the prediction at `target` within a FLOP budget.

    Each candidate is used at most once: list it twice to allow two seeds. FLOPs are the column `flops`, or 6 * params *
    tokens. `most=None` sets no limit. Raises FitRefused without FLOPs, and if no candidate is affordable.
    """
    if most is not None and most < 1:
        raise FitRefused(f"at most {most} trials; a set needs at least 1")
    problem = _Problem.of(fit, candidates, target)
    if problem.flops is None:
        raise FitRefused("candidates have no column 'flops', nor params and tokens; a FLOP budget needs their cost")
    if not (problem.flops <= budget_flops).any():
        cheapest = f"the cheapest candidate costs {problem.flops.min():.3g}: raise it or offer smaller trials"
        raise FitRefused(f"budget of {budget_flops:.3g} FLOPs; {cheapest}")
    rows = best_rows(problem, problem.flops, budget_flops, most)
    design, unlimited = problem.describe(rows, seed), None
    if most is not None and len(rows) == most:
        more = many_rows(problem, problem.flops, budget_flops)
        narrowing = problem.narrowing(more)
        unlimited = (len(more), narrowing) if len(more) > most and narrowing < design.narrowing else None
    return replace(design, unlimited=unlimited)


@dataclass(frozen=True, eq=False)
class _Problem:
    """Derivatives at the points (whitened), the candidates and the target, in the space of the fit.

    ``of_points`` and ``of_candidates`` are the a and b of each.
    """

    fit: Fit
    noise: Noise
    target: dict[str, float]
    logs: dict[str, Array]
    flops: Array | None
    at_points: Array
    at_candidates: Array
    at_target: Array
    of_points: tuple[Array, Array]
    of_candidates: tuple[Array, Array]
    seeds: Seeds

    @staticmethod
    def of(fit: Fit, candidates: Columns, target: Mapping[str, float]) -> _Problem:
        if fit.degrees_of_freedom < 1:
            raise FitRefused(
                f"{fit.n_configurations} configurations leave zero degrees of freedom for {fit.law.name}; its interval "
                "needs one more size before it can be narrowed"
            )
        if fit.status == "degenerate":
            raise FitRefused(f"the fit of {fit.law.name} is degenerate: the points do not determine its parameters")
        goal = read_inputs(fit.law, {name: np.atleast_1d(value) for name, value in target.items()})
        if len(next(iter(goal.values()))) != 1:
            raise FitRefused(f"{len(next(iter(goal.values())))} targets; a design narrows one prediction: choose one")
        logs = read_inputs(fit.law, candidates)
        rows = [derivatives(fit, fit.parameters, where)[0] for where in (fit.points.logs, logs, goal)]
        target, noise = {name: float(np.exp(log[0])) for name, log in goal.items()}, estimate_noise(fit).in_the_middle
        measured = whitened(fit, noise, rows[0])
        sizes = np.ones(len(rows[1])) if noise.growth is None else noise.growth.expected_at(logs)
        weights = loss_moments(fit, noise, row_factors(fit, noise)), loss_moments(fit, noise, sizes)
        seeds = Seeds.of(fit, noise, logs)
        return _Problem(fit, noise, target, logs, _cost(candidates), measured, rows[1], rows[2][0], *weights, seeds)

    def _sums(self, rows: tuple[int, ...]) -> tuple[Array, Array]:
        """A and B with the candidates `rows` added to the points, each [P, P]."""
        chosen = list(rows)
        added = self.at_candidates[chosen] * np.sqrt(self.seeds.shares_of(rows))[:, None]
        bread, filling = (
            of_points + (added * of_candidates[chosen, None]).T @ added
            for of_points, of_candidates in zip(self._sums_of_points, self.of_candidates, strict=True)
        )
        return bread, filling

    @cached_property
    def _sums_of_points(self) -> tuple[Array, Array]:
        bread, filling = ((self.at_points * moment[:, None]).T @ self.at_points for moment in self.of_points)
        return bread, filling

    def variance(self, rows: tuple[int, ...]) -> float:
        """Variance of the prediction per unit of noise."""
        bread, filling = self._sums(rows)
        pull = inverted(bread) @ self.at_target
        return float(pull @ filling @ pull)

    def gains(self, rows: tuple[int, ...]) -> Array:
        """Decrease of the variance by each candidate alone, [n], after `rows` (Sherman-Morrison)."""
        bread, filling = self._sums(rows)
        inverse, (a, b) = inverted(bread), self.of_candidates
        added = self.at_candidates * np.sqrt(self.seeds.shares(rows))[:, None]
        pull, moved = inverse @ self.at_target, added @ inverse
        share = a * (added @ pull) / (1 + a * (moved * added).sum(axis=1))
        noise = ((moved @ filling) * moved).sum(axis=1) + np.divide(b, a**2, out=np.zeros_like(b), where=a > 0)
        return np.asarray(2 * share * (moved @ (filling @ pull)) - share**2 * noise)

    def narrowing(self, rows: tuple[int, ...]) -> float:
        """Width of the interval of the prediction with the candidates `rows`, over the width now."""
        ratio = self.variance(rows) / self.variance(())
        return float(self._quantile(self.seeds.new(rows)) / self._quantile(0) * np.sqrt(ratio))

    def describe(self, rows: tuple[int, ...], seed: int | None) -> Design:
        """The design that runs `rows`."""
        widths = self._half_width(()), self._half_width(rows)
        predicted = float(self.fit.predict(self.target)[0])
        flops = None if self.flops is None else float(self.flops[list(rows)].sum())
        alone = np.sqrt(np.maximum(1 - self.gains(()) / self.variance(()), 0.0))
        alone *= np.where(self.seeds.runs == 0, self._quantile(1) / self._quantile(0), 1.0)
        ranking = [self._candidate(int(row), float(alone[row])) for row in np.argsort(alone, kind="stable")]
        return Design(
            target=self.target,
            predicted=predicted,
            interval_now=self._around(predicted, widths[0]),
            chosen=tuple(self._candidate(row, float(alone[row])) for row in rows),
            flops=flops,
            interval_after=self._around(predicted, widths[1]),
            narrowing=self.narrowing(rows),
            narrowing_interval=self._narrowing_interval(rows, seed),
            ranking=tuple(ranking),
            noise="" if self.noise.growth is None else str(self.noise.growth),
        )

    def _candidate(self, row: int, narrowing: float) -> Candidate:
        inputs = {name: float(np.exp(log[row])) for name, log in self.logs.items()}
        return Candidate(row, inputs, None if self.flops is None else float(self.flops[row]), narrowing)

    def _quantile(self, added: int) -> float:
        from scipy.special import stdtrit  # lazily: slow to import

        return float(stdtrit(self.fit.degrees_of_freedom + added, 0.975))

    def _half_width(self, rows: tuple[int, ...]) -> float:
        noise = float(np.sqrt(self.noise.variance_of_new_runs()))
        if self.noise.growth is not None:  # then the moments are those of the loss
            return float(self._quantile(self.seeds.new(rows)) * noise * np.sqrt(self.variance(rows)))
        # The noise is that of least squares; a robust fit lies farther from the points, and its estimates vary more.
        farther = np.linalg.norm(self.fit.residuals) / (np.linalg.norm(self.fit.least_squares_residuals()) or 1.0)
        return float(self._quantile(self.seeds.new(rows)) * noise * farther * np.sqrt(self.variance(rows)))

    def _around(self, predicted: float, half: float) -> tuple[float, float]:
        if self.fit.settings["space"] == "log":
            return predicted * float(np.exp(-half)), predicted * float(np.exp(half))
        return predicted - half, predicted + half

    def _narrowing_interval(self, rows: tuple[int, ...], seed: int | None) -> tuple[float, float]:
        """95 % interval of the narrowing when the parameters are those of bootstrap refits."""
        draws = min(PARAMETER_DRAWS, self.fit.refits.n)
        samples = self.fit.bootstrap(draws, seed).samples
        picked = {name: log[list(rows)] for name, log in self.logs.items()}
        size = 2 * len(samples) * self.fit.n_points
        blocks = np.array_split(np.arange(draws), min(-(-draws * size // MOST_VALUES), draws))
        parts = [{name: values[block] for name, values in samples.items()} for block in blocks]
        shares = self.seeds.shares_of(rows)
        moments = tuple(moment[list(rows)] * shares for moment in self.of_candidates)
        ratios = np.concatenate([self._variance_ratios(part, picked, moments) for part in parts])
        t = self._quantile(self.seeds.new(rows)) / self._quantile(0)
        low, high = np.quantile(t * np.sqrt(ratios), [0.025, 0.975])
        return float(low), float(high)

    def _variance_ratios(
        self, parameters: Mapping[str, Array], added: Mapping[str, Array], moments: Sequence[Array]
    ) -> Array:
        """Variance of the prediction with trials `added` over that without, [batch], for parameters [batch] by name.

        ``moments`` are the a and b of these trials. 1 where the prediction has no variance.
        """
        goal = read_inputs(self.fit.law, {name: [value] for name, value in self.target.items()})
        measured, new, at_target = (
            derivatives(self.fit, parameters, where) for where in (self.fit.points.logs, added, goal)
        )
        measured = whitened(self.fit, self.noise, measured)
        now = [(measured * moment[:, None]).swapaxes(1, 2) @ measured for moment in self.of_points]
        then = [each + (new * of[:, None]).swapaxes(1, 2) @ new for each, of in zip(now, moments, strict=True)]
        before, after = (
            (pull @ filling @ pull.swapaxes(1, 2))[:, 0, 0]
            for bread, filling in (now, then)
            for pull in [at_target @ inverted(bread)]
        )
        return np.asarray(np.divide(after, before, out=np.ones_like(before), where=before > 0))


def candidate_grid(fit: Fit, values: int, reach: float) -> dict[str, Array]:
    """Return a grid of trials, each input (values ** inputs,), from its smallest to ``reach`` times its largest value.

    Laws of params and tokens have their cost by 6ND.
    """
    spans = {name: (log.min(), log.max() + np.log(reach)) for name, log in fit.points.logs.items()}
    grid = np.meshgrid(*(np.geomspace(np.exp(low), np.exp(high), values) for low, high in spans.values()))
    return dict(zip(spans, (axis.ravel() for axis in grid), strict=True))


def _cost(candidates: Columns) -> Array | None:
    """FLOPs of every candidate, [n]; None without the columns for it."""
    present = list(candidates.keys())
    if "flops" in present:
        return positive_columns(candidates, ("flops",))["flops"]
    if "params" in present and "tokens" in present:
        sizes = positive_columns(candidates, ("params", "tokens"))
        return FLOPS_PER_PARAMETER_TOKEN * sizes["params"] * sizes["tokens"]
    return None
