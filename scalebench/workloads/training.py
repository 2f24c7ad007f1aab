"""The workload "training": its study table, its cost, its columns. ``training_run`` does it."""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from scalebench.analysis.whole_steps import whole_steps
from scalebench.errors import InputError
from scalebench.families import FAMILIES, Counts
from scalebench.families.outline import outline
from scalebench.measure import clock, energy, memory
from scalebench.optim.fused import FUSED
from scalebench.optim.optimizers import OPTIMIZERS, hidden_matrices
from scalebench.store import Column
from scalebench.study import Trial
from scalebench.study.axes import MOST_COUNTED
from scalebench.tasks import METRIC_COLUMNS
from scalebench.workloads import ensemble
from scalebench.workloads.base import (
    DEFAULT_SEQUENCE_LENGTH,
    KERNELS,
    SIZE_COLUMNS,
    Cost,
    Decided,
    Request,
    check_served,
    offering,
    step_flops,
)
from scalebench.workloads.distribution import decided_parallel
from scalebench.workloads.graphs import decided_graph
from scalebench.workloads.training_memory import training_memory
from scalebench.workloads.training_spec import BUDGETS, TrainSection, TrainSpec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scalebench.workloads.recorder import Recorder

__all__ = ["COLUMNS", "KEEPS", "SUMMARY", "TABLE", "TAKES_WEIGHTS", "Section", "Spec", "cost", "decide", "run"]

SUMMARY = "train a model for a number of steps and validate it"
TABLE = "train"
Section = TrainSection
Spec = TrainSpec
TAKES_WEIGHTS = True
KEEPS = ("weights_sha256", "state_sha256")
DEFAULT_STEPS = 400

COLUMNS = (
    *SIZE_COLUMNS,
    Column("train_loss_nats", "nat", "mean training loss of the last twentieth of the steps"),
    Column("validation_loss_nats", "nat", "loss on the held-out sample after the last step"),
    Column("validation_loss_se_nats", "nat", "standard error of the validation loss, clustered by document or chain"),
    Column("floor_nats", "nat", "irreducible loss of the data, where it is known in closed form"),
    *METRIC_COLUMNS,
    *clock.COLUMNS,
    Column("skipped_steps", "1", "steps that the float16 loss scaler skipped"),
    Column("samples_per_s", "1/s", "samples per second at the median step time"),
    Column("tokens_per_s", "1/s", "tokens per second at the median step time"),
    Column("flops_per_step", "FLOP", "FLOPs of a step: three forward passes, a multiply-add counted as two"),
    Column("achieved_flops_per_s", "FLOP/s", "flops_per_step over the median step time"),
    Column("mfu", "1", "model FLOPs utilisation: achieved over peak FLOP/s"),
    *memory.PEAK_COLUMNS,
    *memory.SPLIT_COLUMNS,
    Column("attention_backend", "", "what computes attention"),
    Column("checkpoint_bytes", "B", "size of parameters, buffers and optimizer state"),
    Column("weight_bytes", "B", "size of parameters and persistent buffers"),
    Column("weights_file_bytes", "B", "size of weights.safetensors, where the study keeps weights (run.checkpoint)"),
    Column("weights_sha256", "", "SHA-256 of weights.safetensors"),
    Column("state_sha256", "", "SHA-256 of state.safetensors: optimizer state, step, random number generators"),
    *energy.COLUMNS,
    Column("samples_seen", "1", "samples trained on, those of the parent's run included where it is continued"),
    Column("tokens_seen", "1", "tokens trained on, those of the parent's run included where it is continued"),
    Column("epochs_seen", "1", "passes over the training data"),
    Column(
        "resumed_from_step", "1", "steps that earlier, interrupted attempts took; times cover only the steps after them"
    ),
    Column("resumed_attempts", "1", "earlier attempts whose steps count"),
    *ensemble.COLUMNS,
    Column("first_step", "1", "number of the first step: 0, or where the continued run of the parent ended"),
)


def decide(request: Request) -> Decided:
    """Decide a trial's steps, learning rate, weight decay and graph; a continued run goes on as its parent did."""
    name = request.family_name
    values = _filled(request)
    check_served(request, values, "train")
    length = values["sequence_length"] = _sequence_length(request, values.get("sequence_length"))
    config, counts = request.configure(length)
    budget = {key: values.pop(key) for key in BUDGETS if key in values} or _decay_steps(request, values)
    values["steps"] = _steps(budget, counts, values["batch_size"], length)
    optimizer = OPTIMIZERS[values["optimizer"]]
    if values["learning_rate"] == "auto":
        values["learning_rate"] = _family_rate(request, config) * optimizer.rate_factor
    values.setdefault("weight_decay", optimizer.weight_decay)
    values["graph"] = decided_graph(name, values)
    _check_update(request, config, values)
    # A setting without effect is reset, or one trial would be two.
    values["gradient_sums"] &= values["implementation"] == "fused" and values["precision"] != "float32"
    if values["accumulation"] > (size := values["batch_size"]):
        raise InputError(f"train.accumulation: {values['accumulation']} micro-batches of a batch of {size}")
    if values["checkpointing"] and "checkpointing" not in request.family.CAPABILITIES:
        raise InputError(f"train.checkpointing: {name} has no blocks to recompute; {offering('checkpointing')}")
    values["parallel"] = decided_parallel(values, continues=request.continues)
    return Decided(TrainSpec.model_construct(**values), config, counts)


