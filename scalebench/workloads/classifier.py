"""A family's model with a head of classes: see ``heads`` for what is pooled."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scalebench.study import Trial
from scalebench.workloads.heads import BODIES


class Classifier(nn.Module):
    """Tokens (B, T), and for bert segments (B, T), to logits (B, K) of the classes.

    ``body`` is the family's module; parameters that only its own outputs need are frozen. The head starts at zero, so
    that before the first step every class is as likely.
    """

    def __init__(self, body: nn.Module, width: int, classes: int, pooling: str, unused: tuple[str, ...]) -> None:
        super().__init__()
        self.body: Any = body
        self.pooling = pooling
        self.classes = nn.Linear(width, classes)
        nn.init.zeros_(self.classes.weight)
        nn.init.zeros_(self.classes.bias)
        self.OUTER = ("classes", *(f"body.{name}" for name in getattr(body, "OUTER", ())))
        for name, parameter in body.named_parameters():
            if name.startswith(unused):
                parameter.requires_grad = False

    @property
    def blocks(self) -> nn.ModuleList:
        """The body's blocks."""
        return self.body.blocks

    def forward(self, tokens: Tensor, segments: Tensor | None = None) -> Tensor:  # (B, T)
        """Return the logits of the classes, (B, K)."""
        body = self.body
        hidden = body.norm(body.hidden(tokens)) if segments is None else body.encode(tokens, segments)  # (B, T, C)
        return self.classes(self.pooled(hidden))

    def pooled(self, hidden: Tensor) -> Tensor:
        """Return one state (B, C) of the hidden states (B, T, C) of all tokens."""
        if self.pooling == "mean":
            return hidden.mean(1)
        if self.pooling == "last":
            return hidden[:, -1]
        return torch.tanh(self.body.pooler(hidden[:, 0]))


def with_head(body: nn.Module, trial: Trial) -> nn.Module:
    """Return a trial's model: the family's module, with the classification head if the trial has one."""
    spec = trial.spec
    if getattr(spec, "head", "own") == "own":
        return body
    width, unused = trial.model["width"], BODIES[trial.family].unused[spec.pooling]
    assert isinstance(width, int)
    device = next(body.parameters()).device
    return Classifier(body, width, spec.head_classes, spec.pooling, unused).to(device)
