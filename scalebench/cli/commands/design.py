"""The commands `next` (what to run next) and `worth` (compute multiplier of a change)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.advice import best_set, compute_multiplier, next_trial
from scalebench.advice.design import MOST, candidate_grid
from scalebench.analysis.compute import open_compute_fit
from scalebench.cli.commands.fit import by_configuration
from scalebench.cli.output import print_json, say, say_written, table, trials, warn
from scalebench.errors import InputError
from scalebench.laws import Fit, FitRefused
from scalebench.points.fit_file import check_columns, open_fit
from scalebench.points.table import read_columns
from scalebench.reporting.figures.points import worth_figure
from scalebench.reporting.pictures import check_plot, draw_plot
from scalebench.reporting.quantities import bounded, quantity, significant

if TYPE_CHECKING:
    from scalebench.advice.design import Candidate, Design
    from scalebench.advice.multiplier import ComputeMultiplier

GRID = 9  # values of each input in the grid of candidates
FAR = 1.1  # extrapolation factor in compute from which a warning is printed
UNLIKELY = 1e3  # compute multiplier beyond which FLOPs of two units are the likely reason
SHOWN = 5  # alternatives that are printed


def run_next(
    source: Path,
    law: str | None,
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
    """Print the trial, or the set of trials within a budget, that narrows a prediction most."""
    columns, _ = by_configuration(source, columns)
    fit = open_fit(source, law, columns, where)
    _check_target(source, fit, target)
    _check_limits(fit, candidates, budget, reach, most)
    check_columns(source, fit.law, columns)
    possible = _candidates(fit, candidates, budget) if candidates else candidate_grid(fit, GRID, reach)
    try:
        if budget is None:
            design = next_trial(fit, possible, target)
        else:
            design = best_set(fit, possible, target, budget, most=most or MOST)
    except FitRefused as refusal:
        raise InputError([f"{source}: {refusal}"]) from refusal
    new_run = interval_of_new_run(fit, design.target)
    if as_json:
        print_json("next", {"law": fit.law.name, "interval_new_run": new_run, **design.to_dict()})
    else:
        print_design(fit, design, new_run)
    return 0


def interval_of_new_run(fit: Fit, target: Mapping[str, float]) -> tuple[float, float]:
    """Return the 95 % interval of a new run at the target, as `predict` and the report have it."""
    low, high = fit.prediction_interval({name: [value] for name, value in target.items()}, kind="new")
    return float(low[0]), float(high[0])


def _check_target(source: Path, fit: Fit, target: Mapping[str, float]) -> None:
    if set(target) == set(fit.law.inputs):
        return
    needed = ",".join(f"{name}=NUMBER" for name in fit.law.inputs)
    line = f"{source}: --predict names {', '.join(target) or 'nothing'}; {fit.law.name} needs {needed}"
    raise InputError([line + ("" if source.suffix == ".json" else ", or name another --law")])


def _check_limits(fit: Fit, candidates: Path | None, budget: float | None, reach: float, most: int | None) -> None:
    priced = {"params", "tokens"} <= set(fit.law.inputs) or "flops" in fit.law.inputs or candidates is not None
    wrong = {
        f"--reach {reach:g}: a positive finite number is needed": not 0 < reach < math.inf,
        f"--reach {reach:g}: extends the grid, which --candidates replaces": reach != 1 and candidates is not None,
        f"--budget {budget}: a positive number of FLOPs is needed": budget is not None and not budget > 0,
        f"--budget: {fit.law.name} has no FLOPs of a trial; give --candidates FILE with a column flops": not (
            budget is None or priced
        ),
        f"--most {most}: at least 1 is needed": most is not None and most < 1,
        f"--most {most} requires --budget": most is not None and budget is None,
    }
    if any(wrong.values()):
        raise InputError([line for line, is_wrong in wrong.items() if is_wrong])


def _candidates(fit: Fit, path: Path, budget: float | None) -> dict[str, Any]:
    priced = budget is not None and not {"params", "tokens"} <= set(fit.law.inputs)
    names = (*fit.law.inputs, *(("flops",) if priced else ()))
    return dict(read_columns(path, {name: name for name in names}).values)


def print_design(fit: Fit, design: Design, new_run: tuple[float, float]) -> None:
    """Print the trials to run, and what they do to the prediction, with its interval of a new run."""
    target = ", ".join(f"{name} {quantity(value)}" for name, value in design.target.items())
    now, after = (bounded(design.predicted, *ends)[1] for ends in (design.interval_now, design.interval_after))
    predicted, run = bounded(design.predicted, *new_run)
    say(f"{fit.law.name} at {target}: {predicted}, 95 % interval of a new run {run}")
    say(f"95 % interval of its mean (delta method): {now}", "")
    total = "" if design.flops is None else f", {quantity(design.flops)}FLOP in total"
    say(f"run {trials(len(design.chosen))}{total}:")
    header = (*design.target, "FLOPs", "interval width if run alone")
    table("", header, [_candidate(trial) for trial in design.chosen], text_columns=0)
    ratio, ends = bounded(design.narrowing, *(design.narrowing_interval or (math.nan, math.nan)))
    say("", f"expected interval afterwards: {after}, ×{ratio} of the width now ({ends})")
    if design.noise:
        say(f"the residuals show {design.noise}: each trial counts with the noise of its size")
    if design.narrowing > 1:
        say("none of these trials narrows it: their noise would widen it")
    if design.unlimited is not None:
        count, narrowing = design.unlimited
        say(f"{trials(count)} within the same budget would narrow it to ×{narrowing:.3g} (--most {count})")
    if len(design.chosen) == 1:
        say("", "next best alternatives:")
        table("", header, [_candidate(trial) for trial in design.ranking[1 : 1 + SHOWN]], text_columns=0)


def _candidate(trial: Candidate) -> tuple[str, ...]:
    cost = "-" if trial.flops is None else f"{trial.flops:.3g}"
    return (*map(quantity, trial.inputs.values()), cost, f"×{trial.narrowing:.3g}")


def run_worth(
    baseline: Path,
    changed: Path,
    law: str | None,
    columns: Mapping[str, str],
    where: str | None,
    loss: float | None,
    plot: Path | None,
    *,
    as_json: bool,
) -> int:
    """Print how many times less compute the changed study needs for the same loss, and draw both if requested."""
    check_plot(plot)
    fits = [open_compute_fit(source, law, columns, where) for source in (baseline, changed)]
    try:
        multiplier = compute_multiplier(fits[0], fits[1], loss)
    except FitRefused as refusal:
        raise InputError([f"{baseline} and {changed}: {refusal}"]) from refusal
    if plot is not None and (several := [fit.law.name for fit in fits if len(fit.law.inputs) != 1]):
        raise InputError([f"--plot: draws laws of FLOPs alone, not {several[0]}: leave it out, or choose --law power"])
    if not 1 / UNLIKELY < multiplier.multiplier < UNLIKELY:
        warn(f"a multiplier of {multiplier.multiplier:.2g}: are the FLOPs of both in the same unit?")
    draw_plot(lambda marks: worth_figure(marks, fits[0], fits[1], multiplier), plot)
    if as_json:
        print_json("worth", multiplier.to_dict())
        return 0
    print_worth(multiplier)
    say_written(plot)
    return 0


def print_worth(worth: ComputeMultiplier) -> None:
    """Print the compute multiplier, the loss it was read off at, and how far that extrapolates."""
    low, high = worth.interval
    low, high = 0.0 if low is None else low, math.inf if high is None else high
    value, interval = bounded(worth.multiplier, low, high)
    flops = f"{worth.baseline_flops:.3g} FLOPs before, {worth.changed_flops:.3g} after"
    say(f"compute multiplier ×{value}, 95 % interval {interval}, at loss {significant(worth.loss, 4)}: {flops}")
    say(
        "the change saves compute"
        if low > 1
        else "the change costs compute"
        if high < 1
        else "no significant difference"
    )
    for name, beyond, below in zip(("baseline", "changed study"), worth.beyond, worth.below, strict=True):
        if beyond > FAR:
            place = f"1/{significant(beyond)} of its smallest" if below else f"×{significant(beyond)} its largest"
            say(f"the {name} reaches that loss at {place} compute: measure closer to it")
    if worth.unreached:
        say(f"{100 * worth.unreached:.3g} % of bootstrap refits never reach that loss and count as infinite compute")
    say(f"intervals: {'; '.join(dict.fromkeys(worth.method.split('; ')))}")
