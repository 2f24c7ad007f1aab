"""Encoder-decoder transformer: the body of ``torch.nn.Transformer``, without dropout, between shared embeddings.

Legend: B batch, T source tokens, S answer tokens, C width, H heads, D = C / H, F hidden width, L layers on either side.

Sources, answers and outputs share one embedding (Vaswani et al. 2017, section 3.4), scaled by sqrt(C); positions are
sinusoids. ``norm_first`` puts norms before each sublayer (pre-norm, the default: it trains without a long warm-up) or
after it (post-norm, as published); encoder and decoder both end in a norm, as torch's do. The MLP uses ReLU.

The dial. ``config_for(params)`` solves N ~ 28 L C^2 non-embedding parameters: depth from the aspect ratio of ``dial``,
a width that is a multiple of the head dimension (16, 32, 64 or 128), and F ~ 4 C for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalebench.data.transduction import Transduction
from scalebench.errors import InputError
from scalebench.families.base import Counts, check_sequences
from scalebench.families.dial import HEADED_WIDTH_STEPS, Dial, heads_of
from scalebench.families.multihead import attention_flops, check_heads
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import Transduce

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "encoder-decoder transformer on sequences with an exact answer"
DATA = "transduction:reversal"
TAKES = Transduction
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
CAPABILITIES: tuple[str, ...] = ("ensembles",)
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


DIAL = Dial(
    "transformer",
    explicit,
    lambda config: count(config).non_embedding,
    28,
    HEADED_WIDTH_STEPS,
    "sizes from about 10,000 are possible",
)
config_for = DIAL.config_for


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
        score_bytes=4 * probabilities,
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


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator."""
    from scalebench.families.modules.transformer import Transformer  # imports torch

    return Transformer(config, implementation)
