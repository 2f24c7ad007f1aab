"""A table of points on disk: its columns as batches of Arrow arrays, read as numbers or texts, and its errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalebench.errors import InputError
from scalebench.points import numerals

DecimalMark = Callable[[], numerals.Mark | None]
TRUTH = {"true": "1", "false": "0"}
UNNAMED = "unnamed "  # before the number of a column without a name
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")


@dataclass(frozen=True)
class Table:
    """A table on disk: ``batches(names)`` yields its rows, ``locate(row, name)`` returns a cell's place and text."""

    path: Path
    names: tuple[str, ...]
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    locate: Callable[[int, str], tuple[str, str]]
    semicolons: bool = False  # between its cells, as spreadsheets write them where numbers have decimal commas
    note: str = ""  # what was done to the file to read it, for errors and warnings
    remark: Callable[[], str] = lambda: ""  # the same, as far as it is known only once the rows were read


def numbers(column: pa.Array, mark: DecimalMark = lambda: None, *, truth: bool = False) -> NDArray[np.float64]:
    """Return a column as float64 (n,), NaN for what is not a number; with ``truth``, true and false are 1 and 0.

    ``mark`` finds the decimal mark of its file; it is called only if some number is not plain.
    """
    try:
        plain = np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except pa.ArrowException:  # it fails as a whole if one cell is not a plain number
        plain = None
    if plain is None or (_may_be_thousands(column) and mark() == ","):
        cells = pd.Series(texts(column)).str.strip()
        return numerals.numbers(cells.str.lower().replace(TRUTH) if truth else cells, mark())
    return plain


def _may_be_thousands(column: pa.Array) -> bool:
    """Whether the cells of a text column are all like 300.000, which a file of decimal commas has for 300,000."""
    return pa.types.is_string(column.type) and bool(
        pc.all(pc.match_substring_regex(column, numerals.ONE_DOT), min_count=1).as_py()
    )


def texts(column: pa.Array) -> Any:
    """Return a column as a pandas array of str (n,), empty where a cell is missing."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = as_text(column.to_pandas())
    return pd.array(column.fill_null(""), dtype="string[pyarrow]")  # a view: no Python object per cell


def as_text(values: pd.Series) -> pa.Array:
    """Return values as Arrow texts, missing ones as null."""
    return pa.array(values.astype(object).map(str, na_action="ignore"), pa.string(), from_pandas=True)


@contextmanager
def named_errors(path: Path, file_format: str) -> Iterator[None]:
    """Raise ``InputError`` with the path for what pyarrow cannot read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError([f"{path}: not readable as {file_format} ({reason})"]) from error


def check_unique(place: str, names: Sequence[str]) -> None:
    """Raise ``InputError`` for columns of one name."""
    positions = {name: [str(i) for i, other in enumerate(names, 1) if other == name] for name in names}
    lines = [
        f"{place}: column {name!r} appears {len(places)} times, at positions {', '.join(places)}"
        for name, places in positions.items()
        if len(places) > 1
    ]
    if lines:
        raise InputError(lines)


def empty_file(path: Path) -> str:
    """Return the message for an empty file."""
    return f"{path}: the file is empty; it needs a line of column names and a line per point"
