"""Warnings about the points of a fit, the same for `scalebench fit` and `scalebench.fit`. They change nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.analysis.selected import trial_warnings
from scalebench.points.files import is_results
from scalebench.points.fit_file import fit_values
from scalebench.points.roles import column_names
from scalebench.points.table_warnings import PERPLEXITIES, table_warnings
from scalebench.points.warnings import point_warnings, shape_warnings, unused_data
from scalebench.points.where import parse
from scalebench.store import read_results

if TYPE_CHECKING:
    from scalebench.laws import Fit
    from scalebench.points.table import PointTable

NO_SIZE = re.compile("step|epoch|iter|sample|second|time", re.I)  # columns that count no parameters


def file_warnings(path: Path, fit: Fit, table: PointTable, where: str | None) -> list[str]:
    """Warn of trials that differ in more than size, or of units, copies and unused columns in other points."""
    if is_results(path):
        return [*trial_warnings(path, read_results(path), where, table.columns.values()), *shape_warnings(fit)]
    selecting = parse(where).names if where else ()
    names = [name for name in column_names(path) if name not in selecting]
    unused = [*([table.note] if table.note else []), *unused_data(fit.law.inputs, table.columns, names)]
    values = fit_values(table)
    # A loss over steps has no size to check.
    if NO_SIZE.search(table.columns.get("params", table.columns.get("x", ""))):
        values = {("x" if role == "params" else role): numbers for role, numbers in values.items()}
    by_name = table_warnings(path, table)
    by_value = [
        line for line in value_warnings(values, fit)
        if PERPLEXITIES not in line or not any("looks like a perplexity" in warning for warning in by_name)
    ]  # fmt: skip
    return [*unused, *by_name, *by_value]


def value_warnings(values: Mapping[str, Any], fit: Fit) -> list[str]:
    """Warn of likely mistakes in points by role, each (n,), and of those far from the law."""
    return [*point_warnings(values), *shape_warnings(fit)]
