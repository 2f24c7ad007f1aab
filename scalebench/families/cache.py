"""Keys and values of the tokens a decoder has processed, so that each new token costs a single position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


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
    """Return the bytes of keys and values of ``tokens`` positions: 2 L H D T B elements."""
    return 2 * config.depth * config.heads * config.head_dim * tokens * batch * element_bytes


class LayerCache:
    """Keys and values (B, H, capacity, D) of one layer, of which the first ``length`` positions are filled."""

    seen: Tensor | None = None  # which keys each query sees; None: those up to its own position

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values
        self.length = 0

    def positions(self, new: int) -> slice | Tensor:
        """Return the positions of the ``new`` tokens that follow."""
        return slice(self.length, self.length + new)

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, T, D) and return all so far, (B, H, length, D)."""
        end = self.length + keys.size(2)
        if end > self.keys.size(2):
            raise ValueError(f"{end} tokens exceed the cache's capacity of {self.keys.size(2)}")
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = keys, values
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]


class KVCache:
    """The caches of all layers."""

    def __init__(self, layers: Sequence[LayerCache]) -> None:
        self.layers = layers

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(tensor.nbytes for layer in self.layers for tensor in (layer.keys, layer.values))

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.layers[0].length

    def positions(self, new: int) -> slice | Tensor:
        """Return the positions of the ``new`` tokens that follow."""
        return self.layers[0].positions(new)

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, (B',), in this order; rows may repeat."""
        for layer in self.layers:
            layer.keys, layer.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)


def empty_cache(config: Attends, batch: int, capacity: int, like: Tensor) -> KVCache:
    """Return an empty cache, with memory for ``capacity`` tokens of ``batch`` sequences in the dtype of ``like``."""
    shape = (batch, config.heads, capacity, config.head_dim)
    return KVCache([LayerCache(like.new_empty(shape), like.new_empty(shape)) for _ in range(config.depth)])
