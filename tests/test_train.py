"""The loop, its schedules and optimizers: against written-out arithmetic, and on a task with a known answer."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from support import train_spec

from scalebench.data import open_source
from scalebench.families import FAMILIES, configure
from scalebench.measure import memory
from scalebench.measure.clock import StepClock, time_columns, warm_mask
from scalebench.optim.optimizers import build_optimizer
from scalebench.study import DataSpec
from scalebench.workloads.checkpointing import recompute_blocks
from scalebench.workloads.loop import (
    Diverged,
    backward,
    check_finite,
    check_risen,
    loss_scaler,
    micro_batches,
    train,
    update,
    validate,
)
from scalebench.workloads.running import backward_of
from scalebench.workloads.training_spec import TrainSpec

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
    if spec.checkpointing:
        recompute_blocks(model)
    losses, clock = torch.full((spec.steps,), torch.nan), StepClock(CPU)
    train(model, build_optimizer(model, spec), task, spec, clock, losses, lambda done: None)
    return model, task, losses, clock


def gpt_and_task(spec: TrainSpec, **fields: object):
    """A small GPT in float64 and its task."""
    family, data = FAMILIES["gpt"], open_source("stdlib")
    config = configure(family, {"params": 2e3, **fields}, data, spec.sequence_length)
    about = DataSpec(source="stdlib", validation_fraction=0.2, validation_samples=64, noise_std=None, sha256="")
    torch.manual_seed(0)
    return family.build(config, spec.implementation).double(), family.task(config, data, about, spec)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_training_loss_is_the_mean_of_the_sample_losses(name: str) -> None:
    """To the bit, for every family's task, in training and in validation."""
    family = FAMILIES[name]
    spec = train_spec(batch_size=3, sequence_length=16 if family.SEQUENCES else None)
    data = open_source(family.DATA)
    config = configure(family, {"params": 2e4}, data, spec.sequence_length)
    about = DataSpec(source=family.DATA, validation_fraction=0.2, validation_samples=64, noise_std=0.5, sha256="")
    task = family.task(config, data, about, spec)
    torch.manual_seed(0)
    model, batch = family.build(config, "eager"), task.batch(0)
    for _ in range(2):
        torch.manual_seed(1)  # of dropout, where there is some
        loss = task.loss(model, batch)
        torch.manual_seed(1)
        losses = task.losses(model, batch)
        assert loss.shape == ()
        assert losses.shape == (3,)
        assert torch.equal(loss, losses.mean())
        model.eval()


