"""Oracles that go in blocks against the reference on the whole, and what the optimizer's cases can be called."""

from __future__ import annotations

import functools

import pytest
import torch
from scalekernels import cross_entropy, optimizer
from scalekernels.cross_entropy import oracle
from scalekernels.optimizer.cases import OPTIONS, SIZES
from torch import Tensor

from scalebench.comparison.operations import load_operation, parse_case
from scalebench.errors import InputError


def whole_loss(case: cross_entropy.Case, tensors: dict[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """The reference and its autograd on float64 copies of everything at once."""
    x, weight = (tensors[name].double().requires_grad_() for name in ("x", "weight"))
    options = {"reduction": case.reduction, "softcap": case.softcap, "z_loss": case.z_loss}
    loss = cross_entropy.reference(x, weight, tensors["target"], **options)["loss"]
    if not backward:
        return {"loss": loss.detach()}
    grads = torch.autograd.grad(loss, (x, weight), tensors["grad_loss"].double())
    return dict(zip(("x", "weight"), grads, strict=True))


@pytest.mark.parametrize("rows", [1, 4, 1000])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", cross_entropy.CASES, ids=lambda case: case.label)
def test_the_loss_in_blocks_is_the_loss(case, backward, rows, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_blocks = functools.partial(oracle.exact_results, block_bytes=8 * case.classes * rows)
    monkeypatch.setattr(oracle, "exact_results", whole_blocks)
    tensors = cross_entropy.inputs(case)
    expected, outputs = whole_loss(case, tensors, backward), cross_entropy.results(case, tensors, backward)
    assert outputs.keys() == expected.keys()
    for name, exact in expected.items():
        assert outputs[name].shape == exact.shape
        torch.testing.assert_close(outputs[name], exact, rtol=1e-12, atol=1e-14)


def test_an_optimizer_step_is_that_of_torch_in_float64() -> None:
    case = optimizer.Case("some", ((3, 5), (41,)), "adamw", torch.bfloat16, max_grad_norm=0.5)
    tensors = optimizer.inputs(case)
    params = [torch.nn.Parameter(tensors[f"param_{place:03}"].double()) for place in range(2)]
    for place, param in enumerate(params):
        param.grad = tensors[f"grad_{place:03}"].double()
    torch.nn.utils.clip_grad_norm_(params, 0.5)
    torch.optim.AdamW(params, **OPTIONS["adamw"]).step()
    for place, exact in enumerate(optimizer.results(case, tensors, False).values()):
        torch.testing.assert_close(exact, params[place].detach(), rtol=1e-12, atol=1e-14)


def test_a_step_is_not_checked_again_and_gradients_that_are_only_read_are_shared() -> None:
    providers = optimizer.providers()
    assert not any(provider.repeatable for provider in providers.values())
    case = optimizer.Case("some", ((3, 5), (41,)))
    tensors = optimizer.inputs(case)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    for name in ("eager", "foreach", "fused"):
        call = providers[name].prepare(case, tensors, False)
        call()
        call()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("name", list(SIZES))
def test_models_are_called_by_name(name: str) -> None:
    operation = load_operation("optimizer")
    case = parse_case(operation, f"name={name},dtype=bfloat16,state_dtype=int8")
    assert case == optimizer.Case(name, SIZES[name], "adamw", torch.bfloat16, torch.int8)
    assert len(case.shapes) >= 148


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"name is '7B'; sizes known by name: 124M, 350M, 760M, 1\.3B"):
        parse_case(load_operation("optimizer"), "name=7B")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("attention", "batch=2,query_heads=16,key_heads=16,query_length=8192,key_length=8192,head_dimension=128,"
         "causal=true,dtype=bfloat16"),
        ("cross-entropy", "tokens=8192,width=4096,classes=50304,dtype=bfloat16"),
        ("norm", "kind=rms,rows=16384,width=4096,residual=false,dtype=bfloat16"),
    ],
)  # fmt: skip
def test_the_shapes_of_the_goals_can_be_typed(name: str, text: str) -> None:
    assert parse_case(load_operation(name), text).dtype == torch.bfloat16


def test_a_step_costs_what_its_own_state_moves() -> None:
    case = optimizer.Case("some", ((1000,), (5000,)), "adamw", torch.bfloat16)
    moved = {name: provider.cost(case, False).bytes_moved for name, provider in optimizer.providers().items()}
    assert moved["triton"] == optimizer.cost(case).bytes_moved == 22 * case.params
    assert moved["triton-bf16-state"] == moved["fused"] == 14 * case.params
    assert 10 * case.params < moved["triton-int8-state"] < 10.1 * case.params
