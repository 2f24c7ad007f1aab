"""Mixture of experts: gpt with each MLP replaced by experts; a router picks ``top_k`` of them for every token.

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
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.data.corpus import Corpus
from scalebench.errors import InputError
from scalebench.families import gpt
from scalebench.families.base import Counts
from scalebench.families.cache import KVCache, LayerCache
from scalebench.families.decoder import GPT, CausalAttention, norm
from scalebench.families.decoder import Config as DecoderConfig
from scalebench.families.dial import WIDTH_STEPS, Dial
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import BalancedNextToken

SUMMARY = "gpt with routed experts (top-k, load balancing, no token dropped)"
DATA = "stdlib"
TAKES = Corpus
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
CAPABILITIES = ("checkpointing", "generation")
parallelize = shard_blocks


@dataclass(frozen=True)
class Config(DecoderConfig):
    """Shape of a decoder, with ``hidden`` the hidden width of one expert, and the routing."""

    experts: int = 8
    top_k: int = 2
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        """Raise ``InputError`` for a top_k above the number of experts."""
        super().__post_init__()
        if self.top_k > self.experts:
            raise InputError(f"top_k: must be at most experts = {self.experts} (given {self.top_k})")


def _with_routing(shape: DecoderConfig, **routing: Any) -> Config:
    return Config(**asdict(shape), **routing)


# None: published models (Mixtral, DeepSeek) have gated experts and grouped queries, which this block lacks.
SIZES: dict[str, Config] = {}
_ROUTING = ("experts", "top_k", "balance_weight")
# Finer than gpt's for small models: the step applies to k experts at once.
_HIDDEN_STEPS = {64: 1, 512: 4, 2048: 8, math.inf: 64}


def explicit(
    depth: int, width: int, *, vocab_size: int, context: int, hidden: int | None = None, **fields: Any
) -> Config:
    """Return the Config of a depth and width; heads default to gpt's rule, F to 4 C / k."""
    routing = {name: fields.pop(name) for name in _ROUTING if name in fields}
    hidden = hidden or max(1, round(4 * width / routing.get("top_k", Config.top_k)))
    shape = gpt.explicit(depth, width, hidden=hidden, vocab_size=vocab_size, context=context, **fields)
    return _with_routing(shape, **routing)


def _dial_size(config: Config) -> int:
    return count(config).active_non_embedding


# Routers are small: depth and width are gpt's, and the hidden width makes room for them.
DIAL = Dial(
    "moe",
    explicit,
    _dial_size,
    12,
    WIDTH_STEPS,
    "the dial covers about 10,000 and more when no other field is given",
    hiddens=_HIDDEN_STEPS,
    what="active non-embedding parameters",
)


def config_for(params: float, **fixed: Any) -> Config:
    """Return the Config with ``params`` active non-embedding parameters within 5 %, or raise ``InputError``.

    ``fixed`` may set any field of Config; vocab_size and context are required.
    """
    return DIAL.config_for(params, fixed)


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
    extra_flops = 2 * length * c.depth * (c.top_k - 1) * 2 * c.width * c.hidden
    # In addition to one MLP's values: k times its rows, gathered and weighted, and the router's probabilities.
    extra_values = c.depth * ((c.top_k - 1) * 2 * c.hidden + 3 * c.top_k * c.width + 3 * c.experts)
    return Counts(
        by_group=groups,
        non_embedding=total - tables,
        active=total - c.depth * (c.experts - c.top_k) * expert,
        forward_flops=dense.forward_flops + router_flops + extra_flops,
        attention_flops=dense.attention_flops,
        activation_bytes=dense.activation_bytes + 4 * length * extra_values,
    )


def task(config: Config, data: Corpus, spec: DataSpec, train: Batching) -> BalancedNextToken:
    """Return next-token prediction with the balance loss in training. Raises ``InputError`` as gpt's task does."""
    plain = gpt.task(config, data, spec, train)
    return BalancedNextToken(
        **{field.name: getattr(plain, field.name) for field in fields(plain)}, balance_weight=config.balance_weight
    )


