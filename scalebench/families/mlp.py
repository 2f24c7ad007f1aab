"""A deep fully connected network: regression with a known noise floor, or classification of images, flattened.

The dial fixes the depth (default: 2 hidden layers) and solves for the width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from scalebench.data.images import Images
from scalebench.data.synthetic import Teacher
from scalebench.errors import InputError
from scalebench.families.base import Counts
from scalebench.families.dial import within_tolerance
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import Classification, Regression, classification, regression

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "deep fully connected network on a teacher's regression task, or on images"
DATA = "teacher"
TAKES = (Teacher, Images)
SEQUENCES = False
IMPLEMENTATIONS = ("eager", "compile")
CAPABILITIES: tuple[str, ...] = ("ensembles",)
parallelize = shard_blocks


@dataclass(frozen=True)
class Config:
    """``depth`` hidden layers of ``width`` features between ``inputs`` and ``outputs``."""

    depth: int
    width: int
    inputs: int = 8
    outputs: int = 1


SIZES: dict[str, Config] = {}


def explicit(width: int, depth: int = 2, **fields: Any) -> Config:
    """Return the Config of a width and depth."""
    return Config(depth, width, **fields)


def config_for(params: float, *, depth: int = 2, width: int | None = None, **fields: Any) -> Config:
    """Return the Config with ``params`` parameters within 5 %, or raise ``InputError``.

    All fields but the width may be fixed.
    """
    if width is not None:
        raise InputError("width: an mlp's dial solves for it; give depth, or depth and width without params")
    inputs, outputs = fields.get("inputs", Config.inputs), fields.get("outputs", Config.outputs)
    # (depth - 1) w^2 + (inputs + depth + outputs) w + outputs = params
    a, b, c = depth - 1, inputs + depth + outputs, outputs - params
    ideal = -c / b if a == 0 else (-b + math.sqrt(b * b - 4 * a * c)) / (2 * a)
    config = Config(depth, max(1, round(ideal)), **fields)
    shape = f"mlp (depth {depth}, width {config.width}, {inputs} inputs)"
    return within_tolerance(config, params, count(config).total, shape, "sizes from about 1,000 are possible")


def defaults(data: Teacher | Images, _sequence_length: int | None) -> dict[str, Any]:
    """Return inputs and outputs for images; a teacher has any number of either."""
    if isinstance(data, Teacher):
        return {}
    return {"inputs": data.channels * data.size**2, "outputs": data.classes}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.01 (N / 1e4)^(-1/4), tuned at 1e3 to 1e5 on the mlp teacher."""
    return float(0.01 * (count(config).total / 1e4) ** -0.25)


def layer_sizes(config: Config) -> list[tuple[int, int]]:
    """Return (inputs, outputs) of each layer, first to last."""
    widths = [config.inputs, *[config.width] * config.depth, config.outputs]
    return list(pairwise(widths))


def count(config: Config, sequence_length: int | None = None) -> Counts:  # noqa: ARG001 - no sequence here
    """Count layer by layer. FLOPs of matrix products only, per sample."""
    layers = layer_sizes(config)
    groups = {f"layer{i}": inputs * outputs + outputs for i, (inputs, outputs) in enumerate(layers)}
    return Counts(
        by_group=groups,
        non_embedding=sum(groups.values()),
        active=sum(groups.values()),
        forward_flops=2 * sum(inputs * outputs for inputs, outputs in layers),
        attention_flops=0,
        activation_bytes=4 * (config.inputs + 2 * config.depth * config.width + 3 * config.outputs),
    )


def task(config: Config, data: Teacher | Images, spec: DataSpec, train: Batching) -> Regression | Classification:
    """Return regression on the tanh teacher, or classification of images. Raises ``InputError`` if sizes differ."""
    if isinstance(data, Teacher):
        return regression(data, "mlp", config, spec, train)
    if (config.inputs, config.outputs) != (data.channels * data.size**2, data.classes):
        shape = f"{data.channels} × {data.size} × {data.size} pixels in {data.classes} classes"
        raise InputError(f"inputs = {config.inputs}, outputs = {config.outputs}: the images have {shape}")
    return classification(data, data.size, spec, train, channels=data.channels, classes=data.classes)


def build(config: Config, implementation: str) -> nn.Module:  # noqa: ARG001 - compile wraps the same module
    """Return the network: linear layers with GELU between them, images flattened first."""
    from torch import nn

    *hidden, last = [nn.Linear(inputs, outputs) for inputs, outputs in layer_sizes(config)]
    return nn.Sequential(nn.Flatten(), *[module for layer in hidden for module in (layer, nn.GELU())], last)
