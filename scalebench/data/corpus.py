"""Data for language models: token sequences, with a held-out part for validation."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.unsignedinteger]  # uint8, uint16 or uint32
Windows = tuple[
    Tokens, NDArray[np.int64]
]  # (w, span), and the cluster (w,) of each: windows of one document are correlated


class Corpus(ABC):
    """Tokens 0 … ``vocab_size`` - 1. ``validation_fraction`` is the held-out share."""

    vocab_size: int

    @property
    @abstractmethod
    def sha256(self) -> str:
        """SHA-256 of the tokens, or of the definition of a synthetic source."""

    @abstractmethod
    def training_tokens(self, validation_fraction: float) -> int | None:
        """Return the number of training tokens; None if they never repeat."""

    @abstractmethod
    def draw(self, rng: np.random.Generator, validation_fraction: float, count: int, span: int) -> Tokens:
        """Draw training windows (count, span)."""

    @abstractmethod
    def validation(self, validation_fraction: float, samples: int, span: int) -> Windows:
        """Return about ``samples`` held-out windows, always the same. Raises ``ValueError`` if no window fits."""

    def floor_nats(self, length: int) -> float | None:  # noqa: ARG002 - unknown for real text
        """Return the irreducible loss per token for windows with ``length`` predictions, or None if unknown."""
        return None

    def token_bytes(self) -> NDArray[np.int64] | None:
        """Return the number of bytes each token encodes, (vocab_size,); None if tokens do not encode text."""
        return None

    def with_vocabulary(self, vocab_size: int) -> Corpus:
        """Return the same source with another vocabulary size. Raises ``ValueError`` if it cannot have that size."""
        raise ValueError(
            f"vocab_size = {vocab_size}: the vocabulary of this source is fixed at {self.vocab_size} tokens"
        )


def uniform_windows(rng: np.random.Generator, tokens: Tokens, count: int, span: int) -> Tokens:
    """Draw windows (count, span) with uniform starts in ``tokens`` (n,)."""
    starts = rng.integers(tokens.size - span + 1, size=count)
    return tokens[starts[:, None] + np.arange(span)]


def spread_windows(parts: list[Tokens], samples: int, span: int) -> Windows:
    """Return about ``samples`` windows spread evenly over ``parts`` and evenly within each; a part is a cluster.

    Long parts thus weigh no more than others. Each window is the middle of an equal share of its part, so that few
    windows do not see beginnings and ends alone, which are much alike between files and easier than the rest. Raises
    ``ValueError`` if all parts are shorter than a window.
    """
    long = [part for part in parts if part.size >= span]
    if not long:
        raise ValueError(f"no validation document has {span} tokens; use a shorter sequence_length")
    chosen = np.linspace(0, len(long) - 1, min(len(long), samples)).astype(int)
    each = max(1, samples // len(chosen))
    starts = [(index, start) for index in chosen for start in np.unique(middles(long[index].size - span + 1, each))]
    windows = np.stack([long[index][start : start + span] for index, start in starts])
    return windows, np.array([index for index, _ in starts], dtype=np.int64)


def middles(size: int, count: int) -> NDArray[np.int64]:
    """Return the place (count,) in the middle of each of ``count`` equal shares of the places 0 … ``size`` - 1."""
    return ((np.arange(count) + 0.5) / count * size).astype(np.int64)
