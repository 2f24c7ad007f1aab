"""Step times: CUDA events on a GPU, the monotonic clock on a CPU; every sample is kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalebench.measure.statistics import summarize
from scalebench.store import Column

if TYPE_CHECKING:
    import torch

COLUMNS = (
    Column("timing_method", "", "clock that timed the steps or calls"),
    Column("first_step_time_s", "s", "first step, with compilation and autotuning"),
    Column("step_time_median_s", "s", "median step time after the warm-up"),
    Column("step_time_p20_s", "s", "20th percentile of the step time after the warm-up"),
    Column("step_time_p80_s", "s", "80th percentile of the step time after the warm-up"),
    Column("data_time_s", "s", "median time that a step waits for its batch"),
)


@dataclass
class StepClock:
    """Time consecutive steps without waiting for the device inside the loop.

    A step lasts from one ``lap`` to the next, so it includes loading its data; ``data_ready`` marks when that was done.
    On CUDA the laps are events on the stream, read after the run, so an idle stream counts as step time.
    """

    device: torch.device
    _laps: list[int | torch.cuda.Event] = field(default_factory=list)
    _data_ns: list[int] = field(default_factory=list)
    _lap_ns: int = 0

    @property
    def method(self) -> str:
        """Name of the method, for the record."""
        return "cuda_event" if self.device.type == "cuda" else "perf_counter_ns"

    def lap(self) -> None:
        """End a step and begin the next; the first call begins the first step."""
        self._lap_ns = time.perf_counter_ns()
        if self.device.type == "cuda":
            import torch

            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._laps.append(event)
        else:
            self._laps.append(self._lap_ns)

    def data_ready(self) -> None:
        """Mark that the step's batch has been loaded."""
        self._data_ns.append(time.perf_counter_ns() - self._lap_ns)

    def step_times_s(self) -> NDArray[np.float64]:
        """Return the time of every finished step in seconds; waits for the device."""
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)
            pairs = zip(self._laps[:-1], self._laps[1:], strict=True)
            return np.array([start.elapsed_time(end) for start, end in pairs], dtype=np.float64) * 1e-3  # type: ignore[union-attr, arg-type]
        return np.diff(np.array(self._laps, dtype=np.float64)) * 1e-9

    def data_times_s(self) -> NDArray[np.float64]:
        """Return how long the host waited for each finished step's batch, in seconds."""
        return np.array(self._data_ns[: max(0, len(self._laps) - 1)], dtype=np.float64) * 1e-9


def warm_mask(steps: int) -> NDArray[np.bool_]:
    """Flag the steps that count in summaries: all but the first tenth, at least one and at most ten steps."""
    return np.arange(steps) >= min(10, max(1, steps // 10))


def time_columns(clock: StepClock) -> dict[str, float | str | None]:
    """Return the record's time columns; null if no step after the warm-up was finished."""
    times, data = clock.step_times_s(), clock.data_times_s()
    columns: dict[str, float | str | None] = {"timing_method": clock.method}
    if times.size:
        columns["first_step_time_s"] = float(times[0])
    warm = warm_mask(times.size)
    if warm.any():
        summary = summarize(times[warm])
        columns |= {"step_time_median_s": summary.median, "step_time_p20_s": summary.p20}
        columns |= {"step_time_p80_s": summary.p80, "data_time_s": float(np.median(data[warm]))}
    return columns