def gradients(model: torch.nn.Module, task: object, spec: TrainSpec) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss of step 0 and its gradients."""
    model.zero_grad()
    loss = backward(model, task, task.batch(0), spec, loss_scaler(CPU, spec))
    return loss, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.slow
def test_linear_regression_reaches_what_its_inputs_allow() -> None:
    spec = train_spec(steps=600, batch_size=256, learning_rate=0.02, schedule="linear", weight_decay=0.0)
    model, task, _, _ = run("linear", {"inputs": 20}, spec, samples=8192)
    validation = validate(model, task, spec, CPU)
    loss, error = validation.loss_nats, validation.standard_error_nats
    unseen = math.pi**2 / 6 - sum(1 / k**2 for k in range(1, 21))
    best = 0.5 * math.log(2 * math.pi * 0.25) + (0.25 + unseen) / 0.5
    assert abs(loss - best) < 4 * error + 0.01
    assert 0 < error < 0.02


def test_the_same_seed_gives_the_same_losses_and_another_seed_does_not() -> None:
    request, spec = {"params": 2e3}, train_spec(steps=6, sequence_length=16)
    first, again = (run("gpt", request, spec, 64)[2] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, run("gpt", request, train_spec(steps=6, sequence_length=16, seed=1), 64)[2])


@pytest.mark.slow
def test_a_gpt_learns_text_beyond_its_letter_frequencies() -> None:
    spec = train_spec(steps=150, sequence_length=64, learning_rate=0.02, schedule="linear", warmup_steps=10)
    model, task, losses, _ = run("gpt", {"params": 2e4}, spec, 256)
    text = task._held_out()[0].ravel()
    frequencies = np.bincount(text, minlength=256) / text.size
    entropy = -sum(p * math.log(p) for p in frequencies if p)
    assert validate(model, task, spec, CPU).loss_nats < entropy
    assert losses[0] > 5


def test_gradients_are_clipped_to_the_norm_asked_for() -> None:
    s = train_spec(steps=1, optimizer="sgd", learning_rate=1.0, gradient_clip=0.25, weight_decay=0.0)
    torch.manual_seed(0)
    start = FAMILIES["mlp"].build(configure(FAMILIES["mlp"], {"params": 500}, open_source("teacher"), None), "eager")
    moved = run("mlp", {"params": 500}, s, 64)[0]
    pairs = zip(start.parameters(), moved.parameters(), strict=True)
    norm = math.sqrt(sum(float((a.detach() - b.detach()).square().sum()) for a, b in pairs))
    assert norm == pytest.approx(0.25, rel=1e-4)


def test_the_first_loss_that_is_not_finite_is_reported() -> None:
    losses = torch.tensor([1.0, 2.0, torch.inf, torch.nan])
    check_finite(losses, 2)
    with pytest.raises(Diverged, match="from step 2 on"):
        check_finite(losses, 4)


@pytest.mark.parametrize(("first", "last", "diverged"), [(2.6, 7.7, False), (2.6, 7.9, True), (2.6, 1e25, True),
                                                        (-1.0, 5.0, False), (0.0, 5.0, False)])  # fmt: skip
def test_a_loss_far_above_where_it_started_has_diverged(first: float, last: float, *, diverged: bool) -> None:
    check_risen(first, training=min(first, 1.0))
    with pytest.raises(Diverged, match="validation loss ended") if diverged else nullcontext():
        check_risen(first, training=first, validation=last)


def test_a_likelihood_below_zero_has_diverged_by_its_distance_from_the_least_loss() -> None:
    check_risen(-1.0, -1.4, validation=-0.3)
    with pytest.raises(Diverged, match=r"as far from -1\.4 as the -1 where it began"):
        check_risen(-1.0, -1.4, validation=-0.1)


def test_the_loss_of_zeros_is_that_of_the_outputs_variance() -> None:
    family, noise = FAMILIES["linear"], 0.1
    about = DataSpec(source="teacher", validation_fraction=0.2, validation_samples=4000, noise_std=noise, sha256="")
    task = family.task(family.Config(2), open_source("teacher"), about, train_spec(batch_size=4))
    assert task.least_nats == pytest.approx(0.5 * math.log(2 * math.pi * noise**2))
    variance = sum(float(targets.square().sum()) for (_, targets), _ in task.validation()) / 4000
    assert task.zero_nats() == pytest.approx(task.least_nats + variance / (2 * noise**2))
    assert task.zero_nats() > task.floor_nats


@pytest.mark.parametrize("accumulation", [2, 3, 7])
def test_micro_batches_have_the_gradients_of_the_whole_batch(accumulation: int) -> None:
    whole = train_spec(batch_size=7, sequence_length=16)
    model, task = gpt_and_task(whole)
    expected_loss, expected = gradients(model, task, whole)
    loss, grads = gradients(model, task, whole.model_copy(update={"accumulation": accumulation}))
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)  # losses are float32
    for a, b in zip(grads, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


def test_micro_batches_hold_every_sample_once_and_differ_by_one_at_most() -> None:
    batch = (torch.arange(7), torch.arange(7) * 10)
    parts = list(micro_batches(batch, 3))
    assert [len(part[0]) for part in parts] == [3, 2, 2]
    assert torch.equal(torch.cat([part[1] for part in parts]), batch[1])


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_recomputed_blocks_have_the_same_gradients_and_keep_fewer_activations(implementation: str) -> None:
    spec = train_spec(batch_size=4, sequence_length=32, implementation=implementation)
    held, results = [], []
    for checkpointing in (False, True):
        model, task = gpt_and_task(spec, params=8e3, depth=4)
        names = [name for name, _ in model.named_parameters()]
        if checkpointing:
            recompute_blocks(model)
        assert [name for name, _ in model.named_parameters()] == names
        results.append(gradients(model, task, spec))
        held.append(memory.split_columns(model, build_optimizer(model, spec), backward_of(model, task, spec, CPU)))
    assert torch.equal(results[0][0], results[1][0])
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert held[1]["memory_activations_bytes"] < 0.7 * held[0]["memory_activations_bytes"]
    assert held[1]["memory_parameters_bytes"] == held[0]["memory_parameters_bytes"]


@pytest.mark.slow
def test_micro_batches_divide_the_activations() -> None:
    held = []
    for accumulation in (1, 4):
        spec = train_spec(batch_size=8, sequence_length=32, accumulation=accumulation)
        model, task = gpt_and_task(spec)
        held.append(memory.split_columns(model, build_optimizer(model, spec), backward_of(model, task, spec, CPU)))
    assert held[1]["memory_activations_bytes"] == pytest.approx(held[0]["memory_activations_bytes"] / 4, rel=0.1)


def test_float16_steps_whose_gradients_overflow_are_skipped_and_counted() -> None:
    """The scale starts at 65,536: a gradient of 4 or more is then beyond float16, until the scale has halved enough."""
    spec = train_spec(optimizer="sgd", learning_rate=0.5, weight_decay=0.0, precision="float16")
    scaler = loss_scaler(CPU, spec)
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    optimizer = build_optimizer(module, spec)
    steps = []
    for _ in range(4):
        with torch.autocast("cpu", torch.float16):
            loss = (module(torch.tensor([[4.0]])) * 1.0).float().mean()
        scaler.scale(loss).backward()
        steps.append(update(module, optimizer, spec, scaler))
    assert steps == [False, False, False, True]
    assert scaler.get_scale() == 65536 / 8
    assert module.weight.item() == pytest.approx(-2.0)


@pytest.mark.slow
def test_float16_trains_close_to_float32() -> None:
    ends = []
    for precision in ("float32", "float16"):
        s = train_spec(steps=100, learning_rate=0.02, precision=precision)
        model, task, losses, _ = run("mlp", {"params": 300}, s, 512)
        assert losses.dtype == torch.float32
        ends.append(validate(model, task, s, CPU).loss_nats)
    assert ends[0] != ends[1]
    assert ends[0] == pytest.approx(ends[1], rel=0.02)


@pytest.mark.slow
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


def test_the_clock_keeps_every_step_and_separates_data_time(monkeypatch) -> None:
    ticks = iter([0, 10, 100, 130, 300, 305, 400])  # nanoseconds: lap, data, lap, data, lap, data, lap
    monkeypatch.setattr("scalebench.measure.clock.time.perf_counter_ns", lambda: next(ticks))
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
