"""The norms under the interpreter, forward and backward, against ``reference`` in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import (
    error,
    install_mutant,
    poisoned_memory,  # noqa: F401 - a fixture
)
from norm_support import Compared, case_failure, compared, gradients
from scalekernels import norm
from scalekernels.norm import Case, layer_norm, reference, rms_norm

# Adds partial sums of wide rows in few programs: where their number proves nothing, for the interpreter's time.
WIDE_FINISH = norm.kernels.Tile(8, 4096, 4)


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("case", norm.CASES, ids=lambda case: case.label)
def test_every_case_is_as_accurate_as_torch(case, backward):
    assert case_failure(case, backward) is None


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("residual", [False, True])
def test_terms_bound_the_gradients_and_show_where_they_cancel(kind, residual):
    for width in (1, 30):
        case = Case(kind, 4, width, residual, torch.float32)
        tensors = norm.inputs(case)
        terms, exact = norm.terms(case, tensors, True), norm.results(case, tensors, True)
        assert terms.keys() == exact.keys()
        assert all(terms[name] >= exact[name].abs().max() for name in exact)
    # One number is its own mean: everything cancels, a residual's gradient aside.
    single = Case(kind, 4, 1, False, torch.float32)
    values = norm.inputs(single)
    assert norm.results(single, values, True)["x"].abs().max() < 1e-4 * norm.terms(single, values, True)["x"]


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
    """The sum of x and the residual is exact: in narrow rows its rounding is worth several of a gradient's own."""
    case = Case(kind, rows, width, residual, dtype)
    tensors = norm.inputs(case, seed=seed)
    tensors |= {name: (64 * tensors[name]).round() / 64 for name in ("x", "residual") if name in tensors}
    assert case_failure(case, backward, tensors=tensors) is None


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_rows_of_65536_numbers(monkeypatch, kind):
    monkeypatch.setattr(norm.kernels, "FINISH_TILE", WIDE_FINISH)
    for backward in (False, True):
        assert case_failure(Case(kind, 2, 65536, True, torch.float32), backward) is None


@pytest.mark.parametrize("programs", [1, 2, 5])
def test_the_number_of_programs_changes_nothing_but_rounding(monkeypatch, programs):
    monkeypatch.setattr(norm, "_programs", lambda *_: programs)
    for width in (3, 8200):
        if width > 3:
            monkeypatch.setattr(norm.kernels, "FINISH_TILE", WIDE_FINISH)
        assert case_failure(Case("layer", 45 if width == 3 else 6, width, False, torch.float32), True) is None


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_bfloat16(kind, backward):
    assert case_failure(Case(kind, 40, 100, True, torch.bfloat16), backward) is None


def test_gradients_repeat_to_the_bit():
    case = Case("layer", 50, 70, True, torch.float32)
    tensors = norm.inputs(case)
    first, second = (norm.providers()["triton"].prepare(case, tensors, True)() for _ in range(2))
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
    grads = torch.autograd.grad(ours, (x, weight), grad)
    for mine, oracle in zip(grads, torch.autograd.grad(exact, (exact_x, exact_weight), grad.double()), strict=True):
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
    grads, oracle = gradients((ours,), leaves), gradients((exact,), exact_leaves)
    assert [gradient.dtype for gradient in grads] == [torch.float16, torch.float32, torch.float32]
    # The incoming gradient is rounded to float16 first; each sum over 7 rows carries seven such roundings.
    assert all(error(mine, theirs) < 8 * 2**-11 * 4 for mine, theirs in zip(grads, oracle, strict=True))


@pytest.mark.parametrize("used", ["normed", "summed"])
def test_one_of_the_two_outputs_alone(used):
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(4, 9, generator=generator).requires_grad_() for _ in range(2))
    weight = torch.randn(9, generator=generator).requires_grad_()
    outputs = dict(zip(("normed", "summed"), rms_norm(x, weight, residual=residual), strict=True))
    exact = reference(x.double(), weight.double(), residual=residual.double())
    leaves = [x, residual] + [weight] * (used == "normed")
    grads, oracle = (gradients((pair[used],), leaves) for pair in (outputs, exact))
    assert all(error(mine, theirs.double()) < 2e-6 for mine, theirs in zip(grads, oracle, strict=True))


@pytest.mark.parametrize("wanted", ["weight", "bias", "both"])
def test_partial_sums_of_more_programs_than_one_pass_adds(monkeypatch, wanted):
    monkeypatch.setattr(norm, "INTERPRETED_MULTIPROCESSORS", 5)
    monkeypatch.setattr(norm.kernels, "FINISH_TILE", norm.kernels.Tile(2, 512, 4))
    generator = torch.Generator().manual_seed(0)
    x, grad = (torch.randn(19, 2000, generator=generator) for _ in range(2))
    weight, bias = (torch.randn(2000, generator=generator).requires_grad_(wanted in (name, "both"))
                    for name in ("weight", "bias"))  # fmt: skip
    leaves = [leaf for leaf in (weight, bias) if leaf.requires_grad]
    exact = torch.layer_norm(x.double(), (2000,), weight.double(), bias.double())
    grads = torch.autograd.grad(layer_norm(x, weight, bias), leaves, grad)
    oracle = torch.autograd.grad(exact, leaves, grad.double())
    assert all(error(mine, theirs) < 1e-5 for mine, theirs in zip(grads, oracle, strict=True))


