"""Sequence transduction with an exact answer: reversal, sorting, addition (unlimited); the lowest loss is zero."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalebench.errors import unknown

Tokens = NDArray[np.int64]

DIGITS = 10  # symbols 0 to 9
PLUS = 10
BEGIN = 11  # the decoder's first input token
VOCABULARY = 12
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Knuth's multiplicative hash


def reverse(source: Tokens) -> Tokens:
    """Return the sources (n, T) reversed, (n, T)."""
    return source[:, ::-1].copy()


def ascend(source: Tokens) -> Tokens:
    """Return the digits of the sources (n, T) in ascending order, (n, T)."""
    return np.sort(source, axis=1)


def add(source: Tokens) -> Tokens:
    """Return the sums of sources (n, 2 d + 1), two numbers of d digits around a plus: (n, d + 1), units first.

    Units first, so that each digit depends on earlier output and on one digit of either number.
    """
    digits = source.shape[1] // 2
    left, right = source[:, digits - 1 :: -1][:, :digits], source[:, :digits:-1]
    result = np.zeros((len(source), digits + 1), dtype=np.int64)
    carry = np.zeros(len(source), dtype=np.int64)
    for place in range(digits):
        carry, result[:, place] = np.divmod(left[:, place] + right[:, place] + carry, DIGITS)
    result[:, digits] = carry
    return result


KINDS: Mapping[str, Callable[[Tokens], Tokens]] = {"reversal": reverse, "sorting": ascend, "addition": add}


@dataclass(frozen=True)
class Transduction:
    """Pairs of a source and its unique answer. ``kind`` is one of ``KINDS``."""

    kind: str
    vocab_size: int = VOCABULARY

    @property
    def sha256(self) -> str:
        """SHA-256 of the definition."""
        return hashlib.sha256(f"transduction-v1 {self.kind} {VOCABULARY}".encode()).hexdigest()

    def check(self, length: int) -> None:
        """Raise ``ValueError`` if there are no sources of this length, or too few to hold some out."""
        if self.kind == "addition" and (length < 5 or length % 2 == 0):
            raise ValueError(
                f"sequence_length = {length}: addition takes two numbers of d digits and a plus: 2 d + 1 = 5, 7, …"
            )
        if length < 4:
            raise ValueError(f"sequence_length = {length}: fewer than 10,000 possible sources; give at least 4")

    def answer_length(self, length: int) -> int:
        """Return the answer length for sources of ``length`` tokens."""
        return length // 2 + 1 if self.kind == "addition" else length

    def draw(
        self, length: int, n: int, rng: np.random.Generator, *, held_out: bool, validation_fraction: float
    ) -> tuple[Tokens, Tokens]:
        """Draw n sources (n, T) of one side, uniformly, and their answers (n, S).

        The hash of a source decides its side, so that validation sources are never trained on.
        """
        drawn = np.empty((0, length), dtype=np.int64)
        share = validation_fraction if held_out else 1 - validation_fraction
        while len(drawn) < n:
            sources = rng.integers(DIGITS, size=(int(1.2 * (n - len(drawn)) / share) + 8, length))
            if self.kind == "addition":
                sources[:, length // 2] = PLUS
            drawn = np.concatenate([drawn, sources[(uniform_hash(sources) < validation_fraction) == held_out]])
        return drawn[:n], KINDS[self.kind](drawn[:n])


def uniform_hash(sources: Tokens) -> NDArray[np.float64]:
    """Map each source (n, T) to [0, 1) by a multiplicative hash over its tokens, the same on every machine."""
    state = np.full(len(sources), _MIX)
    for token in sources.T.astype(np.uint64):
        state = (state ^ token) * _MIX
        state ^= state >> np.uint64(29)
    return (state >> np.uint64(11)).astype(np.float64) / 2.0**53


def open_transduction(kind: str) -> Transduction:
    """Open ``transduction:KIND``. Raises ``ValueError`` for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(unknown(kind, list(KINDS)))
    return Transduction(kind)
