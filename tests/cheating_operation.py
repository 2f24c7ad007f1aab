"""An operation whose providers cheat, hang or cannot be captured, for tests of the comparison: sines of numbers.

``waiting`` stands for work that breaks the capture of a CUDA graph, which a CPU does not have: the clock of a CPU
raises what that of a GPU would, unless it is told not to capture.
"""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from scalekernels.cost import Cost
from scalekernels.providers import Provider
from torch import Tensor

from scalebench.comparison import timing
from scalebench.comparison.cuda_timing import CaptureBrokenError
from scalebench.comparison.draining import Work
from scalebench.comparison.pool import Pool
from scalebench.comparison.timing import CpuClock, Timer

Results = Mapping[str, Tensor]
STUCK_S = 600.0


@dataclass(frozen=True)
class Case:
    length: int
    dtype: torch.dtype = torch.float32

    @property
    def label(self) -> str:
        return f"n{self.length}"


CASES = (Case(3000), Case(10))


def inputs(case: Case, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator(device).manual_seed(seed)
    return {"x": torch.randn(case.length, generator=generator, dtype=case.dtype)}


def results(case: Case, tensors: Results, backward: bool) -> Results:
    return {"y": tensors["x"].double().exp().sin()}


def cost(case: Case, backward: bool) -> Cost:
    return Cost(2 * case.length, 4 * case.length, 4 * case.length)


def _eager(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    return lambda: {"y": tensors["x"].exp().sin()}


def _cached(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    """Compute once for an address and hand the same tensor out again."""
    cache: dict[int, Tensor] = {}

    def call() -> Results:
        place = tensors["x"].data_ptr()
        if place not in cache:
            cache[place] = tensors["x"].exp().sin()
        return {"y": cache[place]}

    return call


def _first3(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    """Be right in the calls that are likely to be checked."""
    calls = iter(range(10**9))
    return lambda: {"y": tensors["x"].exp().sin() if next(calls) < 3 else torch.zeros_like(tensors["x"])}


def _memoised(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    """Compute once for an address and version of the inputs."""
    cache: dict[tuple[int, int], Tensor] = {}

    def call() -> Results:
        x = tensors["x"]
        key = (x.data_ptr(), x._version)
        if key not in cache:
            cache.clear()
            cache[key] = x.exp().sin()
        return {"y": cache[key]}

    return call


def _deferred(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    """Return before a thread has filled the output."""

    def call() -> Results:
        out = torch.empty_like(tensors["x"])
        threading.Thread(target=lambda: out.copy_(tensors["x"].exp().sin())).start()
        return {"y": out}

    return call


def _pooled(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    """Leave the work to a thread that has run since before the call, and that is busy with it for a while."""
    pool = ThreadPoolExecutor(1)
    latest = [pool.submit(int)]

    def fill(out: Tensor) -> None:
        out.copy_(tensors["x"].exp().sin())

    def fill_and_work(out: Tensor) -> None:
        fill(out)
        end = time.thread_time() + 0.05  # longer than a busy machine lets this thread run before the call returns
        while time.thread_time() < end:
            tensors["x"].exp()

    def call() -> Results:
        out = torch.empty_like(tensors["x"])
        if latest[0].done():
            latest[0] = pool.submit(fill_and_work, out)
        else:
            fill(out)
        return {"y": out}

    return call


def _bimodal(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    """Take 10 and 300 ms in turns, on the clock alone: a real sleep ends late on a busy machine, by up to as much."""
    calls = iter(range(10**9))

    def call() -> Results:
        _clock.ahead_ns += 10_000_000 if next(calls) % 2 else 300_000_000
        return {"y": tensors["x"].exp().sin()}

    return call


def _stepping(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    """As an optimizer's step: right at first, and from there on as often as it is called."""
    x = tensors["x"].clone()
    return lambda: {"y": x.exp_().sin_()}


def _stuck(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    """Hang in the second case."""
    return lambda: (case.length == 10 and time.sleep(STUCK_S)) or {"y": tensors["x"].exp().sin()}


def _dying(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    """Kill the process in a call that is later than the warm-up's 50."""
    calls = iter(range(10**9))

    def call() -> Results:
        if next(calls) > 60:
            os.kill(os.getpid(), signal.SIGKILL)
        return {"y": tensors["x"].exp().sin()}

    return call


def _waiting(case: Case, tensors: Results, backward: bool) -> Callable[[], Results]:
    def waiting() -> Results:
        return {"y": tensors["x"].exp().sin()}

    return waiting


_timer = getattr(CpuClock.timer, "__wrapped__", CpuClock.timer)  # loaded before: the one of the clock itself


@functools.wraps(_timer)
def _capturing(clock: CpuClock, work: Work, calls: int, refusal: str = "", pool: Pool | None = None) -> Timer:
    if not refusal and getattr(work, "__name__", "") == "waiting":
        raise CaptureBrokenError("operation not permitted when stream is capturing")
    timer = _timer(clock, work, calls, pool=pool)
    return Timer(calls, f"{timer.method}; {refusal}" if refusal else timer.method, timer.take, timer.rerun)


CpuClock.timer = _capturing  # type: ignore[method-assign]


class _Clock:
    """The clock of samples, which a provider can put ahead."""

    ahead_ns = 0

    def __call__(self) -> int:
        return time.perf_counter_ns() + self.ahead_ns


_clock = timing.perf_counter_ns if hasattr(timing.perf_counter_ns, "ahead_ns") else _Clock()  # loaded before: that one
timing.perf_counter_ns = _clock


def providers() -> dict[str, Provider]:
    prepares: dict[str, Any] = {
        "eager": _eager, "cached": _cached, "first3": _first3, "stuck": _stuck, "waiting": _waiting,
        "dying": _dying, "again": _eager, "memoised": _memoised, "deferred": _deferred, "pooled": _pooled,
        "bimodal": _bimodal,
    }  # fmt: skip
    by_name = {name: Provider(name, prepare) for name, prepare in prepares.items()}
    return by_name | {"stepping": Provider("stepping", _stepping, repeatable=False)}
