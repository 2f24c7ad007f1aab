"""The commands `next`, what to run next; `worth`, what a change was worth; and `tune`, optima along a swept axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.advice import best_set, compute_multiplier, next_trial, optimum_law
from scalebench.advice.design import MOST
from scalebench.analysis.series import LOSS
from scalebench.analysis.sources import candidate_trials, find_compute_fit, find_fit
from scalebench.cli.output import print_json, say, table
from scalebench.errors import InputError
from scalebench.laws import Fit, FitRefused
from scalebench.points.fit_file import json_safe
from scalebench.points.table import read_columns
from scalebench.reporting.quantities import bounded, quantity, significant

if TYPE_CHECKING:
    from scalebench.advice.design import Candidate, Design
    from scalebench.advice.multiplier import ComputeMultiplier
    from scalebench.advice.optima import OptimumLaw

GRID, REACH = 9, 1.0  # values of each input among the candidates unless given, and how far beyond the largest they go
FAR = 1.1  # times beyond the compute measured, from which on that is said
SHOWN = 5  # candidates on their own that are printed


def run_next(
    source: Path,
    law: str,
    columns: Mapping[str, str],
    where: str | None,
    target: Mapping[str, float],
    candidates: Path | None,
    budget: float | None,
    reach: float,
    *,
    most: int | None,
    as_json: bool,
) -> int:
    """Print the trial, or the trials within a budget, that most narrow a prediction."""
    fit = find_fit(source, law, columns, where)
    _check_target(source, fit, target)
    _check_limits(fit, candidates, budget, reach, most)
    offered = _candidates(fit, candidates, budget) if candidates else candidate_trials(fit, GRID, reach)
    try:
        if budget is None:
            found = next_trial(fit, offered, target)
        else:
            found = best_set(fit, offered, target, budget, most=most or MOST)
    except FitRefused as refusal:
        raise InputError([f"{source}: {refusal}"]) from refusal
    print_json(json_safe({"law": fit.law.name, **found.to_dict()})) if as_json else print_design(fit, found)
    return 0


def _check_target(source: Path, fit: Fit, target: Mapping[str, float]) -> None:
    if set(target) == set(fit.law.inputs):
        return
    needed = ",".join(f"{name}=NUMBER" for name in fit.law.inputs)
    asked = f"--predict names {', '.join(target) or 'nothing'}; {fit.law.name} needs {needed}"
    raise InputError([f"{source}: {asked}" + ("" if source.suffix == ".json" else ", or name another --law")])


def _check_limits(fit: Fit, candidates: Path | None, budget: float | None, reach: float, most: int | None) -> None:
    priced = {"params", "tokens"} <= set(fit.law.inputs) or "flops" in fit.law.inputs or candidates is not None
    wrong = {
        f"--reach {reach:g}: a positive number is needed": not reach > 0,
        f"--budget {budget}: a positive number of FLOPs is needed": budget is not None and not budget > 0,
        f"--budget: {fit.law.name} has no FLOPs of a trial; give --candidates FILE with a column flops": not (
            budget is None or priced
        ),
        f"--most {most}: at least 1 is needed": most is not None and most < 1,
        f"--most {most}: give --budget, too": most is not None and budget is None,
    }
    if any(wrong.values()):
        raise InputError([line for line, is_wrong in wrong.items() if is_wrong])


def _candidates(fit: Fit, path: Path, budget: float | None) -> dict[str, Any]:
    priced = budget is not None and not {"params", "tokens"} <= set(fit.law.inputs)
    names = (*fit.law.inputs, *(("flops",) if priced else ()))
    return dict(read_columns(path, {name: name for name in names}).values)


def print_design(fit: Fit, found: Design) -> None:
    """Print what is to be run, and what that does to the prediction."""
    at = ", ".join(f"{name} {quantity(value)}" for name, value in found.target.items())
    now, after = (bounded(found.predicted, *ends)[1] for ends in (found.interval_now, found.interval_after))
    narrowing = bounded(found.narrowing, *(found.narrowing_interval or (float("nan"), float("nan"))))
    say(f"{fit.law.name} at {at}: {significant(found.predicted, 4)}, 95 % interval {now}", "")
    say(f"run: {len(found.chosen)} trial{'s' * (len(found.chosen) > 1)}" + _costs(found.flops))
    table("", (*found.target, "FLOPs", "alone narrows to"), [_candidate(one) for one in found.chosen], text_columns=0)
    say("", f"expected then: {after}, ×{narrowing[0]} as wide ({narrowing[1]})")
    if found.unlimited is not None:
        more, narrow = found.unlimited
        say(f"{more} trials of the same budget together would narrow it to ×{narrow:.3g} (--most {more})")
    if len(found.chosen) == 1:
        say("", "the next best on their own:")
        rows = [_candidate(one) for one in found.ranking[1 : 1 + SHOWN]]
        table("", (*found.target, "FLOPs", "narrows to"), rows, text_columns=0)


def _costs(flops: float | None) -> str:
    return "" if flops is None else f", {quantity(flops)}FLOP in all"


def _candidate(one: Candidate) -> tuple[str, ...]:
    cost = "-" if one.flops is None else f"{one.flops:.3g}"
    return (*map(quantity, one.inputs.values()), cost, f"×{one.narrowing:.3g}")


def run_worth(
    baseline: Path,
    changed: Path,
    law: str,
    columns: Mapping[str, str],
    where: str | None,
    loss: float | None,
    *,
    as_json: bool,
) -> int:
    """Print how many times less compute the changed study needs for the same loss."""
    fits = [find_compute_fit(source, law, columns, where) for source in (baseline, changed)]
    try:
        found = compute_multiplier(fits[0], fits[1], loss)
    except FitRefused as refusal:
        raise InputError([f"{baseline} and {changed}: {refusal}"]) from refusal
    print_json(json_safe(found.to_dict())) if as_json else print_worth(found)
    return 0


def print_worth(found: ComputeMultiplier) -> None:
    """Print the compute multiplier and where it was read off."""
    low, high = (
        end if end is not None else other for end, other in zip(found.interval, (0.0, float("inf")), strict=True)
    )
    value, interval = bounded(found.multiplier, low, high)
    flops = f"{found.baseline_flops:.3g} FLOPs before, {found.changed_flops:.3g} after"
    say(f"compute multiplier ×{value}, 95 % interval {interval}, at loss {significant(found.loss, 4)}: {flops}")
    verdict = "saves compute" if low > 1 else "costs compute" if high < 1 else "is not told apart from no change"
    say(f"the change {verdict}")
    for name, beyond in zip(("baseline", "changed study"), found.beyond, strict=True):
        if beyond > FAR:
            say(f"the {name} reaches that loss ×{significant(beyond)} beyond its compute: measure nearer")
    if found.unreached:
        say(f"{100 * found.unreached:.3g} % of replicates never reach that loss and count as infinite compute")
    say(f"intervals: {found.method}")


def run_tune(
    path: Path,
    optimised: str,
    against: Sequence[str],
    loss_column: str | None,
    where: str | None,
    sizes: Mapping[str, float],
    *,
    as_json: bool,
) -> int:
    """Print the law of the best value of a swept column, and its value at sizes asked for."""
    names = {name: name for name in (*against, optimised)}
    loss = loss_column or (LOSS if path.is_dir() else "loss")
    options = {**dict.fromkeys(against, "--against"), optimised: "--optimised", "loss": "--loss-column"}
    points = read_columns(path, {**names, "loss": loss}, where, options=options).values
    try:
        found = optimum_law(points, optimised, against)
        at = None if not sizes else (found.predict(**sizes), *found.prediction_interval(**sizes))
    except FitRefused as refusal:
        raise InputError([f"{path}: {refusal}"]) from refusal
    if as_json:
        asked = at and {"sizes": dict(sizes), "value": at[0], "interval": list(at[1:])}
        print_json(json_safe({**found.to_dict(), "at": asked}))
    else:
        print_tune(found, sizes, at)
    return 0


def print_tune(found: OptimumLaw, sizes: Mapping[str, float], at: tuple[float, float, float] | None) -> None:
    """Print the law, the optima it goes through, and those left out."""
    powers = " * ".join(f"{name}^{exponent:.3g}" for name, exponent in found.exponents.items())
    say(f"{found.optimised}* = {found.constant:.4g} * {powers}", "")
    values = {"constant": found.constant, **found.exponents}
    rows = [(name, *bounded(value, *found.interval(name))) for name, value in values.items()]
    table("", ("parameter", "value", "95 % interval"), rows)
    say("", f"t with {found.regression.degrees_of_freedom} degrees of freedom, {len(found.optima)} sweeps")
    shown = [
        (*map(quantity, group.values()), significant(one.x), f"{one.loss:.5g}", f"{one.n_points}")
        for group, one in found.optima
    ]
    table("", (*found.exponents, f"best {found.optimised}", "its loss", "points"), shown, text_columns=0)
    for group, reason in found.refused:
        where = ", ".join(f"{name} {quantity(value)}" for name, value in group.items())
        say(f"{where}: left out: {reason}")
    if at is not None:
        asked = ", ".join(f"{name} {quantity(value)}" for name, value in sizes.items())
        value, interval = bounded(*at)
        say("", f"at {asked}: {found.optimised} {value}, 95 % interval {interval}")
