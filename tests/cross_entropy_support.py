"""What the tests of linear cross entropy share: tensors, exact gradients, the acceptance rule."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from kernel_support import inaccuracy
from scalekernels import cross_entropy
from scalekernels.cross_entropy import Case, memory, reference
from torch import Tensor

FORWARD_BACKWARD = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])

RICH = {"softcap": 4.0, "z_loss": 0.01}  # options that change every number


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Four tokens to a chunk."""
    monkeypatch.setattr(memory, "FEWEST_TOKENS", 4)
    monkeypatch.setattr(memory, "MOST_TOKENS", 4)
    monkeypatch.setattr(memory, "TOKEN_MULTIPLE", 1)


def case_failure(case: Case, backward: bool, seed: int = 0) -> str | None:
    inputs = cross_entropy.inputs(case, seed=seed)
    ours = cross_entropy.providers()["triton"].prepare(case, inputs, backward)()
    theirs, exact = _compared(case, backward, seed)
    # A gradient sums rows of x or of the weight, with factors that add up to at most twice the incoming gradient: it
    # may be the small difference of large terms, and its rounding error is theirs. A product that sums n of them errs
    # by about sqrt(n) u (Higham & Mary 2019), u = 2^-24, in an order of the library's choosing.
    terms = max(1.0, *(tensor.abs().max().item() for tensor in inputs.values() if tensor.is_floating_point()))
    ulps = max(8.0, max(case.classes, case.tokens) ** 0.5 / 2)
    return inaccuracy(ours, theirs, exact, ulps=ulps, terms=terms)


@cache
def _compared(case: Case, backward: bool, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what eager cross entropy returns on a case, and what is exact."""
    inputs = cross_entropy.inputs(case, seed=seed)
    theirs = cross_entropy.providers()["eager"].prepare(case, inputs, backward)()
    return theirs, cross_entropy.results(case, inputs, backward)


def tensors(*shape: int, classes: int, width: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, width, generator=generator).requires_grad_()
    weight = torch.randn(classes, width, generator=generator).requires_grad_()
    return x, weight, torch.randint(classes, shape, generator=generator)


def exact_gradients(x: Tensor, weight: Tensor, target: Tensor, grad: Tensor, **options) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    return torch.autograd.grad(reference(*leaves, target, **options)["loss"], leaves, grad.double())
