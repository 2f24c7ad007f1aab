"""Attention that several families share: the operator, and a multi-head layer.

Legend: B batch, T queries, S keys and values, C width, H heads, D = C / H head dimension.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Attend(Protocol):
    """Attention: q (B, H, T, D), k and v (B, H, S, D) to (B, H, T, D)."""

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, causal: bool, seen: Tensor | None = None) -> Tensor:
        """Attend from each query to the keys up to its position (``causal``), or to those in ``seen`` (B, 1, T, S)."""
        ...


def attention_by(implementation: str) -> Attend:
    """Return attention for an implementation: ``eager`` is written out, all others use PyTorch's fused operator."""
    return eager_attention if implementation == "eager" else sdpa_attention


def eager_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, seen: Tensor | None = None) -> Tensor:
    """Attention written out: q (B, H, T, D), k and v (B, H, S, D) to (B, H, T, D), with all scores (B, H, T, S).

    Causal masks are aligned at the end: the last query is at the position of the last key. Where the sequences of a
    batch differ, ``seen`` (B, 1, T, S) has the keys of each query instead.
    """
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
    if causal and seen is None:
        seen = causal_mask(q.size(-2), k.size(-2), q.device)
    if seen is not None:
        scores = scores.masked_fill(~seen, -torch.inf)
    return scores.softmax(dim=-1) @ v


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, seen: Tensor | None = None) -> Tensor:
    """Attention by ``scaled_dot_product_attention``; arguments and result as in ``eager_attention``."""
    if seen is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    queries, keys = q.size(-2), k.size(-2)
    if not causal or queries == keys:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    # is_causal would align the mask at the start. A single query at the end sees every key.
    mask = None if queries == 1 else causal_mask(queries, keys, q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return which keys each query sees, (T, S), when the last query is at the position of the last key."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class MultiHead(nn.Module):
    """Multi-head attention with query, key/value and output projections."""

    def __init__(self, width: int, heads: int, implementation: str, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key_value = nn.Linear(width, 2 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)
        self.attend = attention_by(implementation)

    def forward(self, x: Tensor, memory: Tensor | None = None, *, causal: bool = False) -> Tensor:
        """Attend from x (B, T, C) to ``memory`` (B, S, C), or to x itself; returns (B, T, C)."""
        q = self.query(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        pair = self.key_value(x if memory is None else memory).unflatten(2, (2, self.heads, -1))
        k, v = pair.permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v, causal).transpose(1, 2).flatten(2))
