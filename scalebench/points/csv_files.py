"""CSV and TSV files: the delimiter, encoding and header are detected, the rows read by pyarrow in blocks.

pyarrow takes blocks of 4 MiB: a file larger than memory takes about 350 MB. This file adds the line number of a wrong
cell, which pyarrow does not know, and the header. experiments/bench_points.py compares duckdb and polars.
"""

from __future__ import annotations

import csv
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
from numpy.typing import NDArray

from scalebench.errors import InputError, number_of
from scalebench.points.batches import MISSING, UNNAMED, Table, check_unique, empty_file, named_errors
from scalebench.points.text_files import encoding_of, is_gzipped, open_native, open_text

DELIMITERS = ",;\t|"
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)  # first line of a CSV from Excel
BLOCK_BYTES = 1 << 22  # also the longest row; larger blocks take more memory and no less time
LONGEST_HEADER = 1 << 20
NOT_UNICODE = "not a text file in UTF-8 or UTF-16; save it as CSV in UTF-8, or as Parquet"


@dataclass(frozen=True)
class _Header:
    """Of a CSV file: its column names, its delimiter, and the lines before the first row."""

    names: tuple[str, ...]
    delimiter: str
    lines: int


def open_csv(path: Path) -> Table:
    """Open a CSV or TSV file. Raises ``InputError`` for one without a readable header."""
    header = _header(path)
    check_unique(f"{path}, line {header.lines}", header.names)
    empty = _EmptyRows(path, header)
    return Table(
        path,
        header.names,
        lambda columns: empty.left_out_of(_csv_batches(path, header, columns)),
        lambda row, name: _locate(path, header, row, name),
        semicolons=header.delimiter == ";",
        remark=empty.remark,
    )


def _header(path: Path) -> _Header:
    try:
        with open_text(path, errors="replace") as file:  # another column may be in another encoding
            first = file.readline(LONGEST_HEADER)
            while first.isspace():
                first = file.readline(LONGEST_HEADER)
            if "\0" in first:
                raise InputError(
                    [f"{path}: its first line has zero bytes: not a text file; export it as CSV or Parquet"]
                )
            if "\ufffd" in first:
                raise InputError([f"{path}: {NOT_UNICODE}"])
            if len(first) == LONGEST_HEADER:
                raise InputError([f"{path}: its first line has over {LONGEST_HEADER:,} characters; this is not a CSV"])
            separator = SEPARATOR_LINE.fullmatch(first)
            delimiter = separator[1] if separator else max(DELIMITERS, key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            rows = (row for row in reader if any(map(str.strip, row)))
            names = next(islice(rows, 1 if separator else 0, None), None)
    except csv.Error as error:
        raise InputError([f"{path}: {NOT_UNICODE} ({error})"]) from error
    except (EOFError, zlib.error) as error:
        raise InputError([f"{path}: not readable as gzip ({error})"]) from error
    if names is None:
        raise InputError([empty_file(path)])
    unnamed = (f"{UNNAMED}{i}" for i in range(1, len(names) + 1))
    named = tuple(name.strip() or other for name, other in zip(names, unnamed, strict=True))
    return _Header(named, delimiter, reader.line_num)


def _csv_batches(path: Path, header: _Header, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    encoding = encoding_of(path).replace("utf-8-sig", "utf8")  # pyarrow skips the mark of UTF-8 itself
    read_options = pa_csv.ReadOptions(
        block_size=BLOCK_BYTES, column_names=header.names, skip_rows=header.lines, encoding=encoding
    )
    parse = pa_csv.ParseOptions(delimiter=header.delimiter, newlines_in_values=True)
    convert = pa_csv.ConvertOptions(
        include_columns=list(columns),
        column_types=dict.fromkeys(columns, pa.string()),  # a wrong number is an error only if --where selects its row
        strings_can_be_null=True,
        null_values=MISSING,
    )
    with named_errors(path, "CSV"):
        try:
            with (
                pa.input_stream(open_native(path), compression="gzip" if is_gzipped(path) else None) as file,
                pa_csv.open_csv(
                    file, read_options=read_options, parse_options=parse, convert_options=convert
                ) as reader,
            ):
                yield from reader
        except pa.ArrowInvalid as error:
            if "Empty CSV" not in str(error):  # a header alone is a table of no rows
                _check_lengths(path, header)
                raise


def _csv_rows(path: Path, header: _Header) -> Iterator[tuple[int, list[str]]]:
    """Yield rows with their last line, for error messages: pyarrow does not count empty lines and lines of one row."""
    csv.field_size_limit(BLOCK_BYTES)  # as for pyarrow; the default is 128 KiB
    with open_text(path, errors="replace") as file:  # columns that are not read may be in another encoding
        reader = csv.reader(file, delimiter=header.delimiter)
        for cells in reader:
            if cells and reader.line_num > header.lines:
                yield reader.line_num, cells


@dataclass
class _EmptyRows:
    """Rows of empty cells, as spreadsheets write them after the last row: they are left out.

    Only where all columns that are read are empty the file is read again for the others.
    """

    path: Path
    header: _Header
    met: bool = False  # some were left out

    @cached_property
    def numbers(self) -> tuple[NDArray[np.intp], int]:
        """The numbers of these rows, counted from 0, and of all rows."""
        empty = [not any(map(str.strip, cells)) for _, cells in _csv_rows(self.path, self.header)]
        return np.flatnonzero(empty), len(empty)

    def left_out_of(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Yield the batches of the file without these rows."""
        before = 0
        for batch in batches:
            rows, kept = batch.num_rows, batch
            if rows and all(column.null_count for column in batch.columns):
                empty = np.logical_and.reduce([np.asarray(column.is_null()) for column in batch.columns])
                if empty.any():
                    empty &= np.isin(np.arange(before, before + rows), self.numbers[0])
                    self.met, kept = self.met or bool(empty.any()), batch.filter(pa.array(~empty))
            before += rows
            yield kept

    def remark(self) -> str:
        """Say how many were left out, unless all of them follow the last row."""
        if not self.met:
            return ""
        empty, rows = self.numbers
        between = len(empty) - int((empty == np.arange(rows - len(empty), rows)).sum())
        return f"{number_of(between, 'empty row')} between others left out" if between else ""


def _check_lengths(path: Path, header: _Header) -> None:
    """Raise ``InputError`` for the first row that is longer or shorter than the header."""
    for line, cells in _csv_rows(path, header):
        if len(cells) != len(header.names):
            columns = f"{len(cells)} columns, but the header has {len(header.names)}"
            raise InputError([f"{path}, line {line}: {columns}: {header.delimiter.join(cells)[:60]!r}"])


def _locate(path: Path, header: _Header, row: int, name: str) -> tuple[str, str]:
    rows = ((line, cells) for line, cells in _csv_rows(path, header) if any(map(str.strip, cells)))
    line, cells = next(islice(rows, row, None))
    return f"line {line}", cells[header.names.index(name)]
