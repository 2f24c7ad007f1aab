"""Points from any trainer: the columns a law needs, from CSV, Parquet or a results folder, every value checked.

Only the named columns are read, in batches, so that a file larger than memory takes the memory of the selected points.
What a law requires of its points beyond that is checked in ``laws.points``; here are the checks whose error names the
file, the line and the column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from scalebench.errors import InputError, unknown
from scalebench.laws.columns import LARGEST, usable
from scalebench.points import numerals
from scalebench.points.batches import MISSING, UNNAMED, DecimalMark, Table, numbers, texts
from scalebench.points.files import OF_RESULTS, frame_batch, open_table
from scalebench.points.where import Kind, Mask, Where, parse
from scalebench.store import RENAMED

MAX_POINTS = 1_000_000  # a fit takes about two kilobytes per point
# Separators with two readings, such as 4,608 where no other number of the file decides, or none, such as 1_0.
SEPARATED = re.compile(r"[+-]?\d+([,_' ]\d+)+(\.\d*)?([eE][+-]?\d+)?")
MARKED = r",|\.\d+\."  # in cells whose decimal mark is worth a look
CONFIG = "config"  # a role of text: it names the independent configuration of a row
LAST_OF = "last of"  # a role of text that is read, but not returned: the run whose last row is wanted
TEXTS = (CONFIG, LAST_OF)
COUNTED = ("params", "tokens", "flops")  # roles whose header may have a unit, as in "Params (M)"


@dataclass(frozen=True)
class PointTable:
    """Points by role (``params``, ``tokens``, ``loss``, …), each array (n,), and the columns they were read from."""

    path: Path
    values: dict[str, NDArray[Any]]
    columns: dict[str, str]
    where: str | None
    note: str = ""  # how the table was read, where it is not one as it stands

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))


def read_columns(
    path: Path,
    columns: Mapping[str, str],
    where: str | None = None,
    *,
    options: Mapping[str, str] = MappingProxyType({}),
    last_of: str | None = None,
) -> PointTable:
    """Read the ``columns`` (role -> column name) of the rows that match ``where``; role ``config`` may hold text.

    With ``last_of``, a column of run names, only the last row of each run that has all values is read.

    ``options`` are, by role, the command-line options that name a column. Raises ``InputError``, with file, line and
    column, for a missing file or column, values that are not positive finite numbers, and a column that is constant.
    """
    condition, table = _parse(where), open_table(path)
    columns = {**columns, LAST_OF: last_of} if last_of else columns
    needed = list(dict.fromkeys([*columns.values(), *(condition.names if condition else ())]))
    option_of = {columns[role]: option for role, option in options.items() if role in columns}
    _check_names(path, needed, table.names, option_of, table.note)
    mark = cache(lambda: _decimal_mark(table, needed))
    parts: dict[str, list[NDArray[Any]]] = {role: [] for role in columns}
    rows = selected = 0
    for batch in table.batches(needed):
        mask = _mask(batch, condition, mark)
        if last_of:
            mask = mask & _complete(batch, [*columns.values()])
        for role, values in _values(table, batch, columns, mask, rows, mark).items():
            parts[role].append(values)
        rows, selected = rows + batch.num_rows, selected + int(mask.sum())
        if selected > MAX_POINTS:
            raise InputError(
                [f"{path}: more than {MAX_POINTS:,} points; select fewer with --where, or average repeats"]
            )
    if not rows:
        raise InputError([f"{path}: column names but no rows; it needs a line per point"])
    if not selected:
        raise InputError([f"{path}: --where {where!r} selects none of {rows:,} rows"])
    joined: dict[str, NDArray[Any]] = {role: np.concatenate(part) for role, part in parts.items()}
    if last_of:
        last = ~pd.Series(joined.pop(LAST_OF)).duplicated(keep="last").to_numpy()
        joined = {role: column[last] for role, column in joined.items()}
    roles = {role: name for role, name in columns.items() if role != LAST_OF}
    notes = [table.note, table.remark(), *unit_notes(roles)]
    points = PointTable(path, joined, roles, where, "; ".join(filter(None, notes)))
    _check_constant(points)
    return points


def unit_notes(columns: Mapping[str, str]) -> list[str]:
    """Return a line for each column of counts that is read in the unit of its header (role -> column name)."""
    return [
        f"column {name!r} in units of {numerals.header_unit(name):,.0f}"
        for role, name in columns.items()
        if role in COUNTED and numerals.header_unit(name) != 1
    ]


def read_texts(path: Path, names: Sequence[str], where: str | None = None) -> dict[str, NDArray[Any]]:
    """Return columns as texts, each (n,), of the rows that match ``where``. Raises ``InputError``."""
    condition, table = _parse(where), open_table(path)
    needed = list(dict.fromkeys([*names, *(condition.names if condition else ())]))
    _check_names(path, needed, table.names)
    mark = cache(lambda: _decimal_mark(table, needed))
    parts: dict[str, list[NDArray[Any]]] = {name: [] for name in names}
    for batch in table.batches(needed) if needed else ():
        selected = batch.filter(pa.array(_mask(batch, condition, mark)))
        for name, column in parts.items():
            column.append(np.asarray(texts(selected.column(name)), dtype=object))
    return {name: np.concatenate(column) for name, column in parts.items()}


def _decimal_mark(table: Table, names: Sequence[str]) -> numerals.Mark | None:
    """Return the decimal mark that a text file's numbers show; None if there is no comma in them, or no telling."""
    for batch in table.batches(names):
        cells = (texts(batch.column(name)) for name in names)
        mark = numerals.mark_of(cell for column in cells for cell in column[pd.Series(column).str.contains(MARKED)])
        if mark is not None:
            return mark
    if not table.semicolons:
        return None
    return numerals.semicolon_mark(
        cell for batch in table.batches(names) for name in names for cell in texts(batch.column(name))
    )


