"""What the benchmarks of operations share: a parameter per case and provider, timed by pytest-benchmark.

pytest-benchmark measures one provider after the other, so that what drifts in between counts against one of them;
``scalebench compare`` takes turns instead. What it writes with --benchmark-json, ``scalebench compare --import`` reads.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scalekernels.providers import Unsupported

from scalebench.comparison import cost_columns
from scalebench.comparison.operations import Operation, dtype_name, encode, load_operation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parameters(*operations: str) -> list[Any]:
    """Return operation, case and provider: the small cases on a CPU, the ladder on a GPU."""
    return [
        pytest.param(operation, case, provider, id=f"{operation.name}-{case.label}-{provider}")
        for operation in map(load_operation, operations)
        for case in operation.cases["ladder" if DEVICE == "cuda" else "cases"]
        for provider in operation.module.providers()
    ]


def run(benchmark: Any, operation: Operation, case: Any, provider: str, backward: bool) -> None:
    """Time one provider, the device synchronised at both ends; skip with the reason where it cannot run."""
    inputs = operation.module.inputs(case, device=DEVICE, seed=0)
    try:
        work = operation.module.providers()[provider].prepare(case, inputs, backward)
    except Unsupported as reason:
        pytest.skip(f"{provider}: {reason}")
    direction = "gradients" if backward else "results"
    benchmark.group = f"{operation.name} {direction} {case.label}"
    shape = {f"shape_{name}": value for name, value in encode(case).items() if name != "dtype"}
    benchmark.extra_info |= {
        "operation": operation.name, "backward": backward, "case": case.label, "provider": provider,
        "dtype": dtype_name(case), "device_kind": DEVICE, "torch_version": torch.__version__,
        **cost_columns(operation, case, backward, operation.module.providers()[provider]), **shape,
    }  # fmt: skip

    def synchronised() -> None:
        work()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(synchronised)
