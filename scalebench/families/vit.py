"""Vision transformer (Dosovitskiy et al. 2021): image patches as tokens, and a class token for the prediction.

Legend: P patch side, T tokens = (S / P)² + 1, C width, H heads, D head dimension, F hidden width, L depth.

The dial sets depth, width and heads as gpt's does, then the hidden width so that patches, head and blocks together are
within 5 %. ``params`` excludes the position embedding and the class token, which are in no matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from scalebench.data.images import Images
from scalebench.errors import InputError
from scalebench.families import gpt
from scalebench.families.base import Counts
from scalebench.families.dial import with_hidden, within_tolerance
from scalebench.families.pictures import image_classes, image_fields
from scalebench.families.sharding import shard_blocks

if TYPE_CHECKING:
    from torch import nn

SUMMARY = "vision transformer on images"
DATA = "glyphs"
TAKES = Images
SEQUENCES = False
IMPLEMENTATIONS = ("eager", "sdpa", "compile")
CAPABILITIES: tuple[str, ...] = ("checkpointing", "fewer_heads", "fewer_hidden", "fewer_layers", "ensembles")
parallelize = shard_blocks
defaults, task = image_fields, image_classes


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
        by_group, before = count(config).by_group, blocks
        blocks = params - by_group["patches"] - by_group["head"]
        if blocks == before:
            break
    if "hidden" not in fixed:
        config = with_hidden(config, params, lambda c: count(c).non_embedding)
    nearest = f"vit (depth {config.depth}, width {config.width}, {config.classes} classes)"
    hint = "sizes from about 4,000 are possible when no other field is given"
    return within_tolerance(config, params, count(config).non_embedding, nearest, hint)


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
        score_bytes=8 * c.depth * c.heads * c.tokens**2,
        activation_bytes=4 * (saved + 2 * c.depth * c.heads * c.tokens**2 + c.channels * c.image_size**2),
    )


def build(config: Config, implementation: str) -> nn.Module:
    """Return the module; ``eager`` writes attention out, ``sdpa`` and ``compile`` use PyTorch's fused operator."""
    from scalebench.families.modules.vit import ViT  # imports torch

    return ViT(config, implementation)
