"""The kernels of rotary positions under the interpreter, forward and backward, against ``reference`` in float64."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import (
    Operations,
    guarded_launches,
    inaccuracy,
    install_mutant,
    poisoned_memory,  # noqa: F401 - a fixture
)
from scalekernels import rotary
from scalekernels.rotary import DTYPES, HEAD_DIMENSIONS, Case, reference
from torch import Tensor

FORWARD_BACKWARD = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
SMALL = Case(2, 5, 3, 16, torch.float32, start=2)


def failure(case: Case, backward: bool, seed: int = 0) -> str | None:
    """Why ours fails the acceptance rule on a case."""
    inputs = rotary.inputs(case, seed=seed)
    ours, theirs = (rotary.providers()[name].prepare(case, inputs, backward)() for name in ("triton", "eager"))
    return inaccuracy(ours, theirs, rotary.results(case, inputs, backward))


def prepared(case: Case = SMALL) -> tuple[Tensor, Tensor, Tensor, int]:
    inputs = rotary.inputs(case)
    return inputs["qkv"].requires_grad_(), inputs["cos"], inputs["sin"], case.start


@FORWARD_BACKWARD
@pytest.mark.parametrize("case", rotary.CASES, ids=lambda case: case.label)
def test_every_case_is_as_accurate_as_torch(case: Case, backward: bool) -> None:
    assert failure(case, backward) is None


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3), length=st.integers(1, 70), heads=st.integers(1, 9),
    head_dimension=st.sampled_from(HEAD_DIMENSIONS), start=st.integers(0, 40),
    dtype=st.sampled_from([torch.float16, torch.float32]), rotate=st.booleans(), backward=st.booleans(),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_shape_is_as_accurate_as_torch(seed: int, backward: bool, **fields: object) -> None:
    assert failure(Case(**fields), backward, seed) is None  # type: ignore[arg-type]


@FORWARD_BACKWARD
def test_bfloat16(backward: bool) -> None:
    assert failure(Case(2, 19, 5, 64, torch.bfloat16, start=3), backward) is None


def test_every_configuration_has_a_case_that_launches_it() -> None:
    launched = {(case.head_dimension, rotate) for case in rotary.CASES for rotate in {case.rotate, False}}
    backward = {(case.head_dimension, case.rotate) for case in rotary.CASES}
    assert launched >= {(dimension, True) for dimension in HEAD_DIMENSIONS}
    assert backward == set(itertools.product(HEAD_DIMENSIONS, (False, True)))


def test_v_is_a_view_and_q_and_k_share_one_buffer_of_aligned_rows() -> None:
    qkv, cos, sin, start = prepared()
    q, k, v = rotary.rotary(qkv, cos, sin, start=start)
    assert v.data_ptr() == qkv[:, :, 2].data_ptr()
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() != qkv.untyped_storage().data_ptr()
    assert q.untyped_storage().nbytes() == 2 * q.numel() * 4
    for part in (q, k, v):
        assert part.stride(3) == 1
        assert all(stride * 2 % 16 == 0 for stride in part.stride()[:3])  # in 16 bits
    plain = rotary.rotary(qkv)
    assert [part.data_ptr() for part in plain] == [qkv[:, :, index].data_ptr() for index in range(3)]


@pytest.mark.parametrize("turned", [True, False])
def test_one_operation_each_way_and_one_gradient_tensor(turned: bool) -> None:
    qkv, cos, sin, start = prepared()
    with Operations() as seen:
        parts = rotary.rotary(qkv, cos, sin, start=start) if turned else rotary.rotary(qkv)
        (gradient,) = torch.autograd.grad(parts, qkv, [torch.randn_like(part) for part in parts])
    assert seen.names == ["rotary"] * turned + ["rotary_gradients"]
    assert gradient.is_contiguous()


@pytest.mark.parametrize("layout", ["contiguous", "heads first", "packed", "columns apart", "expanded"])
def test_gradients_of_any_layout(layout: str) -> None:
    qkv, cos, sin, start = prepared()
    drawn = torch.randn(3, 2, 5, 3, 32, generator=torch.Generator().manual_seed(1))
    grads = {
        "contiguous": drawn[..., :16].contiguous(),
        "heads first": drawn[..., :16].transpose(2, 3).contiguous().transpose(2, 3),
        "packed": drawn[..., :16].permute(1, 2, 0, 3, 4).contiguous().permute(2, 0, 1, 3, 4),
        "columns apart": drawn[..., ::2],
        "expanded": drawn[:, :1, :1, :1, :1].expand(3, 2, 5, 3, 16),
    }[layout]
    exact = qkv.detach().double().requires_grad_()
    parts = reference(exact, cos.double(), sin.double(), start)
    (oracle,) = torch.autograd.grad(list(parts.values()), exact, list(grads.double()))
    (gradient,) = torch.autograd.grad(rotary.rotary(qkv, cos, sin, start=start), qkv, list(grads))
    torch.testing.assert_close(gradient.double(), oracle, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_part_that_is_not_used_gets_no_gradient(missing: int) -> None:
    qkv, cos, sin, start = prepared()
    parts = [part for index, part in enumerate(rotary.rotary(qkv, cos, sin, start=start)) if index != missing]
    (gradient,) = torch.autograd.grad(parts, qkv, [torch.ones_like(part) for part in parts])
    assert not gradient[:, :, missing].any()
    assert gradient.isfinite().all()


def test_v_and_plain_gradients_are_copied_to_the_bit() -> None:
    qkv, cos, sin, start = prepared()
    odd = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0]).repeat(4).expand(2, 5, 3, 16)
    grads = [torch.ones(2, 5, 3, 16), torch.ones(2, 5, 3, 16), odd]
    (turned,) = torch.autograd.grad(rotary.rotary(qkv, cos, sin, start=start), qkv, grads)
    (plain,) = torch.autograd.grad(rotary.rotary(qkv), qkv, [odd] * 3)
    for part in (turned[:, :, 2], *plain.unbind(2)):
        assert torch.equal(part.contiguous().view(torch.int32), odd.contiguous().view(torch.int32))


def test_any_layout_of_qkv_and_half_tables() -> None:
    whole = torch.randn(2, 7, 4, 3, 32, generator=torch.Generator().manual_seed(0))
    qkv = whole[:, 1:6, 1:, :, 16:].requires_grad_()
    _, cos, sin, start = prepared()
    ours = rotary.rotary(qkv, cos[:, :8].contiguous(), sin[:, :8].contiguous(), start=start)
    exact = reference(qkv.detach().double(), cos.double(), sin.double(), start)
    for output, oracle in zip(ours, exact.values(), strict=True):
        torch.testing.assert_close(output.detach().double(), oracle, rtol=1e-6, atol=1e-6)
    (gradient,) = torch.autograd.grad(ours, qkv, [part.detach() for part in ours])  # turning back undoes turning
    torch.testing.assert_close(gradient, qkv.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)])
def test_nothing_to_turn(shape: tuple[int, int]) -> None:
    _, cos, sin, _ = prepared()
    qkv = torch.empty(*shape, 3, 2, 16, requires_grad=True)
    parts = rotary.rotary(qkv, cos, sin)
    assert torch.autograd.grad(parts, qkv, [torch.ones_like(part) for part in parts])[0].shape == qkv.shape


@pytest.mark.slow
def test_the_operators_are_registered_properly() -> None:
    qkv, cos, sin, start = prepared()
    torch.library.opcheck(torch.ops.scalekernels.rotary, (qkv.detach(), cos, sin, start))
    grads = [torch.randn(2, 3, 5, 16).transpose(1, 2) for _ in range(3)]
    torch.library.opcheck(torch.ops.scalekernels.rotary_gradients, (*grads, cos, sin, start))
    torch.library.opcheck(torch.ops.scalekernels.rotary_gradients, (*grads, None, None, 0))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch.func.jvp uses it
@pytest.mark.parametrize("turned", [True, False])
def test_a_second_and_a_forward_derivative_are_refused_by_name(turned: bool) -> None:
    qkv, *tables, start = prepared()
    tables = tables if turned else []
    grads = [torch.ones(2, 5, 3, 16, requires_grad=True) for _ in range(3)]
    (gradient,) = torch.autograd.grad(rotary.rotary(qkv, *tables, start=start), qkv, grads, create_graph=True)
    with pytest.raises(RuntimeError, match="rotary has no second derivative"):
        gradient.sum().backward()
    with pytest.raises(RuntimeError, match=r"rotary has no forward-mode derivative .qkv has"):
        torch.func.jvp(lambda x: rotary.rotary(x, *tables, start=start), (qkv.detach(),), (torch.ones_like(qkv),))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"qkv": torch.ones(2, 5, 9, 16)}, ValueError, "qkv has shape"),
        ({"qkv": torch.ones(2, 5, 2, 3, 16)}, ValueError, "qkv has shape"),
        ({"qkv": torch.ones(2, 5, 3, 3, 24)}, ValueError, "one of 16, 32, 64, 128, 256"),
        ({"qkv": torch.ones(2, 5, 3, 3, 32)[..., ::2]}, ValueError, "qkv has stride 2"),
        ({"qkv": torch.ones(2, 5, 3, 3, 16, dtype=torch.float64)}, TypeError, "qkv is float64"),
        ({"cos": torch.ones(7, 16, dtype=torch.float16)}, TypeError, "cos is float16"),
        ({"sin": None}, ValueError, "both cos and sin"),
        ({"cos": torch.ones(7, 12)}, ValueError, "cos has shape"),
        ({"sin": torch.ones(8, 16)}, ValueError, "one shape and layout"),
        ({"start": 3}, ValueError, "positions 3 to 8 exceed the tables' 7 positions"),
        ({"start": -1}, ValueError, "positions -1 to 4"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change: dict[str, object], error: type[Exception], message: str) -> None:
    qkv, cos, sin, start = prepared()
    with pytest.raises(error, match=message):
        rotary.rotary(**({"qkv": qkv, "cos": cos, "sin": sin, "start": start} | change))  # type: ignore[arg-type]


def test_launches_are_on_the_device_of_the_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = guarded_launches(monkeypatch, {"scalekernels.rotary.kernels": ("forward", "gradients")})
    qkv, cos, sin, start = prepared()
    torch.cat(rotary.rotary(qkv, cos, sin, start=start)).sum().backward()
    assert launched == ["forward", "gradients"]


def test_costs_and_labels() -> None:
    case = rotary.GOALS[0]
    part, tables = 32 * 1024 * 768 * 2, 2 * 1024 * 32 * 4
    assert rotary.cost(case, False).bytes_moved == 4 * part + tables
    assert rotary.cost(case, True).bytes_moved == 6 * part + tables
    plain = Case(32, 1024, 12, 64, torch.bfloat16, rotate=False)
    assert (rotary.cost(plain, False).bytes_moved, rotary.cost(plain, True).bytes_moved) == (0, 6 * part)
    every = (*rotary.CASES, *rotary.LARGER, *rotary.LADDER)
    assert len({case.label for case in every}) == len(every)
    configurations = list(rotary.compilations(90))
    assert (
        len({(configuration.kernel, configuration.label) for configuration in configurations})
        == len(configurations)
        == 3 * len(DTYPES) * len(HEAD_DIMENSIONS)
    )
    for configuration in configurations:
        assert list(configuration.signature) == configuration.function.arg_names
        assert {name for name, kind in configuration.signature.items() if kind == "constexpr"} == set(
            configuration.constants
        )
        assert set(configuration.aligned) <= set(configuration.signature) - set(configuration.constants)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(start + token)[:, None] * table_stride", "token[:, None] * table_stride"),
        ("first * cosine[:, None, :] - second", "first * cosine[:, None, :] + second"),
        ("tl.load(source + at + HALF, mask=inside", "tl.load(source + at, mask=inside"),
        ("begin + tl.arange(0, HEADS)).to(tl.int64)[None, :, None]\n        inside = present[:, None, None] & (head < "
         "heads)\n        at", "begin + tl.arange(0, HEADS)).to(tl.int64)[None, :, None]\n        inside = present[:, "
         "None, None] & (head < heads - 1)\n        at"),
        ("(batch * length * 2 + part) * width", "(batch * length + part) * width"),
        ("dk + batch * k_batch, out, cosine, -sine", "dk + batch * k_batch, out, cosine, sine"),
        ("out += (batch * length * 3 + part) * width", "out += (batch * length * 3 + 2 - part) * width"),
        ("dv + batch * v_batch", "dv + batch * q_batch * 0"),
        ("dq + batch * q_batch, out, token, present, heads, q_token", "dq + batch * q_batch, out, token, present, "
         "heads, q_head"),
    ],
)  # fmt: skip
def test_broken_copies_fail(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, old: str, new: str) -> None:
    install_mutant(monkeypatch, tmp_path, rotary.kernels, old, new)
    cases = (SMALL, Case(2, 5, 3, 16, torch.float32, rotate=False))
    assert any(failure(case, backward) for case in cases for backward in (False, True))
