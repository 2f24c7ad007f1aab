"""Clocks for timing a function: the interface, the CPU's clock, and results that cannot be stale."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

Work = Callable[[], Mapping[str, Any]]

# A sample lasts at least this long, by repeating the call: some hundred ticks of the clock and of its own overhead.
SHORTEST_CPU_S = 100e-6


@dataclass(frozen=True)
class Timer:
    """How one function is timed: ``take`` measures one sample of ``calls`` calls, in seconds per call.

    ``method`` says how. ``rerun`` overwrites earlier results with NaN, runs once more exactly what was timed and
    returns its results; memory at the storage addresses that it is given is not overwritten.
    """

    calls: int
    method: str
    take: Callable[[], float]
    rerun: Callable[[Collection[int]], Mapping[str, Any]]


class Clock(Protocol):
    """Times functions on its device.

    Samples shorter than ``shortest_s`` are too noisy. Calls that move at least ``cold_bytes`` leave nothing of their
    inputs in the cache, so that ``long_s`` of them may follow each other in one sample.
    """

    shortest_s: float
    cold_bytes: float
    long_s: float

    def timer(self, work: Work, calls: int, refusal: str = "") -> Timer:
        """Make the timer of a function; ``refusal`` is why it must not be captured as a CUDA graph, if so."""
        ...


@dataclass
class CpuClock:
    """The monotonic clock. Work on a CPU is over when the call returns; caches stay as the calls before left them."""

    shortest_s: float = SHORTEST_CPU_S
    cold_bytes: float = math.inf
    long_s: float = SHORTEST_CPU_S

    def timer(self, work: Work, calls: int, refusal: str = "") -> Timer:
        """See ``Clock``."""
        del refusal

        def take() -> float:
            begun = time.perf_counter_ns()
            for _ in range(calls):
                work()
            return (time.perf_counter_ns() - begun) * 1e-9 / calls

        counted = f"{calls} call{'s' * (calls > 1)}"
        return Timer(
            calls, f"perf_counter_ns around {counted}, caches as the interleaved calls left them", take, rerunning(work)
        )


def rerunning(work: Work) -> Callable[[Collection[int]], Mapping[str, Any]]:
    """Return the ``rerun`` of work that is called anew: an output that it keeps to hand out again is NaN by then."""

    def rerun(spared: Collection[int]) -> Mapping[str, Any]:
        poison(work(), spared)
        return work()

    return rerun


def poison(results: Mapping[str, Any], spared: Collection[int]) -> None:
    """Fill floating-point results with NaN, except where their storage is at one of the addresses ``spared``.

    Tensors whose elements share memory (expanded ones) are left alone.
    """
    for tensor in results.values():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            continue
        shared = any(stride == 0 and size > 1 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if not shared and tensor.untyped_storage().data_ptr() not in spared:
            tensor.detach().fill_(math.nan)
