"""Procedurally generated characters (unlimited) in matplotlib's fonts: shifted, scaled, rotated and noisy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalebench.data.images import Images, Labels, Pixels
from scalebench.data.synthetic import generator

# The 47 classes of EMNIST Balanced (Cohen et al. 2017): without lower-case letters that look like their capitals.
CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
         "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic")  # fmt: skip
SIZE = 32
_ATLAS = 48  # pixels per side of a stencil: enough for rotation and scaling without loss
_INK = 36  # pixels of the character's longer side in the stencil
_ROTATION_RADIANS, _SHIFT, _SCALES, _NOISE = 0.3, 0.2, (0.55, 1.1), 0.15
_VALIDATION_SEED = 43_003
_DRAWN_AT_ONCE = 256

FloatArray = NDArray[np.float32]


@lru_cache(maxsize=1)
def atlas() -> Pixels:
    """Return every character in every font, (classes, fonts, 48, 48), centred, the longer side filling 36 pixels."""
    import matplotlib
    from PIL import Image, ImageDraw, ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    stencils = np.zeros((len(CLASSES), len(FONTS), _ATLAS, _ATLAS), dtype=np.uint8)
    for f, name in enumerate(FONTS):
        font = ImageFont.truetype(folder / f"{name}.ttf", 2 * _ATLAS)
        for c, character in enumerate(CLASSES):
            left, top, right, bottom = font.getbbox(character)
            image = Image.new("L", (int(right - left), int(bottom - top)))
            ImageDraw.Draw(image).text((-left, -top), character, fill=255, font=font)
            scale = _INK / max(image.size)
            small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
            x, y = (_ATLAS - small.width) // 2, (_ATLAS - small.height) // 2
            stencils[c, f, y : y + small.height, x : x + small.width] = np.asarray(small)
    return stencils


@lru_cache(maxsize=1)
def _sha256() -> str:
    settings = f"glyphs-v1 {_ROTATION_RADIANS} {_SHIFT} {_SCALES} {_NOISE} {SIZE}".encode()
    return hashlib.sha256(settings + atlas().tobytes()).hexdigest()


@dataclass(frozen=True)
class Glyphs(Images):
    """Unlimited 32 × 32 images; validation images come from a separate random stream."""

    channels: int = 1
    size: int = SIZE
    classes: int = len(CLASSES)

    @property
    def sha256(self) -> str:
        """SHA-256 of the stencils and the drawing parameters."""
        return _sha256()

    def training_images(self, validation_fraction: float) -> None:  # noqa: ARG002
        """Return None: images never repeat."""
        return

    def draw(
        self, rng: np.random.Generator, validation_fraction: float, count: int, seed: int  # noqa: ARG002
    ) -> tuple[Pixels, Labels]:  # fmt: skip
        """Draw images: uniform class and font, angle ±0.3 rad, shift ±20 %, scale 0.55 to 1.1, 15 % Gaussian noise."""
        labels = rng.integers(len(CLASSES), size=count)
        stencils = atlas()[labels, rng.integers(len(FONTS), size=count)].astype(np.float32)
        noise = rng.standard_normal((count, SIZE, SIZE), dtype=np.float32)
        contrast = rng.uniform(0.4, 1.0, size=(count, 1, 1)).astype(np.float32)
        drawn = _resample(stencils, *_placements(rng, count)) * contrast + 255 * _NOISE * noise
        return np.clip(drawn, 0, 255).astype(np.uint8)[:, None], labels

    def validation(self, validation_fraction: float, samples: int, seed: int) -> tuple[Pixels, Labels]:  # noqa: ARG002
        """Return the first ``samples`` images of the held-out stream."""
        parts = [
            self.draw(generator(_VALIDATION_SEED, start), validation_fraction, min(_DRAWN_AT_ONCE, samples - start), 0)
            for start in range(0, samples, _DRAWN_AT_ONCE)
        ]
        return np.concatenate([pixels for pixels, _ in parts]), np.concatenate([labels for _, labels in parts])


def _placements(rng: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Return the stencil coordinates of each output pixel: rows and columns, (count, SIZE, SIZE)."""
    angle = rng.uniform(-_ROTATION_RADIANS, _ROTATION_RADIANS, count).astype(np.float32)[:, None, None]
    scale = rng.uniform(*_SCALES, count).astype(np.float32)[:, None, None]
    down, right = rng.uniform(-_SHIFT, _SHIFT, (2, count, 1, 1)).astype(np.float32)
    grid = (np.arange(SIZE, dtype=np.float32) + 0.5) / SIZE - 0.5
    y, x = grid[None, :, None] - down, grid[None, None, :] - right
    step = _ATLAS / scale
    rows = (np.cos(angle) * y - np.sin(angle) * x) * step + _ATLAS / 2 - 0.5
    columns = (np.sin(angle) * y + np.cos(angle) * x) * step + _ATLAS / 2 - 0.5
    return rows, columns


def _resample(stencils: FloatArray, rows: FloatArray, columns: FloatArray) -> FloatArray:
    """Interpolate stencils (n, A, A) bilinearly at fractional coordinates (n, S, S); outside is zero."""
    padded = np.pad(stencils, ((0, 0), (1, 1), (1, 1)))
    rows, columns = (np.clip(coordinate + 1, 0, _ATLAS + 0.999) for coordinate in (rows, columns))
    top, left = rows.astype(np.int32), columns.astype(np.int32)
    down, right = rows - top, columns - left
    which = np.arange(len(stencils))[:, None, None]
    upper = padded[which, top, left] * (1 - right) + padded[which, top, left + 1] * right
    lower = padded[which, top + 1, left] * (1 - right) + padded[which, top + 1, left + 1] * right
    return upper * (1 - down) + lower * down


def open_glyphs(_argument: str = "") -> Glyphs:
    """Open the glyphs."""
    return Glyphs()
