"""What the tests of ensembles share: a study of small models, trained one by one and together in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from support import PLACEMENT

from scalebench import store
from scalebench.running.attempts import Attempts
from scalebench.running.members import run_members
from scalebench.running.planning import PlannedTrial, load_study, plan
from scalebench.running.worker import run_trial, started, write_end
from scalebench.study import Study

SMALL_ENSEMBLE = """
schema = 1
name = "small"
[model]
family = "mlp"
params = 200
depth = 1
[train]
steps = 6
batch_size = 8
warmup_steps = 2
gradient_clip = 0.5
seed = [0, 1]
learning_rate = [0.01, 0.002]
weight_decay = [0.1, 0.3]
[data]
validation_samples = 64
[run]
ensemble = 8
memory = "allocator"
"""


AXES = "seed = [0, 1]\nlearning_rate = [0.01, 0.002]\nweight_decay = [0.1, 0.3]\n"
# Two trials, which differ in all three.
PAIR = SMALL_ENSEMBLE.replace(AXES, "") + "[[zip]]\n" + "".join(f"train.{axis}\n" for axis in AXES.splitlines())


def small_study(folder: Path, *settings: str, text: str = SMALL_ENSEMBLE) -> Study:
    """Return the study of eight trials, or another, with some of its values changed."""
    path = folder / "small.toml"
    path.write_text(text)
    return load_study(path, settings)


def prepared(study: Study, results: Path) -> tuple[Attempts, list[PlannedTrial]]:
    """Return the attempts of a driver without a name, and the trials to run."""
    planned = plan(study, results)
    return Attempts(results / study.name, study, planned), planned


def run_alone(study: Study, results: Path) -> dict[str, dict[str, Any]]:
    """Run all trials one by one in this process and return their records by id."""
    attempts, planned = prepared(study, results)
    prepared_attempts = [attempts.make(attempts.add(trial, 1)) for trial in planned]
    for attempt in prepared_attempts:
        run_trial(attempt, store.read_header(attempt), PLACEMENT)
    return {attempt.parent.name: store.read_record(attempt) for attempt in prepared_attempts}


def run_together(
    study: Study, results: Path, work: Callable[[Path], object] | None = None
) -> dict[str, dict[str, Any]]:
    """Run all trials as one batch in this process, by ``work`` on the lead's folder, and return their records by id."""
    attempts, planned = prepared(study, results)
    attempts.add_batch([(trial, 1) for trial in planned])

    def place(leads: list[Path], _needs: object, *, begin: Callable[[Path], bool], tick: Callable[..., None]):
        (lead,) = leads
        assert begin(lead)
        tick(leads)
        (work or train_batch)(lead)
        yield lead

    (batch,) = attempts.run(place)
    return {attempt.parent.name: store.read_record(attempt) for attempt in batch}


def train_batch(lead: Path) -> None:
    """Do what the worker of a batch does."""
    run_members(lead, PLACEMENT, started, write_end)
