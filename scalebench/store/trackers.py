"""Trials written as runs of experiment trackers: TensorBoard, MLflow and Weights & Biases (offline).

Each trial becomes a run, named by its id, in the project or experiment of its study: what was set as its
configuration, the columns that were measured as its results, and its training curve step by step. The trackers' own
libraries write the files, which `fit` reads again (TensorBoard, MLflow) and `wandb sync` uploads.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.store.columns import STORE_NAMES
from scalebench.store.files import StoreError, plain_text
from scalebench.store.results import Results
from scalebench.store.trials import read_steps

if TYPE_CHECKING:
    import pandas as pd

METRICS_PER_CALL, PARAMETERS_PER_CALL = 1000, 100  # limits of MLflow


class TrackerMissingError(StoreError):
    """The library of a tracker is not installed; the message has the command that installs it."""


@dataclass(frozen=True)
class TrackedRun:
    """One trial as a run of a tracker: configuration, results, and scalars (step, name, value) of its training."""

    study: str
    trial_id: str
    settings: dict[str, str | int | float | bool]
    results: dict[str, float]
    curve: pd.DataFrame | None  # a column step and columns of numbers
    last_step: int

    def scalars(self) -> Iterator[tuple[int, str, float]]:
        """Yield the curve, without values that are not finite, and then the results at the last step."""
        columns = [] if self.curve is None else [name for name in self.curve if name != "step"]
        for name in columns:
            assert self.curve is not None
            for step, value in zip(self.curve["step"].tolist(), self.curve[name].tolist(), strict=True):
                if math.isfinite(value):
                    yield int(step), str(name), float(value)
        yield from ((self.last_step, name, value) for name, value in self.results.items())


def tracked_runs(results: Results) -> list[TrackedRun]:
    """Return the trials of results folders as runs; what a study lists as measured are the results."""
    runs = []
    for row in results.frame.to_dict("records"):
        measured = set(results.studies.get(str(row["study"]), {}).get("measured", ()))
        known = {str(name): value for name, value in row.items() if _is_known(value)}
        numbers = {name: float(value) for name, value in known.items() if name in measured and _is_finite(value)}
        hidden = {*STORE_NAMES, "attempt_dir", "checked", *measured} - {"status", "workload"}
        settings = {name: _plain(value) for name, value in known.items() if name not in hidden}
        curve = _curve(Path(str(row["attempt_dir"])))
        last_step = int(known.get("stop_step", 0 if curve is None else curve["step"].max()))
        runs.append(TrackedRun(str(row["study"]), str(row["trial_id"]), settings, numbers, curve, last_step))
    return runs


def _is_known(value: Any) -> bool:
    return isinstance(value, str | Number) and value == value  # noqa: PLR0124 - NaN is not equal to itself


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> str | int | float | bool:
    """Return a scalar of numpy as Python's own."""
    return value if isinstance(value, str | bool | int | float) else value.item()


def _curve(attempt: Path) -> pd.DataFrame | None:
    """Return the samples of a training run; None for trials without them."""
    if not (attempt / "steps.parquet").exists():
        return None
    steps = read_steps(attempt)
    return steps[[name for name in steps if steps[name].dtype.kind in "iuf"]]


# --- trackers --------------------------------------------------------------------------------------------------------


def write_tensorboard(runs: Sequence[TrackedRun], folder: Path) -> str:
    """Write event files, FOLDER/STUDY/TRIAL, with the configuration for the HParams tab; return how to look at them."""
    try:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.plugins.hparams import summary_v2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError as error:
        raise _missing("tensorboard", error) from error
    for run in runs:
        writer = EventFileWriter(str(folder / run.study / run.trial_id))
        writer.add_event(Event(step=0, summary=summary_v2.hparams_pb(run.settings, trial_id=run.trial_id)))
        for step, name, value in run.scalars():
            summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
            writer.add_event(Event(step=step, summary=summary))
        writer.close()
    return f"tensorboard --logdir {shlex.quote(str(folder))}"


def write_mlflow(runs: Sequence[TrackedRun], folder: Path) -> str:
    """Write FOLDER/mlflow.db, an experiment per study; return how to look at it."""
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param
    except ImportError as error:
        raise _missing("mlflow", error) from error
    database = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
    client = MlflowClient(database)
    studies = dict.fromkeys(run.study for run in runs)
    artifacts = (folder.absolute() / "artifacts").as_uri()
    experiments = {study: client.create_experiment(study, artifact_location=artifacts) for study in studies}
    for run in runs:
        run_id = client.create_run(experiments[run.study], run_name=run.trial_id).info.run_id
        parameters = [Param(name, str(value)) for name, value in run.settings.items()]
        metrics = [Metric(name, value, 0, step) for step, name, value in run.scalars()]
        for start in range(0, len(parameters), PARAMETERS_PER_CALL):
            client.log_batch(run_id, params=parameters[start : start + PARAMETERS_PER_CALL])
        for start in range(0, len(metrics), METRICS_PER_CALL):
            client.log_batch(run_id, metrics=metrics[start : start + METRICS_PER_CALL])
        client.set_terminated(run_id, "FINISHED" if run.settings.get("status") == "ok" else "FAILED")
    return f"mlflow ui --backend-store-uri {shlex.quote(database)}"


def write_wandb(runs: Sequence[TrackedRun], folder: Path) -> str:
    """Write runs of Weights & Biases below FOLDER/wandb without a network; return how to upload them."""
    try:
        import wandb
    except ImportError as error:
        raise _missing("wandb", error) from error
    quiet = wandb.Settings(
        silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True, disable_code=True
    )
    for run in runs:
        place: dict[str, Any] = {"mode": "offline", "dir": str(folder), "project": run.study, "id": run.trial_id}
        logged = wandb.init(**place, name=run.trial_id, config=run.settings, settings=quiet, reinit="finish_previous")
        by_step: dict[int, dict[str, float]] = {}
        for step, name, value in run.scalars():
            by_step.setdefault(step, {})[name] = value
        for step in sorted(by_step):
            logged.log(by_step[step], step=step)
        logged.finish(exit_code=0 if run.settings.get("status") == "ok" else 1)
    return f"wandb sync {shlex.quote(str(folder / 'wandb'))}/offline-run-*"


TRACKERS: dict[str, Callable[[Sequence[TrackedRun], Path], str]] = {
    "tensorboard": write_tensorboard,
    "wandb-offline": write_wandb,
    "mlflow": write_mlflow,
}


def _missing(package: str, error: ImportError) -> TrackerMissingError:
    broken = "" if error.name == package else f" ({error})"
    return TrackerMissingError(f"--to: {package} is not installed{broken}: pip install {package}")


def export_runs(results: Results, tracker: str, folder: Path) -> tuple[int, str]:
    """Write the trials for a tracker of ``TRACKERS`` into a new folder; return their number and how to look at them.

    Raises ``StoreError`` for a folder that is not empty, and ``TrackerMissingError``.
    """
    if plain_text(str(folder)) != str(folder):
        raise StoreError(f"{folder}: trackers write to folders with names in UTF-8 alone; name another one")
    if folder.exists() and (not folder.is_dir() or next(folder.iterdir(), None) is not None):
        raise StoreError(f"{folder}: is there already; name a new folder, so that no run is written twice")
    runs = tracked_runs(results)
    if not runs:
        raise StoreError("there are no trials to export")
    write = TRACKERS[tracker]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return len(runs), write(runs, folder)
    except TrackerMissingError:
        folder.rmdir()
        raise
