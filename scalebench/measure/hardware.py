"""What the device can do: peak rates with their source, and null where nobody knows.

A datasheet's figure is dense, without sparsity. On a CPU there is no such figure to trust, so the ceiling of a large
matrix product is measured and called that.
"""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Peak:
    """The highest rate a device can reach, FLOP/s, or None with the reason in ``source``."""

    flops_per_s: float | None
    source: str


@dataclass(frozen=True)
class Datasheet:
    """A device's dense rates in FLOP/s: plain float32, and 16-bit products on the tensor cores (both formats alike)."""

    float32: float
    half: float
    document: str


# By the name that the driver gives. float32 is the plain rate: torch leaves TF32 off for matrix products unless asked.
# Vendors print 16-bit rates with sparsity; these are the dense ones, half of that.
PEAKS: dict[str, Datasheet] = {
    "NVIDIA B200": Datasheet(75e12, 2250e12, "NVIDIA Blackwell architecture technical brief, HGX B200 per GPU"),
    "NVIDIA H200": Datasheet(67e12, 989.4e12, "NVIDIA H200 Tensor Core GPU datasheet, SXM"),
    "NVIDIA H100 80GB HBM3": Datasheet(67e12, 989.4e12, "NVIDIA H100 Tensor Core GPU datasheet, SXM"),
    "NVIDIA H100 PCIe": Datasheet(51e12, 756e12, "NVIDIA H100 Tensor Core GPU datasheet, PCIe"),
    "NVIDIA A100": Datasheet(19.5e12, 312e12, "NVIDIA A100 Tensor Core GPU datasheet"),
    "NVIDIA L40S": Datasheet(91.6e12, 362e12, "NVIDIA L40S datasheet"),
    "NVIDIA L4": Datasheet(30.3e12, 121e12, "NVIDIA L4 Tensor Core GPU datasheet"),
    "NVIDIA A10": Datasheet(31.2e12, 125e12, "NVIDIA A10 Tensor Core GPU datasheet"),
    "NVIDIA GeForce RTX 4090": Datasheet(82.6e12, 165.2e12, "NVIDIA Ada GPU architecture, float32 accumulation"),
    "NVIDIA GeForce RTX 3090": Datasheet(35.6e12, 71e12, "NVIDIA Ampere GA102 architecture, float32 accumulation"),
}
_RATES = {"float32": "float32", "bfloat16": "half", "float16": "half"}


def datasheet_peak(device_name: str, precision: str) -> Peak:
    """Return a GPU's peak. An unknown device or precision has none: never another device's."""
    # "NVIDIA L4" must not answer for an "NVIDIA L40": a match ends at the end of a word.
    matches = [name for name in PEAKS if f"{device_name} ".startswith((f"{name} ", f"{name}-"))]
    if not matches:
        return Peak(None, f"unknown device {device_name!r}: no peak on file")
    sheet = PEAKS[max(matches, key=len)]
    if precision not in _RATES:
        return Peak(None, f"no {precision} peak on file for {device_name}")
    return Peak(getattr(sheet, _RATES[precision]), f"{sheet.document}: dense {precision}")


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

    if device_kind != "cuda" and precision == "float16":
        return Peak(None, "float16 is not computed with on a CPU")
    if device_kind != "cuda":
        return matmul_ceiling(precision, threads)
    if not torch.cuda.is_available():
        return Peak(None, "no CUDA device on this machine")
    return datasheet_peak(torch.cuda.get_device_name(), precision)
