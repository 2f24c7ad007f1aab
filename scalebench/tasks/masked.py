"""BERT's two objectives: masked tokens and next-sentence prediction (Devlin et al. 2019, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalebench.data.pairs import Boundaries, Bytes, boundaries, spread
from scalebench.data.synthetic import generator
from scalebench.data.text import split
from scalebench.store import Column
from scalebench.tasks.base import TRAINING, VALIDATION, VALIDATION_BATCH, Batch, OnText

if TYPE_CHECKING:
    from torch import Tensor, nn

SPECIALS = ("[CLS]", "[SEP]", "[MASK]")  # their ids follow those of the text, in this order
MASKED_SHARE, AS_MASK, AS_RANDOM = 0.15, 0.8, 0.1
IGNORED = -100  # label of positions without a prediction

Integers = NDArray[np.int64]

COLUMNS = (
    Column("metric_mlm_loss_nats", "nat", "validation loss of the masked tokens"),
    Column("metric_nsp_loss_nats", "nat", "validation loss of next-sentence prediction"),
    Column("metric_mlm_accuracy", "1", "share of the masked tokens that are predicted"),
    Column("metric_nsp_accuracy", "1", "share of the sentence pairs that are classified correctly"),
    Column("metric_nsp_f1", "1", "F1 of the pairs that follow each other"),
)


def assemble(first: Bytes, second: Bytes, symbols: int) -> tuple[Integers, Integers]:
    """Join passages (B, a) and (B, b) as [CLS] a [SEP] b [SEP]: tokens and segments, both (B, a + b + 3)."""
    rows = len(first)
    cls, sep = (np.full((rows, 1), symbols + i, dtype=np.int64) for i in (0, 1))
    tokens = np.concatenate([cls, first, sep, second, sep], axis=1)
    segments = np.zeros_like(tokens)
    segments[:, first.shape[1] + 2 :] = 1
    return tokens, segments


def mask(tokens: Integers, symbols: int, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """Mask 15 % of each row's text (at least one token): return inputs and labels, both (B, T).

    Of the selected positions 80 % become [MASK], 10 % a random token and 10 % stay unchanged; the labels of all others
    are ``IGNORED``. Every row has the same number of them, round(0.15 n) of its n tokens that are not special.
    """
    text = tokens < symbols
    masked = max(1, round(MASKED_SHARE * int(text[0].sum())))
    order = np.where(text, rng.random(tokens.shape), np.inf).argsort(axis=1)
    rows, places = np.arange(len(tokens))[:, None], order[:, :masked]
    labels = np.full_like(tokens, IGNORED)
    labels[rows, places] = tokens[rows, places]
    fate, anything = rng.random(places.shape), rng.integers(symbols, size=places.shape)
    hidden = np.where(fate < AS_MASK, symbols + 2, np.where(fate < AS_MASK + AS_RANDOM, anything, tokens[rows, places]))
    inputs = tokens.copy()
    inputs[rows, places] = hidden
    return inputs, labels


@dataclass(frozen=True)
class MaskedPairs(OnText):
    """Masked tokens and next-sentence prediction; the loss is the sum of both cross-entropies.

    In half of the pairs the second passage follows the first. Training masks depend on seed and step, validation masks
    are fixed. Training and validation passages come from different documents.
    """

    @property
    def samples_per_epoch(self) -> float:
        """Pairs with as many bytes as the training text."""
        return split(self.text, self.validation_fraction)[0].size / (self.sequence_length - 3)

    def side(self, *, held_out: bool) -> Boundaries:
        """Return the boundaries between passages of one side."""
        first = (self.sequence_length - 3) // 2
        second = self.sequence_length - 3 - first
        return boundaries(self.text, self.validation_fraction, first, second, held_out=held_out)

    def check(self) -> None:
        """Raise ``ValueError`` if a side of the text has no pairs of this length."""
        if self.sequence_length < 8:
            raise ValueError(f"sequence_length = {self.sequence_length}: too short for two passages; give at least 8")
        assert all(self.side(held_out=side).places.size for side in (False, True))

    def batch(self, step: int) -> Batch:
        """Return inputs, segments and labels (B, T), and whether the second passage follows (B,), all int64."""
        import torch

        rng, side = generator(TRAINING, self.seed, step), self.side(held_out=False)
        first = rng.integers(side.places.size, size=self.batch_size)
        return tuple(map(torch.from_numpy, self._pairs(side, first, rng)))

    def _pairs(self, side: Boundaries, first: Integers, rng: np.random.Generator) -> tuple[Integers, ...]:
        follows = rng.integers(2, size=len(first))
        second = np.where(follows, first, side.elsewhere(first, rng))
        tokens, segments = assemble(*side.halves(first, second), self.text.vocab_size)
        inputs, labels = mask(tokens, self.text.vocab_size, rng)
        return inputs, segments, labels, follows

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out pairs; the cluster is the document of the first passage."""
        import torch

        *whole, clusters = _validation(self)
        for start in range(0, len(clusters), VALIDATION_BATCH):
            rows = slice(start, start + VALIDATION_BATCH)
            yield tuple(torch.from_numpy(part[rows]) for part in whole), clusters[rows]

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of each masked token, (B, M, V): every pair has as many, and no others are predicted."""
        return _of_masked(model(*batch[:2])[0], batch[2])

    def logits_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits of the masked tokens (B, M, V) and the training loss (), both objectives, of one pass."""
        inputs, segments, labels, follows = batch[:4]
        outputs = model(inputs, segments)
        masked_loss, next_loss = _both(outputs, labels, follows)
        return _of_masked(outputs[0], labels), (masked_loss + next_loss).mean()

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the sum of both losses of each pair, (B,)."""
        inputs, segments, labels, follows = batch
        masked_loss, next_loss = _both(model(inputs, segments), labels, follows)
        return masked_loss + next_loss

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the losses, the share of correct masked tokens, and next-sentence labels and predictions."""
        inputs, segments, labels, follows = batch
        symbols, follows_logits = model(inputs, segments)
        masked_loss, next_loss = _both((symbols, follows_logits), labels, follows)
        masked = labels != IGNORED
        correct = ((symbols.argmax(2) == labels) & masked).sum(1) / masked.sum(1)
        parts = {"mlm_loss_nats": masked_loss, "nsp_loss_nats": next_loss, "mlm_correct": correct}
        return {
            "loss_nats": masked_loss + next_loss,
            **parts,
            "follows": follows,
            "predicted": follows_logits.argmax(1),
        }

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """Return both losses, both accuracies, and F1 of next-sentence prediction."""
        from sklearn.metrics import f1_score

        follows, predicted = judged["follows"], judged["predicted"]
        return {
            "mlm_loss_nats": float(judged["mlm_loss_nats"].mean()),
            "nsp_loss_nats": float(judged["nsp_loss_nats"].mean()),
            "mlm_accuracy": float(judged["mlm_correct"].mean()),
            "nsp_accuracy": float((follows == predicted).mean()),
            "nsp_f1": float(f1_score(follows, predicted, zero_division=0.0)),
        }


@lru_cache(maxsize=4)
def _validation(task: MaskedPairs) -> tuple[Integers, ...]:
    """Return the masked held-out pairs, and the document of each."""
    side = task.side(held_out=True)
    first = spread(side, task.validation_samples)
    return *task._pairs(side, first, generator(VALIDATION, 0)), side.documents[first]


def _of_masked(symbols: Tensor, labels: Tensor) -> Tensor:
    """Return the logits (B, M, V) at the M masked places of each row, of those (B, T, V) of all places."""
    return symbols[labels != IGNORED].view(len(labels), -1, symbols.size(-1))


def _both(outputs: tuple[Tensor, Tensor], labels: Tensor, follows: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pair's mean loss over its masked tokens and its next-sentence loss, both (B,), in nats."""
    from torch.nn import functional as F

    symbols, follows_logits = outputs  # (B, T, V) and (B, 2)
    flat = symbols.flatten(0, 1).float()
    each = F.cross_entropy(flat, labels.flatten(), ignore_index=IGNORED, reduction="none").view(labels.shape)
    masked_loss = each.sum(1) / (labels != IGNORED).sum(1)
    return masked_loss, F.cross_entropy(follows_logits.float(), follows, reduction="none")
