"""Profile training steps of one trial of a study: time by kernel, and a trace for chrome://tracing.

    python kernels/tools/profile_step.py gpu-speed --implementation fused --width 768 --output profile.json.gz

Prints the device time of a step by kind of kernel and by kernel, the share of it in which the device was idle, and the
step's time without the profiler.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from scalebench import load_study
from scalebench.running.planning import plan
from scalebench.workloads.batches import batches
from scalebench.workloads.building import load_compiler
from scalebench.workloads.loop import Step, loss_scaler
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.running import Running
from scalebench.workloads.training_run import TrainingRun

WARM_STEPS, TIMED_STEPS, PROFILED_STEPS = 6, 5, 2
# What a kernel's name has to contain, in this order, to be of a kind.
KINDS = {
    "attention": ("attention", "hopper_", "flash", "fmha", "sdpa", "cudnn_generated"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "cublas"),
    "optimizer": ("update_kernel", "norm_kernel", "advance_kernel", "multi_tensor"),
    "loss": ("cross_entropy", "log_softmax", "nll_loss", "row_loss"),
    "norms": ("rms", "layer_norm", "norm_"),
    "embedding": ("embedding", "indexing", "index"),
    "compiled elementwise": ("triton_",),
}


def trial_of(study: str, implementation: str, graph: str | None, width: int) -> Any:
    """Return the study's first trial of an implementation and width, and of a graph unless that is None."""
    for planned in plan(load_study(study)):
        trial = planned.trial
        train = trial.spec
        if (
            trial.workload == "training"
            and train.implementation == implementation
            and graph in (None, train.graph)
            and trial.model["width"] == width
        ):
            return trial
    raise SystemExit(f"{study} has no trial of {implementation}, graph {graph or 'any'}, width {width}")


def steps_of(trial: Any, folder: Path) -> tuple[Step, Iterator[Any], Any]:
    """Return the step function, its batches, and the context in which it runs."""
    device = torch.device("cuda", 0)
    recorder = Recorder(folder, {"identity": {}, "checkpoint": False}, {"exclusive": True})
    training = TrainingRun(trial, recorder)
    task = training.prepare_task()
    load_compiler()
    recorder.claim(device)
    model, optimizer = training.prepare(device)
    running = Running(model, optimizer, trial.spec)
    scaler = loss_scaler(device, trial.spec)
    step = running.make_step(running.compiled, optimizer, task, trial.spec, scaler)
    return step, batches(task, range(WARM_STEPS + TIMED_STEPS + PROFILED_STEPS), device), running.attention()


def kind_of(name: str) -> str:
    """Return the purpose of a kernel, from its name."""
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if any(word in lower for word in words)), "other")


def device_times(trace: dict[str, Any]) -> tuple[dict[str, float], dict[str, int], float]:
    """Return time and launches of every kernel in a trace, and the time from the first to the last, in seconds."""
    seconds: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    events = [e for e in trace["traceEvents"] if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    for event in events:
        seconds[event["name"]] += event["dur"] * 1e-6
        launches[event["name"]] += 1
    begun, ended = min(e["ts"] for e in events), max(e["ts"] + e["dur"] for e in events)
    return seconds, launches, (ended - begun) * 1e-6


def report(trace: dict[str, Any], step_s: float) -> Iterator[str]:
    """Yield the lines of the report; times are of one step."""
    seconds, launches, spanned = device_times(trace)
    busy = sum(seconds.values())
    yield f"step {1e3 * step_s:.2f} ms without the profiler; device busy {1e3 * busy / PROFILED_STEPS:.2f} ms a step"
    yield f"with the profiler the device was idle {1 - busy / spanned:.0%} of the time"
    by_kind: dict[str, float] = defaultdict(float)
    for name, time_s in seconds.items():
        by_kind[kind_of(name)] += time_s
    for kind, time_s in sorted(by_kind.items(), key=lambda item: -item[1]):
        yield f"{kind:22} {1e3 * time_s / PROFILED_STEPS:8.2f} ms {time_s / busy:5.1%}"
    for name, time_s in sorted(seconds.items(), key=lambda item: -item[1])[:28]:
        count = launches[name] / PROFILED_STEPS
        yield f"  {1e3 * time_s / PROFILED_STEPS:8.3f} ms {count:6.0f} x {kind_of(name):20} {name[:110]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a few steps, time some, profile the last, print and write."""
    parser = argparse.ArgumentParser(description="profile training steps of a trial")
    parser.add_argument("study")
    parser.add_argument("--implementation", default="fused")
    parser.add_argument("--graph", help="train.graph of the trial; default: that of the study's first such trial")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--output", type=Path, required=True, help="a .json.gz")
    options = parser.parse_args(arguments)
    trial = trial_of(options.study, options.implementation, options.graph, options.width)
    with tempfile.TemporaryDirectory() as folder:
        step, coming, attention = steps_of(trial, Path(folder))
        with attention:
            for _ in range(WARM_STEPS):
                step(next(coming))
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(TIMED_STEPS):
                step(next(coming))
            torch.cuda.synchronize()
            step_s = (time.perf_counter() - begun) / TIMED_STEPS
            with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiled:
                for _ in range(PROFILED_STEPS):
                    step(next(coming))
                torch.cuda.synchronize()
        path = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(path))
        text = path.read_bytes()
    options.output.write_bytes(gzip.compress(text, 5))
    print("\n".join(report(json.loads(text), step_s)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
