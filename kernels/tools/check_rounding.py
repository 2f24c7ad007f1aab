"""Check the stochastic rounding of the fused optimizers: the results of one step against the exact ones.

Stochastic rounding turns a value x between the bfloat16 neighbours a < x < b, u = b - a apart, into b with probability
f = (x - a)/u. So every result is one of the two neighbours, and the error in units of u has mean 0 and variance
f (1 - f). Over n results the mean error must be within 5 standard errors, √Σ f (1 - f) / n, of 0 in three directions:
upwards and away from zero, which detect truncation, and to the nearer neighbour, which detects rounding to nearest.
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
# Allowed error of the step's float32 arithmetic, in ulps of the largest magnitude: it shifts the point where the
# neighbours change, and probabilities by at most this over u, 2⁻¹³.
ULPS = 8.0
SHAPES = ((1000, 1000), (8193,))
SMALL_SHAPES = ((40, 100), (8193,))  # for the interpreter
STATES = (torch.float32, torch.bfloat16, torch.int8)


def neighbours(exact: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bfloat16 neighbours, as float64, below and above an exact result that is known up to ``slack``."""
    low, high = exact - slack, exact + slack
    below, above = low.float().bfloat16(), high.float().bfloat16()
    below = torch.where(below.double() > low, _next(below, -1), below)
    above = torch.where(above.double() < high, _next(above, 1), above)
    return below.double(), above.double()


def _next(value: Tensor, direction: int) -> Tensor:
    return torch.nextafter(value, torch.full_like(value, direction * torch.inf))


def wrong_rounding(result: Tensor, exact: Tensor, scale: float) -> str:
    """Return what is wrong with stochastically rounded results, "" if nothing.

    ``scale`` is the largest magnitude of intermediate values, which may exceed that of the result.
    """
    rounded, slack = result.double(), ULPS * torch.finfo(torch.float32).eps * exact.abs().clamp(min=scale)
    below, above = neighbours(exact, slack)
    outside = int(((rounded < below) | (rounded > above) | rounded.isnan()).sum())
    if outside:
        return f"{outside} of {rounded.numel()} are no neighbours of the exact result"
    below, above = neighbours(exact, torch.zeros_like(exact))
    unit = torch.where(above > below, above - below, 1.0)
    share = (exact - below) / unit
    standard_error = sqrt(float((share * (1 - share)).sum())) / rounded.numel()
    error = (rounded - exact) / unit
    ways = {"upwards": torch.ones_like(share), "away from zero": exact.sign(), "to the nearer": (share - 0.5).sign()}
    for way, sign in ways.items():
        mean = float((error * sign).mean())
        if abs(mean) > STANDARD_ERRORS * standard_error:
            return f"mean error {way} {mean:.3g} units; its standard error is {standard_error:.3g}"
    return ""


def one_step(algorithm: str, state_dtype: torch.dtype, device: str, stochastic: bool) -> Mapping[str, str]:
    """Take one step from random bfloat16 parameters and return what is wrong with each tensor, by name."""
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
        problems[f"parameter {place}"] = wrong_rounding(param.detach(), exact["param"], scale)
        for name, state in optimizer.state[param].items():
            if isinstance(state, Tensor) and state.dtype == torch.bfloat16:
                problems[f"{name} {place}"] = wrong_rounding(state, exact[name], 0.0)
    return {name: problem for name, problem in problems.items() if problem}


def check_rounding(algorithm: str, device: str, stochastic: bool = True) -> dict[str, Any]:
    """Check one step of an algorithm with bfloat16 parameters, for every dtype of its state."""
    checks = {}
    for state_dtype in STATES:
        problems = one_step(algorithm, state_dtype, device, stochastic)
        name = f"{algorithm}, stochastic rounding, state {str(state_dtype).removeprefix('torch.')}"
        checks[name] = {"problem": "; ".join(f"{key}: {problem}" for key, problem in problems.items()) or None}
    return checks
