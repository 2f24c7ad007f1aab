"""Compute-optimal allocation by the three approaches of Hoffmann et al. 2022 (arXiv 2203.15556).

Approach 1, in `envelope`: the best run at each compute, then a line. Here approach 2, `isoflop`: the vertex of a
parabola for each budget, then a line; and approach 3, `parametric`: closed form from a fitted surface. `conventions`
compares the conventions for counting N and C.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalebench.advice.allocation import Allocation, Bias, Counting, count
from scalebench.advice.optima import Found, Without, lines_through, sweep_optima
from scalebench.advice.regression import LinearFit
from scalebench.advice.vertex import AtEdge
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN, Columns, groups_within
from scalebench.laws.fit import Fit, fit
from scalebench.laws.forms import Array, FitRefused

# Standard error of a budget's minimum over the range of its sizes from which that error is too noisy for a weight:
# with noise of half the depth of the parabola, 95 % intervals of weighted lines through five budgets held a in 91 %.
NOISY_SHARE = 0.1
BY_BUDGET = ("flops",)
FURTHEST_LOG = 600.0  # of a constant of N* or D*: at any budget the numbers are floats
LINE_DRAWS = 20_000  # draws of a line are cheap; the 2.5 % quantile of 1000 has an error of 5 %
BUDGET_TOLERANCE = 0.05  # points within 5 % of each other's compute share a budget
SIX_N_D = (float(np.log(FLOPS_PER_PARAMETER_TOKEN)), 1.0, 1.0)  # (ln k, p, q) of C = k N^p D^q
BIAS_NOTE = (
    "a parabola in ln N is exact only where alpha = beta and the grid is centred on the optimum: Approach 2 is biased "
    "even without noise, more so the wider and the further off centre its grid (`bias` is its value for this grid)"
)


def isoflop(
    points: Columns,
    counting: Counting | None = None,
    *,
    neighbours: int | None = None,
    weighted: bool = True,
    seed: int = 0,
    surfaces: Surfaces | None = None,
) -> Allocation:
    """Approach 2. Columns as `count` takes them; points within 5 % of each other's FLOPs are one budget.

    `neighbours`: number of points used on each side of the best, None for all. `weighted=False` gives every budget the
    same weight in the line, as in published fits; so does noise that hides where the minima are, which `notes` say.
    Budgets without an interior minimum are in `refused`; the line counts the minimum of one at an edge of its sizes as
    beyond that edge (see `censored`). Intervals are of the lines as they are and of lines without the `bias` of this
    grid, so that they hold the optimum despite it. `surfaces` are those of the points, where they are used again.
    Raises FitRefused with fewer than three budgets left.
    """
    counting = counting or Counting()
    columns, sweeps, without = minima_by_budget(points, counting, neighbours)
    if len(sweeps) < 3:
        why = f"; the first without one: {without[0][1]}" if without else ""
        raise FitRefused(
            f"{len(sweeps)} of {len(sweeps) + len(without)} budgets have an interior minimum; Approach 2 needs 3: "
            f"add budgets or widen their sizes{why}"
        )
    mirrored = _token_optima(columns, sweeps, without, neighbours)
    budget, share = _hidden(columns, sweeps)
    weighted = weighted and share <= NOISY_SHARE
    (by_size,), refused = lines_through(sweeps, without, ("params",), BY_BUDGET, weighted=weighted)
    (by_tokens,), _ = lines_through(*mirrored, ("tokens",), BY_BUDGET, weighted=weighted)
    lines = by_size, by_tokens
    freedom, draws = lines[0].degrees_of_freedom, _opposed(*lines, seed)
    off = _off_on_this_grid(surfaces or Surfaces(points), counting, columns, neighbours, weighted)
    method = f"parametric bootstrap of the line through {len(sweeps)} minima, t with {freedom} degrees of freedom"
    return Allocation(
        approach=2,
        counting=counting,
        coefficients=np.concatenate([line.coefficients for line in lines]),
        draws=draws if off is None else np.concatenate([draws, draws - off]),
        method=method if off is None else f"{method}, with and without the bias",
        notes=(BIAS_NOTE, *([_noise_note(budget, share)] if share > NOISY_SHARE else [])),
        optima=tuple((group["flops"], optimum) for group, (optimum,) in sweeps),
        refused=refused,
        bias=None if off is None else _bias(off, columns),
    )


def minima_by_budget(
    points: Columns, counting: Counting, neighbours: int | None = None
) -> tuple[dict[str, Array], Found, Without]:
    """The columns of the points, FLOPs being those of their budget, the minima of budgets, and budgets without one.

    Raises FitRefused for a missing column.
    """
    columns = count(points, counting)
    columns["flops"] = _budgets(columns["flops"])
    return columns, *sweep_optima(columns, ("params",), BY_BUDGET, neighbours)


def _hidden(columns: Mapping[str, Array], sweeps: Found) -> tuple[float, float]:
    """The budget whose minimum noise moves farthest, and by what share of the range of its sizes, in logs."""
    optima = [optimum for _, (optimum,) in sweeps]
    spare = sum(optimum.degrees_of_freedom for optimum in optima)
    noise = np.sqrt(sum(optimum.residual_squares for optimum in optima) / spare) if spare else 0.0
    shares = [
        noise * optimum.gain / float(np.ptp(np.log(columns["params"][columns["flops"] == group["flops"]])))
        for group, (optimum,) in sweeps
    ]
    worst = int(np.argmax(shares))
    return sweeps[worst][0]["flops"], float(shares[worst])


def _noise_note(budget: float, share: float) -> str:
    return (
        f"noise moves the minimum at {budget:.3g} FLOPs by {100 * share:.0f} % of the range of its sizes, in logs, so "
        "that how far is not known well, and every budget has the same weight: repeat runs, or widen the sizes of each "
        "budget"
    )


def _opposed(sizes: LinearFit, tokens: LinearFit, seed: int) -> Array:
    """Draws of both lines, [n, 4], with opposite errors: at a fixed budget, more parameters mean fewer tokens."""
    return np.concatenate(
        [sizes.draws(LINE_DRAWS, seed), 2 * tokens.coefficients - tokens.draws(LINE_DRAWS, seed)], axis=1
    )


def _token_optima(
    columns: Mapping[str, Array], sweeps: Found, without: Without, neighbours: int | None
) -> tuple[Found, Without]:
    """The minima in tokens of the budgets that have one in parameters, or have it beyond an edge."""
    placed = [group["flops"] for group, _ in sweeps]
    placed += [group["flops"] for group, reason in without if isinstance(reason, AtEdge)]
    used = np.isin(columns["flops"], placed)
    return sweep_optima({name: column[used] for name, column in columns.items()}, ("tokens",), BY_BUDGET, neighbours)


def _budgets(flops: Array) -> Array:
    """Each point's compute replaced by the geometric mean of its budget, [n]."""
    log = np.log(flops)
    budget = groups_within(log, BUDGET_TOLERANCE)
    return np.asarray(np.exp(np.bincount(budget, log) / np.bincount(budget))[budget])


