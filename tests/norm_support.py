"""What the tests of the norms share: the acceptance rule, random gradients."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from kernel_support import inaccuracy
from scalekernels import norm
from scalekernels.norm import Case
from torch import Tensor

LAUNCHED = ("forward", "forward_wide", "backward", "backward_wide", "parameters_wide", "finish")


def case_failure(case: Case, backward: bool, seed: int = 0, tensors: Mapping[str, Tensor] | None = None) -> str | None:
    """Why our norm fails the acceptance rule on a case, by inputs of its own or those of a seed."""
    tensors = norm.inputs(case, seed=seed) if tensors is None else tensors
    providers = norm.providers()
    ours, theirs = (providers[name].prepare(case, tensors, backward)() for name in ("triton", "eager"))
    terms = norm.terms(case, tensors, backward)
    return inaccuracy(ours, theirs, norm.results(case, tensors, backward), terms=terms)


def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in outputs]
    return torch.autograd.grad(outputs, leaves, grads)
