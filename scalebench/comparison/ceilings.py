"""What the device reaches here and now: copying and multiplying matrices, measured beside what is compared."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from scalebench.comparison.timing import timed

CPU_COPY_BYTES, CUDA_COPY_BYTES = 128 << 20, 1 << 30
CPU_SIDES, CUDA_SIDES = (256, 512, 1024), (4096, 8192)


@dataclass(frozen=True)
class Ceilings:
    """Best rates seen: bytes read and written per second by a copy, FLOP/s of a matrix product, and how."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float
    source: str


def _best(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Return the shortest of at least three calls within ``seconds``: a ceiling is what it can do undisturbed."""
    times, begun = [timed(work, device)[1] for _ in range(3)], time.perf_counter()
    while time.perf_counter() - begun < seconds:
        times.append(timed(work, device)[1])
    return min(times)


def _matmul_rate(side: int, dtype: torch.dtype, device: torch.device, seconds: float) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: torch.mm(left, right), device, seconds)


def _copy_rate(size: int, device: torch.device, seconds: float) -> float:
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return 2 * size / _best(lambda: target.copy_(source), device, seconds)


def measure_ceilings(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> Ceilings:
    """Measure both ceilings of a device for a dtype, each for about ``seconds``.

    Larger matrices are tried as long as they are expected to take no more than a second: a CPU may have no fast
    product of 16-bit numbers.
    """
    size = CUDA_COPY_BYTES if device.type == "cuda" else CPU_COPY_BYTES
    sides = CUDA_SIDES if device.type == "cuda" else CPU_SIDES
    best, side = _matmul_rate(sides[0], dtype, device, seconds / 3), sides[0]
    for larger in sides[1:]:
        if 2 * larger**3 / best > 0.3:
            break
        rate = _matmul_rate(larger, dtype, device, seconds / 2)
        best, side = max((best, side), (rate, larger))
    name = str(dtype).removeprefix("torch.")
    return Ceilings(
        _copy_rate(size, device, seconds), best, f"measured: copy of {size >> 20} MiB; {name} matrix product of {side}"
    )
