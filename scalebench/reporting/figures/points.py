"""Laws fitted to points from any trainer: what `fit`, `optimal`, `worth` and `tune` draw with `--plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN, groups_within
from scalebench.laws.forms import Array, FitRefused
from scalebench.reporting.quantities import NBSP, quantity, significant, symbol, tick
from scalebench.reporting.svg import INK, MUTED, PAPER, Marks, legend, log_ticks, series_style

if TYPE_CHECKING:
    from scalebench.advice.allocation import Allocation
    from scalebench.advice.multiplier import ComputeMultiplier
    from scalebench.advice.optima import OptimumLaw, Refused
    from scalebench.laws import Fit

RowNumbers = NDArray[np.intp]

MOST_CURVES = 12  # of a law of two inputs: one for each value of the second
GROUPS = 6  # of residuals, by the second input
SAME = 0.05  # values of an input within 5 % of each other share a curve
DENSE = 80  # places on a curve
PALEST = 0.88  # of viridis, from dark to light: what is beyond cannot be seen on white


def fit_figure(marks: Marks, fit: Fit) -> None:
    """Points and the fitted law against its first input, with a curve for each value of the second or each compute.

    Of a law that would have too many curves the residuals are drawn.
    """
    names, logs = fit.law.inputs, fit.points.logs
    if len(names) == 1:
        _curve(marks, fit)
    elif len(names) == 2 and len(levels := _levels(logs[names[1]])) <= MOST_CURVES:
        _curves(marks, fit, levels)
    elif set(names) == {"params", "tokens"} and len(budgets := _levels(_log_flops(logs))) <= MOST_CURVES:
        _budget_curves(marks, fit, budgets)
    else:
        _residuals(marks, fit)
    _log_axis(marks, names[0], np.exp(logs[names[0]]))
    _loss_axis(marks, fit)
    legend(marks, title=_title(fit), direct=False)


def _title(fit: Fit) -> str:
    values = ", ".join(
        f"{symbol(name)} = {significant(value)}" for name, value in fit.parameters.items() if np.isfinite(value)
    )
    return f"{fit.law.name}: {values}"


def _curve(marks: Marks, fit: Fit) -> None:
    """The points and the curve of a law of one input, with the 95 % band of its mean."""
    x = np.exp(fit.points.logs[fit.law.inputs[0]])
    _law_and_band(marks, fit, np.geomspace(x.min(), x.max(), DENSE), series_style(0)["color"], "fitted law")
    marks.draw(x, fit.points.response, ["" for _ in x], color=INK, marker="o", markersize=4, label="points")


def _law_and_band(marks: Marks, fit: Fit, places: Array, color: str, label: str) -> None:
    (name,) = fit.law.inputs
    marks.axes.plot(places, fit.predict({name: places}), color=color, label=label)
    with suppress(FitRefused):  # zero degrees of freedom
        marks.band(places, *fit.prediction_interval({name: places}), color)


def _levels(log: Array) -> list[RowNumbers]:
    """The rows of each value of an input, given by its logs [n], in ascending order."""
    member = groups_within(log, SAME)
    groups = [np.flatnonzero(member == group) for group in np.unique(member)]
    return sorted(groups, key=lambda rows: float(log[rows].mean()))


def _log_flops(logs: Mapping[str, Array]) -> Array:
    return np.asarray(np.log(FLOPS_PER_PARAMETER_TOKEN) + logs["params"] + logs["tokens"])


def _curves(marks: Marks, fit: Fit, levels: Sequence[RowNumbers]) -> None:
    """A curve over the first input for each value of the second, with its points."""
    (first, second), logs = fit.law.inputs, fit.points.logs
    places = np.geomspace(np.exp(logs[first].min()), np.exp(logs[first].max()), DENSE)
    for color, rows in zip(_ordered(len(levels)), levels, strict=True):
        level = float(np.exp(logs[second][rows].mean()))
        curve = fit.predict({first: places, second: np.full(DENSE, level)})
        _curve_and_points(marks, fit, (places, curve), rows, color, f"{second} {quantity(level)}")


def _budget_curves(marks: Marks, fit: Fit, budgets: Sequence[RowNumbers]) -> None:
    """A curve over the parameters for each compute 6ND, with its points."""
    first, logs = fit.law.inputs[0], fit.points.logs
    for color, rows in zip(_ordered(len(budgets)), budgets, strict=True):
        flops = float(np.exp(_log_flops(logs)[rows].mean()))
        params = np.exp(np.linspace(logs["params"][rows].min(), logs["params"][rows].max(), DENSE))
        inputs = {"params": params, "tokens": flops / (FLOPS_PER_PARAMETER_TOKEN * params)}
        curve = fit.predict(inputs)
        _curve_and_points(marks, fit, (inputs[first], curve), rows, color, f"{_power(flops)} FLOP")


def _curve_and_points(
    marks: Marks, fit: Fit, curve: tuple[Array, Array], rows: RowNumbers, color: str, label: str
) -> None:
    marks.axes.plot(*curve, color=color)
    x = np.exp(fit.points.logs[fit.law.inputs[0]][rows])
    marks.draw(x, fit.points.response[rows], ["" for _ in x], color=color, marker="o", markersize=4, label=label)


def _ordered(n: int) -> list[str]:
    """A colour for each of n values in ascending order."""
    import matplotlib as mpl

    return [mpl.colors.to_hex(mpl.colormaps["viridis"](place)) for place in np.linspace(0, PALEST, n)]


def _residuals(marks: Marks, fit: Fit) -> None:
    """Each point's residual against the first input; coloured by the second."""
    values = {name: np.exp(log) for name, log in fit.points.logs.items()}
    (first, second), by_second = fit.law.inputs[:2], values[fit.law.inputs[1]]
    error = 100 * (fit.points.response / fit.predict(values) - 1)
    ends = np.quantile(by_second, np.linspace(0, 1, GROUPS + 1))
    member = np.clip(np.searchsorted(ends, by_second, side="right") - 1, 0, GROUPS - 1)
    for group, color in enumerate(_ordered(GROUPS)):
        if len(rows := np.flatnonzero(member == group)):
            range_of = " to ".join(dict.fromkeys(quantity(end(by_second[rows])) for end in (min, max)))
            marks.draw(values[first][rows], error[rows], ["" for _ in rows], color=color, marker="o", markersize=4,
                       label=f"{second} {range_of}")  # fmt: skip
    marks.axes.axhline(0, color=MUTED, linewidth=1.2)
    marks.axes.set_ylabel(f"residual (% of fitted {fit.law.response})")


