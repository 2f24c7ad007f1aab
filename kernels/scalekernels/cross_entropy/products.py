"""Sums in float32 of products of 16-bit matrices, for weight's gradient; the method is chosen once per device by trial.

Tensor cores compute ``total += left · right`` with float32 sums and a float32 result, but not every build of PyTorch
has the same call for it on every device. The first of these that gives correct results is used:

- ``"addmm"``: ``torch.addmm(total, left, right, out_dtype=torch.float32, out=total)``, in place, no temporary;
- ``"mm"``: ``torch.mm(left, right, out_dtype=torch.float32)`` of some classes at a time, added to the sum;
- ``"float32 copies"``: float32 copies of some classes at a time, multiplied without tensor cores. Always correct, slow
  on a GPU; used on CPUs, which have neither of the others.

None of them rounds to 16 bits, so accuracy does not depend on the choice, which ``weight_gradient_path`` returns.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

TEMPORARY_BYTES = 32 * 2**20  # of the product of some classes, on a GPU
CPU_CLASSES = 32  # per product on a CPU, limiting float32 copies
TRIED = 64  # rows and columns of the trial matrices


def accumulate(total: Tensor, left: Tensor, right: Tensor, *, keep: bool) -> None:
    """Set total to left · right, or with ``keep`` add it; summed in float32 and rounded to the dtype of total."""
    if total.dtype == right.dtype:
        total.addmm_(left, right, beta=float(keep))
    else:
        PATHS[weight_gradient_path(total.device, right.dtype)](total, left, right, keep)


def weight_gradient_path(device: torch.device | str, dtype: torch.dtype) -> str:
    """Return the name of the path for factors of a 16-bit dtype; the first call on a device runs the trial.

    Raises ``RuntimeError`` if that happens during capture of a CUDA graph.
    """
    device = torch.device(device)
    if str(device) == "cuda":
        device = torch.device("cuda", torch.cuda.current_device())
    return _path(device, dtype)


@lru_cache(maxsize=64)
def _path(device: torch.device, dtype: torch.dtype) -> str:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise RuntimeError("linear_cross_entropy has not run on this device: run a step before capturing a CUDA graph")
    return next(name for name in PATHS if _is_right(PATHS[name], device, dtype))


def _addmm(total: Tensor, left: Tensor, right: Tensor, keep: bool) -> None:
    torch.addmm(total, left, right, out_dtype=torch.float32, beta=float(keep), out=total)


def _mm(total: Tensor, left: Tensor, right: Tensor, keep: bool) -> None:
    classes = max(1, TEMPORARY_BYTES // (4 * total.shape[1]))
    for rows, factors in zip(total.split(classes), left.split(classes), strict=True):
        product = torch.mm(factors, right, out_dtype=torch.float32)
        if keep:
            rows.add_(product)
        else:
            rows.copy_(product)


def _copies(total: Tensor, left: Tensor, right: Tensor, keep: bool) -> None:
    columns = max(total.shape[1], left.shape[1])
    classes = CPU_CLASSES if total.device.type == "cpu" else max(1, TEMPORARY_BYTES // (4 * columns))
    exact = right.float()
    for rows, factors in zip(total.split(classes), left.split(classes), strict=True):
        rows.addmm_(factors.float(), exact, beta=float(keep))


PATHS: dict[str, Callable[[Tensor, Tensor, Tensor, bool], None]] = {
    "addmm": _addmm,
    "mm": _mm,
    "float32 copies": _copies,
}


def _is_right(path: Callable[[Tensor, Tensor, Tensor, bool], None], device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a path sums integers exactly that need more than 16 bits, adding to a sum and overwriting NaN."""
    numbers = torch.arange(TRIED * TRIED, device=device).view(TRIED, TRIED)
    left, right = (numbers * 7 % 31).to(dtype), (numbers * 11 % 29).to(dtype)
    exact = left.t().double().cpu() @ right.double().cpu()
    total = torch.full((TRIED, TRIED), torch.nan, dtype=torch.float32, device=device)
    try:
        path(total, left.t(), right, False)
        path(total, left.t(), right, True)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError):  # no such kernel on this device, or no such argument in this build
        return False
    return bool(torch.equal(total.double().cpu(), 2 * exact))
