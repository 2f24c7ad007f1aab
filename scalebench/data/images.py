"""Labelled images: the interface of image sources, and scikit-learn's handwritten digits."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scalebench.data.synthetic import generator

Pixels = NDArray[np.uint8]  # (n, channels, size, size)
Labels = NDArray[np.int64]  # (n,), 0 … classes - 1
_FOLD_SEED = 41_011


class Images(ABC):
    """Square images of ``channels`` × ``size`` × ``size`` bytes in ``classes`` classes.

    ``validation_fraction`` is the held-out share; ``seed`` is the trial's, for sources whose held-out part depends on
    it.
    """

    channels: int
    size: int
    classes: int

    @property
    @abstractmethod
    def sha256(self) -> str:
        """SHA-256 of pixels and labels, or of the definition of a synthetic source."""

    @abstractmethod
    def training_images(self, validation_fraction: float) -> int | None:
        """Return the number of training images; None if they never repeat."""

    def fold(self, validation_fraction: float, seed: int) -> int:  # noqa: ARG002
        """Return which part is held out, of those that the seeds of a source may differ in; 0 where they do not."""
        return 0

    @abstractmethod
    def draw(
        self, rng: np.random.Generator, validation_fraction: float, count: int, seed: int
    ) -> tuple[Pixels, Labels]:
        """Draw ``count`` training images with their labels."""

    @abstractmethod
    def validation(self, validation_fraction: float, samples: int, seed: int) -> tuple[Pixels, Labels]:
        """Return at most ``samples`` held-out images, the same for every trial of a seed."""


def digest(*arrays: NDArray[np.generic]) -> str:
    """Return the SHA-256 of arrays, their shapes included."""
    sha256 = hashlib.sha256()
    for array in arrays:
        sha256.update(f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


@dataclass(frozen=True, eq=False)
class Folds(Images):
    """A small dataset: each seed holds out another fold, so that all seeds together validate on every image."""

    pixels: Pixels = field(repr=False)
    labels: Labels = field(repr=False)
    classes: int

    @property
    def channels(self) -> int:  # type: ignore[override]
        """Colours."""
        return self.pixels.shape[1]

    @property
    def size(self) -> int:  # type: ignore[override]
        """Pixels along a side."""
        return self.pixels.shape[2]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of pixels and labels."""
        return digest(self.pixels, self.labels)

    def fold(self, validation_fraction: float, seed: int) -> int:
        """Return the fold that a seed holds out: ``seed`` modulo the folds."""
        return seed % _folds(validation_fraction)

    def _sides(self, validation_fraction: float, seed: int) -> tuple[Labels, Labels]:
        """Return training and validation rows: one fold of a fixed shuffle is held out."""
        rows = generator(_FOLD_SEED).permutation(len(self.labels))
        parts = np.array_split(rows, _folds(validation_fraction))
        held_out = parts[self.fold(validation_fraction, seed)]
        return np.setdiff1d(rows, held_out), held_out

    def training_images(self, validation_fraction: float) -> int:
        """Return the number of images outside a fold."""
        return self._sides(validation_fraction, 0)[0].size

    def draw(
        self, rng: np.random.Generator, validation_fraction: float, count: int, seed: int
    ) -> tuple[Pixels, Labels]:
        """Draw images with replacement."""
        rows = rng.choice(self._sides(validation_fraction, seed)[0], count)
        return self.pixels[rows], self.labels[rows]

    def validation(self, validation_fraction: float, samples: int, seed: int) -> tuple[Pixels, Labels]:
        """Return the seed's fold."""
        rows = self._sides(validation_fraction, seed)[1][:samples]
        return self.pixels[rows], self.labels[rows]


def _folds(validation_fraction: float) -> int:
    return max(2, round(1 / validation_fraction))


def open_digits(_argument: str = "") -> Folds:
    """Open the 1,797 handwritten digits of 8 × 8 pixels that come with scikit-learn (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.minimum(digits.images * 16, 255).astype(np.uint8)[:, None]  # 17 grey levels scaled to 0 … 255
    return Folds(pixels, digits.target.astype(np.int64), 10)
