"""Tables on disk as batches of Arrow columns: CSV, Parquet and results folders, only the columns asked for.

pyarrow reads them, CSV in blocks of 4 MiB: a file larger than memory takes about 350 MB. What this file adds is the
line of a wrong cell, which pyarrow does not know, and the header. experiments/bench_points.py compares duckdb and
polars.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalebench.errors import InputError
from scalebench.store import Results, of_plans, read_results

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")
DELIMITERS = ",;\t"
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*')  # first line of a CSV from Excel
BLOCK_BYTES = 1 << 22  # also the longest row; larger blocks take more memory and no less time
LONGEST_HEADER = 1 << 20
BATCH_ROWS = 1 << 18
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
TRUTH = {"true": "1", "false": "0"}


class PointsError(InputError):
    """Points that cannot be read; one line per mistake, with file, line and column."""


@dataclass(frozen=True)
class Table:
    """A table on disk: ``batches(names)`` yields its rows, ``locate(row, name)`` returns a cell's place and text."""

    path: Path
    names: tuple[str, ...]
    batches: Callable[[Sequence[str]], Iterator[pa.RecordBatch]]
    locate: Callable[[int, str], tuple[str, str]]


def numbers(column: pa.Array, *, truth: bool = False) -> NDArray[np.float64]:
    """Return a column as float64 (n,), NaN for what is not a number; with ``truth``, true and false are 1 and 0."""
    try:
        return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    except pa.ArrowException:  # it fails as a whole if one cell is not a plain number
        cells = pd.Series(texts(column)).str.strip().str.lower()
        return np.asarray(pd.to_numeric(cells.replace(TRUTH) if truth else cells, errors="coerce"), dtype=np.float64)


def texts(column: pa.Array) -> Any:
    """Return a column as a pandas array of str (n,), empty where a cell is missing."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = _as_text(column.to_pandas())
    return pd.array(column.fill_null(""), dtype="string[pyarrow]")  # a view: no Python object per cell


def _as_text(values: pd.Series) -> pa.Array:
    return pa.array(values.astype(object).map(str, na_action="ignore"), pa.string(), from_pandas=True)


def open_table(path: Path) -> Table:
    """Open a CSV, TSV or Parquet file, or a results folder. Raises ``PointsError`` or ``StoreError``."""
    if path.is_dir():
        return open_results(path, read_results(path))
    if not _has_suffix(path):
        if not path.exists():
            raise PointsError([f"{path}: there is no such file or folder"])
        reason = f"suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}, and it is not a folder"
        raise PointsError([f"{path}: {reason}" + ("; rename it to match its format" if path.is_file() else "")])
    try:
        if not path.stat().st_size:
            raise PointsError([_empty(path)])
        return _open_parquet(path) if path.suffix.lower() == ".parquet" else _open_csv(path)
    except OSError as error:
        raise PointsError([f"{path}: cannot be read ({error.strerror or error})"]) from error


def is_table_file(path: Path) -> bool:
    """Return whether a path is a file that ``open_table`` reads, by its suffix."""
    return path.is_file() and _has_suffix(path)


def _has_suffix(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


@contextmanager
def _named_errors(path: Path, file_format: str) -> Iterator[None]:
    """Raise ``PointsError`` with the path for what pyarrow cannot read."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise PointsError([f"{path}: not readable as {file_format} ({reason})"]) from error


def _check_unique(place: str, names: Sequence[str]) -> None:
    positions = {name: [str(i) for i, other in enumerate(names, 1) if other == name] for name in names}
    lines = [
        f"{place}: column {name!r} appears {len(at)} times, at positions {', '.join(at)}"
        for name, at in positions.items()
        if len(at) > 1
    ]
    if lines:
        raise PointsError(lines)


def _empty(path: Path) -> str:
    return f"{path}: the file is empty; it needs a line of column names and a line per point"


# --- CSV -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Header:
    """Of a CSV file: its column names, its delimiter, and the lines before the first row."""

    names: tuple[str, ...]
    delimiter: str
    lines: int


def _open_csv(path: Path) -> Table:
    header = _header(path)
    _check_unique(f"{path}, line {header.lines}", header.names)
    return Table(
        path,
        header.names,
        lambda wanted: _csv_batches(path, header, wanted),
        lambda row, name: _locate(path, header, row, name),
    )


def _open_text(path: Path, errors: str = "strict") -> TextIO:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", errors=errors, newline="")
    return path.open(encoding="utf-8-sig", errors=errors, newline="")


