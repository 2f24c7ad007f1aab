"""What a language model can learn from: sequences of tokens, with a part that training never sees."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.unsignedinteger]  # uint8, uint16 or uint32
Windows = tuple[Tokens, NDArray[np.int64]]  # (w, span) and the cluster (w,) of each: windows of one document are alike


class Corpus(ABC):
    """Tokens 0 … ``vocab_size`` - 1. ``validation_fraction`` is the part that is held out."""

    vocab_size: int

    @property
    @abstractmethod
    def sha256(self) -> str:
        """SHA-256 of the tokens, or of the definition of a synthetic source."""

    @abstractmethod
    def training_tokens(self, validation_fraction: float) -> int | None:
        """Return how many tokens there are to train on; None where they never repeat."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, validation_fraction: float, count: int, span: int) -> Tokens:
        """Draw training windows (count, span)."""

    @abstractmethod
    def validation(self, validation_fraction: float, samples: int, span: int) -> Windows:
        """Return about ``samples`` held-out windows, always the same. Raises ``ValueError`` where none fits."""

    def floor_nats(self, length: int) -> float | None:  # noqa: ARG002 - of real text nobody knows it
        """Return the irreducible loss per token of windows with ``length`` predictions, where it is known."""
        return None

    def token_bytes(self) -> NDArray[np.int64] | None:
        """Return the bytes of text each token stands for, (vocab_size,); None where tokens stand for no text."""
        return None

    def with_vocabulary(self, vocab_size: int) -> Corpus:
        """Return the same source with another vocabulary size. Raises ``ValueError`` if it cannot have that size."""
        raise ValueError(
            f"vocab_size = {vocab_size}: the vocabulary of this source is fixed at {self.vocab_size} tokens"
        )


def uniform_windows(rng: np.random.Generator, tokens: Tokens, count: int, span: int) -> Tokens:
    """Draw windows (count, span) that start anywhere in ``tokens`` (n,) with equal chance."""
    starts = rng.integers(tokens.size - span + 1, size=count)
    return tokens[starts[:, None] + np.arange(span)]


def spread_windows(parts: list[Tokens], samples: int, span: int) -> Windows:
    """Return about ``samples`` windows spread evenly over ``parts`` and evenly within each; a part is a cluster.

    So no long part outweighs the others. Raises ``ValueError`` when no part is as long as a window.
    """
    long = [part for part in parts if part.size >= span]
    if not long:
        raise ValueError(f"no validation document holds a window of {span} tokens; use a shorter sequence_length")
    chosen = np.linspace(0, len(long) - 1, min(len(long), samples)).astype(int)
    each = max(1, samples // len(chosen))
    starts = [
        (index, start)
        for index in chosen
        for start in np.unique(np.linspace(0, long[index].size - span, each).astype(int))
    ]
    windows = np.stack([long[index][start : start + span] for index, start in starts])
    return windows, np.array([index for index, _ in starts], dtype=np.int64)
