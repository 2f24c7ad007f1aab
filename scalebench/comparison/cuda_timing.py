"""Timing on a CUDA device: replays of a captured graph between events, so that samples contain no host time.

Everything runs on the current stream, which must not be the default one (``side_stream``): capture needs that, and a
backward pass runs on the stream of its forward pass. Work that cannot be captured is also timed between events, around
each call, with its launches queued behind a delay on the device; ``Timer.method`` records which way was used, and why.

Before each replay or call, outside the events, the next set of the pool is copied into the inputs. After the end event
the whole device is waited for, as work may have gone to other streams: what that takes beyond its usual time counts.

Before each sample, a buffer of at least twice the L2 cache is copied (random numbers onto random numbers). The cache is
then full of dirty lines of that buffer, as after another kernel: it holds none of the work's data, and the work pays
for writing back as much as it leaves behind.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch

from scalebench.comparison.draining import Work, joining
from scalebench.comparison.pool import Pool
from scalebench.comparison.timing import Clock, CpuClock, Timer, poison, rerunning
from scalebench.errors import number_of

SHORTEST_S = 10e-6  # some twenty ticks of an event's clock
LONG_S = 500e-6  # starting a graph takes a few microseconds (``timing_floor_s`` in the rows): about one percent
FLUSH_BYTES = 128 << 20  # unless the L2 cache holds more than half of it
CYCLES_PER_S = 2e9  # upper bound of the clock rate, so that a delay in cycles is at least as long as wanted
LONGEST_DELAY_S = 20e-3


class NotCapturedError(RuntimeError):
    """The work cannot be captured as a CUDA graph, for the reason in the message. The process can continue."""


class CaptureBrokenError(RuntimeError):
    """The device ended a capture with an error, for example because the work waited for the device.

    torch before 2.12 then leaves its allocator in the capturing state, and an assertion fails when memory is released
    later: the process has to end.
    """


def clock_for(device: torch.device, refusal: str = "") -> Clock:
    """Return the clock of a device; ``refusal`` is why nothing must be captured as a CUDA graph, if so."""
    return CudaClock(device, refusal) if device.type == "cuda" else CpuClock()


@contextlib.contextmanager
def side_stream(device: torch.device) -> Iterator[None]:
    """Run on a new stream of a CUDA device, as capture needs; do nothing on another device."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.device(stream.device), torch.cuda.stream(stream):
        yield


def capture(work: Work, calls: int, graph: Any) -> Mapping[str, Any]:
    """Capture ``calls`` calls into a ``torch.cuda.CUDAGraph`` and return the results of the last, which replays fill.

    Raises ``NotCapturedError`` where the work raised, or launched nothing on this stream, and ``CaptureBrokenError``
    where the capture itself failed. The work must have run before on this stream: compilation, workspaces and
    module loading cannot happen in a capture.
    """
    results: Mapping[str, Any] = {}
    refusal: Exception | None = None
    # Garbage collection could free device memory, which would end the capture.
    gc.disable()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _begin(graph)
            try:
                for _ in range(calls):
                    results = work()
            except Exception as error:  # noqa: BLE001 - whatever the work raises means that it is timed without a graph
                refusal = error
            _end(graph, refusal)
    finally:
        gc.enable()
    if refusal is not None:
        raise NotCapturedError(_first_line(refusal)) from refusal
    if any("graph is empty" in str(warning.message).lower() for warning in caught):
        raise NotCapturedError("launches nothing on the stream that is timed")
    return results


def _begin(graph: Any) -> None:
    try:
        # Other threads may go on calling what a capture forbids: autograd's own allocates and frees.
        graph.capture_begin(capture_error_mode="thread_local")
    except RuntimeError as error:
        raise CaptureBrokenError(f"no capture began: {_first_line(error)}") from error


def _end(graph: Any, refusal: Exception | None) -> None:
    try:
        graph.capture_end()
    except RuntimeError as error:
        raise CaptureBrokenError(_first_line(refusal or error)) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


