"""The module of ``families.vit``: the vision transformer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.modules.multihead import attention_by

if TYPE_CHECKING:
    from scalebench.families.vit import Config


class ViTBlock(nn.Module):
    """Pre-norm residual block: attention over all tokens, then MLP."""

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.heads, self.head_dim = config.heads, config.head_dim
        self.norm1, self.norm2 = (nn.LayerNorm(config.width, eps=1e-6) for _ in range(2))
        self.qkv = nn.Linear(config.width, 3 * config.inner)
        self.out = nn.Linear(config.inner, config.width)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.attend = attention_by(implementation)

    def attention(self, x: Tensor) -> Tensor:  # (B, T, C)
        """Self-attention of x."""
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.out(self.attend(q, k, v, False).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:  # (B, T, C)
        """Return the block's output, (B, T, C)."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """Images (B, channels, S, S) to logits (B, classes)."""

    OUTER = ("patches", "head")

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.patches = nn.Conv2d(config.channels, config.width, config.patch, config.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.positions = nn.Parameter(torch.zeros(1, config.tokens, config.width))
        self.blocks = nn.ModuleList(ViTBlock(config, implementation) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.classes)
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Config) -> None:
        """Scale matrices by 1/sqrt(fan in) and residual branches by 1/sqrt(2 L); positions start small."""
        self.positions.normal_(std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif name.endswith("weight") and parameter.ndim >= 2:
                residual = name.endswith(("out.weight", "down.weight"))
                parameter.normal_(std=parameter[0].numel() ** -0.5 / (math.sqrt(2 * config.depth) if residual else 1))

    def forward(self, images: Tensor) -> Tensor:  # (B, channels, S, S)
        """Return logits (B, classes) from the class token."""
        x = self.patches(images).flatten(2).transpose(1, 2)  # (B, T - 1, C)
        x = torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))
