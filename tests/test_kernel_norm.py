"""The norms' kernels under the interpreter, forward and backward, against ``reference`` in float64."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import guarded_launches, inaccuracy, install_mutant, poisoned
from scalekernels import norm
from scalekernels.norm import Case, layer_norm, reference, rms_norm
from torch import Tensor
from torch.autograd import forward_ad

LAUNCHED = ("forward", "forward_wide", "backward", "backward_wide", "parameters_wide", "finish")

FORWARD_BACKWARD = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """Memory that comes from torch.empty holds NaN: what a kernel forgets to write shows."""
    with poisoned():
        yield


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return (found.detach().double() - exact).abs().max().item() if exact.numel() else 0.0


def case_failure(case: Case, backward: bool, seed: int = 0, given: Mapping[str, Tensor] | None = None) -> str | None:
    """Why our norm fails the acceptance rule on a case, by inputs of its own or those of a seed."""
    given = norm.inputs(case, seed=seed) if given is None else given
    providers = norm.providers()
    ours, theirs = (providers[name].prepare(case, given, backward)() for name in ("triton", "eager"))
    return inaccuracy(ours, theirs, norm.results(case, given, backward))


def gradients(outputs: tuple[Tensor, ...], leaves: list[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    grads = [torch.randn(output.shape, generator=generator).to(output.dtype) for output in outputs]
    return torch.autograd.grad(outputs, leaves, grads)


@FORWARD_BACKWARD
@pytest.mark.parametrize("case", norm.CASES, ids=lambda case: case.label)
def test_every_case_is_as_accurate_as_torch(case, backward):
    assert case_failure(case, backward) is None


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["rms", "layer"]),
    rows=st.integers(1, 70),
    width=st.one_of(st.integers(1, 20), st.integers(120, 140), st.integers(250, 1100)),
    residual=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    backward=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_is_as_accurate_as_torch(kind, rows, width, residual, dtype, backward, seed):
    assert case_failure(Case(kind, rows, width, residual, dtype), backward, seed) is None


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_rows_of_65536_numbers(kind):
    for backward in (False, True):
        assert case_failure(Case(kind, 2, 65536, True, torch.float32), backward) is None


@pytest.mark.parametrize("programs", [1, 2, 5])
def test_the_number_of_programs_changes_nothing_but_rounding(monkeypatch, programs):
    monkeypatch.setattr(norm, "_programs", lambda *_: programs)
    for width in (3, 8200):
        assert case_failure(Case("layer", 45 if width == 3 else 6, width, False, torch.float32), True) is None


def test_gradients_repeat_to_the_bit():
    case = Case("layer", 50, 70, True, torch.float32)
    given = norm.inputs(case)
    first, second = (norm.providers()["triton"].prepare(case, given, True)() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("layout", ["rows apart", "three dimensions", "columns apart", "transposed", "expanded"])
def test_any_layout_of_x_and_of_the_incoming_gradient(layout):
    whole = torch.randn(4, 6, 40, generator=torch.Generator().manual_seed(0))
    x = {
        "rows apart": whole[..., :33],
        "three dimensions": whole[:, 1:4, 3:],
        "columns apart": whole[..., ::2],
        "transposed": whole.transpose(0, 1),
        "expanded": whole[:1].expand(4, 6, 40),
    }[layout].requires_grad_()
    weight = torch.randn(x.shape[-1], generator=torch.Generator().manual_seed(1)).requires_grad_()
    grad = torch.randn(x.shape[::-1], generator=torch.Generator().manual_seed(2)).permute(2, 1, 0)
    exact_x, exact_weight = (tensor.detach().double().requires_grad_() for tensor in (x, weight))
    ours, exact = rms_norm(x, weight), reference(exact_x, exact_weight)["normed"]
    assert error(ours, exact) < 2e-6
    found = torch.autograd.grad(ours, (x, weight), grad)
    for mine, oracle in zip(found, torch.autograd.grad(exact, (exact_x, exact_weight), grad.double()), strict=True):
        assert error(mine, oracle) < 2e-5
    assert torch.autograd.grad(rms_norm(x, weight).sum(), x)[0].isfinite().all()  # a gradient of stride 0


def test_without_parameters():
    x = torch.randn(5, 19, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for ours, exact in ((rms_norm(x), torch.rms_norm(x, (19,), eps=1e-6)), (layer_norm(x), torch.layer_norm(x, (19,)))):
        assert error(ours, exact.double()) < 2e-6
        assert error(gradients((ours,), [x])[0], gradients((exact,), [x])[0].double()) < 2e-6


def test_float32_parameters_beside_float16_rows():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 50, generator=generator).half().requires_grad_()
    weight, bias = (torch.randn(50, generator=generator).requires_grad_() for _ in range(2))
    ours = layer_norm(x, weight, bias)
    leaves = [x, weight, bias]
    exact_leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    exact = reference(*exact_leaves, kind="layer", eps=1e-5)["normed"]
    assert ours.dtype == torch.float16
    assert error(ours, exact) <= 2**-11 * exact.abs().max()
    found, oracle = gradients((ours,), leaves), gradients((exact,), exact_leaves)
    assert [gradient.dtype for gradient in found] == [torch.float16, torch.float32, torch.float32]
    # The incoming gradient is rounded to float16 first; each sum over 7 rows carries seven such roundings.
    assert all(error(mine, theirs) < 8 * 2**-11 * 4 for mine, theirs in zip(found, oracle, strict=True))


@pytest.mark.parametrize("used", ["normed", "summed"])
def test_one_of_the_two_outputs_alone(used):
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(4, 9, generator=generator).requires_grad_() for _ in range(2))
    weight = torch.randn(9, generator=generator).requires_grad_()
    outputs = dict(zip(("normed", "summed"), rms_norm(x, weight, residual=residual), strict=True))
    exact = reference(x.double(), weight.double(), residual=residual.double())
    leaves = [x, residual] + [weight] * (used == "normed")
    found, oracle = (gradients((one[used],), leaves) for one in (outputs, exact))
    assert all(error(mine, theirs.double()) < 2e-6 for mine, theirs in zip(found, oracle, strict=True))


def test_only_what_needs_a_gradient_gets_one():
    for needed in range(3):
        leaves = [torch.randn(shape) for shape in ((5, 12), (12,), (12,))]
        leaves[needed].requires_grad_()
        layer_norm(*leaves).square().sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [index == needed for index in range(3)]
    with torch.no_grad():
        assert not layer_norm(*leaves).requires_grad


def test_no_rows():
    x, weight = torch.empty(0, 3, 8, requires_grad=True), torch.ones(8, requires_grad=True)
    out, summed = rms_norm(x, weight, residual=torch.empty(0, 3, 8))
    (out.sum() + summed.sum()).backward()
    assert out.shape == summed.shape == x.grad.shape == (0, 3, 8)
    assert torch.equal(weight.grad, torch.zeros(8))


def test_large_means_cost_no_accuracy():
    """The variance is taken around the mean, also over blocks of a wide row; E[x²] − E[x]² would be noise here."""
    for width in (100, 9000):
        x = torch.randn(2, width, generator=torch.Generator().manual_seed(0)) + 3000
        exact = reference(x.double(), kind="layer")["normed"]
        assert error(layer_norm(x), exact) < 2 * max(error(torch.layer_norm(x, (width,)), exact), 1e-4)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_opcheck(kind, residual):
    given = norm.inputs(Case(kind, 3, 10, residual, torch.float32))
    leaves = {name: tensor.requires_grad_() for name, tensor in given.items()}
    arguments = (leaves["x"], leaves["weight"], leaves.get("bias"), leaves.get("residual"), 1e-5, kind == "layer")
    torch.library.opcheck(torch.ops.scalekernels.norm.default, arguments)
    _, summed, mean, rstd = torch.ops.scalekernels.norm(
        *(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    )
    plain = {name: tensor.detach() for name, tensor in given.items()}
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


@pytest.mark.parametrize("width", [33, 8200])
def test_gradients_of_parameters_come_in_their_dtype_from_one_launch(monkeypatch, width):
    """In 16 bits as in float32, of weight and bias together, rounded once from sums in float32."""
    launched = guarded_launches(monkeypatch, "scalekernels.norm.kernels", LAUNCHED)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        x, weight, bias = (torch.randn(shape).half().requires_grad_() for shape in ((300, width), (width,), (width,)))
        x, weight, bias = (tensor.detach().to(dtype).requires_grad_() for tensor in (x, weight, bias))
        launched.clear()
        grad = torch.randn(300, width).to(dtype)
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


# A line of the kernels (or two), the part of it that is changed, and what it becomes.
MUTATIONS = {
    "mask one short": ("inside = present[:, None] & (column < width)[None, :]\n    at", "< width", "< width - 1"),
    "padding in the variance": ("value = tl.where(inside, value - centre[:, None], 0.0)\n    scale", "inside", "True"),
    "wrong eps": ("/ width + eps)\n    tl.store(rstd + row, scale, mask=present)", "eps", "2 * eps"),
    "blocks not weighed": ("centre += difference * share", "share", "0.5"),
    "spread between blocks lost": ("squares += difference * difference * share * start", "start", "0"),
    "projection lost": ("result = incoming - value * (tl.sum(incoming * value, axis=1) / width)", " / ", " * 0 / "),
    "mean of the gradient lost": ("result -= (tl.sum(incoming, axis=1) / width)[:, None]", " / ", " * 0 / "),
    "gradient of the sum lost": (
        "            result += more.to(tl.float32)\n        tl.store(dx + row[:, None] * width",
        "+= more",
        "+= 0 * more",
    ),
    "last tile lost": ("in tl.range(program, tl.cdiv(rows, ROWS), programs", "ROWS),", "ROWS) - 1,"),
    "last partial sums lost": ("for start in range(0, parts, ROWS)", "parts, ROWS", "parts - 1, ROWS"),
    "wide products of raw values": ("products += tl.sum(incoming * (value - centre) * scale)", "- centre", "- 0"),
    "wide deviation lost": ("weight_sum += incoming * value * tl.load(rstd + row", "tl.load", "0.5 + 0 * tl.load"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_same_acceptance(monkeypatch, tmp_path, mutation):
    line, part, changed = MUTATIONS[mutation]
    assert line.count(part) == 1
    cases = (Case("layer", 20, 100, True, torch.float32), Case("layer", 3, 8300, True, torch.float32))
    given = {case: norm.inputs(case) for case in cases}
    for case in cases:  # values that a wrong mean, a forgotten eps or a lost block would change
        given[case]["x"] = given[case]["x"] * 0.01 + torch.linspace(0, 1, case.width)
        given[case]["residual"] *= 0.01
        given[case]["x"][0] = given[case]["residual"][0] = 0
        given[case]["grad_normed"] += 1

    def failures() -> list[str | None]:
        return [case_failure(case, backward, given=given[case]) for case in cases for backward in (False, True)]

    install_mutant(monkeypatch, tmp_path, norm.kernels, line, line.replace(part, changed))
    assert any(failures())
    monkeypatch.undo()
    assert not any(failures())


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


def test_what_is_launched_is_what_is_compiled_ahead_of_time(monkeypatch):
    compiled = {(one.function.__name__, one.num_warps, one.num_stages, *sorted(one.constants.items(), key=str))
                for one in norm.compilations(90)}  # fmt: skip
    launched = []

    class Spy:
        def __init__(self, kernel):
            self.kernel, self.name = kernel, kernel.fn.__name__

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                names = self.kernel.arg_names
                constants = {name: None for name, value in zip(names, arguments, strict=False) if value is None}
                constants |= {name: options.pop(name) for name in ("ROWS", "BLOCK")}
                launched.append(
                    (self.name, options["num_warps"], options["num_stages"], *sorted(constants.items(), key=str))
                )
                return self.kernel[grid](*arguments, **constants_only(constants), **options)

            return launch

    def constants_only(constants):
        return {name: value for name, value in constants.items() if name in ("ROWS", "BLOCK")}

    for name in LAUNCHED:
        monkeypatch.setattr(norm.kernels, name, Spy(getattr(norm.kernels, name)))
    for kind in ("rms", "layer"):
        for residual in (False, True):
            for width in (5, 200, 300, 700, 1500, 2500, 5000, 9000):
                assert case_failure(Case(kind, 2, width, residual, torch.float32), True) is None
    assert len(launched) == 2 * 2 * (7 * 3 + 4)
    assert set(launched) <= compiled
