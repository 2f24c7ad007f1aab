"""One serving trial: requests that arrive at a model with continuous batching, in this process.

First the batch is kept full, which gives the capacity; then requests arrive as the trial says. What stands between a
user and the model elsewhere (network, HTTP, a tokenizer) is not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch

from scalebench.families import FAMILIES
from scalebench.measure import memory
from scalebench.measure.energy import EnergyMeter
from scalebench.study import Trial
from scalebench.workloads.base import count_columns
from scalebench.workloads.building import build_model, configuration, planned_data, usable_device
from scalebench.workloads.continuous import Batch, Job
from scalebench.workloads.load import Arrivals, Clock, Load, Loop, RealClock, Users
from scalebench.workloads.quantization import with_weights
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.serving_spec import ServingSpec, bounds, request_flops
from scalebench.workloads.serving_times import frame_of, rate, steady, time_columns


def run(trial: Trial, recorder: Recorder) -> None:
    """Measure the served model of the trial; the samples of a trial that fails are kept, too."""
    serving = ServingRun(trial, recorder, RealClock())
    try:
        serving.run()
    finally:
        serving.save_samples()


class ServingRun:
    """A serving trial under way. ``loops`` has requests and passes of each phase by name."""

    def __init__(self, trial: Trial, recorder: Recorder, clock: Clock) -> None:
        self.trial, self.recorder, self.columns, self.clock = trial, recorder, recorder.columns, clock
        self.spec: ServingSpec = trial.spec
        self.loops: dict[str, Loop] = {}
        self._lengths = np.random.default_rng([self.spec.seed, 0])

    def run(self) -> None:
        """Build the model, find the capacity, serve the load: the whole trial, in order."""
        device, spec = usable_device(self.trial), self.spec
        self.recorder.claim(device)
        batch = self.prepare(device)
        energy = EnergyMeter(device)
        memory.reset_peaks(device)
        self.columns["startup_time_s"] = self.recorder.age_s()
        full = Users(self.jobs(), spec.max_batch, self.clock.now())
        at_capacity = spec.concurrency == spec.max_batch
        energy.start()
        self.serve("capacity", batch, full, 1 if at_capacity else 2)
        self.columns |= self.capacity_columns()
        if not at_capacity:
            energy.start()
            self.serve("load", Batch(batch.model, spec.max_batch, spec.capacity), self.load(), 2)
        self.columns |= energy.columns() | memory.peak_columns(device)
        loop = self.loops["capacity" if at_capacity else "load"]
        self.columns |= time_columns(frame_of(loop.requests), loop.steps, spec)

    def serve(self, phase: str, batch: Batch, load: Load, phases: int) -> None:
        """Answer the warm-up's and the measured requests of a load."""
        count, done = self.spec.warmups + self.spec.requests, len(self.loops)
        self.loops[phase] = loop = Loop(batch, load, self.clock)
        loop.run(count, lambda answered: self.recorder.progress(done * count + answered, phases * count))

    def prepare(self, device: torch.device) -> Batch:
        """Return the empty batch of the trial's model."""
        family, config, spec = FAMILIES[self.trial.family], configuration(self.trial), self.spec
        model: Any = with_weights(build_model(self.trial, device).eval(), spec.weight_dtype)
        task = family.task(config, planned_data(self.trial), self.trial.data, spec)
        self._prompts = task.batch(0)[0].tolist()
        batch = Batch(model, spec.max_batch, spec.capacity)
        self.columns |= count_columns(family.count(config, spec.sequence_length))
        self.columns |= {
            "flops_per_request": request_flops(family, config, spec),
            "timing_method": "perf_counter, tokens read from the device",
            "weight_bytes": memory.weight_bytes(model),
            "kv_cache_bytes": batch.slots.nbytes,
        }
        return batch

    def jobs(self) -> Iterator[Job]:
        """Yield jobs without end: prompts from the data, of lengths drawn evenly, to be answered greedily."""
        spec = self.spec
        (shortest, longest), (fewest, most) = (
            bounds(spec.prompt_length, spec.spread),
            bounds(spec.new_tokens, spec.spread),
        )
        for number in range(2**62):
            length = int(self._lengths.integers(shortest, longest, endpoint=True))
            new = int(self._lengths.integers(fewest, most, endpoint=True))
            yield Job(self._prompts[number % len(self._prompts)][:length], new)

    def load(self) -> Load:
        """Return the trial's load, which begins now."""
        spec, now_s = self.spec, self.clock.now()
        if spec.concurrency is not None:
            return Users(self.jobs(), spec.concurrency, now_s)
        per_s = spec.requests_per_s or (spec.load or 0.0) * self.columns["capacity_requests_per_s"]
        self.columns["offered_requests_per_s"] = per_s
        return Arrivals(self.jobs(), per_s, spec.seed, now_s)

    def capacity_columns(self) -> dict[str, Any]:
        """Return the rates with a full batch, and efficiency at them; mfu is null without a known peak."""
        spec, frame = self.spec, frame_of(self.loops["capacity"].requests)
        per_s, peak_flops_per_s = rate(steady(frame, spec)), self.recorder.peak_flops_per_s(spec.precision)
        if not per_s > 0:
            raise RuntimeError(
                f"{len(steady(frame, spec))} answers at one moment: they give no rate; ask for more requests"
            )
        measured = frame.iloc[spec.warmups : spec.warmups + spec.requests]
        achieved = self.columns["flops_per_request"] * per_s
        columns = {
            "capacity_requests_per_s": per_s,
            "capacity_tokens_per_s": per_s * float(measured["new_tokens"].mean()),
            "capacity_time_per_request_s": 1 / per_s,
            "achieved_flops_per_s": achieved,
        }
        return columns | ({"mfu": achieved / peak_flops_per_s} if peak_flops_per_s else {})

    def save_samples(self) -> None:
        """Write every request's times to requests.parquet."""
        frames = [
            frame_of(loop.requests, loop.requests[0].arrived_s).assign(phase=phase)
            for phase, loop in self.loops.items()
            if loop.requests
        ]
        if frames:
            self.recorder.save_samples("requests.parquet", pd.concat(frames, ignore_index=True))
