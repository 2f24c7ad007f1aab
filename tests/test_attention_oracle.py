"""The float64 oracle of attention by blocks, and the plain path in parts, against autograd of the whole reference."""

from __future__ import annotations

import pytest
import torch
from scalekernels.attention import CASES, Case, eager_in_parts, inputs, providers, reference, results
from scalekernels.attention.oracle import blocks, exact_results
from torch import Tensor

GROUPED = Case(2, 6, 2, 23, 41, 16, True, torch.float32)


def whole(case: Case, given: dict[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """The reference and its autograd, in the dtype of the inputs."""
    q, k, v = (given[name].clone().requires_grad_() for name in ("q", "k", "v"))
    out = reference(q, k, v, causal=case.causal)["out"]
    if not backward:
        return {"out": out.detach()}
    found = torch.autograd.grad(out, (q, k, v), given["grad_out"])
    return dict(zip(("grad_q", "grad_k", "grad_v"), found, strict=True))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", [*CASES, GROUPED], ids=lambda case: case.label)
def test_blocks_give_what_the_whole_gives_in_float64(case: Case, backward: bool) -> None:
    given = inputs(case)
    expected = whole(case, {name: tensor.double() for name, tensor in given.items()}, backward)
    row = 8 * case.query_heads // case.key_heads * case.key_length
    for block_bytes in (1, 5 * row, 3 * row * case.query_length, 1 << 30):
        found = exact_results(case, given, backward, block_bytes)
        assert found.keys() == expected.keys()
        for name, exact in expected.items():
            assert found[name].dtype == torch.float64
            torch.testing.assert_close(found[name], exact, rtol=1e-12, atol=1e-13)
    assert all(torch.equal(found[name], tensor) for name, tensor in results(case, given, backward).items())


def test_blocks_cover_every_query_of_every_head_once_and_stay_small() -> None:
    case = Case(2, 8, 2, 1000, 700, 64, True, torch.bfloat16)
    for block_bytes in (1, 100_000, 5_000_000, 100_000_000):
        seen = torch.zeros(4, 1000, dtype=torch.int32)
        for block in blocks(case, block_bytes):
            seen[block.heads, block.queries] += 1
            heads, rows = seen[block.heads, block.queries].shape
            assert 8 * heads * 4 * rows * 700 <= max(block_bytes, 8 * 4 * 700)
            assert block.keys == min(block.queries.stop, 700)
        assert (seen == 1).all()


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", [CASES[2], CASES[5], GROUPED], ids=lambda case: case.label)
def test_the_plain_path_in_parts_is_the_plain_path(case: Case, backward: bool) -> None:
    given = inputs(case)
    expected = providers()["eager"].prepare(case, given, backward)()
    found = eager_in_parts(case, given, backward)
    assert found.keys() == expected.keys()
    for name, plain in expected.items():
        assert found[name].dtype == case.dtype
        eps = torch.finfo(case.dtype).eps
        torch.testing.assert_close(found[name], plain, rtol=4 * eps, atol=4 * eps)
