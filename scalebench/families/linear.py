"""Linear regression, y = W x + b: the smallest family, and the one whose scaling law is known.

The linear teacher has infinitely many features of weight 1/k; a model of n inputs sees the first n. What it cannot see
has variance sum_{k>n} k^-2 ~ 1/n, so trained long enough its loss is E + A N^-1 with E the entropy of the noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from scalebench.data.synthetic import Teacher
from scalebench.families.base import Counts, OutOfReach
from scalebench.study import Batching, DataSpec
from scalebench.tasks import Regression, regression

SUMMARY = "linear regression on a teacher with infinitely many features"
DATA = "teacher"
TAKES = Teacher
SEQUENCES = False
IMPLEMENTATIONS = ("eager", "compile")
OFFERS = ()


@dataclass(frozen=True)
class Config:
    """``inputs`` features in, ``outputs`` out."""

    inputs: int
    outputs: int = 1


SIZES: dict[str, Config] = {}


def explicit(inputs: int, outputs: int = 1) -> Config:
    """Return the Config of a given number of inputs and outputs."""
    return Config(inputs, outputs)


def at(params: float, *, outputs: int = 1, inputs: int | None = None) -> Config:
    """Return the Config with n m + m = ``params`` within 5 %, or raise ``OutOfReach``; ``outputs`` may be held."""
    if inputs is not None:
        raise OutOfReach("a linear model's dial solves for the inputs: hold outputs, or give inputs without params")
    config = Config(max(1, round(params / outputs) - 1), outputs)
    found = count(config).total
    if abs(found / params - 1) > 0.05:
        raise OutOfReach(f"{params:g} parameters: the nearest linear model of {outputs} outputs has {found:,}")
    return config


def defaults(_data: Teacher, _sequence_length: int | None) -> dict[str, Any]:
    """Return nothing: the teacher has as many features as the model asks for."""
    return {}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.03 n^(-1/4), so that the noise of n updates does not pile up."""
    return float(0.03 * config.inputs**-0.25)


def count(config: Config, sequence_length: int | None = None) -> Counts:  # noqa: ARG001 - no sequence here
    """Count n m + m. Matrix products only, per sample."""
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
    return nn.Linear(config.inputs, config.outputs)
