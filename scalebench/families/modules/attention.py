"""The module of ``families.attention``: one self-attention block over a set."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families.modules.multihead import MultiHead

if TYPE_CHECKING:
    from scalebench.families.attention import Config


class SetAttention(nn.Module):
    """Sets (B, T, I) to answers (B, 1)."""

    OUTER = ("embedding", "readout")

    def __init__(self, config: Config, implementation: str) -> None:
        super().__init__()
        self.embedding = nn.Linear(config.inputs, config.width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.width) for _ in range(3))
        self.attention = MultiHead(config.width, config.heads, implementation)
        self.up = nn.Linear(config.width, config.hidden)
        self.down = nn.Linear(config.hidden, config.width)
        self.readout = nn.Linear(config.width, 1)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Scale matrices by 1/sqrt(fan in)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            elif name.endswith("bias"):
                parameter.zero_()

    def forward(self, x: Tensor) -> Tensor:  # (B, T, I)
        """Return the answer (B, 1) to the query, which is the first element."""
        x = self.embedding(x)
        x = x + self.attention(self.norm1(x))
        x = x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))
        return self.readout(self.norm3(x[:, 0]))
