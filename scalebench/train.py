"""The training loop, to be read top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from scalebench.collectors.time import StepClock
from scalebench.fused_optimizers import clips
from scalebench.optimizers import set_learning_rate
from scalebench.statistics import clustered_mean
from scalebench.study import TrainSpec
from scalebench.tasks import Batch, Task

# How often the loop looks at its losses: looking waits for the device, so not at every step.
CHECK_EVERY = 20


class Diverged(ArithmeticError):  # noqa: N818 - a status, named as the record names it
    """The loss stopped being a number."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass runs at ``precision``."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch; on a GPU from pinned memory, without waiting."""
    if device.type == "cpu":
        return batch
    return tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in batch)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    spec: TrainSpec,
    clock: StepClock,
    losses: Tensor,
    check: Callable[[int], None],
) -> int:
    """Train for ``spec.steps`` steps, filling ``losses`` (steps,) and ``clock``; ``check(step)`` may raise Diverged.

    Returns how many steps the loss scaler of float16 skipped, their gradients being too large for the format.
    """
    device, scaler, skipped = losses.device, loss_scaler(losses.device, spec), 0
    model.train()
    clock.lap()
    for step in range(spec.steps):
        batch = to_device(task.batch(step), device)
        clock.data_ready()
        losses[step] = backward(model, task, batch, spec, scaler)
        set_learning_rate(optimizer, spec, step)
        skipped += not update(model, optimizer, spec, scaler)
        clock.lap()
        if (step + 1) % CHECK_EVERY == 0 or step + 1 == spec.steps:
            check(step + 1)
    return skipped


def loss_scaler(device: torch.device, spec: TrainSpec) -> GradScaler:
    """Return what keeps float16 gradients from vanishing; at another precision it does nothing."""
    return GradScaler(device.type, enabled=spec.precision == "float16")


def micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    """Split a batch into ``count`` parts that differ by at most one sample."""
    yield from zip(*(tensor.tensor_split(count) for tensor in batch), strict=True)


def backward(model: nn.Module, task: Task, batch: Batch, spec: TrainSpec, scaler: GradScaler) -> Tensor:
    """Run forward and backward of a step, micro-batch by micro-batch, and return the batch's mean loss, ().

    Each part counts by its share of the samples, so that the gradients are those of the whole batch.
    """
    total = torch.zeros((), device=batch[0].device)
    for part in micro_batches(batch, spec.accumulation):
        with autocast(total.device, spec.precision):
            loss = task.loss(model, part) * (len(part[0]) / len(batch[0]))
        scaler.scale(loss).backward()
        total += loss.detach()
    return total


def update(model: nn.Module, optimizer: Optimizer, spec: TrainSpec, scaler: GradScaler) -> bool:
    """Clip the gradients, take the step and clear them; False where the scaler skipped the step."""
    scaler.unscale_(optimizer)
    if not clips(optimizer):
        clip_grad_norm_(model.parameters(), spec.gradient_clip)
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return scaler.get_scale() >= before  # it backs off after a step skipped, and only then


def check_finite(losses: Tensor, done: int) -> None:
    """Raise ``Diverged`` at the first of the ``done`` losses that is not finite."""
    broken = (~torch.isfinite(losses[:done])).nonzero()
    if broken.numel():
        raise Diverged(f"the training loss is not finite from step {int(broken[0])} on")


@dataclass(frozen=True)
class Validation:
    """How a model did on the held-out sample: mean loss and its standard error in nats, and metrics by name."""

    loss_nats: float
    standard_error_nats: float
    metrics: Mapping[str, float]


@torch.no_grad()
def validate(model: nn.Module, task: Task, spec: TrainSpec, device: torch.device) -> Validation:
    """Judge the model on the held-out sample; the loss's standard error is clustered as the task says."""
    model.eval()
    kept: list[dict[str, NDArray[np.float64]]] = []
    clusters: list[NDArray[np.int64]] = []
    for batch, cluster in task.validation():
        with autocast(device, spec.precision):
            judged = task.judge(model, to_device(batch, device))
        kept.append({name: values.double().cpu().numpy() for name, values in judged.items()})
        clusters.append(cluster)
    whole = {name: np.concatenate([part[name] for part in kept]) for name in kept[0]}
    mean, error = clustered_mean(whole["loss_nats"], np.concatenate(clusters))
    if not np.isfinite(mean):
        raise Diverged("the validation loss is not finite")
    return Validation(mean, error, task.metrics(whole))
