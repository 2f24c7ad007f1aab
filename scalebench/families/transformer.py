"""Encoder-decoder transformer: the body of ``torch.nn.Transformer``, without dropout, between shared embeddings.

Legend: B batch, T source tokens, S answer tokens, C width, H heads, D = C / H, F hidden width, L layers on either side.

Sources, answers and outputs share one embedding (Vaswani et al. 2017, section 3.4), scaled by sqrt(C); positions are
sinusoids. ``norm_first`` puts norms before each sublayer (pre-norm, the default: it trains without a long warm-up) or
after it (post-norm, as published); encoder and decoder both end in a norm, as torch's do. The MLP uses ReLU.

The dial. ``config_for(params)`` solves N ~ 28 L C^2 non-embedding parameters: depth from the aspect ratio of ``dial``,
a width that is a multiple of the head dimension (16, 32, 64 or 128), and F ~ 4 C for the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.data.transduction import Transduction
from scalebench.errors import InputError
from scalebench.families.base import Counts, check_sequences
from scalebench.families.dial import HEADED_WIDTH_STEPS, Dial, heads_of
from scalebench.families.multihead import MultiHead, attention_flops, check_heads
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import Transduce

SUMMARY = "encoder-decoder transformer on sequences with an exact answer"
DATA = "transduction:reversal"
TAKES = Transduction
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
CAPABILITIES: tuple[str, ...] = ()
parallelize = shard_blocks


@dataclass(frozen=True)
class Config:
    """``depth`` layers on either side; the longest source is ``context`` tokens and its answer ``answer``."""

    depth: int
    width: int
    heads: int
    hidden: int
    vocab_size: int
    context: int
    answer: int
    norm_first: bool = True

    def __post_init__(self) -> None:
        """Raise ``InputError`` unless the width is a multiple of the heads."""
        check_heads(self.width, self.heads)

    def answer_length(self, length: int) -> int:
        """Return the answer length for a source of ``length`` tokens, scaled by answer / context."""
        return self.answer if length == self.context else max(1, round(length * self.answer / self.context))


# Vaswani et al. 2017, table 3, on their shared vocabulary of 37,000; base is also torch.nn.Transformer's default.
SIZES = {
    "transformer-base": Config(6, 512, 8, 2048, 37_000, 512, 512, norm_first=False),
    "transformer-big": Config(6, 1024, 16, 4096, 37_000, 512, 512, norm_first=False),
}


def explicit(
    depth: int,
    width: int,
    *,
    vocab_size: int,
    context: int,
    answer: int | None = None,
    heads: int | None = None,
    hidden: int | None = None,
    **fields: Any,
) -> Config:
    """Return the Config of a depth and width; by default heads by the dial's rule, F = 4 C, answer = context."""
    heads, hidden, answer = heads or heads_of(width), hidden or 4 * width, answer or context
    return Config(depth, width, heads, hidden, vocab_size, context, answer, **fields)


def _dial_size(config: Config) -> int:
    return count(config).non_embedding


DIAL = Dial("transformer", explicit, _dial_size, 28, HEADED_WIDTH_STEPS, "the dial covers about 10,000 and more")


def config_for(params: float, **fixed: Any) -> Config:
    """Return the Config with ``params`` non-embedding parameters within 5 %, or raise ``InputError``.

    ``fixed`` may set any field of Config; vocab_size and context are required.
    """
    return DIAL.config_for(params, fixed)


