"""What the tests of the norms share: the acceptance rule, random gradients."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from kernel_support import inaccuracy
from scalekernels import norm
from scalekernels.norm import Case
from torch import Tensor

Compared = tuple[Mapping[str, Tensor], Mapping[str, Tensor], Any]
LAUNCHED = ("forward", "forward_wide", "backward", "backward_wide", "parameters_wide", "finish")


def case_failure(
    case: Case, backward: bool, tensors: Mapping[str, Tensor] | None = None, known: Compared | None = None
) -> str | None:
    """Why our norm fails the acceptance rule on a case, by its own inputs or others; what they give may be known."""
    if known is None:
        known = _of_case(case, backward) if tensors is None else compared(case, backward, tensors)
    theirs, exact, terms = known
    tensors = norm.inputs(case) if tensors is None else tensors
    ours = norm.providers()["triton"].prepare(case, tensors, backward)()
    return inaccuracy(ours, theirs, exact, terms=terms)


def compared(case: Case, backward: bool, tensors: Mapping[str, Tensor]) -> Compared:
    """Return what eager norms return, what is exact, and the terms of the acceptance rule."""
    theirs = norm.providers()["eager"].prepare(case, tensors, backward)()
    return theirs, norm.results(case, tensors, backward), norm.terms(case, tensors, backward)


@cache
def _of_case(case: Case, backward: bool) -> Compared:
    return compared(case, backward, norm.inputs(case))


def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in outputs]
    return torch.autograd.grad(outputs, leaves, grads)
