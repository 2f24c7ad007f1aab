"""The fused optimizers under Triton's interpreter, against torch's in float64 and float32."""

from __future__ import annotations

import copy
import functools
import importlib.util
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scalekernels import optimizer as ours
from scalekernels.optimizer import kernels as optimizer_kernels
from scalekernels.optimizer import launch as optimizer_launch
from scalekernels.optimizer.state import dequantised, empty_scale, in_memory_order, quantise
from scalekernels.providers import Unavailable
from torch import Tensor, nn

SIZES = (0, 1, 63, 1025, 70_001)
SMALL = (0, 1, 63, 1025)
EPS32 = torch.finfo(torch.float32).eps
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw": ("AdamW", {"lr": 3e-3, "weight_decay": 0.1}),
    "adamw betas": ("AdamW", {"betas": (0.0, 0.5), "eps": 1e-3, "maximize": True}),
    "adam": ("Adam", {"weight_decay": 0.1}),
    "adam decoupled": ("Adam", {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True}),
    "sgd": ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    "sgd momentum": ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.4, "maximize": True}),
    "sgd nesterov": ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "adagrad": ("Adagrad", {"lr_decay": 0.1, "weight_decay": 0.1}),
    "adagrad start": ("Adagrad", {"initial_accumulator_value": 0.3, "eps": 1e-3, "maximize": True}),
    "rmsprop": ("RMSprop", {"lr": 1e-3, "weight_decay": 0.1, "maximize": True}),
    "rmsprop momentum": ("RMSprop", {"lr": 1e-3, "momentum": 0.9, "alpha": 0.9}),
    "rmsprop centered": ("RMSprop", {"lr": 1e-3, "centered": True, "eps": 1e-4}),
    "rmsprop both": ("RMSprop", {"lr": 1e-3, "momentum": 0.9, "centered": True, "eps": 1e-4}),
}


def parameters(sizes, dtype=torch.float32, seed=0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in sizes]


def copies(params: list[nn.Parameter], dtype: torch.dtype) -> list[nn.Parameter]:
    return [nn.Parameter(param.detach().to(dtype, copy=True)) for param in params]


def give_gradients(step: int, *sets: list[nn.Parameter], scale: float = 1.0) -> None:
    """Give every set of parameters the same gradients, those of the first set's dtype."""
    generator = torch.Generator().manual_seed(1000 + step)
    for row in zip(*sets, strict=True):
        grad = (scale * torch.randn(row[0].shape, generator=generator)).to(row[0].dtype)
        for param in row:
            param.grad = grad.to(param.dtype, copy=True)


def largest(a: list[Tensor], b: list[Tensor]) -> float:
    pairs = [(x.detach().double(), y.detach().double()) for x, y in zip(a, b, strict=True) if x.numel()]
    return max((float((x - y).abs().max()) for x, y in pairs), default=0.0)


def accepted(found: list[Tensor], same: list[Tensor], exact: list[Tensor]) -> bool:
    """At most twice the error of torch's own path of the same precision, or four ulps of the largest value."""
    scale = max(float(value.detach().abs().max()) for value in exact if value.numel())
    return largest(found, exact) <= max(2 * largest(same, exact), 4 * EPS32 * scale)


def trained(name: str, options: dict[str, Any], sizes=SIZES, steps=10, clip: float | None = None) -> bool:
    """Take steps with ours, torch's in float32 and torch's in float64; return whether ours is accepted."""
    params = parameters(sizes)
    same, exact = copies(params, torch.float32), copies(params, torch.float64)
    mine = getattr(ours, name)(params, **options, max_grad_norm=clip)
    others = [getattr(torch.optim, name)(group, **options) for group in (same, exact)]
    for step in range(steps):
        give_gradients(step, params, same, exact)
        if clip is not None:
            norms = [torch.nn.utils.clip_grad_norm_(group, clip) for group in (same, exact)]
        for optimizer in (mine, *others):
            optimizer.step()
        if clip is not None and not abs(float(mine.grad_norm) - norms[1]) <= 2e-6 * norms[1]:
            return False
    return accepted(params, same, exact)


