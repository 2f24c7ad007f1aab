"""BERT: a bidirectional encoder for masked tokens and next-sentence prediction.

Legend: B batch, T time, C width, H heads, D = C / H, F hidden width, V vocabulary, L depth.

Post-norm blocks with GELU as published (Devlin et al. 2019), learned positions, two segments, a norm on the embeddings,
a pooler on [CLS]; the masked-token head is a layer of its own and the token embedding with a bias. No dropout.

The dial. ``config_for(params)`` solves N ~ 12 L C^2, without embedding tables and output bias: depth from the aspect
ratio of ``dial``, a width that is a multiple of the head dimension (16, 32, 64 or 128), and F ~ 4 C for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.data.text import Text
from scalebench.families.base import Counts, check_sequences
from scalebench.families.dial import HEADED_WIDTH_STEPS, Dial, heads_of
from scalebench.families.multihead import MultiHead, attention_flops, check_heads
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import MaskedPairs
from scalebench.tasks.masked import SPECIALS

SUMMARY = "bidirectional encoder: masked tokens and next sentence"
DATA = "stdlib"
TAKES = Text
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
CAPABILITIES = ("checkpointing", "filling")
parallelize = shard_blocks

NORM_EPS = 1e-12  # as published
_TABLES = ("token_embedding", "position_embedding", "segment_embedding", "output_bias")
HEADS = ("mlm_head", "output_bias", "nsp_head")


@dataclass(frozen=True)
class Config:
    """A BERT's shape; ``context`` is the longest sequence including special tokens."""

    depth: int
    width: int
    heads: int
    hidden: int
    vocab_size: int
    context: int

    def __post_init__(self) -> None:
        """Raise ``InputError`` unless the width is a multiple of the heads."""
        check_heads(self.width, self.heads)


# Devlin et al. 2019, section 3, with the vocabulary of the released uncased checkpoints.
SIZES = {
    "bert-base": Config(12, 768, 12, 3072, 30_522, 512),
    "bert-large": Config(24, 1024, 16, 4096, 30_522, 512),
}


def explicit(
    depth: int, width: int, *, vocab_size: int, context: int, heads: int | None = None, hidden: int | None = None
) -> Config:
    """Return the Config of a depth and width; heads default to the dial's rule, F to 4 C."""
    return Config(depth, width, heads or heads_of(width), hidden or 4 * width, vocab_size, context)


def _dial_size(config: Config) -> int:
    return count(config).non_embedding


DIAL = Dial("bert", explicit, _dial_size, 12, HEADED_WIDTH_STEPS, "the dial covers about 10,000 and more")


def config_for(params: float, **fixed: Any) -> Config:
    """Return the Config with ``params`` non-embedding parameters within 5 %, or raise ``InputError``.

    ``fixed`` may set any field of Config; vocab_size and context are required.
    """
    return DIAL.config_for(params, fixed)


