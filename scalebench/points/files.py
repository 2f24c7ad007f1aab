"""Tables on disk as batches of Arrow columns: text files, Parquet, results folders, logs of other trainers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import BytesIO
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.json as pa_json
import pyarrow.parquet as pq

from scalebench.errors import InputError, number_of
from scalebench.points import exports
from scalebench.points.batches import Table, as_text, check_unique, empty_file, named_errors, texts
from scalebench.points.csv_files import open_csv
from scalebench.points.text_files import encoding_of, open_bytes, open_native, open_text
from scalebench.store import Results, of_plans, read_results

TEXT_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
LINES_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson")
PARQUET = ".parquet"
SUFFIXES = (*TEXT_SUFFIXES, *LINES_SUFFIXES, PARQUET)
BATCH_ROWS = 1 << 18
# The columns of trials, by the role that they have for a law.
OF_RESULTS = {"params": "params_non_embedding", "tokens": "tokens_seen", "loss": "validation_loss_nats",
              "loss_added": "loss_added_nats"}  # fmt: skip
VALIDITY = ("status", "invalid_reason")  # of a trial: whether laws are fitted to it


def open_table(path: Path) -> Table:
    """Open a table by its suffix, a results folder, or the logs of another trainer (see ``exports``).

    Raises ``InputError`` or ``StoreError``.
    """
    if is_results(path):
        return open_results(path, read_results(path))
    if exports.is_log(path):
        return of_frame(path, *exports.read_logs(path))
    if not _has_suffix(path):
        if not path.exists():
            raise InputError([f"{path}: there is no such file or folder"])
        reason = f"suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}, and it is not a folder"
        remedy = "; save it as CSV or Parquet, or rename it if it has one of these formats" if path.is_file() else ""
        raise InputError([f"{path}: {reason}{remedy}"])
    with _readable(path):
        table = _open_by_suffix(path)
        return _valid_trials(table) if is_export(table) else table


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Raise ``InputError`` for a file that is empty, or that cannot be read within the block."""
    try:
        if not path.stat().st_size:
            raise InputError([empty_file(path)])
        yield
    except OSError as error:
        raise InputError([f"{path}: cannot be read ({error.strerror or error})"]) from error


def is_results(path: Path) -> bool:
    """Whether a path is a results folder, as any folder is that does not hold the logs of another trainer."""
    return path.is_dir() and not exports.is_log(path)


def holds_trials(path: Path) -> bool:
    """Whether a path is a results folder, or a table of its trials that `scalebench export` wrote."""
    if not (path.is_file() and path.name.lower().endswith((*TEXT_SUFFIXES, PARQUET))):
        return is_results(path)
    with _readable(path):
        return is_export(_open_as_stored(path))


def all_trials(path: Path) -> pd.DataFrame | None:
    """Return the trials of a results folder or of an export of one, whatever their status; None for another path."""
    if is_results(path):
        return of_plans(read_results(path)).frame
    if not holds_trials(path):
        return None
    table = _open_as_stored(path)
    return pd.concat([batch.to_pandas() for batch in table.batches(table.names)], ignore_index=True)


def is_export(table: Table) -> bool:
    """Whether a table has the columns of trials that `scalebench export` writes."""
    return {"trial_id", *VALIDITY} <= {*table.names}


def is_fit(path: Path) -> bool:
    """Whether a path is named as the JSON of a fit, and not as a log."""
    return path.suffix == ".json" and path.name != exports.TRAINER_STATE


def is_table_file(path: Path) -> bool:
    """Return whether a path is a file that ``open_table`` reads, by its name."""
    return path.is_file() and (_has_suffix(path) or exports.is_log(path))