def _loss_axis(marks: Marks, fit: Fit) -> None:
    """Label y as the law's response, logarithmic where it spans more than a factor of three."""
    if marks.axes.get_ylabel():
        return
    low, high = float(fit.points.response.min()), float(fit.points.response.max())
    if high > 3 * low:
        _log(marks, "y")
    marks.axes.set_ylabel(fit.law.response)


def _log_axis(marks: Marks, name: str, values: Array) -> None:
    """Label x as an input, logarithmic where it spans more than a factor of two."""
    if values.max() > 2 * values.min():
        _log(marks, "x")
    marks.axes.set_xlabel(name)


def _log(marks: Marks, side: str) -> None:
    axes = marks.axes
    axes.set(**{f"{side}scale": "log"})
    axis, (low, high) = (axes.xaxis, axes.get_xlim()) if side == "x" else (axes.yaxis, axes.get_ylim())
    log_ticks(axis, low, high, dense=1000)
    axis.set_major_formatter(lambda value, _: _plain(value))


def _plain(value: float) -> str:
    """A tick as short as possible: 30 M, 0.003."""
    number, _, prefix = quantity(value).partition(NBSP)
    return f"{float(number):g}{NBSP}{prefix}" if prefix else tick(value)


def _power(value: float) -> str:
    """A number of FLOPs as people write it: 1e21, 2.5e20."""
    number, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(number):g}e{int(exponent)}"


def worth_figure(marks: Marks, baseline: Fit, changed: Fit, worth: ComputeMultiplier) -> None:
    """Loss against compute before and after a change, and the compute that each needs for the same loss."""
    needed = worth.baseline_flops, worth.changed_flops
    for i, (fit, flops, label) in enumerate(zip((baseline, changed), needed, ("baseline", "changed"), strict=True)):
        style, (name,) = series_style(i), fit.law.inputs
        x = np.exp(fit.points.logs[name])
        places = np.geomspace(min(x.min(), flops), max(x.max(), flops), DENSE)
        _law_and_band(marks, fit, places, style["color"], label)
        marks.draw(x, fit.points.response, ["" for _ in x], **style, markersize=4)
    marks.axes.hlines(worth.loss, min(needed), max(needed), color=INK, linestyle="--", linewidth=1.2,
                      label=f"×{significant(worth.multiplier)} at loss {significant(worth.loss, 4)}")  # fmt: skip
    _log(marks, "x")
    marks.axes.xaxis.set_major_formatter(lambda value, _: _power(value))
    marks.axes.set_xlabel("training compute (FLOP)")
    _loss_axis(marks, baseline)
    legend(marks, direct=False)


