"""Tables in memory as the Python API takes them: data frames of several libraries, and dicts of columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalebench.errors import InputError, expect
from scalebench.points import numerals
from scalebench.points.files import OF_RESULTS
from scalebench.points.roles import as_spelled
from scalebench.points.table import select_rows

POINTS = "a path, a table with named columns (a DataFrame or a dict), or load_results(...)"


def selected_rows(function: str, points: Any, where: str | None) -> pd.DataFrame:
    """Return the rows of a table in memory that match ``where``, as a plain data frame."""
    points = as_pandas(points)
    if isinstance(points, Mapping):
        try:
            points = pd.DataFrame(dict(points))
        except ValueError as error:  # columns of different lengths
            raise InputError(f"{function}: the points are no table: {error}") from error
    expect(points, pd.DataFrame, f"{function}: points are {POINTS}")
    return select_rows(Path("the points"), pd.DataFrame(points), where)


def as_pandas(points: Any) -> Any:
    """Return the table of another library (polars, pyarrow, datasets) as a data frame of pandas; others unchanged."""
    return points.to_pandas() if hasattr(points, "to_pandas") else points


def with_numbers(columns: Mapping[Any, Any] | pd.DataFrame, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return columns by name, in which numbers that are texts, such as 10M, are read as in a file.

    Only those of ``names``, or else all. What is no number stays as it is: an error can then quote it.
    """
    read = {str(name): columns[name] for name in columns}
    chosen = {name: np.asarray(read[name]) for name in (read if names is None else names) if name in read}
    cells = {name: col.astype(object) for name, col in chosen.items() if col.dtype.kind in "OU" and col.ndim == 1}
    is_text = {name: np.array([isinstance(cell, str) for cell in column], dtype=bool) for name, column in cells.items()}
    mark = numerals.mark_of(cell for name, column in cells.items() for cell in column[is_text[name]])
    for name, column in cells.items():
        if is_text[name].any():
            values = numerals.numbers(column[is_text[name]], mark)
            column[is_text[name]] = np.where(np.isfinite(values), values, column[is_text[name]])
            read[name] = column
    return read


def law_values(frame: pd.DataFrame, law: Any) -> dict[str, Any]:
    """Return the columns that a law reads, under its own names."""
    columns = with_numbers({role: frame[name] for role, name in law_names(frame, law).items()})
    return columns | ({"config": frame["config"].to_numpy()} if "config" in frame else {})


def law_names(frame: pd.DataFrame, law: Any) -> dict[str, str]:
    """Return the name of the column that a law reads for each role."""
    names_by_role = {}
    for role in (*law.inputs, law.response):
        aliases = {"x": ("x", "params"), "y": ("y", "loss"), "params": ("params", "x"), "loss": ("loss", "y")}
        names = aliases[role] if role in aliases and len(law.inputs) == 1 else (role,)
        of_results = [OF_RESULTS[name] for name in names if name in OF_RESULTS]
        # A table of results also has `params`, all parameters, which is not the N of its laws.
        candidates = [*of_results, *names] if OF_RESULTS["loss"] in frame else [*names, *of_results]
        candidates_as_spelled = [as_spelled(name, [*map(str, frame.columns)]) for name in candidates]
        name = next((name for name in (*candidates, *candidates_as_spelled) if name in frame), None)
        if name is None:
            known = ", ".join(map(str, frame.columns[:20]))
            raise InputError([f"fit: {law.name} needs a column {' or '.join(candidates)}; there are {known}"])
        names_by_role[role] = name
    return names_by_role
