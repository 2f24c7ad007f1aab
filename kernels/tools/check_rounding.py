"""The stochastic rounding of the fused optimizers: what one step writes, held against the exact result.

Rounded at random, a value x between the neighbours a < x < b of bfloat16, u = b - a apart, becomes b with the
probability f = (x - a)/u. So every result is one of the two neighbours, and the error in units of u has the mean 0 and
the variance f (1 - f). Over n results the mean error is within 5 standard errors, √Σ f (1 - f) / n, of 0: upwards and
away from zero, where cutting bits off would show, and towards the nearer neighbour, where rounding to nearest would.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Any

import torch
from scalekernels.optimizer.alternatives import OURS
from scalekernels.optimizer.cases import OPTIONS
from scalekernels.optimizer.reference import reference
from torch import Tensor

STANDARD_ERRORS = 5.0
# What the float32 arithmetic of the step may be off by, in ulps of the largest magnitude it handles: that moves the
# point where the neighbours change, and a probability by at most this over u, 2⁻¹³.
ULPS = 8.0
SHAPES = ((1000, 1000), (8193,))
SMALL_SHAPES = ((40, 100), (8193,))  # for the interpreter
STATES = (torch.float32, torch.bfloat16, torch.int8)


def neighbours(exact: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bfloat16 numbers, as float64, that lie next to an exact result known up to ``slack``: below, above."""
    low, high = exact - slack, exact + slack
    below, above = low.float().bfloat16(), high.float().bfloat16()
    below = torch.where(below.double() > low, _next(below, -1), below)
    above = torch.where(above.double() < high, _next(above, 1), above)
    return below.double(), above.double()


def _next(value: Tensor, direction: int) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, direction * torch.inf))


def wrong_rounding(result: Tensor, exact: Tensor, scale: float) -> str:
    """Say what is wrong with stochastically rounded results, "" if nothing.

    ``scale`` is what the step may handle on the way to a result that is smaller.
    """
    found, slack = result.double(), ULPS * torch.finfo(torch.float32).eps * exact.abs().clamp(min=scale)
    below, above = neighbours(exact, slack)
    outside = int(((found < below) | (found > above) | found.isnan()).sum())
    if outside:
        return f"{outside} of {found.numel()} are no neighbours of the exact result"
    below, above = neighbours(exact, torch.zeros_like(exact))
    unit = torch.where(above > below, above - below, 1.0)
    share = (exact - below) / unit
    standard_error = sqrt(float((share * (1 - share)).sum())) / found.numel()
    error = (found - exact) / unit
    ways = {"upwards": torch.ones_like(share), "away from zero": exact.sign(), "to the nearer": (share - 0.5).sign()}
    for way, sign in ways.items():
        mean = float((error * sign).mean())
        if abs(mean) > STANDARD_ERRORS * standard_error:
            return f"mean error {way} {mean:.3g} units; its standard error is {standard_error:.3g}"
    return ""


def one_step(algorithm: str, state_dtype: torch.dtype, device: str, stochastic: bool) -> Mapping[str, str]:
    """Take a step from random bfloat16 parameters and return what is wrong with each tensor, by name."""
    generator = torch.Generator(device).manual_seed(3)
    shapes = SHAPES if device == "cuda" else SMALL_SHAPES
    drawn = [torch.randn(shape, generator=generator, device=device).bfloat16() for shape in shapes * 2]
    before, grads = drawn[: len(shapes)], drawn[len(shapes) :]
    params = [torch.nn.Parameter(tensor.clone()) for tensor in before]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    options = OPTIONS[algorithm]
    optimizer = OURS[algorithm](params, **options, state_dtype=state_dtype, stochastic_rounding=stochastic, seed=1)
    optimizer.step()
    problems = {}
    for place, (param, old, grad) in enumerate(zip(params, before, grads, strict=True)):
        exact = reference(algorithm, old.double(), grad.double(), {}, **options)
        scale = 0.01 * float(old.abs().max())
        said = wrong_rounding(param.detach(), exact["param"], scale)
        problems[f"parameter {place}"] = said
        for name, kept in optimizer.state[param].items():
            if isinstance(kept, Tensor) and kept.dtype == torch.bfloat16:
                problems[f"{name} {place}"] = wrong_rounding(kept, exact[name], 0.0)
    return {name: said for name, said in problems.items() if said}


def check_rounding(algorithm: str, device: str, stochastic: bool = True) -> dict[str, Any]:
    """Check one step of an algorithm with bfloat16 parameters, for every dtype of its state."""
    checks = {}
    for state_dtype in STATES:
        problems = one_step(algorithm, state_dtype, device, stochastic)
        name = f"{algorithm}, stochastic rounding, state {str(state_dtype).removeprefix('torch.')}"
        checks[name] = {"problem": "; ".join(f"{key}: {said}" for key, said in problems.items()) or None}
    return checks
