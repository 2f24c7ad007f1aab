"""The float64 oracle of attention by blocks, and the plain path in parts, against autograd of the whole reference."""

from __future__ import annotations

import pytest
import torch
from kernel_support import inaccuracy
from scalekernels.attention import CASES, Case, eager_in_parts, inputs, providers, reference, results, terms
from scalekernels.attention.oracle import blocks, exact_results, largest_terms
from torch import Tensor

GROUPED = Case(2, 6, 2, 23, 41, 16, True, torch.float32)


def whole(case: Case, tensors: dict[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """The reference and its autograd, in the dtype of the inputs."""
    q, k, v = (tensors[name].clone().requires_grad_() for name in ("q", "k", "v"))
    out = reference(q, k, v, causal=case.causal)["out"]
    if not backward:
        return {"out": out.detach()}
    outputs = torch.autograd.grad(out, (q, k, v), tensors["grad_out"])
    return dict(zip(("grad_q", "grad_k", "grad_v"), outputs, strict=True))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", [*CASES, GROUPED], ids=lambda case: case.label)
def test_blocks_give_what_the_whole_gives_in_float64(case: Case, backward: bool) -> None:
    tensors = inputs(case)
    expected = whole(case, {name: tensor.double() for name, tensor in tensors.items()}, backward)
    row = 8 * case.query_heads // case.key_heads * case.key_length
    for block_bytes in (1, 5 * row, 3 * row * case.query_length, 1 << 30):
        outputs = exact_results(case, tensors, backward, block_bytes)
        assert outputs.keys() == expected.keys()
        for name, exact in expected.items():
            assert outputs[name].dtype == torch.float64
            torch.testing.assert_close(outputs[name], exact, rtol=1e-12, atol=1e-13)
    assert all(torch.equal(outputs[name], tensor) for name, tensor in results(case, tensors, backward).items())


def test_blocks_cover_every_query_of_every_head_once_and_stay_small() -> None:
    case = Case(2, 8, 2, 300, 210, 64, True, torch.bfloat16)
    for block_bytes in (1, 30_000, 500_000, 9_000_000):  # one row, four rows, a quarter of a head, all heads
        times = torch.zeros(4, 300, dtype=torch.int32)
        for block in blocks(case, block_bytes):
            times[block.heads, block.queries] += 1
            heads, rows = times[block.heads, block.queries].shape
            assert 8 * heads * 4 * rows * 210 <= max(block_bytes, 8 * 4 * 210)
            assert block.keys == min(block.queries.stop, 210)
        assert (times == 1).all()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", [CASES[2], CASES[5], GROUPED], ids=lambda case: case.label)
def test_the_plain_path_in_parts_is_the_plain_path(case: Case, backward: bool) -> None:
    tensors = inputs(case)
    expected = providers()["eager"].prepare(case, tensors, backward)()
    outputs = eager_in_parts(case, tensors, backward)
    assert outputs.keys() == expected.keys()
    for name, plain in expected.items():
        assert outputs[name].dtype == case.dtype
        eps = torch.finfo(case.dtype).eps
        torch.testing.assert_close(outputs[name], plain, rtol=4 * eps, atol=4 * eps)


@pytest.mark.parametrize("case", [CASES[3], CASES[9], GROUPED], ids=lambda case: case.label)
def test_terms_are_the_largest_sums_of_magnitudes(case: Case) -> None:
    tensors = inputs(case)
    group = case.query_heads // case.key_heads
    q, g = tensors["q"].double(), tensors["grad_out"].double()
    k, v = (tensors[name].double().repeat_interleave(group, 1) for name in ("k", "v"))
    scale = case.head_dimension**-0.5
    hidden = torch.ones(case.query_length, case.key_length).triu(1).bool() & case.causal
    p = (q @ k.mT * scale).masked_fill(hidden, -torch.inf).softmax(-1)
    delta = (p @ v * g).sum(-1, keepdim=True)
    ds = scale * p * ((g @ v.mT).abs() + delta.abs())

    def grouped(tensor: Tensor) -> float:
        return float(tensor.unflatten(1, (case.key_heads, group)).sum(2).max())

    expected = {
        "grad_q": float((ds @ k.abs()).max()), "grad_k": grouped(ds.mT @ q.abs()), "grad_v": grouped(p.mT @ g.abs()),
    }  # fmt: skip
    for block_bytes in (1, 1 << 30):
        assert largest_terms(case, tensors, True, block_bytes) == pytest.approx(expected)
    assert terms(case, tensors, False) == pytest.approx({"out": float((p @ v.abs()).max())})


@pytest.mark.parametrize(
    ("length", "head_dimension", "causal"),
    [
        (1, 16, True), (193, 16, True), pytest.param(193, 32, False, marks=pytest.mark.slow),
        pytest.param(193, 64, False, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_our_float32_gradients_pass_and_those_off_by_a_ten_thousandth_fail(
    length: int, head_dimension: int, causal: bool
) -> None:
    case = Case(1, 2, 1 if length > 1 else 2, length, length, head_dimension, causal, torch.float32)
    tensors = inputs(case)
    exact, summed = results(case, tensors, True), terms(case, tensors, True)
    eager = providers()["eager"].prepare(case, tensors, True)()
    ours = providers()["triton"].prepare(case, tensors, True)()
    assert inaccuracy(ours, eager, exact, terms=summed) is None
    for name, tensor in ours.items():
        if float(exact[name].abs().max()) > 1e-6:
            broken = dict(ours) | {name: tensor * (1 + 1e-4)}
            assert (inaccuracy(broken, eager, exact, terms=summed) or "").startswith(name)
