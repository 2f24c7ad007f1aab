"""A cache of sequences of different lengths: each has a row, and all of them grow by one token in one pass.

Legend: S rows, B sequences in the cache, H heads, D head dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scalebench.families.cache import KVCache, LayerCache


class UnevenLayer(LayerCache):
    """Keys and values (B, H, capacity, D) of one layer, of which row b has ``lengths[b]`` positions; grows by one."""

    def __init__(self, whole: LayerCache, lengths: Tensor, longest: int) -> None:
        rows = len(lengths)
        super().__init__(whole.keys[:rows], whole.values[:rows])
        self.length, self.lengths = longest, lengths
        self.rows = torch.arange(rows, device=lengths.device)
        self.seen = (torch.arange(longest + 1, device=lengths.device) <= lengths[:, None])[:, None, None]

    def positions(self, new: int) -> Tensor:
        """Return the position of the next token of each row, (B, 1). Raises ``ValueError`` for more than one token."""
        if new != 1:
            raise ValueError(f"{new} tokens: sequences of different lengths grow by one token at a time")
        return self.lengths[:, None]

    def extend(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append keys and values (B, H, 1, D), each row after its own end; return all, (B, H, longest + 1, D)."""
        for kept, new in ((self.keys, keys), (self.values, values)):
            kept[self.rows, :, self.lengths] = new[:, :, 0]
        end = self.length + 1
        return self.keys[:, :, :end], self.values[:, :, :end]


class Slots:
    """A cache of S rows, of which the first B hold a sequence each. ``lengths`` are theirs, in tokens."""

    def __init__(self, cache: KVCache) -> None:
        self._whole = cache
        self.lengths: list[int] = []
        rows, _, self.capacity, _ = cache.layers[0].keys.shape
        self.free = rows
        for layer in cache.layers:  # what is masked is added and multiplied all the same: no NaN of unwritten memory
            layer.keys.zero_()
            layer.values.zero_()

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return self._whole.nbytes

    @property
    def device(self) -> torch.device:
        """Where keys and values are."""
        return self._whole.layers[0].keys.device

    def begin(self, tokens: int) -> KVCache:
        """Take the next free row for a sequence and return its empty cache, for a first pass over ``tokens`` tokens.

        Raises ``ValueError`` when no row is free, or the row is too short.
        """
        if not self.free or tokens > self.capacity:
            raise ValueError(f"{tokens} tokens: {self.free} rows are free, of {self.capacity} tokens each")
        row = len(self.lengths)
        self.lengths.append(tokens)
        self.free -= 1
        return KVCache(
            [LayerCache(layer.keys[row : row + 1], layer.values[row : row + 1]) for layer in self._whole.layers]
        )

    def grow(self) -> KVCache:
        """Return the cache for the next token of every sequence, which are counted as there.

        Raises ``ValueError`` when a row is full.
        """
        longest = max(self.lengths)
        if longest >= self.capacity:
            raise ValueError(f"{longest + 1} tokens exceed the cache's capacity of {self.capacity}")
        lengths = torch.tensor(self.lengths, device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        return KVCache([UnevenLayer(layer, lengths, longest) for layer in self._whole.layers])

    def end(self, row: int) -> None:
        """Free a row: the last sequence moves into it."""
        length = self.lengths.pop()
        if row < len(self.lengths):
            for layer in self._whole.layers:
                for kept in (layer.keys, layer.values):
                    kept[row, :, :length] = kept[len(self.lengths), :, :length]
            self.lengths[row] = length
        self.free += 1
