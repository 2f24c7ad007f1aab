"""Peak memory of linear cross entropy, and the accuracy of gradients summed in bfloat16."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_support import case_failure
from kernel_support import (
    poisoned_memory,  # noqa: F401 - a fixture
)
from scalekernels import cross_entropy
from scalekernels.cross_entropy import Case, linear_cross_entropy, memory
from torch import Tensor
from torch.autograd.profiler import profile  # torch.profiler's imports torch's compiler


def peak_bytes(loss: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, target: Tensor) -> int:
    """The most bytes that new tensors held at once during a loss and its gradients, by PyTorch's own accounting."""
    gc.collect()  # the interpreter keeps its arguments in cycles of references; a GPU's launch keeps nothing
    with profile(profile_memory=True) as recorded:
        value = loss(x, weight, target)
        gc.collect()
        grads = torch.autograd.grad(value, (x, weight))
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert held >= sum(gradient.nbytes for gradient in grads)
    return peak


@pytest.fixture
def scaled_down(monkeypatch) -> None:
    """The plan's memory rule for products of two sizes that are each smaller by 32."""
    for name in ("FEWEST_TOKENS", "MOST_TOKENS", "TOKEN_MULTIPLE"):
        monkeypatch.setattr(memory, name, getattr(memory, name) // 32)
    monkeypatch.setattr(memory, "WORKSPACE_BYTES", memory.WORKSPACE_BYTES // 1024)


def head(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """GPT-2's head, 8192 tokens × 50257 classes, and a width, each by 32: what fills the memory is less by 1024."""
    tensors = cross_entropy.inputs(Case(8192 // 32, width // 32, 50257 // 32, dtype))
    return tensors["x"].requires_grad_(), tensors["weight"].requires_grad_(), tensors["target"]


def eager(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), target)


@pytest.mark.slow
@pytest.mark.usefixtures("scaled_down")
@pytest.mark.parametrize(
    ("dtype", "width"), [*((torch.bfloat16, width) for width in (768, 1024, 2048, 4096)), (torch.float32, 768)]
)
def test_peak_memory_is_a_sixth_of_the_full_logits_path(dtype, width):
    """As the allocator saw it, inside of the operations too; without oneDNN, whose products allocate scratch."""
    x, weight, target = head(width, dtype)
    cross_entropy.weight_gradient_path("cpu", torch.bfloat16)  # tried once, not a part of any step
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):  # it speaks of TF32
        ours = peak_bytes(linear_cross_entropy, x, weight, target)
        theirs = peak_bytes(eager, x, weight, target)
    returned = x.nbytes + weight.nbytes
    spending = memory.plan(x.shape[0], x.shape[1], weight.shape[0], dtype)
    assert spending.accumulator == (torch.bfloat16 if dtype == torch.bfloat16 and width > 1024 else torch.float32)
    small = 2**15  # losses and numbers, and the copies of the interpreted product
    assert spending.peak_bytes <= ours - returned < spending.peak_bytes + small
    assert theirs >= 3 * x.shape[0] * weight.shape[0] * dtype.itemsize
    assert ours - returned <= (theirs - returned) / 6


@pytest.mark.slow
@pytest.mark.usefixtures("scaled_down")
@pytest.mark.parametrize("width", [768, 4096])
def test_bfloat16_gradients_are_as_accurate_as_eager_whatever_they_are_summed_in(width):
    """Summed in float32 at a width of 768, in bfloat16, in four chunks, at 4096."""
    case = Case(8192 // 32, width // 32, 50257 // 32, torch.bfloat16)
    assert case_failure(case, True) is None
    assert case_failure(case, False) is None


@pytest.mark.parametrize(("chunks", "expected"), [(1, 1.0), (4, 2.5**0.5), (32, 16.5**0.5)])
def test_a_sum_kept_in_bfloat16_errs_as_its_roundings_say(chunks, expected):
    """√((n + 1)/2) times the error of one rounding, n chunks of independent terms, as ``memory`` derives it."""
    generator = torch.Generator().manual_seed(0)
    total, exact = torch.empty(300, 40, dtype=torch.bfloat16), torch.zeros(300, 40, dtype=torch.float64)
    for chunk in range(chunks):
        left, right = (torch.randn(64, n, generator=generator).bfloat16() for n in (300, 40))
        cross_entropy.products.accumulate(total, left.t(), right, keep=chunk > 0)
        exact += left.t().double() @ right.double()
    error, rounding = ((rounded.double() - exact).square().mean().sqrt() for rounded in (total, exact.bfloat16()))
    assert error / rounding == pytest.approx(expected, rel=0.05)
