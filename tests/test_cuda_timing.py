"""Timing by CUDA graphs, on a fake device: what is captured, what is in a sample, and what a failed capture leaves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch

from scalebench.comparison import cuda_timing
from scalebench.comparison.cuda_timing import CaptureBrokenError, CudaClock, NotCapturedError, capture
from scalebench.comparison.pool import Pool
from scalebench.comparison.timing import CpuClock, calls_per_sample, poison

KERNEL_S, FLUSH_S = 17e-6, 80e-6


@dataclass
class Device:
    """A device with a clock of its own: kernels queue on it and take time, launching them takes the host none."""

    now: float = 0.0
    busy_until: float = 0.0  # of other streams
    log: list[str] = field(default_factory=list)
    capturing: list[Callable[[], None]] | None = None
    broken: bool = False

    def launch(self, name: str, seconds: float, effect: Callable[[], None] = lambda: None) -> None:
        def run() -> None:
            self.log.append(name)
            self.now += seconds
            effect()

        if self.capturing is None:
            run()
        else:
            self.capturing.append(run)

    def launch_elsewhere(self, seconds: float) -> None:
        """Launch on another stream: runs beside what is launched later."""

        def run() -> None:
            self.busy_until = self.now + seconds

        if self.capturing is None:
            run()
        else:
            self.capturing.append(run)

    def wait(self, *_: object) -> None:
        self.now = max(self.now, self.busy_until)
        if self.capturing is not None:
            self.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


class Graph:
    """What ``torch.cuda.CUDAGraph`` does, on the fake device: launches between begin and end run at each replay."""

    def __init__(self, device: Device) -> None:
        self.device, self.nodes = device, []

    def capture_begin(self, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.device.capturing = []

    def capture_end(self) -> None:
        self.nodes, self.device.capturing = self.device.capturing, None
        if self.device.broken:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")
        if not self.nodes:
            warnings.warn("The CUDA Graph is empty. This usually means …", stacklevel=1)

    def replay(self) -> None:
        self.device.log.append("replay")
        for node in self.nodes:
            node()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    fake = Device()

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            self.at = math.nan

        def record(self) -> None:
            self.at = fake.now
            fake.log.append("event")

        def synchronize(self) -> None:
            """Wait for this stream alone, which runs as it is launched on."""

        def elapsed_time(self, other: Event) -> float:
            return 1e3 * (other.at - self.at)

    names = {
        "synchronize": fake.wait, "empty_cache": lambda: None, "CUDAGraph": lambda: Graph(fake), "Event": Event,
        "_sleep": lambda cycles: fake.launch("sleep", cycles / cuda_timing.CYCLES_PER_S),
        "get_device_properties": lambda _: SimpleNamespace(L2_cache_size=1 << 20),
    }  # fmt: skip
    for name, value in names.items():
        monkeypatch.setattr(cuda_timing.torch.cuda, name, value)
    monkeypatch.setattr(cuda_timing, "perf_counter", lambda: fake.now)
    monkeypatch.setattr(cuda_timing, "FLUSH_BYTES", 1 << 20)
    return fake


@pytest.fixture
def clock(device: Device) -> CudaClock:
    cuda_clock = CudaClock(torch.device("cpu"))
    source = cuda_clock._source
    cuda_clock._target = SimpleNamespace(copy_=lambda origin: device.launch("flush", FLUSH_S * (origin is source)))
    return cuda_clock


def kernel(device: Device) -> Callable[[], dict[str, torch.Tensor]]:
    """Work whose output is filled by a kernel, as a CUDA tensor's is."""

    def work() -> dict[str, torch.Tensor]:
        out = torch.zeros(3)
        device.launch("kernel", KERNEL_S, lambda: out.copy_(torch.arange(3.0)))
        return {"out": out}

    return work


def test_a_sample_is_the_time_of_the_graph_alone(device: Device, clock: CudaClock) -> None:
    timer = clock.timer(kernel(device), 3)
    device.log.clear()
    assert timer.take() == pytest.approx(KERNEL_S)
    assert device.log == ["sleep", "flush", "event", "replay", "kernel", "kernel", "kernel", "event"]
    assert "one CUDA graph of 3 calls" in timer.method
    assert "L2 filled by a copy of 2 MiB" in timer.method


