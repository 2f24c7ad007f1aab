"""Language modelling: the next token of a sequence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalebench.data.corpus import Corpus, Tokens
from scalebench.data.synthetic import generator
from scalebench.store import Column
from scalebench.tasks.base import TRAINING, VALIDATION_BATCH, Batch, LossAlone

if TYPE_CHECKING:
    from torch import Tensor, nn

COLUMNS = (
    Column(
        "metric_bits_per_byte", "bit/B", "validation loss in bits per byte of text, comparable between vocabularies"
    ),
)


@dataclass(frozen=True)
class NextToken(LossAlone):
    """Predict the next token, in windows of ``sequence_length`` drawn uniformly from the training tokens."""

    corpus: Corpus
    sequence_length: int
    batch_size: int
    seed: int
    validation_fraction: float
    validation_samples: int

    @property
    def tokens_per_sample(self) -> int:
        """T."""
        return self.sequence_length

    @property
    def samples_per_epoch(self) -> float | None:
        """Windows per pass over the training tokens; None if they never repeat."""
        tokens = self.corpus.training_tokens(self.validation_fraction)
        return tokens and tokens / self.sequence_length

    @property
    def floor_nats(self) -> float | None:
        """The corpus's entropy per token, or None if unknown."""
        return self.corpus.floor_nats(self.sequence_length)

    def _held_out(self) -> tuple[Tokens, NDArray[np.int64]]:
        return self.corpus.validation(self.validation_fraction, self.validation_samples, self.sequence_length + 1)

    def check(self) -> None:
        """Raise ``ValueError`` if the training or validation tokens are shorter than a window."""
        tokens = self.corpus.training_tokens(self.validation_fraction)
        if tokens is not None and tokens <= self.sequence_length:
            raise ValueError(f"sequence_length = {self.sequence_length} exceeds the {tokens} training tokens")
        assert len(self._held_out()[0])

    def batch(self, step: int) -> Batch:
        """Return input and target tokens, both (B, T) int64; targets are the inputs shifted by one token."""
        draw = generator(TRAINING, self.seed, step)
        return _shifted(self.corpus.draw(draw, self.validation_fraction, self.batch_size, self.sequence_length + 1))

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out windows with the cluster of each."""
        windows, clusters = self._held_out()
        for start in range(0, len(windows), VALIDATION_BATCH):
            rows = slice(start, start + VALIDATION_BATCH)
            yield _shifted(windows[rows]), clusters[rows]

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of each next token, (B, T, V)."""
        logits: Tensor = model(batch[0])
        return logits

    def logits_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (B, T, V) and the training loss (), of one forward pass."""
        logits = self.logits(model, batch)
        return logits, token_losses(logits, batch[1]).mean()

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy per token of each window, (B,)."""
        tokens, targets = batch  # (B, T)
        if getattr(model, "GIVES_LOSSES", False):  # from hidden states, without logits
            return model(tokens, targets=targets).mean(1)
        return token_losses(model(tokens), targets)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy per token, ().

        A model with ``GIVES_LOSSES`` computes the mean itself: since the incoming gradient is then the same for all
        tokens, its forward pass can compute the gradients too, without a second pass over the logits.
        """
        if getattr(model, "GIVES_LOSSES", False):
            return model(batch[0], targets=batch[1], reduction="mean")
        return super().loss(model, batch)

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the loss of each window, and its mean bytes of text per token."""
        import torch

        judged = {"loss_nats": self.losses(model, batch)}
        if (each := self.corpus.token_bytes()) is not None:
            judged["bytes_per_token"] = torch.from_numpy(each)[batch[1].cpu()].double().mean(1)
        return judged

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """Return bits per byte of text, which is comparable between vocabularies."""
        if "bytes_per_token" not in judged:
            return {}
        return {"bits_per_byte": float(judged["loss_nats"].mean() / judged["bytes_per_token"].mean() / math.log(2))}


@dataclass(frozen=True)
class BalancedNextToken(NextToken):
    """Next-token prediction for a mixture of experts, which in training returns logits and its balance loss."""

    balance_weight: float = 0.0

    def logits_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (B, T, V) and the training loss (), the weighted balance loss included."""
        logits, balance = model(batch[0])
        return logits, token_losses(logits, batch[1]).mean() + self.balance_weight * balance

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the mean cross-entropy per token of each window, (B,), in training plus the weighted balance loss."""
        if not model.training:
            return super().losses(model, batch)
        logits, balance = model(batch[0])
        return token_losses(logits, batch[1]) + self.balance_weight * balance


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy over time of logits (B, T, V) on targets (B, T), in nats, (B,)."""
    from torch.nn import functional as F

    each = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none")
    return each.view(targets.shape).mean(1)


def _shifted(windows: Tokens) -> Batch:
    """Split windows (B, T+1) into inputs and targets (B, T), int64."""
    import torch

    whole = torch.from_numpy(windows.astype(np.int64))
    return whole[:, :-1], whole[:, 1:]
