"""Regression on a teacher whose noise is known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalebench.data.retrieval import Retrieval
from scalebench.data.synthetic import Teacher, TeacherKind, generator
from scalebench.study import DataSpec, TrainSpec
from scalebench.tasks.base import TRAINING, VALIDATION, VALIDATION_BATCH, Batch, LossAlone


def noise_entropy(noise_std: float) -> float:
    """Return the entropy of Gaussian noise, log(2 pi e s^2)/2 nats."""
    return 0.5 * math.log(2 * math.pi * math.e * noise_std**2)


def gaussian_losses(outputs: Tensor, targets: Tensor, noise_std: float) -> Tensor:
    """Return log(2 pi s^2)/2 + (y - f)^2/(2 s^2), the mean over the outputs (B, m) of each sample, (B,)."""
    squared = (outputs.float() - targets).square().mean(1)
    return 0.5 * math.log(2 * math.pi * noise_std**2) + squared / (2 * noise_std**2)


@dataclass(frozen=True)
class Regression(LossAlone):
    """Predict a teacher's outputs under Gaussian noise of known size.

    The loss is the Gaussian negative log-likelihood per output, log(2 pi s^2)/2 + (y - f)^2/(2 s^2) nats: the squared
    error in the unit of every other loss. Its floor is the noise's entropy, log(2 pi e s^2)/2.
    """

    teacher: Teacher
    kind: TeacherKind
    inputs: int
    outputs: int
    noise_std: float
    batch_size: int
    seed: int
    validation_samples: int
    tokens_per_sample: int | None = None
    samples_per_epoch: float | None = None

    @property
    def floor_nats(self) -> float:
        """Entropy of the noise alone, in nats per output."""
        return noise_entropy(self.noise_std)

    def check(self) -> None:
        """Do nothing: a teacher serves any shape."""

    def _draw(self, n: int, *key: int) -> Batch:
        x, y = self.teacher.draw(self.kind, self.inputs, self.outputs, self.noise_std, n, generator(*key))
        return torch.from_numpy(x), torch.from_numpy(y)

    def batch(self, step: int) -> Batch:
        """Return fresh inputs (B, inputs) and outputs (B, outputs)."""
        return self._draw(self.batch_size, TRAINING, self.seed, step)

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out samples; each is a cluster of its own, since they are independent."""
        for start in range(0, self.validation_samples, VALIDATION_BATCH):
            stop = min(start + VALIDATION_BATCH, self.validation_samples)
            yield self._draw(stop - start, VALIDATION, start), np.arange(start, stop)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss per output of each sample, (B,)."""
        inputs, targets = batch
        return gaussian_losses(model(inputs), targets, self.noise_std)


def regression(teacher: Teacher, kind: TeacherKind, config: Any, spec: DataSpec, train: TrainSpec) -> Regression:
    """Return regression on a teacher for a Config with ``inputs`` and ``outputs``."""
    assert spec.noise_std is not None
    shape, noise = (config.inputs, config.outputs), spec.noise_std
    return Regression(teacher, kind, *shape, noise, train.batch_size, train.seed, spec.validation_samples)


@dataclass(frozen=True)
class SetRegression(LossAlone):
    """Answer a query to a set under Gaussian noise of known size; loss and floor as ``Regression``'s."""

    data: Retrieval
    length: int
    noise_std: float
    batch_size: int
    seed: int
    validation_samples: int
    samples_per_epoch: float | None = None

    @property
    def floor_nats(self) -> float:
        """Entropy of the noise alone, in nats."""
        return noise_entropy(self.noise_std)

    @property
    def tokens_per_sample(self) -> int:
        """Elements of a set, the query among them."""
        return self.length

    def check(self) -> None:
        """Do nothing: sets of any length can be drawn."""

    def _draw(self, n: int, *key: int) -> Batch:
        x, y = self.data.draw(self.length, self.noise_std, n, generator(*key))
        return torch.from_numpy(x), torch.from_numpy(y)

    def batch(self, step: int) -> Batch:
        """Return fresh sets (B, T, features) and answers (B, 1)."""
        return self._draw(self.batch_size, TRAINING, self.seed, step)

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out sets; each is a cluster of its own, since they are independent."""
        for start in range(0, self.validation_samples, VALIDATION_BATCH):
            stop = min(start + VALIDATION_BATCH, self.validation_samples)
            yield self._draw(stop - start, VALIDATION, start), np.arange(start, stop)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample, (B,)."""
        return gaussian_losses(model(batch[0]), batch[1], self.noise_std)
