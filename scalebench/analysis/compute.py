"""The law of loss against training compute, of anyone's points or of the trials of a results folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalebench.analysis.selected import select_trials
from scalebench.analysis.trials import LOSS, training_flops
from scalebench.errors import InputError
from scalebench.laws import Fit, FitRefused
from scalebench.laws import fit as fit_law
from scalebench.points.files import is_fit, is_results
from scalebench.points.fit_file import open_fit
from scalebench.points.roles import LAWS_OF_ONE_INPUT
from scalebench.points.table import read_columns
from scalebench.store import read_results


def open_compute_fit(source: Path, law: str, by_role: Mapping[str, str], where: str | None) -> Fit:
    """Return a fit of loss against training FLOPs, or of a law of size and data.

    A results folder has its FLOPs; other points need a column of them. Raises ``InputError`` or ``StoreError``.
    """
    if is_fit(source) or law not in LAWS_OF_ONE_INPUT:
        return open_fit(source, law, by_role, where)
    try:
        return fit_law(_trials(source, where) if is_results(source) else _columns(source, by_role, where), law)
    except FitRefused as refusal:
        raise InputError([f"{source}: {refusal}"]) from refusal


def _columns(path: Path, by_role: Mapping[str, str], where: str | None) -> dict[str, Any]:
    columns = {"flops": by_role.get("flops", "flops"), "loss": by_role.get("loss", "loss")}
    options = {"flops": "--flops-column; --law chinchilla takes params and tokens instead", "loss": "--loss-column"}
    values = read_columns(path, columns, where, options=options).values
    return {"x": values["flops"], "y": values["loss"]}


def _trials(path: Path, where: str | None) -> dict[str, Any]:
    """Return FLOPs of the whole training as x and validation loss as y, each (n,)."""
    trials = select_trials(path, read_results(path), where)
    flops = training_flops(trials)
    known = flops.notna() & trials[LOSS].notna()
    if not known.any():
        raise InputError([f"{path}: no trial has both flops_per_step and a validation loss"])
    return {"x": flops[known].to_numpy(), "y": trials.loc[known, LOSS].to_numpy()}
