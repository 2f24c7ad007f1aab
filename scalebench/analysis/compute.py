"""The law of loss against training compute, of anyone's points or of trials: a results folder or its export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from scalebench.analysis.trials import LOSS, numeric, training_flops
from scalebench.errors import InputError
from scalebench.laws import Fit, FitRefused
from scalebench.laws import fit as fit_law
from scalebench.points.files import holds_trials, is_fit, open_table
from scalebench.points.fit_file import DEFAULT_LAW, check_columns, open_fit
from scalebench.points.roles import LAWS_OF_ONE_INPUT
from scalebench.points.table import read_columns, read_texts

COSTS = (
    "total_flops",
    "flops_per_step",
    "steps",
    "stop_step",
    "first_step",
    "parent_flops",
)  # what training_flops reads


def open_compute_fit(source: Path, law: str | None, by_role: Mapping[str, str], where: str | None) -> Fit:
    """Return a fit of loss against training FLOPs, or of a law of size and data.

    Trials have their FLOPs; other points need a column of them. Raises ``InputError`` or ``StoreError``.
    """
    if is_fit(source):
        return open_fit(source, law, by_role, where)
    law = law or DEFAULT_LAW
    if law not in LAWS_OF_ONE_INPUT:
        fitted = open_fit(source, law, by_role, where)
        check_columns(source, fitted.law, by_role)
        return fitted
    if unused := [f"--{role}-column: {law} of compute takes flops and loss; leave it out"
                  for role in by_role if role not in ("flops", "loss")]:  # fmt: skip
        raise InputError(unused)
    own_flops = holds_trials(source) and "flops" not in by_role
    try:
        return fit_law((_trials if own_flops else _columns)(source, by_role, where), law)
    except FitRefused as refusal:
        raise InputError([f"{source}: {refusal}"]) from refusal


def _columns(path: Path, by_role: Mapping[str, str], where: str | None) -> dict[str, Any]:
    loss = LOSS if holds_trials(path) else "loss"
    columns = {"flops": by_role.get("flops", "flops"), "loss": by_role.get("loss", loss)}
    options = {"flops": "--flops-column; --law chinchilla takes params and tokens instead", "loss": "--loss-column"}
    values = read_columns(path, columns, where, options=options).values
    return {"x": values["flops"], "y": values["loss"]}


def _trials(path: Path, by_role: Mapping[str, str], where: str | None) -> dict[str, Any]:
    """Return FLOPs of the whole training as x and loss as y, each (n,), of the valid trials that have both."""
    loss = by_role.get("loss", LOSS)
    present = open_table(path).names
    names = [name for name in (*COSTS, loss) if name in present or name in by_role.values()]
    trials = pd.DataFrame(read_texts(path, names, where))
    flops, losses = training_flops(trials), numeric(trials, loss)
    known = flops.notna() & losses.notna()
    if not known.any():
        selected = f" that --where {where!r} selects" if where else ""
        raise InputError([f"{path}: no trial{selected} has both flops_per_step and {loss}"])
    return {"x": flops[known].to_numpy(), "y": losses[known].to_numpy()}
