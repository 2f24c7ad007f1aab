"""Points from any trainer: the columns a law needs, read from CSV, Parquet or a results folder, every value checked.

Only the named columns are read, block by block, so that a file of gigabytes takes the memory of its points alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.errors import unknown
from scalebench.points.files import MISSING, Block, PointsError, Table, open_table
from scalebench.points.where import Mask, Where, WhereError, parse

MAX_POINTS = 1_000_000  # a fit holds about two kilobytes per point; more belong averaged or thinned first
# Decimal commas and thousands separators: "4,608" may be either.
SEPARATED = re.compile(r"[+-]?\d+([,_' ]\d+)+(\.\d*)?([eE][+-]?\d+)?")
CONFIG = "config"  # the one role that may hold text: it names the independent configuration of a row


@dataclass(frozen=True)
class PointTable:
    """Points by role (``params``, ``tokens``, ``loss``, …), each array (n,), and the columns they were read from."""

    path: Path
    values: dict[str, NDArray[Any]]
    columns: dict[str, str]
    where: str | None

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


def read_columns(
    path: Path,
    columns: Mapping[str, str],
    where: str | None = None,
    *,
    least: int = 1,
    options: Mapping[str, str] = MappingProxyType({}),
) -> PointTable:
    """Read the ``columns`` (role -> column name) of the rows that fulfil ``where``; role ``config`` may hold text.

    ``options`` say, by role, which option of the command names the column. Raises ``PointsError``, naming file, row and
    column, for a file or column that is not there, values that are not positive finite numbers, a column that never
    changes, and fewer than ``least`` points.
    """
    condition, source = parse_where(where), open_table(path)
    needed = list(dict.fromkeys([*columns.values(), *(condition.names if condition else ())]))
    check_names(source, needed, {columns[role]: option for role, option in options.items() if role in columns})
    parts: dict[str, list[NDArray[Any]]] = {role: [] for role in columns}
    read = kept = 0
    for block in source.blocks(needed):
        mask = mask_of(block, condition)
        _check_values(source, block, columns, mask, read)
        for role, name in columns.items():
            parts[role].append((block.texts(name) if role == CONFIG else block.numbers(name))[mask])
        read, kept = read + block.rows, kept + int(mask.sum())
        if kept > MAX_POINTS:
            raise PointsError([f"{path}: more than {MAX_POINTS:,} points; thin them with --where, or average repeats"])
    _check_count(path, where, read, kept, least)
    table = PointTable(path, {role: np.concatenate(part) for role, part in parts.items()}, dict(columns), where)
    _check_spread(table)
    return table


def parse_where(where: str | None) -> Where | None:
    """Parse a condition, if there is one. Raises ``PointsError``."""
    try:
        return None if where is None else parse(where)
    except WhereError as error:
        raise PointsError([str(error)]) from error


def check_names(source: Table, names: Sequence[str], options: Mapping[str, str] = MappingProxyType({})) -> None:
    """Raise ``PointsError`` with a line for each name that is no column of the source, and the option that names it."""
    lines = [
        f"{source.path}: column {unknown(name, source.names)}"
        + (f"; name it with {options[name]}" if name in options else "")
        for name in names
        if name not in source.names
    ]
    if lines and all(map(_is_number, source.names)):
        lines.append(f"{source.path}: the first line holds numbers only; it must name the columns")
    if lines:
        raise PointsError(lines)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python reads 1_000, other tools do not


def mask_of(block: Block, condition: Where | None) -> Mask:
    """Return which rows of a block fulfil a condition; all, where there is none."""

    def column(name: str, kind: str) -> NDArray[Any]:
        return block.texts(name) if kind == "text" else block.numbers(name, truth=True)

    return np.ones(block.rows, dtype=bool) if condition is None else condition.mask(column, block.rows)


def _check_values(source: Table, block: Block, columns: Mapping[str, str], mask: Mask, before: int) -> None:
    """Refuse a block with a line for the first wrong value of each column; ``before`` rows came earlier."""
    lines = []
    for role, name in columns.items():
        if role == CONFIG:
            continue
        values = block.numbers(name)
        wrong = np.flatnonzero(mask & ~(np.isfinite(values) & (values > 0)))
        if wrong.size:
            place, text = source.cell(before + int(wrong[0]), name)
            others = f" (and {wrong.size - 1} more)" if wrong.size > 1 else ""
            lines.append(f"{source.path}, {place}, column {name!r}: {_fault(text)}; {_needed(text, name)}{others}")
    if lines:
        raise PointsError(lines)


def _fault(text: str) -> str:
    """Say what is wrong with the text of a cell."""
    if not text.strip():
        return "nothing there"
    if SEPARATED.fullmatch(text.strip()):
        return f"{text.strip()[:40]!r} has a comma, a space or the like in it"
    if not _is_number(text):
        return f"{text[:40]!r} is not a number"
    kind = "not finite" if not math.isfinite(float(text)) else "negative" if float(text) < 0 else "zero"
    return f"{text.strip()} is {kind}"


def _needed(text: str, name: str) -> str:
    """Say what is needed instead of the text of a cell, and how to do without the row."""
    if SEPARATED.fullmatch(text.strip()):
        return "write numbers as 1234567.8"
    if text.strip() and text.strip() not in MISSING:
        return "a positive number is needed"
    quoted = name if name.isidentifier() else f"`{name}`"
    return f"a positive number is needed; --where '{quoted} > 0' leaves such rows out"


def _check_count(path: Path, where: str | None, read: int, kept: int, least: int) -> None:
    if not read:
        raise PointsError([f"{path}: column names and no rows; it needs a line per point"])
    if not kept:
        raise PointsError([f"{path}: --where {where!r} selects none of {read:,} rows"])
    if kept < least:
        chosen = f" selected by --where {where!r}" if where else ""
        raise PointsError(
            [f"{path}: {kept} points{chosen}, where at least {least} are needed: add sizes or pin parameters"]
        )


def _check_spread(table: PointTable) -> None:
    """Refuse columns of constants: there is nothing to fit a trend to."""
    lines = [
        f"{table.path}: column {table.columns[role]!r} is {values[0]:g} in all {len(values)} rows; it has to vary"
        for role, values in table.values.items()
        if role != CONFIG and len(values) > 1 and (values == values[0]).all()
    ]
    if lines:
        raise PointsError(lines)
