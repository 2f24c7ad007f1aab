"""Attention as a PyTorch operator: opcheck, torch.compile, FLOP counters, and errors for what is not supported."""

from __future__ import annotations

import pytest
import torch
from attention_support import (
    PROVIDERS,
    small_tiles,  # noqa: F401 - a fixture
)
from scalekernels.attention import (
    CASES,
    Case,
    attention,
    cost,
    inputs,
)
from scalekernels.providers import Unsupported
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
def test_operators_pass_opcheck():
    q = torch.randn(1, 2, 7, 16, requires_grad=True)
    k, v = (torch.randn(1, 1, 9, 16, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.scalekernels.attention.default, (q, k, v, True, 0.25, True))
    q, k, v = q.detach(), k.detach(), v.detach()
    out, lse = torch.ops.scalekernels.attention(q, k, v, True, 0.25, True)
    for needs in ((True, True), (True, False), (False, True)):
        arguments = (out, q, k, v, out, lse, True, 0.25, True, *needs)
        torch.library.opcheck(torch.ops.scalekernels.attention_backward.default, arguments)


@pytest.mark.slow
@pytest.mark.usefixtures("small_tiles")
def test_compile_keeps_one_graph():
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q * 2, k, v, causal=True).square().sum()

    operands = inputs(Case(1, 2, 1, 18, 18, 16, True, torch.float32))
    tensors = [operands[name].requires_grad_() for name in ("q", "k", "v")]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    grads = torch.autograd.grad(compiled(*tensors), tensors)
    torch.testing.assert_close(grads, torch.autograd.grad(function(*tensors), tensors))


@pytest.mark.usefixtures("small_tiles")
def test_counters_see_the_flops():
    case = Case(2, 4, 2, 10, 12, 16, True, torch.float32)
    operands = inputs(case)
    tensors = [operands[name].requires_grad_() for name in ("q", "k", "v")]
    with FlopCounterMode(display=False) as counter:
        out = attention(*tensors, causal=True)
    assert counter.get_total_flops() == cost(case, backward=False).flops == 2 * 2 * 4 * 10 * 12 * 16
    with FlopCounterMode(display=False) as counter:
        out.backward(operands["grad_out"])
    assert counter.get_total_flops() == cost(case, backward=True).flops


@pytest.mark.usefixtures("small_tiles")
def test_a_second_derivative_is_refused():
    q = torch.randn(1, 1, 3, 16, requires_grad=True)
    (first,) = torch.autograd.grad(attention(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


def test_bfloat16_is_refused_by_the_interpreter():
    q = torch.randn(1, 1, 3, 16, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="allowed there: float16, float32"):
        attention(q, q, q)
    with pytest.raises(Unsupported, match="bfloat16"):
        PROVIDERS["triton"].prepare(Case(1, 1, 1, 3, 3, 16, False, torch.bfloat16), {}, False)
    with pytest.raises(Unsupported, match="backward pass alone"):
        PROVIDERS["triton-atomic"].prepare(CASES[0], {}, False)
