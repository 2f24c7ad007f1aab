"""What train.py needs to know of a task, and the random streams that keep training and validation apart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

Batch = tuple[Tensor, ...]  # each (B, …), the model's inputs first

# Streams of random numbers that must never meet: training batches and the validation sample.
TRAINING, VALIDATION = 0, 1
VALIDATION_BATCH = 64


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

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what training makes small: the mean of ``losses``, a number."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample in nats (per token, or per output), shape (B,)."""
        ...

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return what validation keeps of each sample, each (B, …): ``loss_nats`` and what the metrics are made of."""
        ...

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """Return the metrics, by name, of the whole validation sample, from what ``judge`` kept of it, joined."""
        ...


class MeanLoss:
    """Part of a Task: the loss of training is the mean of the samples' own."""

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample, (B,)."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of ``losses``, ()."""
        return self.losses(model, batch).mean()


class LossAlone(MeanLoss):
    """Half a Task: validation keeps the training loss and nothing else."""

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the loss of each sample as ``loss_nats``."""
        return {"loss_nats": self.losses(model, batch)}

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:  # noqa: ARG002
        """Return none."""
        return {}
