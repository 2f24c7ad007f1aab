"""The module of ``families.bert``: the bidirectional encoder with its two heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.modules.multihead import MultiHead

if TYPE_CHECKING:
    from scalebench.families.bert import Config


NORM_EPS = 1e-12  # as published


def _norm(config: Config) -> nn.LayerNorm:
    return nn.LayerNorm(config.width, eps=NORM_EPS)


class EncoderBlock(nn.Module):
    """Post-norm residual block: attention, then MLP."""

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.attention = MultiHead(config.width, config.heads, implementation)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.norm1, self.norm2 = _norm(config), _norm(config)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C)
        """Return the block's output, (B, T, C)."""
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.down(F.gelu(self.up(x))))


class BERT(nn.Module):
    """Tokens and segments (B, T) to logits of each token (B, T, V) and of the second passage following (B, 2)."""

    OUTER = ("follows",)  # the output of tokens is their embedding

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.segments = nn.Embedding(2, config.width)
        self.norm = _norm(config)
        self.blocks = nn.ModuleList(EncoderBlock(config, implementation) for _ in range(config.depth))
        self.pooler = nn.Linear(config.width, config.width)
        self.transform, self.transform_norm = nn.Linear(config.width, config.width), _norm(config)
        self.output_bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.follows = nn.Linear(config.width, 2)
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Config) -> None:
        """Scale matrices by 1/sqrt(fan in), tables by 1/sqrt(C): 0.036 at C = 768, where the paper has 0.02."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                table = name.startswith(("tokens", "positions", "segments"))
                parameter.normal_(std=(config.width if table else parameter.shape[1]) ** -0.5)
            elif name.endswith("bias"):
                parameter.zero_()

    def encode(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """Return the last block's output (B, T, C) for tokens and segments (B, T)."""
        x = self.tokens(tokens) + self.segments(segments) + self.positions.weight[: tokens.size(1)]
        x = self.norm(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, tokens: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of every token (B, T, V), and of whether the second passage follows the first (B, 2)."""
        x = self.encode(tokens, segments)
        filled = self.transform_norm(F.gelu(self.transform(x)))
        follows = self.follows(torch.tanh(self.pooler(x[:, 0])))
        return F.linear(filled, self.tokens.weight, self.output_bias), follows
