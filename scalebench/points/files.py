"""Tables of points as blocks of rows: CSV, Parquet and results folders behind one face, only the named columns read."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalebench.errors import InputError
from scalebench.store import Results, read_results

SUFFIXES = (".csv", ".tsv", ".parquet")
DELIMITERS = ",;\t"
BLOCK_BYTES = 1 << 24
LONGEST_HEADER = 1 << 20
BLOCK_ROWS = 1 << 18
MISSING = ("", "NA", "N/A", "NaN", "nan", "NULL", "null", "None")
TRUTH = {"true": "1", "false": "0"}


class PointsError(InputError):
    """Points that cannot be read; one line per mistake, naming file, row and column."""


@dataclass(frozen=True)
class Block:
    """Some rows of a table: an Arrow batch whose columns are read as numbers or as texts."""

    batch: Any

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return int(self.batch.num_rows)

    def numbers(self, name: str, truth: bool = False) -> NDArray[np.float64]:
        """Return a column as float64 (n,), NaN for what is no number; ``truth`` reads true and false as 1 and 0."""
        column = self.batch.column(name)
        try:
            return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
        except pa.ArrowException:  # some cell is no plain number: the slow way, which tells which
            texts = pd.Series(self.texts(name), dtype=object).str.strip().str.lower()
            values = pd.to_numeric(texts.map(lambda text: TRUTH.get(text, text)) if truth else texts, errors="coerce")
            return np.asarray(values, dtype=np.float64)

    def texts(self, name: str) -> NDArray[np.object_]:
        """Return a column as str (n,); the empty text where it is missing."""
        values = pd.Series(self.batch.column(name).to_pandas())
        return np.asarray(values.astype(object).where(values.notna(), "").astype(str), dtype=object)


@dataclass(frozen=True)
class Table:
    """A table on disk: ``blocks(names)`` yields its rows, ``cell(row, name)`` tells a cell's place and text."""

    path: Path
    names: tuple[str, ...]
    blocks: Callable[[Sequence[str]], Iterator[Block]]
    cell: Callable[[int, str], tuple[str, str]]


def open_table(path: Path) -> Table:
    """Open a CSV, TSV or Parquet file, or a results folder. Raises ``PointsError`` or ``StoreError``."""
    if path.is_dir():
        return open_results(path, read_results(path))
    if path.suffix.lower() not in SUFFIXES:
        if not path.exists():
            raise PointsError([f"{path}: there is no such file or folder"])
        reason = f"suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}, and it is no folder"
        raise PointsError([f"{path}: {reason}" + ("; rename it to what it is" if path.is_file() else "")])
    try:
        if not path.stat().st_size:
            raise PointsError([f"{path}: the file is empty; it needs a line of column names and a line per point"])
        return _open_parquet(path) if path.suffix.lower() == ".parquet" else _open_csv(path)
    except OSError as error:
        raise PointsError([f"{path}: cannot be read ({error.strerror or error})"]) from error


# --- CSV -------------------------------------------------------------------------------------------------------------


def _open_csv(path: Path) -> Table:
    header, delimiter, lines = _header(path)
    named = [name for name in header if name]
    repeated = [name for name in dict.fromkeys(named) if named.count(name) > 1]
    if repeated:
        places = {name: [str(i) for i, other in enumerate(header, 1) if other == name] for name in repeated}
        raise PointsError(
            [
                f"{path}, line {lines}: column {k!r} stands at places {', '.join(v)}; name it once"
                for k, v in places.items()
            ]
        )
    names = tuple(name or f"unnamed {i}" for i, name in enumerate(header, 1))
    return Table(
        path,
        names,
        lambda wanted: _csv_blocks(path, names, delimiter, lines, wanted),
        lambda row, name: _csv_cell(path, delimiter, lines, row, names.index(name)),
    )


