"""What a change did to a model: paired losses against written-out sums, bytes, and times measured in turns."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from dataclasses import replace
from statistics import mean
from typing import Any

import pytest
import torch
from support import train_spec
from torch import nn

from scalebench.data import open_data
from scalebench.families import FAMILIES, configure
from scalebench.measure.turns import FEWEST_TURNS, times_in_turns
from scalebench.study import DataSpec
from scalebench.tasks import Task
from scalebench.workloads import effect
from scalebench.workloads.effect import Before, effect_columns, forward_pass, loss_columns, remember
from scalebench.workloads.loop import validate

CPU = torch.device("cpu")


def model_and_task(name: str, samples: int = 48, **fields: Any) -> tuple[nn.Module, Task, Any]:
    """Return a model with random weights, its task with a small held-out sample, and its spec."""
    family = FAMILIES[name]
    spec = train_spec(sequence_length=16 if family.SEQUENCES else None)
    data = open_data(family.DATA, None, 0.2)
    held_out = DataSpec(source=family.DATA, validation_fraction=0.2, validation_samples=samples, noise_std=0.5,
                        sha256=data.sha256)  # fmt: skip
    config = configure(family, fields or {"params": 2000 if name == "gpt" else 10_000}, data, spec.sequence_length)
    torch.manual_seed(0)
    return family.build(config, "eager"), family.task(config, data, held_out, spec), spec


@pytest.fixture(scope="module")
def gpt() -> tuple[Before, nn.Module, Task, Any]:
    """A GPT before a change, and changed: its embedding, which is its output matrix, too, is half as large."""
    model, task, spec = model_and_task("gpt", samples=256)
    before = remember(model, task, spec, CPU)
    with torch.no_grad():
        model.get_parameter("head.weight").mul_(0.5)
    return before, model, task, spec


def test_the_added_loss_is_the_mean_of_paired_differences_and_clustered(gpt) -> None:
    before, model, task, spec = gpt
    after = validate(model, task, spec, CPU)
    # The held-out windows are of a document each: here two documents count as one.
    columns = loss_columns(before, replace(after, clusters=after.clusters // 2))
    by_document: dict[int, list[float]] = defaultdict(list)
    with torch.no_grad():
        for batch, documents in task.validation():
            pairs = zip(task.losses(model, batch), task.losses(before.model, batch), documents, strict=True)
            for ours, theirs, document in pairs:
                by_document[int(document) // 2].append(float(ours) - float(theirs))
    everything = [value for values in by_document.values() for value in values]
    center, groups = mean(everything), len(by_document)
    assert 1 < groups < len(everything)
    squares = sum(sum(value - center for value in values) ** 2 for values in by_document.values())
    assert columns["loss_added_nats"] == pytest.approx(center, rel=1e-6)
    assert columns["loss_added_se_nats"] == pytest.approx(
        math.sqrt(groups / (groups - 1) * squares) / len(everything), rel=1e-5
    )
    assert columns["loss_added_nats"] == pytest.approx(columns["validation_loss_nats"] - columns["loss_before_nats"])


def test_no_change_adds_nothing_and_every_declared_column_is_filled(gpt) -> None:
    before, *_ = gpt
    columns = effect_columns(before, before.model)
    metrics = {name for name in columns if name.startswith("metric_")}
    assert metrics == {"metric_bits_per_byte"}
    assert {*columns} - metrics == {c.name for c in effect.COLUMNS if not c.name.startswith("metric_")}
    assert columns["loss_added_nats"] == columns["loss_added_se_nats"] == 0
    assert columns["weight_bytes"] == columns["weight_bytes_before"]
    assert columns["latency_ratio"] == pytest.approx(columns["latency_s"] / columns["latency_before_s"])
    assert columns["latency_ratio_low"] <= columns["latency_ratio"] <= columns["latency_ratio_high"]
    assert columns["latency_calls"] >= FEWEST_TURNS


def test_the_copy_is_apart_from_the_model_and_tied_as_the_model_is(gpt) -> None:
    before, model, *_ = gpt
    copied = dict(before.model.named_parameters(remove_duplicate=False))
    assert len(copied) > len(dict(before.model.named_parameters()))
    torch.testing.assert_close(model.get_parameter("head.weight"), copied["head.weight"] * 0.5, rtol=0, atol=0)
    assert not before.model.training


@pytest.mark.slow
def test_a_model_in_another_precision_is_measured_in_its_own() -> None:
    model, task, spec = model_and_task("gpt", samples=8)
    before = remember(model, task, spec, CPU)
    columns = effect_columns(before, model.to(torch.bfloat16), spec=spec.model_copy(update={"precision": "bfloat16"}))
    assert columns["weight_bytes"] * 2 == columns["weight_bytes_before"]
    assert 0 < abs(columns["loss_added_nats"]) < 0.05  # 8 bits of mantissa


@pytest.mark.parametrize("name", ["gpt", "bert", "transformer", "mlp", "cnn", "moe"])
def test_a_forward_pass_is_of_one_sample_with_the_inputs_that_the_task_gives(name: str) -> None:
    model, task, spec = model_and_task(name, samples=8)
    batch, _ = next(iter(task.validation()))
    sizes: list[int] = []
    call = forward_pass(model, task, spec, CPU)
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    call()
    assert sizes == [1]
    assert len(batch[0]) == 8
    assert not model.training


def test_calls_take_turns_and_their_times_are_their_own() -> None:
    order: list[str] = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    short, long = times_in_turns([lambda: call("short", 0.0005), lambda: call("long", 0.002)], CPU, seconds=0, most=100)
    assert len(short) == len(long) == FEWEST_TURNS
    assert short.min() >= 0.0005
    assert long.min() >= 0.002
    turns = [tuple(order[i : i + 2]) for i in range(10, len(order), 2)]  # five turns to warm up
    assert {*turns} == {("short", "long"), ("long", "short")}
    assert len(turns) == FEWEST_TURNS
    assert len(times_in_turns([lambda: None], CPU, seconds=60, most=30)[0]) == 30
