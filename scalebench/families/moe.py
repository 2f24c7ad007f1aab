"""Mixture of experts: gpt with each MLP replaced by experts, of which a router picks ``top_k`` for every token.

Legend: B batch, T time, C width, E experts, k experts per token, F hidden width of one expert, L depth, n = B T tokens.

Routing. Router probabilities p = softmax(x W_r) are computed in float32 whatever the precision of the rest (Fedus,
Zoph & Shazeer 2022, section 2.4). The k largest are kept and, for k > 1, divided by their sum (Mixtral, Jiang et al.
2024); for k = 1 the probability itself is the gate (Switch), or the router would learn nothing from the loss. No token
is dropped: an expert takes as many as choose it.

Balance. In training the loss has ``balance_weight`` times E sum_e f_e P_e for each layer (Fedus et al., equation 4,
averaged over layers): f_e is the share of the n k choices that fell on expert e, P_e the mean of its probability. It is
1 when routing is even and E when all tokens choose one expert. Validation leaves it out.

The dial. ``at(params)`` means the parameters that one token passes through, without embeddings: depth and width are
those of a gpt of that size, and the hidden width of an expert takes up the rest, F ~ 4 C / k.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.data.corpus import Corpus
from scalebench.families import gpt
from scalebench.families.base import Counts, OutOfReach
from scalebench.families.cache import KVCache, LayerCache
from scalebench.families.causal import Attention, norm
from scalebench.families.dial import WIDTH_STEPS, dialled
from scalebench.study import Batching, DataSpec
from scalebench.tasks import BalancedNextToken

SUMMARY = "gpt with routed experts (top-k, load balancing, no token dropped)"
DATA = "stdlib"
TAKES = Corpus
SEQUENCES = True
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
OFFERS = ("checkpointing", "generation")


@dataclass(frozen=True)
class Config(gpt.Config):
    """A gpt's shape, ``hidden`` that of one expert, and the routing."""

    experts: int = 8
    top_k: int = 2
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        """Refuse to choose more experts than there are."""
        super().__post_init__()
        if self.top_k > self.experts:
            raise OutOfReach(f"top_k: {self.top_k} of {self.experts} experts; give at most experts = {self.experts}")


def _of(shape: gpt.Config, **routing: Any) -> Config:
    return Config(**asdict(shape), **routing)


# None: the published ones (Mixtral, DeepSeek) have gated experts and grouped queries, which this block has not.
SIZES: dict[str, Config] = {}
_ROUTING = ("experts", "top_k", "balance_weight")
# Finer than gpt's where small: k experts move together.
_HIDDEN_STEPS = {64: 1, 512: 4, 2048: 8, math.inf: 64}


def explicit(
    depth: int, width: int, *, vocab_size: int, context: int, hidden: int | None = None, **fields: Any
) -> Config:
    """Return the Config of a given depth and width; heads by gpt's rule, F = 4 C / k, unless given."""
    routing = {name: fields.pop(name) for name in _ROUTING if name in fields}
    hidden = hidden or max(1, round(4 * width / routing.get("top_k", Config.top_k)))
    shape = gpt.explicit(depth, width, hidden=hidden, vocab_size=vocab_size, context=context, **fields)
    return _of(shape, **routing)


def at(params: float, **held: Any) -> Config:
    """Return the Config with ``params`` active non-embedding parameters within 5 %, or raise ``OutOfReach``.

    ``held`` keeps any field of Config and must give vocab_size and context.
    """
    # Routers are small: the shape is gpt's, and the hidden width takes up what they need.
    return dialled(
        params,
        12,
        WIDTH_STEPS,
        explicit,
        lambda c: count(c).active_non_embedding,
        held,
        "the dial reaches within 5 % from about 10,000 up when no field is held",
        hiddens=_HIDDEN_STEPS,
        what="active non-embedding parameters",
    )


def defaults(data: Corpus, sequence_length: int | None) -> dict[str, Any]:
    """Return the fields that the data decides: its vocabulary, and a context as long as the sequences."""
    return gpt.defaults(data, sequence_length)


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: a gpt's of as many active parameters, 0.02 (N / 1e4)^(-1/3)."""
    return float(0.02 * (count(config).active_non_embedding / 1e4) ** (-1 / 3))


