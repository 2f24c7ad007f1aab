"""The choice of a law for the command `fit`: several laws ranked by hold-out error, the best of them fitted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.cli.output import say, table
from scalebench.errors import InputError
from scalebench.laws import FitRefused, choose
from scalebench.points.files import open_table
from scalebench.points.fit_file import fit_values
from scalebench.points.roles import column_names, column_options, find_law, law_columns, named_laws
from scalebench.points.table import read_columns

if TYPE_CHECKING:
    from scalebench.laws import Choice


def choose_law(
    path: Path, text: str, given: Mapping[str, str], where: str | None, options: Mapping[str, Any]
) -> tuple[str, Choice | None]:
    """Return the law that ``text`` names, or the one of several (``auto`` or ``A,B``) of lowest hold-out error.

    Raises ``InputError`` or ``StoreError``.
    """
    if text != "auto" and "," not in text:
        return text, None
    laws = named_laws(text, given, open_table(path).names)
    form = find_law(laws[0])
    columns = law_columns(form, given, of_results=path.is_dir(), names=column_names(path))
    points = fit_values(read_columns(path, columns, where, options=column_options(form)))
    if len(form.inputs) == 1:  # laws of one input all take it as x
        points = {"x": points[form.inputs[0]], "y": points[form.response]}
    try:
        found = choose(points, laws, by="x" if len(form.inputs) == 1 else form.inputs[0], **options)
    except FitRefused as refusal:
        raise InputError([f"{path}: --law {text}: {refusal}; a law by its name needs no hold-out"]) from refusal
    return found.best, found


def print_choice(found: Choice) -> None:
    """Print the laws by hold-out error, and those that were refused."""
    rows = [(one.law, f"{one.error_percent:.3g} %", "tied" if one.tied else "", one.reason) for one in found.ranking]
    say(f"laws by the error of {found.n_forecasts} forecasts of {found.n_configurations} held-out configurations", "")
    table("", ("law", "hold-out error", "", "why"), rows)
    say(*(f"{law}: refused: {reason}" for law, reason in found.refused.items()), "")
