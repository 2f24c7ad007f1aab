"""From the points of a file to a fitted law, and the JSON of a fit, which holds what it takes to make the fit again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scalebench.errors import InputError, unknown
from scalebench.laws import DEFAULT_REFITS, LAWS, FitRefused, Law, Refits
from scalebench.laws import fit as fit_law
from scalebench.points.files import open_table
from scalebench.points.table import CONFIG, PointTable, read_columns
from scalebench.store import StoreError, read_json

if TYPE_CHECKING:
    from scalebench.laws import Backtest, Fit

TOKENS_PER_FLOP = 1 / 6  # times 1 / N: training takes about 6 FLOPs per parameter and token (Kaplan et al. 2020)
OF_RESULTS = {"params": "params_non_embedding", "tokens": "tokens_seen", "loss": "validation_loss_nats"}
ALIASES = {"x": ("params",), "y": ("loss",), "params": ("x",), "loss": ("y",)}
LAWS_OF_ONE_INPUT = tuple(name for name, law in LAWS.items() if len(law.inputs) == 1)
# What `--law auto` chooses among: losses of size alone, or of size and data.
CHOICES = {1: ("power", "broken"), 2: ("chinchilla", "skaling", "kaplan", "overtraining")}
OPTIONS = ("loss", "delta", "space", "fixed")


def find_law(name: str) -> Law:
    """Return a law by name. Raises ``InputError``."""
    if name not in LAWS:
        raise InputError([f"--law: {unknown(name, LAWS)}"])
    return LAWS[name]


def named_laws(text: str, given: Mapping[str, str], names: Sequence[str]) -> tuple[str, ...]:
    """Return the laws of ``--law A,B,C``; of ``auto`` those of size and data where columns have data, else of size.

    Raises ``InputError`` for laws whose inputs differ.
    """
    data = {"tokens", "flops"}
    one = text if text != "auto" else ",".join(CHOICES[2 if data & {*given, *names} or "tokens_seen" in names else 1])
    laws = tuple(dict.fromkeys(name.strip() for name in one.split(",") if name.strip()))
    inputs = {find_law(name).inputs if len(find_law(name).inputs) > 1 else ("x",) for name in laws}
    if len(inputs) != 1:
        told = "; ".join(f"{name}: {', '.join(LAWS[name].inputs)}" for name in laws)
        raise InputError([f"--law {text}: laws are compared on the same inputs; these have {told or 'no names'}"])
    return laws


def column_options(law: Law) -> dict[str, str]:
    """Return role -> the option of the command that names its column."""
    own = {role: f"--{role}-column" for role in ("params", "tokens", "flops", "loss", "x", "y", CONFIG)}
    own |= {"tokens": "--tokens-column, or --flops-column for D = C / 6N"}
    found = {role: own.get(role, f"--column {role}=NAME") for role in (*law.inputs, "flops", CONFIG)}
    return found | {law.response: own.get(law.response, "--y-column")}


def column_names(path: Path) -> tuple[str, ...]:
    """Return the columns of a file; of a results folder those that laws read by default."""
    return tuple(OF_RESULTS) if path.is_dir() else open_table(path).names


def law_columns(
    law: Law, given: Mapping[str, str], *, of_results: bool, names: Sequence[str] = ("params",)
) -> dict[str, str]:
    """Return role -> column for a law, from those given by role and the defaults.

    A law of one input takes ``x`` and ``params``, ``y`` and ``loss`` for each other; any law takes ``y`` for its
    response. With ``flops`` and without ``tokens``, a law of tokens reads FLOPs in their place; with both, and without
    a column of parameters among the ``names`` of the file, a law of parameters does.
    """
    defaults = OF_RESULTS if of_results else {}
    columns = {}
    for role in (*law.inputs, law.response):
        one = len(law.inputs) == 1
        roles = [role, *(ALIASES.get(role, ()) if one else ()), *(("y",) if role == law.response else ())]
        found = next((name for name in roles if name in given), None)
        by_flops = role == "tokens" or (role == "params" and "tokens" in given and role not in names)
        if found is None and by_flops and "flops" in given and "tokens" in law.inputs:
            columns["flops"] = given["flops"]
        else:
            columns[role] = given[found] if found else defaults.get(role, role)
    return columns | ({CONFIG: given[CONFIG]} if CONFIG in given else {})


def fit_points(
    path: Path,
    law: str,
    given: Mapping[str, str],
    where: str | None,
    options: Mapping[str, Any],
    refits: Refits = DEFAULT_REFITS,
) -> tuple[Fit, PointTable]:
    """Read points and fit a law to them, its intervals by ``refits``.

    Raises ``InputError`` or ``StoreError``, with the file in every line.
    """
    form = find_law(law)
    columns = law_columns(form, given, of_results=path.is_dir(), names=column_names(path))
    table = read_columns(path, columns, where, options=column_options(form))
    try:
        return replace(fit_law(fit_values(table), form, **options), refits=refits), table
    except FitRefused as refusal:
        selected = f" ({len(table):,} points selected by --where {where!r})" if where else ""
        raise InputError([f"{path}: {refusal}{selected}"]) from refusal


def fit_values(table: PointTable) -> dict[str, Any]:
    """Return the columns for `fit`: FLOPs turned into tokens, D = C / 6N, or into parameters, N = C / 6D."""
    values = dict(table.values)
    for missing, other in (("tokens", "params"), ("params", "tokens")):
        if "flops" in values and missing not in values and other in values:
            values[missing] = values.pop("flops") * TOKENS_PER_FLOP / values[other]
    return values


def to_document(fit: Fit, table: PointTable, tested: Backtest | None) -> dict[str, Any]:
    """Return `fit.to_dict()`, and what it takes to make the fit and its intervals again."""
    points = {role: np.asarray(values).tolist() for role, values in fit_values(table).items()}
    source = {"file": table.path.name, "columns": table.columns, "where": table.where}
    return {
        **fit.to_dict(),
        "backtest": None if tested is None else [json_safe(row.to_dict()) for row in tested.forecasts],
        "points": points,
        "source": source,
    }


def json_safe(value: Any) -> Any:
    """Return a value with null for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {name: json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_document(path: Path) -> tuple[Fit, dict[str, Any]]:
    """Read the JSON of a fit and make the fit again from the points in it. Raises ``StoreError``.

    A file without ``refits`` is of a time when every interval was drawn as the defaults say.
    """
    document = read_json(path)
    missing = [key for key in ("law", "points", *OPTIONS) if key not in document]
    if missing:
        raise StoreError(f"{path}: no {', '.join(missing)} in it; make it with `scalebench fit POINTS --json FILE`")
    try:
        refits = Refits(**document.get("refits", {}))
        made = fit_law(document["points"], document["law"], **{name: document[name] for name in OPTIONS})
        return replace(made, refits=refits), document
    except (FitRefused, TypeError, AttributeError, KeyError) as error:
        raise StoreError(f"{path}: the fit in it cannot be made again ({error})") from error