def _header(path: Path) -> tuple[list[str], str, int]:
    """Return the column names, the delimiter, and the number of lines that the header takes with those before it."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            start = file.readline(LONGEST_HEADER)
            while start.isspace():
                start = file.readline(LONGEST_HEADER)
            if len(start) == LONGEST_HEADER:
                raise PointsError([f"{path}: its first line has over {LONGEST_HEADER:,} characters; this is no CSV"])
            delimiter = max(DELIMITERS, key=start.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            names = next((row for row in reader if any(map(str.strip, row))), None)
    except (UnicodeDecodeError, csv.Error) as error:
        raise PointsError([f"{path}: not a text file in UTF-8 ({error}); export it as CSV or Parquet"]) from error
    if names is None:
        raise PointsError([f"{path}: the file is empty; it needs a line of column names and a line per point"])
    return [name.strip() for name in names], delimiter, reader.line_num


def _csv_blocks(path: Path, names: Sequence[str], delimiter: str, lines: int, wanted: Sequence[str]) -> Iterator[Block]:
    ragged: list[Any] = []

    def refuse(row: Any) -> str:
        ragged.append(row)
        return "error"

    try:
        with pa_csv.open_csv(
            path,
            read_options=pa_csv.ReadOptions(
                use_threads=False, block_size=BLOCK_BYTES, column_names=names, skip_rows=lines
            ),
            parse_options=pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=refuse),
            convert_options=pa_csv.ConvertOptions(
                include_columns=list(wanted),
                column_types=dict.fromkeys(wanted, pa.string()),
                strings_can_be_null=True,
                null_values=MISSING,
            ),
        ) as reader:
            yield from map(Block, reader)
    except pa.ArrowException as error:
        raise PointsError([_csv_failure(path, error, ragged)]) from error


def _csv_failure(path: Path, error: Exception, ragged: Sequence[Any]) -> str:
    if ragged:
        row = ragged[0]
        line = "" if row.number is None else f", line {row.number}"
        found = f"{row.actual_columns} columns where the header has {row.expected_columns}"
        return f"{path}{line}: {found}: {row.text[:60]!r}"
    if "Empty CSV" in str(error):
        return f"{path}: column names and no rows; it needs a line per point"
    return f"{path}: not readable as CSV ({str(error).splitlines()[0]})"


def _csv_cell(path: Path, delimiter: str, lines: int, row: int, place: int) -> tuple[str, str]:
    """Find a cell again, to tell its line: rows may hold newlines, and empty lines are no rows."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        rows = (cells for cells in reader if cells and reader.line_num > lines)
        cells = next(islice(rows, row, None))
        return f"line {reader.line_num}", cells[place]


# --- Parquet, results folders ----------------------------------------------------------------------------------------


def _open_parquet(path: Path) -> Table:
    try:
        names = tuple(pq.read_schema(path).names)
    except pa.ArrowException as error:
        raise PointsError([f"{path}: not readable as Parquet ({str(error).splitlines()[0]})"]) from error
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise PointsError([f"{path}: column {name!r} is there twice; name it once" for name in repeated])

    def cell(row: int, name: str) -> tuple[str, str]:
        for block in _parquet_blocks(path, [name]):
            if row < block.rows:
                return f"row {row + 1}", block.texts(name)[row]
            row -= block.rows
        raise IndexError(row)

    return Table(path, names, lambda wanted: _parquet_blocks(path, wanted), cell)


def _parquet_blocks(path: Path, wanted: Sequence[str]) -> Iterator[Block]:
    try:
        with pq.ParquetFile(path) as file:
            yield from map(Block, file.iter_batches(batch_size=BLOCK_ROWS, columns=list(wanted)))
    except pa.ArrowException as error:
        raise PointsError([f"{path}: not readable as Parquet ({str(error).splitlines()[0]})"]) from error


def open_results(path: Path, results: Results) -> Table:
    """Open the trials of results folders that ended ok and are valid; the others are in no fit.

    Trials of models at work have no loss: they are read only where nothing was trained.
    """
    frame = results.frame
    kept = frame[(frame["status"] == "ok") & frame["invalid_reason"].isna()]
    trained = kept[kept["workload"] != "inference"] if "workload" in kept else kept
    kept = (kept if trained.empty else trained).reset_index(drop=True)
    if kept.empty:
        raise PointsError([f"{path}: none of its {len(frame)} trials ended ok with valid numbers"])

    def blocks(wanted: Sequence[str]) -> Iterator[Block]:
        yield frame_block(kept, wanted)

    def cell(row: int, name: str) -> tuple[str, str]:
        value = kept[name].iloc[row]
        return f"trial {kept['trial_id'].iloc[row]}", "" if pd.isna(value) else str(value)

    return Table(path, tuple(map(str, kept.columns)), blocks, cell)


def frame_block(frame: pd.DataFrame, names: Sequence[str]) -> Block:
    """Return columns of a table in memory as one block."""
    texts = {name: [None if pd.isna(value) else str(value) for value in frame[name]] for name in names}
    return Block(pa.record_batch({name: pa.array(values, pa.string()) for name, values in texts.items()}))