def test_inputs_are_refreshed_before_each_replay_and_before_each_call_outside_the_events(
    device: Device, clock: CudaClock
) -> None:
    class Logged(Pool):
        def refresh(self) -> None:
            super().refresh()
            device.launch("refresh", 1e-3)

    x = torch.zeros(1)
    pool = Logged({"x": x}, [{"x": torch.full((1,), value)} for value in (1.0, 2.0, 3.0)])
    seen: list[float] = []

    def work() -> dict[str, torch.Tensor]:
        device.launch("kernel", KERNEL_S, lambda: seen.append(float(x)))
        return {"out": x}

    for refusal, log in (("", ["event", "replay", "kernel", "kernel", "event"]), ("no", ["event", "kernel", "event"])):
        timer = clock.timer(work, 2, refusal, pool)
        device.log.clear()
        seen.clear()
        assert [timer.take() for _ in range(3)] == pytest.approx([KERNEL_S] * 3)
        assert device.log == ["refresh", "sleep", "flush", *log] * (6 if refusal else 3)
        assert seen == ([1.0, 2.0, 3.0, 1.0, 2.0, 3.0] if refusal else [1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
        assert "from a pool of 3" in timer.method


@pytest.mark.parametrize("refusal", ["", "no graphs"])
def test_work_on_another_stream_counts_until_it_ends(device: Device, clock: CudaClock, refusal: str) -> None:
    def work() -> dict[str, torch.Tensor]:
        device.launch_elsewhere(5 * KERNEL_S)
        return kernel(device)()

    assert clock.timer(work, 1, refusal).take() == pytest.approx(5 * KERNEL_S)


def test_the_results_are_those_of_a_replay_after_they_were_overwritten(device: Device, clock: CudaClock) -> None:
    timer = clock.timer(kernel(device), 2)
    device.log.clear()
    assert torch.equal(timer.rerun(())["out"], torch.arange(3.0))
    assert device.log == ["replay", "kernel", "kernel"]
    once = kernel(device)()
    cached = clock.timer(lambda: device.launch("other", 1e-6) or once, 1)  # the result of an earlier call, kept
    assert cached.rerun(())["out"].isnan().all()


@pytest.mark.parametrize("refusal", ["", "it broke a process before"])
def test_work_that_refuses_a_capture_is_timed_by_events_and_says_so(
    device: Device, clock: CudaClock, refusal: str
) -> None:
    plain = kernel(device)

    def work() -> dict[str, torch.Tensor]:
        if device.capturing is not None:
            raise ValueError("tables changed\nsecond line")
        return plain()

    timer = clock.timer(work, 2, refusal)
    device.log.clear()
    assert timer.take() == pytest.approx(KERNEL_S)
    assert device.log == ["sleep", "flush", "event", "kernel", "event"] * 2
    assert timer.method.endswith(f"no CUDA graph: {refusal or 'ValueError: tables changed'}")
    assert "events around each of 2 calls launched behind a delay" in timer.method
    assert device.capturing is None
    assert torch.equal(timer.rerun(())["out"], torch.arange(3.0))
    assert "one CUDA graph" in clock.timer(plain, 1).method  # the next one is captured as if nothing had been


def test_a_clock_that_must_not_capture_never_does(device: Device, clock: CudaClock) -> None:
    clock.refusal = "no copy could be captured"
    assert clock.timer(kernel(device), 1).method.endswith("no CUDA graph: no copy could be captured")


def test_work_that_launches_nothing_on_the_stream_is_not_timed_by_an_empty_graph(
    device: Device, clock: CudaClock
) -> None:
    timer = clock.timer(lambda: {"out": torch.zeros(1)}, 1)
    assert "no CUDA graph: launches nothing on the stream" in timer.method


def test_work_that_waits_for_the_device_breaks_the_capture(device: Device, clock: CudaClock) -> None:
    def work() -> dict[str, torch.Tensor]:
        result = kernel(device)()
        device.wait()
        return result

    with pytest.raises(CaptureBrokenError, match=r"operation not permitted when stream is capturing$"):
        clock.timer(work, 1)


def test_a_capture_that_fails_at_its_end_is_broken_even_where_the_work_said_nothing(device: Device) -> None:
    def work() -> dict[str, torch.Tensor]:
        device.broken = True
        return {}

    with pytest.raises(CaptureBrokenError, match=r"previous error during capture$"):
        capture(work, 1, Graph(device))


def test_an_error_of_the_work_is_not_a_broken_capture(device: Device) -> None:
    def work() -> dict[str, torch.Tensor]:
        raise MemoryError

    with pytest.raises(NotCapturedError, match="MemoryError: no message"):
        capture(work, 1, Graph(device))
    assert device.capturing is None


def test_calls_follow_each_other_only_where_they_find_nothing_in_the_cache(device: Device, clock: CudaClock) -> None:
    assert clock.cold_bytes == 4 << 20
    assert calls_per_sample(80e-6, clock, 4 << 20) == 7
    assert calls_per_sample(80e-6, clock, (4 << 20) - 1) == 1
    assert calls_per_sample(4e-6, clock, 0) == 3
    assert calls_per_sample(1e-3, clock, 1 << 40) == 1
    assert calls_per_sample(80e-6, CpuClock(), 1 << 40) == 2


def test_poison_leaves_inputs_integers_and_shared_elements_alone() -> None:
    argument, own, places = torch.ones(3), torch.ones(3), torch.ones(2, dtype=torch.int64)
    spread = torch.ones(1).expand(4)
    poison({"a": argument[1:], "b": own, "c": places, "d": spread}, {argument.untyped_storage().data_ptr()})
    assert own.isnan().all()
    assert torch.equal(argument, torch.ones(3))
    assert torch.equal(places, torch.ones(2, dtype=torch.int64))
    assert torch.equal(spread, torch.ones(4))
