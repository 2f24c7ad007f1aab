"""The commands run, plan and demo."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from scalebench import store
from scalebench.cli.output import duration, print_json, quantity, say, say_exactly, table, trials, warn
from scalebench.errors import StudyError, unknown

if TYPE_CHECKING:
    from scalebench.cli.progress import TrialLabel
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
    name: str,
    settings: Sequence[str],
    results: Path,
    jobs: int | None,
    retry: Sequence[str],
    *,
    engine: str = "local",
    fresh_code: bool,
    report: bool = False,
    verdict: bool = True,
    as_json: bool,
) -> int:
    """Run a study's missing trials; return the exit code.

    With ``report`` the study's page is kept current while trials finish; at the end its ``verdict`` is printed.
    """
    from scalebench.cli.live_page import LivePage
    from scalebench.cli.progress import Progress, SweepProgress
    from scalebench.running.engines import find_engine
    from scalebench.running.planning import load_study
    from scalebench.running.sweep import execute, resources_of, survey

    begun = time.monotonic()
    find_engine(engine)
    study = load_study(name, settings)
    store.check_writable(results)
    sweep = survey(study, results, retry, fresh_code=fresh_code)
    _announce(sweep, as_json=as_json)
    expected = {trial.trial_id: (resources_of(trial, study).expected_s, trial.steps) for trial in sweep.missing}
    page = LivePage(sweep.study_dir) if report else None
    with Progress(quiet=as_json) as display:
        progress = SweepProgress(expected, display, {trial.trial_id: _label(trial) for trial in sweep.missing})
        for row in execute(sweep, study, jobs=jobs, engine=engine, tick=progress.tick):
            progress.finish(row, as_json=as_json)
            if page:
                page.refresh()
    if page:
        page.write()
    _conclude(sweep, time.monotonic() - begun, page.path if page else None, as_json=as_json)
    if not as_json:
        say(*progress.repeated(), *(_verdict(sweep) if verdict else ()))
    return 0 if set(sweep.statuses()) <= {"ok"} else 1


def _announce(sweep: Sweep, *, as_json: bool) -> None:
    for line in sweep.damaged:
        warn(f"damaged, counts as missing: {line}")
    if sweep.other_code:
        text = f"{sweep.other_code} result(s) were made by another version of the code; --fresh-code runs them again"
        warn(text)
    if not as_json:
        say(f"{sweep.study_dir.name}: {trials(len(sweep.planned))}, {len(sweep.missing)} to run")


def _label(planned: PlannedTrial) -> TrialLabel:
    """Return what a running trial is called, and what one of its steps processes."""
    from scalebench.cli.progress import TrialLabel

    spec = planned.trial.spec
    length = getattr(spec, "sequence_length", None)
    text = f"{planned.trial.family} {quantity(planned.counts.non_embedding)} seed {spec.seed}"
    return TrialLabel(text, spec.batch_size * (length or 1), "tokens" if length else "samples")


def _verdict(sweep: Sweep) -> list[str]:
    """Return the sentences at the head of the study's page, if any trial ended ok."""
    if not any(row["status"] == "ok" for row in sweep.rows.values()):
        return []
    from scalebench.analysis.study import analyse
    from scalebench.reporting import verdict

    return ["", *verdict(analyse(store.read_results(sweep.study_dir), sweep.study_dir.name))]


def _conclude(sweep: Sweep, elapsed_s: float, page: Path | None, *, as_json: bool) -> None:
    counts = dict(sweep.statuses())
    if as_json:
        summary = {"event": "summary", "study": sweep.study_dir.name, "executed": sweep.executed, "statuses": counts}
        places = {"results": str(sweep.study_dir)} | ({"report": str(page)} if page else {})
        print(json.dumps(summary | {"elapsed_s": elapsed_s} | places))
        return
    shown = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
    say(f"{sweep.executed} executed in {duration(elapsed_s)}: {shown}")
    wrong = sorted(set(counts) - {"ok", "missing"})
    if wrong:
        say(f"run them again with --retry {','.join(wrong)}; their logs are in {sweep.study_dir}/trials")
    say_exactly(f"report: {page}" if page else f"report: scalebench report {sweep.study_dir}")


def run_demo(results: Path, output: Path | None) -> int:
    """Run the demo study, write its report and a picture beside it, and print its conclusions; return the exit code.

    The report is ``demo/report.html`` in the results folder unless ``output`` is another file.
    """
    from scalebench.analysis.study import analyse
    from scalebench.reporting import picture, verdict, write

    code = run_study("demo", [], results, None, [], fresh_code=False, verdict=False, as_json=False)
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
    say(*_axes_lines(study, len(sweep.planned)), *_earlier_lines(sweep, rate.flops_per_s))
    for parent in parents[: None if every else SHOWN_SIZES]:
        end = "its run continued" if parent["continued"] else "its weights"
        cost = quantity(parent["flops"], "FLOP")
        say(f"starts from {parent['trial_id']} ({end}), which cost {cost}: {parent['attempt']}")
    if ceilings:
        print_steps(steps, ceilings)
    return 0


def _axes_lines(study: Study, trials_planned: int) -> list[str]:
    """Name the axes that multiply to the number of trials, those of [[zip]] as one, and what is excluded."""
    together = [entry.axes() for entry in study.zipped]
    zipped = {name for entry in together for name in entry}
    factors = {name: len(values) for name, values in study.axes().items() if len(values) > 1 and name not in zipped}
    factors |= {" with ".join(entry): len(next(iter(entry.values()))) for entry in together}
    if not factors:
        return []
    product = math.prod(factors.values())
    text = f"axes: {' × '.join(f'{name} ({count})' for name, count in factors.items())} = {product}"
    if study.parents is None and product > trials_planned:
        text += f", {product - trials_planned} of them excluded or equal to others"
    return [text]


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
        f"({total['assumed_rate_source']}) and a minimum time per step; memory assumes float32"
    )
