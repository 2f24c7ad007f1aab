"""Recurrent language model: torch's own vanilla (tanh), LSTM or GRU layers between an embedding and an output matrix.

Legend: E embedding width, W hidden width, L layers, V vocabulary, g matrices per cell (1 vanilla, 3 GRU, 4 LSTM).

The dial. ``config_for(params)`` means the recurrent layers' parameters, g L (2 W^2 + 2 W) with E = W: the depth is 2
unless given, and the width is solved for, in steps that stay within 5 % from about 1e4 up. The embedding is tied to
the output matrix unless their widths differ. The state starts at zero in each window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from scalebench.data.corpus import Corpus
from scalebench.errors import InputError
from scalebench.families.base import Counts, check_sequences
from scalebench.families.dial import Steps, step_for, within_tolerance
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import NextToken

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "recurrent language model: vanilla, LSTM or GRU"
DATA = "stdlib"
TAKES = Corpus
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "compile")
CAPABILITIES: tuple[str, ...] = ()
parallelize = shard_blocks

# Input-to-hidden and hidden-to-hidden matrices: one per gate and candidate.
GATES = {"vanilla": 1, "gru": 3, "lstm": 4}
# Values that torch's CPU layers save for backward, per unit and token (from hooks on saved tensors, torch 2.13).
SAVED_VALUES = {"vanilla": 2, "gru": 8, "lstm": 17}
# Tuned on 300 to 400 steps of 1,024 bytes of Python source. Of 0.006 to 0.4 by factors of two the LSTM's best was 0.2
# at 1e4 and 0.1 at 8e4, within 0.03 nats of half and twice as much. Of 0.01, 0.02 and 0.04 the GRU's was 0.04 at 8e3
# and 0.02 at 3e4, the vanilla cell's 0.02 at 8e3 and 0.01 at 3e4 and at 1.2e5, where 0.02 is worse by 0.12 nats:
# the larger, the lower.
RATES = {"vanilla": (0.02, 0.5), "gru": (0.03, 0.25), "lstm": (0.15, 0.25)}


@dataclass(frozen=True)
class Config:
    """``depth`` layers of ``width`` units over tokens embedded in ``embedding`` features."""

    depth: int
    width: int
    embedding: int
    vocab_size: int
    cell: Literal["vanilla", "lstm", "gru"] = "lstm"
    tied: bool = True

    def __post_init__(self) -> None:
        """Raise ``InputError`` for tied matrices of different shapes."""
        if self.tied and self.embedding != self.width:
            raise InputError(
                f"tied: embedding = {self.embedding} and width = {self.width} must be equal to share weights"
            )


# Zaremba, Sutskever & Vinyals 2014, section 4.1: the two regularised models on Penn Treebank (20 and 66 million).
SIZES = {
    "zaremba-medium": Config(2, 650, 650, 10_000, tied=False),
    "zaremba-large": Config(2, 1500, 1500, 10_000, tied=False),
}


def explicit(
    depth: int, width: int, *, vocab_size: int, embedding: int | None = None, tied: bool | None = None, **fields: Any
) -> Config:
    """Return the Config of a depth and width; by default the embedding has that width too and is tied."""
    embedding = embedding or width
    return Config(depth, width, embedding, vocab_size, tied=embedding == width if tied is None else tied, **fields)


# A step of s moves N by 2 s / W: these keep half a step below 2.5 %, and prefer multiples that suit hardware.
_WIDTH_STEPS: Steps = {96: 1, 192: 4, 1536: 8, math.inf: 64}


def config_for(params: float, *, depth: int = 2, width: int | None = None, **fixed: Any) -> Config:
    """Return the Config with ``params`` recurrent parameters within 5 %, or raise ``InputError``.

    ``depth``, ``embedding``, ``cell`` and ``tied`` may be fixed; vocab_size is required.
    """
    if width is not None:
        raise InputError("width: an rnn's dial solves for it; give depth, or depth and width without params")
    gates = GATES[fixed.get("cell", Config.cell)]
    # g ((2L - 1) W^2 + (E + 2L) W) = params, where E = W adds to the square.
    square, linear = (2 * depth - 1, fixed["embedding"] + 2 * depth) if "embedding" in fixed else (2 * depth, 2 * depth)
    ideal = (math.sqrt(linear**2 + 4 * square * params / gates) - linear) / (2 * square)
    step = step_for(ideal, _WIDTH_STEPS)
    config = explicit(depth, max(1, round(ideal / step) * step), **fixed)
    shape, hint = f"rnn (depth {depth}, width {config.width})", "sizes from about 10,000 are possible"
    return within_tolerance(config, params, count(config, 1).non_embedding, shape, hint, "recurrent parameters")


def defaults(data: Corpus, _sequence_length: int | None) -> dict[str, Any]:
    """Return the field that the data determines: its vocabulary size."""
    return {"vocab_size": data.vocab_size}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: a (N / 1e4)^-b, with a and b of the cell (``RATES``)."""
    scale, exponent = RATES[config.cell]
    return float(scale * (count(config, 1).non_embedding / 1e4) ** -exponent)


def _layer_inputs(config: Config) -> list[int]:
    """Return the input width of each layer."""
    return [config.embedding, *[config.width] * (config.depth - 1)]


def count(config: Config, sequence_length: int | None = None) -> Counts:
    """Count exactly, with torch's two biases per matrix pair. FLOPs of matrix products only, per sample of T tokens.

    ``non_embedding`` counts the recurrent layers only.
    """
    c, length, gates = config, sequence_length or 1, GATES[config.cell]
    matrices = sum(gates * (inputs + c.width) * c.width for inputs in _layer_inputs(c))
    groups = {
        "token_embedding": c.vocab_size * c.embedding,
        "recurrent": matrices + c.depth * 2 * gates * c.width,
        "head": c.vocab_size + (0 if c.tied else c.vocab_size * c.width),
    }
    # Saved for backward, per token: the layers' inputs and states, logits and their softmax.
    per_token = c.embedding + c.depth * SAVED_VALUES[c.cell] * c.width + 2 * c.vocab_size
    return Counts(
        by_group=groups,
        non_embedding=groups["recurrent"],
        active=sum(groups.values()),
        forward_flops=2 * length * (matrices + c.vocab_size * c.width),
        attention_flops=0,
        activation_bytes=4 * length * per_token,
    )


def task(config: Config, data: Corpus, spec: DataSpec, train: Batching) -> NextToken:
    """Return next-token prediction. Raises ``InputError`` if the model's vocabulary is too small."""
    assert train.sequence_length is not None
    check_sequences(data.vocab_size, config.vocab_size, train.sequence_length)
    return NextToken(
        data, train.sequence_length, train.batch_size, train.seed, spec.validation_fraction, spec.validation_samples
    )


def build(config: Config, implementation: str) -> nn.Module:  # noqa: ARG001 - compile wraps the same module
    """Return the module; torch's own layers in both cases: torch.compile compiles only the rest."""
    from scalebench.families.modules.rnn import RNN  # imports torch

    return RNN(config)
