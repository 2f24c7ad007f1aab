"""What a change of a trained model did: to its loss, its bytes and its time, each against the unchanged model.

For workloads that change a model (prune, quantize): they add ``COLUMNS`` to their own, and their run reads

    before = remember(model, task, spec, device)   # a copy, and what it is worth
    prune(model)                                   # changes it in place, or makes another one
    self.columns |= effect_columns(before, model)  # fills COLUMNS and the columns of a validation

torch is imported late, as ``COLUMNS`` are needed where no trial runs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalebench.measure.memory import weight_bytes
from scalebench.measure.statistics import clustered_mean, ratio_of_medians
from scalebench.measure.turns import METHOD, times_in_turns
from scalebench.store import Column
from scalebench.tasks import METRIC_COLUMNS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from scalebench.tasks import Task
    from scalebench.workloads.loop import Computation, Validation

LOSS_COLUMNS = (
    Column("loss_before_nats", "nat", "loss of the unchanged model on the held-out sample"),
    Column("loss_added_nats", "nat", "loss on the held-out sample minus that of the unchanged model"),
    Column("loss_added_se_nats", "nat", "standard error of loss_added_nats, paired and clustered by document or chain"),
    Column("validation_loss_nats", "nat", "loss on the held-out sample after the last step, or after the change"),
    Column("validation_loss_se_nats", "nat", "standard error of the validation loss, clustered by document or chain"),
    *METRIC_COLUMNS,
)
BYTES_COLUMNS = (
    Column("weight_bytes", "B", "size of parameters and persistent buffers"),
    Column("weight_bytes_before", "B", "size of the unchanged model's parameters and persistent buffers"),
)
LATENCY_COLUMNS = (
    Column("latency_s", "s", "median time of a forward pass of one held-out sample"),
    Column("latency_before_s", "s", "median time of that forward pass of the unchanged model, timed in turns"),
    Column("latency_ratio", "1", "latency_s over latency_before_s"),
    Column("latency_ratio_low", "1", "lower end of the 95 % bootstrap interval of latency_ratio within the process"),
    Column("latency_ratio_high", "1", "upper end of the 95 % bootstrap interval of latency_ratio within the process"),
    Column("latency_calls", "1", "timed forward passes of each of the two models"),
    Column("latency_method", "", "clock that timed the forward passes"),
)
COLUMNS = (*LOSS_COLUMNS, *BYTES_COLUMNS, *LATENCY_COLUMNS)


@dataclass(frozen=True)
class Before:
    """The unchanged model (a copy, in evaluation mode), its validation, and where and how both models are measured."""

    model: nn.Module
    validation: Validation
    task: Task
    spec: Computation
    device: torch.device


def remember(model: nn.Module, task: Task, spec: Computation, device: torch.device) -> Before:
    """Copy a model that is about to be changed, and validate it on the task's held-out sample.

    Raises ``Diverged`` when its loss is not finite.
    """
    from scalebench.workloads.loop import validate

    unchanged = copy.deepcopy(model).eval()
    return Before(unchanged, validate(unchanged, task, spec, device), task, spec, device)


def effect_columns(
    before: Before, model: nn.Module, *, spec: Computation | None = None, validation: Validation | None = None
) -> dict[str, Any]:
    """Validate and time the changed model and return ``COLUMNS``; null where nothing was measured.

    ``spec`` is for a changed model that computes in another precision than the unchanged one; ``validation`` for one
    that has been validated on the same task. Raises ``Diverged`` when its loss is not finite.
    """
    from scalebench.workloads.loop import validate

    spec = spec or before.spec
    validation = validation or validate(model, before.task, spec, before.device)
    return loss_columns(before, validation) | bytes_columns(before, model) | latency_columns(before, model, spec)


def loss_columns(before: Before, after: Validation) -> dict[str, float | None]:
    """Return the loss of both models, what the change added and its standard error, and the validation's columns.

    The difference is taken sample by sample, so that what is hard for both cancels.
    """
    from scalebench.workloads.loop import validation_columns

    added, error = clustered_mean(after.losses_nats - before.validation.losses_nats, after.clusters)
    return {
        **validation_columns(after),
        "loss_before_nats": before.validation.loss_nats,
        "loss_added_nats": added,
        "loss_added_se_nats": None if math.isnan(error) else error,
    }


def bytes_columns(before: Before, model: nn.Module) -> dict[str, int]:
    """Return the bytes of both models."""
    return {"weight_bytes": weight_bytes(model), "weight_bytes_before": weight_bytes(before.model)}


def latency_columns(before: Before, model: nn.Module, spec: Computation) -> dict[str, float | str]:
    """Return the median times of both models' forward passes of one held-out sample, and their ratio."""
    calls = [
        forward_pass(before.model, before.task, before.spec, before.device),
        forward_pass(model, before.task, spec, before.device),
    ]
    unchanged, changed = times_in_turns(calls, before.device)
    ratio = ratio_of_medians([changed], [unchanged])
    return {
        "latency_s": _median(changed),
        "latency_before_s": _median(unchanged),
        "latency_ratio": ratio.value,
        "latency_ratio_low": ratio.low,
        "latency_ratio_high": ratio.high,
        "latency_calls": len(changed),
        "latency_method": METHOD,
    }


def _median(times: Any) -> float:
    import numpy as np

    return float(np.median(times))


def forward_pass(model: nn.Module, task: Task, spec: Computation, device: torch.device) -> Callable[[], object]:
    """Return a function that runs the model on the first held-out sample, with the inputs that the task gives it.

    A model that computes its losses itself does that, too; the loss of any other is left out.
    """
    import torch

    from scalebench.workloads.loop import computing

    inputs, keywords = model_inputs(model.eval(), task, spec, device)

    def call() -> object:
        with torch.inference_mode(), computing(model, device, spec.precision):
            return model(*inputs, **keywords)

    return call


def model_inputs(
    model: nn.Module, task: Task, spec: Computation, device: torch.device
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Return the arguments with which the task calls the model for the first held-out sample, a batch of one."""
    import torch

    from scalebench.workloads.batches import to_device
    from scalebench.workloads.loop import computing

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def take(_: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append((inputs, keywords))

    batch, _ = next(iter(task.validation()))
    with ExitStack() as stack:
        stack.callback(model.register_forward_pre_hook(take, with_kwargs=True).remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(computing(model, device, spec.precision))
        task.judge(model, to_device(tuple(tensor[:1] for tensor in batch), device))
    return calls[0]
