"""What a decoder keeps of the tokens it has read, so that each new one costs a single position: keys and values."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F


class Attends(Protocol):
    """The part of a family's Config that decides the size of its cache."""

    @property
    def depth(self) -> int:
        """Layers."""

    @property
    def heads(self) -> int:
        """Heads of a layer."""

    @property
    def head_dim(self) -> int:
        """Features of a head."""


def cache_bytes(config: Attends, batch: int, tokens: int, element_bytes: int) -> int:
    """Return what keys and values of ``tokens`` positions take: 2 L H D T B elements."""
    return 2 * config.depth * config.heads * config.head_dim * tokens * batch * element_bytes


class LayerCache:
    """Keys and values (B, H, capacity, D) of one layer, of which the first ``length`` positions are filled."""

    def __init__(self, like: Tensor, batch: int, heads: int, capacity: int, head_dim: int) -> None:
        self.keys, self.values = (like.new_empty(batch, heads, capacity, head_dim) for _ in range(2))
        self.length = 0

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, T, D) and return all there are, (B, H, length, D)."""
        end = self.length + keys.size(2)
        if end > self.keys.size(2):
            raise ValueError(f"{end} tokens outgrow a cache for {self.keys.size(2)}")
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = keys, values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """The caches of all layers. Memory for ``capacity`` tokens is taken at once."""

    def __init__(self, config: Attends, batch: int, capacity: int, like: Tensor) -> None:
        shape = (batch, config.heads, capacity, config.head_dim)
        self.layers = [LayerCache(like, *shape) for _ in range(config.depth)]

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for layer in self.layers for tensor in (layer.keys, layer.values))

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.layers[0].length

    def select(self, rows: Tensor) -> None:
        """Go on with these rows of the batch, (B',), in this order; a row may come more than once."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)


def seen_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """Return which keys (Tq, Tk) each query sees when the last query is the last key: those not in its future."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def sdpa_over_cache(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend by torch's fused operator from queries (B, H, Tq, D) that are the last of the keys; one sees them all."""
    mask = None if q.size(-2) == 1 else seen_mask(q.size(-2), k.size(-2), q.device)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
