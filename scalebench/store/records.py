"""Records: ``record.json`` closes an attempt. What is read from one is checked before anything computes with it.

A record of schema 2 has a checksum. Those of schema 1, which earlier versions wrote, have none and are read unchecked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from scalebench.store.columns import RENAMED, STORE_NAMES
from scalebench.store.files import (
    NewerSchemaError,
    StoreError,
    plain_text,
    read_checked_json,
    write_checked_json,
)
from scalebench.store.names import check_name, is_name

SCHEMA = 2
STATUSES = ("ok", "oom", "diverged", "timeout", "failed", "killed", "unsupported")
RECORD, HEADER = "record.json", "trial.json"

RECORD_BYTES = 4 << 20
MOST_COLUMNS = 2000
LONGEST_TEXT = 100_000
TEXTS = ("study", "workload", "trial_id", "attempt", "status", "error_class", "error_message", "invalid_reason")
# Columns with these ends or names are numbers: a text or a flag in one is damage, even where it looks like a number.
MEASURED = ("_nats", "_bytes", "_flops", "_per_s", "_time_s", "_median_s", "_energy_j")
COUNTED = ("stop_step", "params", "params_non_embedding", "params_active")


# --- writing ---------------------------------------------------------------------------------------------------------


def write_header(attempt: Path, header: Mapping[str, Any]) -> None:
    """Write an attempt's ``trial.json``: what its worker does."""
    write_checked_json(attempt / HEADER, header)


def write_record(attempt: Path, record: Mapping[str, Any]) -> None:
    """Close an attempt: write ``record.json``, last, with null in every declared column that ``record`` lacks.

    The columns are the store's own and those that the attempt's ``trial.json`` lists under ``columns``. Raises
    ``ValueError`` for a status outside ``STATUSES``.
    """
    if record["status"] not in STATUSES:
        raise ValueError(f"status {record['status']!r} is not one of {', '.join(STATUSES)}")
    samples_and_weights = sorted(
        path for suffix in ("parquet", "safetensors") for path in attempt.glob(f"[!.]*.{suffix}")
    )
    files = {path.name: path.stat().st_size for path in samples_and_weights}
    declared = read_header(attempt).get("columns", []) if (attempt / HEADER).exists() else []
    row = {name: plain_text(value) if isinstance(value, str) else value for name, value in record.items()}
    columns = dict.fromkeys([*STORE_NAMES, *declared]) | row | {"attempt": attempt.name}
    write_checked_json(attempt / RECORD, {"schema": SCHEMA, "files": files, **columns})


# --- reading ---------------------------------------------------------------------------------------------------------


def read_header(attempt: Path) -> dict[str, Any]:
    """Read an attempt's ``trial.json``. Raises ``StoreError`` when it is missing or damaged."""
    return read_checked_json(attempt / HEADER)[0]


def read_ancestors(attempt: Path) -> list[dict[str, Any]]:
    """Return the trials before that of an attempt, newest first: study, trial_id, and flops with those before it.

    Headers of earlier versions have none. Raises ``StoreError`` when the header is missing or damaged.
    """
    ancestors = read_header(attempt).get("ancestors")
    return [*takewhile(_is_ancestor, ancestors)] if isinstance(ancestors, list) else []


def _is_ancestor(value: Any) -> bool:
    kinds = {"study": str, "trial_id": str, "flops": int}
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


def read_record(attempt: Path) -> dict[str, Any]:
    """Read one attempt's record as a flat row; ``StoreError`` when it, or a file that it lists, is damaged.

    ``checked`` is whether the record has a checksum. A file that the record lists and that is missing is no damage:
    the numbers do not depend on it.
    """
    return read_with_files(attempt)[0]


