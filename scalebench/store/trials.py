"""Trial folders, and the table of their records.

A study's results are plain files, so that copying folders merges, moves, archives or shares them::

    RESULTS/<study>/study.json
    RESULTS/<study>/trials/<trial_id>/attempt-<UTC>-<random>/
        trial.json  placement.json  environment.json  stdout.log  stderr.log  heartbeat.json
        *.parquet              samples of the workload (steps.parquet of training, calls.parquet of inference)
        weights.safetensors  state.safetensors   (where a study keeps them)
        record.json            written last: an attempt counts once its record is there

Every file is written under a temporary name, synced and renamed. Attempts are never overwritten.
"""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.store.columns import RENAMED, STORE_NAMES
from scalebench.store.files import StoreError, read_json, write_json, write_table
from scalebench.store.plans import joined_plans

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
STATUSES = ("ok", "oom", "diverged", "timeout", "failed", "killed", "unsupported")


@dataclass(frozen=True)
class Results:
    """The content of results folders: one row per trial, and what could not be read.

    ``frame`` has one row per trial (its latest attempt with a readable record), the store's own columns first, then
    every column of any record.
    ``damaged`` has one line per unreadable attempt; such an attempt does not count. ``studies`` maps a study's name to
    its ``study.json`` (``{}`` where that is absent); of two folders of one study, the last, with the plans of both.
    """

    frame: pd.DataFrame
    damaged: tuple[str, ...]
    studies: Mapping[str, dict[str, Any]]


# --- writing ---------------------------------------------------------------------------------------------------------


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
    header = attempt / "trial.json"
    declared = read_json(header).get("columns", []) if header.exists() else []
    columns = dict.fromkeys([*STORE_NAMES, *declared]) | dict(record) | {"attempt": attempt.name}
    write_json(attempt / "record.json", {"schema": SCHEMA, "files": files, **columns})


def new_attempt(study_dir: Path, trial_id: str) -> Path:
    """Make and return a new attempt folder; its name sorts by time and is unique."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%fZ")
    attempt = study_dir / "trials" / trial_id / f"attempt-{stamp}-{secrets.token_hex(3)}"
    attempt.mkdir(parents=True)
    return attempt


# --- reading ---------------------------------------------------------------------------------------------------------


def read_record(attempt: Path) -> dict[str, Any]:
    """Read one attempt's record as a flat row; ``StoreError`` when it, or a file that it lists, is damaged."""
    path = attempt / "record.json"
    row = read_json(path)
    if row.pop("schema", None) != SCHEMA:
        raise StoreError(f"{path}: schema: expected {SCHEMA}")
    if row.get("status") not in STATUSES or not row.get("trial_id"):
        raise StoreError(f"{path}: status, trial_id: missing or unknown")
    for name, size in row.pop("files", {}).items():
        actual = (attempt / name).stat().st_size if (attempt / name).exists() else 0
        if actual != size:
            raise StoreError(f"{attempt / name}: {actual} bytes, {size} in the record: cut short or changed")
    for old, new in RENAMED.items():
        if old in row:
            row[new] = row.pop(old)
    return row | {"attempt_dir": str(attempt)}


def latest_record(trial_dir: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest readable record of a trial, or None, and a line for each damaged attempt after it."""
    damaged: list[str] = []
    for attempt in sorted(trial_dir.glob("attempt-*"), reverse=True):
        if not (attempt / "record.json").exists():
            continue
        try:
            return read_record(attempt), damaged
        except StoreError as error:
            damaged.append(str(error))
    return None, damaged


def study_dirs(path: Path) -> list[Path]:
    """Return the study folders at ``path``: itself, or those directly below it.

    ``StoreError`` when there are none, unless the folder holds comparisons, which ``comparison_store`` reads.
    """
    if (path / "trials").is_dir():
        return [path]
    folders = sorted(child for child in path.glob("*") if (child / "trials").is_dir()) if path.is_dir() else []
    if not folders and not any((folder / "runs").is_dir() for folder in (path, *path.glob("compare-*"))):
        raise StoreError(f"{path}: no results here; expected RESULTS or RESULTS/<study> with a trials folder in it")
    return folders


def _rows(study_dir: Path, damaged: list[str]) -> Iterator[dict[str, Any]]:
    for trial_dir in sorted((study_dir / "trials").iterdir()):
        row, lines = latest_record(trial_dir)
        damaged.extend(lines)
        if row is not None:
            yield row


def read_study(study_dir: Path, damaged: list[str]) -> dict[str, Any]:
    """Read ``study.json``: {} where it is absent, or damaged, which adds a line to ``damaged``."""
    path = study_dir / "study.json"
    if not path.exists():
        return {}
    try:
        return read_json(path)
    except StoreError as error:
        damaged.append(str(error))
        return {}


def read_results(*paths: str | Path) -> Results:
    """Read every study under ``paths`` into one table; damaged attempts are listed."""
    import pandas as pd

    damaged: list[str] = []
    rows: list[dict[str, Any]] = []
    studies: dict[str, dict[str, Any]] = {}
    for study_dir in dict.fromkeys(found for path in paths for found in study_dirs(Path(path))):
        study = read_study(study_dir, damaged)
        studies[study_dir.name] = joined_plans(studies.get(study_dir.name, {}), study)
        rows.extend(_rows(study_dir, damaged))
    names = dict.fromkeys([*STORE_NAMES, *(name for row in rows for name in row)])
    frame = pd.DataFrame(rows, columns=list(names))
    return Results(frame, tuple(damaged), studies)


def load_results(*paths: str | Path) -> pd.DataFrame:
    """Read results folders as a DataFrame, one row per trial; warn of damaged attempts."""
    results = read_results(*paths)
    for line in results.damaged:
        warnings.warn(f"damaged attempt passed over: {line}", stacklevel=2)
    return results.frame


def read_steps(attempt_dir: str | Path) -> pd.DataFrame:
    """Read an attempt's samples: step, train_loss_nats, step_time_s, data_time_s, warm; one row per training step.

    Raises ``StoreError`` naming the file when it is missing or damaged.
    """
    import pandas as pd
    import pyarrow

    path = Path(attempt_dir) / "steps.parquet"
    try:
        return pd.read_parquet(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise StoreError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from error


def export(results: Results, path: Path) -> None:
    """Write the table as CSV or Parquet, by the suffix of ``path``; ``StoreError`` for any other suffix."""
    write_table(results.frame, path)
