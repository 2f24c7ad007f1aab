"""Points and fits for the commands that ask laws what to do: columns by role, training FLOPs, candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalebench.analysis.predictions import chosen_trials
from scalebench.analysis.series import LOSS, N, numeric
from scalebench.errors import InputError
from scalebench.laws import Fit, FitRefused
from scalebench.laws import fit as fit_law
from scalebench.points.files import open_table
from scalebench.points.fit_file import LAWS_OF_ONE_INPUT, fit_points, from_document
from scalebench.points.table import CONFIG, read_columns
from scalebench.store import read_results

# Columns of a results folder by role; other files have columns of the name of the role unless told otherwise.
OF_RESULTS = {"params_non_embedding": N, "tokens": "tokens_seen", "loss": LOSS}
RUN = "run"  # the role of text that names a training run


def read_roles(
    path: Path, roles: Sequence[str], optional: Sequence[str], given: Mapping[str, str], where: str | None
) -> dict[str, Any]:
    """Return columns by role, each (n,): all ``roles``, and of the ``optional`` those that are given or there.

    Raises ``InputError`` or ``StoreError``, with the file in every line.
    """
    defaults = OF_RESULTS if path.is_dir() else {}
    named = {role: given.get(role, defaults.get(role, role)) for role in (*roles, *optional)}
    there = open_table(path).names
    kept = {role: name for role, name in named.items() if role in (*roles, *given) or name in there}
    columns = {CONFIG if role == RUN else role: name for role, name in kept.items()}  # the reader's one role of text
    options = {role: f"--{role.removeprefix('params_').replace('_', '-')}-column" for role in named}
    values = read_columns(path, columns, where, options=options).values
    return {RUN if role == CONFIG else role: column for role, column in values.items()}


def find_fit(source: Path, law: str, given: Mapping[str, str], where: str | None) -> Fit:
    """Return the fit in the JSON of one, or that of a law to points. Raises ``InputError`` or ``StoreError``."""
    if source.suffix == ".json":
        if given or where is not None:
            raise InputError([f"{source}: a fit has chosen its columns and points; leave --where and columns out"])
        return from_document(source)[0]
    return fit_points(source, law, given, where, {})[0]


def find_compute_fit(source: Path, law: str, given: Mapping[str, str], where: str | None) -> Fit:
    """Return a fit of loss against training FLOPs, or of chinchilla. A results folder says its FLOPs itself.

    Raises ``InputError`` or ``StoreError``.
    """
    if source.suffix == ".json" or law not in LAWS_OF_ONE_INPUT:
        return find_fit(source, law, given, where)
    if source.is_dir():
        points = training_flops(source, where)
    else:
        named = {"flops": given.get("flops", "flops"), "loss": given.get("loss", "loss")}
        options = {"flops": "--flops-column; --law chinchilla takes params and tokens instead", "loss": "--loss-column"}
        read = read_columns(source, named, where, options=options)
        points = {"x": read.values["flops"], "y": read.values["loss"]}
    try:
        return fit_law(points, law)
    except FitRefused as refusal:
        raise InputError([f"{source}: {refusal}"]) from refusal


def training_flops(path: Path, where: str | None) -> dict[str, Any]:
    """Return FLOPs of the whole training as x and validation loss as y of the trials of a results folder."""
    trials = chosen_trials(path, read_results(path), where)
    flops = numeric(trials, "flops_per_step") * numeric(trials, "steps").fillna(numeric(trials, "stop_step"))
    known = flops.notna() & trials[LOSS].notna()
    if not known.any():
        raise InputError([f"{path}: no trial has both flops_per_step and a validation loss"])
    return {"x": flops[known].to_numpy(), "y": trials.loc[known, LOSS].to_numpy()}


def candidate_trials(fit: Fit, values: int, reach: float) -> dict[str, Any]:
    """Return a grid of trials, (values ** inputs,) each, from the smallest to ``reach`` times the largest measured.

    Laws of params and tokens get their cost as ``flops`` = 6ND.
    """
    spans = {name: (float(log.min()), float(log.max()) + float(np.log(reach))) for name, log in fit.points.logs.items()}
    grid = np.meshgrid(*(np.geomspace(np.exp(low), np.exp(high), values) for low, high in spans.values()))
    return dict(zip(spans, (axis.ravel() for axis in grid), strict=True))
