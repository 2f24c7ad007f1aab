"""A Markov chain with a known entropy rate: the lowest possible loss, in closed form."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scalebench.data.corpus import Corpus, Tokens, Windows
from scalebench.data.synthetic import generator

# The chain is fixed: every trial of every study is trained on the same one.
_CHAIN_SEED, _WINDOWS_SEED = 31_007, 31_013
_CONCENTRATION = 0.1  # of the Dirichlet distribution of the rows: a few likely successors each
SYMBOLS = 64
FEWEST, MOST = 2, 128

FloatArray = NDArray[np.float64]


@lru_cache(maxsize=4)
def transition(symbols: int) -> FloatArray:
    """Return P (V, V, V), the probability of c after a, b. All are positive: the stationary distribution is unique."""
    rows = generator(_CHAIN_SEED, symbols).gamma(_CONCENTRATION, size=(symbols,) * 3) + 1e-6
    return np.asarray(rows / rows.sum(axis=2, keepdims=True))


@lru_cache(maxsize=4)
def stationary(symbols: int) -> FloatArray:
    """Return the stationary distribution (V, V) of two consecutive symbols, by power iteration."""
    probabilities, law = transition(symbols), np.full((symbols, symbols), symbols**-2.0)
    for _ in range(10_000):
        following = np.einsum("ab,abc->bc", law, probabilities)
        if np.abs(following - law).sum() < 1e-15 * symbols:
            return np.asarray(following / following.sum())
        law = following
    raise ArithmeticError(f"the chain of {symbols} symbols did not converge to its stationary distribution")


def _entropy(law: FloatArray) -> float:
    return float(-(law * np.log(law)).sum())


def entropy_rate_nats(symbols: int) -> float:
    """Return H(X3 | X1, X2) = - sum_ab pi(a, b) sum_c P(c | a, b) ln P(c | a, b) (Cover & Thomas 2006, eq. 4.27)."""
    triple = stationary(symbols)[:, :, None] * transition(symbols)
    return float(-(triple * np.log(transition(symbols))).sum())


@dataclass(frozen=True)
class Markov(Corpus):
    """A second-order chain over ``vocab_size`` symbols (unlimited): each symbol depends on the two before it."""

    vocab_size: int = SYMBOLS

    def __post_init__(self) -> None:
        if not FEWEST <= self.vocab_size <= MOST:
            raise ValueError(f"vocab_size = {self.vocab_size}: a Markov chain has {FEWEST} to {MOST} symbols")

    @property
    def sha256(self) -> str:
        """SHA-256 of the definition."""
        return hashlib.sha256(f"markov-v1 {_CHAIN_SEED} {_CONCENTRATION} {self.vocab_size}".encode()).hexdigest()

    def with_vocabulary(self, vocab_size: int) -> Markov:
        """Return the chain of ``vocab_size`` symbols."""
        return Markov(vocab_size)

    def training_tokens(self, validation_fraction: float) -> None:  # noqa: ARG002
        """Return None: the chain is unlimited."""
        return

    def floor_nats(self, length: int) -> float:
        """Return the mean entropy of ``length`` predictions: the first has one symbol of context, the others two."""
        pair = stationary(self.vocab_size)
        first = _entropy(pair) - _entropy(pair.sum(axis=1))
        return (first + (length - 1) * entropy_rate_nats(self.vocab_size)) / length

    def draw(self, rng: np.random.Generator, validation_fraction: float, count: int, span: int) -> Tokens:  # noqa: ARG002
        """Draw windows (count, span) of the chain in its stationary distribution."""
        symbols = self.vocab_size
        cumulative = _cumulative(symbols)
        start = np.searchsorted(stationary(symbols).ravel().cumsum(), rng.random(count), side="right")
        drawn = np.empty((count, max(span, 2)), dtype=np.uint8)
        drawn[:, 0], drawn[:, 1] = np.divmod(np.minimum(start, symbols**2 - 1), symbols)
        for place, chance in enumerate(rng.random((max(span - 2, 0), count)), 2):
            rows = cumulative[drawn[:, place - 2], drawn[:, place - 1]]
            drawn[:, place] = np.minimum((chance[:, None] >= rows).sum(axis=1), symbols - 1)
        return drawn[:, :span]

    def validation(self, validation_fraction: float, samples: int, span: int) -> Windows:
        """Return windows from a separate random stream; each is a cluster, since they are independent."""
        rng = generator(_WINDOWS_SEED, self.vocab_size)
        return self.draw(rng, validation_fraction, samples, span), np.arange(samples)


@lru_cache(maxsize=4)
def _cumulative(symbols: int) -> FloatArray:
    return transition(symbols).cumsum(axis=2)


def open_markov(_argument: str = "") -> Markov:
    """Open the chain."""
    return Markov()
