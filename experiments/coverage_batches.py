"""Fits and bootstraps of many studies of equal inputs at once, each as `fit` and `Fit.bootstrap` make it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scalebench.laws.catalogue import select_law
from scalebench.laws.fit import Fit
from scalebench.laws.forms import Array
from scalebench.laws.intervals.bootstrap import Bootstrap, chosen, description, replicates
from scalebench.laws.intervals.noise import estimate_noise
from scalebench.laws.points import check_design, read_points
from scalebench.laws.posing import bound_offset, pose
from scalebench.laws.problem import Problem
from scalebench.laws.solver import polish, starts

SETTINGS = {"loss": "huber", "delta": 1e-3, "space": "log", "fixed": {}, "width": 1e-3, "weighted": False}


def stacked(problems: Sequence[Problem], targets: Sequence[Array], weights: Sequence[Array] | None = None) -> Problem:
    """One problem of the rows of `targets`, each [k, n], with the bounds of the problem that they belong to."""
    counts = [len(target) for target in targets]
    bounds = {side: np.repeat([getattr(one, side) for one in problems], counts, axis=0) for side in ("lower", "upper")}
    rows = {"target": np.concatenate(targets), **({} if weights is None else {"weights": np.concatenate(weights)})}
    return replace(problems[0], **rows, **bounds)


def split(values: Array, counts: Sequence[int]) -> list[Array]:
    """The rows of each study."""
    return np.split(values, np.cumsum(counts)[:-1])


def fits(law: str, studies: Sequence[dict[str, Array]]) -> list[Fit]:
    """The fits of studies of equal inputs, their least squares included. Raises FitRefused where the design does."""
    form = select_law(law)
    points = [read_points(form, one) for one in studies]
    check_design(form, points[0], len(form.parameters))
    problems = [pose(form, one, "log", np.ones(len(one.response)), {}, "huber") for one in points]
    begun = [starts(problem) for problem in problems]
    counts = [len(one) for one in begun]
    whole = stacked(problems, [np.tile(p.target, (k, 1)) for p, k in zip(problems, counts, strict=True)])
    ends = [split(part, counts) for part in polish(whole, np.concatenate(begun), 1e-3)]
    found = []
    for problem, one, theta, values, done in zip(problems, points, *ends, strict=True):
        best = int(values.argmin())
        bounded = bound_offset(problem, one, theta[best])
        found.append(Fit.at(bounded, one, dict(SETTINGS), theta=theta[best], values=values, done=bool(done[best])))
    again = stacked([one.problem for one in found], [one.problem.target[None] for one in found])
    squares = polish(again, np.stack([one.theta for one in found]), np.inf)[0]
    for one, theta in zip(found, squares, strict=True):
        vars(one)["least_squares"] = theta
    return found


def bootstraps(found: Sequence[Fit], n: int, seeds: Sequence[int], method: str) -> list[Bootstrap]:
    """The bootstrap of each fit. Raises FitRefused where a fit alone would not carry one."""
    drawn = [chosen(one) if method == "auto" else (method, "as asked") for one in found]
    targets, weights, inflations, noises = [], [], [], []
    for one, seed, (how, _) in zip(found, seeds, drawn, strict=True):
        rng, noise = np.random.default_rng(seed), estimate_noise(one)
        freedom = one.degrees_of_freedom
        resampled = np.sqrt(freedom / rng.chisquare(freedom, size=n)) if how == "resample" else None
        target, weight, factor = replicates(one, noise, how, n, rng)
        targets.append(np.broadcast_to(target, (n, one.n_points)))
        weights.append(np.broadcast_to(weight, (n, one.n_points)))
        inflations.append(factor if resampled is None else resampled)
        noises.append(noise)
    whole = stacked([one.problem for one in found], targets, weights)
    theta = polish(whole, np.repeat([one.theta for one in found], n, axis=0), 1e-3)[0]
    samples = {name: values.reshape(len(found), n) for name, values in whole.parameters(theta).items()}
    return [
        Bootstrap(
            one,
            description(one, how),
            how,
            why,
            {k: v[i] for k, v in samples.items()},
            noises[i],
            inflations[i],
            n,
            seeds[i],
        )
        for i, (one, (how, why)) in enumerate(zip(found, drawn, strict=True))
    ]
