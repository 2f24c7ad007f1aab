"""The checks of the GPU session, most urgent first: the kernels of the goals, then everything else that ships."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import session_rehearsed
from session_pool import Job

SOURCES = Path(__file__).resolve().parents[1] / "scalekernels"
OPTIMIZERS = ("AdamW", "Adam", "SGD", "Adagrad", "RMSprop")  # those in torch.optim
ALGORITHMS = ("adamw", "adam", "sgd", "adagrad", "rmsprop", "lion")
DTYPES = ("bfloat16", "float16", "float32")
STEPS = 1000  # of an optimizer check
LOSSES = 200  # steps of a training check
LARGE_BYTES, SMALL_BYTES = 20e9, 1.5e9  # device memory limits of a check: at the goals' shapes, of all others


def check_jobs(device: str, operations: Iterable[str]) -> list[Job]:
    """Return every check of the operations on a device."""
    jobs = [
        Job(f"canary {index}", {"kind": "canary", "index": index, "device": device}, priority=0) for index in range(4)
    ]
    for operation in operations:
        jobs += case_jobs(operation, device)
    if "cross_entropy" in operations:
        jobs.append(Job("sums of weight's gradient", {"kind": "sums", "device": device}, 0, SMALL_BYTES))
    if device == "cuda" and "attention" in operations:
        jobs += mechanism_jobs(device)
    if "optimizer" in operations:
        jobs += optimizer_jobs(device)
    return jobs


def optimizer_jobs(device: str) -> Iterator[Job]:
    """Yield a job for every optimizer over many steps, and for the stochastic rounding of every algorithm."""
    steps = STEPS if device == "cuda" else session_rehearsed.OPTIMIZER_STEPS
    for name in OPTIMIZERS:
        for dtype in ("bfloat16", "float32"):
            request = {"kind": "steps", "optimizer": name, "dtype": dtype, "device": device, "steps": steps}
            yield Job(f"{name}, {steps} steps, {dtype}", request, priority=1 if name == "AdamW" else 3)
    for name in ALGORITHMS:
        request = {"kind": "rounding", "optimizer": name, "device": device}
        yield Job(f"{name}, stochastic rounding", request, priority=1 if name == "adamw" else 3)


def mechanism_jobs(device: str) -> Iterator[Job]:
    """Yield a job for each mechanism of the GPU that candidates of the tunable kernels need."""
    import mechanisms

    for name in mechanisms.witnesses():
        yield Job(f"mechanism: {name}", {"kind": "mechanism", "name": name, "device": device}, 0, SMALL_BYTES)


def case_jobs(operation: str, device: str) -> Iterator[Job]:
    """Yield a job for every case of an operation: the small ones in every dtype, the others in their own."""
    import check_case

    module = import_module(f"scalekernels.{operation}")
    small = [(case, False) for case in check_case.cases(module, DTYPES, larger=device == "cuda")]
    goals = [(case, True) for case in module.GOALS if device == "cuda"]
    for case, goal in (*small, *goals):
        request = {"kind": "case", "module": f"scalekernels.{operation}", "label": case.label, "device": device}
        memory = LARGE_BYTES if goal else SMALL_BYTES
        yield Job(f"{operation}: {case.label}", request, urgency(operation, case, goal), memory, timeout_s=120)


def urgency(operation: str, case: Any, goal: bool) -> int:
    """Return the priority of a case: bfloat16 first, and for attention the head dimensions of the goals.

    Of the other dtypes, operations come first whose cases take least time.
    """
    if goal:
        return 1
    if str(case.dtype) != "torch.bfloat16":
        return 3 if operation in ("optimizer", "rotary") else 4
    return 0 if getattr(case, "head_dimension", 64) in (64, 128) else 3


def source_sha256(operation: str) -> str:
    """Return 16 hex digits of a hash over the source of an operation; checks stay valid while it does not change.

    It includes the modules shared by all operations, such as the acceptance rule.
    """
    digest = hashlib.sha256()
    own = (path for path in (SOURCES / operation).rglob("*") if path.suffix in (".py", ".json"))
    for path in sorted((*own, *SOURCES.glob("*.py"))):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


# implementation:graph
WAYS = ("compile:blocks", "triton:none", "fused:none", "fused:blocks", "fused:step")
WHOLE = ("compile:model", "fused:model")  # the slowest to compile


def training_jobs(device: str, few: bool) -> list[Job]:
    """Return a job per implementation: train a small GPT and compare its losses with those of float32.

    They take the longest by far, so they start first; ``few`` leaves out those that compile the model as a whole, and
    the check that no step waits for the device.
    """
    agreement = [sys.executable, "-m", "scalebench.workloads.agreement", "--device", device, "--steps", str(LOSSES)]
    agreement += [] if few else ["--unwaiting"]
    return [
        Job(
            f"training: {way}", {"kind": "command", "command": [*agreement, "--ways", way], "timeout_s": 125},
            priority=0, memory_bytes=3e9, timeout_s=130,
        )
        for way in (*(() if few else WHOLE), *WAYS)
    ]  # fmt: skip


def candidate_jobs(few: bool) -> list[Job]:
    """Return the jobs that compile the candidates of the tunable kernels before they are timed; see ``tuning``."""
    import tuning
    from tuning_workers import jobs_of

    return jobs_of(tuning.candidate_jobs(few))