# --- the module ------------------------------------------------------------------------------------------------------


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turn router logits (n, E) into gates (n, k), the experts chosen (n, k) and the balance loss, a scalar."""
    experts = logits.size(1)
    probabilities = logits.softmax(dim=1)
    gates, chosen = probabilities.topk(top_k, dim=1)
    if top_k > 1:
        gates = gates / gates.sum(dim=1, keepdim=True)
    shares = F.one_hot(chosen, experts).to(logits.dtype).mean(dim=(0, 1))  # f, (E,)
    return gates, chosen, experts * (shares * probabilities.mean(dim=0)).sum()


class Experts(nn.Module):
    """E two-layer networks, their weights stacked: up (E, F, C) and down (E, C, F)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.empty(config.experts, config.hidden, config.width))
        self.down = nn.Parameter(torch.empty(config.experts, config.width, config.hidden))
        biases = (config.hidden, config.width) if config.bias else ()
        self.biases = nn.ParameterList(torch.zeros(config.experts, size) for size in biases)

    def expert(self, index: int, x: Tensor) -> Tensor:
        """Apply one expert to rows x (m, C)."""
        up, down = (self.biases[0][index], self.biases[1][index]) if len(self.biases) else (None, None)
        hidden = F.gelu(F.linear(x, self.up[index], up), approximate="tanh")
        return F.linear(hidden, self.down[index], down)

    def forward(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """Return the weighted sum of the chosen experts' outputs (n, C), for x (n, C), gates and chosen (n, k).

        Rows are sorted by expert, so that each expert takes two matrix products; row counts are read once.
        """
        order = chosen.flatten().argsort(stable=True)  # of the n k choices
        sizes = torch.bincount(chosen.flatten(), minlength=self.up.size(0)).tolist()
        token = order // chosen.size(1)
        parts = x[token].split(sizes)
        mixed = torch.cat([self.expert(index, rows) for index, rows in enumerate(parts)])
        weighted = mixed * gates.flatten()[order, None].to(mixed.dtype)
        return torch.zeros_like(x, dtype=mixed.dtype).index_add(0, token, weighted)


class MoEBlock(nn.Module):
    """Pre-norm residual block: attention, then routed experts."""

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(config), norm(config)
        self.attention = CausalAttention(config, implementation)
        self.router = nn.Linear(config.width, config.experts, bias=False)
        self.experts = Experts(config)
        self.top_k = config.top_k

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> tuple[Tensor, Tensor]:  # (B, T, C)
        """Return the block's output (B, T, C) and the balance loss, a scalar."""
        x = x + self.attention(self.norm1(x), cache)
        rows = self.norm2(x).flatten(0, 1)  # (n, C)
        with torch.autocast(rows.device.type, enabled=False):
            dtype = torch.promote_types(rows.dtype, torch.float32)
            logits = F.linear(rows.to(dtype), self.router.weight.to(dtype))
        gates, chosen, balance = route(logits, self.top_k)
        return x + self.experts(rows, gates, chosen).view_as(x), balance


class MoE(GPT):
    """Tokens (B, T) to logits (B, T, V); in training mode also the balance loss, averaged over layers."""

    BLOCK = MoEBlock

    def forward(  # type: ignore[override]  # the task computes the cross-entropy: it adds the balance loss
        self, tokens: Tensor, cache: KVCache | None = None
    ) -> Any:  # (B, T)
        """Return logits (B, T, V), in training with the balance loss; ``tokens`` follow those in the cache."""
        x, balances = self.embedded(tokens, cache), []
        for block, layer in self.layers(cache):
            x, balance = block(x, layer)
            balances.append(balance)
        logits = self.head(self.norm(x))
        return (logits, torch.stack(balances).mean()) if self.training else logits


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator."""
    return MoE(config, implementation)
