"""GPT: a decoder language model, in GPT-2's form for the published sizes and in a modern one for the dial.

Legend: B batch, T time, C width, H heads, D head dimension, F hidden width of the MLP, V vocabulary, L depth.

The dial. ``at(params)`` takes non-embedding parameters N ~ 12 L C^2 and turns one knob:

1. aspect ratio C/L = 32 (N/1e5)^0.1, which passes through GPT-2 small (64 at 8.5e7) and GPT-3 (128 at 1.7e11);
2. depth L = (N / 12 aspect^2)^(1/3), at least 2: with one layer attention cannot compose;
3. width C = sqrt(N / 12 L), a multiple of 4 (of 8 from 64 up, of 64 from 512 up);
4. heads of dimension 16, 32, 64 or 128 as the width grows, H D ~ C: all dimensions the kernels take;
5. hidden width F ~ 4 C takes up what rounding left, a multiple of 2 (of 8 from 256 up, of 64 from 2048 up), so that
   N lands within 5 %, and a request one tenth larger never gives a smaller model.

The modern block is RMSNorm, rotary positions, no biases; ``depth`` or ``width`` may be held instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.data.corpus import Corpus
from scalebench.families.base import Counts, OutOfReach, check_sequences
from scalebench.families.cache import KVCache, LayerCache
from scalebench.families.causal import Attention, norm
from scalebench.families.dial import WIDTH_STEPS, dialled
from scalebench.study import Batching, DataSpec
from scalebench.tasks import NextToken

SUMMARY = "decoder language model (GPT-2 form, or RMSNorm + rotary positions)"
DATA = "stdlib"
TAKES = Corpus
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile", "triton", "fused")
OFFERS = ("checkpointing", "generation")


@dataclass(frozen=True)
class Config:
    """A GPT's shape. Widths in features; ``context`` is the longest sequence it takes."""

    depth: int
    width: int
    heads: int
    head_dim: int
    hidden: int
    vocab_size: int
    context: int
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    bias: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        """Refuse to rotate features that do not pair up."""
        if self.positions == "rotary" and self.head_dim % 2:
            raise OutOfReach(
                f"head_dim: rotary positions turn pairs of features (given {self.head_dim}); give an even one"
            )

    @property
    def inner(self) -> int:
        """Features that attention works in: H D."""
        return self.heads * self.head_dim