def allocation_figure(marks: Marks, allocated: Sequence[Allocation], budgets: Sequence[float], spent: Array) -> None:
    """N* (solid) and D* (dashed) by each approach, over the compute `spent` [n] on the points and the budgets."""
    span = float(spent.min()), float(spent.max())
    flops = np.geomspace(min(*span, *budgets), max(*span, *budgets), DENSE)
    for i, allocation in enumerate(allocated):
        _allocated(marks, allocation, flops, series_style(i)["color"])
    marks.axes.axvspan(*span, color=MUTED, alpha=0.08, linewidth=0)
    for side in ("x", "y"):
        _log(marks, side)
    marks.axes.xaxis.set_major_formatter(lambda value, _: _power(value))
    marks.axes.set_xlabel(f"training compute C (FLOP, {allocated[0].counting.flops}); grey: the points")
    marks.axes.set_ylabel("parameters N*, tokens D*")
    legend(marks, direct=False)


def _allocated(marks: Marks, allocation: Allocation, flops: Array, color: str) -> None:
    """Both lines of an approach with their bands, where it determines them, and the minima that it found."""
    determined, ends = allocation.bands(flops)
    for name, label, line in (("params", "N*", "-"), ("tokens", "D*", "--")):
        best = np.where(determined, getattr(allocation, name)(flops), np.nan)
        marks.axes.plot(flops, best, color=color, linestyle=line, label=f"{label}, approach {allocation.approach}")
        if name in ends:
            low, high = ends[name]
            marks.band(flops, np.where(determined, low, np.nan), np.where(determined, high, np.nan), color)
    x, y = ([budget for budget, _ in allocation.optima], [optimum.x for _, optimum in allocation.optima])
    marks.draw(x, y, ["" for _ in x], color=color, marker="o", markersize=4)


def optima_figure(marks: Marks, laws: Sequence[OptimumLaw], at: float | None) -> None:
    """The best value of each swept column against the size, its law with the 95 % band, and optima beyond an edge."""
    (against,) = laws[0].exponents
    used = [group[against] for group, _ in laws[0].optima]
    sizes = [*used, *(refused.group[against] for refused in laws[0].refused), *([] if at is None else [at])]
    places = np.geomspace(min(sizes), max(sizes), DENSE)
    for i, law in enumerate(laws):
        style = series_style(i)
        low, high = np.transpose([law.prediction_interval(**{against: place}) for place in places])
        line = [law.predict(**{against: place}) for place in places]
        marks.axes.plot(places, line, color=style["color"], label=f"law of {law.optimised}")
        marks.band(places, low, high, style["color"])
        marks.draw(used, [optimum.x for _, optimum in law.optima], ["" for _ in used], **style,
                   label=f"best {law.optimised} of a sweep")  # fmt: skip
    _edges(marks, laws, against)
    for side in ("x", "y"):
        _log(marks, side)
    marks.axes.set_xlabel(against)
    marks.axes.set_ylabel(" and ".join(law.optimised for law in laws))
    legend(marks, direct=False)


def _edges(marks: Marks, laws: Sequence[OptimumLaw], against: str) -> None:
    """Triangles that point from the edge of a sweep to its best value; hollow where the line is without it."""
    colors: dict[str, Any] = {law.optimised: series_style(i)["color"] for i, law in enumerate(laws)}
    for refused in laws[0].refused:
        if (edge := refused.edge) is None:
            continue
        color = colors[edge.column]
        marks.draw([refused.group[against]], [edge.limit], [""], color=color if refused.counted else PAPER,
                   markeredgecolor=color, marker="^" if edge.side == "above" else "v", markersize=7,
                   label=_edge_label(marks, refused, edge.side))  # fmt: skip


def _edge_label(marks: Marks, refused: Refused, side: str) -> str | None:
    """The label of a triangle, the first of its kind alone."""
    label = f"best value {side} its sweep, {'counted as such' if refused.counted else 'left out'}"
    return None if label in marks.axes.get_legend_handles_labels()[1] else label
