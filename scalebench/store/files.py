"""Files of results: written atomically, read with errors that name the path."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


class StoreError(ValueError):
    """A results folder that cannot be read or written; the message names the path."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that ``path`` holds either all of it or what it held before, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically. NaN and infinity are refused: what was not measured is null."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")


def check_writable(results: Path) -> None:
    """Make the results folder, or raise ``StoreError`` naming it and the reason."""
    try:
        results.mkdir(parents=True, exist_ok=True)
        probe = results / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StoreError(
            f"{results}: results cannot be written here ({error.strerror}); choose a folder with --results"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise ``StoreError`` naming the file and what is wrong with it."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path}: expected a JSON object, not {type(value).__name__}")
    return value


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV or Parquet, by the suffix of ``path``; ``StoreError`` for any other suffix."""
    if path.suffix == ".csv":
        content = frame.to_csv(index=False).encode()
    elif path.suffix == ".parquet":
        content = frame.to_parquet(index=False)
    else:
        raise StoreError(f"{path}: suffix {path.suffix!r} is not one of .csv, .parquet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error