def defaults(data: Transduction, sequence_length: int | None) -> dict[str, Any]:
    """Return the fields that the data determines: vocabulary size, and the lengths of sources and answers."""
    assert sequence_length is not None
    answer = data.answer_length(sequence_length)
    return {"vocab_size": data.vocab_size, "context": sequence_length, "answer": answer}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.015 (N / 1e4)^(-1/3).

    Tuned on 300 steps of 32 sequences of 16 digits to sort: of 0.003, 0.006 and 0.012 the best was 0.012 at 2e4 and
    0.006 at 2e5. On reversal of 8 digits 0.02 was better than 0.01 at 2e4.
    """
    return float(0.015 * (count(config).non_embedding / 1e4) ** (-1 / 3))


def count(config: Config, sequence_length: int | None = None) -> Counts:
    """Count exactly. FLOPs of matrix products only, causal attention halved; per pair of T source and S answer tokens.

    ``non_embedding`` is torch.nn.Transformer's body; the shared embedding is also the output matrix.
    """
    c, source = config, sequence_length or config.context
    answer, square = c.answer_length(source), c.width**2
    mlp = 2 * c.width * c.hidden
    groups = {
        "token_embedding": c.vocab_size * c.width,
        "attention": c.depth * 3 * 4 * (square + c.width),
        "mlp": c.depth * 2 * (mlp + c.hidden + c.width),
        "norm": (5 * c.depth + 2) * 2 * c.width,
    }
    # Per layer an encoder token costs 4 C^2 + 2 C F, and 2 C^2 for the decoder's keys and values.
    encoder, decoder = c.depth * (6 * square + mlp), c.depth * (6 * square + mlp) + c.vocab_size * c.width
    scores = attention_flops(c.width, source, source) + attention_flops(c.width, answer, source)
    scores += attention_flops(c.width, answer, answer, causal=True)
    # Saved for backward, per token: sublayers' inputs and norms, q k v and mixed values, the MLP twice; logits.
    encoder_values = c.depth * (10 * c.width + 2 * c.hidden)
    decoder_values = c.depth * (17 * c.width + 2 * c.hidden) + 2 * c.vocab_size
    probabilities = c.depth * c.heads * (source * source + answer * answer + answer * source)
    total = sum(groups.values())
    return Counts(
        by_group=groups,
        non_embedding=total - groups["token_embedding"],
        active=total,
        forward_flops=2 * source * encoder + 2 * answer * decoder + c.depth * scores,
        attention_flops=c.depth * scores,
        activation_bytes=4 * (source * encoder_values + answer * decoder_values + probabilities),
    )


def task(config: Config, data: Transduction, spec: DataSpec, train: Batching) -> Transduce:
    """Return transduction of sources of ``sequence_length``. Raises ``InputError`` if data and model do not match."""
    length = train.sequence_length
    assert length is not None
    check_sequences(data.vocab_size, config.vocab_size, length, config.context)
    if config.answer_length(length) != data.answer_length(length):
        raise InputError(
            f"answer: sources of {length} tokens have answers of {data.answer_length(length)}; context = "
            f"{config.context} with answer = {config.answer} gives {config.answer_length(length)}; leave both out"
        )
    sides = (spec.validation_fraction, spec.validation_samples)
    return Transduce(data, length, train.batch_size, train.seed, *sides)


# --- the module ------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A residual connection with its norm: x + f(norm(x)), or norm(x + f(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.first = config.norm_first

    def forward(self, x: Tensor, sublayer: Any) -> Tensor:
        """Apply ``sublayer`` to x (B, T, C) and add the result."""
        return x + sublayer(self.norm(x)) if self.first else self.norm(x + sublayer(x))


class Layer(nn.Module):
    """An encoder layer, or with ``cross`` a decoder layer: causal self-attention, then attention to the encoder."""

    def __init__(self, config: Config, implementation: str, *, cross: bool) -> None:
        super().__init__()
        self.attention = MultiHead(config.width, config.heads, implementation)
        self.cross = MultiHead(config.width, config.heads, implementation) if cross else None
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.residuals = nn.ModuleList(Residual(config) for _ in range(3 if cross else 2))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Return the layer's output for x (B, S, C); ``memory`` (B, T, C) is the encoder's output."""
        x = self.residuals[0](x, lambda y: self.attention(y, causal=self.cross is not None))
        if self.cross is not None:
            cross = self.cross
            x = self.residuals[1](x, lambda y: cross(y, memory))
        return self.residuals[-1](x, lambda y: self.down(F.relu(self.up(y))))


def sinusoids(length: int, width: int) -> Tensor:
    """Return sin and cos of positions at wavelengths from 2 pi to 20000 pi, (length, width) (Vaswani et al., 3.5)."""
    rates = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)[:, :width]


class Transformer(nn.Module):
    """Sources (B, T) and the answers so far (B, S) to logits (B, S, V)."""

    positions: Tensor

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.encoder = nn.ModuleList(Layer(config, implementation, cross=False) for _ in range(config.depth))
        self.decoder = nn.ModuleList(Layer(config, implementation, cross=True) for _ in range(config.depth))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        longest = max(config.context, config.answer)
        self.register_buffer("positions", sinusoids(longest, config.width), persistent=False)
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Config) -> None:
        """Scale matrices by 1/sqrt(fan in), and pre-norm residual branches by 1/sqrt(sublayers)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                added = config.norm_first and name.endswith(("out.weight", "down.weight"))
                parameter.normal_(std=parameter.shape[1] ** -0.5 / (math.sqrt(3 * config.depth) if added else 1))
            elif name.endswith("bias"):
                parameter.zero_()

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of tokens (B, T), scaled to unit variance, plus positions, (B, T, C)."""
        return self.tokens(tokens) * math.sqrt(self.tokens.embedding_dim) + self.positions[: tokens.size(1)]

    def body(self, source: Tensor, target: Tensor) -> Tensor:
        """Pass embedded sources (B, T, C) and answers (B, S, C) through encoder and decoder, (B, S, C)."""
        for layer in self.encoder:
            source = layer(source)
        source = self.encoder_norm(source)
        for layer in self.decoder:
            target = layer(target, source)
        return self.decoder_norm(target)

    def forward(self, source: Tensor, prefix: Tensor) -> Tensor:
        """Return logits (B, S, V) of each answer token from the source and the answer tokens before it."""
        return F.linear(self.body(self.embed(source), self.embed(prefix)), self.tokens.weight)

    @torch.no_grad()
    def greedy(self, source: Tensor, begin: int, length: int) -> Tensor:
        """Decode greedily from the ``begin`` token: the answers (B, length) to sources (B, T)."""
        prefix = source.new_full((len(source), 1), begin)
        for _ in range(length):
            prefix = torch.cat([prefix, self(source, prefix)[:, -1:].argmax(2)], dim=1)
        return prefix[:, 1:]


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator."""
    return Transformer(config, implementation)
