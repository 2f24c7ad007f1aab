"""Sequence to sequence with teacher forcing: predict each answer token from the source and the tokens before it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalebench.data.synthetic import generator
from scalebench.data.transduction import BEGIN, Transduction
from scalebench.store import Column
from scalebench.tasks.base import TRAINING, VALIDATION, VALIDATION_BATCH, Batch, MeanLoss
from scalebench.tasks.language import token_losses

if TYPE_CHECKING:
    from torch import Tensor, nn

COLUMNS = (
    Column("metric_token_accuracy", "1", "share of the target tokens that are predicted, the ones before given"),
    Column("metric_exact_match", "1", "share of the target sequences whose tokens are all predicted"),
)


@dataclass(frozen=True)
class Transduce(MeanLoss):
    """Answer sources of ``length`` tokens. The loss is the mean cross-entropy per token of the answer; its floor is 0.

    ``token_accuracy`` uses teacher forcing. ``exact_match`` is the share of answers with every token correct, which is
    the same with teacher forcing and greedy decoding: as long as a greedy answer is correct, its tokens are the inputs
    of teacher forcing. Tokens are counted in the sources.
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
        """Raise ``ValueError`` if there are no sources of this length."""
        self.data.check(self.length)

    def _draw(self, n: int, *key: int, held_out: bool) -> Batch:
        import torch

        source, target = self.data.draw(
            self.length, n, generator(*key), held_out=held_out, validation_fraction=self.validation_fraction
        )
        prefix = np.concatenate([np.full((n, 1), BEGIN), target[:, :-1]], axis=1)
        return torch.from_numpy(source), torch.from_numpy(prefix), torch.from_numpy(target)

    def batch(self, step: int) -> Batch:
        """Return sources (B, T), decoder inputs (BEGIN, then the answer without its last token) and answers, (B, S)."""
        return self._draw(self.batch_size, TRAINING, self.seed, step, held_out=False)

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out pairs; each is a cluster, since they are independent."""
        for start in range(0, self.validation_samples, VALIDATION_BATCH):
            stop = min(start + VALIDATION_BATCH, self.validation_samples)
            yield self._draw(stop - start, VALIDATION, start, held_out=True), np.arange(start, stop)

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of each token of the answers, (B, S, V)."""
        logits: Tensor = model(batch[0], batch[1])
        return logits

    def logits_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (B, S, V) and the training loss (), of one forward pass."""
        logits = self.logits(model, batch)
        return logits, token_losses(logits, batch[2]).mean()

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy per token of each answer, (B,)."""
        source, prefix, target = batch
        return token_losses(model(source, prefix), target)

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return ``loss_nats`` (B,) and ``correct`` (B, S), whether the largest logit is at the right token."""
        source, prefix, target = batch
        logits = model(source, prefix)  # (B, S, V)
        return {"loss_nats": token_losses(logits, target), "correct": logits.argmax(2) == target}

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """Return token and exact-match accuracy."""
        correct = judged["correct"]
        return {"token_accuracy": float(correct.mean()), "exact_match": float(correct.min(axis=1).mean())}
