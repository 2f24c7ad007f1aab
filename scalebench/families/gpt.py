"""GPT: a decoder language model, in GPT-2's form for the published sizes and a modern form for the dial.

Legend: B batch, T time, C width, H heads, D head dimension, F hidden width of the MLP, V vocabulary, L depth.

The dial. ``config_for(params)`` sets everything from one number, the non-embedding parameters N ~ 12 L C^2:

1. aspect ratio C/L = 32 (N/1e5)^0.1, which passes through GPT-2 small (64 at 8.5e7) and GPT-3 (128 at 1.7e11);
2. depth L = (N / 12 aspect^2)^(1/3), at least 2: with one layer attention cannot compose;
3. width C = sqrt(N / 12 L), a multiple of 4 (of 8 from 64 up, of 64 from 512 up);
4. heads of dimension 16, 32, 64 or 128 as the width grows, H D ~ C: dimensions that the kernels support;
5. hidden width F ~ 4 C makes up for the rounding, a multiple of 2 (of 8 from 256 up, of 64 from 2048 up), so that N is
   within 5 % of the request, and a request 10 % larger never gives a smaller model.

The modern block has RMSNorm, rotary positions and no biases. ``depth``, ``width`` or any other field may be fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scalebench.data.corpus import Corpus
from scalebench.families.base import Counts, check_sequences
from scalebench.families.decoder import Config as Config  # noqa: PLC0414 - the family exports it
from scalebench.families.dial import WIDTH_STEPS, Dial
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import NextToken

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "decoder language model (GPT-2 form, or RMSNorm + rotary positions)"
DATA = "stdlib"
TAKES = Corpus
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile", "triton", "fused")
CAPABILITIES = ("checkpointing", "generation", "batching", "fewer_heads", "fewer_hidden", "fewer_layers", "ensembles")
parallelize = shard_blocks


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
    """Return the modern Config of a depth and width; heads and hidden width default to the dial's rules."""
    if head_dim is None:
        head_dim = next((size for limit, size in ((128, 16), (384, 32), (2048, 64)) if width < limit), 128)
    heads = heads or max(1, round(width / head_dim))
    return Config(depth, width, heads, head_dim, hidden or 4 * width, vocab_size, context, **fields)


DIAL = Dial(
    "gpt",
    explicit,
    lambda config: count(config).non_embedding,
    12,
    WIDTH_STEPS,
    "sizes from about 1,500 are possible when no other field is given",
)
config_for = DIAL.config_for


def defaults(data: Corpus, sequence_length: int | None) -> dict[str, Any]:
    """Return the fields that the data determines: its vocabulary size, and the sequence length as context."""
    return {"vocab_size": data.vocab_size, "context": sequence_length}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.02 (N / 1e4)^(-1/3).

    The exponent is OLMo's model ladder's (Bhagia et al. 2024). The constant was tuned on 500 steps of 2,048 bytes of
    Python source: the optimum on a factor-two grid was 0.03 to 0.05, 0.02 to 0.03 and 0.008 for 1.5e3, 1.2e4 and 9.6e4.
    """
    return float(0.02 * (count(config).non_embedding / 1e4) ** (-1 / 3))


def count(config: Config, sequence_length: int | None = None) -> Counts:
    """Count exactly. FLOPs of matrix products only, attention halved because it is causal, per sample of T tokens.

    ``non_embedding`` excludes token and position embeddings and the output matrix (Kaplan et al. 2020).
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
    # Saved for backward, per token: block inputs and norms, q k v and their rotation, mixed values, MLP twice, logits.
    per_token = c.depth * (6 * c.width + 8 * c.inner + 2 * c.hidden) + 3 * c.vocab_size + 4 * c.width
    total = sum(groups.values())
    return Counts(
        by_group=groups,
        non_embedding=groups["attention"] + groups["mlp"] + groups["norm"],
        active=total,
        forward_flops=2 * length * matrices + attention_flops,
        attention_flops=attention_flops,
        activation_bytes=4 * length * per_token + 4 * c.depth * c.heads * length * length,
        score_bytes=4 * c.depth * c.heads * length * length,
        output_bytes=12 * length * c.vocab_size,
    )


def task(config: Config, data: Corpus, spec: DataSpec, train: Batching) -> NextToken:
    """Return next-token prediction. Raises ``InputError`` if sequences or vocabulary exceed the model's."""
    assert train.sequence_length is not None
    check_sequences(data.vocab_size, config.vocab_size, train.sequence_length, config.context)
    return NextToken(
        data, train.sequence_length, train.batch_size, train.seed, spec.validation_fraction, spec.validation_samples
    )


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator.

    ``triton`` and ``fused`` use the fused kernels; ``fused`` keeps one dtype from the embedding to the loss.
    """
    if implementation == "triton":
        from scalebench.families.modules.gpt_triton import FusedGPT  # imports triton

        return FusedGPT(config, implementation)
    if implementation == "fused":
        from scalebench.families.modules.gpt_fused import OneTypeGPT

        return OneTypeGPT(config, implementation)
    from scalebench.families.modules.decoder import GPT

    model = GPT(config, implementation)
    model.GIVES_LOSSES = implementation == "compile"
    return model
