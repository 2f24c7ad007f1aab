"""The interface of a task, and the random streams for training and validation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from scalebench.data.text import Text

if TYPE_CHECKING:
    from torch import Tensor, nn

Batch: TypeAlias = "tuple[Tensor, ...]"  # each (B, …), the model's inputs first

# First element of the key of a random stream: training batches and validation samples never share one.
TRAINING, VALIDATION = 0, 1
VALIDATION_BATCH = 64


class Task(Protocol):
    """The interface that training and validation use. B is the batch size, T the sequence length."""

    @property
    def floor_nats(self) -> float | None:
        """Irreducible loss, or None if unknown."""

    @property
    def least_nats(self) -> float:
        """The least loss that a sample can have."""
        ...

    @property
    def tokens_per_sample(self) -> int | None:
        """T for sequences, None otherwise."""

    @property
    def samples_per_epoch(self) -> float | None:
        """Samples per pass over the training data; None if they never repeat."""

    def check(self) -> None:
        """Raise ``ValueError`` if the data does not fit the task. Called before any trial starts."""

    def batch(self, step: int) -> Batch:
        """Return the training batch of a step, on the CPU: determined by seed and step alone."""

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out batches, the same for every trial, with the cluster (B,) of each sample."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the training loss, a scalar: the mean of ``losses``."""
        ...

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample in nats (per token, or per output), shape (B,)."""
        ...

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return per-sample values for validation, each (B, …): ``loss_nats`` and the inputs of ``metrics``."""
        ...

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """Return the metrics of the validation sample by name, from the concatenated values of ``judge``."""
        ...


@runtime_checkable
class GivesLogits(Task, Protocol):
    """A task of choosing one of V classes, whose models give a distribution over them: what a teacher can teach."""

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of each choice, (…, V)."""
        ...

    def logits_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (…, V) of a model in training, and its training loss (), of one forward pass."""
        ...


class MeanLoss:
    """Base of tasks whose training loss is the mean over samples."""

    @property
    def least_nats(self) -> float:
        """The least loss that a sample can have: 0 for a cross-entropy."""
        return 0.0

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the loss of each sample, (B,)."""
        raise NotImplementedError

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean of ``losses``, ()."""
        return self.losses(model, batch).mean()


@dataclass(frozen=True)
class OnText(MeanLoss):
    """Base of tasks whose samples are ``sequence_length`` tokens of a text, special tokens included."""

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


class LossAlone(MeanLoss):
    """Base of tasks whose only validation metric is the training loss."""

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the loss of each sample as ``loss_nats``."""
        return {"loss_nats": self.losses(model, batch)}

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:  # noqa: ARG002
        """Return no metrics."""
        return {}
