"""BERT: a bidirectional encoder for masked tokens and next-sentence prediction.

Legend: B batch, T time, C width, H heads, D = C / H, F hidden width, V vocabulary, L depth.

Post-norm blocks with GELU as published (Devlin et al. 2019), learned positions, two segments, a norm on the embeddings,
a pooler on [CLS]; the masked-token head is one extra layer and the token embedding with a bias. No dropout.

The dial. ``config_for(params)`` solves N ~ 12 L C^2, without embedding tables and output bias: depth from the aspect
ratio of ``dial``, a width that is a multiple of the head dimension (16, 32, 64 or 128), and F ~ 4 C for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalebench.data.text import Text
from scalebench.families.base import Counts, check_sequences
from scalebench.families.dial import HEADED_WIDTH_STEPS, Dial, heads_of
from scalebench.families.multihead import attention_flops, check_heads
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import MaskedPairs
from scalebench.tasks.masked import SPECIALS

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "bidirectional encoder: masked tokens and next sentence"
DATA = "stdlib"
TAKES = Text
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
CAPABILITIES = ("checkpointing", "filling", "fewer_hidden", "fewer_layers", "ensembles")
parallelize = shard_blocks

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


DIAL = Dial(
    "bert",
    explicit,
    lambda config: count(config).non_embedding,
    12,
    HEADED_WIDTH_STEPS,
    "sizes from about 10,000 are possible",
)
config_for = DIAL.config_for


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
        score_bytes=4 * c.depth * c.heads * length * length,
        output_bytes=8 * length * c.vocab_size,
    )


def task(config: Config, data: Text, spec: DataSpec, train: Batching) -> MaskedPairs:
    """Return masked tokens and next sentence. Raises ``InputError`` if sequences or vocabulary exceed the model's."""
    assert train.sequence_length is not None
    check_sequences(data.vocab_size + len(SPECIALS), config.vocab_size, train.sequence_length, config.context)
    return MaskedPairs(
        data, train.sequence_length, train.batch_size, train.seed, spec.validation_fraction, spec.validation_samples
    )


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator."""
    from scalebench.families.modules.bert import BERT  # imports torch

    return BERT(config, implementation)
