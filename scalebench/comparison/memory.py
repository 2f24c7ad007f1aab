"""Peak memory of one call above its inputs, from the allocator that served it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

# Not torch.profiler.profile, around this: it imports torch's compiler, which takes seconds of a process.
from torch.autograd.profiler import profile, record_function

from scalebench.comparison.draining import Work

CUDA_METHOD = "CUDA allocator: peak during the call above what was allocated before it was prepared"
CPU_METHOD = (
    "torch.profiler's record of the CPU allocator: peak during the call above what was allocated before it was "
    "prepared; scratch that libraries allocate by themselves is not in it"
)
_MARK = "scalebench.measured_call"


def peak_above_inputs(prepare: Callable[[], Work], device: torch.device) -> tuple[int, str]:
    """Prepare and call once, untimed; return the peak in bytes and how it was measured.

    What the preparation leaves allocated counts (activations for a backward pass); what it frees does not.
    """
    return (_cuda_peak(prepare, device), CUDA_METHOD) if device.type == "cuda" else (_cpu_peak(prepare), CPU_METHOD)


def _cuda_peak(prepare: Callable[[], Work], device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    work = prepare()
    work()  # memory allocated once, such as a workspace, does not count for the call
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _cpu_peak(prepare: Callable[[], Work]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        with profile(profile_memory=True) as profiler:
            work = prepare()
            with record_function(_MARK):
                work()
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_bytes())["traceEvents"]
    begun, ended = next((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == _MARK and "dur" in e)
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    allocated = sum(size for moment, size in changes if moment < begun)
    peak = allocated
    for _, size in ((moment, size) for moment, size in changes if begun <= moment <= ended):
        allocated += size
        peak = max(peak, allocated)
    return peak
