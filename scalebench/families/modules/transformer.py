"""The module of ``families.transformer``: encoder, decoder and shared embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.modules.multihead import MultiHead

if TYPE_CHECKING:
    from scalebench.families.transformer import Config


class Residual(nn.Module):
    """A residual connection with its norm: x + f(norm(x)), or norm(x + f(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.first = config.norm_first

    def forward(self, x: Tensor, sublayer: Any) -> Tensor:
        """Apply ``sublayer`` to x (B, T, C) and add the result."""
        return x + sublayer(self.norm(x)) if self.first else self.norm(x + sublayer(x))


class Layer(nn.Module):
    """An encoder layer, or with ``cross`` a decoder layer: causal self-attention, then attention to the encoder."""

    def __init__(self, config: Config, implementation: str, *, cross: bool) -> None:
        super().__init__()
        self.attention = MultiHead(config.width, config.heads, implementation)
        self.cross = MultiHead(config.width, config.heads, implementation) if cross else None
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.residuals = nn.ModuleList(Residual(config) for _ in range(3 if cross else 2))

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        """Return the layer's output for x (B, S, C); ``memory`` (B, T, C) is the encoder's output."""
        x = self.residuals[0](x, lambda y: self.attention(y, causal=self.cross is not None))
        if self.cross is not None:
            cross = self.cross
            x = self.residuals[1](x, lambda y: cross(y, memory))
        return self.residuals[-1](x, lambda y: self.down(F.relu(self.up(y))))


def sinusoids(length: int, width: int) -> Tensor:
    """Return sin and cos of positions at wavelengths from 2 pi to 20000 pi, (length, width) (Vaswani et al., 3.5)."""
    rates = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(length, dtype=torch.float32)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)[:, :width]


class Transformer(nn.Module):
    """Sources (B, T) and the answers so far (B, S) to logits (B, S, V)."""

    OUTER: tuple[str, ...] = ()  # the output is the embedding of tokens

    positions: Tensor

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.encoder = nn.ModuleList(Layer(config, implementation, cross=False) for _ in range(config.depth))
        self.decoder = nn.ModuleList(Layer(config, implementation, cross=True) for _ in range(config.depth))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        longest = max(config.context, config.answer)
        self.register_buffer("positions", sinusoids(longest, config.width), persistent=False)
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Config) -> None:
        """Scale matrices by 1/sqrt(fan in), and pre-norm residual branches by 1/sqrt(sublayers)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                added = config.norm_first and name.endswith(("out.weight", "down.weight"))
                parameter.normal_(std=parameter.shape[1] ** -0.5 / (math.sqrt(3 * config.depth) if added else 1))
            elif name.endswith("bias"):
                parameter.zero_()

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the embeddings of tokens (B, T), scaled to unit variance, plus positions, (B, T, C)."""
        return self.tokens(tokens) * math.sqrt(self.tokens.embedding_dim) + self.positions[: tokens.size(1)]

    def body(self, source: Tensor, target: Tensor) -> Tensor:
        """Pass embedded sources (B, T, C) and answers (B, S, C) through encoder and decoder, (B, S, C)."""
        for layer in self.encoder:
            source = layer(source)
        source = self.encoder_norm(source)
        for layer in self.decoder:
            target = layer(target, source)
        return self.decoder_norm(target)

    def forward(self, source: Tensor, prefix: Tensor) -> Tensor:
        """Return logits (B, S, V) of each answer token from the source and the answer tokens before it."""
        return F.linear(self.body(self.embed(source), self.embed(prefix)), self.tokens.weight)
