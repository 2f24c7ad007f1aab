"""State of the fused optimizers: allocation, the 8-bit map in plain torch, and checks.

8-bit codes are in the memory order of the parameter, in blocks of 256. The map of ``kernels`` is implemented here
independently, as a table of its levels from the definition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scalekernels.optimizer.kernels import QUANTUM as QUANTUM_CONSTANT
from scalekernels.optimizer.launch import PARAM_DTYPES

QUANTUM = int(QUANTUM_CONSTANT.value)
EXPONENT_BITS = {torch.int8: 4, torch.uint8: 5}
MANTISSA_BITS = 3
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # blocks with smaller magnitudes only are stored as zeros


def levels(dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return the magnitudes of all levels for int8 (128) or uint8 (256) codes, float32, relative to the scale."""
    count = 2 ** (EXPONENT_BITS[dtype] + MANTISSA_BITS)
    level = torch.arange(count, device=device)
    exponent, mantissa = level >> MANTISSA_BITS, level % 2**MANTISSA_BITS
    significand = torch.where(exponent > 0, mantissa + 2**MANTISSA_BITS, mantissa).double()
    value = torch.ldexp(significand, exponent.clamp(min=1))
    return (value / value[-1]).float()


def in_memory_order(tensor: Tensor) -> Tensor:
    """Return a flat view of a dense tensor in memory order."""
    return tensor.as_strided((tensor.numel(),), (1,))


def layout(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides of dimensions longer than one, the only ones that matter."""
    return tuple(stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill memory without gaps or overlap, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and tensor.numel():
            if stride != expected:
                return False
            expected *= size
    return True


def refuse_param(param: Tensor, name: str) -> None:
    """Raise for a parameter that the kernels cannot update, with its name, what it is and what is allowed."""
    if type(param) is not Tensor and (type(param).__torch_dispatch__ is not Tensor.__torch_dispatch__):
        raise TypeError(f"{name} is a {type(param).__name__}; the fused optimizers take plain tensors and parameters")
    if param.layout != torch.strided:
        raise TypeError(f"{name} is {param.layout}; the fused optimizers take dense parameters")
    if param.dtype not in PARAM_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in PARAM_DTYPES)
        raise TypeError(f"{name} is {str(param.dtype).removeprefix('torch.')}; allowed: {names}")
    if not is_dense(param):
        raise ValueError(
            f"{name} of shape {tuple(param.shape)} has strides {param.stride()}: there are gaps or overlaps in memory; "
            "the fused optimizers take contiguous parameters or permutations of such"
        )


def refuse_grad(param: Tensor, grad: Tensor, name: str) -> None:
    """Raise for a gradient whose dtype, device or memory layout differs from its parameter's."""
    if grad.is_sparse or grad.layout != torch.strided:
        raise RuntimeError(f"the gradient of {name} is sparse; the fused optimizers take dense gradients")
    if type(grad) is not Tensor:
        raise TypeError(f"the gradient of {name} is a {type(grad).__name__}; the fused optimizers take plain tensors")
    if grad.dtype != param.dtype:
        raise TypeError(f"the gradient of {name} is {grad.dtype}, the parameter {param.dtype}: they must agree")
    if grad.device != param.device:
        raise ValueError(f"the gradient of {name} is on {grad.device}, the parameter on {param.device}")
    if grad.stride() != param.stride() and layout(grad) != layout(param) and grad.numel():
        raise ValueError(
            f"the gradient of {name} has strides {grad.stride()}, the parameter {param.stride()}: lay the gradient out "
            "like the parameter (torch.empty_like(parameter).copy_(gradient)), as autograd does"
        )


def refuse_state(param: Tensor, state: Mapping[str, Any], names: Sequence[str], name: str) -> None:
    """Raise for a parameter whose shape, layout or device has changed since its state was created."""
    for key in names:
        kept = state[key]
        if kept.shape != param.shape or layout(kept) != layout(param):
            raise ValueError(
                f"{name} has shape {tuple(param.shape)} and strides {param.stride()}, its {key} {tuple(kept.shape)} "
                f"and {kept.stride()}: it was changed after its first step; make a new optimizer"
            )
        if kept.device != param.device:
            raise ValueError(
                f"{name} is on {param.device}, its {key} on {kept.device}: make the optimizer after moving"
            )


def empty_state(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros in the layout of a parameter."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False).detach()


def empty_scale(param: Tensor) -> Tensor:
    """Return zero scales, one per 256 elements of a parameter."""
    return torch.zeros(-(-param.numel() // QUANTUM), dtype=torch.float32, device=param.device)


def dequantised(code: Tensor, scale: Tensor) -> Tensor:
    """Return the float32 values of 8-bit codes (int8: signed, uint8: positive), shaped like the codes."""
    flat = in_memory_order(code).to(torch.int64)
    factor = levels(code.dtype, code.device)[flat.abs()] * flat.sign()
    out = torch.empty_like(code, dtype=torch.float32)
    in_memory_order(out).copy_(factor * scale.repeat_interleave(QUANTUM)[: flat.numel()])
    return out


def quantise(value: Tensor, code: Tensor, scale: Tensor) -> None:
    """Write float values as 8-bit codes and scales, rounding to nearest; a non-finite block gets scale nan."""
    ordered = torch.empty_like(code, dtype=torch.float32).copy_(value)
    flat = in_memory_order(ordered)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % QUANTUM)).view(-1, QUANTUM)
    if blocks.numel():
        largest = blocks.abs().amax(dim=1)
        scale.copy_(largest.where(largest >= SMALLEST_SCALE, 0.0).where(blocks.isfinite().all(dim=1), torch.nan))
    ratio = (blocks.abs() / scale[:, None]).nan_to_num(0.0, posinf=0.0)
    table = levels(code.dtype, code.device)
    level = torch.bucketize(ratio, (table[1:] + table[:-1]) / 2)
    if code.dtype == torch.uint8:
        level = torch.where(ratio > 0, level.clamp(min=1), level)
    in_memory_order(code).copy_((level * blocks.sign().nan_to_num(0.0)).flatten()[: flat.numel()])


def store(value: Tensor, target: Tensor, scale: Tensor | None) -> None:
    """Write float values into state, as 8-bit codes if it has a scale."""
    if scale is None:
        target.copy_(value)
    else:
        quantise(value.to(target.device), target, scale)
