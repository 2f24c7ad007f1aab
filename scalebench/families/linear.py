"""Linear regression, y = W x + b: the smallest family, and the one whose scaling law is known.

The linear teacher has infinitely many features of weight 1/k; a model of n inputs sees the first n. The other
features have variance sum_{k>n} k^-2 ~ 1/n, so after long training its loss is E + A N^-1, E the entropy of the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalebench.data.synthetic import Teacher
from scalebench.errors import InputError
from scalebench.families.base import Counts
from scalebench.families.dial import within_tolerance
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import Regression, regression

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "linear regression on a teacher with infinitely many features"
DATA = "teacher"
TAKES = Teacher
SEQUENCES = False
IMPLEMENTATIONS = ("eager", "compile")
CAPABILITIES: tuple[str, ...] = ("ensembles",)
parallelize = shard_blocks


@dataclass(frozen=True)
class Config:
    """``inputs`` features in, ``outputs`` out."""

    inputs: int
    outputs: int = 1


SIZES: dict[str, Config] = {}


def explicit(inputs: int, outputs: int = 1) -> Config:
    """Return the Config of a number of inputs and outputs."""
    return Config(inputs, outputs)


def config_for(params: float, *, outputs: int = 1, inputs: int | None = None) -> Config:
    """Return the Config with n m + m = ``params`` within 5 %, or raise ``InputError``; ``outputs`` may be fixed."""
    if inputs is not None:
        raise InputError("inputs: a linear model's dial solves for it; give outputs, or inputs without params")
    config = Config(max(1, round(params / outputs) - 1), outputs)
    shape = f"linear model with {outputs} outputs"
    return within_tolerance(config, params, count(config).total, shape, f"sizes from about {20 * outputs} are possible")


def defaults(_data: Teacher, _sequence_length: int | None) -> dict[str, Any]:
    """Return no fields: the teacher provides any number of features."""
    return {}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.03 n^(-1/4), so that the noise of n updates does not add up."""
    return float(0.03 * config.inputs**-0.25)


def count(config: Config, sequence_length: int | None = None) -> Counts:  # noqa: ARG001 - no sequence here
    """Count n m + m parameters; FLOPs of the matrix product, per sample."""
    groups = {"weight": config.inputs * config.outputs, "bias": config.outputs}
    total = sum(groups.values())
    return Counts(
        by_group=groups,
        non_embedding=total,
        active=total,
        forward_flops=2 * groups["weight"],
        attention_flops=0,
        activation_bytes=4 * (config.inputs + 3 * config.outputs),
    )


def task(config: Config, data: Teacher, spec: DataSpec, train: Batching) -> Regression:
    """Return regression on the linear teacher."""
    return regression(data, "linear", config, spec, train)


def build(config: Config, implementation: str) -> nn.Module:  # noqa: ARG001 - compile wraps the same module
    """Return one linear layer."""
    from torch import nn

    return nn.Linear(config.inputs, config.outputs)
