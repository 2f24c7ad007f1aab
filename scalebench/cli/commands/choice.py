"""The choice of a law for `fit --law auto`: laws ranked by hold-out error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.cli.output import say, table
from scalebench.errors import InputError, number_of
from scalebench.laws import FitRefused, choose
from scalebench.points.files import OF_RESULTS, holds_trials, open_table
from scalebench.points.fit_file import fit_values
from scalebench.points.roles import column_names, column_options, find_law, law_columns, named_laws
from scalebench.points.table import CONFIG, read_columns

if TYPE_CHECKING:
    from scalebench.laws import Choice


def choose_law(
    path: Path,
    text: str,
    by_role: Mapping[str, str],
    where: str | None,
    options: Mapping[str, Any],
    last_of: str | None = None,
) -> tuple[str, Choice | None]:
    """Return the law that ``text`` names; for ``auto`` or ``A,B`` the one of lowest hold-out error, with the ranking.

    Raises ``InputError`` or ``StoreError``.
    """
    if text != "auto" and "," not in text:
        return text, None
    laws = named_laws(text, by_role, _varying(path, by_role, where) if text == "auto" else open_table(path).names)
    form = find_law(laws[0])
    columns = law_columns(form, by_role, of_results=holds_trials(path), names=column_names(path))
    points = fit_values(read_columns(path, columns, where, options=column_options(form), last_of=last_of))
    if len(form.inputs) == 1:  # laws of one input all take it as x
        points = {"x": points[form.inputs[0]], "y": points[form.response]}
    try:
        choice = choose(points, laws, by="x" if len(form.inputs) == 1 else form.inputs[0], **options)
    except FitRefused as refusal:
        raise InputError([f"{path}: --law {text}: {refusal}; a single named law needs no hold-out"]) from refusal
    return choice.best, choice


def _varying(path: Path, by_role: Mapping[str, str], where: str | None) -> list[str]:
    """Return the columns of a table, without a column of tokens that was not asked for and is constant."""
    names = list(open_table(path).names)
    data = OF_RESULTS["tokens"] if holds_trials(path) else "tokens"
    if data in names and not {"tokens", "flops"} & {*by_role}:
        try:
            values = read_columns(path, {CONFIG: data}, where).values[CONFIG]  # as text: it may be constant
        except InputError:  # such as a condition that selects no row: reading the points reports it
            return names
        if len(set(values)) == 1:
            names.remove(data)
    return names


def print_choice(choice: Choice) -> None:
    """Print the laws by hold-out error, and those that were refused."""
    rows = [(law.law, f"{law.error_percent:.3g} %", "tied" if law.tied else "", law.reason) for law in choice.ranking]
    forecasts = number_of(choice.n_forecasts, "forecast")
    say(f"laws by hold-out error: {forecasts} of {number_of(choice.n_configurations, 'configuration')}", "")
    table("", ("law", "hold-out error", "", "reason"), rows, last_is_text=True)
    say(*(f"{law}: refused: {reason}" for law, reason in choice.refused.items()), "")
