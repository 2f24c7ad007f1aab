"""Language modelling: the next token of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.data.synthetic import generator
from scalebench.data.text import Text, split, validation_windows
from scalebench.tasks.base import TRAINING, VALIDATION_BATCH, Batch, LossAlone


@dataclass(frozen=True)
class NextToken(LossAlone):
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
        draw = generator(TRAINING, self.seed, step)
        starts = draw.integers(training.size - self.sequence_length, size=self.batch_size)
        return _shifted(training[starts[:, None] + np.arange(self.sequence_length + 1)])

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out windows; a cluster is a document, since windows of one file are alike."""
        windows, clusters = self._validation
        for start in range(0, len(windows), VALIDATION_BATCH):
            rows = slice(start, start + VALIDATION_BATCH)
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
