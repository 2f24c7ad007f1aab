"""What the device reaches in this run: rates of a copy and of a matrix product, measured next to the providers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from scalebench.comparison.timing import Clock
from scalebench.measure.device_lock import gpu_uuid
from scalebench.measure.hardware import CPU_SIDES, MakeTimer, best_product, shortest
from scalebench.store import StoreError, read_json, write_json

# Much larger than the last cache: 20 times the L2 of an H100.
CPU_COPY_BYTES, CUDA_COPY_BYTES = 128 << 20, 1 << 30
CACHED_COPY_BYTES = (256 << 10, 1 << 20, 4 << 20, 16 << 20)  # that may stay in the caches of a CPU
LIFE_S = 3600.0  # how long stored ceilings are valid: clock rates and temperatures change
CUDA_SIDES = (4096, 8192)


@dataclass(frozen=True)
class Ceilings:
    """Best measured rates: bytes read and written per second by a copy, FLOP/s of a matrix product, and the method.

    ``cache_bytes`` is the size of the last cache, None if unknown: a kernel's last writes may still be in it when its
    time is taken. ``floor_s`` is the measured time of adding to a single number: no sample can be shorter, and one that
    is not much longer means little. ``cached_bytes_per_s`` is the best rate of smaller copies too, on a CPU, where
    inputs may be in a cache; ``flops_limit_per_s`` the best rate of any arithmetic on the dtype: on a CPU also that of
    float32, in which it may compute.
    """

    copy_bytes_per_s: float
    matmul_flops_per_s: float
    source: str
    cache_bytes: int | None = None
    floor_s: float | None = None
    cached_bytes_per_s: float | None = None
    flops_limit_per_s: float | None = None


def _copy_rate(size: int, clock: Clock, device: torch.device, seconds: float) -> float:
    """Return bytes read plus written per second: the better of the driver's copy and a kernel, on random numbers."""
    source, target = (torch.randn(size // 4, device=device) for _ in range(2))
    copies = (lambda: target.copy_(source), lambda: torch.neg(source, out=target))
    return 2 * size / min(_shortest(copy, clock, seconds / 2) for copy in copies)


def _shortest(work: Callable[[], Any], clock: Clock, seconds: float) -> float:
    work()  # allocates
    return shortest(_timer(clock)(work), seconds)


def _timer(clock: Clock) -> MakeTimer:
    return lambda work: clock.timer(lambda: {"result": work()}, 1).take


def measure_ceilings(clock: Clock, device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> Ceilings:
    """Measure both ceilings of a device for a dtype, each for about ``seconds``, on random numbers.

    The products are those of ``measure.hardware.best_product``, timed by this clock.
    """
    cuda = device.type == "cuda"
    size, sides = (CUDA_COPY_BYTES, CUDA_SIDES) if cuda else (CPU_COPY_BYTES, CPU_SIDES)
    best, side = best_product(sides, dtype, device, seconds / 2, _timer(clock))
    name = str(dtype).removeprefix("torch.")
    source = f"measured on random numbers: copy of {size >> 20} MiB; {name} matrix product of {side}"
    cache = int(torch.cuda.get_device_properties(device).L2_cache_size) if cuda else None
    number = torch.zeros(1, device=device)
    floor = _shortest(lambda: number.add_(1), clock, seconds / 10)
    copied = _copy_rate(size, clock, device, seconds)
    if cuda:
        return Ceilings(copied, best, source, cache, floor, None, best)
    cached = max(copied, *(_copy_rate(small, clock, device, seconds / 4) for small in CACHED_COPY_BYTES))
    limit = best if dtype == torch.float32 else max(best, best_product(sides, torch.float32, device, seconds / 4)[0])
    return Ceilings(copied, best, source, cache, floor, cached, limit)


def known_ceilings(clock: Clock, device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> Ceilings:
    """Return the ceilings of ``measure_ceilings``, or those stored by an earlier process.

    The environment variable SCALEBENCH_CEILINGS names the file that stores them; without it they are always measured.
    Stored ceilings are valid for an hour, for the same GPU and versions; their source includes their age.
    """
    path, now = os.environ.get("SCALEBENCH_CEILINGS"), time.time()
    if not path or not (uuid := gpu_uuid(device)):
        return measure_ceilings(clock, device, dtype, seconds)
    key, stored = f"{uuid} {dtype} torch {torch.__version__} CUDA {torch.version.cuda}", _stored(Path(path))
    if key in stored and 0 <= now - stored[key]["at"] < LIFE_S:
        ceilings = Ceilings(**stored[key]["ceilings"])
        return replace(ceilings, source=f"{ceilings.source}; {(now - stored[key]['at']) / 60:.0f} min before")
    ceilings = measure_ceilings(clock, device, dtype, seconds)
    write_json(Path(path), _stored(Path(path)) | {key: {"at": now, "ceilings": asdict(ceilings)}})
    return ceilings


def _stored(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) if path.exists() else {}
    except StoreError:  # damaged: measured again
        return {}
