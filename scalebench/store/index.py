"""The index of a study: its records in one Parquet file, read instead of those that have not changed since.

``RESULTS/<study>/index/records-<hash>.parquet`` has one row per trial whose record was readable: the record's columns,
and the stamp that shows whether they are up to date. A row is used only if the trial's folder has the same modification
time (no new attempt), the record the same size and change time, and each of its files the same size. The name holds
the start of the file's own SHA-256, so a damaged index is no index. The records stay the source of truth: an index is
never trusted further, may be deleted at any time, and two processes that write one at the same time write two.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.store.files import StoreError, read_bytes, write_atomically
from scalebench.store.records import RECORD

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "index"
VERSION = 1
SMALLEST = 500  # trials: fewer are read from their records faster than anyone notices
MOST_STALE = 0.05  # share of the trials that may be read from their records before a new index is written
INDEX_BYTES = 8 << 30
# A file changed within this time of being read may change again without another change time.
SETTLED_NS = 2_000_000_000
NAME = re.compile(r"records-([0-9a-f]{32})\.parquet")
# Columns that say what a row was read from.
TRIAL, FOLDER_TIME, RECORD_TIME, RECORD_SIZE, FILES = (
    f"index.{name}" for name in ("trial", "folder_time", "record_time", "record_size", "files")
)
STAMPS = [TRIAL, FOLDER_TIME, RECORD_TIME, RECORD_SIZE, FILES]


Stamp = tuple[int, int, int]  # change of a trial's folder and of its record, both in ns; size of the record in bytes


def stamp_of(trials: int, trial: str, attempt: str) -> Stamp:
    """Return the present state of a trial below the opened folder ``trials``; ``OSError`` if it is missing."""
    folder = os.stat(trial, dir_fd=trials)
    record = os.stat(f"{trial}/{attempt}/{RECORD}", dir_fd=trials)
    return folder.st_mtime_ns, record.st_ctime_ns, record.st_size


def _size(trials: int, path: str) -> int:
    try:
        return os.stat(path, dir_fd=trials).st_size
    except FileNotFoundError:
        return -1


def read_index(study_dir: Path) -> pd.DataFrame | None:
    """Return the rows of a study's index that are up to date, with the columns ``STAMPS``; None without an index."""
    for path in _indexes(study_dir):
        frame = _read(path)
        if frame is not None:
            return frame[_unchanged(study_dir / "trials", frame)].reset_index(drop=True)
    return None


def _indexes(study_dir: Path) -> list[Path]:
    """Return a study's indexes, the newest first."""
    try:
        paths = [path for path in (study_dir / FOLDER).iterdir() if NAME.fullmatch(path.name)]
        return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
    except OSError:
        return []


def _read(path: Path) -> pd.DataFrame | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = read_bytes(path, INDEX_BYTES)
        if _hash(content) != path.name.partition("-")[2].removesuffix(".parquet"):
            return None
        table = pq.read_table(pa.BufferReader(content))
        if json.loads(table.schema.metadata.get(b"scalebench", b"0")) != VERSION:
            return None
        return table.to_pandas()
    except (StoreError, OSError, ValueError, pa.ArrowException):
        return None


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _unchanged(trials: Path, frame: pd.DataFrame) -> list[bool]:
    """Return for each row of an index whether its trial is unchanged."""
    places = zip(frame[TRIAL].tolist(), frame["attempt"].tolist(), strict=True)
    stamps = zip(*(frame[name].tolist() for name in (FOLDER_TIME, RECORD_TIME, RECORD_SIZE)), strict=True)
    texts = frame[FILES].tolist()
    files = {text: tuple(json.loads(text).items()) for text in set(texts)}
    descriptor = os.open(trials, os.O_RDONLY)
    try:
        return [
            _has_stamp(descriptor, *place, stamp, files[text])
            for place, stamp, text in zip(places, stamps, texts, strict=True)
        ]
    finally:
        os.close(descriptor)