@pytest.mark.parametrize("flags", FLAGS)
def test_ten_steps_agree_with_torch(flags):
    plain = {
        "adamw",
        "adam",
        "sgd nesterov",
        "adagrad",
        "rmsprop both",
    }  # the interpreter is slow: one of each is large
    assert trained(*FLAGS[flags], SIZES if flags in plain else (*SMALL, 9001), clip=5.0 if len(flags) % 2 else None)


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
    "bias correction": ("1.0 / tl.sqrt(1.0 - power)", "1.0"),
    "step not counted": ("other=0.0) + 1.0\n    tl.store(step_at", "other=0.0) + 2.0\n    tl.store(step_at"),
    "mask off by one": ("value, mask=index < left)", "value, mask=index < left - 1)"),
    "decay after the update": ("p = p * shrink", "p = p"),
    "clip coefficient dropped": ("sign.to(tl.float32) * coefficient", "sign.to(tl.float32)"),
    "chunks of the norm overwritten": ("tl.store(partials + done + program", "tl.store(partials + done"),
    "second half of a chunk skipped": ("range(0, CHUNK, BLOCK):\n        if", "range(0, BLOCK, BLOCK):\n        if"),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_is_not_accepted(mutation, tmp_path: Path, monkeypatch):
    source = Path(optimizer_kernels.__file__).read_text()
    found, replacement = MUTATIONS[mutation]
    assert source.count(found) == 1
    path = tmp_path / "broken_kernels.py"
    path.write_text(source.replace(found, replacement))
    spec = importlib.util.spec_from_file_location("broken_kernels", path)
    broken = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(broken)
    monkeypatch.setattr(optimizer_launch, "kernels", broken)
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
    given = ours.inputs(case)
    before = {name: tensor.clone() for name, tensor in given.items()}
    exact = ours.results(case, given, False)
    names = list(exact)
    providers = ours.providers()
    same = providers["eager"].prepare(case, given, False)()
    mine = (
        "triton"
        if case.state_dtype == torch.float32
        else f"triton-{ {torch.int8: 'int8'}.get(case.state_dtype, 'bf16') }-state"
    )
    call = providers[mine].prepare(case, given, False)
    found = call()
    scale = torch.finfo(case.dtype).eps * 2
    error, allowed = (
        largest([kept[name] for name in names], [exact[name] for name in names]) for kept in (found, same)
    )
    assert error <= max(2 * allowed, scale * max(float(value.abs().max()) for value in exact.values() if value.numel()))
    assert call() is found
    assert all(torch.equal(given[name], before[name]) for name in given)


def test_gradients_are_only_read_and_scratch_is_written_before_it_is_read():
    params = parameters((1025, 9001))
    same, exact = copies(params, torch.float32), copies(params, torch.float64)
    optimizer = ours.AdamW(params, max_grad_norm=1.0)
    others = [torch.optim.AdamW(group) for group in (same, exact)]
    for step in range(2):
        give_gradients(step, params, same, exact)
        before = [param.grad.clone() for param in params]
        if step:  # everything between steps is poisoned
            optimizer._tables.scalars.fill_(float("nan"))
            optimizer._tables.partials.fill_(float("nan"))
            optimizer.grad_norm.fill_(float("nan"))
        for group in (same, exact):
            torch.nn.utils.clip_grad_norm_(group, 1.0)
        for each in (optimizer, *others):
            each.step()
        assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before, strict=True))
    assert accepted(params, same, exact)


