"""Attention over sets: a task with a known floor, that pooling cannot answer, and the counts of one block."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from support import saved_for_backward, train_spec
from torch.utils.flop_counter import FlopCounterMode

from scalebench.data.retrieval import CHANNELS, FEATURES, KEY, SHARPNESS, Retrieval, answer, rotations, weights
from scalebench.errors import InputError
from scalebench.families import attention, configure
from scalebench.measure.clock import StepClock
from scalebench.optim.optimizers import build_optimizer
from scalebench.study import DataSpec
from scalebench.tasks import SetRegression
from scalebench.workloads.loop import train, validate

CPU = torch.device("cpu")


def sets(length: int = 16, **changes: object) -> SetRegression:
    values = {"noise_std": 0.5, "batch_size": 64, "seed": 0, "validation_samples": 4096}
    return SetRegression(data=Retrieval(), length=length, **(values | changes))


# --- data ------------------------------------------------------------------------------------------------------------


def test_the_answer_is_the_formula_element_by_element() -> None:
    x, _ = Retrieval().draw(5, 0.5, 3, np.random.default_rng(0))
    for row, answer_row in zip(x.astype(np.float64), answer(x), strict=True):
        total = 0.0
        for r in range(CHANNELS):
            query = rotations()[r].astype(np.float64) @ row[0, :KEY]
            chances = [math.exp(SHARPNESS * float(element[:KEY] @ query)) for element in row[1:]]
            picked = sum(p * element[KEY + r] for p, element in zip(chances, row[1:], strict=True)) / sum(chances)
            total += float(weights()[r]) * picked
        assert float(answer_row[0]) == pytest.approx(total, rel=1e-4, abs=1e-5)


def test_sets_are_what_they_are_said_to_be() -> None:
    x, y = Retrieval().draw(9, 0.5, 200, np.random.default_rng(0))
    assert x.shape == (200, 9, FEATURES)
    assert y.shape == (200, 1)
    np.testing.assert_allclose(np.linalg.norm(x[:, :, :KEY], axis=2), 1, rtol=1e-5)
    assert set(np.unique(x[:, 1:, KEY:-1])) == {-1.0, 1.0}
    assert not x[:, 0, KEY:-1].any()
    assert (x[:, :, -1] == [1, *[0] * 8]).all()
    np.testing.assert_allclose(
        rotations() @ rotations().transpose(0, 2, 1), np.eye(KEY)[None].repeat(CHANNELS, 0), atol=1e-6
    )
    assert float((weights() ** 2).sum()) == pytest.approx(1)


class Oracle(torch.nn.Module):
    """The answer without its noise."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(answer(x.numpy()))


def test_the_perfect_model_reaches_the_floor() -> None:
    task = sets()
    validation = validate(Oracle(), task, train_spec(), CPU)
    assert task.floor_nats == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25))
    assert abs(validation.loss_nats - task.floor_nats) < 4 * validation.standard_error_nats
    assert validation.standard_error_nats < 0.02


def test_batches_depend_on_seed_and_step_and_validation_on_neither() -> None:
    first = sets().batch(5)
    assert torch.equal(first[0], sets().batch(5)[0])
    assert not torch.equal(first[0], sets().batch(6)[0])
    assert not torch.equal(first[0], sets(seed=1).batch(5)[0])
    of_seed_0, of_seed_1 = (next(iter(sets(seed=seed).validation()))[0] for seed in (0, 1))
    assert torch.equal(of_seed_0[0], of_seed_1[0])


# --- what it takes to answer -----------------------------------------------------------------------------------------


class Pooled(torch.nn.Module):
    """The same block with every element attended to alike."""

    def __init__(self, config: attention.Config) -> None:
        super().__init__()
        self.model = attention.build(config, "eager")
        self.model.attention.attend = lambda q, k, v, causal: v.mean(-2, keepdim=True).expand_as(v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)


def pooling_bound(task: SetRegression) -> tuple[float, float]:
    """Loss, with its standard error, of the best prediction from the query and the sums of keys and of values.

    Keys are exchangeable given their sum, so each element's chance is then 1/n: the best guess of the answer is
    sum_r w_r mean_i v_ir.
    """
    losses = []
    for (x, y), _ in task.validation():
        guess = x[:, 1:, KEY:-1].mean(1) @ torch.from_numpy(weights())
        losses.append(0.5 * math.log(2 * math.pi * 0.25) + (guess - y[:, 0]).square() / 0.5)
    whole = torch.cat(losses)
    return float(whole.mean()), float(whole.std()) / math.sqrt(len(whole))