def _gpt2(depth: int, width: int, heads: int, context: int = 1024) -> Config:
    return Config(depth, width, heads, width // heads, 4 * width, 50257, context, "layer", "learned", bias=True)


# Radford et al. 2019 (the released checkpoints' shapes) and Brown et al. 2020, table 2.1.
SIZES = {
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    "gpt3-175b": _gpt2(96, 12288, 96, context=2048),
}


# --- the dial --------------------------------------------------------------------------------------------------------


def explicit(
    depth: int,
    width: int,
    *,
    vocab_size: int,
    context: int,
    head_dim: int | None = None,
    heads: int | None = None,
    hidden: int | None = None,
    **fields: Any,
) -> Config:
    """Return the modern Config of a given depth and width, heads and hidden width by the dial's rules unless given."""
    if head_dim is None:
        head_dim = next((size for limit, size in ((128, 16), (384, 32), (2048, 64)) if width < limit), 128)
    heads = heads or max(1, round(width / head_dim))
    return Config(depth, width, heads, head_dim, hidden or 4 * width, vocab_size, context, **fields)


def at(params: float, **held: Any) -> Config:
    """Return the Config with ``params`` non-embedding parameters within 5 %, or raise ``OutOfReach``.

    ``held`` keeps any field of Config: ``depth``, ``width``, ``heads``, … and must give vocab_size and context.
    """
    hint = "the dial reaches within 5 % from about 1,500 up when no field is held"
    return dialled(params, 12, WIDTH_STEPS, explicit, lambda c: count(c).non_embedding, held, hint)


def defaults(data: Corpus, sequence_length: int | None) -> dict[str, Any]:
    """Return the fields that the data decides: its vocabulary, and a context as long as the sequences."""
    return {"vocab_size": data.vocab_size, "context": sequence_length}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.02 (N / 1e4)^(-1/3).

    The exponent is OLMo's model ladder's (Bhagia et al. 2024). The constant was tuned on 500 steps of 2,048 bytes of
    Python source: the best of a factor-two grid lay at 0.03 to 0.05, 0.02 to 0.03 and 0.008 for 1.5e3, 1.2e4 and 9.6e4.
    """
    return float(0.02 * (count(config).non_embedding / 1e4) ** (-1 / 3))


def count(config: Config, sequence_length: int | None = None) -> Counts:
    """Count a GPT exactly. Matrix products only; attention scores halved for causality; per sample of T tokens.

    ``non_embedding`` leaves out token and position embeddings and the output matrix (Kaplan et al. 2020).
    """
    c, length = config, sequence_length or config.context
    bias = int(c.bias)
    groups = {
        "token_embedding": c.vocab_size * c.width,
        "position_embedding": c.context * c.width if c.positions == "learned" else 0,
        "attention": c.depth * (4 * c.width * c.inner + bias * (3 * c.inner + c.width)),
        "mlp": c.depth * (2 * c.width * c.hidden + bias * (c.hidden + c.width)),
        "norm": (2 * c.depth + 1) * c.width * (2 if c.norm == "layer" else 1),
        "head": 0 if c.tied else c.vocab_size * c.width,
    }
    matrices = c.depth * (4 * c.width * c.inner + 2 * c.width * c.hidden) + c.vocab_size * c.width
    attention_flops = c.depth * 4 * length * length * c.inner // 2
    # Kept for backward, per token: block inputs and norms, q k v and their rotation, mixed values, MLP twice, logits.
    per_token = c.depth * (6 * c.width + 8 * c.inner + 2 * c.hidden) + 3 * c.vocab_size + 4 * c.width
    total = sum(groups.values())
    return Counts(
        by_group=groups,
        non_embedding=groups["attention"] + groups["mlp"] + groups["norm"],
        active=total,
        forward_flops=2 * length * matrices + attention_flops,
        attention_flops=attention_flops,
        activation_bytes=4 * length * per_token + 4 * c.depth * c.heads * length * length,
    )


def task(config: Config, data: Corpus, spec: DataSpec, train: Batching) -> NextToken:
    """Return next-token prediction on the corpus. Raises ``OutOfReach`` beyond context or vocabulary."""
    assert train.sequence_length is not None
    check_sequences(data.vocab_size, config.vocab_size, train.sequence_length, config.context)
    return NextToken(
        data, train.sequence_length, train.batch_size, train.seed, spec.validation_fraction, spec.validation_samples
    )


# --- the module ------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Attention, then MLP, each added to what it was given."""

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(config), norm(config)
        self.attention = Attention(config, implementation)
        self.up = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.down = nn.Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:  # (B, T, C)
        """Refine x (B, T, C)."""
        x = x + self.attention(self.norm1(x), cache)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Tokens (B, T) to logits (B, T, V), or with targets (B, T) to the loss of each token, or their mean, without.

    ``GIVES_LOSSES`` tells a task to ask for the losses. ``compile`` does, so that the compiled code reaches to the loss
    and the softmax over V is fused; ``eager`` and ``sdpa`` leave it to the task.
    """

    BLOCK: type[nn.Module] = Block
    GIVES_LOSSES = False
    KEEPS_TYPE = False  # True: runs outside of autocast, on weights that are in the type to compute in

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(self.BLOCK(config, implementation) for _ in range(config.depth))
        self.norm = norm(config)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Config) -> None:
        """Scale matrices by 1/sqrt(fan in) and what is added to the stream by 1/sqrt(2 L), as GPT-2 does."""
        for name, parameter in self.named_parameters():
            if "bias" in name:
                parameter.zero_()
            elif parameter.ndim >= 2:
                residual = name.endswith(("out.weight", "down.weight", "down"))
                embedding = name.startswith(("tokens", "positions", "head"))
                fan_in = config.width if embedding else parameter.shape[-1]
                parameter.normal_(std=fan_in**-0.5 / (math.sqrt(2 * config.depth) if residual else 1))

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for ``capacity`` tokens of ``batch`` sequences, in the type computed in."""
        return KVCache(self.config, batch, capacity, self.tokens.weight)

    def embedded(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        """Return what the first block is given, (B, T, C): tokens (B, T), at the places after the cache's."""
        x: Tensor = self.tokens(tokens)
        if self.positions is None:
            return x
        start = 0 if cache is None else cache.length
        return x + self.positions.weight[start : start + tokens.size(1)]

    def layers(self, cache: KVCache | None) -> Iterator[tuple[nn.Module, LayerCache | None]]:
        """Yield each block with its part of the cache."""
        return zip(self.blocks, [None] * len(self.blocks) if cache is None else cache.layers, strict=True)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the last block's output, (B, T, C). What the cache holds came before ``tokens``."""
        x = self.embedded(tokens, cache)
        for block, layer in self.layers(cache):
            x = block(x, layer)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (B, T, V) of ``hidden``'s output (B, T, C)."""
        return self.head(self.norm(hidden))

    def losses(self, hidden: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Return the cross-entropy in nats of ``hidden``'s output (B, T, C) against targets (B, T)."""
        logits = self.logits(hidden).flatten(0, 1).float()
        each = F.cross_entropy(logits, targets.flatten(), reduction=reduction)
        return each.view(targets.shape) if reduction == "none" else each

    def forward(  # (B, T)
        self, tokens: Tensor, cache: KVCache | None = None, targets: Tensor | None = None, reduction: str = "none"
    ) -> Tensor:
        """Return logits (B, T, V), or the cross-entropy of ``targets`` in nats: of each place, (B, T), or the mean."""
        hidden = self.hidden(tokens, cache)
        return self.logits(hidden) if targets is None else self.losses(hidden, targets, reduction)


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use torch's.

    ``triton`` and ``fused`` use the fused kernels; ``fused`` keeps one dtype from the embedding to the loss.
    """
    if implementation == "triton":
        from scalebench.families.gpt_triton import FusedGPT  # triton is imported where it is asked for

        return FusedGPT(config, implementation)
    if implementation == "fused":
        from scalebench.families.gpt_fused import OneTypeGPT

        return OneTypeGPT(config, implementation)
    model = GPT(config, implementation)
    model.GIVES_LOSSES = implementation == "compile"
    return model
