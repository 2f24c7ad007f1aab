"""Time several functions interleaved: a clock for the device, warm-up, and samples in random order."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from time import perf_counter_ns
from typing import Any, Protocol

import torch

from scalebench.comparison.draining import Work, joining
from scalebench.comparison.pool import Pool
from scalebench.errors import number_of
from scalebench.measure.statistics import FEWEST, TIMEOUT, StoppingRule

# A sample repeats the call until it lasts this long, about a hundred times the clock's resolution and overhead.
SHORTEST_CPU_S = 100e-6
WARM_UP_S, WARM_UP_CALLS = 0.5, 50
PATIENCE = 5


@dataclass(frozen=True)
class Timer:
    """How one function is timed: ``take`` measures one sample of ``calls`` calls, in seconds per call.

    ``method`` describes how. ``rerun`` overwrites earlier results with NaN, runs exactly what was timed once more and
    returns the results; it takes the storage addresses that must not be overwritten.
    """

    calls: int
    method: str
    take: Callable[[], float]
    rerun: Callable[[Collection[int]], Mapping[str, Any]]


class Clock(Protocol):
    """Times functions on its device.

    Samples shorter than ``shortest_s`` are too noisy. Calls that move at least ``cold_bytes`` evict their own inputs
    from the cache, so that a sample may repeat them for ``long_s``.
    """

    shortest_s: float
    cold_bytes: float
    long_s: float

    def timer(self, work: Work, calls: int, refusal: str = "", pool: Pool | None = None) -> Timer:
        """Return the timer of a function, whose inputs are refreshed from the pool outside the clock.

        Threads and streams that the function leaves busy are waited for inside the clock. A non-empty ``refusal`` is
        why it must not be captured as a CUDA graph.
        """
        ...


@dataclass
class CpuClock:
    """The monotonic clock, around each call by itself; Python threads that a call starts are waited for."""

    shortest_s: float = SHORTEST_CPU_S
    cold_bytes: float = math.inf
    long_s: float = SHORTEST_CPU_S

    def timer(self, work: Work, calls: int, refusal: str = "", pool: Pool | None = None) -> Timer:
        """See ``Clock``."""
        del refusal
        overhead_ns, work = clock_overhead_ns(), joining(work)

        def take() -> float:
            # A list, not a generator, which would turn a StopIteration of the work into another error.
            total_ns = sum([_call_ns(work, pool) for _ in range(calls)])
            return max(total_ns - calls * overhead_ns, 1) * 1e-9 / calls

        fresh = pool.method if pool else "the same inputs"
        each = f"perf_counter_ns around each of {number_of(calls, 'call')}"
        method = f"{each}, {fresh}, caches as left by that and by other calls"
        return Timer(calls, method, take, rerunning(work))


def _call_ns(work: Work, pool: Pool | None) -> int:
    if pool is not None:
        pool.refresh()
    begun = perf_counter_ns()
    work()
    return perf_counter_ns() - begun


@cache
def clock_overhead_ns() -> int:
    """Return the time of a call that does nothing, the least of a hundred, in nanoseconds."""
    nothing = joining(dict)
    return min(_call_ns(nothing, None) for _ in range(100))


def rerunning(work: Work) -> Callable[[Collection[int]], Mapping[str, Any]]:
    """Return a ``rerun`` that calls the work again, after filling an output buffer that it may reuse with NaN."""

    def rerun(spared: Collection[int]) -> Mapping[str, Any]:
        poison(work(), spared)
        return work()

    return rerun


def poison(results: Mapping[str, Any], spared: Collection[int]) -> None:
    """Fill floating-point results with NaN, except those whose storage address is in ``spared``.

    Expanded tensors, whose elements share memory, are left unchanged.
    """
    for tensor in results.values():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        shared = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if not shared and tensor.untyped_storage().data_ptr() not in spared:
            tensor.detach().fill_(math.nan)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished; nothing to do on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Call once and return the result and the time until the device and its threads had finished, in seconds."""
    synchronize(device)
    begun = perf_counter_ns()
    result = joining(work)()
    synchronize(device)
    return result, (perf_counter_ns() - begun) * 1e-9


def warm_up(work: Work, device: torch.device) -> float:
    """Call until three calls in a row improve the best time by less than 5 %; return the best time in seconds."""
    best, stale, begun = math.inf, 0, time.perf_counter()
    for _ in range(WARM_UP_CALLS):
        _, seconds = timed(work, device)
        stale = stale + 1 if seconds > 0.95 * best else 0
        best = min(best, seconds)
        if stale >= 3 or time.perf_counter() - begun > WARM_UP_S:
            break
    return best


def calls_per_sample(seconds: float, clock: Clock, bytes_moved: int = 0) -> int:
    """Return the calls per sample that the clock needs; more if the calls evict their own data from the cache."""
    duration_s = clock.long_s if bytes_moved >= clock.cold_bytes else clock.shortest_s
    return max(1, math.ceil(duration_s / max(seconds, 1e-9)))


@dataclass
class Sampled:
    """Samples of one provider in one process, in the order taken, seconds per call, and why sampling stopped."""

    calls: int
    times_s: list[float] = field(default_factory=list)
    stop_reason: str = TIMEOUT
    error: Exception | None = None


def sample_interleaved(
    timers: Mapping[str, Timer], rule: StoppingRule, rng: random.Random, turn: Callable[[str], None] = lambda _: None
) -> dict[str, Sampled]:
    """Sample functions in rounds, each once per round in random order, until each has a reason to stop.

    All continue until the last function may stop, so that disturbances of the machine affect all alike. The rule's
    timeout applies per function, so the total is ``len(timers)`` times as long, and up to ``PATIENCE`` times that if
    there are not yet the six samples that bound a median. A function that raises is not sampled again. ``turn`` is
    called with the name of the next function.
    """
    sampled = {name: Sampled(timer.calls) for name, timer in timers.items()}
    rule.reason([1.0] * rule.least, 0.0)  # the first call imports SciPy, which takes seconds
    checked, limit = 0, rule.timeout_s * len(timers)
    gc.collect()
    gc.disable()
    begun = time.perf_counter()
    try:
        while live := [name for name, samples in sampled.items() if samples.error is None]:
            for name in rng.sample(live, len(live)):
                turn(name)
                _take(sampled[name], timers[name])
            rounds, elapsed = max(len(samples.times_s) for samples in sampled.values()), time.perf_counter() - begun
            if elapsed < limit and rounds < max(rule.least, 1.1 * checked):
                continue
            if rounds < FEWEST and elapsed < PATIENCE * limit:
                continue
            checked = rounds
            reasons = {name: rule.reason(sampled[name].times_s, elapsed / len(timers)) for name in live}
            for name, reason in reasons.items():
                sampled[name].stop_reason = reason or TIMEOUT
            if all(reasons.values()):
                break
    finally:
        gc.enable()
    return sampled


def _take(samples: Sampled, timer: Timer) -> None:
    try:
        samples.times_s.append(timer.take())
    except Exception as error:  # noqa: BLE001 - whatever a provider raises is its row's reason
        samples.error = error
