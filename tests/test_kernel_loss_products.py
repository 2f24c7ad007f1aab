"""Linear cross entropy: how weight's gradient is summed, where it launches, and which derivatives it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_support import guarded_launches
from scalekernels.cross_entropy import linear_cross_entropy, memory, products, weight_gradient_path
from torch import Tensor

CPU = torch.device("cpu")
HALVES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])


@pytest.fixture(autouse=True)
def undecided() -> Iterator[None]:
    """No path has been tried on any device."""
    products._path.cache_clear()
    yield
    products._path.cache_clear()


def exact_addmm(total: Tensor, left: Tensor, right: Tensor, *, out_dtype: Any, beta: float, out: Tensor) -> Tensor:
    """``torch.addmm`` as a GPU has it for 16-bit factors."""
    assert out is total
    assert out_dtype is torch.float32
    product = left.float() @ right.float()
    return out.copy_(product if beta == 0 else beta * total + product)


def rounded_addmm(total: Tensor, left: Tensor, right: Tensor, *, out_dtype: Any, beta: float, out: Tensor) -> Tensor:
    """One that rounds the product to 16 bits."""
    del out_dtype
    product = (left.float() @ right.float()).to(left.dtype).float()
    return out.copy_(product if beta == 0 else beta * total + product)


def multiplying_nan(total: Tensor, left: Tensor, right: Tensor, *, out_dtype: Any, beta: float, out: Tensor) -> Tensor:
    """One that multiplies what lies in the memory of the result by zero instead of leaving it out."""
    del out_dtype
    return out.copy_(beta * total + left.float() @ right.float())


def exact_mm(left: Tensor, right: Tensor, *, out_dtype: Any) -> Tensor:
    """``torch.mm`` as a GPU has it for 16-bit factors."""
    return left.to(out_dtype) @ right.to(out_dtype)


@HALVES
def test_a_cpu_has_no_product_with_another_dtype_and_takes_copies(dtype):
    assert weight_gradient_path("cpu", dtype) == "float32 copies"
    with pytest.raises(RuntimeError, match=r"addmm\.dtype_out|not implemented|Could not run"):
        products.PATHS["addmm"](torch.zeros(2, 2), torch.ones(2, 2, dtype=dtype), torch.ones(2, 2, dtype=dtype), True)


@HALVES
@pytest.mark.parametrize(
    ("addmm", "mm", "expected"),
    [
        (exact_addmm, exact_mm, "addmm"),
        (rounded_addmm, exact_mm, "mm"),
        (multiplying_nan, exact_mm, "mm"),
        (None, exact_mm, "mm"),
        (None, None, "float32 copies"),
    ],
)
def test_the_first_path_that_is_right_is_taken_and_gives_the_same_sum(monkeypatch, dtype, addmm, mm, expected):
    if addmm:
        monkeypatch.setattr(torch, "addmm", addmm)
    if mm:
        monkeypatch.setattr(torch, "mm", mm)
    assert weight_gradient_path(CPU, dtype) == expected
    monkeypatch.setattr(products, "TEMPORARY_BYTES", 4 * 5 * 3)  # three classes at a time
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(17, 10, generator=generator).to(dtype), torch.randn(17, 5, generator=generator).to(dtype)
    total, exact = torch.full((10, 5), torch.nan), left.double().t() @ right.double()
    products.accumulate(total, left.t(), right, keep=False)
    assert (total.double() - exact).abs().max() < 1e-5
    products.accumulate(total, left.t(), right, keep=True)
    assert (total.double() - 2 * exact).abs().max() < 2e-5


def test_running_out_of_memory_is_not_taken_for_a_missing_product(monkeypatch):
    def exhausted(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "addmm", exhausted)
    with pytest.raises(torch.OutOfMemoryError):
        weight_gradient_path(CPU, torch.bfloat16)


def test_the_gradient_through_another_path_is_the_same(monkeypatch):
    monkeypatch.setattr(memory, "FEWEST_TOKENS", 4)
    monkeypatch.setattr(memory, "MOST_TOKENS", 4)
    monkeypatch.setattr(memory, "TOKEN_MULTIPLE", 1)
    gradients = []
    for _ in range(2):
        x, weight, target = leaves(torch.float16)
        gradients.append(torch.autograd.grad(linear_cross_entropy(x, weight, target), weight)[0])
        products._path.cache_clear()
        monkeypatch.setattr(torch, "addmm", exact_addmm)
    assert weight_gradient_path(CPU, torch.float16) == "addmm"
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-6)


def leaves(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 6, generator=generator).to(dtype).requires_grad_() for n in (11, 20))
    return x, weight, torch.randint(20, (11,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_gradient_penalty_is_an_error_by_name(reduction, dtype):
    x, weight, target = leaves(dtype)
    loss = linear_cross_entropy(x, weight, target, reduction=reduction).sum()
    plain = torch.autograd.grad(loss, (x, weight), retain_graph=True)
    graphed = torch.autograd.grad(loss, (x, weight), create_graph=True)
    for gradient, by_graph in zip(plain, graphed, strict=True):
        assert torch.equal(gradient, by_graph)
        assert by_graph.requires_grad
    with pytest.raises(RuntimeError, match="linear_cross_entropy has no second derivative"):
        (graphed[0].square().sum() + loss).backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by torch.func itself
def test_forward_mode_is_an_error_by_name():
    x, weight, target = leaves()
    x, weight = x.detach(), weight.detach()
    for name, function, at in (
        ("x", lambda x: linear_cross_entropy(x, weight, target), x),
        ("weight", lambda weight: linear_cross_entropy(x, weight, target), weight),
    ):
        with pytest.raises(RuntimeError, match=f"linear_cross_entropy has no forward-mode derivative .{name} has"):
            torch.func.jvp(function, (at,), (torch.ones_like(at),))
    assert torch.func.jvp(lambda s: s * linear_cross_entropy(x, weight, target), (torch.ones(()),), (torch.ones(()),))[
        1
    ] == pytest.approx(F.cross_entropy(F.linear(x, weight), target).item())


def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch):
    launched = guarded_launches(
        monkeypatch, {linear_cross_entropy.__module__ + ".kernels": ("losses", "scaled", "scale")}
    )
    for dtype in (torch.float32, torch.float16):
        for reduction in ("mean", "none"):
            x, weight, target = leaves(dtype)
            linear_cross_entropy(x, weight, target, reduction=reduction).sum().backward()
    assert set(launched) == {"losses", "scaled", "scale"}
