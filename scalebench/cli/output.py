"""What commands print with: lines, tables, JSON, and how numbers and times are written."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from scalebench.reporting import quantities

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def say(*lines: str) -> None:
    """Print lines as they are: no markup, no wrapping."""
    for line in lines:
        print(visible(line))


def visible(text: str) -> str:
    """Return a text with escapes for control characters, which could change what the terminal shows elsewhere."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    print(json.dumps(value, indent=1, allow_nan=False))


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int = 1) -> None:
    """Print a table; the first ``text_columns`` columns to the left, numbers to the right."""
    if title:
        print(title)  # rich would wrap it to the width of the table
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(header):
        grid.add_column(name, justify="left" if index < text_columns else "right", overflow="fold")
    for row in rows:
        grid.add_row(*map(visible, row))
    # Into a file or a pipe nothing is cut to a width that nobody looks at.
    Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 160).print(grid)


def quantity(value: float | None, unit: str = "") -> str:
    """Write a value with three digits and its unit as in the report, with a plain space: 1.23 MFLOPs, 9.5 KiB."""
    return quantities.quantity(value, unit).replace(quantities.NBSP, " ")


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