def count(config: Config, sequence_length: int | None = None) -> Counts:
    """Count exactly. FLOPs are those of the k experts a token chose and of the router; otherwise as gpt's.

    ``total`` holds every expert, ``active`` the k that one token passes through.
    """
    c, length = config, sequence_length or config.context
    dense, bias = gpt.count(c, sequence_length), int(c.bias)
    expert = 2 * c.width * c.hidden + bias * (c.hidden + c.width)
    rest = {name: size for name, size in dense.by_group.items() if name != "mlp"}
    groups = rest | {"router": c.depth * c.width * c.experts, "experts": c.depth * c.experts * expert}
    total = sum(groups.values())
    tables = sum(groups[name] for name in ("token_embedding", "position_embedding", "head"))
    router_flops = 2 * length * groups["router"]
    more_flops = 2 * length * c.depth * (c.top_k - 1) * 2 * c.width * c.hidden
    # Beside what one MLP keeps: k times its rows, gathered and weighted, and the router's probabilities.
    more_values = c.depth * ((c.top_k - 1) * 2 * c.hidden + 3 * c.top_k * c.width + 3 * c.experts)
    return Counts(
        by_group=groups,
        non_embedding=total - tables,
        active=total - c.depth * (c.experts - c.top_k) * expert,
        forward_flops=dense.forward_flops + router_flops + more_flops,
        attention_flops=dense.attention_flops,
        activation_bytes=dense.activation_bytes + 4 * length * more_values,
    )


def task(config: Config, data: Corpus, spec: DataSpec, train: Batching) -> BalancedNextToken:
    """Return next-token prediction with the balance loss in training. Raises ``OutOfReach`` as gpt's task does."""
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
        """Pass rows x (m, C) through one expert."""
        up, down = (self.biases[0][index], self.biases[1][index]) if len(self.biases) else (None, None)
        hidden = F.gelu(F.linear(x, self.up[index], up), approximate="tanh")
        return F.linear(hidden, self.down[index], down)

    def forward(self, x: Tensor, gates: Tensor, chosen: Tensor) -> Tensor:
        """Mix the chosen experts: x (n, C), gates and chosen (n, k), to (n, C).

        Rows are sorted by expert, so that each expert is two matrix products over its own; the counts are read once.
        """
        order = chosen.flatten().argsort(stable=True)  # of the n k choices
        sizes = torch.bincount(chosen.flatten(), minlength=self.up.size(0)).tolist()
        token = order // chosen.size(1)
        parts = x[token].split(sizes)
        mixed = torch.cat([self.expert(index, rows) for index, rows in enumerate(parts)])
        weighted = mixed * gates.flatten()[order, None].to(mixed.dtype)
        return torch.zeros_like(x, dtype=mixed.dtype).index_add(0, token, weighted)


class Block(nn.Module):
    """Attention, then routed experts, each added to what it was given."""

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(config), norm(config)
        self.attention = Attention(config, implementation)
        self.router = nn.Linear(config.width, config.experts, bias=False)
        self.experts = Experts(config)
        self.top_k = config.top_k

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> tuple[Tensor, Tensor]:  # (B, T, C)
        """Refine x (B, T, C); the balance loss comes beside it."""
        x = x + self.attention(self.norm1(x), cache)
        rows = self.norm2(x).flatten(0, 1)  # (n, C)
        with torch.autocast(rows.device.type, enabled=False):
            wide = torch.promote_types(rows.dtype, torch.float32)
            logits = F.linear(rows.to(wide), self.router.weight.to(wide))
        gates, chosen, balance = route(logits, self.top_k)
        return x + self.experts(rows, gates, chosen).view_as(x), balance


class MoE(gpt.GPT):
    """Tokens (B, T) to logits (B, T, V); in training, the balance loss averaged over layers beside them."""

    BLOCK = Block

    def forward(  # type: ignore[override]  # losses are the task's: this one adds the balance
        self, tokens: Tensor, cache: KVCache | None = None
    ) -> Any:  # (B, T)
        """Predict the token after each place. What the cache holds came before ``tokens``."""
        x, balances = self.embedded(tokens, cache), []
        for block, layer in self.layers(cache):
            x, balance = block(x, layer)
            balances.append(balance)
        logits = self.head(self.norm(x))
        return (logits, torch.stack(balances).mean()) if self.training else logits


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use torch's fused operator."""
    return MoE(config, implementation)
