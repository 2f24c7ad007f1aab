"""4-bit weights by torchao: on a CPU and on a GPU, which pack them differently.

Each group of a row has a scale and a zero point in bfloat16, and the rest of the model computes in bfloat16. On a CPU
the rows must come in sixteens. A GPU of compute capability 8.0 or more has torch's tinygemm product, whose tiles pad
rows to a multiple of 8 and widths to one of 1024: far below that the padding costs more than the bits save.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from scalekernels import Unsupported

CPU_ROWS = 16  # torch's CPU product takes a multiple of these
GPU_ROWS, GPU_WIDTHS = 8, 1024  # what the GPU's tiles pad to a multiple of
GPU_CAPABILITY = (8, 0)
GPU_PACKING = "tile_packed_to_4d"  # torchao's name; its other packings need a library of their own, mslk


def obstacle(rows: int, kind: str) -> str | None:
    """Return why a matrix of this many rows cannot be converted on a kind of device; None if it can."""
    return f"{rows} rows are not a multiple of {CPU_ROWS}" if kind == "cpu" and rows % CPU_ROWS else None


def packed_bytes(rows: int, width: int, group_size: int, kind: str) -> int:
    """Return the bytes of a matrix (rows, width) on a kind of device by closed form, padding included."""
    if kind == "cuda":
        rows, width = (math.ceil(size / step) * step for size, step in ((rows, GPU_ROWS), (width, GPU_WIDTHS)))
    return rows * width // 2 + 4 * rows * (width // group_size)


def check_device(device: torch.device) -> None:
    """Raise ``Unsupported`` for a GPU without the product of 4-bit weights, or another kind of device."""
    if device.type not in ("cpu", "cuda"):
        raise Unsupported(f"int4-weight-only: torchao has no product of 4-bit weights for {device.type}")
    if device.type == "cuda" and (capability := torch.cuda.get_device_capability(device)) < GPU_CAPABILITY:
        needed, name = ".".join(map(str, GPU_CAPABILITY)), torch.cuda.get_device_name(device)
        raise Unsupported(
            f"int4-weight-only needs a GPU of compute capability {needed} or more, and {name} has "
            f"{'.'.join(map(str, capability))}; set quantize.device = 'cpu'"
        )


def config(group_size: int, kind: str) -> Any:
    """Return torchao's configuration for a kind of device; ``ImportError`` if torchao does not have it."""
    if kind == "cuda":
        from torchao.quantization import Int4WeightOnlyConfig  # type: ignore[import-untyped]

        return Int4WeightOnlyConfig(group_size=group_size, int4_packing_format=GPU_PACKING, set_inductor_config=False)
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig  # type: ignore[import-untyped]

    return PrototypeInt4WeightOnlyConfig(group_size=group_size, set_inductor_config=False)


def layout(kind: str) -> str:
    """Return how the bytes are arranged on a kind of device; on a CPU, for its widest instructions."""
    return GPU_PACKING if kind == "cuda" else torch.backends.cpu.get_cpu_capability()
