"""From the points of a file to a fitted law, and the JSON of a fit, which holds what it takes to make the fit again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from scalebench.errors import InputError
from scalebench.laws import DEFAULT_REFITS, FitRefused, Refits
from scalebench.laws import fit as fit_law
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN
from scalebench.points.files import holds_trials, is_fit
from scalebench.points.roles import ALIASES, column_names, column_options, find_law, law_columns
from scalebench.points.table import PointTable, read_columns
from scalebench.store import StoreError, json_safe, read_json

if TYPE_CHECKING:
    from scalebench.laws import Backtest, Fit, Law

TOKENS_PER_FLOP = 1 / FLOPS_PER_PARAMETER_TOKEN  # times 1 / N
DEFAULT_LAW = "power"
OPTIONS = ("loss", "delta", "space", "fixed")


def fit_points(
    path: Path,
    law: str,
    by_role: Mapping[str, str],
    where: str | None,
    options: Mapping[str, Any],
    refits: Refits = DEFAULT_REFITS,
    last_of: str | None = None,
    own_options: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Fit, PointTable]:
    """Read points and fit a law to them, its intervals by ``refits``.

    ``own_options`` are those of the command that name a column, by role, where they are not those of `fit`.
    Raises ``InputError`` or ``StoreError``, with the file in every line.
    """
    form = find_law(law)
    columns = law_columns(form, by_role, of_results=holds_trials(path), names=column_names(path))
    option_names = {**column_options(form), **own_options}
    table = read_columns(path, columns, where, options=option_names, last_of=last_of)
    try:
        return replace(fit_law(fit_values(table), form, **options), refits=refits), table
    except FitRefused as refusal:
        selected = f" ({len(table):,} points selected by --where {where!r})" if where else ""
        raise InputError([f"{path}: {refusal}{selected}"]) from refusal


def open_fit(
    source: Path,
    law: str | None,
    by_role: Mapping[str, str],
    where: str | None,
    own_options: Mapping[str, str] = MappingProxyType({}),
) -> Fit:
    """Return the fit in a JSON file, or ``law`` (power) fitted to the points of any other source; see ``fit_points``.

    Raises ``InputError`` or ``StoreError``.
    """
    if is_fit(source):
        if by_role or where is not None:
            raise InputError([f"{source}: the fit already holds its points; leave --where and columns out"])
        fitted = from_document(source)[0]
        if law not in (None, fitted.law.name):
            raise InputError([f"{source}: holds a fit of {fitted.law.name}, not of {law}; fit {law} to its points"])
        return fitted
    return fit_points(source, law or DEFAULT_LAW, by_role, where, {}, own_options=own_options)[0]


def check_columns(source: Path, law: Law, by_role: Mapping[str, str]) -> None:
    """Raise ``InputError`` for a column that was named for a role and that a law does not read."""
    if by_role:
        read = law_columns(law, by_role, of_results=holds_trials(source), names=column_names(source))
        if unused := unused_columns(by_role, law, read):
            raise InputError([f"{source}: {line}; leave it out" for line in unused])


def unused_columns(by_role: Mapping[str, str], law: Law, columns: Mapping[str, str]) -> list[str]:
    """Return a line for each column that was named for a role and that a law, which reads ``columns``, did not read."""
    unused = []
    for role, name in sorted(by_role.items()):
        others = [other for other in columns if role in ALIASES.get(other, ()) or (role, other) == ("y", law.response)]
        if name not in [columns.get(each) for each in (role, *others)]:
            unused.append(f"not used by {law.name}: column {name!r} for {role}")
    return unused


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


def from_document(path: Path) -> tuple[Fit, dict[str, Any]]:
    """Read the JSON of a fit and make the fit again from the points in it. Raises ``StoreError``.

    A file without ``refits`` was written when all intervals used the default settings.
    """
    document = read_json(path)
    missing = [key for key in ("law", "points", *OPTIONS) if key not in document]
    if missing:
        raise StoreError(f"{path}: no {', '.join(missing)} in it; make it with `scalebench fit POINTS --output FILE`")
    try:
        refits = Refits(**document.get("refits", {}))
        _check_shapes(refits, document.get("source") or {})
        refitted = fit_law(document["points"], document["law"], **{name: document[name] for name in OPTIONS})
        return replace(refitted, refits=refits), document
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # FitRefused is a ValueError
        raise StoreError(f"{path}: the fit in it cannot be made again ({error})") from error


def _check_shapes(refits: Refits, source: Any) -> None:
    """Raise ``TypeError`` for values of a fit's JSON that are of another kind than those that are written."""
    if type(refits.n) is not int or type(refits.seed) is not int:
        raise TypeError(f"refits: n and seed are whole numbers, not {refits.n!r} and {refits.seed!r}")
    columns = source.get("columns", {})
    if not all(isinstance(name, str) for name in columns.values()):
        raise TypeError(f"source: columns: expected names of columns, not {columns!r}")
