"""The module of ``families.resnet``: residual blocks and the network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from scalebench.families.resnet import BlockShape, Config, Conv


def _normed(shape: Conv) -> nn.Sequential:
    convolution = nn.Conv2d(
        shape.inputs, shape.outputs, shape.kernel, shape.stride, padding=shape.kernel // 2, bias=False
    )
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(shape.outputs))


class ResidualBlock(nn.Module):
    """Convolutions with batch normalisation and ReLU, and a shortcut around them."""

    def __init__(self, shape: BlockShape, *, residual: bool) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_normed(conv) for conv in shape.convolutions)
        self.projection = _normed(shape.projection) if shape.projection else None
        self.residual = residual
        self.stride = math.prod(conv.stride for conv in shape.convolutions)
        self.added = shape.convolutions[-1].outputs - shape.convolutions[0].inputs

    def shortcut(self, x: Tensor) -> Tensor:  # (B, C, S, S)
        """Return x in the output's shape: projected, or subsampled and padded with zero channels."""
        if self.projection is not None:
            return self.projection(x)
        if self.stride == 1 and self.added == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))

    def forward(self, x: Tensor) -> Tensor:  # (B, C, S, S)
        """Return the block's output."""
        y = x
        for layer in self.convolutions[:-1]:
            y = F.relu(layer(y))
        y = self.convolutions[-1](y)
        return F.relu(y + self.shortcut(x) if self.residual else y)


class ResNet(nn.Module):
    """Images (B, channels, S, S) to logits (B, classes)."""

    OUTER = ("stem", "head")

    def __init__(self, config: Config, stem: Conv, shapes: Sequence[BlockShape]) -> None:
        super().__init__()
        self.stem = _normed(stem)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if config.form == "imagenet" else nn.Identity()
        self.blocks = nn.ModuleList(ResidualBlock(shape, residual=config.residual) for shape in shapes)
        self.head = nn.Linear(shapes[-1].convolutions[-1].outputs, config.classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, channels, S, S)
        """Return logits (B, classes)."""
        x = self.pool(F.relu(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.head(torch.mean(x, dim=(2, 3)))
