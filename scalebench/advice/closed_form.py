"""Approach 3: the compute-optimal allocation in closed form from a fitted surface, under each counting convention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalebench.advice.allocation import Allocation, Counting, count
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN, Columns
from scalebench.laws.fit import Fit, fit
from scalebench.laws.forms import Array, FitRefused

FURTHEST_LOG = 600.0  # of a constant of N* or D*: at any budget the numbers are floats
BUDGET_TOLERANCE = 0.05  # points within 5 % of each other's compute share a budget
SIX_N_D = (float(np.log(FLOPS_PER_PARAMETER_TOKEN)), 1.0, 1.0)  # (ln k, p, q) of C = k N^p D^q


def flops_law(columns: Mapping[str, Array]) -> tuple[float, float, float]:
    """(ln k, p, q) of C = k N^p D^q through the points by least squares; (ln 6, 1, 1) where all are within 5 % of 6ND.

    Exact counts are sums (matrices, attention, vocabulary), so the power law holds near the points only.

    Raises FitRefused where params and tokens do not vary independently and C is not 6ND.
    """
    logs = {name: np.log(columns[name]) for name in ("params", "tokens", "flops")}
    ratio = logs["flops"] - logs["params"] - logs["tokens"]
    if np.abs(ratio - SIX_N_D[0]).max() < BUDGET_TOLERANCE:
        return SIX_N_D
    design = np.stack([np.ones(len(ratio)), logs["params"], logs["tokens"]], axis=1)
    centred = design[:, 1:] - design[:, 1:].mean(axis=0)
    if np.linalg.svd(centred, compute_uv=False)[-1] < 1e-3 * np.sqrt(len(ratio)):
        raise FitRefused("params and tokens lie on one line in log space; exact FLOPs need each at a fixed other")
    level, p, q = np.linalg.lstsq(design, logs["flops"], rcond=None)[0]
    return float(level), float(p), float(q)


def closed_form(parameters: Mapping[str, ArrayLike], cost: tuple[float, float, float] | None = None) -> Array:
    """(ln params_constant, a, ln tokens_constant, b), [batch, 4], that minimise A N^-alpha + B D^-beta at cost C.

    `cost` is (ln k, p, q) of C = k N^p D^q, 6ND by default. At the minimum alpha A N^-alpha / p = beta B D^-beta / q;
    with p = q = 1 that is equation 4 of Hoffmann et al.: a = beta / (alpha + beta).
    """
    log_k, p, q = cost or SIX_N_D
    A, alpha, B, beta = (np.atleast_1d(np.asarray(parameters[k], dtype=float)) for k in ("A", "alpha", "B", "beta"))
    with np.errstate(divide="ignore", invalid="ignore"):  # a refit may switch a term off: its optimum is infinite
        balance = np.log(alpha * A * q) - np.log(beta * B * p)
    total = alpha * q + beta * p
    log_params = (q * balance - beta * log_k) / total
    log_tokens = (-p * balance - alpha * log_k) / total
    return np.stack([log_params, beta / total, log_tokens, alpha / total], axis=1)


def _within_range(drawn: Array) -> Array:
    """Return refits, [n, 4], with infinite optima at the ends of the range: without them intervals are too narrow.

    Refits without either term have no optimum, and stand at one end and the other in turn.
    """
    nowhere = np.flatnonzero(np.isnan(drawn).any(axis=1))
    ends = np.where(np.arange(len(nowhere)) % 2, FURTHEST_LOG, -FURTHEST_LOG)
    drawn = drawn.copy()
    drawn[nowhere, 0], drawn[nowhere, 2] = ends, -ends
    return np.clip(drawn, -FURTHEST_LOG, FURTHEST_LOG)


def parametric(
    surface: Fit,
    counting: Counting | None = None,
    *,
    cost: tuple[float, float, float] | None = None,
    n: int | None = None,
    seed: int | None = None,
) -> Allocation:
    """Approach 3: closed form from a fit with parameters A, alpha, B, beta; intervals from its bootstrap of `n` refits.

    `n` and `seed` default to those of `surface.refits`. `counting` is the convention of the fitted points; `cost` as in
    `closed_form`, from `flops_law`, for exact FLOPs. Raises FitRefused for another law, and if a term of the law is
    switched off.
    """
    if set(surface.law.inputs) != {"params", "tokens"} or not {"A", "alpha", "B", "beta"} <= set(surface.parameters):
        raise FitRefused(
            f"law {surface.law.name} of {', '.join(surface.law.inputs)} has no closed form; Approach 3 needs A, "
            "alpha, B and beta of params and tokens: fit chinchilla"
        )
    if surface.status == "max_iterations" or surface.starts_agreeing < 2:
        agreeing = f"{surface.starts_agreeing} of {surface.starts} starts agree"
        raise FitRefused(
            f"the fit did not settle (status {surface.status}, {agreeing}): the points determine no optimum"
        )
    if not surface.parameters["A"] * surface.parameters["B"] > 0:
        raise FitRefused("a fitted coefficient is 0, so loss does not fall with both sizes; add points that vary them")
    draws, method = None, ""
    try:
        boot = surface.bootstrap(n, seed)
        draws, method = _within_range(closed_form(boot.samples, cost)), boot.method
    except FitRefused as reason:
        method = str(reason)
    coefficients = closed_form(surface.parameters, cost)[0]
    used = counting or Counting(flops="6ND" if cost is None else "exact")
    agreeing = f"{surface.starts_agreeing} of {surface.starts} starts agree"
    sound = surface.status == "converged" and surface.starts_agreeing > surface.starts / 2
    notes = () if sound else (f"status of the fit: {surface.status}, {agreeing}",)
    return Allocation(3, used, coefficients, draws, method, notes)


class Surfaces:
    """The fitted surfaces of points: one for each count of parameters, whichever way FLOPs are counted."""

    def __init__(self, points: Columns) -> None:
        self.points = points
        self._fits: dict[str, Fit] = {}

    def fitted(self, counting: Counting) -> Fit:
        """The surface under a convention. Raises FitRefused."""
        if counting.params not in self._fits:
            columns = count(self.points, counting)
            fitted = {name: columns[name] for name in ("params", "tokens", "loss")}
            self._fits[counting.params] = fit(fitted, "chinchilla")
        return self._fits[counting.params]

    def allocation(self, counting: Counting, n: int | None = None) -> Allocation:
        """Approach 3 under a convention, with intervals of `n` refits as `parametric` has them. Raises FitRefused."""
        columns, surface = count(self.points, counting), self.fitted(counting)
        cost = flops_law(columns) if counting.flops == "exact" else None
        return parametric(surface, counting, cost=cost, n=n)


def conventions(points: Columns | Surfaces, flops: float, n: int | None = None) -> list[dict[str, Any]]:
    """Approach 3 under each counting convention: one row each with a, b and their intervals, N and D.

    N and D are the optimum at `flops`, counted by that row's convention. If a column is missing or the fit is refused,
    numbers are None and the reason is under `refused`. Surfaces that are fitted already are not fitted again.
    """
    surfaces = points if isinstance(points, Surfaces) else Surfaces(points)
    counts = [Counting(p, f) for p in ("total", "non_embedding") for f in ("6ND", "exact")]
    return [_convention(surfaces, counting, flops, n) for counting in counts]


def _convention(surfaces: Surfaces, counting: Counting, flops: float, n: int | None) -> dict[str, Any]:
    names = {"counting_params": counting.params, "counting_flops": counting.flops}
    try:
        allocation = surfaces.allocation(counting, n)
    except FitRefused as reason:
        return {**names, **dict.fromkeys(("a", "b", "N", "D", "a_interval", "b_interval")), "refused": str(reason)}
    drawn = allocation.draws is not None
    return {
        **names,
        "a": allocation.a,
        "b": allocation.b,
        "N": float(allocation.params(flops)[0]),
        "D": float(allocation.tokens(flops)[0]),
        "a_interval": allocation.interval("a") if drawn else None,
        "b_interval": allocation.interval("b") if drawn else None,
        "refused": None,
    }
