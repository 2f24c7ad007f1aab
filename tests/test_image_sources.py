"""Sources of images: drawn, bundled and read from files, with every damage named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from scalebench.data import DataError, open_source
from scalebench.data.glyphs import CLASSES, FONTS, Glyphs, atlas
from scalebench.data.images import Folds
from scalebench.data.synthetic import generator
from scalebench.tasks import Classification

RNG = np.random.default_rng(0)


def test_glyphs_are_different_every_time_and_the_same_for_a_seed() -> None:
    glyphs = Glyphs()
    pixels, labels = glyphs.draw(generator(1), 0.2, 64, 0)
    assert (pixels.shape, pixels.dtype) == ((64, 1, 32, 32), np.uint8)
    np.testing.assert_array_equal(pixels, glyphs.draw(generator(1), 0.2, 64, 0)[0])
    assert (pixels != glyphs.draw(generator(2), 0.2, 64, 0)[0]).any()
    assert labels.max() < glyphs.classes == len(CLASSES) == 47
    images = {image.tobytes() for image in pixels}
    assert not images & {image.tobytes() for image in glyphs.validation(0.2, 300, 0)[0]}


def test_every_stencil_shows_its_character() -> None:
    stencils = atlas().reshape(47, len(FONTS), -1).astype(float)
    assert (stencils.max(axis=2) > 200).all()
    flat = stencils.reshape(47 * len(FONTS), -1)
    assert len(np.unique(flat, axis=0)) == len(flat)


def test_validation_of_glyphs_does_not_depend_on_how_many_are_asked_for() -> None:
    few, many = (Glyphs().validation(0.2, n, 0)[0] for n in (256, 300))
    np.testing.assert_array_equal(few, many[:256])


def test_folds_of_the_digits_cover_them_and_keep_the_sides_apart() -> None:
    digits = open_source("digits")
    assert isinstance(digits, Folds)
    assert digits.pixels.shape == (1797, 1, 8, 8)
    held_out = [digits._sides(0.2, seed)[1] for seed in range(5)]
    assert sorted(np.concatenate(held_out)) == list(range(1797))
    for seed in range(5):
        training = digits._sides(0.2, seed)[0]
        assert not set(training) & set(held_out[seed])
        assert training.size + held_out[seed].size == 1797
    assert digits._sides(0.2, 5)[1].tolist() == held_out[0].tolist()


def write_cifar(folder: Path, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rows = RNG.integers(256, size=(n, 3073)).astype(np.uint8)
    rows[:, 0] %= 10
    for name in ("data_batch_1.bin", "test_batch.bin"):
        rows.tofile(folder / name)
    return rows[:, 1:].reshape(n, 3, 32, 32), rows[:, 0]


def test_cifar_is_read_plane_by_plane(tmp_path: Path) -> None:
    pixels, labels = write_cifar(tmp_path)
    cifar = open_source(f"cifar10:{tmp_path}")
    np.testing.assert_array_equal(cifar.training[0], pixels)
    np.testing.assert_array_equal(cifar.validation(0.2, 1000, 0)[1], labels)
    assert (cifar.channels, cifar.size, cifar.classes, cifar.training_images(0.2)) == (3, 32, 10, 20)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda f: (f / "test_batch.bin").unlink(), "expected data_batch"),
        (lambda f: (f / "data_batch_1.bin").write_bytes(b"x" * 5000), r"data_batch_1\.bin: 5000 bytes .* corrupt"),
        (lambda f: (f / "test_batch.bin").write_bytes(b"\x0b" + b"x" * 3072), r"label 11 of image 0 .* 0 to 9"),
    ],
)
def test_broken_cifar_files_are_named(tmp_path: Path, damage, word: str) -> None:
    write_cifar(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=word):
        open_source(f"cifar10:{tmp_path}")


def write_idx(folder: Path, *, packed: bool = False, labels: int = 12) -> np.ndarray:
    pixels = RNG.integers(256, size=(12, 28, 28)).astype(np.uint8)
    for prefix in ("train", "t10k"):
        images = bytes((0, 0, 8, 3)) + np.array([12, 28, 28], dtype=">u4").tobytes() + pixels.tobytes()
        names = bytes((0, 0, 8, 1)) + np.array([labels], dtype=">u4").tobytes() + bytes(i % 10 for i in range(labels))
        for name, content in (("images-idx3", images), ("labels-idx1", names)):
            path = folder / f"{prefix}-{name}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(content) if packed else content)
    return pixels


@pytest.mark.parametrize("packed", [False, True])
def test_idx_is_read_plain_and_packed(tmp_path: Path, packed: bool) -> None:
    pixels = write_idx(tmp_path, packed=packed)
    source = open_source(f"idx:{tmp_path}")
    np.testing.assert_array_equal(source.training[0][:, 0], pixels)
    assert (source.size, source.classes) == (28, 10)


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda f: (f / "train-images-idx3-ubyte").unlink(), "no such file"),
        (lambda f: (f / "t10k-labels-idx1-ubyte").write_bytes(b"\0\0\x0d\1junk"), "expected 00000801: not an IDX file"),
        (lambda f: (f / "t10k-images-idx3-ubyte").write_bytes(bytes((0, 0, 8, 3)) + b"\0\0\0\x0c" * 3), "truncated"),
        (lambda f: write_idx(f, labels=11), "12 train images and 11 labels"),
    ],
)
def test_broken_idx_files_are_named(tmp_path: Path, damage, word: str) -> None:
    write_idx(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=word):
        open_source(f"idx:{tmp_path}")


def test_images_are_enlarged_and_metrics_are_scikit_learns() -> None:
    task = Classification(open_source("digits"), 32, 8, 0, 0.2, 100)
    images, labels = task.batch(3)
    assert (images.shape, labels.shape) == ((8, 1, 32, 32), (8,))
    assert torch.equal(images, task.batch(3)[0])
    judged = {"label": np.array([0, 0, 1, 2]), "predicted": np.array([0, 1, 1, 1])}
    metrics = task.metrics({name: values.astype(float) for name, values in judged.items()})
    assert metrics["accuracy"] == 0.5
    # By hand: class 0 has F1 2/3, class 1 has 2·(1/3·1)/(1/3+1) = 1/2, class 2 has 0.
    assert metrics["f1"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
