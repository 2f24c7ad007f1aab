"""Files of results: written atomically, read with errors that name the path."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scalebench.store.outputs import write_output

if TYPE_CHECKING:
    import pandas as pd

JSON_BYTES = 256 << 20  # the largest JSON file that is read
CHECKSUM = "sha256"  # key of a JSON file's checksum, in the file itself
# Nothing is waited for, as opening a FIFO would, and no terminal becomes this process's own.
_OPEN = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class StoreError(ValueError):
    """A file or folder of results that cannot be read or written; the message has the path."""


class NoSuchFileError(StoreError):
    """A file that is not there."""


class NewerSchemaError(StoreError):
    """A file of a newer version of scalebench: its meaning is unknown, so whatever needs it stops."""


# --- writing ---------------------------------------------------------------------------------------------------------


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


def json_safe(value: Any) -> Any:
    """Return a value of plain types, with null for every number that is not finite, which JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(name): json_safe(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_safe(item) for item in value]
    plain = value.item() if type(value).__module__ == "numpy" else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, atomically. NaN and infinity are refused: what was not measured is null."""
    write_atomically(path, json.dumps(value, indent=1, allow_nan=False).encode() + b"\n")


def write_checked_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object as ``write_json`` does, with a checksum of its content in it."""
    plain = json.loads(json.dumps(content, allow_nan=False))  # tuples become lists, as they do when it is read
    write_json(path, plain | {CHECKSUM: checksum(plain)})


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


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV or Parquet, by the suffix of ``path``; ``StoreError`` for any other suffix."""
    if path.suffix == ".csv":
        content = frame.to_csv(index=False).encode("utf-8", "backslashreplace")
    elif path.suffix == ".parquet":
        content = _of_one_type(frame).to_parquet(index=False)
    else:
        raise StoreError(f"{path}: suffix {path.suffix!r} is not one of .csv, .parquet")
    try:
        write_output(path, content)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error.strerror})") from error


def _of_one_type(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the table with every column that holds numbers and texts, or texts that are not Unicode, as text."""
    import pandas as pd
    import pyarrow as pa

    mixed: dict[str, Any] = {}
    for name in filter(lambda name: pd.api.types.is_object_dtype(frame[name]), map(str, frame)):
        try:
            pa.array(frame[name], from_pandas=True)
        except (pa.ArrowException, UnicodeEncodeError, OverflowError):
            mixed[name] = frame[name].map(lambda value: plain_text(str(value)), na_action="ignore")
    return frame.assign(**mixed)


def plain_text(text: str) -> str:
    """Return a text with escapes for what UTF-8 cannot hold: the bytes of a path in another encoding."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


# --- reading ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading.

    Raises ``NoSuchFileError`` or ``StoreError``, also for folders, FIFOs and devices, none of which is waited for, and
    for an ``OSError`` while it is read.
    """
    try:
        descriptor = os.open(path, _OPEN)
    except FileNotFoundError as error:
        raise NoSuchFileError(f"{path}: no such file") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise StoreError(f"{path}: not a regular file")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    finally:
        os.close(descriptor)


def read_bytes(path: Path, limit: int = JSON_BYTES) -> bytes:
    """Read a regular file of at most ``limit`` bytes. Raises ``NoSuchFileError`` or ``StoreError``."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise StoreError(f"{path}: {size:,} bytes; at most {limit:,} are read")
        return file.read(size)


def read_tail(path: Path, limit: int) -> bytes:
    """Read the last ``limit`` bytes of a regular file, however large. Raises as ``read_bytes``."""
    with open_regular(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - limit))
        return file.read(limit)


def read_json(path: Path, limit: int = JSON_BYTES, *, finite: bool = True) -> dict[str, Any]:
    """Read a JSON object, or raise ``StoreError`` naming the file and what is wrong with it.

    NaN and infinity, which are not JSON, are wrong too; without ``finite``, for files of other programs, they are null.
    """
    content = read_bytes(path, limit)
    try:
        value = json.loads(content, parse_constant=_no_constant if finite else lambda _: None)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise StoreError(f"{path}: expected a JSON object, not {type(value).__name__}")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def read_checked_json(path: Path, limit: int = JSON_BYTES) -> tuple[dict[str, Any], bool]:
    """Read what ``write_checked_json`` wrote, and whether it had a checksum: files of earlier versions have none.

    Raises ``StoreError`` as ``read_json`` does, and where the content does not match the checksum.
    """
    content = read_json(path, limit)
    expected = content.pop(CHECKSUM, None)
    if expected is None:
        return content, False
    try:
        actual = checksum(content)
    except (ValueError, RecursionError) as error:  # a number such as 1e999
        raise StoreError(f"{path}: not readable as JSON ({error})") from error
    if actual != expected:
        raise StoreError(f"{path}: changed since it was written: its checksum does not match")
    return content, True


def checksum(content: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON: keys sorted, no white space, ASCII only."""
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()
