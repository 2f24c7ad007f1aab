"""What commands print with: lines, tables, JSON, and how numbers and times are written."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def say(*lines: str) -> None:
    """Print lines as they are: no markup, no wrapping."""
    for line in lines:
        print(line)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=1, allow_nan=False))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
    """Print a table; the first ``text_columns`` columns to the left, numbers to the right."""
    grid = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        grid.add_column(name, justify="left" if index < text_columns else "right", overflow="fold")
    for row in rows:
        grid.add_row(*row)
    # Into a file or a pipe nothing is cut to a width that nobody looks at.
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 160).print(grid)


def si(value: float | None, unit: str = "") -> str:
    """Write a number with three digits and an SI prefix: 1.23 M."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "-"
    for factor, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def trials(number: int) -> str:
    """Write how many trials: 1 trial, 2 trials."""
    return f"{number} trial" if number == 1 else f"{number} trials"


def duration(seconds: float) -> str:
    """Write a time: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole / 86400:.3g} days"
