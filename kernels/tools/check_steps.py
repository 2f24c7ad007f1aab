"""Check a fused optimizer against torch.optim over many steps, on tensors of odd shapes.

All parameters are judged as one tensor, since the largest error of a small tensor after a thousand roundings is mostly
chance. In bfloat16 the acceptance rule's cap on PyTorch's own error does not apply: updates below half a unit are
rounded away, by PyTorch as by ours, and the error after many steps has no bound. There ours has to be as good as
PyTorch's; in float32 both have to be accurate.
"""

from __future__ import annotations

from math import inf
from typing import Any

import scalekernels
import torch
from check_results import judged, same_bits
from scalekernels.accuracy import FURTHEST
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
    """Return the parameters after ``steps`` steps with gradients from a fixed seed."""
    parameters = [tensor.clone().requires_grad_() for tensor in start]
    optimizer = make(parameters, **settings)
    generator = torch.Generator(start[0].device).manual_seed(1)
    for _ in range(steps):
        for parameter in parameters:
            drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device)
            parameter.grad = drawn.to(start[0].dtype).to(parameter.dtype)
        optimizer.step()
    return {"parameters": torch.cat([parameter.detach().flatten() for parameter in parameters])}


def check_steps(name: str, dtype: torch.dtype, device: str, steps: int) -> dict[str, Any]:
    """Check the accuracy against PyTorch in float64 and in the same precision, and that a repeat gives the same bits.

    In bfloat16 both round to nearest, so that they lose the same small updates.
    """
    torch.manual_seed(0)
    shapes = SHAPES if device == "cuda" else SHAPES[1:4]
    start = [torch.randn(shape, device=device).to(dtype) for shape in shapes]
    theirs, ours = getattr(torch.optim, name), getattr(scalekernels, name)
    oracle = trained(theirs, [tensor.double() for tensor in start], steps, **SETTINGS[name], foreach=False)
    eager = trained(theirs, start, steps, **SETTINGS[name], foreach=False)
    first = trained(ours, start, steps, **SETTINGS[name], stochastic_rounding=False)
    check = judged(first, eager, oracle, furthest=inf if dtype == torch.bfloat16 else FURTHEST)
    again = trained(ours, start, steps, **SETTINGS[name], stochastic_rounding=False)
    if not check["problem"] and not same_bits(first, again):
        check["problem"] = "a repeat gave other bits"
    return {f"{name}, {steps} steps": check}