def defaults(data: Text, sequence_length: int | None) -> dict[str, Any]:
    """Return the fields that the data determines: vocabulary with specials, and the sequence length as context."""
    return {"vocab_size": data.vocab_size + len(SPECIALS), "context": sequence_length}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.006 (N / 2e4)^(-1/2).

    Tuned on 300 steps of 1,024 bytes of Python source: of 0.005, 0.01 and 0.02 the two lower were as good at 2e4, of
    0.0025, 0.005 and 0.01 the lowest was best at 1.5e5; post-norm tolerates no more. The rule gives 1e-4 at 8.5e7,
    which is what Devlin et al. used for the base size.
    """
    return float(0.006 * (count(config).non_embedding / 2e4) ** -0.5)


def count(config: Config, sequence_length: int | None = None) -> Counts:
    """Count exactly. FLOPs of matrix products only, per sample of T tokens; the masked-token head runs on every token.

    ``non_embedding`` excludes the tables and the output bias; the groups outside ``HEADS`` are the published model.
    """
    c, length, square = config, sequence_length or config.context, config.width**2
    groups = {
        "token_embedding": c.vocab_size * c.width,
        "position_embedding": c.context * c.width,
        "segment_embedding": 2 * c.width,
        "attention": c.depth * 4 * (square + c.width),
        "mlp": c.depth * (2 * c.width * c.hidden + c.hidden + c.width),
        "norm": (2 * c.depth + 1) * 2 * c.width,
        "pooler": square + c.width,
        "mlm_head": square + c.width + 2 * c.width,
        "output_bias": c.vocab_size,
        "nsp_head": 2 * c.width + 2,
    }
    scores = c.depth * attention_flops(c.width, length, length)
    each = c.depth * (4 * square + 2 * c.width * c.hidden) + square + c.vocab_size * c.width
    # Saved for backward, per token: block inputs and norms, q k v and mixed values, MLP twice; both sides of the head.
    per_token = c.depth * (9 * c.width + 2 * c.hidden) + 6 * c.width + 2 * c.vocab_size
    total = sum(groups.values())
    return Counts(
        by_group=groups,
        non_embedding=total - sum(groups[name] for name in _TABLES),
        active=total,
        forward_flops=2 * length * each + 2 * (square + 2 * c.width) + scores,
        attention_flops=scores,
        activation_bytes=4 * length * per_token + 4 * c.depth * c.heads * length * length,
    )


def task(config: Config, data: Text, spec: DataSpec, train: Batching) -> MaskedPairs:
    """Return masked tokens and next sentence. Raises ``InputError`` if sequences or vocabulary exceed the model's."""
    assert train.sequence_length is not None
    check_sequences(data.vocab_size + len(SPECIALS), config.vocab_size, train.sequence_length, config.context)
    return MaskedPairs(
        data, train.sequence_length, train.batch_size, train.seed, spec.validation_fraction, spec.validation_samples
    )


# --- the module ------------------------------------------------------------------------------------------------------


def _norm(config: Config) -> nn.LayerNorm:
    return nn.LayerNorm(config.width, eps=NORM_EPS)


class EncoderBlock(nn.Module):
    """Post-norm residual block: attention, then MLP."""

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.attention = MultiHead(config.width, config.heads, implementation)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.norm1, self.norm2 = _norm(config), _norm(config)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C)
        """Return the block's output, (B, T, C)."""
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class BERT(nn.Module):
    """Tokens and segments (B, T) to logits of each token (B, T, V) and of the second passage following (B, 2)."""

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.segments = nn.Embedding(2, config.width)
        self.norm = _norm(config)
        self.blocks = nn.ModuleList(EncoderBlock(config, implementation) for _ in range(config.depth))
        self.pooler = nn.Linear(config.width, config.width)
        self.transform, self.transform_norm = nn.Linear(config.width, config.width), _norm(config)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.follows = nn.Linear(config.width, 2)
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Config) -> None:
        """Scale matrices by 1/sqrt(fan in), tables by 1/sqrt(C): 0.036 at C = 768, where the paper has 0.02."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                table = name.startswith(("tokens", "positions", "segments"))
                parameter.normal_(std=(config.width if table else parameter.shape[1]) ** -0.5)
            elif name.endswith("bias"):
                parameter.zero_()

    def encode(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """Return the last block's output (B, T, C) for tokens and segments (B, T)."""
        x = self.tokens(tokens) + self.segments(segments) + self.positions.weight[: tokens.size(1)]
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, tokens: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of every token (B, T, V), and of whether the second passage follows the first (B, 2)."""
        x = self.encode(tokens, segments)
        filled = self.transform_norm(F.gelu(self.transform(x)))
        follows = self.follows(torch.tanh(self.pooler(x[:, 0])))
        return F.linear(filled, self.tokens.weight, self.output_bias), follows


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator."""
    return BERT(config, implementation)
