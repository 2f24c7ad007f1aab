"""What a model is asked to do: batches by seed and step, the loss in nats, a fixed validation sample in clusters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.data.synthetic import Teacher, TeacherKind, generator
from scalebench.data.text import Text, split, validation_windows
from scalebench.study import DataSpec, TrainSpec

Batch = tuple[Tensor, Tensor]
# Streams of random numbers that must never meet: training batches and the validation sample.
_TRAINING, _VALIDATION = 0, 1
_VALIDATION_BATCH = 64


class Task(Protocol):
    """What train.py needs to know. B is the batch size, T the sequence length."""

    @property
    def floor_nats(self) -> float | None:
        """Irreducible loss, where it is known in closed form."""

    @property
    def tokens_per_sample(self) -> int | None:
        """T for sequences, None otherwise."""

    @property
    def samples_per_epoch(self) -> float | None:
        """Samples that make the training data once; None where they never repeat."""

    def check(self) -> None:
        """Raise ``ValueError`` when the data cannot serve, before any trial starts."""

    def batch(self, step: int) -> Batch:
        """Return the training batch of a step, on the CPU: the same for a seed and step, whatever came before."""

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out batches, the same for every trial, with the cluster (B,) each sample belongs to."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample in nats (per token, or per output), shape (B,)."""


@dataclass(frozen=True)
class NextToken:
    """Predict each next byte of text, in windows of ``sequence_length`` drawn uniformly from the training bytes."""

    text: Text
    sequence_length: int
    batch_size: int
    seed: int
    validation_fraction: float
    validation_samples: int
    floor_nats: float | None = None

    @property
    def tokens_per_sample(self) -> int:
        """T."""
        return self.sequence_length

    @property
    def samples_per_epoch(self) -> float:
        """Windows that cover the training text once."""
        return self._training.size / self.sequence_length

    @property
    def _training(self) -> NDArray[np.uint8]:
        return split(self.text, self.validation_fraction)[0]

    @property
    def _validation(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return validation_windows(
            self.text, self.validation_fraction, self.validation_samples, self.sequence_length + 1
        )

    def check(self) -> None:
        """Raise ``ValueError`` when the text cannot fill a window on either side."""
        if self._training.size <= self.sequence_length:
            raise ValueError(f"sequence_length = {self.sequence_length} outgrows {self._training.size} training bytes")
        assert len(self._validation[0])

    def batch(self, step: int) -> Batch:
        """Return input and target bytes, both (B, T) int64; the target is the input one byte on."""
        training = self._training
        draw = generator(_TRAINING, self.seed, step)
        starts = draw.integers(training.size - self.sequence_length, size=self.batch_size)
        return _shifted(training[starts[:, None] + np.arange(self.sequence_length + 1)])

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out windows; a cluster is a document, since windows of one file are alike."""
        windows, clusters = self._validation
        for start in range(0, len(windows), _VALIDATION_BATCH):
            rows = slice(start, start + _VALIDATION_BATCH)
            yield _shifted(windows[rows]), clusters[rows]

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy per token of each window, (B,)."""
        tokens, targets = batch  # (B, T)
        logits = model(tokens)  # (B, T, V)
        each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
        return each.view(targets.shape).mean(1)


def _shifted(windows: NDArray[np.uint8]) -> Batch:
    """Split windows (B, T+1) into inputs and targets (B, T), int64."""
    whole = torch.from_numpy(windows.astype(np.int64))
    return whole[:, :-1], whole[:, 1:]


@dataclass(frozen=True)
class Regression:
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
        return self._draw(self.batch_size, _TRAINING, self.seed, step)

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out samples; each is a cluster of its own, since they are independent."""
        for start in range(0, self.validation_samples, _VALIDATION_BATCH):
            stop = min(start + _VALIDATION_BATCH, self.validation_samples)
            yield self._draw(stop - start, _VALIDATION, start), np.arange(start, stop)

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