@pytest.mark.slow
def test_a_model_that_attends_beats_what_pooling_can_reach_and_pooling_does_not() -> None:
    spec = train_spec(
        steps=250, sequence_length=16, batch_size=64, learning_rate=0.012, schedule="linear", warmup_steps=20,
        weight_decay=0.0, gradient_clip=1.0, implementation="sdpa",
    )  # fmt: skip
    task, config = sets(), attention.config_for(1.2e4)
    bound, error = pooling_bound(task)
    assert bound - task.floor_nats > 0.5
    ends = []
    for make in (lambda: attention.build(config, "sdpa"), lambda: Pooled(config)):
        torch.manual_seed(0)
        model = make()
        train(model, build_optimizer(model, spec), task, spec, StepClock(CPU), torch.zeros(250), lambda done: None)
        ends.append(validate(model, task, spec, CPU).loss_nats)
    attending, pooling = ends
    assert attending < bound - 0.15
    assert pooling > bound - 4 * error


def test_the_order_of_a_set_does_not_matter_and_the_query_does() -> None:
    torch.manual_seed(0)
    model, (x, _) = attention.build(attention.config_for(5e4), "sdpa"), sets().batch(0)
    shuffled = torch.cat([x[:, :1], x[:, 1:][:, torch.randperm(15)]], dim=1)
    torch.testing.assert_close(model(x), model(shuffled), rtol=1e-4, atol=1e-5)
    other = x.clone()
    other[:, 0, :KEY] *= -1
    assert (model(x) - model(other)).abs().max() > 1e-3


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [attention.config_for(5e3), attention.explicit(30, heads=5, hidden=7, inputs=4)])
def test_counts_equal_the_built_module_group_by_group(config: attention.Config) -> None:
    module = attention.build(config, "eager")
    groups = dict.fromkeys(["embedding", "attention", "mlp", "norm", "readout"], 0)
    for name, parameter in module.named_parameters():
        part = name.split(".")[0]
        groups["norm" if part.startswith("norm") else part if part in groups else "mlp"] += parameter.numel()
    assert groups == attention.count(config).by_group


@pytest.mark.parametrize("fixed", [{}, {"width": 48}, {"inputs": 100}])
def test_the_dial_lands_within_five_percent_and_a_tenth_more_is_larger(fixed: dict[str, int]) -> None:
    low, high = (2e4, 1e6) if fixed else (2.2e3, 1e10)
    for request in np.geomspace(low, high, 150):
        sizes = [attention.count(attention.config_for(n, **fixed)).total for n in (request, 1.1 * request)]
        assert abs(sizes[0] / request - 1) <= 0.05
        assert sizes[1] > sizes[0]


def test_flops_are_the_counters_on_the_eager_path() -> None:
    config = attention.config_for(2e4)
    with FlopCounterMode(display=False) as counter:
        attention.build(config, "eager")(torch.zeros(3, 11, FEATURES))
    assert counter.get_total_flops() == 3 * attention.count(config, 11).forward_flops


def test_eager_and_sdpa_compute_the_same_function_and_gradients() -> None:
    x = sets().batch(0)[0].double()
    results = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = attention.build(attention.config_for(5e4), implementation).double()
        outputs = model(x)
        outputs.square().mean().backward()
        results.append([outputs, *(parameter.grad for parameter in model.parameters())])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("params", [3e3, 3e5])
def test_activations_are_estimated_within_a_factor_of_two(params: float) -> None:
    config = attention.config_for(params)
    model, x = attention.build(config, "eager"), torch.randn(4, 48, FEATURES)
    saved = saved_for_backward(model, lambda: model(x).square().mean())
    assert 0.5 < saved / (4 * attention.count(config, 48).activation_bytes) < 2


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"width": 30, "heads": 4}, "width: 30 is not a multiple of heads = 4"),
        ({"params": 100}, "nearest attention"),
        ({}, "width missing"),
    ],
)
def test_requests_that_make_no_model_name_the_field(request_: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        configure(attention, request_, Retrieval(), 16)


@pytest.mark.parametrize(
    ("length", "inputs", "word"), [(1, FEATURES, "sequence_length = 1"), (16, 5, "inputs: 5 features")]
)
def test_tasks_that_do_not_fit_the_model_are_refused(length: int, inputs: int, word: str) -> None:
    side = DataSpec(source="retrieval", validation_fraction=0.2, validation_samples=8, noise_std=0.5, sha256="")
    with pytest.raises(InputError, match=word):
        attention.task(attention.config_for(5e3, inputs=inputs), Retrieval(), side, train_spec(sequence_length=length))
