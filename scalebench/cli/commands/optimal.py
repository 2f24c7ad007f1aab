"""The command `optimal`: compute-optimal size and tokens by three approaches and each counting convention."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalebench.advice import Counting, conventions, envelope, isoflop
from scalebench.advice.allocation import PARAMETER_COLUMNS, count
from scalebench.advice.closed_form import Surfaces
from scalebench.advice.data_constrained import QUANTITIES, data_constrained_optimum
from scalebench.advice.optima import Refused
from scalebench.cli.output import print_json, say, say_written, table, warn
from scalebench.errors import InputError
from scalebench.laws import FitRefused
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN
from scalebench.points.files import is_results
from scalebench.points.fit_file import check_columns, open_fit
from scalebench.points.roles import RUN, read_roles
from scalebench.points.table import unit_notes
from scalebench.points.warnings import point_warnings
from scalebench.reporting.figures.points import allocation_figure
from scalebench.reporting.pictures import check_plot, draw_plot
from scalebench.reporting.quantities import bounded, quantity

if TYPE_CHECKING:
    from scalebench.advice import Allocation
    from scalebench.advice.data_constrained import DataConstrainedOptimum

MOST_FLOPS = 1e50  # of a budget
APPROACHES = (1, 2, 3)
EXPONENTS = ("a", "b")


def _check_budgets(budgets: Sequence[float]) -> None:
    """Raise ``InputError`` for budgets that are no number of FLOPs."""
    wrong = [
        f"--budget {budget:g}: a positive number of FLOPs is needed, from 1 to {MOST_FLOPS:g}"
        for budget in budgets
        if not 1 <= budget <= MOST_FLOPS
    ]
    if wrong:
        raise InputError(wrong)


def check_combination(passed: Collection[str], approach: str, unique_tokens: float | None) -> None:
    """Raise ``InputError`` for options in ``passed`` that the others leave without effect."""
    if unique_tokens is not None:
        reason = "has no effect with --unique-tokens, which fits one law that counts C as 6ND"
        wrong = {"--approach", "--count-params", "--count-flops", "--run-column", "--plot"}
    else:
        reason = "is for --unique-tokens or, if it names runs, for approach 1"
        wrong = {"--unique-tokens-column", *(() if approach in ("1", "all") else ("--run-column",))}
    if lines := [f"{name}: {reason}; leave it out" for name in passed if name in wrong]:
        raise InputError(lines)


def run_optimal(
    path: Path,
    columns: Mapping[str, str],
    where: str | None,
    approaches: Sequence[int],
    budgets: Sequence[float],
    counting: Counting,
    plot: Path | None,
    *,
    as_json: bool,
) -> int:
    """Print N*(C) and D*(C) by each approach that the points allow, and draw them if requested; exit code 2 if none."""
    _check_budgets(budgets)
    check_plot(plot)
    optional = ("tokens", "flops", *PARAMETER_COLUMNS.values(), RUN)
    points = read_roles(path, ("loss",), optional, columns, where)
    surfaces = Surfaces(points)
    allocated, refused = allocations(surfaces, approaches, counting)
    for line in [] if is_results(path) else [*unit_notes(columns), *point_warnings(points)]:
        warn(f"{path}: {line}")
    levels = list(budgets) or [_largest(path, points, counting)]
    settled = 3 not in refused and all(_optimum_at(each, levels[-1])["determined"] for each in allocated)
    by_convention = conventions(surfaces, levels[-1]) if settled else []
    plot = plot if allocated else None
    draw_plot(lambda marks: allocation_figure(marks, allocated, budgets, count(points, counting)["flops"]), plot)
    if as_json:
        print_json("optimal", _document(allocated, refused, levels, by_convention))
    else:
        _print(allocated, refused, levels, counting)
        if by_convention:
            _print_conventions(by_convention, levels[-1])
        say_written(plot)
    return 0 if allocated else 2


def run_repeated(
    source: Path,
    columns: Mapping[str, str],
    where: str | None,
    unique_tokens: float,
    budgets: Sequence[float],
    *,
    as_json: bool,
) -> int:
    """Print size, tokens and epochs of lowest loss at each budget, for training on limited data."""
    _check_budgets(budgets)
    own_options = {"unique_tokens": "--unique-tokens-column"}
    fitted = open_fit(source, "data_constrained", columns, where, own_options)
    check_columns(source, fitted.law, columns)
    spent = FLOPS_PER_PARAMETER_TOKEN * np.exp(fitted.points.logs["params"] + fitted.points.logs["tokens"])
    try:
        best = [data_constrained_optimum(fitted, C, unique_tokens) for C in budgets or [float(spent.max())]]
    except FitRefused as refusal:
        raise InputError([f"{source}: {refusal}"]) from refusal
    if as_json:
        print_json("optimal", {"optima": [optimum.to_dict() for optimum in best]})
        return 0
    say(
        f"compute-optimal sizes for {quantity(unique_tokens)} unique tokens, C = 6ND; loss in the unit of the points",
        "",
    )
    rows = [(f"{optimum.flops:.3g}", *(_with_ends(optimum, name) for name in QUANTITIES)) for optimum in best]
    table("", ("C (FLOPs)", "N*", "D*", "epochs", "loss"), rows)
    say("", f"95 % intervals: {best[0].method}")
    return 0


def _with_ends(optimum: DataConstrainedOptimum, name: str) -> str:
    written = quantity if name in ("params", "tokens") else "{:.4g}".format
    ends = optimum.intervals.get(name)
    value = written(getattr(optimum, name))
    return value if ends is None else f"{value} ({written(ends[0])} to {written(ends[1])})"


def allocations(
    surfaces: Surfaces, approaches: Sequence[int], counting: Counting
) -> tuple[list[Allocation], dict[int, str]]:
    """Return the allocation by each approach, and the reason for each approach that has none."""
    allocated, refused = [], {}
    for approach in approaches:
        try:
            allocated.append(_allocation(surfaces, approach, counting))
        except FitRefused as refusal:
            refused[approach] = str(refusal)
    return allocated, refused


def _allocation(surfaces: Surfaces, approach: int, counting: Counting) -> Allocation:
    if approach == 1:
        return envelope(surfaces.points, counting)
    if approach == 2:
        return isoflop(surfaces.points, counting, surfaces=surfaces)
    return surfaces.allocation(counting)


def _largest(path: Path, points: Mapping[str, Any], counting: Counting) -> float:
    try:
        return float(count(points, counting)["flops"].max())
    except FitRefused as refusal:
        options = "two of --params-column, --tokens-column and --flops-column are enough"
        raise InputError([f"{path}: {refusal}; {options}"]) from refusal


def _optimum_at(allocation: Allocation, budget: float) -> dict[str, Any]:
    """N* and D* at a budget with their intervals."""
    row: dict[str, Any] = {"flops": budget}
    for name in ("params", "tokens"):
        row[name] = float(getattr(allocation, name)(budget)[0])
        ends = getattr(allocation, f"{name}_interval")(budget) if allocation.draws is not None else None
        row[f"{name}_interval"] = ends and [float(ends[0][0]), float(ends[1][0])]
    row["determined"] = bool(allocation.determined(budget)[0])
    return row if row["determined"] else dict.fromkeys(row) | {"flops": budget, "determined": False}


def _document(
    allocated: Sequence[Allocation], refused: Mapping[int, str], budgets: Sequence[float], by_convention: Sequence[Any]
) -> dict[str, Any]:
    return {
        "allocations": [
            allocation.to_dict() | {"at": [_optimum_at(allocation, budget) for budget in budgets]}
            for allocation in allocated
        ],
        "refused": [{"approach": approach, "reason": reason} for approach, reason in refused.items()],
        "conventions": {"flops": budgets[-1], "rows": list(by_convention)},
    }


def _print(
    allocated: Sequence[Allocation], refused: Mapping[int, str], budgets: Sequence[float], counting: Counting
) -> None:
    if allocated:
        say(f"compute-optimal sizes, N* = k C^a and D* = k' C^b: N {counting.params}, C {counting.flops}", "")
        rows = [
            (f"{allocation.approach}", *(_exponent(allocation, name) for name in EXPONENTS), allocation.method)
            for allocation in allocated
        ]
        table("", ("approach", *EXPONENTS, "interval from"), rows, last_is_text=True)
        say("")
        spent = [_spent(allocation, _optimum_at(allocation, budget)) for budget in budgets for allocation in allocated]
        table("", ("C (FLOPs)", "approach", "N*", "95 % interval", "D*", "95 % interval"), spent, text_columns=2)
    lines = _remarks(allocated, refused)
    say(*[""] * bool(allocated and lines), *lines)


def _remarks(allocated: Sequence[Allocation], refused: Mapping[int, str]) -> list[str]:
    """Return warnings about each approach, its groups without an optimum, and why others were refused."""
    notes = [f"approach {allocation.approach}: {note}" for allocation in allocated for note in allocation.notes]
    lines = [*dict.fromkeys(notes)]
    for allocation in allocated:
        lines += _without_optimum(allocation)
        if allocation.bias is not None:
            factor = f"×{allocation.bias.tokens_factor:.3g}"
            lines.append(f"bias of approach 2 at these points, without noise: D* {factor} of the true value")
    return [*lines, *(f"approach {approach}: refused: {reason}" for approach, reason in refused.items())]


def _without_optimum(allocation: Allocation) -> list[str]:
    """Return one line for each kind of reason, with the number of further groups; `--json` has all of them."""
    kinds: dict[str, list[Refused]] = {}
    for refused in allocation.refused:
        kinds.setdefault(re.sub(r"[\d.e+-]+ ?(values?)?", "", refused.reason), []).append(refused)
    lines = []
    for first, *more in kinds.values():
        others = f" and {len(more)} more" if more else ""
        lines.append(f"approach {allocation.approach}, {_group(first.group)}{others}: {first.use}: {first.reason}")
    return lines


def _group(group: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in group.items())


def _exponent(allocation: Allocation, name: str) -> str:
    low, high = allocation.interval(name) if allocation.draws is not None else (np.nan, np.nan)
    value, interval = bounded(getattr(allocation, name), low, high)
    return f"{value} ({interval})"


def _spent(allocation: Allocation, row: Mapping[str, Any]) -> tuple[str, ...]:
    cells = [f"{row['flops']:.3g}", f"{allocation.approach}"]
    if not row["determined"]:
        return (*cells, "not determined", "", "not determined", "")
    for name in ("params", "tokens"):
        ends = row[f"{name}_interval"]
        cells += [quantity(row[name]), "no interval" if ends is None else f"{quantity(ends[0])} to {quantity(ends[1])}"]
    return tuple(cells)


def _print_conventions(rows: Sequence[Mapping[str, Any]], flops: float) -> None:
    """Print the optimum by each convention of counting N and C."""
    known, refused = [], dict[str, list[str]]()
    for row in rows:
        if row["refused"]:
            refused.setdefault(row["refused"], []).append(f"N {row['counting_params']}, C {row['counting_flops']}")
            continue
        low, high = row["a_interval"] or (np.nan, np.nan)
        a, interval = bounded(row["a"], low, high)
        cells = (f"{a} ({interval})", quantity(row["N"]), quantity(row["D"]))
        known.append((row["counting_params"], row["counting_flops"], *cells))
    if len(known) < 2 and refused:
        say(
            "",
            "other ways of counting N and C:",
            *(f"{' and '.join(names)}: {reason}" for reason, names in refused.items()),
        )
        return
    say("", f"by counting convention (approach 3, at {flops:.3g} FLOPs)", "")
    table("", ("N counts", "C counts", "a", "N*", "D*"), known, text_columns=2)
    say(*(f"{' and '.join(names)}: refused: {reason}" for reason, names in refused.items()))
