"""Mixture of experts: gpt with each MLP replaced by experts, of which a router picks ``experts_per_token``.

Legend: B batch, T time, C width, E experts, k experts per token, F hidden width of one expert, L depth, n = B T tokens.

Routing. Router probabilities p = softmax(x W_r) are computed in float32 whatever the precision of the rest (Fedus,
Zoph & Shazeer 2022, section 2.4). The k largest are kept and, for k > 1, divided by their sum (Mixtral, Jiang et al.
2024); for k = 1 the probability itself is the gate (Switch), since otherwise the loss has no gradient for the router.
No token is dropped: experts have unlimited capacity.

Balance. In training the loss has ``balance_weight`` times E sum_e f_e P_e for each layer (Fedus et al., equation 4,
averaged over layers): f_e is the share of the n k choices of expert e, P_e its mean probability. The sum is 1 when
routing is even and E when all tokens choose one expert. The validation loss excludes it.

The dial. ``config_for(params)`` means active parameters (those used for one token), without embeddings: depth and width
are those of a gpt of that size, and the hidden width of an expert makes up the rest, F ~ 4 C / k.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from scalebench.data.corpus import Corpus
from scalebench.errors import InputError
from scalebench.families import gpt
from scalebench.families.base import Counts
from scalebench.families.decoder import Config as DecoderConfig
from scalebench.families.dial import WIDTH_STEPS, Dial
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import BalancedNextToken

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "gpt with routed experts (top-k, load balancing, no token dropped)"
DATA = "stdlib"
TAKES = Corpus
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
CAPABILITIES = ("checkpointing", "generation", "batching", "fewer_heads", "fewer_layers")
parallelize = shard_blocks


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Shape of a decoder, with ``hidden`` the hidden width of one expert, and the routing."""

    experts: int = 8
    experts_per_token: int = 2
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        """Raise ``InputError`` for more experts per token than there are."""
        super().__post_init__()
        if self.experts_per_token > self.experts:
            raise InputError(
                f"experts_per_token: must be at most experts = {self.experts} (given {self.experts_per_token})"
            )


def _with_routing(shape: DecoderConfig, **routing: Any) -> Config:
    return Config(**asdict(shape), **routing)


# None: published models (Mixtral, DeepSeek) have gated experts and grouped queries, which this block lacks.
SIZES: dict[str, Config] = {}
_ROUTING = ("experts", "experts_per_token", "balance_weight")
# Finer than gpt's for small models: the step applies to k experts at once.
_HIDDEN_STEPS = {64: 1, 512: 4, 2048: 8, math.inf: 64}


def explicit(
    depth: int, width: int, *, vocab_size: int, context: int, hidden: int | None = None, **fields: Any
) -> Config:
    """Return the Config of a depth and width; heads default to gpt's rule, F to 4 C / k."""
    routing = {name: fields.pop(name) for name in _ROUTING if name in fields}
    hidden = hidden or max(1, round(4 * width / routing.get("experts_per_token", Config.experts_per_token)))
    shape = gpt.explicit(depth, width, hidden=hidden, vocab_size=vocab_size, context=context, **fields)
    return _with_routing(shape, **routing)


# Routers are small: depth and width are gpt's, and the hidden width makes room for them.
DIAL = Dial(
    "moe",
    explicit,
    lambda config: count(config).active_non_embedding,
    12,
    WIDTH_STEPS,
    "sizes from about 10,000 are possible when no other field is given",
    hiddens=_HIDDEN_STEPS,
    counted="active non-embedding parameters",
)
config_for = DIAL.config_for


def defaults(data: Corpus, sequence_length: int | None) -> dict[str, Any]:
    """Return the fields that the data determines, as for gpt."""
    return gpt.defaults(data, sequence_length)


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: that of a gpt with as many active parameters, 0.02 (N / 1e4)^(-1/3)."""
    return float(0.02 * (count(config).active_non_embedding / 1e4) ** (-1 / 3))


def count(config: Config, sequence_length: int | None = None) -> Counts:
    """Count exactly, as gpt does. FLOPs include the router and the k experts of each token.

    ``total`` includes every expert, ``active`` the k that process one token.
    """
    c, length = config, sequence_length or config.context
    dense, bias = gpt.count(c, sequence_length), int(c.bias)
    expert = 2 * c.width * c.hidden + bias * (c.hidden + c.width)
    rest = {name: size for name, size in dense.by_group.items() if name != "mlp"}
    groups = rest | {"router": c.depth * c.width * c.experts, "experts": c.depth * c.experts * expert}
    total = sum(groups.values())
    tables = sum(groups[name] for name in ("token_embedding", "position_embedding", "head"))
    router_flops = 2 * length * groups["router"]
    extra_flops = 2 * length * c.depth * (c.experts_per_token - 1) * 2 * c.width * c.hidden
    # In addition to one MLP's values: k times its rows, gathered and weighted, and the router's probabilities.
    extra_values = c.depth * (
        (c.experts_per_token - 1) * 2 * c.hidden + 3 * c.experts_per_token * c.width + 3 * c.experts
    )
    return Counts(
        by_group=groups,
        non_embedding=total - tables,
        active=total - c.depth * (c.experts - c.experts_per_token) * expert,
        forward_flops=dense.forward_flops + router_flops + extra_flops,
        attention_flops=dense.attention_flops,
        activation_bytes=dense.activation_bytes + 4 * length * extra_values,
        score_bytes=dense.score_bytes,
        output_bytes=dense.output_bytes,
    )


def task(config: Config, data: Corpus, spec: DataSpec, train: Batching) -> BalancedNextToken:
    """Return next-token prediction with the balance loss in training. Raises ``InputError`` as gpt's task does."""
    plain = gpt.task(config, data, spec, train)
    return BalancedNextToken(
        **{field.name: getattr(plain, field.name) for field in fields(plain)}, balance_weight=config.balance_weight
    )


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator."""
    from scalebench.families.modules.moe import MoE  # imports torch

    return MoE(config, implementation)