def _has_suffix(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _open_by_suffix(path: Path) -> Table:
    if path.name.lower().endswith(LINES_SUFFIXES):
        return _open_lines(path)
    table = _open_as_stored(path)
    series = {} if path.name.lower().endswith(PARQUET) else exports.chart_series(table.names)
    return of_frame(path, *exports.reshaped(table, series)) if series else table


def _open_as_stored(path: Path) -> Table:
    """Open a Parquet or text file with the columns that it has; nothing but their names is read."""
    return _open_parquet(path) if path.name.lower().endswith(PARQUET) else open_csv(path)


def _row_number(row: int) -> str:
    return f"row {row + 1}"


def of_frame(path: Path, frame: pd.DataFrame, note: str, place: Callable[[int], str] = _row_number) -> Table:
    """Return a data frame as a table; ``note`` is how it was made, ``place(row)`` where a row is for the user."""

    def locate(row: int, name: str) -> tuple[str, str]:
        value = frame[name].iloc[row]
        return place(row), "" if pd.isna(value) else str(value)

    names = tuple(map(str, frame.columns))
    return Table(path, names, lambda columns: iter([frame_batch(frame, columns)]), locate, note=note)


def _open_lines(path: Path) -> Table:
    """Open a file with a JSON object in each line."""
    with named_errors(path, "JSON lines"), open_bytes(path) as file:
        if file.read(64).lstrip().startswith(b"["):
            remedy = "write an object in each line, as to_json(orient='records', lines=True) of pandas does"
            raise InputError([f"{path}: a JSON array, not JSON lines; {remedy}"])
        file.seek(0)
        if encoding_of(path).startswith("utf-16"):
            file = BytesIO(file.read().decode(encoding_of(path)).encode())  # noqa: PLW2901 - pyarrow reads UTF-8 alone
        table = pa_json.read_json(file, pa_json.ReadOptions(block_size=1 << 24))
    plain = [field.name for field in table.schema if not pa.types.is_nested(field.type)]
    return of_frame(path, table.select(plain).to_pandas(), "", lambda row: _line_of_row(path, row))


def _line_of_row(path: Path, row: int) -> str:
    """Return the line of a row in JSON lines, of which empty ones are no rows."""
    with open_text(path, errors="replace") as file:
        return f"line {next(islice((i for i, line in enumerate(file, 1) if line.strip()), row, None))}"


# --- Parquet, results folders ----------------------------------------------------------------------------------------


def _open_parquet(path: Path) -> Table:
    with named_errors(path, "Parquet"), open_native(path) as file:
        names = tuple(pq.read_schema(file).names)
    check_unique(str(path), names)

    def locate(row: int, name: str) -> tuple[str, str]:
        for batch in _parquet_batches(path, [name]):
            if row < batch.num_rows:
                return f"row {row + 1}", texts(batch.column(name))[row]
            row -= batch.num_rows
        raise IndexError(row)

    return Table(path, names, lambda columns: _parquet_batches(path, columns), locate)


def _parquet_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with named_errors(path, "Parquet"), open_native(path) as source, pq.ParquetFile(source) as file:
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns))


def open_results(path: Path, results: Results) -> Table:
    """Open the valid trials of results folders that ended ok, of those that their study planned.

    Trials without a validation loss (as of inference) are read only if none has one.
    """
    frame = of_plans(results).frame
    valid = frame[_valid_rows(path, frame)].reset_index(drop=True)

    def locate(row: int, name: str) -> tuple[str, str]:
        value = valid[name].iloc[row]
        return f"trial {valid['trial_id'].iloc[row]}", "" if pd.isna(value) else str(value)

    names = tuple(map(str, valid.columns))
    return Table(path, names, lambda columns: iter([frame_batch(valid, columns)]), locate)


def _valid_rows(path: Path, frame: pd.DataFrame) -> pd.Series[bool]:
    """Return which trials ended ok with valid numbers and, where any of these has one, a validation loss."""
    ok = (frame["status"] == "ok") & frame["invalid_reason"].isna()
    if not ok.any():
        raise InputError([f"{path}: none of its {number_of(len(frame), 'trial')} ended ok with valid numbers"])
    loss = OF_RESULTS["loss"]
    trained = ok & frame[loss].notna() if loss in frame else ok
    return trained if trained.any() else ok


def _valid_trials(table: Table) -> Table:
    """Return an exported table with the trials that its results folder would give, and no others."""
    names = [name for name in (*VALIDITY, OF_RESULTS["loss"]) if name in table.names]
    parts = [pd.DataFrame({name: texts(batch.column(name)) for name in names}) for batch in table.batches(names)]
    frame = pd.concat([pd.DataFrame(columns=names), *parts]).replace("", None)
    keep = _valid_rows(table.path, frame).to_numpy(dtype=bool)
    rows = np.flatnonzero(keep)

    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        start = 0
        for batch in table.batches(columns):
            yield batch.filter(pa.array(keep[start : start + batch.num_rows]))
            start += batch.num_rows

    return replace(table, batches=batches, locate=lambda row, name: table.locate(int(rows[row]), name))


def frame_batch(frame: pd.DataFrame, names: Sequence[str]) -> pa.RecordBatch:
    """Return columns of a data frame as one batch of texts."""
    return pa.record_batch({name: as_text(frame[name]) for name in names})
