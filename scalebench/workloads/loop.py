"""The training loop, from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from scalebench.measure.clock import StepClock
from scalebench.measure.statistics import clustered_mean
from scalebench.optim.fused import clips
from scalebench.optim.schedules import set_learning_rate
from scalebench.tasks import Batch, Task
from scalebench.workloads.batches import batches, to_device
from scalebench.workloads.parallel import exchange_gradients
from scalebench.workloads.training_spec import TrainSpec

# Steps between two checks of the losses: a check waits for the device, so not at every step.
CHECK_EVERY = 20
# A loss above this many times that of the first step is far above where training started: the run diverged.
DIVERGED_FACTOR = 3.0


class Diverged(ArithmeticError):  # noqa: N818 - a status, named as the record names it
    """The loss became NaN or infinite, or ended far above where it started."""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass runs at ``precision``."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, getattr(torch, precision))


def computing(model: nn.Module, device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a model computes at ``precision``: autocast, unless its weights have the type."""
    return nullcontext() if getattr(model, "KEEPS_TYPE", False) else autocast(device, precision)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    spec: TrainSpec,
    clock: StepClock,
    losses: Tensor,
    check: Callable[[int], None],
    make_step: Callable[[nn.Module, Optimizer, Task, TrainSpec, GradScaler], Step] | None = None,
    *,
    scaler: GradScaler | None = None,
    first_step: int = 0,
    done: int = 0,
    stops: Collection[int] = (),
) -> int:
    """Train for ``spec.steps`` steps, filling ``losses`` (steps,) and ``clock``; ``check(done)`` may raise Diverged.

    A continued run has the batches and the learning rates from ``first_step`` on; ``done`` of the steps were taken by
    an attempt that was interrupted. Nothing within a step waits for the
    device: ``check`` does, every ``CHECK_EVERY`` steps, after each of ``stops`` and after the last one. Returns how
    many steps the loss scaler of float16 skipped, their gradients being too large for the format.
    """
    device = losses.device
    run = (make_step or Step)(model, optimizer, task, spec, scaler or loss_scaler(device, spec))
    model.train()
    clock.lap()
    with closing(batches(task, range(first_step + done, first_step + spec.steps), device)) as coming:
        for step, batch in enumerate(coming, done):
            clock.data_ready()
            set_learning_rate(optimizer, spec, first_step + step, first_step)
            losses[step] = run(batch)
            clock.lap()
            if (steps_done := step + 1) % CHECK_EVERY == 0 or steps_done == spec.steps or steps_done in stops:
                check(steps_done)
    return run.skipped


@dataclass
class Step:
    """Forward, backward and update on one batch. ``skipped`` counts the steps that the loss scaler skipped."""

    model: nn.Module
    optimizer: Optimizer
    task: Task
    spec: TrainSpec
    scaler: GradScaler
    skipped: int = 0

    def __call__(self, batch: Batch) -> Tensor:
        """Take the step and return the batch's mean loss, ()."""
        loss = backward(self.model, self.task, batch, self.spec, self.scaler)
        self.skipped += not update(self.model, self.optimizer, self.spec, self.scaler)
        return loss


def loss_scaler(device: torch.device, spec: TrainSpec) -> GradScaler:
    """Return the loss scaler that keeps float16 gradients from underflowing; disabled at other precisions."""
    return GradScaler(device.type, enabled=spec.precision == "float16")


def micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    """Split a batch into ``count`` parts whose sizes differ by at most one sample."""
    yield from zip(*(tensor.tensor_split(count) for tensor in batch), strict=True)


def backward(model: nn.Module, task: Task, batch: Batch, spec: TrainSpec, scaler: GradScaler) -> Tensor:
    """Run forward and backward of a step, micro-batch by micro-batch, and return the batch's mean loss, ().

    Each part counts by its share of the samples, so that the gradients are those of the whole batch.
    """
    total = torch.zeros((), device=batch[0].device)
    for left, part in zip(reversed(range(spec.accumulation)), micro_batches(batch, spec.accumulation), strict=True):
        exchange_gradients(model, now=left == 0)
        with computing(model, total.device, spec.precision):
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
    return scaler.get_scale() >= before  # the scale shrinks only after a skipped step


def check_finite(losses: Tensor, done: int) -> None:
    """Raise ``Diverged`` at the first of the ``done`` losses that is not finite."""
    broken = (~torch.isfinite(losses[:done])).nonzero()
    if broken.numel():
        raise Diverged(f"the training loss is not finite from step {int(broken[0])} on")


def check_risen(first: float, least: float = 0.0, **ends: float) -> None:
    """Raise ``Diverged`` where a loss at the end, by name, is above ``DIVERGED_FACTOR`` times the ``first`` step's.

    Both are taken from the ``least`` loss that there can be, which may be negative for a likelihood of real numbers.
    """
    for name, loss in ends.items():
        if first > least and loss - least > DIVERGED_FACTOR * (first - least):
            above = f"more than {DIVERGED_FACTOR:g} times as far from {least:.4g} as the {first:.4g} where it began"
            if not least:
                above = f"more than {DIVERGED_FACTOR:g} times the {first:.4g} where it began"
            raise Diverged(f"the {name} loss ended at {loss:.4g}, {above}")


@dataclass(frozen=True)
class Validation:
    """Validation results: mean loss and its standard error in nats, and metrics by name.

    ``losses_nats`` (n,) are the losses of the held-out samples, always in the same order, and ``clusters`` (n,) the
    document or chain of each: what a paired difference of two models needs (``effect``).
    """

    loss_nats: float
    standard_error_nats: float
    metrics: Mapping[str, float]
    losses_nats: NDArray[np.float64] = field(repr=False)
    clusters: NDArray[np.int64] = field(repr=False)


class Computation(Protocol):
    """A Spec as far as it decides the number format of the computation."""

    @property
    def precision(self) -> str:
        """One of ``PRECISIONS``."""
        ...


@torch.no_grad()
def validate(model: nn.Module, task: Task, spec: Computation, device: torch.device) -> Validation:
    """Evaluate the model on the held-out sample; the standard error of the loss uses the task's clusters.

    Raises ``Diverged`` when the loss is not finite.
    """
    model.eval()
    parts: list[dict[str, NDArray[np.float64]]] = []
    clusters: list[NDArray[np.int64]] = []
    for batch, cluster in task.validation():
        with computing(model, device, spec.precision):
            judged = task.judge(model, to_device(batch, device))
        parts.append({name: values.double().cpu().numpy() for name, values in judged.items()})
        clusters.append(cluster)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    losses, of = whole["loss_nats"], np.concatenate(clusters)
    mean, error = clustered_mean(losses, of)
    if not np.isfinite(mean):
        raise Diverged("the validation loss is not finite")
    return Validation(mean, error, task.metrics(whole), losses, of)


def validation_columns(validation: Validation) -> dict[str, float | None]:
    """Return the held-out loss, its standard error and the metrics, null where nothing was measured."""
    columns = {"validation_loss_nats": validation.loss_nats, "validation_loss_se_nats": validation.standard_error_nats}
    columns |= {f"metric_{name}": value for name, value in validation.metrics.items()}
    return {name: _number(value) for name, value in columns.items()}


def _number(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 - NaN is the one number unlike itself
