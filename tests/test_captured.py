"""A captured step trains on each step's own batch and rate; CUDA's part is played by a recorder that runs nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from support import train_spec
from torch import Tensor

from scalebench.data import open_source
from scalebench.families import gpt
from scalebench.measure.clock import StepClock
from scalebench.optim.optimizers import build_optimizer
from scalebench.study import DataSpec
from scalebench.workloads import captured
from scalebench.workloads.captured import ORDINARY, CapturedStep
from scalebench.workloads.loop import Step, train
from scalebench.workloads.mixed_precision import WorkingCopy


class FakeStream:
    device = torch.device("cpu")

    def __init__(self, *_: Any) -> None: ...

    def wait_stream(self, _other: Any) -> None: ...


class FakeGraph:
    """Replays by running the step again on the buffers that the capture was given."""

    step: CapturedStep
    replays = 0

    def replay(self) -> None:
        FakeGraph.replays += 1
        self.step.loss.copy_(Step.__call__(self.step, self.step.inputs))


@contextmanager
def recording(held: list[Tensor]) -> Iterator[None]:
    """Let the body run and undo what it did to ``held``: recording a graph changes nothing."""
    before = [tensor.detach().clone() for tensor in held]
    yield
    with torch.no_grad():
        for tensor, copied in zip(held, before, strict=True):
            tensor.copy_(copied)


def trained(monkeypatch: pytest.MonkeyPatch, *, capture: bool) -> tuple[Tensor, list[int]]:
    spec = train_spec(
        steps=ORDINARY + 4, batch_size=4, accumulation=2, sequence_length=16, optimizer="sgd", learning_rate=0.5,
        schedule="linear", warmup_steps=2,
    )  # fmt: skip
    config = gpt.explicit(2, 16, vocab_size=256, context=16, head_dim=16)
    about = DataSpec(source="stdlib", validation_fraction=0.2, validation_samples=2, noise_std=None, sha256="")
    task = gpt.task(config, open_source("stdlib"), about, spec)
    torch.manual_seed(0)
    model = gpt.build(config, "eager")
    copy = WorkingCopy(model, torch.float32, sum_in_products=True)
    optimizer = build_optimizer(model, spec)
    copy.follow(optimizer)
    held = [*model.parameters(), *copy.copies]
    places: list[int] = []

    class Watched(CapturedStep):
        def _capture(self, batch: Any) -> None:
            super()._capture(batch)
            assert self.graph is not None
            self.graph.step = self
            places.extend(tensor.data_ptr() for tensor in copy.buffers)

    monkeypatch.setattr(captured.torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(captured.torch.cuda, "current_stream", lambda _: FakeStream())
    monkeypatch.setattr(captured.torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(captured.torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(captured.torch.cuda, "graph", lambda *_, **__: recording(held))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)
    losses = torch.zeros(spec.steps)
    step = Watched if capture else Step
    train(copy.module, optimizer, task, spec, StepClock(torch.device("cpu")), losses, lambda _: None, step)
    assert [tensor.data_ptr() for tensor in copy.buffers] == places or not capture
    return losses, places


def test_a_captured_step_gives_the_losses_of_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches, learning rates and gradients of every step are its own: to the bit, but for the rate in float32."""
    plain, _ = trained(monkeypatch, capture=False)
    FakeGraph.replays = 0
    replayed, places = trained(monkeypatch, capture=True)
    assert FakeGraph.replays == 4
    assert places
    torch.testing.assert_close(replayed, plain, rtol=1e-6, atol=1e-6)
    assert plain.unique().numel() == plain.numel()
