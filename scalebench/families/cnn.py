"""A convolutional network in LeNet-5's form (LeCun et al. 1998): two convolutions with pooling, three dense layers.

Legend: C1, C2 channels of the convolutions, F1, F2 widths of the hidden dense layers.

The dial keeps LeNet-5's proportions 6 : 16 : 120 : 84; F1 makes up for the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from scalebench.data.images import Images
from scalebench.errors import InputError
from scalebench.families.base import Counts
from scalebench.families.dial import linear_in, within_tolerance
from scalebench.families.pictures import image_classes, image_fields
from scalebench.families.sharding import shard_blocks

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "convolutional network in LeNet-5's form on images"
DATA = "glyphs"
TAKES = Images
SEQUENCES = False
IMPLEMENTATIONS = ("eager", "compile")
CAPABILITIES: tuple[str, ...] = ("ensembles",)
parallelize = shard_blocks
defaults, task = image_fields, image_classes


@dataclass(frozen=True)
class Config:
    """``first`` and ``second`` channels, ``dense1`` and ``dense2`` features, between images and classes."""

    first: int = 6
    second: int = 16
    dense1: int = 120
    dense2: int = 84
    kernel: int = 5
    image_size: int = 32
    channels: int = 3
    classes: int = 10

    @property
    def grid(self) -> int:
        """Pixels along a side after both convolutions (no padding) and both poolings."""
        return ((self.image_size - self.kernel + 1) // 2 - self.kernel + 1) // 2


SIZES = {"lenet": Config()}


def explicit(**fields: Any) -> Config:
    """Return the Config with these fields; the others default to LeNet-5's."""
    config = Config(**fields)
    if config.grid < 1:
        raise InputError(f"image_size = {config.image_size} is too small for two convolutions of {config.kernel}")
    return config


def config_for(params: float, *, dense1: int | None = None, **fixed: Any) -> Config:
    """Return the Config with ``params`` parameters within 5 %, or raise ``InputError``."""
    total_of = cache(lambda config: count(config).total)  # most shapes come up again
    scale = 1.0
    for _ in range(60):  # parameters grow about as the square of the scale
        scale *= (params / total_of(_scaled(scale, dense1, fixed))) ** 0.5
    config = _scaled(scale, dense1, fixed)
    if dense1 is None:
        base, slope = linear_in("dense1", config, lambda c: count(c).total)
        config = replace(config, dense1=max(1, round((params - base) / slope)))
    shape = f"cnn ({config.first} and {config.second} channels, {config.classes} classes)"
    hint = "sizes from about 3,000 are possible when no other field is given"
    return within_tolerance(config, params, count(config).total, shape, hint)


def _scaled(scale: float, dense1: int | None, fixed: dict[str, Any]) -> Config:
    lenet = {"first": 6, "second": 16, "dense2": 84}
    widths = {name: max(1, round(scale * width)) for name, width in lenet.items()}
    return explicit(**(widths | {"dense1": dense1 or max(1, round(scale * 120))} | fixed))


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.01 (N / 1e4)^(-1/4)."""
    return float(0.01 * (count(config).total / 1e4) ** -0.25)


def count(config: Config, sequence_length: int | None = None) -> Counts:  # noqa: ARG001 - no sequence here
    """Count exactly. FLOPs of matrix products and convolutions only, per image."""
    c, area = config, config.kernel**2
    sides = (c.image_size - c.kernel + 1, (c.image_size - c.kernel + 1) // 2 - c.kernel + 1)
    convolutions = [(c.channels, c.first, sides[0]), (c.first, c.second, sides[1])]
    dense = [(c.second * c.grid**2, c.dense1), (c.dense1, c.dense2), (c.dense2, c.classes)]
    groups = {
        f"convolution{i}": inputs * outputs * area + outputs for i, (inputs, outputs, _) in enumerate(convolutions, 1)
    }
    groups |= {f"dense{i}": inputs * outputs + outputs for i, (inputs, outputs) in enumerate(dense, 1)}
    products = sum(inputs * outputs * area * side**2 for inputs, outputs, side in convolutions)
    products += sum(inputs * outputs for inputs, outputs in dense)
    saved = sum(2 * outputs * side**2 + inputs for inputs, outputs, side in convolutions) + 2 * (c.dense1 + c.dense2)
    total = sum(groups.values())
    return Counts(
        by_group=groups,
        non_embedding=total,
        active=total,
        forward_flops=2 * products,
        attention_flops=0,
        activation_bytes=4 * (saved + c.channels * c.image_size**2 + c.second * c.grid**2 + 3 * c.classes),
    )


def build(config: Config, implementation: str) -> nn.Module:  # noqa: ARG001 - compile wraps the same module
    """Return the network."""
    from scalebench.families.modules.cnn import CNN  # imports torch

    return CNN(config)
