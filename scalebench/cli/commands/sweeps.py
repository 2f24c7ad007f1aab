"""The commands run, plan and demo."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench import store
from scalebench.cli.output import duration, print_json, quantity, say, table, trials
from scalebench.errors import StudyError, unknown

if TYPE_CHECKING:
    from scalebench.running.planning import PlannedTrial
    from scalebench.running.sweep import Sweep
    from scalebench.study import Study

SHOWN_SIZES = 40


def statuses(text: str) -> list[str]:
    """Read ``failed,timeout``; ``StudyError`` for a status that does not exist."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    wrong = [f"--retry: {unknown(name, store.STATUSES)}" for name in names if name not in store.STATUSES]
    if wrong:
        raise StudyError(wrong)
    return names


# --- run -------------------------------------------------------------------------------------------------------------


def run_study(
    name: str | Study,
    settings: Sequence[str],
    results: Path,
    jobs: int | None,
    retry: Sequence[str],
    *,
    engine: str = "local",
    fresh_code: bool,
    as_json: bool,
    with_parents: bool = False,
) -> int:
    """Run a study's missing trials, ``with_parents`` first those of its parents' studies; return the exit code."""
    from scalebench.cli.progress import Progress, SweepProgress
    from scalebench.running.chain import ancestors
    from scalebench.running.engines import find_engine
    from scalebench.running.planning import load_study
    from scalebench.running.sweep import execute, resources_of, survey

    begun = time.monotonic()
    find_engine(engine)
    study = load_study(name, settings) if isinstance(name, str) else name
    store.check_writable(results)
    how: dict[str, Any] = {"engine": engine, "fresh_code": fresh_code, "as_json": as_json}
    codes = [
        run_study(parent, (), results, jobs, retry, **how) for parent in (ancestors(study) if with_parents else ())
    ]
    sweep = survey(study, results, retry, fresh_code=fresh_code)
    _announce(sweep, as_json=as_json)
    expected = {trial.trial_id: (resources_of(trial, study).expected_s, trial.steps) for trial in sweep.missing}
    with Progress(quiet=as_json) as display:
        progress = SweepProgress(expected, display)
        for row in execute(sweep, study, jobs=jobs, engine=engine, tick=progress.tick):
            progress.finish(row, as_json=as_json)
    _conclude(sweep, time.monotonic() - begun, as_json=as_json)
    return max([*codes, 0 if set(sweep.statuses()) <= {"ok"} else 1])


def _announce(sweep: Sweep, *, as_json: bool) -> None:
    for line in sweep.damaged:
        print(f"damaged, counts as missing: {line}", file=sys.stderr)
    if sweep.other_code:
        text = f"{sweep.other_code} result(s) were made by another version of the code; --fresh-code runs them again"
        print(text, file=sys.stderr)
    if not as_json:
        say(f"{sweep.study_dir.name}: {trials(len(sweep.planned))}, {len(sweep.missing)} to run")


def _conclude(sweep: Sweep, elapsed_s: float, *, as_json: bool) -> None:
    counts = dict(sweep.statuses())
    if as_json:
        summary = {"event": "summary", "study": sweep.study_dir.name, "executed": sweep.executed, "statuses": counts}
        print(json.dumps(summary | {"elapsed_s": elapsed_s, "results": str(sweep.study_dir)}))
        return
    shown = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    say(f"{sweep.executed} executed in {duration(elapsed_s)}: {shown}")
    wrong = sorted(set(counts) - {"ok", "missing"})
    if wrong:
        say(f"run them again with --retry {','.join(wrong)}; their logs are in {sweep.study_dir}/trials")
    say(f"report: scalebench report {sweep.study_dir}")


def run_demo(results: Path, output: Path | None) -> int:
    """Run the demo study, write its report and a picture beside it, and print its conclusions; return the exit code.

    The report is ``demo/report.html`` in the results folder unless ``output`` is another file.
    """
    from scalebench.analysis.study import analyse
    from scalebench.reporting import picture, verdict, write

    code = run_study("demo", [], results, None, [], fresh_code=False, as_json=False)
    study = analyse(store.read_results(results / "demo"), "demo")
    output = output or results / "demo" / "report.html"
    say("", *verdict(study), "")
    say(f"report: {write([study], output)}", f"picture: {picture(study, output.with_name('loss.png'))}")
    return code


# --- plan ------------------------------------------------------------------------------------------------------------


def show_plan(
    name: str, settings: Sequence[str], results: Path, *, every: bool, as_json: bool, ceilings: Sequence[float] = ()
) -> int:
    """Print what a study would run, size by size; with ``ceilings`` also the model of its training steps."""
    from scalebench.cli.commands.speed import print_steps, step_tables
    from scalebench.running.node import planning_rate
    from scalebench.running.planning import load_study
    from scalebench.running.sweep import survey

    study = load_study(name, settings)
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
    steps = step_tables(sweep.planned, ceilings) if ceilings else []
    parents = _parents(sweep.planned)
    if as_json:
        extra = ({"steps": steps} if ceilings else {}) | ({"parents": parents} if parents else {})
        print_json({"study": study.name, "total": total, "sizes": sizes} | extra)
        return 0
    _print_plan(study.name, sizes if every else sizes[:SHOWN_SIZES], len(sizes), total)
    for parent in parents[: None if every else SHOWN_SIZES]:
        end = "its run continued" if parent["continued"] else "its weights"
        cost = quantity(parent["flops"], "FLOP")
        say(f"starts from {parent['trial_id']} ({end}), which cost {cost}: {parent['attempt']}")
    if ceilings:
        print_steps(steps, ceilings)
    return 0


def _parents(planned: Sequence[PlannedTrial]) -> list[dict[str, Any]]:
    """Return the trials whose weights the planned ones start from."""
    parents = {trial.parent.trial_id: trial.parent for trial in planned if trial.parent is not None}
    return [
        {
            "trial_id": trial_id,
            "attempt": str(parent.attempt),
            "flops": parent.flops,
            "weights_sha256": parent.identity.weights_sha256,
            "continued": parent.identity.state_sha256 is not None,
        }
        for trial_id, parent in parents.items()
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
    header = ("family", "shape", "trials", "params", "non-emb.", "steps", "FLOPs", "~time", "~memory")
    grown = _grown(sizes)
    rows = [
        (
            size["family"],
            " ".join(f"{key} {size['model'][key]}" for key in grown if key in size["model"]),
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
    table(f"{name}: {trials(total['trials'])}, {total['missing']} to run", header, rows, text_columns=2)
    if count > len(sizes):
        say(f"… and {count - len(sizes)} more sizes (--all lists them)")
    say(f"total: {quantity(total['flops'], 'FLOPs')}, about {duration(total['estimated_work_s'])} for one worker")
    say(
        f"columns are per trial; times assume 20 % of {quantity(total['assumed_flops_per_s'], 'FLOP/s')} "
        f"({total['assumed_rate_source']}) and a minimum time per step; memory assumes float32"
    )
