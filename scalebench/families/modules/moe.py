"""The module of ``families.moe``: routing, experts, block and model.

Legend: B batch, T time, C width, E experts, k experts per token, F hidden width of one expert, n = B T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.cache import KVCache, LayerCache
from scalebench.families.modules.decoder import GPT, CausalAttention, norm

if TYPE_CHECKING:
    from scalebench.families.moe import Config


def route(logits: Tensor, experts_per_token: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turn router logits (n, E) into gates (n, k), the experts chosen (n, k) and the balance loss, a scalar."""
    experts = logits.size(1)
    probabilities = logits.softmax(dim=1)
    gates, chosen = probabilities.topk(experts_per_token, dim=1)
    if experts_per_token > 1:
        gates = gates / gates.sum(dim=1, keepdim=True)
    shares = F.one_hot(chosen, experts).to(logits.dtype).mean(dim=(0, 1))  # f, (E,)
    return gates, chosen, experts * (shares * probabilities.mean(dim=0)).sum()


class Experts(nn.Module):
    """E two-layer networks, their weights stacked: up (E, F, C) and down (E, C, F)."""

    STACKS = ("up", "down")

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
        self.experts_per_token = config.experts_per_token

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> tuple[Tensor, Tensor]:  # (B, T, C)
        """Return the block's output (B, T, C) and the balance loss, a scalar."""
        x = x + self.attention(self.norm1(x), cache)
        rows = self.norm2(x).flatten(0, 1)  # (n, C)
        with torch.autocast(rows.device.type, enabled=False):
            dtype = torch.promote_types(rows.dtype, torch.float32)
            logits = F.linear(rows.to(dtype), self.router.weight.to(dtype))
        gates, chosen, balance = route(logits, self.experts_per_token)
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
