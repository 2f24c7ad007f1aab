"""How weight's gradient is summed in float32 over products of 16-bit matrices: decided once per device, by trying.

``total += left · right`` with float32 sums and a float32 result is what tensor cores do, but torch offers it under
calls that not every build has for every device. The first of these that gives the right numbers is used:

- ``"addmm"``: ``torch.addmm(total, left, right, out_dtype=torch.float32, out=total)``, in place, no temporary;
- ``"mm"``: ``torch.mm(left, right, out_dtype=torch.float32)`` of some classes at a time, added to the sum;
- ``"float32 copies"``: float32 copies of some classes at a time, multiplied without tensor cores. Always right, slow on
  a GPU; what a CPU takes, which has neither of the others.

All three round nothing to 16 bits, so accuracy does not depend on the choice. ``weight_gradient_path`` returns it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

TEMPORARY_BYTES = 32 * 2**20  # of the product of some classes, on a GPU
CPU_CLASSES = 32  # whose float32 copies a product on a CPU makes at a time
TRIED = 64  # rows and columns of the matrices that a path is tried with


def accumulate(total: Tensor, left: Tensor, right: Tensor, *, keep: bool) -> None:
    """Total = left · right, summed in float32, added to what it holds with ``keep``, and rounded to its dtype."""
    if total.dtype == right.dtype:
        total.addmm_(left, right, beta=float(keep))
    else:
        PATHS[weight_gradient_path(total.device, right.dtype)](total, left, right, keep)


def weight_gradient_path(device: torch.device | str, dtype: torch.dtype) -> str:
    """Return the name of the path for factors of a 16-bit dtype; the first call on a device tries and waits for it.

    Raises ``RuntimeError`` where that would happen while a CUDA graph is being captured.
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
    """Tell whether a path sums integers exactly that 16 bits do not hold, over what was there and over NaN."""
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
