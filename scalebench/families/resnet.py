"""Residual networks (He et al. 2016), in their ImageNet and CIFAR forms, with or without the residual connections.

Legend: W width, the channels of the first stage; ``last``, the channels of the last one.

The ImageNet form has a 7×7 stem, four stages W, 2W, 4W, ``last`` = 8W, and projections where shapes change. The CIFAR
form has a 3×3 stem, three stages W, 2W, ``last`` = 4W of (depth - 2) / 6 blocks each, and shortcuts without parameters
(subsampled, padded with zero channels). Bottlenecks have their stride in the 3×3 convolution, as torchvision's do
("v1.5"); He et al. have it in the first 1×1. ``residual = false`` removes every shortcut and its projection.

The dial fixes the depth (20 in the CIFAR form, its default) and solves for W, then for ``last`` to get within 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from scalebench.data.images import Images
from scalebench.errors import InputError
from scalebench.families.base import Counts
from scalebench.families.dial import within_tolerance
from scalebench.families.pictures import image_classes, image_fields
from scalebench.families.sharding import shard_blocks

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "residual network (ImageNet and CIFAR forms; residual = false for the plain one)"
DATA = "glyphs"
TAKES = Images
SEQUENCES = False
IMPLEMENTATIONS = ("eager", "compile")
CAPABILITIES: tuple[str, ...] = ()  # checkpointing would update batch statistics twice
parallelize = shard_blocks
defaults, task = image_fields, image_classes

# Blocks in each stage of the ImageNet form (He et al. 2016, table 1); from 50 layers up the blocks are bottlenecks.
STAGES = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_EXPANSION = 4  # of a bottleneck's channels by its last convolution


@dataclass(frozen=True)
class Config:
    """A residual network's shape."""

    depth: int
    width: int
    last: int
    form: Literal["imagenet", "cifar"] = "cifar"
    residual: bool = True
    image_size: int = 32
    channels: int = 3
    classes: int = 10

    @property
    def bottleneck(self) -> bool:
        """Whether blocks are 1×1, 3×3, 1×1 convolutions rather than two of 3×3."""
        return self.form == "imagenet" and self.depth >= 50

    @property
    def stages(self) -> list[tuple[int, int]]:
        """Blocks and channels of each stage."""
        if self.form == "cifar":
            return [((self.depth - 2) // 6, channels) for channels in (self.width, 2 * self.width, self.last)]
        widths = (self.width, 2 * self.width, 4 * self.width, self.last)
        return list(zip(STAGES[self.depth], widths, strict=True))


def _imagenet(depth: int) -> Config:
    return Config(depth, 64, 512, "imagenet", image_size=224, classes=1000)


SIZES = {f"resnet{depth}": _imagenet(depth) for depth in STAGES}
SIZES |= {f"resnet{depth}-cifar": Config(depth, 16, 64) for depth in (20, 32, 44, 56, 110)}


# --- the dial --------------------------------------------------------------------------------------------------------


def explicit(width: int, depth: int | None = None, last: int | None = None, **fields: Any) -> Config:
    """Return the Config of a width; the depth defaults to the smallest published one of the form."""
    form = fields.get("form", Config.form)
    depth = depth or (20 if form == "cifar" else 18)
    if form == "cifar" and (depth < 8 or (depth - 2) % 6):
        raise InputError(f"depth = {depth}: the CIFAR form has 6 n + 2 layers: 8, 14, 20, 26, …")
    if form == "imagenet" and depth not in STAGES:
        raise InputError(f"depth = {depth}: the ImageNet form has {', '.join(map(str, STAGES))} layers")
    wide = (4 if form == "cifar" else 8) * width
    if last is not None and last < wide // 2:
        raise InputError(f"last = {last}: must be at least the channels of the stage before it, {wide // 2}")
    return Config(depth, width, last or wide, **fields)


def config_for(params: float, *, width: int | None = None, last: int | None = None, **fixed: Any) -> Config:
    """Return the Config with ``params`` parameters within 5 %, or raise ``InputError``.

    All fields but the width may be fixed.
    """
    if width is not None:
        raise InputError("width: a resnet's dial solves for it; give depth, or width without params")
    total_of = cache(lambda wide: count(explicit(wide, last=last, **fixed)).total)  # most widths come up again
    ideal = 16.0
    for _ in range(60):  # parameters grow about as the square of the width
        ideal *= (params / total_of(max(1, round(ideal)))) ** 0.5
    near = [explicit(wide, last=last, **fixed) for wide in range(max(1, math.floor(ideal) - 1), math.ceil(ideal) + 1)]
    if last is None:
        near = [_with_last(config, params) for config in near]
    config = min(near, key=lambda c: abs(count(c).total - params))
    shape = f"resnet (depth {config.depth}, width {config.width})"
    hint = "sizes from about 3,000 at depth 8 and 10,000 at depth 20 are possible"
    return within_tolerance(config, params, count(config).total, shape, hint)


def _with_last(config: Config, params: float) -> Config:
    """Solve for the last stage's channels, in which the parameters are quadratic; no fewer than the stage before."""
    count_0, count_1, count_2 = (count(replace(config, last=channels)).total for channels in (0, 1, 2))
    square = (count_2 - 2 * count_1 + count_0) / 2
    slope, missing = count_1 - count_0 - square, count_0 - params
    root = (-slope + math.sqrt(max(0.0, slope**2 - 4 * square * missing))) / (2 * square)
    return replace(config, last=max(config.last // 2, round(root)))


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.032 (N / 1e4)^(-1/5).

    Tuned on 150 steps of 32 glyphs: of a factor-two grid 0.027 was best at 3e3 and at 4.8e4; of 0.02, 0.027 and 0.04
    with two seeds 0.04 and 0.027 were. The exponent is steeper than that, since larger networks need less.
    """
    return float(0.032 * (count(config).total / 1e4) ** -0.2)


# --- counting --------------------------------------------------------------------------------------------------------


class Conv(NamedTuple):
    """A convolution with batch normalisation: channels in and out, kernel, stride, and output size."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    side: int

    @property
    def weights(self) -> int:
        """Weights of the convolution."""
        return self.inputs * self.outputs * self.kernel**2


class BlockShape(NamedTuple):
    """A block's convolutions, and its shortcut's projection if any."""

    convolutions: list[Conv]
    projection: Conv | None


def blocks_of(config: Config) -> Iterator[BlockShape]:
    """Yield the shape of every block, first to last."""
    inputs, side = config.width, config.image_size
    if config.form == "imagenet":
        side = math.ceil(math.ceil(side / 2) / 2)
    for stage, (blocks, channels) in enumerate(config.stages):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            outputs = channels * _EXPANSION if config.bottleneck else channels
            small = math.ceil(side / stride)
            changes = config.residual and config.form == "imagenet" and (stride > 1 or inputs != outputs)
            projection = Conv(inputs, outputs, 1, stride, small) if changes else None
            yield BlockShape(_convolutions(config, inputs, channels, stride, (side, small)), projection)
            inputs, side = outputs, small


def _convolutions(config: Config, inputs: int, channels: int, stride: int, sides: tuple[int, int]) -> list[Conv]:
    side, small = sides
    if not config.bottleneck:
        return [Conv(inputs, channels, 3, stride, small), Conv(channels, channels, 3, 1, small)]
    wide = channels * _EXPANSION
    return [
        Conv(inputs, channels, 1, 1, side),
        Conv(channels, channels, 3, stride, small),
        Conv(channels, wide, 1, 1, small),
    ]


def stem_of(config: Config) -> Conv:
    """Return the first convolution: 7×7 of stride 2 in the ImageNet form, 3×3 in the CIFAR form."""
    kernel, stride = (7, 2) if config.form == "imagenet" else (3, 1)
    return Conv(config.channels, config.width, kernel, stride, math.ceil(config.image_size / stride))


def count(config: Config, sequence_length: int | None = None) -> Counts:  # noqa: ARG001 - no sequence here
    """Count exactly, with batch normalisation. FLOPs of convolutions and the last layer only, per image."""
    blocks = list(blocks_of(config))
    stem, inside = stem_of(config), [conv for block in blocks for conv in block.convolutions]
    projections = [block.projection for block in blocks if block.projection]
    features = inside[-1].outputs
    groups = {
        "stem": stem.weights,
        "blocks": sum(conv.weights for conv in inside),
        "projections": sum(conv.weights for conv in projections),
        "norm": 2 * sum(conv.outputs for conv in [stem, *inside, *projections]),
        "head": features * config.classes + config.classes,
    }
    everything = [stem, *inside, *projections]
    products = sum(conv.weights * conv.side**2 for conv in everything) + features * config.classes
    # Saved for backward: each convolution's output, normalised and rectified.
    saved = sum(3 * conv.outputs * conv.side**2 for conv in everything) + config.channels * config.image_size**2
    total = sum(groups.values())
    return Counts(
        by_group=groups,
        non_embedding=total,
        active=total,
        forward_flops=2 * products,
        attention_flops=0,
        activation_bytes=4 * saved,
    )


def build(config: Config, implementation: str) -> nn.Module:  # noqa: ARG001 - compile wraps the same module
    """Return the network."""
    from scalebench.families.modules.resnet import ResNet  # imports torch

    return ResNet(config, stem_of(config), list(blocks_of(config)))
