"""Classification of images: cross-entropy in nats, and the scores of its classes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scalebench.data.images import Images, Labels, Pixels
from scalebench.data.synthetic import generator
from scalebench.study import Batching, DataSpec
from scalebench.tasks.base import TRAINING, VALIDATION_BATCH, Batch
from scalebench.tasks.scores import OneClass

# Normalises bytes to about zero mean and unit standard deviation, the same for every source.
_CENTRE, _SPREAD = 127.5, 63.75


@dataclass(frozen=True)
class Classification(OneClass):
    """Classify images. Images smaller than ``image_size`` are enlarged bilinearly."""

    images: Images
    image_size: int
    batch_size: int
    seed: int
    validation_fraction: float
    validation_samples: int
    tokens_per_sample: int | None = None
    floor_nats: float | None = None

    @property
    def samples_per_epoch(self) -> float | None:
        """Training images; None if they never repeat."""
        return self.images.training_images(self.validation_fraction)

    def check(self) -> None:
        """Raise ``ValueError`` if the images are larger than ``image_size``."""
        if self.images.size > self.image_size:
            raise ValueError(f"image_size = {self.image_size} is smaller than the images, {self.images.size} pixels")

    def batch(self, step: int) -> Batch:
        """Return images (B, channels, size, size), float32, and classes (B,)."""
        draw = generator(TRAINING, self.seed, step)
        return self._prepared(*self.images.draw(draw, self.validation_fraction, self.batch_size, self.seed))

    def validation(self) -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        """Yield the held-out images; each is a cluster, since they are independent."""
        pixels, labels = self.images.validation(self.validation_fraction, self.validation_samples, self.seed)
        for start in range(0, len(labels), VALIDATION_BATCH):
            rows = slice(start, start + VALIDATION_BATCH)
            yield self._prepared(pixels[rows], labels[rows]), np.arange(start, start + len(labels[rows]))

    def _prepared(self, pixels: Pixels, labels: Labels) -> Batch:
        import torch
        from torch.nn import functional as F

        images = (torch.from_numpy(pixels.astype(np.float32)) - _CENTRE) / _SPREAD
        if self.images.size != self.image_size:
            images = F.interpolate(images, size=(self.image_size, self.image_size), mode="bilinear")
        return images, torch.from_numpy(labels)


def classification(
    images: Images, image_size: int, spec: DataSpec, train: Batching, *, channels: int, classes: int
) -> Classification:
    """Return the task of classifying a source's images with a model's image size, channels and classes.

    Raises ``ValueError`` naming the field in which model and images differ.
    """
    if channels != images.channels:
        raise ValueError(f"channels = {channels}: the images have {images.channels}")
    if classes < images.classes:
        raise ValueError(f"classes = {classes}: the labels go from 0 to {images.classes - 1}")
    shape = (image_size, train.batch_size, train.seed)
    return Classification(images, *shape, spec.validation_fraction, spec.validation_samples)