def _off_on_this_grid(
    surfaces: Surfaces, counting: Counting, columns: Mapping[str, Array], neighbours: int | None, weighted: bool
) -> Array | None:
    """`_off` on the surface fitted to these points; None if that fit or its optima are refused, or there is none."""
    try:
        off = _off(surfaces.fitted(counting), columns, neighbours, weighted)
    except FitRefused:
        return None
    return off if np.isfinite(off).all() else None


def approach_2_bias(
    surface: Fit, columns: Mapping[str, Array], neighbours: int | None = None, weighted: bool = True
) -> Bias:
    """Bias of Approach 2 on the noise-free `surface` at the params, tokens and flops of `columns`.

    Raises FitRefused where fewer than three budgets have an interior minimum on that surface.
    """
    return _bias(_off(surface, columns, neighbours, weighted), columns)


def _off(surface: Fit, columns: Mapping[str, Array], neighbours: int | None, weighted: bool) -> Array:
    """Coefficients of Approach 2 on the noise-free `surface`, less the true ones, [4]. Raises FitRefused."""
    smooth = {**columns, "loss": surface.predict({name: columns[name] for name in ("params", "tokens")})}
    lines: list[LinearFit] = []
    for side in ("params", "tokens"):
        sweeps, without = sweep_optima(smooth, (side,), BY_BUDGET, neighbours)
        lines += lines_through(sweeps, without, (side,), BY_BUDGET, weighted=weighted)[0]
    true = closed_form(surface.parameters, flops_law(columns))[0]
    return np.asarray(np.concatenate([line.coefficients for line in lines]) - true)


def _bias(off: Array, columns: Mapping[str, Array]) -> Bias:
    log = np.log(float(columns["flops"].max()))
    off_there, off_beyond = (float(np.exp(off[2] + off[3] * x)) for x in (log, log + np.log(1000)))
    return Bias(float(off[1]), float(off[3]), float(np.exp(log)), off_there, off_beyond)


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
