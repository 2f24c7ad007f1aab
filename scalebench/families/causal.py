"""Causal self-attention with a cache and rotary positions: what gpt and moe share.

Legend: B batch, T time, C width, H heads, D head dimension.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.cache import LayerCache, sdpa_over_cache, seen_mask


class Shape(Protocol):
    """What of a Config decides its attention and its norms."""

    @property
    def width(self) -> int:
        """C."""

    @property
    def heads(self) -> int:
        """H."""

    @property
    def head_dim(self) -> int:
        """D."""

    @property
    def inner(self) -> int:
        """H D."""

    @property
    def context(self) -> int:
        """The longest T."""

    @property
    def norm(self) -> str:
        """rms or layer."""

    @property
    def positions(self) -> str:
        """rotary or learned."""

    @property
    def bias(self) -> bool:
        """Whether linear layers have one."""


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021): turn pairs of features by an angle that grows with position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, context: int) -> None:
        super().__init__()
        frequency = 10_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
        angle = torch.arange(context)[:, None] * frequency  # (T, D/2)
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angle.sin().repeat(1, 2), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:  # (B, H, T, D)
        """Turn x (B, H, T, D), whose first position is ``start``."""
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
        places = slice(start, start + x.size(-2))
        return x * self.cos[places] + turned * self.sin[places]


def eager_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention written out: q, k, v (B, H, T, D) to (B, H, T, D), scores held as (B, H, T, T).

    Fewer queries than keys are the last ones.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    seen = seen_mask(q.size(-2), k.size(-2), q.device)
    return scores.masked_fill(~seen, -torch.inf).softmax(dim=-1) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention by torch's fused operator, shapes as in ``eager_attention``."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


class Attention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(self, config: Shape, implementation: str) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = nn.Linear(config.width, 3 * config.inner, bias=config.bias)
        self.out = nn.Linear(config.inner, config.width, bias=config.bias)
        self.rotary = Rotary(config.head_dim, config.context) if config.positions == "rotary" else None
        self.attend = eager_attention if implementation == "eager" else sdpa_attention
        self.attend_cached = eager_attention if implementation == "eager" else sdpa_over_cache

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:  # (B, T, C)
        """Mix x (B, T, C) over time, and with what the cache holds of earlier times."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        start = 0 if cache is None else cache.length
        if self.rotary is not None:
            q, k = self.rotary(q, start), self.rotary(k, start)
        if cache is not None:
            k, v = cache.extend(k, v)
        mixed = (self.attend_cached if start else self.attend)(q, k, v)  # (B, H, T, D)
        return self.out(mixed.transpose(1, 2).flatten(2))


def norm(config: Shape) -> nn.Module:
    """Return the norm that a Config names, over its width."""
    return nn.LayerNorm(config.width) if config.norm == "layer" else nn.RMSNorm(config.width, eps=1e-6)
