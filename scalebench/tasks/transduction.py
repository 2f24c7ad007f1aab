"""Sequence to sequence by teacher forcing: the next token of the answer, given the source and the answer so far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scalebench.data.synthetic import generator
from scalebench.data.transduction import BEGIN, Transduction
from scalebench.store import Column
from scalebench.tasks.base import TRAINING, VALIDATION, VALIDATION_BATCH, Batch, MeanLoss
from scalebench.tasks.language import token_losses

COLUMNS = (
    Column("metric_token_accuracy", "1", "share of the target tokens that are predicted, the ones before given"),
    Column("metric_exact_match", "1", "share of the target sequences whose tokens are all predicted"),
)


@dataclass(frozen=True)
class Transduce(MeanLoss):
    """Answer sources of ``length`` tokens. The loss is the mean cross-entropy per token of the answer; its floor is 0.

    ``token_accuracy`` is by teacher forcing. ``exact_match`` is the share of answers right in every token: by teacher
    forcing and by greedy decoding this is the same number, since as long as a greedy answer is right its own tokens are
    those that teacher forcing gives. Tokens seen are the sources'.
    """

    data: Transduction
    length: int
    batch_size: int
    seed: int
    validation_fraction: float
    validation_samples: int
    floor_nats: float = 0.0
    samples_per_epoch: float | None = None

    @property
    def tokens_per_sample(self) -> int:
        """Tokens of a source."""
        return self.length

    def check(self) -> None:
        """Raise ``ValueError`` when sources of this length cannot be drawn."""
        self.data.check(self.length)

    def _draw(self, n: int, *key: int, held_out: bool) -> Batch:
        source, target = self.data.draw(
            self.length, n, generator(*key), held_out=held_out, validation_fraction=self.validation_fraction
        )
        given = np.concatenate([np.full((n, 1), BEGIN), target[:, :-1]], axis=1)
        return torch.from_numpy(source), torch.from_numpy(given), torch.from_numpy(target)

    def batch(self, step: int) -> Batch:
        """Return sources (B, T), the answers shifted behind a begin token (B, S), and the answers (B, S)."""
        return self._draw(self.batch_size, TRAINING, self.seed, step, held_out=False)

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out pairs; each is a cluster of its own, since they are independent."""
        for start in range(0, self.validation_samples, VALIDATION_BATCH):
            stop = min(start + VALIDATION_BATCH, self.validation_samples)
            yield self._draw(stop - start, VALIDATION, start, held_out=True), np.arange(start, stop)

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy per token of each answer, (B,)."""
        source, given, target = batch
        return token_losses(model(source, given), target)

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return ``loss_nats`` (B,) and ``correct`` (B, S), which tokens have the largest logit."""
        source, given, target = batch
        logits = model(source, given)  # (B, S, V)
        return {"loss_nats": token_losses(logits, target), "correct": logits.argmax(2) == target}

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """Return token and exact-match accuracy."""
        correct = judged["correct"]
        return {"token_accuracy": float(correct.mean()), "exact_match": float(correct.min(axis=1).mean())}
