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

from scalebench.data.synthetic import Teacher, TeacherKind, generator
from scalebench.study import DataSpec, TrainSpec
from scalebench.tasks.base import TRAINING, VALIDATION, VALIDATION_BATCH, Batch, LossAlone


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
        return 0.5 * math.log(2 * math.pi * math.e * self.noise_std**2)

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
        squared = (model(inputs).float() - targets).square().mean(1)
        return 0.5 * math.log(2 * math.pi * self.noise_std**2) + squared / (2 * self.noise_std**2)


def regression(teacher: Teacher, kind: TeacherKind, config: Any, spec: DataSpec, train: TrainSpec) -> Regression:
    """Return regression on a teacher for a Config with ``inputs`` and ``outputs``."""
    assert spec.noise_std is not None
    shape, noise = (config.inputs, config.outputs), spec.noise_std
    return Regression(teacher, kind, *shape, noise, train.batch_size, train.seed, spec.validation_samples)
