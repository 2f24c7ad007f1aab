"""Exports and logs of other tools, as one row per run and step.

A chart of Weights & Biases exported as CSV has a column per run, with its __MIN and __MAX beside it; it is reshaped.
Folders of logs are read run by run: ``trainer_state.json`` of Hugging Face's Trainer, MLflow's ``mlruns``, and
TensorBoard's event files with their hyperparameters (with the package tensorboard: `pip install tensorboard`). MLflow's
database ``mlflow.db`` holds several runs.
"""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from scalebench.errors import InputError, number_of
from scalebench.points.batches import Table, numbers
from scalebench.store import read_bytes, read_json

TRAINER_STATE = "trainer_state.json"
EVENTS = "events.out.tfevents.*"
DATABASE = "mlflow.db"
SHOWN_COLUMNS = 20
DEEPEST = 4  # folders below the one named
RUN, STEP = "run", "step"
CHART_COLUMN = re.compile(r"(?P<run>.+) - (?P<metric>.+)")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


# --- Weights & Biases ------------------------------------------------------------------------------------------------


def chart_series(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return column -> (run, metric) where the columns are those of an exported chart, else nothing."""
    known = set(names)
    series = {}
    for name in names:
        if {f"{name}__MIN", f"{name}__MAX"} <= known and (parts := CHART_COLUMN.fullmatch(name)):
            series[name] = (parts["run"], parts["metric"])
    return series


def reshaped(table: Table, series: Mapping[str, tuple[str, str]]) -> tuple[pd.DataFrame, str]:
    """Return an exported chart with one row per run and step, in columns step, run and the metrics."""
    step = next(name for name in table.names if not name.endswith(("__MIN", "__MAX")) and name not in series)
    wide = pd.concat(
        [
            pd.DataFrame({name: numbers(batch.column(name)) for name in (step, *series)})
            for batch in table.batches([step, *series])
        ],
        ignore_index=True,
    )
    parts = defaultdict(list)
    for name, (run, metric) in series.items():
        parts[run].append(pd.DataFrame({step: wide[step], metric: wide[name]}).dropna())
    runs = []
    for run, metrics in parts.items():
        joined = metrics[0]
        for other in metrics[1:]:
            joined = joined.merge(other, on=step, how="outer")
        runs.append(joined.assign(**{RUN: run}))
    frame = pd.concat(runs, ignore_index=True)
    note = f"a chart of Weights & Biases, {len(runs)} runs side by side, as one row per run and step"
    return frame, f"{note}; {_columns_of(frame)}"


def _columns_of(frame: pd.DataFrame) -> str:
    """Name the columns of a table, of many only the first."""
    names = [str(name) for name in frame]
    more = f", … {len(names)} in all" if len(names) > SHOWN_COLUMNS else ""
    return f"its columns are {', '.join(names[:SHOWN_COLUMNS])}{more}"


# --- folders of logs -------------------------------------------------------------------------------------------------


def is_log(path: Path) -> bool:
    """Whether a path is, or is a folder that holds, the logs of another trainer."""
    if path.is_file():
        return path.name in (TRAINER_STATE, DATABASE) or path.match(EVENTS)
    return path.is_dir() and next(_runs(path), None) is not None


def _runs(root: Path) -> Iterator[tuple[str, Path]]:
    """Yield (kind, folder or file) of each run below a folder."""
    pending = [(root, 0)]
    while pending:
        folder, depth = pending.pop(0)
        if (folder / TRAINER_STATE).is_file():
            yield "trainer", folder / TRAINER_STATE
        elif (folder / DATABASE).is_file():
            yield "database", folder / DATABASE
        elif (folder / "metrics").is_dir() and (folder / "meta.yaml").is_file():
            yield "mlflow", folder
        elif next(folder.glob(EVENTS), None) is not None:
            yield "events", folder
        elif depth < DEEPEST and not (folder / "study.json").exists():
            folders = [child for child in folder.iterdir() if child.is_dir() and child.name != "trials"]
            pending += [(child, depth + 1) for child in sorted(folders, key=_place_in_run)]


def _place_in_run(folder: Path) -> tuple[int, str]:
    """Return what folders are ordered by: checkpoints by their step, any other before them by name."""
    checkpoint = CHECKPOINT.fullmatch(folder.name)
    return (int(checkpoint[1]) if checkpoint else -1), folder.name


def read_logs(path: Path) -> tuple[pd.DataFrame, str]:
    """Return the logs at a path, one row per run and step. Raises ``InputError``."""
    if path.is_file():
        runs = [({TRAINER_STATE: "trainer", DATABASE: "database"}.get(path.name, "events"), path)]
    else:
        runs = list(_runs(path))
        newest = {_run_name(path, place): (kind, place) for kind, place in runs}  # checkpoints of a run: the last one
        runs = list(newest.values())
    frames = [READERS[kind](place) for kind, place in runs]
    with_names = [
        frame if kind == "database" else frame.assign(**{RUN: _run_name(path, place)})
        for (kind, place), frame in zip(runs, frames, strict=True)
    ]
    frame = pd.concat(with_names, ignore_index=True)
    kinds = ", ".join(dict.fromkeys(NAMES[kind] for kind, _ in runs))
    number = frame[RUN].nunique()
    return frame, f"{kinds}, {number_of(number, 'run')}; {_columns_of(frame)}"


def _run_name(path: Path, place: Path) -> str:
    folder = place.parent if place.is_file() else place
    inner = folder.relative_to(path) if folder.is_relative_to(path) else Path()
    parts = [part for part in inner.parts if not CHECKPOINT.fullmatch(part)]
    return "/".join(parts) or (path.name if path.is_dir() else path.parent.name)


def _trainer_rows(path: Path) -> pd.DataFrame:
    """Return the log of Hugging Face's Trainer: step, epoch, loss, eval_loss, …, by step."""
    try:
        entries = read_json(path)["log_history"]
        rows: dict[Any, dict[str, Any]] = {}
        for entry in entries:
            rows.setdefault(entry[STEP], {}).update(entry)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError([f"{path}: not the state of a Hugging Face Trainer ({error!r})"]) from error
    if not rows:
        raise InputError([f"{path}: its log_history is empty; train with logging_steps set"])
    return pd.DataFrame(list(rows.values()))


def _mlflow_rows(folder: Path) -> pd.DataFrame:
    """Return a run of MLflow's file store: its metrics by step, and in every row its parameters of other names."""
    metrics = {}
    for file in sorted((folder / "metrics").rglob("*")):
        if file.is_file():
            metrics[file.relative_to(folder / "metrics").as_posix()] = _mlflow_metric(file)
    frame = pd.DataFrame(metrics).rename_axis(STEP).reset_index()
    for file in sorted((folder / "params").rglob("*")):
        name = file.relative_to(folder / "params").as_posix()
        if file.is_file() and name not in frame:
            frame[name] = read_bytes(file).decode(errors="replace").strip()
    return frame


def _mlflow_metric(file: Path) -> pd.Series:
    """Return the values of a metric by step: a line has time, value and step, which older versions lack."""
    content = read_bytes(file)
    try:
        lines = [line.split() for line in content.decode().splitlines() if line.strip()]
        return pd.Series({int(line[2]) if len(line) > 2 else 0: float(line[1]) for line in lines})
    except (ValueError, IndexError) as error:
        raise InputError(
            [f"{file}: not a metric of MLflow, whose lines have time, value and step ({error})"]
        ) from error


def _database_rows(path: Path) -> pd.DataFrame:
    """Return the runs of MLflow's database: their metrics by step, and in every row parameters of other names."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            run_names = pd.read_sql_query("select run_uuid, name from runs where lifecycle_stage = 'active'", database)
            metrics = pd.read_sql_query("select run_uuid, step, key, value from metrics where is_nan = 0", database)
            parameters = pd.read_sql_query("select run_uuid, key, value from params", database)
    except (sqlite3.Error, pd.errors.DatabaseError) as error:
        raise InputError([f"{path}: not a database of MLflow ({error})"]) from error
    metrics = metrics[metrics["run_uuid"].isin(run_names["run_uuid"])]
    if metrics.empty:
        raise InputError([f"{path}: no active run has a metric"])
    wide = metrics.pivot_table("value", ["run_uuid", STEP], "key", aggfunc="last").reset_index()
    parameters = parameters[~parameters["key"].isin(wide.columns)]
    if len(parameters):
        wide = wide.merge(parameters.pivot_table("value", "run_uuid", "key", "last"), "left", "run_uuid")
    repeated = run_names["name"].duplicated(keep=False) | run_names["name"].isna()
    names = run_names["name"].where(~repeated, run_names["name"].fillna("") + " " + run_names["run_uuid"]).str.strip()
    return wide.assign(**{RUN: wide["run_uuid"].map(dict(zip(run_names["run_uuid"], names, strict=True)))}).drop(
        columns="run_uuid"
    )


def _event_rows(place: Path) -> pd.DataFrame:
    """Return the scalars of TensorBoard's event files by step."""
    log = _event_log(place)
    from tensorboard.util.tensor_util import make_ndarray

    scalars = {tag: {event.step: event.value for event in log.Scalars(tag)} for tag in log.Tags()["scalars"]}
    for tag in log.Tags()["tensors"]:  # of TensorFlow 2
        values = {event.step: make_ndarray(event.tensor_proto) for event in log.Tensors(tag)}
        scalars[tag] = {step: float(value) for step, value in values.items() if value.shape == ()}
    frame = pd.DataFrame({tag: pd.Series(values) for tag, values in scalars.items()}).rename_axis(STEP).reset_index()
    # SummaryWriter.add_hparams writes them, and the results, into a folder of their own below the run's.
    below = sorted(child for child in place.glob("*") if next(child.glob(EVENTS), None) is not None)
    for other in (log, *map(_event_log, below)):
        frame = frame.assign(**{name: value for name, value in _hyperparameters(other).items() if name not in frame})
    return frame


def _event_log(place: Path) -> Any:
    """Return TensorBoard's reader of a file or folder, with all of its values. Raises ``InputError``."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise InputError([f"{place}: event files are read by tensorboard: pip install tensorboard"]) from error
    log = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0})
    log.Reload()
    return log


def _hyperparameters(log: Any) -> dict[str, Any]:
    """Return the hyperparameters that event files hold, nothing where there are none."""
    from tensorboard.plugins.hparams import metadata

    tag = metadata.SESSION_START_INFO_TAG
    if tag not in log.summary_metadata:
        return {}
    content = log.SummaryMetadata(tag).plugin_data.content
    fields = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind") or "string_value") for name, value in fields.items()}


READERS = {"trainer": _trainer_rows, "mlflow": _mlflow_rows, "database": _database_rows, "events": _event_rows}
NAMES = {
    "trainer": "Hugging Face Trainer logs",
    "mlflow": "MLflow logs",
    "database": "MLflow database",
    "events": "TensorBoard logs",
}