def read_with_files(attempt: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Read a record as ``read_record`` does, and the sizes in bytes of the files that it lists: -1 if missing."""
    path = attempt / RECORD
    row, checked = read_checked_json(path, RECORD_BYTES)
    check_schema(path, row.pop("schema", None), checked=checked)
    files = row.pop("files", {})
    try:
        row = plain_row(row)
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from error
    if row.get("status") not in STATUSES or not row.get("trial_id"):
        raise StoreError(f"{path}: status, trial_id: missing or unknown")
    if row["trial_id"] != attempt.parent.name:
        raise StoreError(f"{path}: the record of trial {row['trial_id'][:60]!r}, in the folder of another")
    if row.get("study") is not None:
        check_name(f"{path}: study", row["study"])
    for old, new in RENAMED.items():
        if old in row and new not in row:  # a newer record may have a column of its own with the older name
            row[new] = row.pop(old)
    place = {"attempt": attempt.name, "attempt_dir": str(attempt), "checked": checked}
    return row | place, check_files(path, files)


def check_schema(path: Path, schema: Any, *, checked: bool) -> None:
    """Raise ``NewerSchemaError`` for a file of a newer version, ``StoreError`` for a number that no version used."""
    if type(schema) is int and schema > SCHEMA and checked:
        raise NewerSchemaError(
            f"{path}: written by a newer version of scalebench (schema {schema}; this one reads up to {SCHEMA}); update"
        )
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise StoreError(f"{path}: schema: expected at most {SCHEMA}")
    if schema == SCHEMA and not checked:
        raise StoreError(f"{path}: the checksum is missing: changed since it was written")


def check_files(path: Path, files: Any) -> dict[str, int]:
    """Return the sizes of the files that ``path`` lists; their names must stay inside its folder.

    One that is missing has size -1: the numbers of a record do not depend on it. ``StoreError`` if another.
    """
    if not isinstance(files, dict):
        raise StoreError(f"{path}: files: expected an object, not {type(files).__name__}")
    for name, size in files.items():
        check_name(f"{path}: files", name)
        if type(size) is not int or size < 0:
            raise StoreError(f"{path}: files: {name}: {str(size)[:20]} is not a size in bytes")
    return {name: _size(path.with_name(name), size) for name, size in files.items()}


def _size(path: Path, recorded: int) -> int:
    """Return the size of a file that a record lists, -1 if it is missing; ``StoreError`` if it is another."""
    try:
        actual = path.stat().st_size
    except FileNotFoundError:
        return -1
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    if actual != recorded:
        raise StoreError(f"{path}: {actual} bytes, but the record has {recorded}: cut short or changed")
    return actual


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record's columns as finite numbers that fit a table, texts, flags and null; else ``ValueError``."""
    _check_columns(tuple(row))
    for name in TEXTS:
        if not isinstance(row.get(name), str | None):
            raise ValueError(f"{name}: expected a text or null, not {type(row[name]).__name__}")
    return {name: value if value is None else _plain_value(name, value) for name, value in row.items()}


@lru_cache(maxsize=16)  # the records of a study have the same columns
def _check_columns(names: tuple[str, ...]) -> None:
    """Raise ``ValueError`` for too many columns, and for what cannot name one."""
    if len(names) > MOST_COLUMNS:
        raise ValueError(f"{len(names):,} columns; at most {MOST_COLUMNS:,} are read")
    for name in names:
        if len(name) > 200 or not name.isprintable():
            raise ValueError(f"{name[:60]!a} cannot name a column")


def _plain_value(name: str, value: Any) -> Any:
    """Return one value; integers beyond 64 bits, which no table holds, as floats."""
    kind = type(value)
    if kind is float and math.isfinite(value):  # first: most are
        return value
    if kind in (str, bool) and (name in COUNTED or name.endswith(MEASURED)):
        raise ValueError(f"{name}: expected a number or null, not {str(value)[:60]!r}")
    if kind is str and len(value) > LONGEST_TEXT:
        raise ValueError(f"{name}: a text of {len(value):,} characters; at most {LONGEST_TEXT:,} are read")
    if kind is str:
        return value if value.isascii() else plain_text(value)
    if kind is bool:
        return value
    if kind is int and value.bit_length() < 1024:  # the largest float has 1,024 bits
        return value if -(2**63) <= value < 2**63 else float(value)
    kind_text = "a number beyond all that are measured" if kind in (int, float) else kind.__name__
    raise ValueError(f"{name}: expected a finite number, a text or null, not {kind_text}")


def is_attempt(name: str) -> bool:
    """Whether a folder's name is that of an attempt."""
    return name.startswith("attempt-") and is_name(name)