def test_groups_dtypes_schedules_and_a_learning_rate_as_tensor():
    params = parameters((1025, 63)) + parameters((257,), torch.float16)
    exact = copies(params, torch.float64)
    same = copies(params, torch.float32)

    def groups(values):
        return [
            {"params": values[:1], "lr": torch.tensor(0.01)},
            {"params": values[1:2], "weight_decay": 0.5, "betas": (0.5, 0.6)},
            {"params": values[2:], "lr": 0.02},
        ]

    optimizers = [ours.AdamW(groups(params)), torch.optim.AdamW(groups(same)), torch.optim.AdamW(groups(exact))]
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: 1 / (step + 1)) for each in optimizers]
    launched = []
    for step in range(3):
        give_gradients(step, params, same, exact)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        launched.append(len(optimizers[0]._tables.chunks))
    assert launched == [2, 2, 2]  # one launch per dtype
    assert accepted(params[:2], same[:2], exact[:2])
    assert largest(params[2:], exact[2:]) <= 4 * torch.finfo(torch.float16).eps * float(exact[2].detach().abs().max())


def test_only_what_moved_travels_to_the_device():
    params = parameters((63, 1025))
    optimizer = ours.AdamW(params)
    give_gradients(0, params)
    optimizer.step()
    uploads = optimizer._tables.uploads
    first = {"chunks", "param", "grad", "step", "first", "second", "numel", "group", "options"}
    assert dict(uploads) == dict.fromkeys(first, 1)
    optimizer.step()  # nothing moved
    assert dict(uploads) == dict.fromkeys(first, 1)
    kept = [param.grad for param in params]
    optimizer.zero_grad(set_to_none=True)
    give_gradients(1, params)
    optimizer.step()
    assert dict(uploads) == dict.fromkeys(first, 1) | {"grad": 2}
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert dict(uploads) == dict.fromkeys(first, 1) | {"grad": 2, "options": 2}
    params[0].grad = None
    optimizer.step()
    assert dict(uploads) == dict.fromkeys(first, 1) | {"grad": 3, "options": 2}
    assert len(kept) == 2


def test_a_missing_gradient_leaves_parameter_and_step():
    params = parameters((63, 1025, 5))
    exact = copies(params, torch.float64)
    optimizer, other = ours.AdamW(params, max_grad_norm=1.0), torch.optim.AdamW(exact)
    for step in range(4):
        give_gradients(step, params, exact)
        for group in (params, exact):
            group[2].grad = None  # never a gradient
            if step == 1:
                group[0].grad = None
        torch.nn.utils.clip_grad_norm_(exact, 1.0)
        optimizer.step()
        other.step()
    assert largest(params, exact) < 1e-6
    assert [float(optimizer.state[param]["step"]) for param in params[:2]] == [3, 4]
    assert params[2] not in optimizer.state


def test_permuted_dense_parameters_keep_their_layout():
    base = [torch.randn(5, 7, 3, 2).to(memory_format=torch.channels_last), torch.randn(9, 4).t()]
    params = [nn.Parameter(value.clone(memory_format=torch.preserve_format)) for value in base]
    exact = [nn.Parameter(value.double()) for value in base]
    assert params[1].stride() == (1, 4)
    optimizer, other = ours.AdamW(params, state_dtype=torch.float32), torch.optim.AdamW(exact)
    for _ in range(2):
        for param, twin in zip(params, exact, strict=True):
            param.grad = torch.empty_like(param).normal_()
            twin.grad = param.grad.double()
        optimizer.step()
        other.step()
    assert largest(params, exact) < 1e-6
    assert optimizer.state[params[0]]["exp_avg"].stride() == params[0].stride()
    other.load_state_dict(optimizer.state_dict())
    params[1].grad = torch.randn(4, 9)
    params[1].grad = None
    params[0].grad = torch.randn(5, 7, 3, 2)
    with pytest.raises(ValueError, match=r"gradient of parameter 0 of group 0 has strides \(42, 6, 2, 1\)"):
        optimizer.step()


