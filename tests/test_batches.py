"""Batches made ahead by a thread: the same ones in the same order, and a training loop that waits for nothing."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager, nullcontext

import pytest
import torch
from support import train_spec
from waiting import Waits

from scalebench.data import open_source
from scalebench.families import gpt
from scalebench.measure.clock import StepClock
from scalebench.optim.optimizers import build_optimizer
from scalebench.study import DataSpec
from scalebench.workloads import agreement
from scalebench.workloads.batches import AHEAD, batches, prefetched, to_device
from scalebench.workloads.loop import train

CPU = torch.device("cpu")


def small_task(steps: int = 6):
    spec = train_spec(steps=steps, batch_size=4, accumulation=2, sequence_length=16, learning_rate=0.01)
    config = gpt.explicit(2, 16, vocab_size=256, context=16, head_dim=16)
    about = DataSpec(source="stdlib", validation_fraction=0.2, validation_samples=2, noise_std=None, sha256="")
    return config, gpt.task(config, open_source("stdlib"), about, spec), spec


def losses_of(monkeypatch: pytest.MonkeyPatch | None = None) -> torch.Tensor:
    config, task, spec = small_task()
    if monkeypatch is not None:
        monkeypatch.setattr(
            "scalebench.workloads.loop.batches", lambda task, steps, on: prefetched(task.batch, steps, on)
        )
    torch.manual_seed(0)
    model, losses = gpt.build(config, "eager"), torch.zeros(spec.steps)
    train(model, build_optimizer(model, spec), task, spec, StepClock(CPU), losses, lambda done: None)
    return losses


def test_a_thread_makes_the_same_batches_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    _, task, _ = small_task()
    for inline, ahead in zip(batches(task, range(6), CPU), prefetched(task.batch, range(6), CPU), strict=True):
        assert all(torch.equal(batch, batch_ahead) for batch, batch_ahead in zip(inline, ahead, strict=True))
    assert torch.equal(losses_of(), losses_of(monkeypatch))


def test_the_thread_stays_ahead_by_a_bounded_number_and_ends_with_its_reader() -> None:
    batches: list[int] = []

    def make(step: int) -> tuple[torch.Tensor]:
        batches.append(step)
        return (torch.tensor(step),)

    before = threading.active_count()
    coming = prefetched(make, range(100), CPU)
    assert next(coming)[0].item() == 0
    deadline = time.monotonic() + 5
    while len(batches) < AHEAD + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert batches == list(range(AHEAD + 2))  # one taken, AHEAD waiting, one in hand
    coming.close()
    assert threading.active_count() == before


def test_what_goes_wrong_in_the_thread_is_raised_where_the_batch_is_wanted() -> None:
    def make(step: int) -> tuple[torch.Tensor]:
        if step == 2:
            raise ValueError("token 70000 beyond the vocabulary")
        return (torch.tensor(step),)

    coming = prefetched(make, range(5), CPU)
    assert [next(coming)[0].item() for _ in range(2)] == [0, 1]
    with pytest.raises(ValueError, match="beyond the vocabulary"):
        next(coming)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_no_step_reads_a_number_from_the_device(implementation: str) -> None:
    """On a CPU: what would wait on a GPU. Torch's own clipping and AdamW are part of it."""
    config, task, spec = small_task()
    spec = spec.model_copy(update={"implementation": implementation})
    torch.manual_seed(0)
    model, losses = gpt.build(config, implementation), torch.zeros(spec.steps)
    optimizer = build_optimizer(model, spec)
    with Waits() as waits:
        train(model, optimizer, task, spec, StepClock(CPU), losses, lambda done: None)
    # AdamW's step count lives on the CPU, where reading it waits for nothing.
    counts = len(list(model.parameters())) * spec.steps
    assert len(waits.seen) in (0, counts), waits.seen[:3]
    with Waits() as waits:
        float(losses[0])
    assert waits.seen  # the counter counts


def test_a_step_that_waits_fails_the_check_of_its_way(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unwaiting_steps(implementation: str, graph: str) -> int:
        if graph == "model":
            raise RuntimeError("called a synchronizing CUDA operation")
        return 10

    agrees = {"sdpa none": {"agrees": True}, "fused step": {"agrees": True}, "fused model": {"agrees": True}}
    monkeypatch.setattr(agreement, "compare_losses", lambda *_, **__: agrees)
    monkeypatch.setattr(agreement, "unwaiting_steps", unwaiting_steps)
    assert agreement.main(["--ways", "fused:step", "--unwaiting"]) == 0
    assert agreement.main(["--ways", "fused:step,fused:model"]) == 0
    capsys.readouterr()
    assert agreement.main(["--ways", "fused:step,fused:model", "--unwaiting"]) == 1
    rows = {row["way"]: row for row in map(json.loads, capsys.readouterr().out.splitlines())}
    assert rows["fused model"]["waits"] == "RuntimeError: called a synchronizing CUDA operation"
    assert "waits" not in rows["fused step"]


def test_a_view_is_made_contiguous_before_it_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    whole = torch.arange(12).view(3, 4)
    (sent,) = to_device((whole[:, :-1],), torch.device("cuda"))
    assert pinned[0].is_contiguous()
    assert torch.equal(sent, whole[:, :-1])


class Event:
    """What a stream had been given to do when it was recorded."""

    def __init__(self, work: list[str]) -> None:
        self.work = list(work)


class FakeStream:
    """A CUDA stream that notes what it does: copies, waits and the tensors that it uses."""

    def __init__(self, *_: object) -> None:
        self.work: list[str] = []
        self.uses: list[int] = []

    def record_event(self) -> Event:
        return Event(self.work)

    def wait_event(self, event: Event) -> None:
        self.work += [f"after {name}" for name in event.work]


def test_copies_run_on_another_stream_from_pinned_memory_and_the_compute_stream_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compute, active, made = FakeStream(), threading.local(), []

    @contextmanager
    def on(stream: FakeStream):
        before, active.stream = getattr(active, "stream", compute), stream
        yield
        active.stream = before

    def copied(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        stream = getattr(active, "stream", compute)
        assert id(tensor) in pinned
        assert non_blocking
        made.append(stream)
        stream.work.append(f"copy {tensor.item()}")
        return tensor

    pinned: set[int] = set()
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.add(id(tensor)) or tensor)
    monkeypatch.setattr(torch.Tensor, "to", copied)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: stream.uses.append(tensor.item()))
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: compute)
    coming = prefetched(lambda step: (torch.tensor(step),), range(4), torch.device("cuda"))
    for step, _ in enumerate(coming):
        assert compute.work[-1] == f"after copy {step}"  # before the batch is used, and without the host
        assert compute.uses == list(range(step + 1))
    assert len(made) == 4
    assert len({id(stream) for stream in made}) == 1
    assert compute not in made