def _family_rate(request: Request, config: Any) -> float:
    """Return the learning rate by the family's rule. Raises ``InputError`` for one that is not a positive number."""
    rate = request.family.learning_rate(config)
    if not (isinstance(rate, int | float) and 0 < rate < math.inf):
        raise InputError(f"model.family: learning_rate() of {request.family_name} returns {rate!r}, no positive number")
    return float(rate)


def _check_update(request: Request, config: Any, values: dict[str, Any]) -> None:
    """Refuse an optimizer that cannot train this model or has no fused kernel, and a CUDA graph on a CPU."""
    optimizer = values["optimizer"]
    if values["implementation"] in KERNELS and optimizer not in FUSED:
        raise InputError(f"train.optimizer: no fused kernel for {optimizer!r}; there are {', '.join(FUSED)}")
    if optimizer == "muon" and not _has_hidden_matrices(request.family_name, config):
        raise InputError(
            f"train.optimizer: muon needs hidden matrices, and {request.family_name} of this size has none; "
            "use another optimizer, or exclude the combination"
        )
    if values["graph"] == "step" and request.device == "cpu":
        raise InputError('train.graph: a step is captured as a CUDA graph, which a CPU does not have; use "blocks"')


@lru_cache(maxsize=4096)
def _has_hidden_matrices(family: str, config: Any) -> bool:
    """Return whether a model has parameters for Muon. Imports torch."""
    return bool(hidden_matrices(outline(FAMILIES[family], config)))


def _filled(request: Request) -> dict[str, Any]:
    """Return the table's values: what the file names, else defaults.

    A trial with a parent takes the parent's seed and sequence length, and where its run is continued all else, too.
    """
    defaults = dict(_defaults())
    parent = None if request.parent is None else request.parent.spec
    if parent is not None:
        defaults["seed"] = parent.seed  # it can decide what is held out
    if request.family.SEQUENCES and (length := getattr(parent, "sequence_length", None)) is not None:
        defaults["sequence_length"] = length
    if request.continues:
        if not isinstance(parent, TrainSpec):
            raise InputError("from.optimizer_state: only a training run can be continued, and the parent is not one")
        defaults |= dict(parent)
        del defaults["steps"]
        if any(request.values.get(key, defaults[key]) != defaults[key] for key in ("implementation", "precision")):
            defaults |= {"graph": "auto", "gradient_sums": True}  # the parent's were decided for its own
        if (requested := request.values.get("optimizer", parent.optimizer)) != parent.optimizer:
            raise InputError(f"train.optimizer: the parent's state is that of {parent.optimizer}, not of {requested}")
    return defaults | dict(request.values)


@cache
def _defaults() -> Mapping[str, Any]:
    """Return the values of [train] that a file need not name, the device aside."""
    return {name: values[0] for name, values in TrainSection().filled_fields().items() if name != "device"}


def _sequence_length(request: Request, requested: int | None) -> int | None:
    if request.family.SEQUENCES:
        return requested or DEFAULT_SEQUENCE_LENGTH
    if requested is not None:
        raise InputError(f"train.sequence_length: {request.family_name} takes no sequences: leave it out")
    return None


def _decay_steps(request: Request, values: dict[str, Any]) -> dict[str, int]:
    """Return the budget of a branch whose file names none: the steps of the decay that begins at its checkpoint.

    They are ``decay_fraction`` of all steps, so that the branch is the end of a run of this length with this schedule.
    """
    stable = 1 - values["decay_fraction"]
    if not request.continues or request.branch_step is None or values["schedule"] != "wsd" or not stable:
        return {}
    return {"steps": max(1, round(request.branch_step / stable) - request.branch_step)}


def _steps(budget: dict[str, Any], counts: Counts, batch_size: int, length: int | None) -> int:
    """Turn the budget into steps; a budget smaller than one step still takes one, and one of too many is refused."""
    ((kind, amount),) = budget.items() or (("steps", DEFAULT_STEPS),)
    tokens = amount * counts.active_non_embedding if kind == "tokens_per_param" else amount
    of_kind = {"steps": 1, "flops": step_flops(counts, batch_size)}
    steps = whole_steps(tokens, of_kind.get(kind, batch_size * (length or 1)))
    if steps > MOST_COUNTED:
        raise InputError(f"train.{kind}: {amount:g} takes {steps:.3g} steps; a trial has at most {MOST_COUNTED:g}")
    return steps


def cost(trial: Trial, counts: Counts) -> Cost:
    """Estimate a trial; see ``training_memory`` for its memory."""
    spec: TrainSpec = trial.spec
    memory_bytes = training_memory(counts, spec, int(trial.model.get("depth") or 1))
    flops = step_flops(counts, spec.batch_size) * spec.steps
    return Cost(flops, spec.steps, memory_bytes, processes=spec.processes)


def run(trial: Trial, recorder: Recorder) -> None:
    """Run one trial, filling the record's columns as it goes."""
    from scalebench.workloads.training_run import run as measure  # imports torch

    measure(trial, recorder)
