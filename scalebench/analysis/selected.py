"""Trials of results folders that a command selects: those that `--where` matches, and the one series among them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scalebench.analysis.counting import Count
from scalebench.analysis.series import setting_text
from scalebench.analysis.serving import LOADS
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LENGTH_AXES, LOSS, STEP_TIME, prepare, split_columns, tuned_axes
from scalebench.errors import InputError
from scalebench.points.table import select_rows
from scalebench.store import Results, left_out_line, of_plans, read_results


def select_trials(
    path: Path, results: Results, where: str | None, measured: Sequence[str] = (LOSS, STEP_TIME)
) -> pd.DataFrame:
    """Return the valid trials that match an expression, prepared, of those that their study planned.

    They have one of the ``measured`` columns: those of training, unless others are named.

    Raises ``InputError`` when there is none.
    """
    planned = of_plans(results).frame
    trials = prepare(select_rows(path, planned, where))
    known = trials["valid"] & trials.reindex(columns=list(measured)).notna().any(axis=1)
    if not known.any():
        selected = f" that --where {where!r} selects" if where else ""
        lacking = "has a validation loss or a step time" if trials["valid"].any() else "ended ok with valid numbers"
        left_out = left_out_line(len(results.frame) - len(planned))
        raise InputError([f"{path}: no trial{selected} {lacking}" + (f"; {left_out}" if left_out else "")])
    return trials[known]


def select_study(
    path: Path, where: str | None, count: Count | None = None, measured: Sequence[str] = (LOSS, STEP_TIME)
) -> StudyAnalysis:
    """Return the analysis of the selected trials, whose lengths of training, or loads, may differ; ``count`` as of it.

    ``measured`` as in ``select_trials``.

    Raises ``InputError`` for a folder without trials, and for a mixture of studies, devices, implementations and the
    like.
    """
    results = read_results(path)
    if len(results.studies) > 1:
        first, *others = results.studies
        names = f"{path / first} (or {', '.join(others)})"
        raise InputError([f"{path}: holds {len(results.studies)} studies; name one, such as {names}"])
    if not results.studies:
        raise InputError([f"{path}: there are no trials here, only comparisons of operations; name a study's folder"])
    ((name, definition),) = results.studies.items()
    left_out = len(results.frame) - len(of_plans(results).frame)
    trials = select_trials(path, results, where, measured)
    study = StudyAnalysis(name, of_any_length(definition), trials, left_out=left_out, count=count)
    if len(study.series) > 1:
        labels = "; ".join(series.label for series in study.series)
        example = f'--where "{_of_first_series(study)}"'
        raise InputError([f"{path}: holds {len(study.series)} series: {labels}; choose one, as in {example}"])
    return study


def _of_first_series(study: StudyAnalysis) -> str:
    """Return the expression that selects the first series: the settings that tell it from the others."""
    trials = study.series[0].trials
    values = {name: trials[name].iloc[0] for name in split_columns(study.trials, study.definition)}
    known = {name: value for name, value in values.items() if pd.notna(value)}
    return " and ".join(
        f"{name} == {value!r}" if isinstance(value, str) else f"{name} == {setting_text(value)}"
        for name, value in known.items()
    )


def of_any_length(definition: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's definition without the axes of how long a trial trains, or of its load: they split no series."""
    leave_out = LENGTH_AXES.union(LOADS)
    axes = {name: values for name, values in (definition.get("axes") or {}).items() if name not in leave_out}
    return {**definition, "axes": axes}


def trial_warnings(path: Path, results: Results, where: str | None, used: Collection[str] = ()) -> list[str]:
    """Return warnings for a fit to the selected trials of results folders: what it mixes beside size and length.

    ``read`` are the columns that the law takes, such as bits, which it does not mix. The last is on trials that no
    study planned, which the fit leaves out.
    """
    trials, studies = select_trials(path, results, where), results.studies.values()
    split = [name for definition in studies for name in split_columns(trials, of_any_length(definition))]
    split = ["study"] * (trials["study"].nunique() > 1) + [name for name in split if name not in used]
    mixed = list(dict.fromkeys(split))
    tuned = dict.fromkeys(axis for definition in studies for axis in tuned_axes(definition) if axis in trials)
    varied = [axis for axis in tuned if trials[axis].nunique() > 1]
    lines = {
        f"these trials differ in {', '.join(mixed)}: choose with --where, otherwise the fit mixes them": mixed,
        f"these trials are tuned over {', '.join(varied)}: the fit uses all of them, report and predict only the best "
        "at each size; choose with --where": varied,
    }
    left_out = left_out_line(len(results.frame) - len(of_plans(results).frame))
    return [line for line, columns in lines.items() if columns] + [left_out] * bool(left_out)
