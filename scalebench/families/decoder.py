"""The decoder-only transformer that gpt and moe share: its Config, rotary positions, causal attention, block and model.

Legend: B batch, T time, C width, H heads, D head dimension, F hidden width of the MLP, V vocabulary, L depth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scalebench.errors import InputError


@dataclass(frozen=True)
class Config:
    """Shape of a decoder. Widths in features; ``context`` is the maximum sequence length."""

    depth: int
    width: int
    heads: int
    head_dim: int
    hidden: int
    vocab_size: int
    context: int
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    bias: bool = False
    tied: bool = True

    def __post_init__(self) -> None:
        """Raise ``InputError`` for rotary positions with an odd head_dim."""
        if self.positions == "rotary" and self.head_dim % 2:
            raise InputError(f"head_dim: rotary positions need an even head_dim (given {self.head_dim})")

    @property
    def inner(self) -> int:
        """Width of queries, keys and values: H D."""
        return self.heads * self.head_dim
