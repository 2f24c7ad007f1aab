"""Compute-optimal allocation by the three approaches of Hoffmann et al. 2022 (arXiv 2203.15556).

Approach 1, in `envelope`: the best run at each compute, then a line. Here approach 2, `isoflop`: the vertex of a
parabola for each budget, then a line. Approach 3, in `closed_form`: from a fitted surface.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scalebench.advice.allocation import Allocation, Bias, Counting, count
from scalebench.advice.closed_form import BUDGET_TOLERANCE, Surfaces, closed_form, flops_law
from scalebench.advice.optima import Found, Without, lines_through, sweep_optima
from scalebench.advice.regression import LinearFit
from scalebench.advice.vertex import AtEdge
from scalebench.laws.columns import Columns, groups_within
from scalebench.laws.fit import Fit
from scalebench.laws.forms import Array, FitRefused

# Standard error of a budget's minimum over the range of its sizes from which that error is too noisy for a weight:
# with noise of half the depth of the parabola, 95 % intervals of weighted lines through five budgets held a in 91 %.
NOISY_SHARE = 0.1
BY_BUDGET = ("flops",)
LINE_DRAWS = 20_000  # draws of a line are cheap; the 2.5 % quantile of 1000 has an error of 5 %
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
