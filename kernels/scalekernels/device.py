"""Which devices the kernels support, and checks of arguments: errors name the argument, and nothing falls back."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

OLDEST = (8, 0)  # compute capability of Ampere: the first with bfloat16 and asynchronous copies
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Unsupported(RuntimeError):  # noqa: N818 - a state of the machine, recorded as status "unsupported"
    """This machine, or a version installed on it, cannot do what was requested; the message is the reason."""


def unavailable_reason() -> str | None:
    """Return why the fused kernels cannot be used here, or None when they can.

    ``TRITON_INTERPRET=1``, set before this package is imported, runs them on a CPU, slowly.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if INTERPRETED:
        return None
    if not torch.cuda.is_available():
        return "no CUDA device: the fused kernels need one (TRITON_INTERPRET=1 runs them on a CPU for checking)"
    major, minor = torch.cuda.get_device_capability()
    if (major, minor) < OLDEST:
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {major}.{minor}; the fused kernels need {OLDEST[0]}.{OLDEST[1]}"
    return None


@lru_cache(maxsize=8)
def assembler(arch: int) -> tuple[str, str]:
    """Return path and version ("12.8.93") of the ptxas that triton uses for an architecture (90 for sm_90).

    ``TRITON_PTXAS_PATH`` (from sm_100 on ``TRITON_PTXAS_BLACKWELL_PATH``) names another than triton's own.
    """
    from triton.backends.nvidia.compiler import get_ptxas

    path = str(get_ptxas(arch).path)
    output = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"V(\d+\.\d+\.\d+)", output)
    return path, version.group(1) if version else output.strip()


def require_device(**tensors: Tensor | None) -> None:
    """Raise ``ValueError`` naming a tensor on an unsupported device or on another than the first.

    Raises ``Unsupported`` if the kernels cannot run on this machine.
    """
    present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first = next(iter(present))
    allowed = ("cpu", "cuda") if INTERPRETED else ("cuda",)
    for name, tensor in present.items():
        if tensor.device.type not in allowed:
            hint = "" if INTERPRETED else " (TRITON_INTERPRET=1 runs the kernels on a CPU for checking)"
            raise ValueError(f"{name} is on {tensor.device}; the fused kernels take CUDA tensors{hint}")
        if tensor.device != present[first].device:
            raise ValueError(f"{name} is on {tensor.device} and {first} on {present[first].device}: move them together")
    if reason := unavailable_reason():
        raise Unsupported(reason)


def require_dtype(allowed: tuple[torch.dtype, ...], **tensors: Tensor | None) -> None:
    """Raise ``TypeError`` naming the first tensor whose dtype is not among ``allowed``."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in allowed:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
            raise TypeError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}; allowed: {names}")


def autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors, under ``torch.autocast`` in its dtype, as PyTorch casts for ``linear`` and attention.

    Like there, float64 stays float64, and gradients come back in the tensors' own dtypes.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype) if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
        for tensor in tensors
    )


def refuse_tangents(operation: str, **tensors: Tensor | None) -> None:
    """Raise ``RuntimeError`` for a tensor with a forward-mode tangent, which a custom operation would drop silently."""
    if forward_ad._current_level < 0:  # nothing is being differentiated forward, the usual case
        return
    for name, tensor in tensors.items():
        if tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None:
            raise RuntimeError(
                f"{operation} has no forward-mode derivative ({name} has a tangent): use torch.autograd or "
                "torch.func.vjp, or the plain torch operation"
            )
