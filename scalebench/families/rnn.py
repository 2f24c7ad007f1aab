"""Recurrent language model: torch's own vanilla (tanh), LSTM or GRU layers between an embedding and an output matrix.

Legend: E embedding width, W hidden width, L layers, V vocabulary, g matrices a cell has (1 vanilla, 3 GRU, 4 LSTM).

The dial. ``at(params)`` means the recurrent layers' parameters, g L (2 W^2 + 2 W) with E = W: depth stays at 2 unless
held, and the width is solved for, in steps that keep it within 5 % from about 1e4 up. The embedding is tied to the
output matrix unless their widths differ. The state starts at zero in each window and runs over all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scalebench.data.corpus import Corpus
from scalebench.families.base import Counts, OutOfReach, check_sequences
from scalebench.families.dial import Steps, landed
from scalebench.study import Batching, DataSpec
from scalebench.tasks import NextToken

SUMMARY = "recurrent language model: vanilla, LSTM or GRU"
DATA = "stdlib"
TAKES = Corpus
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "compile")
OFFERS: tuple[str, ...] = ()

# Matrices from input to hidden, and from hidden to hidden: one for each gate and candidate.
GATES = {"vanilla": 1, "gru": 3, "lstm": 4}
# Values that a unit of torch's CPU layers keeps for backward, per token (seen by hooks on saved tensors, torch 2.13).
KEPT = {"vanilla": 2, "gru": 8, "lstm": 17}
# Tuned on 300 to 400 steps of 1,024 bytes of Python source. Of 0.006 to 0.4 by factors of two the LSTM's best was 0.2
# at 1e4 and 0.1 at 8e4, within 0.03 nats of half and twice as much. Of 0.01, 0.02 and 0.04 the GRU's was 0.04 at 8e3
# and 0.02 at 3e4, the vanilla cell's 0.02 at 8e3 and 0.01 at 3e4 and at 1.2e5, where 0.02 is worse by 0.12 nats: it
# takes less the larger it is.
RATES = {"vanilla": (0.02, 0.5), "gru": (0.03, 0.25), "lstm": (0.15, 0.25)}
LAYERS = {"vanilla": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


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
        """Refuse to tie matrices of different shapes."""
        if self.tied and self.embedding != self.width:
            raise OutOfReach(f"tied: an embedding of {self.embedding} and a width of {self.width} cannot share weights")


# Zaremba, Sutskever & Vinyals 2014, section 4.1: the two regularised models on Penn Treebank (20 and 66 million).
SIZES = {
    "zaremba-medium": Config(2, 650, 650, 10_000, tied=False),
    "zaremba-large": Config(2, 1500, 1500, 10_000, tied=False),
}


def explicit(
    depth: int, width: int, *, vocab_size: int, embedding: int | None = None, tied: bool | None = None, **fields: Any
) -> Config:
    """Return the Config of a given depth and width; embedding as wide as the layers, and then tied, unless given."""
    embedding = embedding or width
    return Config(depth, width, embedding, vocab_size, tied=embedding == width if tied is None else tied, **fields)


# A step of s moves N by 2 s / W: these keep half a step below 2.5 %, and widths that processors like where they can.
_WIDTH_STEPS: Steps = {96: 1, 192: 4, 1536: 8, math.inf: 64}


def at(params: float, *, depth: int = 2, width: int | None = None, **held: Any) -> Config:
    """Return the Config with ``params`` recurrent parameters within 5 %, or raise ``OutOfReach``.

    ``depth``, ``embedding``, ``cell`` and ``tied`` may be held; vocab_size must be.
    """
    if width is not None:
        raise OutOfReach("width: an rnn's dial solves for it: hold depth, or give depth and width without params")
    gates = GATES[held.get("cell", Config.cell)]
    # g ((2L - 1) W^2 + (E + 2L) W) = params, where E = W adds to the square.
    square, linear = (2 * depth - 1, held["embedding"] + 2 * depth) if "embedding" in held else (2 * depth, 2 * depth)
    ideal = (math.sqrt(linear**2 + 4 * square * params / gates) - linear) / (2 * square)
    step = next(step for limit, step in _WIDTH_STEPS.items() if ideal < limit)
    config = explicit(depth, max(1, round(ideal / step) * step), **held)
    found = count(config, 1).non_embedding
    return landed(config, params, found, "recurrent parameters", "within 5 % from about 10,000 up")


def defaults(data: Corpus, _sequence_length: int | None) -> dict[str, Any]:
    """Return the field that the data decides: its vocabulary."""
    return {"vocab_size": data.vocab_size}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: a (N / 1e4)^-b, with a and b of the cell (``RATES``)."""
    scale, exponent = RATES[config.cell]
    return float(scale * (count(config, 1).non_embedding / 1e4) ** -exponent)


def _layer_inputs(config: Config) -> list[int]:
    """Return the width of what each layer is given."""
    return [config.embedding, *[config.width] * (config.depth - 1)]


def count(config: Config, sequence_length: int | None = None) -> Counts:
    """Count an rnn exactly: two biases for each matrix pair, as torch's layers have. Matrix products only, T tokens.

    ``non_embedding`` is the recurrent layers, without embedding and output matrix.
    """
    c, length, gates = config, sequence_length or 1, GATES[config.cell]
    matrices = sum(gates * (inputs + c.width) * c.width for inputs in _layer_inputs(c))
    groups = {
        "token_embedding": c.vocab_size * c.embedding,
        "recurrent": matrices + c.depth * 2 * gates * c.width,
        "head": c.vocab_size + (0 if c.tied else c.vocab_size * c.width),
    }
    # Kept for backward, per token: what the layers were given, what their units keep, logits and their softmax.
    per_token = c.embedding + c.depth * KEPT[c.cell] * c.width + 2 * c.vocab_size
    return Counts(
        by_group=groups,
        non_embedding=groups["recurrent"],
        active=sum(groups.values()),
        forward_flops=2 * length * (matrices + c.vocab_size * c.width),
        attention_flops=0,
        activation_bytes=4 * length * per_token,
    )


def task(config: Config, data: Corpus, spec: DataSpec, train: Batching) -> NextToken:
    """Return next-token prediction on the data's text. Raises ``OutOfReach`` for a vocabulary that is too small."""
    assert train.sequence_length is not None
    check_sequences(data.vocab_size, config.vocab_size, train.sequence_length)
    return NextToken(
        data, train.sequence_length, train.batch_size, train.seed, spec.validation_fraction, spec.validation_samples
    )


class RNN(nn.Module):
    """Tokens (B, T) to logits (B, T, V)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.embedding)
        self.layers = LAYERS[config.cell](config.embedding, config.width, config.depth, batch_first=True)
        self.head = nn.Linear(config.width, config.vocab_size)
        if config.tied:
            self.head.weight = self.tokens.weight
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Config) -> None:
        """Scale matrices by 1/sqrt(fan in); biases zero, but an LSTM's forget gate open (Gers et al. 2000)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                parameter.zero_()
            if config.cell == "lstm" and "bias_ih" in name:
                parameter[config.width : 2 * config.width] = 1  # gates in torch's order: input, forget, cell, output

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T)
        """Predict the next token at each place: logits (B, T, V)."""
        x = self.tokens(tokens) * math.sqrt(self.tokens.embedding_dim)  # (B, T, E), of unit variance
        return self.head(self.layers(x)[0])


def build(config: Config, implementation: str) -> nn.Module:  # noqa: ARG001 - compile wraps the same module
    """Return the module; torch's own layers in both, which torch.compile leaves as they are (it compiles the rest)."""
    return RNN(config)
