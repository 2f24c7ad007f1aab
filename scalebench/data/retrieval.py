"""Sets in which a query selects what to sum, so that a model has to compare elements with the query."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from scalebench.data.synthetic import FloatArray, generator

# The task is fixed: every trial of every study is trained on the same one.
_SEED = 20_021
KEY = 3  # features of a key
CHANNELS = 8  # values of an element; the query selects differently for each
SHARPNESS = (
    8.0  # of the softmax: keys are unit vectors, so a matching key weighs e^8 times as much as an orthogonal one
)
FEATURES = KEY + CHANNELS + 1


@lru_cache(maxsize=1)
def rotations() -> FloatArray:
    """Return the orthogonal matrix by which each channel transforms the query, (CHANNELS, KEY, KEY)."""
    q, _ = np.linalg.qr(generator(_SEED, 1).standard_normal((CHANNELS, KEY, KEY)))
    return q.astype(np.float32)


def weights() -> FloatArray:
    """Return the weight of each channel, proportional to 1/sqrt(r) with squares that sum to one, (CHANNELS,)."""
    each = np.arange(1, CHANNELS + 1, dtype=np.float32) ** -0.5
    return each / np.linalg.norm(each)


@dataclass(frozen=True)
class Retrieval:
    """Sets of elements with a key k_i and values v_ir, and a query q (unlimited); the answer is a number.

    y = sum_r w_r sum_i p_ir v_ir + noise, p_r = softmax_i(SHARPNESS k_i . M_r q): keys and query are uniform on the
    sphere, values +-1, M_r fixed rotations, w_r ~ 1/sqrt(r). One attention head fits one channel; a model with h
    heads misses about sum_{r>h} w_r^2 of the variance, and one that pools without attention misses more.
    """

    features: int = FEATURES

    @property
    def sha256(self) -> str:
        """SHA-256 of the definition."""
        return hashlib.sha256(f"retrieval-v1 {_SEED} {KEY} {CHANNELS} {SHARPNESS}".encode()).hexdigest()

    def draw(self, length: int, noise_std: float, n: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Draw n sets: x (n, length, FEATURES), the query first and marked by its last feature; y (n, 1), noisy."""
        x = np.zeros((n, length, FEATURES), dtype=np.float32)
        vectors = rng.standard_normal((n, length, KEY), dtype=np.float32)
        x[:, :, :KEY] = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
        x[:, 1:, KEY:-1] = rng.integers(2, size=(n, length - 1, CHANNELS)) * 2 - 1
        x[:, 0, -1] = 1
        return x, answer(x) + rng.standard_normal((n, 1), dtype=np.float32) * np.float32(noise_std)


def answer(x: FloatArray) -> FloatArray:
    """Return the noise-free answers (n, 1) of sets x (n, length, FEATURES)."""
    query, keys, values = x[:, 0, :KEY], x[:, 1:, :KEY], x[:, 1:, KEY:-1]
    targets = np.einsum("rjk,nk->nrj", rotations(), query)
    scores = SHARPNESS * np.einsum("nik,nrk->nir", keys, targets)
    weights_of_elements = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights_of_elements /= weights_of_elements.sum(axis=1, keepdims=True)
    return ((weights_of_elements * values).sum(axis=1) @ weights())[:, None]


def open_retrieval(_argument: str = "") -> Retrieval:
    """Open the sets."""
    return Retrieval()