def test_tensors_that_start_anywhere_in_memory():
    flat, grads = torch.randn(20_000), torch.randn(20_000)
    pieces = ((1, 9001), (9003, 16), (9020, 8192))
    params = [nn.Parameter(flat[start : start + size]) for start, size in pieces]
    exact = copies(params, torch.float64)
    untouched = torch.ones(20_000, dtype=torch.bool)
    for (start, size), param, twin in zip(pieces, params, exact, strict=True):
        param.grad = grads[start : start + size]
        twin.grad = param.grad.double()
        untouched[start : start + size] = False
    before = flat[untouched].clone()
    optimizer, other = ours.AdamW(params), torch.optim.AdamW(exact)
    optimizer.step()
    other.step()
    assert largest(params, exact) < 1e-6
    assert torch.equal(flat[untouched], before)


def test_a_tied_weight_is_updated_once():
    (param,) = parameters((63,))
    (exact,) = copies([param], torch.float64)
    optimizer, other = ours.SGD([param, param], lr=0.1), torch.optim.SGD([exact], lr=0.1)
    give_gradients(0, [param], [exact])
    optimizer.step()
    other.step()
    assert largest([param], [exact]) < 1e-6


def test_more_than_two_to_the_31_elements():
    """Only the last chunk is launched; the pages of the rest are never touched."""
    length = 2**31 + 5000
    try:
        param, grad = (torch.empty(length, dtype=torch.float16) for _ in range(2))
    except RuntimeError as error:
        pytest.skip(f"no address space for {length} elements: {error}")
    param[-9000:], grad[-9000:] = 1.0, 0.5
    optimizer = ours.SGD([nn.Parameter(param)], lr=1.0)
    optimizer.param_groups[0]["params"][0].grad = grad
    tables = optimizer._tables
    steps = torch.zeros(())
    tables.bind([param], [grad], [0], [[steps], [], [], [], [], []])
    chunks = tables.chunks[torch.float16]
    assert chunks[-1].tolist() == [0, 2**31 // optimizer_kernels.CHUNK]
    tables.chunks[torch.float16] = chunks[-1:]
    optimizer.step()
    assert torch.equal(param[2**31 :], torch.full((5000,), 0.5, dtype=torch.float16))
    assert torch.equal(param[-9000:-5000], torch.ones(4000, dtype=torch.float16))


def bfloat16_step(seed: int, steps: int = 1, move: float = 0.3, **options) -> Tensor:
    """Subtract ``move`` units in the last place from 40,000 ones; return how many units each went down."""
    unit = 2.0**-8  # below one
    param = nn.Parameter(torch.ones(40_000, dtype=torch.bfloat16))
    param.grad = torch.full_like(param, move * unit)
    optimizer = ours.SGD([param], lr=1.0, seed=seed, **options)
    for _ in range(steps):
        optimizer.step()
    return (1.0 - param.detach().float()) / unit


def test_stochastic_rounding_is_unbiased_repeatable_and_moves_on():
    move = float(torch.tensor(0.3 * 2**-8).bfloat16()) * 2**8
    down = bfloat16_step(1)
    assert set(down.unique().tolist()) == {0.0, 1.0}
    deviation = (move * (1 - move) / len(down)) ** 0.5
    assert abs(float(down.mean()) - move) < 4 * deviation
    assert torch.equal(down, bfloat16_step(1))
    assert not torch.equal(down, bfloat16_step(2))
    assert not torch.equal(down, bfloat16_step(1 + 2**40))
    centred = down - down.mean()
    for lag in (1, 2, 128, 256, 8192):
        correlation = float((centred[lag:] * centred[:-lag]).mean() / centred.square().mean())
        assert abs(correlation) < 4 / (len(down) - lag) ** 0.5
    twice = bfloat16_step(1, steps=2)
    assert abs(float(twice.mean()) - 2 * move) < 4 * 2**0.5 * deviation  # the second step draws anew
    assert float((twice == 1).float().mean()) == pytest.approx(2 * move * (1 - move), abs=0.02)
    assert not bfloat16_step(1, stochastic_rounding=False).any()


def test_nearest_rounding_is_torchs():
    param = nn.Parameter(torch.randn(5000).bfloat16())
    param.grad = torch.randn(5000).bfloat16()
    expected = (param.detach().float() - param.grad.float()).bfloat16()
    param.grad[:3] = torch.tensor([float("nan"), float("inf"), 3e38])
    expected[:3] = (param.detach()[:3].float() - param.grad[:3].float()).bfloat16()
    ours.SGD([param], lr=1.0, stochastic_rounding=False).step()
    torch.testing.assert_close(param.detach(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_bfloat16_parameters_are_within_one_unit(state_dtype):
    params = parameters((63, 9001), torch.bfloat16)
    exact = copies(params, torch.float64)
    optimizer, other = ours.AdamW(params, lr=0.1, state_dtype=state_dtype), torch.optim.AdamW(exact, lr=0.1)
    give_gradients(0, params, exact)
    optimizer.step()
    other.step()
    for param, twin in zip(params, exact, strict=True):
        unit = 2.0 ** (torch.floor(torch.log2(twin.abs())) - 7)
        assert bool(((param.double() - twin).abs() <= 1.01 * unit).all())


def test_eight_bit_state_is_the_map_that_is_documented():
    params = parameters((5000,))
    scales = torch.exp(3 * torch.randn(5000))
    optimizer = ours.AdamW(params, state_dtype=torch.int8, stochastic_rounding=False)
    params[0].grad = scales * torch.randn(5000)
    params[0].grad[512:768] = 0.0
    optimizer.step()
    state = optimizer.state[params[0]]
    for name, exact in (("exp_avg", 0.1 * params[0].grad), ("exp_avg_sq", 0.001 * params[0].grad ** 2)):
        code, scale = torch.empty_like(state[name]), empty_scale(params[0])
        quantise(exact, code, scale)
        torch.testing.assert_close(state[f"{name}_scale"], scale)
        assert float((code.int() - state[name].int()).abs().max()) <= 1  # a tie may fall either way
        assert float((code != state[name]).float().mean()) < 1e-3
        value = dequantised(state[name], state[f"{name}_scale"])
        assert bool((value[512:768] == 0).all())
        floor = 2.0 ** (-16 if name == "exp_avg" else -32) * scale.repeat_interleave(256)[:5000]
        inside = exact.abs() > floor
        half = {"exp_avg": 8 / 126, "exp_avg_sq": 16 / 254}[name]
        assert bool(((value / exact).log2().abs()[inside] <= half + 1e-4).all())
    assert bool((state["exp_avg_sq"][params[0].grad != 0] > 0).all())
    exact_params = copies(params, torch.float64)
    twin = torch.optim.AdamW(exact_params)
    twin.load_state_dict(optimizer.float_state_dict())
    give_gradients(1, params, exact_params)
    optimizer.step()
    twin.step()
    assert largest(params, exact_params) < 1e-6  # the kernel reads the codes as torch does


def test_eight_bit_rounding_draws_are_unbiased():
    (param,) = parameters((32_768,))
    start = torch.full((32_768,), 0.37)
    start[::256] = 1.0  # the scale of every block
    optimizer = ours.RMSprop([param], alpha=0.999, state_dtype=torch.int8)
    param.grad = (start / 0.001).sqrt()
    optimizer.step()
    state = optimizer.state[param]
    value = dequantised(state["square_avg"], state["square_avg_scale"])[start != 1.0]
    assert len(value.unique()) == 2
    assert float(value.log2().mean()) == pytest.approx(float(torch.tensor(0.37).log2()), abs=4 * 0.063 / 181)


def test_infinite_gradients_poison_eight_bit_state_visibly():
    (param,) = parameters((600,))
    optimizer = ours.AdamW([param], state_dtype=torch.int8)
    param.grad = torch.ones(600)
    param.grad[300] = float("inf")
    with np.errstate(invalid="ignore"):
        optimizer.step()
        param.grad = torch.ones(600)
        optimizer.step()
    assert bool(param[256:512].isnan().all())
    assert bool(param[:256].isfinite().all())
    assert bool(param[512:].isfinite().all())


@functools.cache
def regression_loss(state_dtype: torch.dtype, steps: int = 60) -> float:
    """Return the loss of a linear regression, relative to the start, whose features differ a hundredfold in scale."""
    generator = torch.Generator().manual_seed(0)
    truth, features = torch.randn(40, generator=generator), torch.randn(256, 40, generator=generator)
    features *= torch.logspace(-1.5, 0.5, 40)
    target = features @ truth
    weight = nn.Parameter(torch.zeros(40))
    optimizer = ours.AdamW([weight], lr=0.1, betas=(0.9, 0.99), weight_decay=0.0, state_dtype=state_dtype)
    for step in range(steps):
        rows = torch.randint(0, 256, (64,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (features[rows] @ weight - target[rows]).square().mean().backward()
        optimizer.step()
    return float((features @ weight.detach() - target).square().mean() / target.square().mean())


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.int8])
def test_low_bit_state_trains_as_well(state_dtype):
    full, low = regression_loss(torch.float32), regression_loss(state_dtype)
    assert full < 0.02
    assert abs(low - full) < 0.003


@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.int8])
def test_low_bit_state_survives_saving_copying_and_conversion(state_dtype, tmp_path):
    params = parameters((63, 1025))
    optimizer = ours.AdamW(params, state_dtype=state_dtype, max_grad_norm=1.0, seed=5)
    give_gradients(0, params)
    optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = copies(params, torch.float32)
    again = ours.AdamW(resumed, state_dtype=state_dtype, max_grad_norm=1.0, seed=5)
    again.load_state_dict(saved)
    copied_params, copied = copy.deepcopy((params, optimizer))
    pickled_params, pickled = pickle.loads(pickle.dumps((params, optimizer)))
    converted = copies(params, torch.float32)
    through = ours.AdamW(converted, state_dtype=state_dtype, max_grad_norm=1.0, seed=5)
    through.load_state_dict(optimizer.float_state_dict())
    for step in (1, 2):
        give_gradients(step, params, resumed, copied_params, pickled_params, converted)
        for each in (optimizer, again, copied, pickled, through):
            each.step()
    for place, param in enumerate(params):
        for other in (resumed, copied_params, pickled_params, converted):
            assert torch.equal(param, other[place])


def test_closure_and_version_counters():
    (param,) = parameters((63,))
    optimizer = ours.AdamW([param])

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    version = param._version
    assert float(optimizer.step(closure).detach()) > 0
    assert param._version > version
    output = (param * param).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def arguments(algorithm: str = "adam", clip: float | None = 1.0) -> tuple:
    params, grads = [torch.randn(63), torch.randn(9, 5)], [torch.randn(63), None]
    moments = [[torch.zeros_like(param) for param in params] for _ in range(2)]
    steps = [torch.zeros(()) for _ in params]
    options = torch.zeros(1, optimizer_kernels.OPTIONS, dtype=torch.float64)
    options[0, :7] = torch.tensor([1e-3, 0.1, 1.0, 1.0, 0.9, 0.99, 1e-8])
    norm = torch.zeros(())
    return (0, algorithm, params, grads, steps, *moments, [], [], [], [0, 0], options, norm, clip, True, 0)


def test_the_custom_operation_is_sound():
    torch.library.opcheck(ours.optimizer_step, arguments())
    torch.library.opcheck(ours.optimizer_step, arguments(clip=None))


def test_torch_compile_keeps_one_graph():
    given, expected = arguments(), arguments()
    for place in (2, 3, 5, 6):
        for tensor, other in zip(given[place], expected[place], strict=True):
            if tensor is not None:
                other.copy_(tensor)

    def step(*tensors):
        ours.optimizer_step(*tensors)
        return [param * 2 for param in tensors[2]]

    expected_output = step(*expected)
    output = torch.compile(step, fullgraph=True, backend="aot_eager")(*given)
    assert all(torch.equal(a, b) for a, b in zip(output, expected_output, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(given[2], expected[2], strict=True))
    assert float(given[12]) == float(expected[12]) > 0


class Wrapped(Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


def test_what_the_kernels_cannot_do_is_refused_by_name():
    def refused(error, match, *given, make=ours.AdamW, **options):
        with pytest.raises(error, match=match):
            make(*given, **options)

    plain = parameters((8, 8))
    refused(TypeError, "parameter 0 of group 0 is complex64; allowed: float32", [torch.zeros(3, dtype=torch.complex64)])
    refused(ValueError, r"parameter 1 of group 0 .* strides \(2,\)", [plain[0], torch.zeros(8)[::2]])
    refused(ValueError, "share memory", [plain[0], nn.Parameter(plain[0].detach()[2:])])
    refused(TypeError, "Wrapped", [torch.zeros(3).as_subclass(Wrapped)])
    refused(ValueError, r"AdamW\(amsgrad=True\)", plain, amsgrad=True)
    refused(ValueError, r"SGD\(foreach=True\)", plain, make=ours.SGD, foreach=True)
    refused(ValueError, r"Adagrad\(fused=True\)", plain, make=ours.Adagrad, fused=True)
    refused(ValueError, r"RMSprop\(differentiable=True\)", plain, make=ours.RMSprop, differentiable=True)
    refused(TypeError, "betas", plain, betas=(torch.tensor(0.9), torch.tensor(0.99)))
    refused(TypeError, "state_dtype is torch.float16", plain, state_dtype=torch.float16)
    refused(ValueError, "max_grad_norm is 0", plain, max_grad_norm=0)
    refused(ValueError, "centered=True", plain, make=ours.RMSprop, centered=True, state_dtype=torch.int8)
    refused(ValueError, "betas are", plain, make=ours.Lion, betas=(0.9, 1.0))
    refused(ValueError, "parameter 0 of group 0 is on meta", [torch.zeros(3, device="meta")])
    optimizer = ours.AdamW(plain)
    plain[0].grad = torch.zeros(8).to_sparse()
    with pytest.raises(RuntimeError, match="gradient of parameter 0 of group 0 is sparse"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"AdamW\(amsgrad=True\)"):
        optimizer.load_state_dict(torch.optim.AdamW(plain, amsgrad=True).state_dict())


def test_memory_order_of_codes_follows_the_parameter():
    param = nn.Parameter(torch.randn(9, 40).t())
    code, scale = torch.empty_like(param, dtype=torch.int8), empty_scale(param)
    quantise(param.detach(), code, scale)
    assert (
        torch.equal(scale, in_memory_order(param.detach()).split(256)[0].abs().max() * torch.ones(1)) or len(scale) == 2
    )
    assert torch.allclose(dequantised(code, scale), param.detach(), rtol=0.046, atol=1e-4)
    assert code.stride() == param.stride()


def test_momentum_switched_on_later_starts_from_the_gradient():
    params = parameters((63,))
    exact = copies(params, torch.float64)
    optimizer, other = ours.SGD(params, lr=0.1, dampening=0.5), torch.optim.SGD(exact, lr=0.1, dampening=0.5)
    for step in range(4):
        give_gradients(step, params, exact)
        if step == 2:
            for each in (optimizer, other):
                each.param_groups[0]["momentum"] = 0.9
        optimizer.step()
        other.step()
    assert largest(params, exact) < 1e-6


def test_a_group_added_later_is_updated():
    params = parameters((63, 1025))
    exact = copies(params, torch.float64)
    optimizer, other = ours.AdamW(params[:1]), torch.optim.AdamW(exact[:1])
    for step in range(3):
        if step == 1:
            optimizer.add_param_group({"params": params[1:], "lr": 0.1})
            other.add_param_group({"params": exact[1:], "lr": 0.1})
        give_gradients(step, params, exact)
        optimizer.step()
        other.step()
    assert largest(params, exact) < 2e-6


def test_a_provider_of_another_state_says_which_the_case_counts():
    low = ours.Case("one", ((3,),), "adamw", state_dtype=torch.int8)
    with pytest.raises(Unavailable, match="this case counts the bytes of int8"):
        ours.providers()["triton"].prepare(low, ours.inputs(low), False)
