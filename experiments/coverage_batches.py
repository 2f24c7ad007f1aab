"""Fits and bootstraps of many studies of equal inputs at once, each as `fit` and `Fit.bootstrap` make it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scalebench.laws.catalogue import select_law
from scalebench.laws.fit import Fit
from scalebench.laws.forms import Array
from scalebench.laws.intervals.bootstrap import (
    Bootstrap,
    blind_to_growth,
    chosen,
    description,
    noise_for,
    replicates,
    scale_of_resamples,
    with_rates,
)
from scalebench.laws.points import check_design, read_points
from scalebench.laws.posing import bound_offset, pose
from scalebench.laws.problem import Problem
from scalebench.laws.solver import polish
from scalebench.laws.starts import starts

SETTINGS = {"loss": "huber", "delta": 1e-3, "space": "log", "fixed": {}, "width": 1e-3, "weighted": False}


def stacked(problems: Sequence[Problem], targets: Sequence[Array], weights: Sequence[Array] | None = None) -> Problem:
    """One problem of the rows of `targets`, each [k, n], with the bounds of the problem that they belong to."""
    counts = [len(target) for target in targets]
    bounds = {
        side: np.repeat([getattr(part, side) for part in problems], counts, axis=0) for side in ("lower", "upper")
    }
    rows = {"target": np.concatenate(targets), **({} if weights is None else {"weights": np.concatenate(weights)})}
    return replace(problems[0], **rows, **bounds)


def split(values: Array, counts: Sequence[int]) -> list[Array]:
    """The rows of each study."""
    return np.split(values, np.cumsum(counts)[:-1])


def fits(law: str, studies: Sequence[dict[str, Array]]) -> list[Fit]:
    """The fits of studies of equal inputs, their least squares included. Raises FitRefused where the design does."""
    form = select_law(law)
    points = [read_points(form, study) for study in studies]
    check_design(form, points[0], len(form.parameters))
    problems = [pose(form, read, "log", np.ones(len(read.response)), {}, "huber") for read in points]
    begun = [starts(problem) for problem in problems]
    counts = [len(theta) for theta in begun]
    whole = stacked(problems, [np.tile(p.target, (k, 1)) for p, k in zip(problems, counts, strict=True)])
    ends = [split(part, counts) for part in polish(whole, np.concatenate(begun), 1e-3)]
    fitted = []
    for problem, read, theta, values, done in zip(problems, points, *ends, strict=True):
        best = int(values.argmin())
        bounded = bound_offset(problem, read, theta[best])
        fitted.append(
            Fit.ended_at(bounded, read, dict(SETTINGS), theta=theta[best], values=values, done=bool(done[best]))
        )
    again = stacked([fit.problem for fit in fitted], [fit.problem.target[None] for fit in fitted])
    squares = polish(again, np.stack([fit.theta for fit in fitted]), np.inf)[0]
    for fit, theta in zip(fitted, squares, strict=True):
        vars(fit)["least_squares"] = theta
    return fitted


def bootstraps(fitted: Sequence[Fit], n: int, seeds: Sequence[int], method: str) -> list[Bootstrap]:
    """The bootstrap of each fit. Raises FitRefused where a fit alone would be refused one."""
    drawn = [chosen(fit) if method == "auto" else (method, "as requested") for fit in fitted]
    targets, weights, scales, noises = [], [], [], []
    for fit, seed, (how, _) in zip(fitted, seeds, drawn, strict=True):
        rng, noise = np.random.default_rng(seed), noise_for(fit, method)
        resampled = scale_of_resamples(fit, n, rng) if how == "resample" else None
        target, weight, scale = replicates(fit, noise, how, n, rng)
        targets.append(np.broadcast_to(target, (n, fit.n_points)))
        weights.append(np.broadcast_to(weight, (n, fit.n_points)))
        scales.append(with_rates(noise, scale or resampled, seed))
        noises.append(noise)
    whole = stacked([fit.problem for fit in fitted], targets, weights)
    theta = polish(whole, np.repeat([fit.theta for fit in fitted], n, axis=0), 1e-3)[0]
    samples = {name: values.reshape(len(fitted), n) for name, values in whole.parameters(theta).items()}
    return [
        Bootstrap(
            fit,
            description(fit, how, noises[i]),
            how,
            why + (blind_to_growth(noises[i]) if method == "auto" else ""),
            {k: v[i] for k, v in samples.items()},
            noises[i],
            scales[i],
            n,
            seeds[i],
        )
        for i, (fit, (how, why)) in enumerate(zip(fitted, drawn, strict=True))
    ]
