"""What tests of the fused optimizers share: parameters, gradients, and the acceptance against torch's."""

from __future__ import annotations

from typing import Any

import torch
from scalekernels import optimizer as ours
from torch import Tensor, nn

SIZES = (0, 1, 63, 1025, 70_001)

SMALL = (0, 1, 63, 1025)

EPS32 = torch.finfo(torch.float32).eps

FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("AdamW", {"lr": 3e-3, "weight_decay": 0.1}),
    "adamw betas": ("AdamW", {"betas": (0.0, 0.5), "eps": 1e-3, "maximize": True}),
    "adam": ("Adam", {"weight_decay": 0.1}),
    "adam decoupled": ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    "sgd": ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "maximize": True}),
    "sgd nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adagrad": ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1}),
    "adagrad start": ("Adagrad", {"initial_accumulator_value": 0.3, "eps": 1e-3, "maximize": True}),
    "rmsprop": ("RMSprop", {"lr": 1e-3, "weight_decay": 0.1, "maximize": True}),
    "rmsprop momentum": ("RMSprop", {"lr": 1e-3, "momentum": 0.9, "alpha": 0.9}),
    "rmsprop centered": ("RMSprop", {"lr": 1e-3, "centered": True, "eps": 1e-4}),
    "rmsprop both": ("RMSprop", {"lr": 1e-3, "momentum": 0.9, "centered": True, "eps": 1e-4}),
}


def parameters(sizes, dtype=torch.float32, seed=0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def copies(params: list[nn.Parameter], dtype: torch.dtype) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().to(dtype, copy=True)) for param in params]


def give_gradients(step: int, *sets: list[nn.Parameter], scale: float = 1.0) -> None:
    """Give every set of parameters the same gradients, those of the first set's dtype."""
    generator = torch.Generator().manual_seed(1000 + step)
    for row in zip(*sets, strict=True):
        grad = (scale * torch.randn(row[0].shape, generator=generator)).to(row[0].dtype)
        for param in row:
            param.grad = grad.to(param.dtype, copy=True)


def largest(a: list[Tensor], b: list[Tensor]) -> float:
    pairs = [(x.detach().double(), y.detach().double()) for x, y in zip(a, b, strict=True) if x.numel()]
    return max((float((x - y).abs().max()) for x, y in pairs), default=0.0)


def accepted(outputs: list[Tensor], same: list[Tensor], exact: list[Tensor]) -> bool:
    """At most twice the error of torch's own path of the same precision, or four ulps of the largest value."""
    scale = max(float(value.detach().abs().max()) for value in exact if value.numel())
    return largest(outputs, exact) <= max(2 * largest(same, exact), 4 * EPS32 * scale)


def trained(name: str, options: dict[str, Any], sizes=SIZES, steps=10, clip: float | None = None) -> bool:
    """Take steps with ours, torch's in float32 and torch's in float64; return whether ours is accepted."""
    params = parameters(sizes)
    same, exact = copies(params, torch.float32), copies(params, torch.float64)
    mine = getattr(ours, name)(params, **options, max_grad_norm=clip)
    others = [getattr(torch.optim, name)(group, **options) for group in (same, exact)]
    for step in range(steps):
        give_gradients(step, params, same, exact)
        if clip is not None:
            norms = [torch.nn.utils.clip_grad_norm_(group, clip) for group in (same, exact)]
        for optimizer in (mine, *others):
            optimizer.step()
        if clip is not None and not abs(float(mine.grad_norm) - norms[1]) <= 2e-6 * norms[1]:
            return False
    return accepted(params, same, exact)
