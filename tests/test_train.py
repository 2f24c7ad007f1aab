"""The loop, its schedules and optimizers: against written-out arithmetic, and on a task with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import train_spec

from scalebench.collectors.time import StepClock, time_columns, warm_mask
from scalebench.data import open_source
from scalebench.families import FAMILIES, configure
from scalebench.optimizers import OPTIMIZERS, build_optimizer, schedule_factor
from scalebench.study import DataSpec, TrainSpec
from scalebench.train import Diverged, check_finite, train, validate

CPU = torch.device("cpu")


def run(family_name: str, request: dict[str, object], spec: TrainSpec, samples: int = 2048):
    family = FAMILIES[family_name]
    data = open_source(family.DATA)
    config = configure(family, request, data, spec.sequence_length)
    data_spec = DataSpec(
        source=family.DATA, validation_fraction=0.2, validation_samples=samples, noise_std=0.5, sha256=data.sha256
    )
    task = family.task(config, data, data_spec, spec)
    torch.manual_seed(spec.seed)
    model = family.build(config, spec.implementation)
    losses, clock = torch.full((spec.steps,), torch.nan), StepClock(CPU)
    train(model, build_optimizer(model, spec), task, spec, clock, losses, lambda done: None)
    return model, task, losses, clock


def test_linear_regression_reaches_what_its_inputs_allow() -> None:
    spec = train_spec(steps=600, batch_size=256, learning_rate=0.02, schedule="linear", weight_decay=0.0)
    model, task, _, _ = run("linear", {"inputs": 20}, spec, samples=8192)
    found = validate(model, task, spec, CPU)
    loss, error = found.loss_nats, found.standard_error_nats
    unseen = math.pi**2 / 6 - sum(1 / k**2 for k in range(1, 21))
    best = 0.5 * math.log(2 * math.pi * 0.25) + (0.25 + unseen) / 0.5
    assert abs(loss - best) < 4 * error + 0.01
    assert 0 < error < 0.02


def test_the_same_seed_gives_the_same_losses_and_another_seed_does_not() -> None:
    request, spec = {"params": 2e3}, train_spec(steps=6, sequence_length=16)
    first, again = (run("gpt", request, spec, 64)[2] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, run("gpt", request, train_spec(steps=6, sequence_length=16, seed=1), 64)[2])


def test_a_gpt_learns_text_beyond_its_letter_frequencies() -> None:
    spec = train_spec(steps=150, sequence_length=64, learning_rate=0.02, schedule="linear", warmup_steps=10)
    model, task, losses, _ = run("gpt", {"params": 2e4}, spec, 256)
    text = task._held_out()[0].ravel()
    frequencies = np.bincount(text, minlength=256) / text.size
    entropy = -sum(p * math.log(p) for p in frequencies if p)
    assert validate(model, task, spec, CPU).loss_nats < entropy
    assert losses[0] > 5


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_optimizers_step_as_their_formulas_say(name: str, implementation: str) -> None:
    """Three steps on f(w) = w.a with constant gradient a, in float64, against the update written out."""
    spec = train_spec(optimizer=name, implementation=implementation, learning_rate=0.1)
    gradient = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    module = torch.nn.Linear(2, 2, bias=False).double()
    start = module.weight.detach().clone()
    optimizer = build_optimizer(module, spec)
    for _ in range(3):
        module.weight.grad = gradient.clone()
        optimizer.step()
    expected = written_out(name, start.numpy().copy(), gradient.numpy(), spec)
    np.testing.assert_allclose(module.weight.detach().numpy(), expected, rtol=1e-9)


def written_out(name: str, w: np.ndarray, gradient: np.ndarray, s: TrainSpec) -> np.ndarray:
    first, second = np.zeros_like(w), np.zeros_like(w)
    for step in range(1, 4):
        if name == "adamw":
            w = w * (1 - s.learning_rate * s.weight_decay)
        g = gradient + (0 if name == "adamw" else s.weight_decay * w)
        if name == "sgd":
            w = w - s.learning_rate * g
        elif name == "momentum":
            first = g if step == 1 else s.momentum * first + g
            w = w - s.learning_rate * first
        else:
            first = s.beta1 * first + (1 - s.beta1) * g
            second = s.beta2 * second + (1 - s.beta2) * g**2
            corrected = np.sqrt(second / (1 - s.beta2**step)) + 1e-8
            w = w - s.learning_rate * first / (1 - s.beta1**step) / corrected
    return w


def test_vectors_do_not_decay_and_matrices_do() -> None:
    module = torch.nn.Linear(3, 3)
    groups = build_optimizer(module, train_spec()).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay == {id(module.weight): 0.1, id(module.bias): 0.0}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1, 1, 1]),
        ("linear", [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 5, 2 / 5, 3 / 5, 4 / 5, *(0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4))]),
        ("wsd", [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1, 1, 0.5]),
    ],
)
def test_schedules_warm_up_and_fall_as_drawn(schedule: str, expected: list[float]) -> None:
    s = train_spec(steps=8, schedule=schedule, warmup_steps=4, decay_fraction=0.25)
    np.testing.assert_allclose([schedule_factor(s, step) for step in range(8)], expected, rtol=1e-6)


def test_gradients_are_clipped_to_the_norm_asked_for() -> None:
    s = train_spec(steps=1, optimizer="sgd", learning_rate=1.0, gradient_clip=0.25, weight_decay=0.0)
    torch.manual_seed(0)
    start = FAMILIES["mlp"].build(configure(FAMILIES["mlp"], {"params": 500}, open_source("teacher"), None), "eager")
    moved = run("mlp", {"params": 500}, s, 64)[0]
    pairs = zip(start.parameters(), moved.parameters(), strict=True)
    norm = math.sqrt(sum(float((a.detach() - b.detach()).square().sum()) for a, b in pairs))
    assert norm == pytest.approx(0.25, rel=1e-4)


def test_the_first_loss_that_is_no_number_is_named() -> None:
    losses = torch.tensor([1.0, 2.0, torch.inf, torch.nan])
    check_finite(losses, 2)
    with pytest.raises(Diverged, match="from step 2 on"):
        check_finite(losses, 4)


def test_bfloat16_trains_close_to_float32() -> None:
    settings = {"steps": 60, "sequence_length": 32, "learning_rate": 0.01}
    ends = []
    for precision in ("float32", "bfloat16"):
        s = train_spec(**settings, precision=precision)
        model, task, losses, _ = run("gpt", {"params": 5e3}, s, 64)
        assert losses.dtype == torch.float32
        ends.append(validate(model, task, s, CPU).loss_nats)
    assert ends[0] != ends[1]
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


def test_the_clock_keeps_every_step_and_tells_data_from_the_rest(monkeypatch) -> None:
    ticks = iter([0, 10, 100, 130, 300, 305, 400])  # nanoseconds: lap, data, lap, data, lap, data, lap
    monkeypatch.setattr("scalebench.collectors.time.time.perf_counter_ns", lambda: next(ticks))
    clock = StepClock(CPU)
    clock.lap()
    for _ in range(3):
        clock.data_ready()
        clock.lap()
    np.testing.assert_allclose(clock.step_times_s(), [100e-9, 200e-9, 100e-9])
    np.testing.assert_allclose(clock.data_times_s(), [10e-9, 30e-9, 5e-9])
    columns = time_columns(clock)
    assert columns["first_step_time_s"] == pytest.approx(100e-9)
    assert columns["step_time_median_s"] == pytest.approx(150e-9)
    assert columns["timing_method"] == "perf_counter_ns"


@pytest.mark.parametrize(("steps", "cold"), [(1, 1), (5, 1), (50, 5), (100, 10), (1000, 10)])
def test_the_warm_up_is_left_out_of_the_summary(steps: int, cold: int) -> None:
    assert (~warm_mask(steps)).sum() == cold
