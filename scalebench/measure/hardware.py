"""Peak rates of the device with their source; null if not known.

A datasheet's rate is the dense one, without sparsity. For CPUs there is no reliable figure, so the rate of a large
matrix product is measured, and named as such.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil

from scalebench.errors import number_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Peak:
    """Peak rate of a device in FLOP/s, or None with the reason in ``source``."""

    flops_per_s: float | None
    source: str


@dataclass(frozen=True)
class Datasheet:
    """A device's dense rates in FLOP/s: plain float32, and 16-bit products on the tensor cores (both formats alike)."""

    float32: float
    half: float
    document: str


# What a plan assumes where no rate is known: a few desktop cores, and a datacenter GPU in 16 bits.
NOMINAL_FLOPS_PER_S = {"cpu": 5e10, "cuda": 1e14}

# By the name reported by the driver. float32 is the plain rate: torch leaves TF32 off for matrix products unless asked.
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
    """Return a GPU's peak; None for an unknown device or precision, never another device's."""
    # "NVIDIA L4" must not match "NVIDIA L40": a match ends at the end of a word.
    matches = [name for name in PEAKS if f"{device_name} ".startswith((f"{name} ", f"{name}-"))]
    if not matches:
        return Peak(None, f"unknown device {device_name!r}: no peak on file")
    sheet = PEAKS[max(matches, key=len)]
    if precision not in _RATES:
        return Peak(None, f"no {precision} peak on file for {device_name}")
    return Peak(getattr(sheet, _RATES[precision]), f"{sheet.document}: dense {precision}")


def usable_cpus() -> list[int]:
    """Return the cores this process may use."""
    process = psutil.Process()
    return list(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else list(range(psutil.cpu_count() or 1))


# --- measured ceilings -----------------------------------------------------------------------------------------------

MakeTimer = Callable[[Callable[[], Any]], Callable[[], float]]  # from work to what times one call of it, in seconds
LONGEST_PRODUCT_S = 0.3  # a CPU may have no fast product of 16-bit numbers


def host_timer(work: Callable[[], Any]) -> Callable[[], float]:
    """Time one call by the host's clock, for work that is done when the call returns."""

    def take() -> float:
        begun = time.perf_counter_ns()
        work()
        return (time.perf_counter_ns() - begun) * 1e-9

    return take


def shortest(take: Callable[[], float], seconds: float) -> float:
    """Return the shortest of at least three samples within ``seconds``: a ceiling is reached undisturbed."""
    begun, best = time.perf_counter(), min(take() for _ in range(3))
    while time.perf_counter() - begun < seconds:
        best = min(best, take())
    return best


def best_product(
    sides: Sequence[int], dtype: torch.dtype, device: torch.device, seconds: float, make_timer: MakeTimer = host_timer
) -> tuple[float, int]:
    """Return the best rate of a square matrix product of random numbers in FLOP/s, and the side that reached it.

    Each of ``sides``, in rising order, is measured for ``seconds``; larger ones only as long as a product is expected
    to take no more than ``LONGEST_PRODUCT_S``. On a GPU ``make_timer`` has to wait for the device.
    """
    import torch

    # A separate generator: the trial that measures must draw the same random numbers as the others.
    random = torch.Generator(device).manual_seed(0)
    best, best_side = 0.0, sides[0]
    for side in sides:
        if best and 2 * side**3 / best > LONGEST_PRODUCT_S:
            break
        left, right = (torch.randn(side, side, device=device, generator=random).to(dtype) for _ in range(2))
        product = partial(torch.mm, left, right)
        product()  # the first call allocates and chooses an algorithm
        rate = 2 * side**3 / shortest(make_timer(product), seconds)
        best, best_side = max((best, best_side), (rate, side))
    return best, best_side


CPU_SIDES = (256, 512, 1024)


def matmul_ceiling(precision: str, threads: int, sides: Sequence[int] = CPU_SIDES, seconds: float = 0.15) -> Peak:
    """Measure the CPU's best rate on a square matrix product, in FLOP/s; see ``best_product``."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rate, side = best_product(sides, getattr(torch, precision), torch.device("cpu"), seconds)
    finally:
        torch.set_num_threads(before)
    return Peak(rate, f"measured ceiling: {precision} matrix product of {side}, {number_of(threads, 'thread')}")


def cpu_peak(precision: str, threads: int) -> Peak:
    """Return the CPU's measured ceiling, or the reason for a precision that it does not support."""
    if precision == "float16":
        return Peak(None, "float16 is not computed with on a CPU")
    return matmul_ceiling(precision, threads)


def gpu_peak(precision: str) -> Peak:
    """Return the peak of this machine's first GPU from its datasheet."""
    import torch

    if not torch.cuda.is_available():
        return Peak(None, "no CUDA device on this machine")
    return datasheet_peak(torch.cuda.get_device_name(), precision)
