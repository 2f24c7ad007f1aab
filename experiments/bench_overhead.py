"""What measuring costs: the training loop with its collectors against a bare PyTorch loop of the same model.

Both run in short chunks, in random order within each round, on the same data with weights of their own; the benchmark's
time is that of a round of both, and ``extra_info`` holds the ratio of the medians with its 95 % bootstrap interval.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from support import train_spec
from torch.nn.utils import clip_grad_norm_

from scalebench.data import open_source
from scalebench.families import FAMILIES, configure
from scalebench.measure.clock import StepClock
from scalebench.optim.optimizers import build_optimizer
from scalebench.optim.schedules import set_learning_rate
from scalebench.study import DataSpec
from scalebench.workloads.loop import check_finite, train

CHUNK, ROUNDS = 20, 40


def prepared(params: float):
    spec = train_spec(steps=CHUNK, batch_size=16, sequence_length=128, implementation="sdpa")
    family, data = FAMILIES["gpt"], open_source("stdlib")
    config = configure(family, {"params": params}, data, 128)
    data_spec = DataSpec(
        source="stdlib", validation_fraction=0.2, validation_samples=64, noise_std=None, sha256=data.sha256
    )
    model = family.build(config, "sdpa")
    return model, build_optimizer(model, spec), family.task(config, data, data_spec, spec), spec


def bare(params: float) -> Callable[[], None]:
    model, optimizer, task, spec = prepared(params)

    def chunk() -> None:
        for step in range(CHUNK):
            loss = task.loss(model, task.batch(step))
            loss.backward()
            clip_grad_norm_(model.parameters(), spec.gradient_clip)
            set_learning_rate(optimizer, spec, step)
            optimizer.step()
            optimizer.zero_grad()

    return chunk


def measured(params: float) -> Callable[[], None]:
    model, optimizer, task, spec = prepared(params)

    def chunk() -> None:
        losses = torch.full((CHUNK,), torch.nan)
        clock = StepClock(torch.device("cpu"))
        train(model, optimizer, task, spec, clock, losses, lambda done: check_finite(losses, done))

    return chunk


@pytest.mark.parametrize("params", [1.5e3, 1e5])
def test_harness_overhead(benchmark, params: float) -> None:
    torch.set_num_threads(1)
    loops = {"bare": bare(params), "measured": measured(params)}
    times: dict[str, list[float]] = {name: [] for name in loops}

    def one_round() -> None:
        for name in random.sample(list(loops), 2):
            start = time.perf_counter()
            loops[name]()
            times[name].append((time.perf_counter() - start) / CHUNK)

    benchmark.pedantic(one_round, rounds=ROUNDS, warmup_rounds=2)
    samples = {name: np.array(values[2:]) for name, values in times.items()}
    rng = np.random.default_rng(0)
    picks = rng.integers(ROUNDS, size=(2000, ROUNDS))
    ratios = np.median(samples["measured"][picks], axis=1) / np.median(samples["bare"][picks], axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    medians = {name: float(np.median(values)) for name, values in samples.items()}
    ratio = medians["measured"] / medians["bare"]
    benchmark.extra_info |= {"step_ratio": ratio, "low": float(low), "high": float(high), "median_step_s": medians}
    print(f"\nN = {params:g}: measured / bare step time {ratio:.4f} [{low:.4f}, {high:.4f}], {medians}")