def _header(path: Path) -> _Header:
    try:
        with _open_text(path) as file:
            first = file.readline(LONGEST_HEADER)
            while first.isspace():
                first = file.readline(LONGEST_HEADER)
            if len(first) == LONGEST_HEADER:
                raise PointsError([f"{path}: its first line has over {LONGEST_HEADER:,} characters; this is not a CSV"])
            separator = SEPARATOR_LINE.fullmatch(first)
            delimiter = separator[1] if separator else max(DELIMITERS, key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            rows = (row for row in reader if any(map(str.strip, row)))
            names = next(islice(rows, 1 if separator else 0, None), None)
    except (UnicodeDecodeError, csv.Error) as error:
        raise PointsError([f"{path}: not a text file in UTF-8 ({error}); export it as CSV or Parquet"]) from error
    except (EOFError, zlib.error) as error:
        raise PointsError([f"{path}: not readable as gzip ({error})"]) from error
    if names is None:
        raise PointsError([_empty(path)])
    return _Header(tuple(name.strip() or f"unnamed {i}" for i, name in enumerate(names, 1)), delimiter, reader.line_num)


def _csv_batches(path: Path, header: _Header, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    read = pa_csv.ReadOptions(block_size=BLOCK_BYTES, column_names=header.names, skip_rows=header.lines)
    parse = pa_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True)
    convert = pa_csv.ConvertOptions(
        include_columns=list(wanted),
        column_types=dict.fromkeys(wanted, pa.string()),  # a wrong number is an error only if --where selects its row
        strings_can_be_null=True,
        null_values=MISSING,
    )
    with _named_errors(path, "CSV"):
        try:
            with pa_csv.open_csv(path, read_options=read, parse_options=parse, convert_options=convert) as reader:
                yield from reader
        except pa.ArrowInvalid as error:
            if "Empty CSV" not in str(error):  # a header alone is a table of no rows
                _check_lengths(path, header)
                raise


def _csv_rows(path: Path, header: _Header) -> Iterator[tuple[int, list[str]]]:
    """Yield rows with their last line, for error messages: pyarrow does not count empty lines and lines of one row."""
    csv.field_size_limit(BLOCK_BYTES)  # as for pyarrow; the default is 128 KiB
    with _open_text(path, errors="replace") as file:  # columns that are not read may be in another encoding
        reader = csv.reader(file, delimiter=header.delimiter)
        for cells in reader:
            if cells and reader.line_num > header.lines:
                yield reader.line_num, cells


def _check_lengths(path: Path, header: _Header) -> None:
    """Raise ``PointsError`` for the first row that is longer or shorter than the header."""
    for line, cells in _csv_rows(path, header):
        if len(cells) != len(header.names):
            columns = f"{len(cells)} columns, but the header has {len(header.names)}"
            raise PointsError([f"{path}, line {line}: {columns}: {header.delimiter.join(cells)[:60]!r}"])


def _locate(path: Path, header: _Header, row: int, name: str) -> tuple[str, str]:
    line, cells = next(islice(_csv_rows(path, header), row, None))
    return f"line {line}", cells[header.names.index(name)]


# --- Parquet, results folders ----------------------------------------------------------------------------------------


def _open_parquet(path: Path) -> Table:
    with _named_errors(path, "Parquet"):
        names = tuple(pq.read_schema(path).names)
    _check_unique(str(path), names)

    def locate(row: int, name: str) -> tuple[str, str]:
        for batch in _parquet_batches(path, [name]):
            if row < batch.num_rows:
                return f"row {row + 1}", texts(batch.column(name))[row]
            row -= batch.num_rows
        raise IndexError(row)

    return Table(path, names, lambda wanted: _parquet_batches(path, wanted), locate)


def _parquet_batches(path: Path, wanted: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _named_errors(path, "Parquet"), pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=list(wanted))


def open_results(path: Path, results: Results) -> Table:
    """Open the valid trials of results folders that ended ok, of those that their study planned.

    Trials without a validation loss (as of inference) are read only if none has one.
    """
    frame = of_plans(results).frame
    ok = frame[(frame["status"] == "ok") & frame["invalid_reason"].isna()]
    trained = ok[ok["validation_loss_nats"].notna()] if "validation_loss_nats" in ok else ok
    valid = (ok if trained.empty else trained).reset_index(drop=True)
    if valid.empty:
        raise PointsError([f"{path}: none of its {len(frame)} trials ended ok with valid numbers"])

    def locate(row: int, name: str) -> tuple[str, str]:
        value = valid[name].iloc[row]
        return f"trial {valid['trial_id'].iloc[row]}", "" if pd.isna(value) else str(value)

    names = tuple(map(str, valid.columns))
    return Table(path, names, lambda wanted: iter([frame_batch(valid, wanted)]), locate)


def frame_batch(frame: pd.DataFrame, names: Sequence[str]) -> pa.RecordBatch:
    """Return columns of a data frame as one batch of texts."""
    return pa.record_batch({name: _as_text(frame[name]) for name in names})
