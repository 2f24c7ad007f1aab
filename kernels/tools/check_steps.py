"""A fused optimizer against torch's own over many steps, on tensors of odd shapes."""

from __future__ import annotations

from typing import Any

import scalekernels
import torch
from check_case import measured, same_bits
from torch import Tensor

SHAPES = ((4099,), (257, 129), (3, 5, 7), (1,), (128, 128))
SETTINGS: dict[str, dict[str, Any]] = {
    "AdamW": {"lr": 1e-3, "weight_decay": 0.1},
    "Adam": {"lr": 1e-3, "weight_decay": 0.01},
    "SGD": {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01},
    "Adagrad": {"lr": 1e-2, "weight_decay": 0.01},
    "RMSprop": {"lr": 1e-3, "momentum": 0.9},
}


def trained(make: Any, start: list[Tensor], steps: int, **settings: Any) -> dict[str, Tensor]:
    """Return the parameters after ``steps`` steps of gradients that only the seed decides."""
    parameters = [tensor.clone().requires_grad_() for tensor in start]
    optimizer = make(parameters, **settings)
    generator = torch.Generator(start[0].device).manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            parameter.grad = drawn.to(start[0].dtype).to(parameter.dtype)
        optimizer.step()
    return {f"parameter {index}": parameter.detach() for index, parameter in enumerate(parameters)}


def check_steps(name: str, dtype: torch.dtype, device: str, steps: int) -> dict[str, Any]:
    """Check accuracy against torch in float64, with torch in the same precision as the measure, and the bits again.

    In bfloat16 with rounding to nearest, as torch does it: both lose the same small updates.
    """
    torch.manual_seed(0)
    shapes = SHAPES if device == "cuda" else SHAPES[1:4]
    start = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    theirs, ours = getattr(torch.optim, name), getattr(scalekernels, name)
    oracle = trained(theirs, [tensor.double() for tensor in start], steps, **SETTINGS[name], foreach=False)
    eager = trained(theirs, start, steps, **SETTINGS[name], foreach=False)
    first = trained(ours, start, steps, **SETTINGS[name], stochastic_rounding=False)
    found = measured(first, eager, oracle)
    again = trained(ours, start, steps, **SETTINGS[name], stochastic_rounding=False)
    if not found["problem"] and not same_bits(first, again):
        found["problem"] = "a repeat gave other bits"
    return {f"{name}, {steps} steps": found}
