"""The command `plan`: what a study would run, size by size, and what earlier trials say about the estimates."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from scalebench.cli.output import duration, print_json, quantity, say, table, trials, warn

if TYPE_CHECKING:
    from scalebench.running.planning import PlannedTrial
    from scalebench.running.sweep import Sweep
    from scalebench.study import Study

SHOWN_SIZES = 40


def show_plan(
    name: str,
    settings: Sequence[str],
    results: Path,
    *,
    every: bool,
    force: bool = False,
    as_json: bool,
    ceilings: Sequence[float] = (),
) -> int:
    """Print what a study would run, size by size; with ``ceilings`` also the model of its training steps.

    Raises ``InputError`` at the end where trials need more memory than this machine has, unless ``force``.
    """
    from scalebench.cli.commands.speed import print_steps, step_tables
    from scalebench.running.ensembles import grouped
    from scalebench.running.memory import check_memory
    from scalebench.running.node import planning_rate
    from scalebench.running.planning import load_study
    from scalebench.running.sweep import survey
    from scalebench.study.file import idle_exclusions

    study = load_study(name, settings)
    warn(*idle_exclusions(study))
    sweep = survey(study, results)
    first = sweep.planned[0].trial
    rate = planning_rate(sweep.study_dir, first.device_kind, first.spec.precision)
    sizes = _by_size(sweep.planned, rate.flops_per_s)
    total = {
        "trials": len(sweep.planned),
        "missing": len(sweep.missing),
        "flops": sum(trial.flops for trial in sweep.planned),
        "estimated_work_s": sum(trial.seconds(rate.flops_per_s) for trial in sweep.planned),
        "assumed_flops_per_s": rate.flops_per_s,
        "assumed_rate_source": rate.source,
    }
    steps = step_tables(sweep.planned, ceilings, sweep.rows) if ceilings else []
    parents = _parents(sweep.planned)
    ensembles = None if study.run.ensemble is None else grouped(sweep.missing, study)
    if as_json:
        extra: dict[str, Any] = ({"steps": steps} if ceilings else {}) | ({"parents": parents} if parents else {})
        extra |= {"ensembles": asdict(ensembles)} if ensembles else {}
        print_json("plan", {"study": study.name, "total": total, "sizes": sizes} | extra)
        check_memory(() if force else sweep.missing)
        return 0
    _print_plan(study.name, sizes if every else sizes[:SHOWN_SIZES], len(sizes), total)
    say(*_axes_lines(study, sweep.planned), *_warm_up_lines(sweep.planned))
    say(*_earlier_lines(sweep, rate.flops_per_s))
    say(*(ensembles.sentences() if ensembles else ()))
    for parent in parents[: None if every else SHOWN_SIZES]:
        role = "continues" if parent["continued"] else "starts from" if parent["starts"] else "is distilled from"
        cost = quantity(parent["flops"], "FLOP")
        say(f"{role} {parent['trial_id']}, which cost {cost}: {parent['attempt']}")
    if ceilings:
        print_steps(steps, ceilings)
    check_memory(() if force else sweep.missing)
    return 0


def _axes_lines(study: Study, planned: Sequence[PlannedTrial]) -> list[str]:
    """Name the axes that multiply to the number of trials, with those that advance together as one; and exclusions."""
    together = [entry.axes() for entry in study.together.values()]
    joined = {name for entry in together for name in entry}
    factors = {name: len(values) for name, values in study.axes().items() if len(values) > 1 and name not in joined}
    factors |= {" with ".join(entry): len(next(iter(entry.values()))) for entry in together}
    parents = len(_parents(planned))
    factors = ({"parents": parents} if parents > 1 else {}) | factors
    if not factors:
        return []
    product = math.prod(factors.values())
    text = f"axes: {' × '.join(f'{name} ({count})' for name, count in factors.items())} = {product}"
    if product > len(planned):
        text += f", {product - len(planned)} of them excluded or equal to others"
    return [text]


def _warm_up_lines(planned: Sequence[PlannedTrial]) -> list[str]:
    """Name the trials that end before their learning rate has reached its value."""
    begun = [trial for trial in planned if trial.parent is None or trial.parent.identity.state_sha256 is None]
    short = [trial for trial in begun if getattr(trial.trial.spec, "warmup_steps", 0) >= trial.steps]
    if not short:
        return []
    first = short[0]
    ends = f"{first.steps} steps with warmup_steps = {first.trial.spec.warmup_steps}"
    of_all = "all trials" if len(short) == len(planned) else f"{len(short):,} of {trials(len(planned))}"
    return [f"warm-up: {of_all} end before the learning rate has reached its value, as after {ends}"]


def _earlier_lines(sweep: Sweep, peak: float | None) -> list[str]:
    """Compare the estimates with what earlier trials of this plan measured."""
    ratios: dict[str, list[float]] = {"time": [], "memory": []}
    for planned in sweep.planned:
        row = sweep.rows.get(planned.trial_id)
        if row is None or row["status"] != "ok":
            continue
        memory = row.get("peak_memory_allocated_bytes") or row.get("memory_tracked_peak_bytes")
        pairs = (("time", row.get("wall_time_s"), planned.seconds(peak)), ("memory", memory, planned.memory_bytes))
        for name, measured, estimate in pairs:
            if measured and estimate:
                ratios[name].append(measured / estimate)
    parts = [
        f"{name} ×{median(values):.2g} of the estimate (×{min(values):.2g} to ×{max(values):.2g})"
        for name, values in ratios.items()
        if values
    ]
    count = max(map(len, ratios.values()))
    return [f"measured so far, {trials(count)} of this plan: {', '.join(parts)}"] if parts else []


def _parents(planned: Sequence[PlannedTrial]) -> list[dict[str, Any]]:
    """Return the trials, or checkpoints of one, whose weights the planned ones need, to start from or as teachers."""
    parents = {trial.parent.attempt: trial.parent for trial in planned if trial.parent is not None}
    return [
        {
            "trial_id": parent.trial_id,
            "attempt": str(parent.attempt),
            "flops": parent.flops,
            "weights_sha256": parent.identity.weights_sha256,
            "starts": parent.starts,
            "continued": parent.identity.state_sha256 is not None,
        }
        for parent in parents.values()
    ]


def _by_size(planned: Sequence[PlannedTrial], peak: float | None) -> list[dict[str, Any]]:
    groups: dict[str, list[PlannedTrial]] = {}
    for trial in planned:
        groups.setdefault(json.dumps([trial.trial.family, trial.trial.model]), []).append(trial)
    return [
        {
            "family": group[0].trial.family,
            "model": group[0].trial.model,
            "trials": len(group),
            "params": group[0].counts.total,
            "params_non_embedding": group[0].counts.non_embedding,
            "steps": sorted({trial.steps for trial in group}),
            "flops_per_trial": max(trial.flops for trial in group),
            "estimated_time_s": max(trial.seconds(peak) for trial in group),
            "estimated_memory_bytes": max(trial.memory_bytes for trial in group),
        }
        for group in groups.values()
    ]


def _grown(sizes: Sequence[dict[str, Any]]) -> list[str]:
    """Return the whole-number fields that differ between sizes, or all of them when there is one size."""
    names = dict.fromkeys(key for size in sizes for key, value in size["model"].items() if type(value) is int)
    values = {name: {size["model"].get(name) for size in sizes} for name in names}
    return [name for name in names if len(values[name]) > 1 or len(sizes) == 1]


def _print_plan(name: str, sizes: Sequence[dict[str, Any]], count: int, total: dict[str, Any]) -> None:
    header = ("shape", "trials", "params", "non-emb.", "steps", "FLOPs", "~time", "~memory")
    grown = _grown(sizes)
    families = {size["family"] for size in sizes}
    rows = [
        (
            " ".join(
                [size["family"]] * (len(families) > 1)
                + [f"{key} {size['model'][key]}" for key in grown if key in size["model"]]
            ),
            str(size["trials"]),
            quantity(size["params"]),
            quantity(size["params_non_embedding"]),
            "…".join(str(steps) for steps in sorted({size["steps"][0], size["steps"][-1]})),
            quantity(size["flops_per_trial"]),
            duration(size["estimated_time_s"]),
            quantity(size["estimated_memory_bytes"], "B"),
        )
        for size in sizes
    ]
    table(f"{name}: {trials(total['trials'])}, {total['missing']} to run", header, rows)
    if count > len(sizes):
        say(f"… and {count - len(sizes)} more sizes (--all lists them)")
    say(f"total: {quantity(total['flops'], 'FLOPs')}, about {duration(total['estimated_work_s'])} for one worker")
    say(
        f"columns are per trial; times assume 20 % of {quantity(total['assumed_flops_per_s'], 'FLOP/s')} "
        f"({total['assumed_rate_source']}) and a minimum time per step"
    )
