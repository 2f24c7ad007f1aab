"""One block of self-attention over a set: the smallest model that has to compare its inputs.

Legend: B batch, T elements (the query first), C width, H heads, D = C / H, F hidden width of the MLP, I features in.

Embedding, attention (without positions: a set has no order), MLP, each in pre-norm form, and a linear readout of the
query's row. Attention and MLP are computed for every row, as in a block of a deep model.

The dial. ``config_for(params)`` solves N ~ 12 C^2 for the width, a multiple of the head dimension (16 below a width of
512, since keys have 3 features); the hidden width F ~ 4 C makes up for the rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalebench.data.retrieval import Retrieval
from scalebench.errors import InputError
from scalebench.families.base import Counts
from scalebench.families.dial import Steps, rounded, step_for, with_hidden, within_tolerance
from scalebench.families.multihead import attention_flops, check_heads
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import SetRegression

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "one block of self-attention over a set, regression with a known noise floor"
DATA = "retrieval"
TAKES = Retrieval
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
CAPABILITIES: tuple[str, ...] = ("ensembles",)
parallelize = shard_blocks


@dataclass(frozen=True)
class Config:
    """``heads`` share ``width`` features evenly; ``hidden`` units in the MLP; ``inputs`` features of an element."""

    width: int
    heads: int
    hidden: int
    inputs: int = Retrieval.features

    def __post_init__(self) -> None:
        """Raise ``InputError`` unless the width is a multiple of the heads."""
        check_heads(self.width, self.heads)


SIZES: dict[str, Config] = {}
_HEAD_DIMS: Steps = {512: 16, 1024: 32, 4096: 64, math.inf: 128}  # widths are multiples of the head dimension


def explicit(width: int, *, heads: int | None = None, hidden: int | None = None, **fields: Any) -> Config:
    """Return the Config of a width; heads default to the dial's rule, F to 4 C."""
    return Config(width, heads or max(1, width // step_for(width, _HEAD_DIMS)), hidden or 4 * width, **fields)


def config_for(params: float, **fixed: Any) -> Config:
    """Return the Config with ``params`` parameters within 5 %, or raise ``InputError``; any field may be fixed."""
    inputs = fixed.get("inputs", Config.inputs)
    # 12 C^2 + (I + 8) C = params, nearly
    ideal = (math.sqrt((inputs + 8) ** 2 + 48 * params) - inputs - 8) / 24
    config = explicit(fixed.pop("width", None) or rounded(ideal, _HEAD_DIMS), **fixed)
    if "hidden" not in fixed:
        config = with_hidden(config, params, lambda c: count(c, 1).total)
    shape = f"attention (width {config.width})"
    return within_tolerance(config, params, count(config, 1).total, shape, "sizes from about 2,000 are possible")


def defaults(data: Retrieval, _sequence_length: int | None) -> dict[str, Any]:
    """Return the field that the data determines: the features of an element."""
    return {"inputs": data.features}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.009 (N / 1e4)^(-1/2).

    Tuned on 600 steps of 64 sets of 16 elements: of 0.005, 0.01 and 0.02 the best was 0.02 at 1.2e4, by 0.01 nats; of
    0.002, 0.004 and 0.008 it was 0.004 at 1.1e5, where 0.008 was unstable, as was 0.01 at 5e4.
    """
    return float(0.009 * (count(config, 1).total / 1e4) ** -0.5)


def count(config: Config, sequence_length: int | None = None) -> Counts:
    """Count exactly. FLOPs of matrix products only, for a set of T elements, all of which pass through the block."""
    c, length = config, sequence_length or 1
    groups = {
        "embedding": (c.inputs + 1) * c.width,
        "attention": 4 * (c.width + 1) * c.width,
        "mlp": 2 * c.width * c.hidden + c.hidden + c.width,
        "norm": 3 * 2 * c.width,
        "readout": c.width + 1,
    }
    matrices = c.inputs * c.width + 4 * c.width**2 + 2 * c.width * c.hidden
    scores = attention_flops(c.width, length, length)
    # Saved for backward, per element: features, three norms and their inputs, q k v, mixed values, MLP twice.
    per_token = c.inputs + 10 * c.width + 2 * c.hidden
    total = sum(groups.values())
    return Counts(
        by_group=groups,
        non_embedding=total,
        active=total,
        forward_flops=2 * length * matrices + 2 * c.width + scores,
        attention_flops=scores,
        activation_bytes=4 * length * per_token + 8 * c.heads * length * length,
        score_bytes=8 * c.heads * length * length,
    )


def task(config: Config, data: Retrieval, spec: DataSpec, train: Batching) -> SetRegression:
    """Return regression on sets of ``sequence_length`` elements. Raises ``InputError`` if the data do not fit."""
    assert train.sequence_length is not None
    assert spec.noise_std is not None
    if config.inputs != data.features:
        raise InputError(f"inputs: {config.inputs} features; an element of the data has {data.features}")
    if train.sequence_length < 2:
        raise InputError("sequence_length = 1: a set needs the query and at least one element; give at least 2")
    return SetRegression(
        data=data,
        length=train.sequence_length,
        noise_std=spec.noise_std,
        batch_size=train.batch_size,
        seed=train.seed,
        validation_samples=spec.validation_samples,
    )


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator."""
    from scalebench.families.modules.attention import SetAttention  # imports torch

    return SetAttention(config, implementation)
