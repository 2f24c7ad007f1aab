"""The kernels of GPUs that multiply by 2:4 matrices: bytes and time of a pruned model that uses them."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from scalebench.measure.memory import weight_bytes
from scalebench.workloads.effect import BYTES_COLUMNS, LATENCY_COLUMNS, Before, bytes_columns, latency_columns
from scalebench.workloads.prune_masks import prunable


def semi_structured_columns(before: Before, model: nn.Module) -> dict[str, Any]:
    """Return bytes and latency of a 2:4 model on the kernels for it, beside the dense one in the same number format.

    Where a matrix cannot be converted they are null, but for the size of the unpruned model, and ``sparse_kernel`` has
    the reason.
    """
    precision = before.spec.precision
    reason = unavailable(before.device, precision)
    if reason is None:
        dtype = getattr(torch, precision)
        dense, sparse = (copy.deepcopy(each).eval().requires_grad_(False).to(dtype) for each in (before.model, model))
        reason = convert(sparse)
    if reason is not None:
        unknown = {column.name: None for column in (*BYTES_COLUMNS, *LATENCY_COLUMNS)}
        return unknown | {"weight_bytes_before": weight_bytes(before.model), "sparse_kernel": reason}
    reference = replace(before, model=dense)
    measured = bytes_columns(reference, sparse) | latency_columns(reference, sparse, before.spec)
    return measured | {"sparse_kernel": "torch.sparse.to_sparse_semi_structured"}


def unavailable(device: torch.device, precision: str) -> str | None:
    """Return why no 2:4 kernel runs on a device in a number format; None where one does."""
    if device.type != "cuda":
        return f"unsupported: 2:4 kernels need a GPU, and this trial ran on a {device.type}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return (
            f"unsupported: 2:4 kernels need compute capability 8.0, and {torch.cuda.get_device_name(device)} has less"
        )
    if precision == "float32":
        return "unsupported: 2:4 kernels multiply 16-bit numbers; set precision to bfloat16 or float16"
    return None


def convert(model: nn.Module) -> str | None:
    """Replace every pruned matrix by its compressed form, in place; return why one cannot be, None if all were."""
    for path, (module, name) in prunable(model).items():
        weight = getattr(module, name)
        if not isinstance(module, nn.Linear):
            return f"unsupported: {path} is no weight of a linear layer, which 2:4 kernels need"
        try:
            compressed = torch.sparse.to_sparse_semi_structured(weight.detach().contiguous())
        except RuntimeError as error:  # a shape that the kernels do not take
            return f"unsupported: {path}: {str(error).splitlines()[0]}"
        setattr(module, name, nn.Parameter(compressed, requires_grad=False))
    return None
