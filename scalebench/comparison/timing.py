"""Timing functions beside each other: a clock for the device, warm-up, and samples in random order."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from scalebench.statistics import FEWEST, TIMEOUT, StoppingRule

Work = Callable[[], Mapping[str, Any]]

# A sample lasts at least this long, by repeating the call: some hundred ticks of the clock and of its own overhead.
SHORTEST_CPU_S, SHORTEST_CUDA_S = 100e-6, 10e-6
WARM_UP_S, WARM_UP_CALLS = 0.5, 50
PATIENCE = 5
FLUSH_BYTES = 256 << 20  # well over any L2; clearing it also covers the time in which the host launches the work


class Clock(Protocol):
    """Times ``calls`` calls of a function on its device, in seconds per call."""

    shortest_s: float

    def method(self, calls: int) -> str:
        """Say how a sample of so many calls is taken."""
        ...

    def sample(self, work: Work, calls: int) -> float:
        """Take one sample."""
        ...


@dataclass
class CpuClock:
    """The monotonic clock. Work on a CPU is over when the call returns; caches stay as the calls before left them."""

    shortest_s: float = SHORTEST_CPU_S

    def method(self, calls: int) -> str:
        """See ``Clock``."""
        return f"perf_counter_ns around {calls} call{'s' * (calls > 1)}, caches as the interleaved calls left them"

    def sample(self, work: Work, calls: int) -> float:
        """See ``Clock``."""
        begun = time.perf_counter_ns()
        for _ in range(calls):
            work()
        return (time.perf_counter_ns() - begun) * 1e-9 / calls


@dataclass
class CudaClock:
    """Events on the stream, the L2 cache cleared before each sample; the host waits at both ends."""

    device: torch.device
    shortest_s: float = SHORTEST_CUDA_S
    _flush: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=self.device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def method(self, calls: int) -> str:
        """See ``Clock``."""
        return f"cuda_event around {calls} call{'s' * (calls > 1)}, L2 cleared before"

    def sample(self, work: Work, calls: int) -> float:
        """See ``Clock``."""
        torch.cuda.synchronize(self.device)
        self._flush.zero_()
        self._start.record()
        for _ in range(calls):
            work()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) * 1e-3 / calls


def clock_for(device: torch.device) -> Clock:
    """Return the clock of a device."""
    return CudaClock(device) if device.type == "cuda" else CpuClock()


def synchronize(device: torch.device) -> None:
    """Wait for the device; a CPU has nothing to wait for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Call once and return the result and the seconds until the device was done."""
    synchronize(device)
    begun = time.perf_counter_ns()
    result = work()
    synchronize(device)
    return result, (time.perf_counter_ns() - begun) * 1e-9


def warm_up(work: Work, device: torch.device) -> float:
    """Call until three calls in a row are no better than the best before them by 5 %; return the best, in seconds."""
    best, stale, begun = math.inf, 0, time.perf_counter()
    for _ in range(WARM_UP_CALLS):
        _, seconds = timed(work, device)
        stale = stale + 1 if seconds > 0.95 * best else 0
        best = min(best, seconds)
        if stale >= 3 or time.perf_counter() - begun > WARM_UP_S:
            break
    return best


def calls_per_sample(seconds: float, clock: Clock) -> int:
    """Return how many calls make a sample long enough for the clock."""
    return max(1, math.ceil(clock.shortest_s / max(seconds, 1e-9)))


@dataclass
class Sampled:
    """The samples of one provider in one process, in the order taken, seconds per call; and why they ended."""

    calls: int
    times_s: list[float] = field(default_factory=list)
    stop_reason: str = TIMEOUT
    error: Exception | None = None


def sample_interleaved(
    works: Mapping[str, Work], calls: Mapping[str, int], clock: Clock, rule: StoppingRule, rng: random.Random
) -> dict[str, Sampled]:
    """Sample functions in rounds, each once a round in random order, until each has a reason to stop.

    Rounds go on for all while one is not done, so that what disturbs the machine meets all alike; the rule's timeout
    holds for each of them, that is ``len(works)`` times as long in all, and five times that where it would end before
    the six samples that can bound a median. A function that raises leaves the rotation.
    """
    sampled = {name: Sampled(calls[name]) for name in works}
    rule.reason([1.0] * rule.least, 0.0)  # the first call imports SciPy, which takes seconds
    checked, limit = 0, rule.timeout_s * len(works)
    gc.collect()
    gc.disable()
    begun = time.perf_counter()
    try:
        while live := [name for name, one in sampled.items() if one.error is None]:
            for name in rng.sample(live, len(live)):
                _take(sampled[name], works[name], clock)
            rounds, elapsed = max(len(one.times_s) for one in sampled.values()), time.perf_counter() - begun
            if elapsed < limit and rounds < max(rule.least, 1.1 * checked):
                continue
            if rounds < FEWEST and elapsed < PATIENCE * limit:
                continue
            checked = rounds
            reasons = {name: rule.reason(sampled[name].times_s, elapsed / len(works)) for name in live}
            for name, reason in reasons.items():
                sampled[name].stop_reason = reason or TIMEOUT
            if all(reasons.values()):
                break
    finally:
        gc.enable()
    return sampled


def _take(one: Sampled, work: Work, clock: Clock) -> None:
    try:
        one.times_s.append(clock.sample(work, one.calls))
    except Exception as error:  # noqa: BLE001 - whatever a provider raises is its row's reason
        one.error = error
