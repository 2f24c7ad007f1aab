"""The fused optimizers under Triton's interpreter, against torch's in float64 and float32."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_support import install_mutant
from optimizer_support import FLAGS, SIZES, SMALL, accepted, copies, give_gradients, largest, parameters, trained
from scalekernels import optimizer as ours
from scalekernels.optimizer import kernels as optimizer_kernels
from scalekernels.optimizer import preparation
from scalekernels.providers import Unsupported

# One of each algorithm has a large tensor too, which the interpreter takes long for.
LARGE = ("adamw", "adam", "sgd nesterov", "adagrad", "rmsprop both")


@pytest.mark.parametrize("flags", [pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE)) for name in FLAGS])
def test_ten_steps_agree_with_torch(flags):
    assert trained(*FLAGS[flags], SIZES if flags in LARGE else (*SMALL, 9001), clip=5.0 if len(flags) % 2 else None)


@pytest.mark.parametrize("clip", [None, 1e-2, 1e9])
@pytest.mark.parametrize("flags", ["adamw", "sgd nesterov"])
def test_clipping_agrees_with_torch(flags, clip):
    assert trained(*FLAGS[flags], sizes=(1025, 9001), steps=3, clip=clip)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.sampled_from([0, 1, 2, 255, 256, 257, 1000, 8191, 8192, 8193]), min_size=1, max_size=4))
def test_any_mixture_of_sizes(sizes):
    if any(sizes):
        assert trained("AdamW", {"weight_decay": 0.1}, sizes=sizes, steps=2, clip=1.0)


MUTATIONS = {
    "bias correction": (preparation, "1.0 / tl.sqrt(1.0 - power)", "1.0"),
    "step not counted": (
        preparation, "other=0.0) + 1.0\n    tl.store(step_at", "other=0.0) + 2.0\n    tl.store(step_at"),
    "mask off by one": (optimizer_kernels, "value, mask=index < left)", "value, mask=index < left - 1)"),
    "decay after the update": (optimizer_kernels, "p = p * shrink", "p = p"),
    "clip coefficient dropped": (preparation, "sign.to(tl.float32) * coefficient", "sign.to(tl.float32)"),
    "chunks of the norm overwritten": (preparation, "tl.store(partials + done + program", "tl.store(partials + done"),
    "second half of a chunk skipped": (
        optimizer_kernels, "in tl.range(0, CHUNK, BLOCK", "in tl.range(0, BLOCK, BLOCK",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_is_not_accepted(mutation, tmp_path: Path, monkeypatch):
    install_mutant(monkeypatch, tmp_path, *MUTATIONS[mutation])
    assert not trained("AdamW", {"lr": 3e-3, "weight_decay": 0.1}, sizes=(1025, 9001), steps=3, clip=5.0)


@pytest.mark.parametrize("flags", ["adamw", "sgd", "sgd nesterov", "adagrad start", "rmsprop both"])
def test_state_goes_to_torch_and_back(flags):
    name, options = FLAGS[flags]
    params = parameters(SMALL)
    mine = getattr(ours, name)(params, **options)
    for step in range(3):
        give_gradients(step, params)
        mine.step()
    theirs_params, back_params = copies(params, torch.float32), copies(params, torch.float32)
    exact_params = copies(params, torch.float64)
    theirs = getattr(torch.optim, name)(theirs_params, lr=123.0)
    theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    exact = getattr(torch.optim, name)(exact_params, lr=123.0)
    exact.load_state_dict(copy.deepcopy(mine.state_dict()))
    back = getattr(ours, name)(back_params, lr=123.0)
    back.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for step in range(3, 5):
        give_gradients(step, params, theirs_params, back_params, exact_params)
        for optimizer in (mine, theirs, back, exact):
            optimizer.step()
    assert accepted(params, theirs_params, exact_params)
    assert all(torch.equal(a, b) for a, b in zip(params, back_params, strict=True))
    for mine_state, back_state in zip(mine.state.values(), back.state.values(), strict=True):
        assert mine_state["step"].dtype == torch.float32
        assert "momentum_buffer" in back_state or name != "SGD" or flags == "sgd"


def test_lion_agrees_with_its_reference():
    params = parameters((1025, 9001))
    exact, states = [param.detach().double() for param in params], [{} for _ in params]
    same, same_states = [param.detach().clone() for param in params], [{} for _ in params]
    options = {"lr": 1e-2, "betas": (0.8, 0.9), "weight_decay": 0.1}
    optimizer = ours.Lion(params, **options)
    for step in range(4):
        give_gradients(step, params)
        optimizer.step()
        for values, kept in ((exact, states), (same, same_states)):
            for place, param in enumerate(params):
                grad = param.grad.to(values[place].dtype)
                kept[place] = ours.reference("lion", values[place], grad, kept[place], **options)
                values[place] = kept[place].pop("param")
    assert accepted(params, same, exact)


@pytest.mark.parametrize("flags", FLAGS)
def test_reference_is_torchs_step(flags):
    name, options = FLAGS[flags]
    algorithm = name.lower() if "decoupled" not in flags else "adamw"
    named = {key: value for key, value in options.items() if key != "decoupled_weight_decay"}
    (param,) = parameters((99,), torch.float64)
    value, state = param.detach().clone(), {}
    optimizer = getattr(torch.optim, name)([param], **options)
    for step in range(4):
        give_gradients(step, [param])
        optimizer.step()
        state = ours.reference(algorithm, value, param.grad, state, **named)
        value = state.pop("param")
    torch.testing.assert_close(value, param.detach(), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("case", ours.CASES, ids=lambda case: case.label)
def test_cases_are_accepted_for_every_state(case):
    tensors = ours.inputs(case)
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    exact = ours.results(case, tensors, False)
    names = list(exact)
    providers = ours.providers()
    same = providers["eager"].prepare(case, tensors, False)()
    mine = (
        "triton"
        if case.state_dtype == torch.float32
        else f"triton-{ {torch.int8: 'int8'}.get(case.state_dtype, 'bf16') }-state"
    )
    call = providers[mine].prepare(case, tensors, False)
    outputs = call()
    scale = torch.finfo(case.dtype).eps * 2
    error, allowed = (
        largest([kept[name] for name in names], [exact[name] for name in names]) for kept in (outputs, same)
    )
    assert error <= max(2 * allowed, scale * max(float(value.abs().max()) for value in exact.values() if value.numel()))
    assert call() is outputs
    assert all(torch.equal(tensors[name], before[name]) for name in tensors)


def arguments(algorithm: str = "adam", clip: float | None = 1.0) -> tuple:
    params, grads = [torch.randn(63), torch.randn(9, 5)], [torch.randn(63), None]
    moments = [[torch.zeros_like(param) for param in params] for _ in range(2)]
    steps = [torch.zeros(()) for _ in params]
    options = torch.zeros(1, optimizer_kernels.OPTIONS, dtype=torch.float64)
    options[0, :7] = torch.tensor([1e-3, 0.1, 1.0, 1.0, 0.9, 0.99, 1e-8])
    norm = torch.zeros(())
    return (0, algorithm, params, grads, steps, *moments, [], [], [], [0, 0], options, norm, clip, True, 0)


@pytest.mark.slow
def test_the_custom_operation_is_sound():
    torch.library.opcheck(ours.optimizer_step, arguments())
    torch.library.opcheck(ours.optimizer_step, arguments(clip=None))


@pytest.mark.slow
def test_torch_compile_keeps_one_graph():
    actual, expected = arguments(), arguments()
    for place in (2, 3, 5, 6):
        for tensor, other in zip(actual[place], expected[place], strict=True):
            if tensor is not None:
                other.copy_(tensor)

    def step(*tensors):
        ours.optimizer_step(*tensors)
        return [param * 2 for param in tensors[2]]

    expected_output = step(*expected)
    output = torch.compile(step, fullgraph=True, backend="aot_eager")(*actual)
    assert all(torch.equal(a, b) for a, b in zip(output, expected_output, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(actual[2], expected[2], strict=True))
    assert float(actual[12]) == float(expected[12]) > 0


def test_a_provider_of_another_state_says_which_the_case_counts():
    low = ours.Case("one", ((3,),), "adamw", state_dtype=torch.int8)
    with pytest.raises(Unsupported, match="this case counts the bytes of int8"):
        ours.providers()["triton"].prepare(low, ours.inputs(low), False)
