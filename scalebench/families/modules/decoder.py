"""The decoder-only transformer that gpt and moe share: rotary positions, causal attention, block and model.

Legend: B batch, T time, C width, H heads, D head dimension, V vocabulary, L depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.cache import KVCache, LayerCache, empty_cache
from scalebench.families.modules.multihead import attention_by

if TYPE_CHECKING:
    from scalebench.families.decoder import Config


class Rotary(nn.Module):
    """Rotary position embedding (Su et al. 2021): rotate pairs of features by an angle proportional to position."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, context: int) -> None:
        super().__init__()
        frequency = 10_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
        angle = torch.arange(context)[:, None] * frequency  # (T, D/2)
        self.register_buffer("cos", angle.cos().repeat(1, 2), persistent=False)
        self.register_buffer("sin", angle.sin().repeat(1, 2), persistent=False)

    def forward(self, x: Tensor, positions: slice | Tensor | None = None) -> Tensor:  # (B, H, T, D)
        """Rotate x (B, H, T, D) at these positions: T from the first, or (B, T) where the sequences differ."""
        first, second = x.chunk(2, dim=-1)
        rotated = torch.cat((-second, first), dim=-1)
        places = slice(x.size(-2)) if positions is None else positions
        cos, sin = self.cos[places], self.sin[places]
        if cos.dim() == 3:
            cos, sin = cos[:, None], sin[:, None]
        return x * cos + rotated * sin


class CausalAttention(nn.Module):
    """Multi-head causal self-attention."""

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.qkv = nn.Linear(config.width, 3 * config.inner, bias=config.bias)
        self.out = nn.Linear(config.inner, config.width, bias=config.bias)
        self.rotary = Rotary(config.head_dim, config.context) if config.positions == "rotary" else None
        self.attend = attention_by(implementation)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:  # (B, T, C)
        """Attend from x (B, T, C) to itself and to the tokens in the cache."""
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        if self.rotary is not None:
            positions = None if cache is None else cache.positions(length)
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        seen = None
        if cache is not None:
            k, v = cache.extend(k, v)
            seen = cache.seen
        mixed = self.attend(q, k, v, True, seen)  # (B, H, T, D)
        return self.out(mixed.transpose(1, 2).flatten(2))


def norm(config: Config) -> nn.Module:
    """Return the norm that ``config.norm`` names."""
    return nn.LayerNorm(config.width) if config.norm == "layer" else nn.RMSNorm(config.width, eps=1e-6)


class DecoderBlock(nn.Module):
    """Pre-norm residual block: attention, then MLP."""

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(config), norm(config)
        self.attention = CausalAttention(config, implementation)
        self.up = nn.Linear(config.width, config.hidden, bias=config.bias)
        self.down = nn.Linear(config.hidden, config.width, bias=config.bias)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:  # (B, T, C)
        """Return the block's output, (B, T, C)."""
        x = x + self.attention(self.norm1(x), cache)
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
    """Decoder-only language model: tokens (B, T) to logits (B, T, V), or with targets (B, T) to the cross-entropy.

    With ``GIVES_LOSSES`` a task calls the model with targets and gets losses instead of logits. ``compile`` sets it, so
    that the loss is part of the compiled graph and the softmax over V is fused; ``eager`` and ``sdpa`` return logits.
    """

    BLOCK: type[nn.Module] = DecoderBlock
    OUTER = ("head",)
    GIVES_LOSSES = False
    KEEPS_TYPE = False  # True: runs without autocast, in the dtype of its weights

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(self.BLOCK(config, implementation) for _ in range(config.depth))
        self.norm = norm(config)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.head.weight = self.tokens.weight
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Config) -> None:
        """Scale matrices by 1/sqrt(fan in) and residual branches by 1/sqrt(2 L), as GPT-2 does."""
        for name, parameter in self.named_parameters():
            if "bias" in name:
                parameter.zero_()
            elif parameter.ndim >= 2:
                residual = name.endswith(("out.weight", "down.weight", "down"))
                embedding = name.startswith(("tokens", "positions", "head"))
                fan_in = config.width if embedding else parameter.shape[-1]
                parameter.normal_(std=fan_in**-0.5 / (math.sqrt(2 * config.depth) if residual else 1))

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for ``capacity`` tokens of ``batch`` sequences, in the dtype of the weights."""
        return empty_cache(self.config, batch, capacity, self.tokens.weight)

    def embedded(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        """Return the embeddings (B, T, C) of tokens (B, T) at the positions after those in the cache."""
        x: Tensor = self.tokens(tokens)
        if self.positions is None:
            return x
        length = tokens.size(1)
        return x + self.positions.weight[slice(length) if cache is None else cache.positions(length)]

    def layers(self, cache: KVCache | None) -> Iterator[tuple[nn.Module, LayerCache | None]]:
        """Yield each block with its layer of the cache."""
        return zip(self.blocks, [None] * len(self.blocks) if cache is None else cache.layers, strict=True)

    def hidden(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Return the last block's output, (B, T, C). ``tokens`` follow those in the cache."""
        x = self.embedded(tokens, cache)
        for block, layer in self.layers(cache):
            x = block(x, layer)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the last block's output (B, T, C)."""
        return self.head(self.norm(hidden))

    def losses(self, hidden: Tensor, targets: Tensor, reduction: str) -> Tensor:
        """Return the cross-entropy in nats of the last block's output (B, T, C) against targets (B, T)."""
        logits = self.logits(hidden).flatten(0, 1).float()
        each = F.cross_entropy(logits, targets.flatten(), reduction=reduction)
        return each.view(targets.shape) if reduction == "none" else each

    def forward(  # (B, T)
        self, tokens: Tensor, cache: KVCache | None = None, targets: Tensor | None = None, reduction: str = "none"
    ) -> Tensor:
        """Return logits (B, T, V), or the cross-entropy of ``targets`` in nats: per token (B, T), or the mean."""
        hidden = self.hidden(tokens, cache)
        return self.logits(hidden) if targets is None else self.losses(hidden, targets, reduction)
