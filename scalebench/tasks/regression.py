"""Regression on a teacher with known noise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from scalebench.data.retrieval import Retrieval
from scalebench.data.synthetic import Teacher, TeacherKind, generator
from scalebench.study import Batching, DataSpec
from scalebench.tasks.base import TRAINING, VALIDATION, VALIDATION_BATCH, Batch, LossAlone

if TYPE_CHECKING:
    from torch import Tensor, nn


def noise_entropy(noise_std: float) -> float:
    """Return the entropy of Gaussian noise, log(2 pi e s^2)/2 nats."""
    return 0.5 * math.log(2 * math.pi * math.e * noise_std**2)


def gaussian_losses(outputs: Tensor, targets: Tensor, noise_std: float) -> Tensor:
    """Return log(2 pi s^2)/2 + (y - f)^2/(2 s^2), the mean over the outputs (B, m) of each sample, (B,)."""
    squared = (outputs.float() - targets).square().mean(1)
    return 0.5 * math.log(2 * math.pi * noise_std**2) + squared / (2 * noise_std**2)


@dataclass(frozen=True, kw_only=True)
class GaussianTask(LossAlone):
    """Predict outputs with Gaussian noise of known standard deviation; every batch is drawn anew.

    The loss is the Gaussian negative log-likelihood per output, log(2 pi s^2)/2 + (y - f)^2/(2 s^2) nats: the squared
    error in the unit of all other losses. Its floor is the noise's entropy, log(2 pi e s^2)/2.
    """

    noise_std: float
    batch_size: int
    seed: int
    validation_samples: int
    samples_per_epoch: float | None = None  # unlimited

    def draw(self, n: int, *key: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return ``n`` inputs and outputs from the random stream ``key``."""
        raise NotImplementedError

    @property
    def floor_nats(self) -> float:
        """Entropy of the noise in nats per output."""
        return noise_entropy(self.noise_std)

    @property
    def least_nats(self) -> float:
        """Loss of a sample whose outputs are exact, log(2 pi s^2)/2: negative for little noise."""
        return 0.5 * math.log(2 * math.pi * self.noise_std**2)

    def zero_nats(self) -> float:
        """Return the loss of outputs of 0 on the held-out sample."""
        import torch

        losses = [
            gaussian_losses(torch.zeros_like(targets), targets, self.noise_std) for (_, targets), _ in self.validation()
        ]
        return float(torch.cat(losses).mean())

    def check(self) -> None:
        """Do nothing: any shape can be drawn."""

    def _batch(self, n: int, *key: int) -> Batch:
        import torch

        inputs, outputs = self.draw(n, *key)
        return torch.from_numpy(inputs), torch.from_numpy(outputs)

    def batch(self, step: int) -> Batch:
        """Return fresh inputs (B, …) and outputs (B, outputs)."""
        return self._batch(self.batch_size, TRAINING, self.seed, step)

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out samples; each is a cluster, since they are independent."""
        for start in range(0, self.validation_samples, VALIDATION_BATCH):
            stop = min(start + VALIDATION_BATCH, self.validation_samples)
            yield self._batch(stop - start, VALIDATION, start), np.arange(start, stop)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss per output of each sample, (B,)."""
        inputs, targets = batch
        return gaussian_losses(model(inputs), targets, self.noise_std)


@dataclass(frozen=True, kw_only=True)
class Regression(GaussianTask):
    """Predict a teacher's outputs."""

    teacher: Teacher
    kind: TeacherKind
    inputs: int
    outputs: int
    tokens_per_sample: int | None = None

    def draw(self, n: int, *key: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return inputs (n, inputs) and the teacher's outputs (n, outputs)."""
        return self.teacher.draw(self.kind, self.inputs, self.outputs, self.noise_std, n, generator(*key))


@dataclass(frozen=True, kw_only=True)
class SetRegression(GaussianTask):
    """Predict the answer to a query about a set."""

    data: Retrieval
    length: int

    @property
    def tokens_per_sample(self) -> int:
        """Elements of a set, including the query."""
        return self.length

    def draw(self, n: int, *key: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return sets (n, T, features) and answers (n, 1)."""
        return self.data.draw(self.length, self.noise_std, n, generator(*key))


def regression(teacher: Teacher, kind: TeacherKind, config: Any, spec: DataSpec, train: Batching) -> Regression:
    """Return regression on a teacher for a Config with ``inputs`` and ``outputs``."""
    assert spec.noise_std is not None
    return Regression(
        teacher=teacher,
        kind=kind,
        inputs=config.inputs,
        outputs=config.outputs,
        noise_std=spec.noise_std,
        batch_size=train.batch_size,
        seed=train.seed,
        validation_samples=spec.validation_samples,
    )
