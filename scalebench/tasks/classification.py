"""Classification of images: cross-entropy in nats, and the scores of its classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalebench.data.images import Images, Labels, Pixels
from scalebench.data.synthetic import generator
from scalebench.study import Batching, DataSpec
from scalebench.tasks.base import TRAINING, VALIDATION_BATCH, Batch, MeanLoss
from scalebench.tasks.scores import class_scores

if TYPE_CHECKING:
    from torch import Tensor, nn

# Normalises bytes to about zero mean and unit standard deviation, the same for every source.
_CENTRE, _SPREAD = 127.5, 63.75


@dataclass(frozen=True)
class Classification(MeanLoss):
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

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of each image's class, (B, classes)."""
        logits: Tensor = model(batch[0])
        return logits

    def logits_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (B, classes) and the training loss (), of one forward pass."""
        from torch.nn import functional as F

        logits = self.logits(model, batch)
        return logits, F.cross_entropy(logits.float(), batch[1])

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of each image, (B,)."""
        from torch.nn import functional as F

        images, labels = batch
        return F.cross_entropy(model(images).float(), labels, reduction="none")

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the loss, the label and the predicted class of each image."""
        from torch.nn import functional as F

        images, labels = batch
        logits = model(images).float()
        loss = F.cross_entropy(logits, labels, reduction="none")
        return {"loss_nats": loss, "label": labels, "predicted": logits.argmax(1)}

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """Return accuracy, and macro precision, recall and F1."""
        return class_scores(judged["label"], judged["predicted"])


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
