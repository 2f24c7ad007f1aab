"""What ``device = "auto"`` is on this machine."""

from __future__ import annotations

import ctypes
import sys
from functools import lru_cache


@lru_cache(maxsize=1)
def _cuda_usable() -> bool:
    """Whether torch can use a CUDA device. Without a driver torch, which takes seconds to import, is not asked."""
    if "torch" not in sys.modules and not _has_driver():
        return False
    import torch

    return torch.cuda.is_available()


def _has_driver() -> bool:
    """Whether this machine has the library of NVIDIA's driver."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return False
    return True


def device_kind(device: str) -> str:
    """Return "cpu" or "cuda": what the study asks for, or this machine's GPU if torch can use one."""
    if device != "auto":
        return device
    return "cuda" if _cuda_usable() else "cpu"
