"""Which training trials can be trained together in one process (``[run] ensemble``), and why others cannot.

Together they are one batched model (``ensemble_step.py``) and keep a record each (``ensemble_run.py``).
"""

from __future__ import annotations

from collections.abc import Iterator

from scalebench.families import FAMILIES
from scalebench.optim.batched import BATCHED
from scalebench.store import Column
from scalebench.study import Trial
from scalebench.study.sections import RunSection

COLUMNS = (
    Column(
        "ensemble_size", "1", "trials that were trained together in one process, this one among them; null if alone"
    ),
    Column("ensemble_time_s", "s", "from the start of that process to the end of this trial, shared by all of them"),
)
FREE = ("seed", "learning_rate", "weight_decay")  # what trials of one ensemble differ in

# The most parameters of a model that is trained with others: larger ones are as fast one by one, or faster. Measured by
# experiments/bench_ensemble.py, whose docstring has the figures.
MOST_PARAMS = 30_000


def why_alone(trial: Trial, params: int, run: RunSection) -> str | None:
    """Return why a training trial of ``params`` parameters is trained one by one; None where an ensemble takes it."""
    return next((reason for reason, holds in [*_of_trial(trial, params), *_of_study(run)] if holds), None)


def _of_trial(trial: Trial, params: int) -> Iterator[tuple[str, bool]]:
    """Yield what can keep a trial out of an ensemble, and whether it does."""
    spec, parent = trial.spec, trial.parent
    yield "ensembles were not measured on a GPU", trial.device_kind != "cpu"
    yield f"models of more than {MOST_PARAMS:,} parameters are as fast one by one, or faster", params > MOST_PARAMS
    yield (
        f"{trial.family} has operations without a batched form",
        "ensembles" not in FAMILIES[trial.family].CAPABILITIES,
    )
    yield f"the optimizer {spec.optimizer} has no batched form", spec.optimizer not in BATCHED
    yield f'implementation = "{spec.implementation}" has no batched form ("eager" has)', spec.implementation != "eager"
    yield f'graph = "{spec.graph}" compiles one model', spec.graph != "none"
    yield f'precision = "{spec.precision}" rounds batched products otherwise', spec.precision != "float32"
    yield f"processes = {spec.processes}: several processes train one model", spec.processes > 1
    yield f"accumulation = {spec.accumulation}: micro-batches belong to one model", spec.accumulation > 1
    yield "checkpointing recomputes the blocks of one model", spec.checkpointing
    yield "its parent's run goes on in it", parent is not None and parent.state_sha256 is not None


def _of_study(run: RunSection) -> Iterator[tuple[str, bool]]:
    """Yield what can keep all trials of a study out of ensembles, and whether it does."""
    yield "memory_limit_bytes is that of one trial", run.memory_limit_bytes is not None
    yield f'on_oom = "{run.on_oom}" changes the micro-batches of one trial', run.on_oom != "end"
    yield "checkpoint_steps keeps the state of one trial on its way", bool(run.checkpoint_steps)
    yield "checkpoint_every_steps keeps the state of one trial on its way", run.checkpoint_every_steps is not None
    yield "checkpoint_every_s keeps the state of one trial on its way", run.checkpoint_every_s is not None


def shared_by(trial: Trial) -> str:
    """Return what trials must have in common to be trained together, as JSON: all but ``FREE``."""
    return trial.model_copy(update={"spec": None}).model_dump_json() + trial.spec.model_dump_json(exclude=set(FREE))
