"""Rounding and low-bit state of the fused optimizers, under Triton's interpreter."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from optimizer_support import copies, give_gradients, largest, parameters
from scalekernels import optimizer as ours
from scalekernels.optimizer.state import dequantised, empty_scale, in_memory_order, levels, quantise
from torch import Tensor, nn


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
        floor = 2.0 ** (-14 if name == "exp_avg" else -30) * scale.repeat_interleave(256)[:5000]
        inside = exact.abs() > floor
        assert bool(((value / exact - 1).abs()[inside] <= 1 / 16 + 1e-5).all())  # half a step of three mantissa bits
    assert bool((state["exp_avg_sq"][params[0].grad != 0] > 0).all())
    exact_params = copies(params, torch.float64)
    twin = torch.optim.AdamW(exact_params)
    twin.load_state_dict(optimizer.float_state_dict())
    give_gradients(1, params, exact_params)
    optimizer.step()
    twin.step()
    assert largest(params, exact_params) < 1e-6  # the kernel reads the codes as torch does


@pytest.mark.parametrize("size", [1e-20, 1.0, 1e15])
def test_every_level_is_read_and_written_as_it_is(size):
    """No gradient: v becomes 0.9 v and m 0.5 m, with other scales and the same codes."""
    (param,) = parameters((512,))
    before = param.detach().clone()
    optimizer = ours.AdamW([param], lr=1e-3, betas=(0.5, 0.9), eps=1e-30, weight_decay=0.0, state_dtype=torch.int8,
                           stochastic_rounding=False)  # fmt: skip
    param.grad = torch.zeros_like(param)
    optimizer.step()
    state = optimizer.state[param]
    state["exp_avg"].copy_(torch.arange(-127, 385).clamp(max=127))
    state["exp_avg_sq"].copy_(torch.arange(512).clamp(max=255).flip(0))
    codes = {name: state[name].clone() for name in ("exp_avg", "exp_avg_sq")}
    state["exp_avg_scale"].fill_(size)
    state["exp_avg_sq_scale"].fill_(size)
    exact = {name: levels(code.dtype).double()[code.long().abs()] * code.sign() * size for name, code in codes.items()}
    with np.errstate(all="ignore"):
        optimizer.step()
    for name, factor in (("exp_avg", 0.5), ("exp_avg_sq", 0.9)):
        assert torch.equal(state[name], codes[name])
        assert torch.allclose(state[f"{name}_scale"], torch.tensor(factor * size), rtol=1e-6)
    corrections = (1 - 0.5**2, 1 - 0.9**2)
    first, second = 0.5 * exact["exp_avg"] / corrections[0], 0.9 * exact["exp_avg_sq"] / corrections[1]
    moved, known = before.double() - param.detach().double(), second > 0
    expected = 1e-3 * first[known] / second[known].sqrt()
    inside = expected.abs() > 1e-7 * before[known].abs()
    assert torch.allclose(moved[known][inside], expected[inside], rtol=1e-4, atol=2e-7)


def test_levels_are_those_of_small_floats():
    """Against torch's own eight-bit float with four exponent bits, scaled from its bias of 7."""
    own = torch.arange(0x78).to(torch.uint8).view(torch.float8_e4m3fn).float()  # up to where it keeps NaN
    assert torch.equal(levels(torch.int8)[:0x78] * 1.875, own * 2.0 ** (7 - 15))
    assert levels(torch.uint8)[-1] == levels(torch.int8)[-1] == 1.0
    assert bool((levels(torch.uint8).diff() > 0).all())


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
    step = 2**-4 / 1.875  # of the levels from 0.27 to 0.53
    assert float(value.max() - value.min()) == pytest.approx(step, rel=1e-5)
    assert float(value.mean()) == pytest.approx(0.37, abs=4 * step / 2 / 181)


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


@pytest.mark.slow
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


def test_memory_order_of_codes_follows_the_parameter():
    param = nn.Parameter(torch.randn(9, 40).t())
    code, scale = torch.empty_like(param, dtype=torch.int8), empty_scale(param)
    quantise(param.detach(), code, scale)
    assert (
        torch.equal(scale, in_memory_order(param.detach()).split(256)[0].abs().max() * torch.ones(1)) or len(scale) == 2
    )
    assert torch.allclose(dequantised(code, scale), param.detach(), rtol=1 / 16, atol=1e-4)
    assert code.stride() == param.stride()


def test_adagrads_sum_starts_where_it_should_whatever_the_parameters_dtype():
    param = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    optimizer = ours.Adagrad([param], initial_accumulator_value=0.3)
    assert float(optimizer.state[param]["sum"][0]) == float(torch.tensor(0.3))
    optimizer.step()
    assert float(optimizer.state[param]["sum"][0]) == float(torch.tensor(1.3))
