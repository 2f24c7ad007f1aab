"""The command `tune`: how the best value of a swept column, or the joint best of several, moves with size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scalebench.analysis.sweep import diverged_line, optimum_laws_of
from scalebench.cli.output import print_json, say, say_written, table, warn
from scalebench.errors import InputError, number_of
from scalebench.laws import FitRefused
from scalebench.reporting.figures.points import optima_figure
from scalebench.reporting.pictures import check_plot, draw_plot
from scalebench.reporting.quantities import bounded, quantity, significant

if TYPE_CHECKING:
    from scalebench.advice.optima import OptimumLaw

At = tuple[float, float, float]  # a value and the ends of its interval


def run_tune(
    path: Path,
    optimised: Sequence[str],
    against: Sequence[str],
    loss_column: str | None,
    replicates: Sequence[str],
    where: str | None,
    sizes: Mapping[str, float],
    plot: Path | None,
    *,
    as_json: bool,
) -> int:
    """Print the law of the best value of each swept column, and the best values at the requested sizes.

    Draws them into ``plot`` if that is a file.
    """
    check_plot(plot)
    if plot is not None and len(against) != 1:
        raise InputError([f"--plot: draws against one size; --against names {' and '.join(against)}"])
    if line := diverged_line(path, optimised, where):
        warn(line)
    try:
        laws = optimum_laws_of(path, optimised, against, loss_column, replicates, where)
        predicted = [(law.predict(**sizes), *law.prediction_interval(**sizes)) for law in laws] if sizes else []
    except FitRefused as refusal:
        raise InputError([f"{path}: {refusal}"]) from refusal
    draw_plot(lambda marks: optima_figure(marks, laws, sizes.get(against[0])), plot)
    if as_json:
        documents = [law.to_dict() | {"at": None} for law in laws]
        for document, (value, low, high) in zip(documents, predicted, strict=False):
            document["at"] = {"sizes": dict(sizes), "value": value, "interval": [low, high]}
        print_json("tune", {"laws": documents})
        return 0
    for law in laws:
        _print_law(law)
        say("")
    _print_optima(laws)
    say(*[""] * bool(predicted))
    place = ", ".join(f"{name} {quantity(value)}" for name, value in sizes.items())
    for law, prediction in zip(laws, predicted, strict=False):
        best, interval = bounded(*prediction)
        say(f"at {place}: {law.optimised} {best}, 95 % interval {interval}")
    say_written(plot)
    return 0


def _print_law(law: OptimumLaw) -> None:
    powers = " * ".join(f"{name}^{exponent:.3g}" for name, exponent in law.exponents.items())
    say(f"{law.optimised}* = {law.constant:.4g} * {powers}", "")
    # Of a positive number whose interval spans orders of magnitude, each end has its own digits.
    ends = " to ".join(significant(end) for end in law.interval("constant"))
    rows = [("constant", significant(law.constant), ends)]
    rows += [(name, *bounded(value, *law.interval(name))) for name, value in law.exponents.items()]
    table("", ("parameter", "value", "95 % interval"), rows)
    freedom = law.regression.degrees_of_freedom
    say("", f"t with {number_of(freedom, 'degree')} of freedom, {number_of(len(law.optima), 'sweep')}")


def _print_optima(laws: Sequence[OptimumLaw]) -> None:
    """Print the optimum of each sweep, and the sweeps without one: left out, or counted as beyond an edge."""
    first = laws[0]
    rows = [
        (
            *map(quantity, group.values()),
            *(significant(law.optima[i][1].x) for law in laws),
            f"{optimum.loss:.5g}",
            f"{optimum.n_points}",
        )
        for i, (group, optimum) in enumerate(first.optima)
    ]
    table("", (*first.exponents, *(f"best {law.optimised}" for law in laws), "loss", "points"), rows, text_columns=0)
    for refused in first.refused:
        sizes = ", ".join(f"{name} {quantity(value)}" for name, value in refused.group.items())
        say(f"{sizes}: {refused.use}: {refused.reason}")
