"""One inference trial: a model with weights of a number format, called again and again.

A call of a family that generates reads a prompt and generates tokens; of any other it is one forward pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scalekernels import Unsupported
from torch import Tensor, nn

from scalebench.families import FAMILIES
from scalebench.measure import memory
from scalebench.measure.energy import EnergyMeter
from scalebench.study import Trial
from scalebench.workloads.base import count_columns
from scalebench.workloads.building import (
    build_model,
    compile_model,
    configuration,
    planned_data,
    usable_device,
)
from scalebench.workloads.decoding import Sampling, beam_search, chooser, generate
from scalebench.workloads.inference_spec import InferenceSpec, call_flops
from scalebench.workloads.quantization import with_weights
from scalebench.workloads.recorder import Recorder

# A percentile needs samples beyond it: with fewer calls than these it is null.
CALLS_FOR_P95, CALLS_FOR_P99 = 20, 100

Call = Callable[[Callable[[], None]], Any]  # does the work once; calls its argument when the first token is there


def run(trial: Trial, recorder: Recorder) -> None:
    """Measure the calls of the trial's model; the samples of a trial that fails are kept, too."""
    inference = InferenceRun(trial, recorder)
    try:
        inference.run()
    finally:
        inference.save_samples()


class InferenceRun:
    """An inference trial under way. ``times`` has seconds to the first token and to the end of each call."""

    def __init__(self, trial: Trial, recorder: Recorder) -> None:
        self.trial, self.recorder, self.columns = trial, recorder, recorder.columns
        self.spec: InferenceSpec = trial.spec
        self.times: list[tuple[float, float]] = []

    def run(self) -> None:
        """Build, convert the weights, call, then measure memory: the whole trial, in order."""
        device, spec = usable_device(self.trial), self.spec
        planned_data(self.trial)
        self.recorder.claim(device)
        call, model = self.prepare(device)
        energy = EnergyMeter(device)
        for _ in range(spec.warmups):
            timed(call, device)
        memory.reset_peaks(device)
        self.columns["startup_time_s"] = self.recorder.age_s()
        energy.start()
        for done in range(spec.repeats):
            self.times.append(timed(call, device))
            self.recorder.progress(done + 1, spec.repeats)
        self.columns |= energy.columns() | memory.peak_columns(device)
        self.columns |= latency_columns(np.array(self.times), spec)
        self.columns |= self.rate_columns()
        self.columns |= memory.call_columns(model, lambda: call(lambda: None))

    def prepare(self, device: torch.device) -> tuple[Call, nn.Module]:
        """Return the function to call, and the model that it runs."""
        family, config, spec = FAMILIES[self.trial.family], configuration(self.trial), self.spec
        model = with_weights(build_model(self.trial, device).eval(), spec.weight_dtype)
        task = family.task(config, planned_data(self.trial), self.trial.data, spec)
        inputs = task.batch(0)[0].to(device)
        if inputs.is_floating_point():
            inputs = inputs.to(getattr(torch, spec.precision))
        flops = call_flops(family, config, spec)
        self.columns |= count_columns(family.count(config, spec.sequence_length)) | {"flops_per_call": flops}
        self.columns |= {
            "timing_method": "perf_counter_ns, device synchronised",
            "weight_bytes": memory.weight_bytes(model),
        }
        if "generation" not in family.CAPABILITIES:
            runs = compile_model(model) if spec.implementation == "compile" else model
            return lambda _: runs(inputs), model
        if spec.implementation == "compile":
            raise Unsupported("torch.compile would recompile for every length of the cache; use eager or sdpa")
        self.columns["kv_cache_bytes"] = cache_size(model, spec)
        return make_call(model, inputs, spec), model

    def rate_columns(self) -> dict[str, Any]:
        """Return throughput and efficiency at the median latency; mfu is null without a known peak."""
        spec, peak_flops_per_s = self.spec, self.recorder.peak_flops_per_s(self.spec.precision)
        latency = self.columns["latency_median_s"]
        achieved = self.columns["flops_per_call"] / latency
        rates = {"samples_per_s": spec.batch_size / latency, "achieved_flops_per_s": achieved}
        if tokens := spec.new_tokens or spec.sequence_length:
            rates["tokens_per_s"] = spec.batch_size * tokens / latency
        return rates | ({"mfu": achieved / peak_flops_per_s} if peak_flops_per_s else {})

    def save_samples(self) -> None:
        """Write every call's times to calls.parquet."""
        times = np.array(self.times, dtype=np.float64).reshape(-1, 2)
        if len(times):
            columns = {"call": range(len(times)), "prefill_time_s": times[:, 0], "latency_s": times[:, 1]}
            import pandas as pd

            self.recorder.save_samples("calls.parquet", pd.DataFrame(columns))


def make_call(model: Any, prompts: Tensor, spec: InferenceSpec) -> Call:
    """Return the call that continues prompts (B, T); each call samples with the trial's seed."""
    new, sampling = spec.new_tokens or 1, Sampling(spec.temperature, spec.top_k, spec.top_p)
    if spec.beams > 1:
        return lambda first: beam_search(model, prompts, new, spec.beams, first)
    generator = torch.Generator(prompts.device)
    return lambda first: generate(model, prompts, new, chooser(sampling, generator.manual_seed(spec.seed)), first)


def cache_size(model: Any, spec: InferenceSpec) -> int:
    """Return the bytes of the cache of a call's prompt and new tokens, for all its beams."""
    tokens = (spec.sequence_length or 0) + (spec.new_tokens or 0)
    return int(model.cache(spec.batch_size * spec.beams, tokens).nbytes)


def timed(call: Call, device: torch.device) -> tuple[float, float]:
    """Call once; return the seconds to the first token (NaN where none is generated) and to the end."""
    marks: list[int] = []

    def mark() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        marks.append(time.perf_counter_ns())

    with torch.inference_mode():
        mark()
        call(mark)
        mark()
    begun, *first, end = marks
    return (first[0] - begun) * 1e-9 if first else float("nan"), (end - begun) * 1e-9


def latency_columns(times: NDArray[np.float64], spec: InferenceSpec) -> dict[str, float | None]:
    """Return the latency columns of calls (n, 2); null for percentiles that too few calls support.

    ``decode_time_per_token_s`` is the median, over the calls, of the mean time of the tokens after the first.
    """
    prefill, whole = times.T
    columns: dict[str, float | None] = {"latency_median_s": float(np.median(whole))}
    for name, percent, needed in (("p95", 95, CALLS_FOR_P95), ("p99", 99, CALLS_FOR_P99)):
        columns[f"latency_{name}_s"] = float(np.percentile(whole, percent)) if len(whole) >= needed else None
    if spec.new_tokens and np.isfinite(prefill).all():
        columns["prefill_time_s"] = float(np.median(prefill))
        after = spec.new_tokens - 1
        columns["decode_time_per_token_s"] = float(np.median(whole - prefill)) / after if after else None
    return columns