def _has_stamp(trials: int, trial: str, attempt: str, stamp: Stamp, files: Sequence[tuple[str, int]]) -> bool:
    """Whether a trial has this stamp, and its files these sizes (-1: missing)."""
    try:
        if stamp_of(trials, trial, attempt) != stamp:
            return False
        return all(_size(trials, f"{trial}/{attempt}/{name}") == size for name, size in files)
    except OSError:
        return False


def stamped(study_dir: Path, frame: pd.DataFrame, files: Mapping[str, Mapping[str, int]]) -> pd.DataFrame:
    """Return rows with ``STAMPS``: the present state of their trials; null where ``files`` lacks the trial.

    ``files`` maps trials to the files of their rows, with their sizes when the row was read.
    """
    import pandas as pd

    stamps: dict[str, list[Any]] = {name: [] for name in STAMPS}
    descriptor = os.open(study_dir / "trials", os.O_RDONLY)
    try:
        for trial, attempt in zip(frame["trial_id"], frame["attempt"], strict=True):
            try:
                stamp = stamp_of(descriptor, trial, attempt) if trial in files else None
            except OSError:  # deleted since
                stamp = None
            values = [None] * 5 if stamp is None else [trial, *stamp, json.dumps(files[trial])]
            for name, value in zip(STAMPS, values, strict=True):
                stamps[name].append(value)
    finally:
        os.close(descriptor)
    # As objects: a column of floats would round times in ns.
    return frame.assign(**{name: pd.Series(values, frame.index, object) for name, values in stamps.items()})


def located(study_dir: Path, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of an index with the folders of their attempts."""
    import pandas as pd

    trials = f"{study_dir / 'trials'}"
    folders = [
        f"{trials}/{name}/{attempt}"
        for name, attempt in zip(frame[TRIAL].tolist(), frame["attempt"].tolist(), strict=True)
    ]
    return frame.assign(attempt_dir=pd.Series(folders, index=frame.index, dtype=object))


def missing_files(frame: pd.DataFrame) -> list[tuple[str, Mapping[str, int]]]:
    """Return the rows of an index that lack a file: folder, and the sizes of the files, -1 for those missing."""
    pairs = zip(frame["attempt_dir"].tolist(), frame[FILES].tolist(), strict=True)
    return [(folder, json.loads(files)) for folder, files in pairs if "-1" in files]


def write_index(study_dir: Path, frame: pd.DataFrame, now_ns: int) -> None:
    """Write an index of the rows with a stamp, unless they are too few or the folder cannot be written.

    ``now_ns`` is the file system's time before the first of them was read: what changed shortly before, or since, is
    left out, as it may have been read half way.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = frame[frame[TRIAL].notna()].drop(columns="attempt_dir", errors="ignore")
    rows = rows.astype(dict.fromkeys((FOLDER_TIME, RECORD_TIME, RECORD_SIZE), "int64"))
    rows = rows[rows[[FOLDER_TIME, RECORD_TIME]].max(axis=1) < now_ns - SETTLED_NS]
    if len(rows) < SMALLEST / 2:
        return
    try:
        table = pa.Table.from_pandas(rows, preserve_index=False)
    except (pa.ArrowException, OverflowError):  # a column of numbers and texts: these trials are read each time
        return
    table = table.replace_schema_metadata((table.schema.metadata or {}) | {b"scalebench": str(VERSION).encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    _replace(study_dir / FOLDER, buffer.getvalue())


def _replace(folder: Path, content: bytes) -> None:
    """Write an index and delete those that were there before, as far as the folder can be written."""
    with contextlib.suppress(OSError):
        if folder.is_symlink():
            return
        folder.mkdir(exist_ok=True)
        path = folder / f"records-{_hash(content)}.parquet"
        earlier = [other for other in folder.iterdir() if NAME.fullmatch(other.name) and other != path]
        write_atomically(path, content)
        for other in earlier:
            other.unlink(missing_ok=True)


def file_system_time_ns(study_dir: Path) -> int | None:
    """Return the present time of the file system of a study's results, None where nothing can be written."""
    probe = study_dir / f".now-{os.getpid()}"
    try:
        probe.touch()
        return probe.stat().st_mtime_ns
    except OSError:
        return None
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
