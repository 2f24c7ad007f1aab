"""What the device can do: peak rates with their source, and null where nobody knows.

A datasheet's figure is dense, without sparsity. On a CPU there is no such figure to trust, so the ceiling of a large
matrix product is measured and called that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

_NVIDIA = "NVIDIA datasheet, dense tensor-core rate"


@dataclass(frozen=True)
class Peak:
    """The highest rate a device can reach, FLOP/s, or None with the reason in ``source``."""

    flops_per_s: float | None
    source: str


# Name as the driver gives it (the longest match counts) -> FLOP/s by precision of the products. float32 is the plain
# rate: torch leaves TF32 off for matrix products unless asked. Sources: the vendor's datasheets of each product.
PEAKS: dict[str, dict[str, float]] = {
    "NVIDIA B200": {"float32": 75e12, "bfloat16": 2250e12},
    "NVIDIA H200": {"float32": 67e12, "bfloat16": 989.4e12},
    "NVIDIA H100 80GB HBM3": {"float32": 67e12, "bfloat16": 989.4e12},
    "NVIDIA H100 PCIe": {"float32": 51e12, "bfloat16": 756e12},
    "NVIDIA A100": {"float32": 19.5e12, "bfloat16": 312e12},
    "NVIDIA L40S": {"float32": 91.6e12, "bfloat16": 362e12},
    "NVIDIA L4": {"float32": 30.3e12, "bfloat16": 121e12},
    "NVIDIA A10": {"float32": 31.2e12, "bfloat16": 125e12},
    "NVIDIA GeForce RTX 4090": {"float32": 82.6e12, "bfloat16": 165.2e12},
    "NVIDIA GeForce RTX 3090": {"float32": 35.6e12, "bfloat16": 71e12},
}


def datasheet_peak(device_name: str, precision: str) -> Peak:
    """Return a GPU's peak. An unknown device or precision has none: never another device's."""
    # "NVIDIA L4" must not answer for an "NVIDIA L40": a match ends at the end of a word.
    matches = [name for name in PEAKS if f"{device_name} ".startswith((f"{name} ", f"{name}-"))]
    if not matches:
        return Peak(None, f"unknown device {device_name!r}: no peak on file")
    name = max(matches, key=len)
    if precision not in PEAKS[name]:
        return Peak(None, f"no {precision} peak on file for {name}")
    return Peak(PEAKS[name][precision], f"{_NVIDIA} ({name}, {precision})")


def matmul_ceiling(precision: str, threads: int, size: int = 1024, seconds: float = 0.5) -> Peak:
    """Measure the CPU's best rate on a square matrix product of ``size``, in FLOP/s, with ``threads`` threads.

    The best of all repetitions within ``seconds`` (at least three): a ceiling is what the machine can do undisturbed.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        left, right = (torch.randn(size, size, dtype=getattr(torch, precision)) for _ in range(2))
        times: list[float] = []
        begun = time.perf_counter()
        while len(times) < 3 or time.perf_counter() - begun < seconds:
            start = time.perf_counter()
            torch.mm(left, right)
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    plural = "" if threads == 1 else "s"
    source = f"measured ceiling: {precision} matrix product of {size}, {threads} thread{plural}"
    return Peak(2 * size**3 / min(times), source)


def device_peak(device_kind: str, precision: str, threads: int) -> Peak:
    """Return the peak to hold a trial against: a GPU's datasheet, or the CPU's measured ceiling."""
    import torch

    if device_kind != "cuda":
        return matmul_ceiling(precision, threads)
    if not torch.cuda.is_available():
        return Peak(None, "no CUDA device on this machine")
    return datasheet_peak(torch.cuda.get_device_name(), precision)
