"""Trial folders: made, and read one by one.

A study's results are plain files, so that copying folders merges, moves, archives or shares them::

    RESULTS/<study>/study.json  .study.lock (empty: held while study.json is changed)
    RESULTS/<study>/trials/<trial_id>/attempt-<UTC>-<random>/
        trial.json  placement.json  environment.json  stdout.log  stderr.log  heartbeat.json
        *.parquet              samples of the workload (steps.parquet of training, calls.parquet of inference)
        weights.safetensors  state.safetensors   (where a study keeps them)
        record.json            written last: an attempt counts once its record is there

Every file is written under a temporary name, synced and renamed. Attempts are never overwritten.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.store.files import NewerSchemaError, NoSuchFileError, StoreError, read_bytes
from scalebench.store.names import check_inside, check_name, following, is_name
from scalebench.store.records import is_attempt, read_with_files

if TYPE_CHECKING:
    import pandas as pd

TABLE_BYTES = 4 << 30  # the largest table of samples that is read
STEP_COLUMNS = ("step", "step_time_s")


@dataclass(frozen=True)
class Reading:
    """What was read of one trial: its row, the sizes of the row's files (-1 if missing), a line per damaged attempt.

    ``settled`` is whether no attempt is newer than the row's.
    """

    row: dict[str, Any] | None
    files: Mapping[str, int]
    damaged: tuple[str, ...]
    settled: bool = False


def new_attempt(study_dir: Path, trial_id: str) -> Path:
    """Make and return a new attempt folder; see ``name_attempt`` and ``make_attempt``."""
    return make_attempt(name_attempt(study_dir, trial_id))


def name_attempt(study_dir: Path, trial_id: str) -> Path:
    """Return a folder for a new attempt; its name is unique and sorts after those of earlier ones.

    Raises ``StoreError`` for an id that cannot name a folder.
    """
    trial_dir = study_dir / "trials" / check_name(f"{study_dir}: trial id", trial_id)
    try:
        present = names_in(trial_dir)
    except OSError:  # the first attempt; where the folder cannot be read, none can be made in it either
        present = []
    return trial_dir / following("attempt-", filter(is_attempt, present))


def make_attempt(attempt: Path) -> Path:
    """Make an attempt's folder; ``StoreError`` where it cannot be, or a symbolic link leads out of the results."""
    trial_dir = attempt.parent
    check_inside(trial_dir.parents[2], trial_dir)
    try:
        attempt.mkdir(parents=True)
    except OSError as error:
        raise StoreError(f"{trial_dir}: no folder can be made here ({error.strerror})") from error
    return attempt


# --- reading ---------------------------------------------------------------------------------------------------------


def latest_record(trial_dir: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the newest readable record of a trial, or None, and a line for each damaged attempt after it."""
    reading = read_trial_dir(trial_dir)
    return reading.row, list(reading.damaged)


def read_trial_dir(trial_dir: Path) -> Reading:
    """Read the newest readable record of a trial, if it has any."""
    damaged: list[str] = []
    try:
        attempts = sorted(filter(is_attempt, names_in(trial_dir)), reverse=True)
    except (FileNotFoundError, NotADirectoryError):
        attempts = []
    except OSError as error:
        return Reading(None, {}, (f"{trial_dir}: cannot be read ({error.strerror})",))
    for name in attempts:
        try:
            row, files = read_with_files(trial_dir / name)
            return Reading(row, files, tuple(damaged), settled=name == attempts[0])
        except NewerSchemaError:
            raise
        except NoSuchFileError:  # not finished
            continue
        except StoreError as error:
            damaged.append(str(error))
    return Reading(None, {}, tuple(damaged))


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder; ``OSError`` as ``os.listdir``."""
    return os.listdir(folder)  # noqa: PTH208 - names, of which there may be many thousands


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False if it cannot be read."""
    try:
        return path.is_dir()
    except OSError:
        return False


def study_dirs(path: Path) -> list[Path]:
    """Return the study folders at ``path``: itself, or those directly below it.

    ``StoreError`` when there are none, unless the folder holds comparisons, which ``comparison_store`` reads.
    """
    if is_folder(path / "trials"):
        return [path.resolve() if path.name in ("", "..") else path]  # "." names no study
    try:
        children = sorted(path / name for name in names_in(path)) if is_folder(path) else []
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error
    folders = [child for child in children if is_folder(child / "trials")]
    compared = [child for child in children if child.name.startswith("compare-")]
    if not folders and not any(is_folder(folder / "runs") for folder in (path, *compared)):
        absent = "" if path.exists() else " (no such folder)"
        raise StoreError(
            f"{path}: no results here{absent}; expected a results folder, or a study's folder in one, "
            "as `scalebench run STUDY` makes"
        )
    return folders


def trial_folders(results: Path, better: Callable[[Path], bool]) -> dict[str, Path]:
    """Return the folders of all trials under a results folder by id: studies and, in each, trials in order.

    Of a trial that several studies have, the last folder that is ``better``, else the last. Raises ``StoreError``.
    """
    folders: dict[str, Path] = {}
    for study in study_dirs(results):
        for path in sorted((study / "trials").iterdir()):
            if path.name not in folders or better(path) or not better(folders[path.name]):
                folders[path.name] = path
    return folders


def trial_names(study_dir: Path, damaged: list[str]) -> Iterator[str]:
    """Yield the names of a study's trial folders, sorted; one that cannot name a trial adds a line to ``damaged``."""
    folder = study_dir / "trials"
    try:
        names = sorted(names_in(folder))
    except OSError as error:
        damaged.append(f"{folder}: cannot be read ({error.strerror})")
        names = []
    for name in names:
        if is_name(name):
            yield name
        elif not name.startswith(".") and is_folder(folder / name):
            damaged.append(f"{folder / name}: no name of a trial")


def read_steps(attempt_dir: str | Path) -> pd.DataFrame:
    """Read an attempt's samples: step, train_loss_nats, step_time_s, data_time_s, warm; one row per training step.

    Raises ``StoreError`` naming the file when it is missing or damaged.
    """
    import pandas as pd
    import pyarrow

    path = Path(attempt_dir) / "steps.parquet"
    try:
        steps = pd.read_parquet(io.BytesIO(read_bytes(path, TABLE_BYTES)))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{path}: not readable as Parquet ({str(error).splitlines()[0]})") from error
    for name in STEP_COLUMNS:
        if name not in steps or not pd.api.types.is_numeric_dtype(steps[name]):
            raise StoreError(f"{path}: {name}: expected a column of numbers")
    return steps
