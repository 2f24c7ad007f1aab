"""The module of ``families.rnn``: torch's own recurrent layers between an embedding and an output matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from scalebench.families.rnn import Config


LAYERS = {"vanilla": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RNN(nn.Module):
    """Tokens (B, T) to logits (B, T, V)."""

    OUTER = ("head",)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.embedding)
        self.layers = LAYERS[config.cell](config.embedding, config.width, config.depth, batch_first=True)
        self.head = nn.Linear(config.width, config.vocab_size)
        if config.tied:
            self.head.weight = self.tokens.weight
        self._initialise(config)

    @torch.no_grad()
    def _initialise(self, config: Config) -> None:
        """Scale matrices by 1/sqrt(fan in); biases zero, but an LSTM's forget bias one (Gers et al. 2000)."""
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=parameter.shape[1] ** -0.5)
            else:
                parameter.zero_()
            if config.cell == "lstm" and "bias_ih" in name:
                parameter[config.width : 2 * config.width] = 1  # gates in torch's order: input, forget, cell, output

    def forward(self, tokens: Tensor) -> Tensor:  # (B, T)
        """Return logits (B, T, V) of the next token at each position."""
        x = self.tokens(tokens) * math.sqrt(self.tokens.embedding_dim)  # (B, T, E), of unit variance
        return self.head(self.layers(x)[0])