def _complete(batch: pa.RecordBatch, names: Sequence[str]) -> Mask:
    """Return which rows of a batch have a value in every column."""
    present = [np.asarray(texts(batch.column(name)) != "") for name in names]
    return np.asarray(np.logical_and.reduce(present), dtype=bool)


def select_rows(path: Path, frame: pd.DataFrame, where: str | None) -> pd.DataFrame:
    """Return the rows of a data frame, read from ``path``, that match ``where``. Raises ``InputError``."""
    condition = _parse(where)
    if condition is None:
        return frame
    _check_names(path, condition.names, [*map(str, frame)])
    return frame[_mask(frame_batch(frame, condition.names), condition)]


def _parse(where: str | None) -> Where | None:
    return None if where is None else parse(where)


def _check_names(
    path: Path,
    names: Sequence[str],
    known: Collection[str],
    options: Mapping[str, str] = MappingProxyType({}),
    note: str = "",
) -> None:
    """Raise ``InputError`` with a line for each unknown column: its name now, or the option that would name it."""
    lines = [
        f"{path}: column {unknown(name, known)}"
        + (f"; it is now called {RENAMED[name]!r}" if RENAMED.get(name) in known else "")
        + (f"; of trials it is called {OF_RESULTS[name]!r}" if OF_RESULTS.get(name) in known else "")
        + (f"; name it with {options[name]}" if name in options else "")
        for name in names
        if name not in known
    ]
    if lines and note:
        lines.append(f"{path}: read as {note}")
    if lines and all(map(_is_number, known)):
        lines.append(f"{path}: the first line holds only numbers; it must name the columns")
    if lines and next(iter(known), "").startswith("#"):
        lines.append(f"{path}: the first line is a comment; it must name the columns")
    if lines and 2 * sum(name.startswith(UNNAMED) for name in known) > len(known):
        lines.append(f"{path}: the first line names few columns; delete the lines above the one that names them all")
    if lines:
        raise InputError(lines)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text  # Python reads 1_000, other tools do not


def _mask(batch: pa.RecordBatch, condition: Where | None, mark: DecimalMark = lambda: None) -> Mask:
    """Return which rows of a batch match a condition; without one, all."""

    @cache  # a condition may name a column more than once
    def column(name: str, kind: Kind) -> Any:
        return texts(batch.column(name)) if kind == "text" else numbers(batch.column(name), mark, truth=True)

    return np.ones(batch.num_rows, dtype=bool) if condition is None else condition.mask(column, batch.num_rows)


def _values(
    table: Table,
    batch: pa.RecordBatch,
    columns: Mapping[str, str],
    mask: Mask,
    rows_before: int,
    mark: DecimalMark,
) -> dict[str, NDArray[Any]]:
    """Return the selected values of a batch by role; raises for the first wrong value of each column."""
    selected = batch.filter(pa.array(mask))
    values: dict[str, NDArray[Any]] = {}
    lines = []
    for role, name in columns.items():
        column = selected.column(name)
        if role in TEXTS:
            values[role] = np.asarray(texts(column), dtype=object)
            continue
        values[role] = numbers(column, mark)
        wrong = np.flatnonzero(~usable(values[role]))
        if wrong.size:
            place, text = table.locate(rows_before + int(np.flatnonzero(mask)[wrong[0]]), name)
            text = numerals.plain(text, mark()) if "," in text else text
            more = f" (and {wrong.size - 1} more)" if wrong.size > 1 else ""
            lines.append(f"{table.path}, {place}, column {name!r}: {_fault(text)}; {_remedy(text, name)}{more}")
        values[role] = values[role] * numerals.header_unit(name) if role in COUNTED else values[role]
    if lines:
        raise InputError(lines)
    return values


def _fault(text: str) -> str:
    """Return what is wrong with the text of a cell."""
    if not text.strip():
        return "empty"
    if meanings := numerals.ambiguity(text):
        return f"{text.strip()[:40]!r} is {meanings}"
    if SEPARATED.fullmatch(text.strip()):
        return f"{text.strip()[:40]!r} has a comma, a space or the like in it"
    if not _is_number(text):
        return f"{text[:40]!r} is not a number"
    value = float(text)
    kind = "not finite" if not math.isfinite(value) else "negative" if value < 0 else "zero" if value == 0 else ""
    return f"{text.strip()} is {kind or f'beyond {1 / LARGEST:g} to {LARGEST:g}'}"


def _remedy(text: str, name: str) -> str:
    """Return what a cell should hold instead, and how to leave out rows without a value."""
    if SEPARATED.fullmatch(text.strip()) or numerals.ambiguity(text):
        return f"write numbers as {numerals.PATTERN}"
    if text.strip() and text.strip() not in MISSING:
        return "a positive number is needed"
    quoted = name if name.isidentifier() else f"`{name}`"
    return f"a positive number is needed; --where '{quoted} > 0' leaves such rows out"


def _check_constant(points: PointTable) -> None:
    lines = [
        f"{points.path}: column {points.columns[role]!r} is {values[0]:g} in all {len(values)} rows; it has to vary"
        for role, values in points.values.items()
        if role != CONFIG and len(values) > 1 and (values == values[0]).all()
    ]
    if lines:
        raise InputError(lines)
