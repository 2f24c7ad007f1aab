"""Laws of the best value of swept columns, from a table of runs or a results folder, where nothing else varies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalebench.advice.optima import OptimumLaw, optimum_laws
from scalebench.advice.settings import REPLICATES, setting_line, unmodelled
from scalebench.analysis.replicates import SETTINGS
from scalebench.analysis.trials import ALWAYS_SPLIT, LOSS, numeric
from scalebench.errors import InputError, number_of, unknown
from scalebench.points.files import all_trials, holds_trials, is_results, open_table
from scalebench.points.table import read_columns, read_texts, select_rows
from scalebench.store import read_results

OF_MACHINES = ("machine_id", "device_name")  # what these change is the time, not the best value


def optimum_laws_of(
    path: Path,
    optimised: Sequence[str],
    against: Sequence[str],
    loss_column: str | None = None,
    replicates: Sequence[str] = (),
    where: str | None = None,
) -> tuple[OptimumLaw, ...]:
    """Return the law of each swept column of a table on disk; see ``optimum_laws``.

    Raises ``InputError`` for columns that are no sweep over sizes, and for settings that vary within a sweep and are
    neither swept nor among ``replicates``; ``FitRefused``.
    """
    for option, columns in (("--optimised", optimised), ("--against", against)):
        if not columns:
            raise InputError([f"{option}: names no column"])
        if repeated := [name for name in columns if [*optimised, *against].count(name) > 1]:
            raise InputError([f"{option}: {repeated[0]!r} is named twice; each column is swept or is a size, once"])
    names = {name: name for name in (*against, *optimised)}
    loss = loss_column or (LOSS if holds_trials(path) else "loss")
    options = {**dict.fromkeys(against, "--against"), **dict.fromkeys(optimised, "--optimised")}
    points = read_columns(path, {**names, "loss": loss}, where, options=options | {"loss": "--loss-column"}).values
    present = open_table(path).names
    if absent := [name for name in replicates if name not in present and name not in REPLICATES]:
        raise InputError([f"{path}: --replicates: column {unknown(name, present)}" for name in absent])
    used = {*names, loss, *replicates}
    others = [name for name in _settings(path) if name not in used]
    lines = unmodelled_lines(points, read_texts(path, others, where), optimised, against)
    if lines:
        raise InputError([f"{path}: {line}" for line in lines])
    return optimum_laws(points, optimised, against)


def diverged_line(path: Path, optimised: Sequence[str], where: str | None = None) -> str:
    """Return a line on the diverged trials of results or of an export, which are in no sweep; "" if there are none."""
    if (recorded := all_trials(path)) is None:
        return ""
    trials = select_rows(path, recorded, where)
    diverged = trials[trials["status"] == "diverged"]
    values = {name: numeric(diverged, name).dropna() for name in optimised}
    ranges = [
        f"{name} = {low:.4g}" if low == high else f"{name} from {low:.4g} to {high:.4g}"
        for name, column in values.items()
        if len(column)
        for low, high in [(column.min(), column.max())]
    ]
    if not ranges:
        return ""
    trials_of = number_of(len(diverged), "diverged trial")
    return (
        f"{path}: {trials_of} left out, with {' and '.join(ranges)}: where the best value is at an edge of its sweep "
        "next to them, add values between"
    )


def _settings(path: Path) -> list[str]:
    """Return the columns that may hold a setting: all of a file, and of trials what their studies may vary.

    An export has no list of its studies' axes, which a results folder has.
    """
    names = open_table(path).names
    if not holds_trials(path):
        return list(names)
    studies = read_results(path).studies if is_results(path) else {}
    axes = [axis for study in studies.values() for axis in study.get("axes") or {}]
    return [name for name in dict.fromkeys([*ALWAYS_SPLIT, *SETTINGS, *axes]) if name in {*names} - {*OF_MACHINES}]


def unmodelled_lines(
    points: Mapping[str, Any], others: Mapping[str, Any], optimised: Sequence[str], against: Sequence[str]
) -> list[str]:
    """Return a line for each of the ``others`` that varies within a sweep, with what to do about it."""
    sizes = np.stack([np.asarray(points[name], dtype=float) for name in against], axis=1)
    sweep = np.unique(sizes, axis=0, return_inverse=True)[1].reshape(-1)
    varied = unmodelled(others, sweep, [points[name] for name in optimised])
    return [
        f"{setting_line(name, values)}, and the best {' and '.join(optimised)} may depend on it: optimise it as well "
        f"(--optimised {','.join([*optimised, name])}), make it a size (--against {','.join([*against, name])}), "
        f"select one of its values (--where), or count it as noise (--replicates {name})"
        for name, values in varied.items()
    ]
