"""The module of ``families.cnn``: convolution and pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from scalebench.families.cnn import Config


class CNN(nn.Module):
    """Images (B, channels, S, S) to logits (B, classes)."""

    OUTER = ("convolution1", "dense3")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(config.channels, config.first, config.kernel)
        self.convolution2 = nn.Conv2d(config.first, config.second, config.kernel)
        self.dense1 = nn.Linear(config.second * config.grid**2, config.dense1)
        self.dense2 = nn.Linear(config.dense1, config.dense2)
        self.dense3 = nn.Linear(config.dense2, config.classes)

    def forward(self, images: Tensor) -> Tensor:  # (B, channels, S, S)
        """Return logits (B, classes)."""
        x = F.max_pool2d(F.relu(self.convolution1(images)), 2)
        x = F.max_pool2d(F.relu(self.convolution2(x)), 2)
        x = F.relu(self.dense1(torch.flatten(x, 1)))
        return self.dense3(F.relu(self.dense2(x)))