@pytest.mark.parametrize(("rows", "programs"), [(16384, 512), (16385, 513), (3, 3), (528, 528), (529, 265)])
def test_programs_of_the_backward_have_equal_numbers_of_tiles(monkeypatch, rows, programs):
    monkeypatch.setattr(norm, "INTERPRETED_MULTIPROCESSORS", 132)
    tile = norm.kernels.Tile(1, 2048, 4, 4)
    assert norm._programs(torch.device("cpu"), rows, tile) == programs


@pytest.mark.parametrize("layer", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_buffers_of_the_backward_fit_every_device(itemsize, residual, layer):
    for tile in norm.kernels.BACKWARD_TILES.values():
        buffers = norm.kernels.stages(tile, itemsize, layer, residual) - 1
        weight = 0 if norm.kernels.keeps_weight(tile, itemsize, layer) else tile.block * itemsize
        rows = tile.rows * tile.block * itemsize * (2 + residual)
        assert buffers == 1 or buffers * tile.programs * (rows + weight) <= 96 << 10
        assert buffers == 3 or buffers * tile.programs * rows >= 48 << 10


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


# A line of the kernels (or two), the part of it that is changed, and what it becomes.
MUTATIONS = {
    "mask one short": ("inside = present[:, None] & (column < width)[None, :]\n    at", "< width", "< width - 1"),
    "padding in the variance": ("value = tl.where(inside, value - centre[:, None], 0.0)\n    scale", "inside", "True"),
    "wrong eps": ("/ width + eps)\n    tl.store(rstd + row, scale, mask=present)", "eps", "2 * eps"),
    "blocks not weighed": ("centre += difference * share", "share", "0.5"),
    "spread between blocks lost": ("squares += difference * difference * share * start", "start", "0"),
    "projection lost": ("result -= value * (product * share * scale)[:, None]", "share", "0"),
    "mean of the gradient lost": ("- (total * share * scale)[:, None]", "share", "0"),
    "sums of a row mixed": ("return first + other_first, second + other_second", "other_second", "other_first"),
    "gradient of the sum lost": (
        "            result += more.to(tl.float32)\n        tl.store(dx + row[:, None] * width",
        "+= more",
        "+= 0 * more",
    ),
    "last tile lost": ("in tl.range(program, tl.cdiv(rows, ROWS), programs", "ROWS),", "ROWS) - 1,"),
    "last partial sums lost": ("inside = (row < parts)[:, None] & (column", "parts", "parts - 1"),
    "sums of the wrong parameter": (
        "add_parts(dbias_parts, dbias, parts, width, column, ROWS)\n    elif tl.program_id(1) == 0",
        "== 0",
        ">= 0",
    ),
    "wide products of raw values": ("products += tl.sum(incoming * (value - centre) * scale)", "- centre", "- 0"),
    "wide deviation lost": ("weight_sum += incoming * value * tl.load(rstd + row", "tl.load", "0.5 + 0 * tl.load"),
}


CASES_OF_MUTANTS = (Case("layer", 20, 100, True, torch.float32), Case("layer", 3, 8300, True, torch.float32))


@pytest.fixture(scope="module")
def revealing() -> list[tuple[dict[str, torch.Tensor], list[Compared]]]:
    """Values that a wrong mean, a forgotten eps or a lost block would change, of each case, and what they give."""
    values = []
    for case in CASES_OF_MUTANTS:
        tensors = norm.inputs(case)
        tensors["x"] = tensors["x"] * 0.01 + torch.linspace(0, 1, case.width)
        tensors["residual"] *= 0.01
        tensors["x"][0] = tensors["residual"][0] = 0
        tensors["grad_normed"] += 1
        values.append((tensors, [compared(case, backward, tensors) for backward in (False, True)]))
    return values


def fails(revealing, index, backward) -> bool:
    tensors, known = revealing[index]
    return case_failure(CASES_OF_MUTANTS[index], backward, tensors, known[backward]) is not None


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_same_acceptance(monkeypatch, tmp_path, revealing, mutation):
    line, part, changed = MUTATIONS[mutation]
    assert line.count(part) == 1
    install_mutant(monkeypatch, tmp_path, norm.kernels, line, line.replace(part, changed))
    monkeypatch.setattr(norm.kernels, "FINISH_TILE", WIDE_FINISH)
    assert any(fails(revealing, index, backward) for index in (0, 1) for backward in (False, True))


@pytest.mark.parametrize("finish", [norm.kernels.FINISH_TILE, WIDE_FINISH], ids=["shipped", "wide"])
def test_the_values_that_reveal_broken_kernels_are_accepted_of_sound_ones(monkeypatch, revealing, finish):
    monkeypatch.setattr(norm.kernels, "FINISH_TILE", finish)
    assert not any(fails(revealing, index, backward) for index in (0, 1) for backward in (False, True))
