"""Multi-head attention of one sequence to another, or to itself, for families whose heads share the width exactly.

Legend: B batch, T queries, S keys and values, C width, H heads, D = C / H head dimension.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.base import OutOfReach


def eager_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention written out: q (B, H, T, D), k and v (B, H, S, D) to (B, H, T, D), scores held as (B, H, T, S)."""
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if causal:
        future = torch.ones(q.size(-2), k.size(-2), dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return scores.softmax(dim=-1) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Attention by torch's fused operator, shapes as in ``eager_attention``."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class MultiHead(nn.Module):
    """Attention with H heads between two projections; ``eager`` writes it out, other implementations fuse it."""

    def __init__(self, width: int, heads: int, implementation: str, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.attend = eager_attention if implementation == "eager" else sdpa_attention

    def forward(self, x: Tensor, memory: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Let x (B, T, C) look at ``memory`` (B, S, C), itself unless given, giving (B, T, C)."""
        q = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        pair = self.key_value(x if memory is None else memory).unflatten(2, (2, self.heads, -1))
        k, v = pair.permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v, causal).transpose(1, 2).flatten(2))


def check_heads(width: int, heads: int) -> None:
    """Raise ``OutOfReach`` unless the heads share the width evenly."""
    if width % heads:
        raise OutOfReach(f"width: {width} features cannot be shared by heads = {heads}; give a multiple of {heads}")


def attention_flops(width: int, queries: int, keys: int, *, causal: bool = False) -> int:
    """FLOPs of scores and mixing of one sample, 4 T S C, halved where causal."""
    return 4 * queries * keys * width // (2 if causal else 1)