@dataclass
class CudaClock:
    """Events on the current stream around a graph's replay, or around calls; see the head of this file."""

    device: torch.device
    refusal: str = ""
    shortest_s: float = SHORTEST_S
    long_s: float = LONG_S
    cold_bytes: float = field(init=False)
    flush_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        cache = int(torch.cuda.get_device_properties(self.device).L2_cache_size)
        self.cold_bytes = 4 * cache
        self.flush_bytes = max(FLUSH_BYTES, 2 * cache)
        self._source, self._target = (torch.randn(self.flush_bytes // 4, device=self.device) for _ in range(2))
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._usual_drain_s = 0.0
        self._usual_drain_s = sorted(self._idle_drain_s() for _ in range(20))[17]

    def timer(self, work: Work, calls: int, refusal: str = "", pool: Pool | None = None) -> Timer:
        """Return the timer of a function, by a graph unless it cannot be captured or ``refusal`` is a reason not to.

        Raises ``CaptureBrokenError``, after which the process has to end.
        """
        refusal, work = refusal or self.refusal, joining(work)
        if not refusal:
            torch.cuda.synchronize(self.device)
            torch.cuda.empty_cache()  # a capture cannot release cached memory to make room
            graph = torch.cuda.CUDAGraph()
            try:
                results = capture(work, calls, graph)
            except NotCapturedError as error:
                refusal = str(error)
            else:
                return self._graph_timer(graph, results, calls, pool)
        return self._event_timer(work, calls, refusal, pool)

    def _graph_timer(self, graph: Any, results: Mapping[str, Any], calls: int, pool: Pool | None) -> Timer:
        def rerun(spared: Collection[int]) -> Mapping[str, Any]:
            poison(results, spared)
            graph.replay()
            return results

        delay_s = self._delay(graph.replay)
        method = f"one CUDA graph of {number_of(calls, 'call')}, replayed between events, {self._before(pool)}"
        return Timer(calls, method, lambda: self._sample(graph.replay, delay_s, pool) / calls, rerun)

    def _event_timer(self, work: Work, calls: int, refusal: str, pool: Pool | None) -> Timer:
        delay_s = self._delay(work)
        launched = f"launched behind a delay of {1e6 * delay_s:.0f} µs on the device"
        events = f"events around each of {number_of(calls, 'call')} {launched}"
        method = f"{events}, {self._before(pool)}; no CUDA graph: {refusal}"

        def take() -> float:
            return sum([self._sample(work, delay_s, pool) for _ in range(calls)]) / calls

        return Timer(calls, method, take, rerunning(work))

    def _before(self, pool: Pool | None) -> str:
        flushed = f"L2 filled by a copy of {self.flush_bytes >> 20} MiB before"
        return f"{pool.method}, {flushed}" if pool else flushed

    def _delay(self, issue: Callable[[], Any]) -> float:
        """Return how long the device should wait before it begins, in seconds: twice the host time of launching."""
        times = []
        for _ in range(3):
            torch.cuda.synchronize(self.device)
            begun = perf_counter()
            issue()
            times.append(perf_counter() - begun)
        torch.cuda.synchronize(self.device)
        return min(2 * min(times) + 20e-6, LONGEST_DELAY_S)

    def _sample(self, issue: Callable[[], Any], delay_s: float, pool: Pool | None) -> float:
        """Return the seconds from the launch of ``issue`` until the whole device had finished."""
        torch.cuda.synchronize(self.device)
        if pool is not None:
            pool.refresh()
        torch.cuda._sleep(int(delay_s * CYCLES_PER_S))
        self._target.copy_(self._source)
        self._start.record()
        issue()
        self._end.record()
        self._end.synchronize()
        drained_s = self._drain_s()
        return self._start.elapsed_time(self._end) * 1e-3 + drained_s

    def _drain_s(self) -> float:
        """Wait for all streams of the device; return how much longer than usual that took."""
        begun = perf_counter()
        torch.cuda.synchronize(self.device)
        return max(0.0, perf_counter() - begun - self._usual_drain_s)

    def _idle_drain_s(self) -> float:
        self._end.record()
        self._end.synchronize()
        return self._drain_s()
