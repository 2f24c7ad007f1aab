"""The norms as PyTorch operators: opcheck, torch.compile, derivatives, wrong arguments, launches."""

from __future__ import annotations

import pytest
import torch
from kernel_support import (
    error,
    guarded_launches,
    poisoned_memory,  # noqa: F401 - a fixture
)
from norm_support import LAUNCHED, gradients
from scalekernels import norm
from scalekernels.norm import Case, layer_norm, reference, rms_norm
from torch import Tensor
from torch._functorch import config as functorch
from torch.autograd import forward_ad


def test_only_what_needs_a_gradient_gets_one():
    for needed in range(3):
        leaves = [torch.randn(shape) for shape in ((5, 12), (12,), (12,))]
        leaves[needed].requires_grad_()
        layer_norm(*leaves).square().sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [index == needed for index in range(3)]
    with torch.no_grad():
        assert not layer_norm(*leaves).requires_grad


@pytest.mark.parametrize(
    ("kind", "residual"),
    [
        ("layer", True),
        pytest.param("layer", False, marks=pytest.mark.slow),
        pytest.param("rms", True, marks=pytest.mark.slow),
        pytest.param("rms", False, marks=pytest.mark.slow),
    ],
)
@functorch.patch(cse=False)  # which imports inductor
def test_opcheck(kind, residual):
    tensors = norm.inputs(Case(kind, 3, 10, residual, torch.float32))
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    arguments = (leaves["x"], leaves["weight"], leaves.get("bias"), leaves.get("residual"), 1e-5, kind == "layer")
    torch.library.opcheck(torch.ops.scalekernels.norm.default, arguments)
    _, summed, mean, rstd = torch.ops.scalekernels.norm(
        *(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    )
    plain = {name: tensor.detach() for name, tensor in tensors.items()}
    value = summed if residual else plain["x"]
    torch.library.opcheck(
        torch.ops.scalekernels.norm_gradients.default,
        (
            plain["grad_normed"],
            plain.get("grad_summed"),
            value,
            plain["weight"],
            mean,
            rstd,
            kind == "layer",
            torch.float32,
            None,
        ),
    )


@pytest.mark.parametrize(("rows", "width"), [(300, 33), (10, 8200)])
def test_gradients_of_parameters_come_in_their_dtype_from_one_launch(monkeypatch, rows, width):
    """In 16 bits as in float32, of weight and bias together, rounded once from sums in float32."""
    launched = guarded_launches(monkeypatch, {"scalekernels.norm.kernels": LAUNCHED})
    if width > 8192:  # the interpreter takes seconds for as many programs as the shipped tile has there
        monkeypatch.setattr(norm.kernels, "FINISH_TILE", norm.kernels.Tile(8, 4096, 4))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x, weight, bias = (torch.randn(shape).half().requires_grad_() for shape in ((rows, width), (width,), (width,)))
        x, weight, bias = (tensor.detach().to(dtype).requires_grad_() for tensor in (x, weight, bias))
        launched.clear()
        grad = torch.randn(rows, width).to(dtype)
        out = layer_norm(x, weight, bias)
        out.backward(grad)
        assert launched == (
            ["forward", "backward", "finish"]
            if width < 8192
            else ["forward_wide", "backward_wide", "parameters_wide", "finish"]
        )
        assert out.dtype == weight.grad.dtype == bias.grad.dtype == dtype
        exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight, bias)]
        reference(*exact, kind="layer")["normed"].backward(grad.double())
        unit = torch.finfo(dtype).eps
        for mine, oracle in ((weight.grad, exact[1].grad), (bias.grad, exact[2].grad)):
            assert error(mine, oracle) <= (unit if dtype != torch.float32 else 32 * unit) * oracle.abs().max()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by forward_ad itself
def test_derivatives_that_there_are_not_are_errors_by_name():
    x, weight = torch.randn(4, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    for norm_of in (rms_norm, layer_norm):
        (gradient,) = torch.autograd.grad(norm_of(x, weight).square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match="rms_norm and layer_norm have no second derivative"):
            gradient.square().sum().backward()
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x.detach(), torch.ones(4, 8))
            with pytest.raises(RuntimeError, match=f"{norm_of.__name__} has no forward-mode derivative"):
                norm_of(dual, weight.detach())


@functorch.patch(cse=False)  # which imports inductor
def test_compile_keeps_one_graph():
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    def block(x, weight, bias, residual):
        normed, summed = layer_norm(x, weight, bias, residual=residual)
        return rms_norm(normed * 2, weight) + summed

    leaves = [torch.randn(shape, requires_grad=True) for shape in ((2, 3, 16), (16,), (16,), (2, 3, 16))]
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    ours, plain = compiled(*leaves), block(*leaves)
    assert torch.equal(ours, plain)
    for mine, theirs in zip(gradients((ours,), leaves), gradients((plain,), leaves), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-6)
    assert len(graphs) == 1


X = torch.ones(2, 6)


@pytest.mark.parametrize(
    ("call", "raised", "words"),
    [
        (lambda: rms_norm(torch.ones(3, 0)), ValueError, r"x has shape \(3, 0\)"),
        (lambda: rms_norm(torch.tensor(1.0)), ValueError, r"x has shape \(\)"),
        (lambda: rms_norm(X.double()), TypeError, "x is float64; allowed: float16, bfloat16, float32"),
        (lambda: rms_norm(X, torch.ones(5)), ValueError, r"weight has shape \(5,\)"),
        (lambda: rms_norm(X, torch.ones(6).half()), TypeError, "weight is float16"),
        (lambda: layer_norm(X, torch.ones(6), torch.ones(2, 6)), ValueError, r"bias has shape \(2, 6\)"),
        (lambda: layer_norm(X, residual=X[0]), ValueError, r"residual has shape \(6,\)"),
        (lambda: layer_norm(X, residual=X.half()), TypeError, "residual is float16"),
    ],
)
def test_a_wrong_argument_is_named(call, raised, words):
    with pytest.raises(raised, match=words):
        call()


CONSTANTS = ("ROWS", "BLOCK", "KEEP", "STAGES")


def test_what_is_launched_is_what_is_compiled_ahead_of_time(monkeypatch):
    compiled = {
        (launch.function.__name__, launch.num_warps, launch.num_stages, *sorted(launch.constants.items(), key=str))
        for launch in norm.compilations(90)
    }
    launched = []

    class Spy:
        def __init__(self, kernel):
            self.kernel, self.name = kernel, kernel.fn.__name__

        def __getitem__(self, grid):
            def launch(*arguments, **options):  # computes nothing: which kernel is launched depends on no value
                names = self.kernel.arg_names
                constants = {name: None for name, value in zip(names, arguments, strict=False) if value is None}
                constants |= {name: options.pop(name) for name in CONSTANTS if name in options}
                launched.append(
                    (self.name, options["num_warps"], options["num_stages"], *sorted(constants.items(), key=str))
                )

            return launch

    for name in LAUNCHED:
        monkeypatch.setattr(norm.kernels, name, Spy(getattr(norm.kernels, name)))
    for kind in ("rms", "layer"):
        for residual in (False, True):
            for width in (5, 200, 300, 700, 1500, 2500, 5000, 9000):
                case = Case(kind, 2, width, residual, torch.float32)
                norm.providers()["triton"].prepare(case, norm.inputs(case), True)()
    assert len(launched) == 2 * 2 * (7 * 3 + 4)
    assert set(launched) <= compiled
