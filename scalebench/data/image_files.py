"""Image datasets in their published file formats: CIFAR-10's binary version and MNIST's IDX."""

from __future__ import annotations

import gzip
import io
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalebench.data.images import Images, Labels, Pixels, digest
from scalebench.store import expanded, read_bytes


@dataclass(frozen=True, eq=False)
class SplitImages(Images):
    """A dataset with a test set, which is used for validation."""

    training: tuple[Pixels, Labels] = field(repr=False)
    test: tuple[Pixels, Labels] = field(repr=False)
    classes: int

    @property
    def channels(self) -> int:  # type: ignore[override]
        """Colours."""
        return self.training[0].shape[1]

    @property
    def size(self) -> int:  # type: ignore[override]
        """Pixels along a side."""
        return self.training[0].shape[2]

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the pixels and labels of both sets."""
        return digest(*self.training, *self.test)

    def training_images(self, validation_fraction: float) -> int:  # noqa: ARG002 - the dataset has a test set
        """Return the number of training images."""
        return len(self.training[1])

    def draw(
        self, rng: np.random.Generator, validation_fraction: float, count: int, seed: int  # noqa: ARG002
    ) -> tuple[Pixels, Labels]:  # fmt: skip
        """Draw images with replacement."""
        rows = rng.integers(len(self.training[1]), size=count)
        return self.training[0][rows], self.training[1][rows]

    def validation(self, validation_fraction: float, samples: int, seed: int) -> tuple[Pixels, Labels]:  # noqa: ARG002
        """Return test images, evenly spaced."""
        rows = np.linspace(0, len(self.test[1]) - 1, min(samples, len(self.test[1]))).astype(int)
        return self.test[0][rows], self.test[1][rows]


# --- CIFAR-10 --------------------------------------------------------------------------------------------------------

IMAGE_BYTES = 4 << 30  # of one file
_CIFAR_ROW = 1 + 3 * 32 * 32  # a label and the red, green and blue planes (Krizhevsky 2009)


def open_cifar10(path: str) -> SplitImages:
    """Open a folder with ``data_batch_*.bin`` and ``test_batch.bin``. Raises ``ValueError`` naming the file."""
    root = expanded(path)
    files = sorted(root.glob("data_batch_*.bin"))
    if not files or not (root / "test_batch.bin").exists():
        raise ValueError(f"cifar10 path {path!r}: expected data_batch_*.bin and test_batch.bin in it")
    parts = [_cifar(file) for file in files]
    training = np.concatenate([pixels for pixels, _ in parts]), np.concatenate([labels for _, labels in parts])
    return SplitImages(training, _cifar(root / "test_batch.bin"), 10)


def _cifar(file: Path) -> tuple[Pixels, Labels]:
    content = np.frombuffer(read_bytes(file, IMAGE_BYTES), dtype=np.uint8)
    if content.size == 0 or content.size % _CIFAR_ROW:
        raise ValueError(f"{file}: {content.size} bytes is not a multiple of {_CIFAR_ROW} bytes per image: corrupt")
    rows = content.reshape(-1, _CIFAR_ROW)
    return rows[:, 1:].reshape(-1, 3, 32, 32), _labels(rows[:, 0], file, 10)


def _labels(values: NDArray[np.uint8], file: Path, classes: int) -> Labels:
    wrong = np.flatnonzero(values >= classes)
    if wrong.size:
        raise ValueError(f"{file}: label {values[wrong[0]]} of image {wrong[0]} is not among 0 to {classes - 1}")
    return values.astype(np.int64)


# --- IDX -------------------------------------------------------------------------------------------------------------

_PARTS = {"train": "train", "test": "t10k"}


def open_idx(path: str) -> SplitImages:
    """Open a folder in MNIST's format: ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, optionally ``.gz``.

    Raises ``ValueError`` naming the file that is missing, corrupt, or has labels that do not match the images.
    """
    training, test = (_idx_part(expanded(path), prefix) for prefix in _PARTS.values())
    classes = int(training[1].max()) + 1
    if int(test[1].max()) >= classes:
        raise ValueError(f"idx path {path!r}: test label {test[1].max()} is not among training's 0 to {classes - 1}")
    return SplitImages(training, test, classes)


def _idx_part(root: Path, prefix: str) -> tuple[Pixels, Labels]:
    pixels = _idx(root / f"{prefix}-images-idx3-ubyte", dimensions=3)
    labels = _idx(root / f"{prefix}-labels-idx1-ubyte", dimensions=1)
    if len(pixels) != len(labels) or not len(labels):
        raise ValueError(f"{root}: {len(pixels)} {prefix} images and {len(labels)} labels")
    if pixels.shape[1] != pixels.shape[2]:
        raise ValueError(f"{root}: images of {pixels.shape[1]} × {pixels.shape[2]} pixels are not square")
    return pixels[:, None], labels.astype(np.int64)


def _unpacked(path: Path) -> bytes:
    """Return the content of a gzip file, at most ``IMAGE_BYTES``."""
    with gzip.open(io.BytesIO(read_bytes(path, IMAGE_BYTES))) as file:
        content = file.read(IMAGE_BYTES + 1)
    if len(content) > IMAGE_BYTES:
        raise ValueError(f"{path}: unpacks to more than {IMAGE_BYTES:,} bytes")
    return content


def _idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read one IDX file of bytes: two zeros, type 8, the dimensions, their sizes as big-endian words, the values."""
    packed = path.with_name(f"{path.name}.gz")
    if not path.exists() and not packed.exists():
        raise ValueError(f"{path}: no such file, nor {packed.name}")
    try:
        content = read_bytes(path, IMAGE_BYTES) if path.exists() else _unpacked(packed)
    except (gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{packed}: not readable as gzip ({error})") from error
    if content[:4] != bytes((0, 0, 8, dimensions)):
        raise ValueError(
            f"{path}: begins with {content[:4].hex()}, expected 000008{dimensions:02d}: not an IDX file of bytes"
        )
    start = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path}: {len(content) - start} bytes, but its header gives {math.prod(shape)}: truncated?")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
