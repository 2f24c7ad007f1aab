"""The loss of distillation, λ T² KL(teacher ‖ student) + (1 - λ) CE: Hinton et al. 2015, arXiv 1503.02531, section 2.

Both distributions of the divergence are softmax(logits / T). T² keeps the size of its gradient, which falls as 1 / T².
CE is the cross-entropy on the labels, at temperature 1. All terms are means over the predictions, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalebench.tasks import Batch, GivesLogits


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Return log softmax(logits / T) (…, V), at least in float32."""
    return torch.log_softmax((logits if logits.dtype == torch.float64 else logits.float()) / temperature, -1)


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) (…) in nats, of log-probabilities (…, V)."""
    return (teacher.exp() * (teacher - student)).sum(-1)


def most_likely(teacher: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return log-probability and number of the k most likely classes (…, k), and the log of all others' sum (…).

    With k = V there are no others, and the sum's log is -inf.
    """
    values, classes = teacher.topk(k)
    return values, classes, _others(teacher, classes)


def truncated_divergence(values: Tensor, classes: Tensor, rest: Tensor, student: Tensor) -> Tensor:
    """Return KL(teacher ‖ student) (…) where the teacher's other classes are known by their sum alone.

    All classes outside the k stored ones count as one, in both distributions: their probabilities are added. Nothing is
    renormalised, and the result is at most the divergence over all classes (data-processing inequality).
    """
    total = divergence(values, student.gather(-1, classes))
    if values.size(-1) == student.size(-1):
        return total
    return total + rest.exp() * (rest - _others(student, classes))


def _others(log_probabilities: Tensor, classes: Tensor) -> Tensor:
    """Return the log of the sum of all probabilities but those of ``classes`` (…, k), (…)."""
    return log_probabilities.scatter(-1, classes, -math.inf).logsumexp(-1)


class Teacher(Protocol):
    """Where a batch's soft targets come from."""

    def targets(self, step: int) -> Batch:
        """Return what the batch of a step carries of the teacher after its own tensors, each (B, …)."""

    def divergence(self, batch: Batch, student: Tensor, temperature: float) -> Tensor:
        """Return KL(teacher ‖ student) of each prediction (…), for the student's log-probabilities (…, V)."""
        ...


@dataclass(frozen=True)
class Distilled:
    """A task whose training loss is that of distillation; ``inner`` is the task itself, by which it is validated."""

    inner: GivesLogits
    teacher: Teacher
    soft_weight: float
    temperature: float

    @property
    def floor_nats(self) -> float | None:
        """The task's."""
        return self.inner.floor_nats

    @property
    def least_nats(self) -> float:
        """That of a cross-entropy and of a divergence."""
        return 0.0

    @property
    def tokens_per_sample(self) -> int | None:
        """The task's."""
        return self.inner.tokens_per_sample

    @property
    def samples_per_epoch(self) -> float | None:
        """The task's."""
        return self.inner.samples_per_epoch

    def check(self) -> None:
        """Raise ``ValueError`` if the data does not fit the task."""
        self.inner.check()

    def batch(self, step: int) -> Batch:
        """Return the task's batch, with what it carries of the teacher."""
        return (*self.inner.batch(step), *self.teacher.targets(step))

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the task's held-out batches."""
        return self.inner.validation()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return λ T² KL(teacher ‖ student) + (1 - λ) times the task's training loss, ()."""
        logits, hard = self.inner.logits_and_loss(model, batch)
        student = log_probabilities(logits, self.temperature)
        soft = self.teacher.divergence(batch, student, self.temperature).mean()
        return self.soft_weight * self.temperature**2 * soft + (1 - self.soft_weight) * hard

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the task's loss of each sample, (B,)."""
        return self.inner.losses(model, batch)

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the task's values for validation."""
        return self.inner.judge(model, batch)

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """Return the task's metrics."""
        return self.inner.metrics(judged)
