"""Vision transformer (Dosovitskiy et al. 2021): image patches as tokens, and a class token for the prediction.

Legend: P patch side, T tokens = (S / P)² + 1, C width, H heads, D head dimension, F hidden width, L depth.

The dial sets depth, width and heads as gpt's does, then the hidden width so that patches, head and blocks together are
within 5 %. ``params`` excludes the position embedding and the class token, which are in no matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.data.images import Images
from scalebench.errors import InputError
from scalebench.families import gpt
from scalebench.families.base import Counts
from scalebench.families.dial import with_hidden, within_tolerance
from scalebench.families.multihead import attention_by
from scalebench.families.sharding import shard_blocks
from scalebench.study import Batching, DataSpec
from scalebench.tasks import Classification, classification

SUMMARY = "vision transformer on images"
DATA = "glyphs"
TAKES = Images
SEQUENCES = False
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
CAPABILITIES: tuple[str, ...] = ("checkpointing",)
parallelize = shard_blocks


@dataclass(frozen=True)
class Config:
    """A vision transformer's shape."""

    depth: int
    width: int
    heads: int
    head_dim: int
    hidden: int
    patch: int = 4
    image_size: int = 32
    channels: int = 3
    classes: int = 10

    @property
    def inner(self) -> int:
        """Width of queries, keys and values: H D."""
        return self.heads * self.head_dim

    @property
    def tokens(self) -> int:
        """Number of tokens: patches and the class token."""
        return (self.image_size // self.patch) ** 2 + 1


def _published(width: int, heads: int) -> Config:
    return Config(12, width, heads, 64, 4 * width, patch=16, image_size=224, classes=1000)


# Tiny and small as in Touvron et al. 2021, base as in Dosovitskiy et al. 2021.
SIZES = {"vit-tiny": _published(192, 3), "vit-small": _published(384, 6), "vit-base": _published(768, 12)}


def explicit(depth: int, width: int, **fields: Any) -> Config:
    """Return the Config of a depth and width; heads and hidden width default to gpt's rules."""
    shape = {name: fields.pop(name) for name in ("head_dim", "heads", "hidden") if name in fields}
    as_gpt = gpt.explicit(depth, width, vocab_size=1, context=1, **shape)
    config = Config(depth, width, as_gpt.heads, as_gpt.head_dim, as_gpt.hidden, **fields)
    if config.image_size % config.patch:
        raise InputError(f"patch = {config.patch} does not divide image_size = {config.image_size}")
    return config


def config_for(params: float, **fixed: Any) -> Config:
    """Return the Config with ``params`` parameters within 5 %, or raise ``InputError``; any field may be fixed."""
    shape = {name: fixed[name] for name in ("depth", "width") if name in fixed}
    blocks = params
    for _ in range(30):  # solve for the blocks' parameters: patches and head depend on the width
        try:
            as_gpt = gpt.config_for(max(blocks, params / 4), vocab_size=1, context=1, bias=True, norm="layer", **shape)
        except InputError as error:
            raise InputError(f"{params:g} parameters: {error}".replace("gpt", "vit")) from error
        config = explicit(**({"depth": as_gpt.depth, "width": as_gpt.width} | fixed))
        by_group = count(config).by_group
        blocks = params - by_group["patches"] - by_group["head"]
    if "hidden" not in fixed:
        config = with_hidden(config, params, lambda c: count(c).non_embedding)
    nearest = f"vit (depth {config.depth}, width {config.width}, {config.classes} classes)"
    hint = "the dial covers about 4,000 and more when no other field is given"
    return within_tolerance(config, params, count(config).non_embedding, nearest, hint)


def defaults(data: Images, _sequence_length: int | None) -> dict[str, Any]:
    """Return the fields that the images determine; images below 32 pixels are enlarged to 32."""
    return {"image_size": max(32, data.size), "channels": data.channels, "classes": data.classes}


def learning_rate(config: Config) -> float:
    """Return AdamW's learning rate for a size: 0.006 (N / 1e4)^(-1/3).

    Tuned on 500 steps of 64 glyphs: on a factor-two grid the best was 0.013 at 8e3 (0.0065 within 0.03 nats) and 0.0026
    at 1.3e5.
    """
    return float(0.006 * (count(config).non_embedding / 1e4) ** (-1 / 3))


def count(config: Config, sequence_length: int | None = None) -> Counts:  # noqa: ARG001 - patches make the sequence
    """Count exactly. FLOPs of matrix products and the patches' convolution only, per image."""
    c = config
    patch = c.channels * c.patch**2
    groups = {
        "patches": patch * c.width + c.width,
        "positions": c.tokens * c.width,
        "class_token": c.width,
        "attention": c.depth * (4 * c.width * c.inner + 3 * c.inner + c.width),
        "mlp": c.depth * (2 * c.width * c.hidden + c.hidden + c.width),
        "norm": (2 * c.depth + 1) * 2 * c.width,
        "head": c.width * c.classes + c.classes,
    }
    per_token = c.depth * (4 * c.width * c.inner + 2 * c.width * c.hidden)
    attention_flops = c.depth * 4 * c.tokens**2 * c.inner
    products = c.tokens * per_token + (c.tokens - 1) * patch * c.width + c.width * c.classes
    saved = c.tokens * (c.depth * (6 * c.width + 8 * c.inner + 2 * c.hidden) + 4 * c.width)
    total = sum(groups.values())
    return Counts(
        by_group=groups,
        non_embedding=total - groups["positions"] - groups["class_token"],
        active=total,
        forward_flops=2 * products + attention_flops,
        attention_flops=attention_flops,
        activation_bytes=4 * (saved + 2 * c.depth * c.heads * c.tokens**2 + c.channels * c.image_size**2),
    )


def task(config: Config, data: Images, spec: DataSpec, train: Batching) -> Classification:
    """Return classification of the images."""
    return classification(data, config.image_size, spec, train, channels=config.channels, classes=config.classes)


# --- the module ------------------------------------------------------------------------------------------------------


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


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator."""
    return ViT(config, implementation)
